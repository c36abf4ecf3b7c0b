"""Where a path of a parameter is looked for, and which files and URLs one may name that comes from whoever started a run.

A relative path means a file of the working directory, else of the folder that ``FACTORY_INCLUDE`` names. What comes from outside (see
``AgentRun.untrusted``) is confined: to files under ``FACTORY_INCLUDE`` and the folders of ``FACTORY_FILES`` (with neither set, the working
directory), and to the URLs that begin as one of ``FACTORY_URLS`` does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from factory_agents.errors import ConfigurationError
from factory_agents.text import printable

__all__ = ["allowed_roots", "candidates", "check_inside", "check_name", "check_url", "confined_path", "resolve_path"]

_LONGEST, _LONGEST_PART = 4000, 255


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
    check_name(path, what)
    tried = list(candidates(path))
    for candidate in tried:
        if candidate.exists():
            return candidate
    places = " or ".join(str(c.parent.absolute()) for c in tried)
    hint = (
        "" if len(tried) > 1 or Path(path).is_absolute() else "; a relative path is also looked for under FACTORY_INCLUDE, which is not set"
    )
    raise ConfigurationError(f"{what} {str(path)!r}: no such file in {places}{hint}")


def check_name(path: str | Path, what: str) -> None:
    """Raise ConfigurationError for a text that no file can have as its name: too long, with a NUL, or half a surrogate."""
    name = os.fspath(path)
    try:
        parts = os.fsencode(name).split(b"/")
    except UnicodeEncodeError:
        parts = [b"\0"]
    if len(name) > _LONGEST or any(len(part) > _LONGEST_PART or b"\0" in part for part in parts):
        raise ConfigurationError(f"{what} '{printable(name[:60])}…': no file can have this name")


def allowed_roots() -> list[Path]:
    """The folders that files named from outside must lie in, best first."""
    names = [os.environ.get("FACTORY_INCLUDE", ""), *os.environ.get("FACTORY_FILES", "").split(os.pathsep)]
    roots = [Path(name).expanduser() for name in names if name]
    here = Path.cwd()
    return roots or ([here] if here != Path(here.anchor) else [])


def confined_path(path: str, what: str, roots: Sequence[Path] | None = None) -> Path:
    """The existing file that a path from outside means, which must lie in one of the ``roots`` (by default ``allowed_roots()``).

    Raises ConfigurationError; of what lies elsewhere it doesn't say whether it is there.
    """
    check_name(path, what)
    roots = allowed_roots() if roots is None else roots
    places = [root / path for root in roots] if not Path(path).is_absolute() else [Path(path)]
    inside = [place for place in places if _is_inside(place, roots)]
    if not inside:
        raise ConfigurationError(f"{what} {path!r}: {_expected()}")
    found = next((place for place in inside if place.is_file()), None)
    if found is None:
        raise ConfigurationError(f"{what} {path!r}: no such file in {' or '.join(str(place.parent) for place in inside)}")
    return found


def check_inside(found: Path, path: str, what: str) -> None:
    """Raise ConfigurationError where a file that a pattern from outside found lies in none of ``allowed_roots()``."""
    if not _is_inside(found, allowed_roots()):
        raise ConfigurationError(f"{what} {path!r}: {_expected()}")


def _is_inside(path: Path, roots: Sequence[Path]) -> bool:
    real = path.resolve()
    return any(real.is_relative_to(root.resolve()) for root in roots)


def _expected() -> str:
    return (
        "it comes from a parameter of the run, so it may only name a file under FACTORY_INCLUDE or a folder that FACTORY_FILES lists; "
        "whoever runs the deployment sets these"
    )


def check_url(url: str, what: str) -> None:
    """Raise ConfigurationError for a URL from outside that isn't one of the deployment's: ``FACTORY_URLS`` (separated by spaces or commas)
    lists what it may begin with, such as ``s3://bucket/`` or ``https://``.
    """
    given = urlsplit(url)
    chained = "::" in url or ".." in unquote(given.path).split("/") or "\\" in url
    for allowed in map(urlsplit, os.environ.get("FACTORY_URLS", "").replace(",", " ").split()):
        same_place = given.scheme == allowed.scheme and allowed.netloc in ("", given.netloc)
        if not chained and same_place and given.path.startswith(allowed.path):
            return
    raise ConfigurationError(
        f"{what}: a {given.scheme or 'chained'} URL comes from a parameter of the run and isn't one that the deployment allows: "
        "FACTORY_URLS lists what one may begin with, for example s3://bucket/; a chain of URLs is never taken"
    )
