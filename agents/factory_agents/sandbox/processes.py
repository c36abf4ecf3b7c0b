"""Processes that outlive the command that started them, and are ended only if they are still the same ones."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from factory_agents.errors import UnavailableError
from factory_agents.sandbox import private

_POLL = 0.01  # seconds
_SLOWEST_POLL = 0.5
_SHARE = 20
_FIRST_PORT, _LAST_PORT, _TRIES = 10_000, 30_000, 100  # above are those of Kubernetes' services


class ProcessRecord(msgspec.Struct, frozen=True):
    """A process by its id and its start: ids are used again, the pair is not."""

    pid: int
    started: str


def spawn(command: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None, uid: int | None = None) -> ProcessRecord:
    """Start ``command`` in a session of its own, its output appended to ``log``; as user ``uid`` if given (needs root).

    What it writes is its user's alone.
    """
    with private.append(log) as out:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=env,
            cwd="/",
            start_new_session=True,
            user=uid,
            group=uid,
            extra_groups=None if uid is None else [],
            umask=private.UMASK,
        )
    child.returncode = 0  # it is detached on purpose: no warning that it still runs
    return identify(child.pid)


def identify(pid: int) -> ProcessRecord:
    """The record of the process that has this id now."""
    return ProcessRecord(pid, _started(pid) or "")


def alive(process: ProcessRecord | None) -> bool:
    """Whether this very process still runs."""
    if process is None:
        return False
    with contextlib.suppress(ChildProcessError):
        os.waitpid(process.pid, os.WNOHANG)  # a child of ours that ended stays a zombie until somebody asks
    return bool(process.started) and _started(process.pid) == process.started


def stop(process: ProcessRecord | None, *signals: tuple[signal.Signals, float]) -> None:
    """End a process by the first signal that works, each with its patience in seconds; no-op if it is gone."""
    for number, patience in signals:
        if process is None or not alive(process):
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)
        if wait_until(lambda: not alive(process), patience):
            return
    raise UnavailableError(f"process {process.pid if process else '?'} did not end; look at it with `ps` and end it by hand")


def wait_until(condition: Callable[[], bool], patience: float) -> bool:
    """Whether ``condition`` came true within ``patience`` seconds.

    It is asked after as long as the last question took, and after a twentieth of the time waited so far: a long wait asks seldom.
    """
    began = asked = time.monotonic()
    while not condition():
        now = time.monotonic()
        if now - began > patience:
            return False
        time.sleep(min(max(_POLL, now - asked, (now - began) / _SHARE), _SLOWEST_POLL))
        asked = time.monotonic()
    return True


def free_port(host: str) -> int:
    """A port that was free a moment ago, of those that no outgoing connection is given, so that none takes it before it is used."""
    given = _given_to_connections()
    for _ in range(_TRIES):
        port = _FIRST_PORT + secrets.randbelow(_LAST_PORT - _FIRST_PORT)
        if port not in given and is_free(host, port):
            return port
    with socket.socket() as probe:  # all are given to connections
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen there: what its last one has left behind doesn't count, somebody's connection does."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def _given_to_connections() -> range:
    with contextlib.suppress(OSError, ValueError):
        first, last = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
        return range(int(first), int(last) + 1)
    return range(49_152, 65_536)


def listens(host: str, port: int) -> bool:
    """Whether somebody accepts connections there."""
    with socket.socket() as probe:
        probe.settimeout(2)
        return probe.connect_ex((host, port)) == 0


def last_line(log: Path, size: int = 20_000) -> str:
    """The last line of a log that tells of an error, else its last line."""
    with contextlib.suppress(OSError):
        lines = log.read_bytes()[-size:].decode(errors="replace").splitlines()
        told = [line for line in lines if any(word in line for word in ("ERROR", "FATAL", "Exception", "Error"))]
        return (told or lines or [""])[-1].strip()
    return ""


def _started(pid: int) -> str | None:
    """When ``pid`` began, in a form that changing the clock doesn't change; None if it has ended."""
    if sys.platform != "linux":
        return _started_by_psutil(pid)
    try:
        # After the name, which may hold spaces and parentheses: state is the first field, the start time the 20th.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # A killed process is a zombie at once, but holds its ports and files until its last thread is gone.
        ended = fields[0] in "ZX" and len(list(Path(f"/proc/{pid}/task").iterdir())) <= 1
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if ended else f"{boot}/{fields[19]}"


def _started_by_psutil(pid: int) -> str | None:
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else str(process.create_time())
    except psutil.NoSuchProcess:
        return None
