"""Files and folders that nobody but their owner may use, whatever the umask says and whatever modes they had before."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import IO

from factory_agents.errors import FactoryError

__all__ = ["UMASK", "append", "folder", "is_private", "tighten", "tighten_all", "write"]

UMASK = 0o077
"""For processes that write into such a folder."""


def folder(path: Path, *, group: int | None = None) -> Path:
    """Make a folder (and those above it) or tighten it: 0700, or with ``group`` 0710, so that this group may pass through and no more.

    Raises FactoryError where it can't be made, or belongs to another user.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.stat()
        _check_owner(path, status)
        if group is not None and status.st_gid != group:
            os.chown(path, -1, group)
        wanted = 0o700 if group is None else 0o710
        if stat.S_IMODE(status.st_mode) != wanted:
            path.chmod(wanted)
    except OSError as error:
        raise FactoryError(f"the sandbox cannot keep its files in {path}: {error.strerror}") from error
    return path


def write(path: Path, content: bytes | str) -> None:
    """Write a file, 0600 from its first byte on."""
    with _opened(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def append(path: Path) -> IO[bytes]:
    """A file to append to, 0600."""
    return _opened(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)


def tighten(path: Path) -> None:
    """Take from group and others what they may do with a file or a folder; a link stays as it is."""
    try:
        status = path.lstat()
        if not stat.S_ISLNK(status.st_mode) and status.st_mode & 0o077:
            path.chmod(stat.S_IMODE(status.st_mode) & ~0o077)
    except FileNotFoundError:  # a server that runs has removed it meanwhile
        return


def tighten_all(path: Path) -> None:
    """The same for all that is in a folder."""
    for parent, folders, files in os.walk(path):
        for name in (*folders, *files):
            tighten(Path(parent, name))


def is_private(path: Path) -> bool:
    """Whether something is there that nobody else can have changed: it is this user's (or root's), and others may not write to it."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return False
    return status.st_uid in (os.geteuid(), 0) and not status.st_mode & 0o022


def _opened(path: Path, flags: int) -> IO[bytes]:
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        os.fchmod(descriptor, 0o600)
    except OSError as error:
        raise FactoryError(f"the sandbox cannot write {path}: {error.strerror}") from error
    return os.fdopen(descriptor, "wb")


def _check_owner(path: Path, status: os.stat_result) -> None:
    if os.geteuid() not in (0, status.st_uid):
        raise FactoryError(
            f"{path} belongs to another user (uid {status.st_uid}); give it to yourself, or name another folder: FACTORY_HOME"
        )
