"""A new project: the files of a small pipeline that runs as it is, to be changed into one's own."""

from __future__ import annotations

from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from factory_agents.errors import ConfigurationError

__all__ = ["create_project"]

_TEMPLATE = "template"
_SKIPPED = "__pycache__"
_RENAMED = {"gitignore": ".gitignore"}  # under its own name it would hide files of the template


def create_project(folder: Path) -> list[str]:
    """Write the files of a new project into a folder, which is made where it isn't there, and return their paths within it.

    Files that are there already with the same text are left alone and not returned. Raises ConfigurationError, with nothing written, where
    a file is there with another text or the folder can't be written.
    """
    wanted = dict(_files(resources.files("factory_agents") / _TEMPLATE))
    try:
        there = {path: (folder / path).read_text(encoding="utf-8", errors="replace") for path in wanted if (folder / path).exists()}
        if differing := sorted(path for path, text in there.items() if text != wanted[path]):
            raise ConfigurationError(
                f"{folder}: {', '.join(differing)} would be overwritten; name another folder (factory init my_project), or move them away"
            )
        new = sorted(wanted.keys() - there.keys())
        for path in new:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(wanted[path], encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{folder}: no project can be made here: {error.strerror or error}") from None
    return new


def _files(folder: Traversable, within: str = "") -> list[tuple[str, str]]:
    found = []
    for entry in folder.iterdir():
        path = within + _RENAMED.get(entry.name, entry.name)
        if entry.is_dir():
            found += _files(entry, path + "/") if entry.name != _SKIPPED else []
        else:
            found.append((path, entry.read_text(encoding="utf-8")))
    return found
