"""A distribution with a source, a sink and a codec, built as a wheel and installed into a folder of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.documented import documented

__all__ = ["install_plugins"]

_PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "acme-factory"
version = "1.2"
[project.entry-points."factory_agents.sources"]
acme-numbers = "acme_factory.numbers:Numbers"
[project.entry-points."factory_agents.sinks"]
acme-lines = "acme_factory.sqlite_sink:SqliteSink"
broken = "acme_factory.broken:Sink"
[project.entry-points."factory_agents.codecs"]
acme-csv = "acme_factory.csv_codec:Csv"
"""
_SOURCE = '''
"""Numbers as events."""
import json
from factory_agents import SourceRecord

class Numbers:
    def __init__(self, upto: int, text: str = "event"):
        self.upto, self.text = upto, text
        self.identity = {"upto": upto, "text": text}

    def read(self, interval, skip):
        yield [
            SourceRecord(None, json.dumps({"event_id": n, "text": f"{self.text} {n}"}).encode(), f"number {n}")
            for n in range(skip, self.upto)
        ]
'''


def install_plugins(folder: Path) -> Path:
    """Build the wheel and install it; the folder that has to be on the path."""
    project, wheels, site = folder / "project", folder / "wheels", folder / "site"
    package = project / "acme_factory"
    package.mkdir(parents=True)
    (project / "pyproject.toml").write_text(_PROJECT)
    (package / "__init__.py").touch()
    (package / "numbers.py").write_text(_SOURCE)
    (package / "csv_codec.py").write_text(documented("codecs.md", "csv_codec.py"))
    (package / "broken.py").write_text("raise RuntimeError('not today')\n")
    (package / "sqlite_sink.py").write_text(documented("own-sink.md", "sqlite_sink.py"))
    build = f"from hatchling.build import build_wheel; build_wheel({str(wheels)!r})"
    wheels.mkdir()
    _run(sys.executable, "-c", build, cwd=project)
    (wheel,) = wheels.glob("*.whl")
    into = ("--no-deps", "--python", sys.executable, "--target", str(site))
    _run(sys.executable, "-m", "uv", "pip", "install", "--quiet", "--offline", *into, str(wheel))
    return site


def _run(*command: str, cwd: Path | None = None) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
