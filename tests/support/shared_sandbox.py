"""One sandbox for all test sessions and workers of this work tree, ended by the last session that uses it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from factory_agents.sandbox import Sandbox, postgres, private
from factory_agents.sandbox.processes import ProcessRecord, alive, identify

HOME = Path(__file__).resolve().parents[2] / ".factory" / "test"
# The session's id: its workers inherit it.
AIRFLOW_HOMES = HOME / "airflow" / os.environ.setdefault("FACTORY_TEST_SESSION", str(os.getpid()))
_LEASES = HOME / "leases"


def temporary() -> Path:
    """Where pytest makes its folders: this work tree's own.

    A session that begins closes the folder of its user to all others, and root's databases run as another: one of a second work tree
    would shut them out of this one's while they start.
    """
    folder = Path(tempfile.gettempdir()) / f"factory-tests-{os.getuid()}-{zlib.crc32(bytes(HOME)):08x}"
    folder.mkdir(mode=0o711, exist_ok=True)
    return folder


def shared() -> Sandbox:
    """The sandbox of the test suite; its broker also has a listener that wants a password."""
    return Sandbox(HOME, sasl=True)


def with_emulators(*, bigquery: bool = False, snowflake: bool = False) -> Sandbox:
    """The same with emulators beside it."""
    return Sandbox(HOME, sasl=True, with_bigquery=bigquery, with_snowflake=snowflake)


def with_temporal() -> Sandbox:
    """The same with a Temporal server beside it."""
    return Sandbox(HOME, sasl=True, with_temporal=True)


def with_registry() -> Sandbox:
    """The same with a schema registry beside it."""
    return Sandbox(HOME, sasl=True, with_registry=True)


def with_model() -> Sandbox:
    """The same with a language model beside it."""
    return Sandbox(HOME, sasl=True, with_model=True)


def take_lease() -> None:
    """Keep the shared sandbox from being ended while this process lives."""
    with _locked():
        _lease(os.getpid()).write_bytes(msgspec.json.encode(identify(os.getpid())))


def give_lease_back() -> None:
    """End the shared sandbox if nobody else uses it, unless ``FACTORY_TEST_KEEP`` is set."""
    shutil.rmtree(AIRFLOW_HOMES, ignore_errors=True)
    with _locked():
        _lease(os.getpid()).unlink(missing_ok=True)
        if any(_holds(path) for path in _LEASES.iterdir()) or os.environ.get("FACTORY_TEST_KEEP"):
            return
        shared().down(wipe=True)
        shutil.rmtree(HOME / "airflow", ignore_errors=True)


def _holds(lease: Path) -> bool:
    held = alive(msgspec.json.decode(lease.read_bytes(), type=ProcessRecord))
    if not held:
        lease.unlink(missing_ok=True)
    return held


def _lease(pid: int) -> Path:
    return _LEASES / str(pid)


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    for folder in (HOME.parent, HOME):
        private.folder(folder, group=postgres.server_group())
    private.folder(_LEASES)
    with private.append(HOME / "leases.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
