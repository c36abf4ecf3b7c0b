"""What a release is made of, and what checks it: ``python scripts/release.py check | build | sbom | demo | notes | same``.

``check`` compares versions and changelog, with ``--tag`` also with a tag. ``build`` builds wheels and source distributions twice, in places
that differ in all that must not matter, and keeps them only if their bytes are equal. ``sbom`` lists what the images install. ``demo`` runs
the demo on the built wheels, far from the sources, in an empty HOME. ``notes`` prints a version's part of the changelog. ``same`` compares
an installed RECORD with a wheel's. ``make release-check`` and ``.github/workflows/release.yml`` run these.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

__all__ = ["ReleaseError", "build", "changelog_problems", "check", "main", "missing_from", "notes", "sbom", "versions"]

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
PROJECTS = {"factory_agents": "agents", "airflow_provider_factory": "."}
"""The distributions, by their file names' beginning, and where their pyproject.toml is."""

SBOMS = {"factory-agents": "agent", "airflow-factory": "airflow"}
"""The images, and the locked requirements that each installs."""

SETS = {"oldest": "airflow-oldest", "newest": "airflow-newest"}

_OURS = re.compile(r"(AIRFLOW|FACTORY_|KAFKA_|DATABASE_URL|VIRTUAL_ENV|PYTHON|XDG_|MAKE|MFLAGS|ARGS)")
"""What the environment tells of this checkout, and a user's has not."""

_UNRELEASED = "Unreleased"
_HEADING = re.compile(r"^## \[([^\]]+)\](?: - (\d{4}-\d{2}-\d{2}))?$", re.MULTILINE)
_SEMANTIC = re.compile(r"\d+\.\d+\.\d+(?:(?:a|b|rc)\d+)?")
_NAMED = (
    ("pyproject.toml", r'^version = "([^"]+)"'),
    ("pyproject.toml", r'factory-agents(?:\[\w+\])?==([^"]+)"'),
    ("agents/factory_agents/__init__.py", r'^__version__ = "([^"]+)"'),
    ("airflow_provider_factory/get_provider_info.py", r"factory-agents:([\w.]+)"),
    ("docker-compose.yaml", r"image: (?:airflow-factory|factory-agents):(\S+)"),
    ("Dockerfile", r"(?:airflow-factory|factory-agents):(\d\S*?)[ ,\n]"),
    ("deploy/helm/values/airflow.yaml", r"(?:tag: |factory-agents:)(\d[\w.]*\d)"),
    ("deploy/terraform/examples/kind/main.tf", r"factory-agents:(\d[\w.]*\d)"),
    ("docs/kubernetes.md", r"factory-agents:(\d[\w.]*\d)"),
)
"""Where the version is written. Charts have their own version, and name this one as appVersion."""


class ReleaseError(Exception):
    """Why this can't be released, and what to do."""


def versions(root: Path) -> dict[str, set[str]]:
    """The versions that each file names."""
    found: dict[str, set[str]] = {}
    for name, pattern in _NAMED:
        text = (root / name).read_text()
        found.setdefault(name, set()).update(re.findall(pattern, text, re.MULTILINE))
    for chart in sorted(root.glob("deploy/helm/*/Chart.yaml")):
        found[str(chart.relative_to(root))] = set(re.findall(r'^appVersion: "?([^"\s]+)', chart.read_text(), re.MULTILINE))
    return found


def _sections(changelog: str) -> list[tuple[str, str, str]]:
    """Version, date and text of each part, newest first."""
    marks = list(_HEADING.finditer(changelog))
    ends = [mark.start() for mark in marks[1:]] + [len(changelog)]
    return [(m[1], m[2] or "", changelog[m.end() : end].strip()) for m, end in zip(marks, ends, strict=True)]


def changelog_problems(changelog: str, version: str, *, release: bool) -> list[str]:
    """What is wrong with a changelog: before a release of ``version``, or in between."""
    sections = _sections(changelog)
    names = [name for name, _, _ in sections]
    problems = [
        f"## {line}: expected [X.Y.Z] - YYYY-MM-DD"
        for line in re.findall(r"^## (?!\[[^\]]+\](?: - \d{4}-\d{2}-\d{2})?$)(.*)$", changelog, re.MULTILINE)
    ]
    if not names or names[0] != _UNRELEASED:
        return [*problems, f"expected ## [{_UNRELEASED}] first, got {names[0] if names else 'no section'}"]
    dates = [date for name, date, _ in sections if name != _UNRELEASED]
    if "" in dates or dates != sorted(dates, reverse=True):
        problems.append("expected each version with its date, the newest first")
    problems += [f"[{name}] has no text" for name, _, text in sections if name != _UNRELEASED and not text]
    if release:
        if sections[0][2]:
            problems.append(f"[{_UNRELEASED}] is not empty: move its text to [{version}]")
        if names[1:2] != [version]:
            problems.append(f"expected [{version}] as the newest version, got {names[1] if names[1:] else 'none'}")
    return problems


def check(root: Path, tag: str = "") -> str:
    """The version, where all files agree on it, and with the changelog and the tag; raises ReleaseError with all that doesn't."""
    version = str(tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"])
    problems = []
    if not _SEMANTIC.fullmatch(version):
        problems.append(f"pyproject.toml: expected a version such as 1.2.3 or 1.2.3rc1, got {version}")
    for name, found in versions(root).items():
        if found != {version}:
            problems.append(f"{name}: expected {version}, got {', '.join(sorted(found)) or 'no version'}")
    if tag and tag != f"v{version}":
        problems.append(f"tag {tag}: expected v{version}")
    problems += [f"CHANGELOG.md: {p}" for p in changelog_problems((root / "CHANGELOG.md").read_text(), version, release=bool(tag))]
    if problems:
        raise ReleaseError("\n".join(problems))
    return version


def notes(changelog: str, version: str) -> str:
    """A version's part of the changelog, for the page of the release."""
    for name, _, text in _sections(changelog):
        if name == version and text:
            return text + "\n"
    raise ReleaseError(f"CHANGELOG.md: there is no text for [{version}]")


def _run(command: Sequence[str | Path], *, cwd: Path, env: Mapping[str, str] | None = None) -> None:
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=env, check=False)
    if done.returncode != 0:
        raise ReleaseError(f"{' '.join(str(part) for part in command)}: ended with {done.returncode}")


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def _copy(target: Path, *, without: Iterable[str] = ()) -> None:
    """The files that git knows, as they are now."""
    for name in _git("ls-files", "-z").split("\0"):
        if name and not name.startswith(tuple(without)) and (ROOT / name).exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target / name, follow_symlinks=False)


def _digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def _build_once(place: Path, epoch: str, umask: int, language: str) -> dict[str, str]:
    place.mkdir()
    tree = place / "tree"
    _copy(tree)
    env = {
        "PATH": f"{BIN}{os.pathsep}/usr/bin:/bin",
        "HOME": str(place),
        "SOURCE_DATE_EPOCH": epoch,
        "TZ": language,
        "PYTHONHASHSEED": str(umask),
    }
    cache = {name: os.environ[name] for name in ("UV_CACHE_DIR", "XDG_CACHE_HOME") if name in os.environ}
    before = os.umask(umask)
    try:
        for folder in PROJECTS.values():
            uv: list[str | Path] = [
                BIN / "uv",
                "build",
                "--quiet",
                "--no-build-isolation",
                "--python",
                Path(sys.executable),
                "--out-dir",
                place / "dist",
            ]
            _run([*uv, tree / folder], cwd=tree, env={**env, **cache})
    finally:
        os.umask(before)
    (place / "dist" / ".gitignore").unlink(missing_ok=True)
    return _digests(place / "dist")


def build(out: Path) -> dict[str, str]:
    """Build everything twice and keep it in ``out``, with SHA256SUMS; raises ReleaseError where the two differ."""
    epoch = _git("log", "-1", "--format=%ct").strip()
    with tempfile.TemporaryDirectory() as folder:
        first = _build_once(Path(folder, "first"), epoch, 0o022, "UTC")
        second = _build_once(Path(folder, "a place with another name"), epoch, 0o077, "Asia/Kathmandu")
        if first != second:
            differ = sorted(name for name in first | second if first.get(name) != second.get(name))
            raise ReleaseError(f"two builds of the same sources differ: {', '.join(differ)}")
        if len(first) != 2 * len(PROJECTS):
            raise ReleaseError(f"expected a wheel and a source distribution of each project, got {', '.join(first)}")
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(Path(folder, "first", "dist"), out)
    (out / "SHA256SUMS").write_text("".join(f"{digest}  {name}\n" for name, digest in first.items()))
    return first


def sbom(root: Path, out: Path) -> dict[str, int]:
    """Write the components of each image's locked requirements as CycloneDX, and count them; raises ReleaseError where one is missing."""
    counts = {}
    out.mkdir(parents=True, exist_ok=True)
    for image, lock in SBOMS.items():
        requirements, file = root / "requirements" / f"{lock}.txt", out / f"{image}.cdx.json"
        command: list[str | Path] = [BIN / "cyclonedx-py", "requirements", requirements, "--pyproject", root / "pyproject.toml"]
        _run([*command, "--mc-type", "application", "--no-validate", "--output-reproducible", "--of", "JSON", "-o", file], cwd=root)
        listed = {(c["name"].lower(), c["version"]) for c in json.loads(file.read_text())["components"]}
        locked = set(re.findall(r"^([\w.-]+)(?:\[[\w,]+\])?==([^\s;]+)", requirements.read_text(), re.MULTILINE))
        missing = sorted(f"{name}=={version}" for name, version in locked if (name.lower(), version) not in listed)
        if missing:
            raise ReleaseError(f"{file.name}: it lists not all of {requirements.name}: {', '.join(missing)}")
        counts[file.name] = len(listed)
    return counts


def demo(dist: Path, which: str = "newest") -> None:
    """Install the wheels beside their locked requirements, and run the demo with them, without the sources and in an empty HOME."""
    wheels = sorted(dist.glob("*.whl"))
    if len(wheels) != len(PROJECTS):
        raise ReleaseError(f"{dist}: expected {len(PROJECTS)} wheels, got {len(wheels)}; build them first")
    uv = BIN / "uv"
    with tempfile.TemporaryDirectory() as folder:
        tree, home, python = Path(folder, "tree"), Path(folder, "home"), Path(folder, "venv", "bin", "python")
        home.mkdir()
        _copy(tree, without=[*(f"{name}/" for name in PROJECTS), "agents/", "pyproject.toml", "tests/"])
        _run([uv, "venv", "--quiet", "--python", sys.executable, python.parent.parent], cwd=tree)
        lock = tree / "requirements" / f"{SETS[which]}.txt"
        _run([uv, "pip", "sync", "--quiet", "--python", python, "--require-hashes", lock], cwd=tree)
        _run([uv, "pip", "install", "--quiet", "--python", python, "--no-deps", *wheels], cwd=tree)
        _run([uv, "pip", "check", "--python", python], cwd=tree)
        env = {name: value for name, value in os.environ.items() if not _OURS.match(name)} | {"HOME": str(home), "TERM": "dumb"}
        try:
            _run([python, "scripts/demo.py"], cwd=tree, env=env)
        finally:
            down = "import pathlib; from factory_agents.sandbox import Sandbox; Sandbox(pathlib.Path('.factory')).down(wipe=True)"
            subprocess.run([python, "-c", down], cwd=tree, env=env, check=False)


def missing_from(record: str, wheel: Path) -> list[str]:
    """What a wheel holds and an installation's RECORD has not, or has with another hash."""
    installed = set(record.split())
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/RECORD"))
        lines = archive.read(name).decode().split()
    return [line.partition(",")[0] for line in lines if line not in installed and not line.startswith(name)]


def _same(wheel: Path) -> str:
    missing = missing_from(sys.stdin.read(), wheel)
    if missing:
        raise ReleaseError(f"not as in {wheel.name}: {', '.join(missing[:5])}{' …' if missing[5:] else ''}")
    return f"as in {wheel.name}"


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("check").add_argument("--tag", default="")
    for name in ("build", "sbom", "demo"):
        commands.add_parser(name).add_argument("--dist", type=Path, default=ROOT / "dist")
    commands.choices["demo"].add_argument("--airflow", choices=sorted(SETS), default="newest")
    commands.add_parser("notes").add_argument("--version", default="")
    commands.add_parser("same").add_argument("wheel", type=Path)
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Run one of the programs; what is wrong is told line by line."""
    said = _arguments(argv)
    try:
        match said.command:
            case "check":
                print(f"version {check(ROOT, said.tag)}: all files agree, and the changelog is in order")
            case "build":
                for name, digest in build(said.dist).items():
                    print(f"{digest}  {name}")
            case "sbom":
                for name, count in sbom(ROOT, said.dist / "sbom").items():
                    print(f"{name}: {count} components")
            case "demo":
                demo(said.dist.absolute(), said.airflow)
            case "notes":
                print(notes((ROOT / "CHANGELOG.md").read_text(), said.version or check(ROOT)), end="")
            case _:
                print(_same(said.wheel))
    except ReleaseError as error:
        print("\n".join(f"error: {line}" for line in str(error).splitlines()), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
