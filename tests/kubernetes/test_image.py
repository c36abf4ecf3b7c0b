"""The image that a cluster runs holds no secret of the machine that built it: not in its history, not in its settings, not in a layer."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytestmark = pytest.mark.timeout(600)

ROOT = Path(__file__).resolve().parents[2]
DOCKER = shlex.split(os.environ.get("FACTORY_TEST_DOCKER", ""))
"""The program of the engine that builds, with its options."""
BUILD = shlex.split(os.environ.get("FACTORY_TEST_BUILD", ""))
"""More arguments of its ``build``, as the base image."""
TAG = "factory-agents:planted"

PLANTED = "planted-3f9c1b"
"""A secret of whoever builds: in files beside the sources and in arguments of the build."""
FILES = {
    ".env": f"POSTGRES_PASSWORD={PLANTED}",
    ".netrc": f"machine example.com password {PLANTED}",
    ".git/config": f"[remote] url = https://me:{PLANTED}@example.com",
    ".factory/sandbox.json": PLANTED,
    "kubeconfig": f"token: {PLANTED}",
    "agents/.pypirc": f"password: {PLANTED}",
    "agents/factory_agents/.env": f"DATABASE_URL=postgresql://me:{PLANTED}@db/x",
    "agents/factory_agents/kafka/client.key": PLANTED,
    "airflow_provider_factory/.env": PLANTED,
    "include/.env.local": f"KAFKA_PASSWORD={PLANTED}",
    "include/.ssh/id_ed25519": PLANTED,
    "include/tls/client.key": PLANTED,
    "include/store.jks": PLANTED,
    "include/store.p12": PLANTED,
    "requirements/pip.conf": f"index-url = https://me:{PLANTED}@example.com",
}
ARGUMENTS = {"NO_PROXY": f"{PLANTED}.example.com", "DATABASE_URL": PLANTED, "UV_INDEX_URL": f"https://me:{PLANTED}@example.com"}
PRIVATE = re.compile(r"(^|/)(\.(env(\.[^/]*)?|netrc|pypirc|ssh|git|docker|aws|kube)|id_(rsa|ed25519|ecdsa)|kubeconfig)(/|$)")


class Image(NamedTuple):
    """What an image consists of: its settings with its history, and every file of every layer, those that a later one hides among them."""

    config: dict[str, Any]
    names: set[str]
    planted: list[str]
    """Files that hold a planted secret."""


def _files(layer: tarfile.TarFile) -> Iterator[tuple[str, bool]]:
    for member in layer:
        source = layer.extractfile(member) if member.isreg() else None
        yield member.name, PLANTED.encode() in (source.read() if source else member.linkname.encode())


def _read(archive: Path) -> Image:
    with tarfile.open(archive) as whole:

        def open_(name: str) -> Any:
            return whole.extractfile(name)

        (manifest,) = json.load(open_("manifest.json"))
        found: list[tuple[str, bool]] = []
        for name in manifest["Layers"]:
            with tarfile.open(fileobj=open_(name)) as layer:
                found += _files(layer)
        return Image(json.load(open_(manifest["Config"])), {name for name, _ in found}, [name for name, planted in found if planted])


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    """The image, built of the tracked files beside a developer's own, with a developer's arguments."""
    if not DOCKER:
        pytest.skip("no engine that builds images (FACTORY_TEST_DOCKER)")
    folder = tmp_path_factory.mktemp("image")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, tracked):
        (folder / "context" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / "context" / name)
    for name, text in FILES.items():
        (folder / "context" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "context" / name).write_text(text)
    given = [f"--build-arg={name}={value}" for name, value in ARGUMENTS.items()]
    _docker("build", *BUILD, *given, "--target", "project", "--tag", TAG, str(folder / "context"))
    _docker("save", "--output", str(folder / "image.tar"), TAG)
    yield _read(folder / "image.tar")
    _docker("image", "rm", TAG)


def _docker(*arguments: str) -> None:
    done = subprocess.run([*DOCKER, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_no_secret_of_who_builds_is_in_any_layer(image: Image) -> None:
    for expected in ("factory_agents/runtime/__init__.py", "include/topics.yaml"):
        assert any(name.endswith(expected) for name in image.names), "the layers are not read"
    assert image.planted == []
    assert [name for name in image.names if PRIVATE.search(name)] == []


def test_no_secret_is_in_its_history_and_settings(image: Image) -> None:
    said = json.dumps(image.config)
    assert PLANTED not in said
    assert re.findall(r"://[^/\s\"@]+:[^/\s\"@]+@", said) == []
    assert re.findall(r"PRIVATE KEY|AKIA[0-9A-Z]{16}|gh[pousr]_\w{20}|xox[abp]-\w+|eyJ[\w-]{10,}\.eyJ", said) == []
    assert re.findall(r"\w*(?:PASSWORD|SECRET|TOKEN|API_KEY|CREDENTIAL)\w*=[^\s\"\\]", said, re.IGNORECASE) == []


def test_it_is_built_to_run_without_rights(image: Image) -> None:
    settings = image.config["config"]
    assert settings["User"] == "65532:65532"
    assert settings["Entrypoint"] == ["factory"]
    assert not settings.get("ExposedPorts")
    assert not settings.get("Volumes")
