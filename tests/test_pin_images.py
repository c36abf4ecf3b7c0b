"""``make pin-images``: digests come from registries alone, and all of them or none are written."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pin_images
import pytest

from tests.support.tools import CRANE, image_registry

DIGEST = "sha256:" + "a" * 64
COMPOSE = """services:
  a:
    image: postgres:17.6
  b:
    image: factory-agents:0.1.0
  c:
    image: prom/prometheus:v3.5.1@sha256:{old}  # why
""".format(old="b" * 64)


def test_each_image_that_is_not_built_here_gets_its_digest() -> None:
    assert pin_images.pinned(COMPOSE, lambda image: DIGEST) == COMPOSE.replace("postgres:17.6", f"postgres:17.6@{DIGEST}").replace(
        "b" * 64, "a" * 64
    )


def test_the_base_of_the_images_is_pinned_too() -> None:
    text = "ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm\nFROM ${PYTHON_IMAGE} AS tools\n"
    assert pin_images.pinned(text, lambda image: DIGEST) == text.replace("bookworm\n", f"bookworm@{DIGEST}\n")


def test_the_projects_own_files_name_images_that_it_finds() -> None:
    asked: list[str] = []
    for name in pin_images.FILES:
        pin_images.pinned((pin_images.ROOT / name).read_text(), lambda image: (asked.append(image), DIGEST)[1])
    assert len(set(asked)) > 10
    assert any(image.startswith("python:") for image in asked)


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    """A registry on loopback."""
    if CRANE is None:
        pytest.skip("crane is not installed")
    with image_registry(tmp_path) as address:
        yield address


def test_a_registry_is_asked(registry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert CRANE is not None
    (tmp_path / "layer.tar").write_bytes(b"\0" * 10240)
    image = f"{registry}/thing:1.0"
    subprocess.run([CRANE, "append", "--oci-empty-base", "-f", tmp_path / "layer.tar", "-t", image], check=True, capture_output=True)
    told = subprocess.run([CRANE, "digest", image], check=True, capture_output=True, text=True).stdout.strip()
    monkeypatch.setenv("FACTORY_CRANE", CRANE)
    compose = tmp_path / "docker-compose.yaml"
    compose.write_text(f"services:\n  a:\n    image: {image}\n")
    assert pin_images.main([compose]) == 0
    assert compose.read_text() == f"services:\n  a:\n    image: {image}@{told}\n"
    assert pin_images.main([compose]) == 0
    assert compose.read_text().count("@") == 1


def test_nothing_is_written_where_one_does_not_answer(
    registry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FACTORY_CRANE", str(CRANE))
    compose = tmp_path / "docker-compose.yaml"
    compose.write_text(f"services:\n  a:\n    image: {registry}/missing:1.0\n")
    before = compose.read_text()
    assert pin_images.main([compose]) == 1
    assert compose.read_text() == before
    said = capsys.readouterr().err
    assert said.startswith(f"error: {registry}/missing:1.0: its registry gave no digest (")
    assert len(said.splitlines()) == 1


def test_without_a_tool_that_asks_there_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("FACTORY_CRANE", raising=False)
    assert pin_images.main([]) == 1
    assert capsys.readouterr().err == "error: expected crane or docker on the PATH, to ask the registries; found neither\n"
