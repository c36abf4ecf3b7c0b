"""``scripts/release.py``: what a release is checked by, and that its checks find what they are for."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
import release

ROOT = Path(__file__).resolve().parents[1]
CHANGELOG = """# Changelog

## [Unreleased]

## [1.2.0] - 2026-11-20

### Added

- A thing.

## [1.1.0] - 2026-10-01

- Another.
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the files that name a version, all of them 1.2.0."""
    now = release.check(ROOT)
    for name in {name for name, _ in release._NAMED}:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text().replace(now, "1.2.0"))
    (tmp_path / "CHANGELOG.md").write_text(CHANGELOG)
    return tmp_path


def test_this_commit_is_in_order() -> None:
    assert release.main(["check"]) == 0


def test_a_tag_that_fits_is_taken(project: Path) -> None:
    assert release.check(project, "v1.2.0") == "1.2.0"


@pytest.mark.parametrize("name", sorted({name for name, _ in release._NAMED} - {"pyproject.toml"}))
def test_a_file_that_was_forgotten_is_named(project: Path, name: str) -> None:
    (project / name).write_text((project / name).read_text().replace("1.2.0", "1.1.0"))
    with pytest.raises(release.ReleaseError, match=rf"{name}: expected 1\.2\.0, got 1\.1\.0"):
        release.check(project)


def test_a_charts_app_is_this_version(project: Path) -> None:
    chart = project / "deploy/helm/factory/Chart.yaml"
    chart.parent.mkdir(parents=True)
    chart.write_text('apiVersion: v2\nname: factory\nversion: 0.3.0\nappVersion: "1.1.0"\n')
    with pytest.raises(release.ReleaseError, match=r"deploy/helm/factory/Chart.yaml: expected 1\.2\.0, got 1\.1\.0"):
        release.check(project)


def test_no_file_names_the_version_without_being_checked() -> None:
    """Besides prose, tests, locks and what is generated."""
    version = release.check(ROOT)
    told = subprocess.run(["git", "grep", "-lF", version], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    known = {name for name, _ in release._NAMED} | {"docs/reference.md", "CHANGELOG.md"}
    loose = [
        name
        for name in told
        if name not in known
        and not name.startswith(("tests/", "requirements/", "deploy/helm/", ".github/"))
        and f":{version}" in (ROOT / name).read_text()
    ]
    assert loose == []


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("## [Unreleased]\n", "## [Unreleased]\n\n- Not yet.\n", r"\[Unreleased\] is not empty: move its text to \[1.2.0\]"),
        ("## [Unreleased]\n\n", "", r"expected ## \[Unreleased\] first, got 1.2.0"),
        ("## [1.2.0] - 2026-11-20", "## [1.3.0] - 2026-11-20", r"expected \[1.2.0\] as the newest version, got 1.3.0"),
        ("2026-11-20", "2026-09-20", "expected each version with its date, the newest first"),
        (" - 2026-11-20", "", "expected each version with its date"),
        ("## [1.2.0] - 2026-11-20", "## 1.2.0", r"## 1.2.0: expected \[X.Y.Z\]"),
        ("\n- Another.\n", "", r"\[1.1.0\] has no text"),
    ],
)
def test_a_changelog_that_is_not_ready_is_refused(project: Path, old: str, new: str, problem: str) -> None:
    (project / "CHANGELOG.md").write_text(CHANGELOG.replace(old, new))
    with pytest.raises(release.ReleaseError, match=problem):
        release.check(project, "v1.2.0")


@pytest.mark.parametrize("tag", ["1.2.0", "v1.2.1", "v1.2.0 "])
def test_another_tag_is_refused(project: Path, tag: str) -> None:
    with pytest.raises(release.ReleaseError, match=r"expected v1\.2\.0"):
        release.check(project, tag)


def test_a_tag_is_a_text_and_no_command(tmp_path: Path) -> None:
    made = tmp_path / "made"
    tag = f'v1$(touch {made})"; touch {made}; $(shell touch {made}) `touch {made}`'
    done = subprocess.run(["make", "dist"], cwd=ROOT, env={**os.environ, "TAG": tag}, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert f"error: tag {tag}: expected v" in done.stderr
    assert not made.exists()


def test_the_page_of_a_release_is_its_part_of_the_changelog() -> None:
    assert release.notes(CHANGELOG, "1.2.0") == "### Added\n\n- A thing.\n"
    with pytest.raises(release.ReleaseError, match=r"no text for \[1\.3\.0\]"):
        release.notes(CHANGELOG, "1.3.0")


def wheel(path: Path, files: dict[str, bytes]) -> str:
    """A small wheel, and the RECORD that its installation has."""
    lines = [
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(body).digest()).decode().rstrip('=')},{len(body)}"
        for name, body in files.items()
    ]
    with zipfile.ZipFile(path, "w") as archive:
        for name, body in files.items():
            archive.writestr(name, body)
        archive.writestr("thing-1.0.dist-info/RECORD", "\n".join([*lines, "thing-1.0.dist-info/RECORD,,"]))
    return "\n".join([*lines, "thing/__pycache__/a.pyc,,", "thing-1.0.dist-info/INSTALLER,sha256=x,2"])


def test_an_installation_is_compared_with_its_wheel(tmp_path: Path) -> None:
    ours, other = tmp_path / "a.whl", tmp_path / "b.whl"
    installed = wheel(ours, {"thing/a.py": b"1", "thing/b.py": b"2"})
    wheel(other, {"thing/a.py": b"1", "thing/b.py": b"changed", "thing/c.py": b"more"})
    assert release.missing_from(installed, ours) == []
    assert release.missing_from(installed, other) == ["thing/b.py", "thing/c.py"]


@pytest.mark.slow
def test_two_builds_are_equal_and_hold_what_they_should(tmp_path: Path) -> None:
    built = release.build(tmp_path / "dist")
    assert subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=tmp_path / "dist", check=False).returncode == 0
    for beginning in release.PROJECTS:
        (name,) = (name for name in built if name.startswith(beginning) and name.endswith(".whl"))
        with zipfile.ZipFile(tmp_path / "dist" / name) as archive:
            names = archive.namelist()
        rooms = {n.partition("/")[0] for n in names}
        assert rooms == {beginning, name.removesuffix("-py3-none-any.whl") + ".dist-info"}
        assert [n for n in names if "__pycache__" in n or n.endswith((".pyc", ".so"))] == []
        assert any(n.endswith("licenses/LICENSE") for n in names)
        tracked = ROOT / release.PROJECTS[beginning] / beginning
        files = [path for path in tracked.rglob("*") if path.is_file() and path.parent.name != "__pycache__"]
        sources = {str(path.relative_to(tracked.parent)) for path in files}
        assert sources <= set(names)


def test_a_build_that_depends_on_its_place_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def once(place: Path, *settings: object) -> dict[str, str]:
        (place / "dist").mkdir(parents=True)
        return {"a.whl": hashlib.sha256(str(place).encode()).hexdigest(), "a.tar.gz": "same"}

    monkeypatch.setattr(release, "_build_once", once)
    with pytest.raises(release.ReleaseError, match=r"two builds of the same sources differ: a\.whl"):
        release.build(tmp_path / "dist")
    assert not (tmp_path / "dist").exists()


def test_a_bill_of_materials_lists_every_locked_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "requirements").mkdir()
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    lock = "".join(f"{name} \\\n    --hash=sha256:{'a' * 64}\n" for name in ("msgspec==0.20.0", "typer==0.15.1 ; sys_platform == 'win32'"))
    (tmp_path / "requirements/small.txt").write_text(lock)
    monkeypatch.setattr(release, "SBOMS", {"image": "small"})
    assert release.sbom(tmp_path, tmp_path / "out") == {"image.cdx.json": 2}
    told = json.loads((tmp_path / "out/image.cdx.json").read_text())
    assert told["bomFormat"] == "CycloneDX"
    assert {c["purl"].partition("?")[0] for c in told["components"]} == {"pkg:pypi/msgspec@0.20.0", "pkg:pypi/typer@0.15.1"}
    first = (tmp_path / "out/image.cdx.json").read_bytes()
    release.sbom(tmp_path, tmp_path / "out")
    assert (tmp_path / "out/image.cdx.json").read_bytes() == first
