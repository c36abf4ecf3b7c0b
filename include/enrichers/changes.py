"""What the pipeline adds to each change: the language of the file, and how large the change is."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from factory_agents import Reject

LANGUAGES = {
    ".c": "C", ".h": "C", ".cc": "C++", ".cpp": "C++", ".py": "Python", ".pyi": "Python", ".pyx": "Cython",
    ".md": "Markdown", ".rst": "reStructuredText", ".sh": "Shell", ".yml": "YAML", ".yaml": "YAML", ".json": "JSON", ".toml": "TOML",
}  # fmt: skip


def describe(event: dict[str, Any], large: int = 100) -> dict[str, Any]:
    """Add ``language`` and ``size_class`` (binary, small, medium; large from ``large`` lines on)."""
    if not event.get("path"):
        raise Reject("the change names no file", rule="no-path")
    event["language"] = LANGUAGES.get(PurePosixPath(event["path"]).suffix.lower(), "other")
    if event.get("added") is None:
        event["size_class"] = "binary"
    else:
        lines = event["added"] + event["deleted"]
        event["size_class"] = "large" if lines >= large else "medium" if lines >= 10 else "small"
    return event
