"""Where a relative path of a parameter is looked for: the working directory, then the folder that ``FACTORY_INCLUDE`` names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from factory_agents.errors import ConfigurationError

__all__ = ["candidates", "resolve_path"]


def candidates(path: str | Path) -> Iterator[Path]:
    """The places a path may mean, best first; an absolute one means only itself."""
    yield Path(path).expanduser()
    include = os.environ.get("FACTORY_INCLUDE", "")
    if include and not Path(path).is_absolute():
        yield Path(include).expanduser() / path


def resolve_path(path: str | Path, what: str = "file") -> Path:
    """The existing path that ``path`` means; ``what`` names it in the error, for example ``contract``.

    Raises ConfigurationError listing where it was looked for.
    """
    tried = list(candidates(path))
    for candidate in tried:
        if candidate.exists():
            return candidate
    places = " or ".join(str(c.parent.absolute()) for c in tried)
    hint = (
        "" if len(tried) > 1 or Path(path).is_absolute() else "; a relative path is also looked for under FACTORY_INCLUDE, which is not set"
    )
    raise ConfigurationError(f"{what} {str(path)!r}: no such file in {places}{hint}")
