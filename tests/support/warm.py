"""The factory's programs in processes of their own that begin where their imports end.

Importing takes a start of Python most of its time, and the suite starts a thousand. A process that has imported everything forks for each
of them; what differs from a start of its own (an interpreter's options, ``PYTHON…`` variables) gets one of its own. How long a start
takes is for benchmarks.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import pytest

from tests.support.warm_server import PROGRAMS, TEMPORAL

_SERVER = Path(__file__).with_name("warm_server.py")
_LOCK = threading.Lock()
_TAKEN = ("PYTHONPATH", "PYTHONUNBUFFERED")  # variables that a fork heeds


def _options(variables: Mapping[str, str]) -> dict[str, str]:
    """What an interpreter heeds at its start alone."""
    return {k: v for k, v in variables.items() if k.startswith("PYTHON") and k not in _TAKEN}


_OURS = dict(os.environ)  # before any test sets a variable


class Forked:
    """As much of ``subprocess.Popen`` as the tests use, of a process that isn't this one's child."""

    def __init__(self, pid: int, status: int, streams: Sequence[IO[Any] | None]) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.stdin, self.stdout, self.stderr = streams
        self._status = status
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        with self._lock:
            if self.returncode is None:
                try:
                    self.returncode = int(os.read(self._status, 16))
                except BlockingIOError:
                    return None
                os.close(self._status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end. Raises ``subprocess.TimeoutExpired``."""
        until = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if until is not None and time.monotonic() > until:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
            time.sleep(0.01)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


Process = subprocess.Popen[bytes] | Forked


@functools.cache
def _server(*more: str) -> socket.socket:
    """The process that has imported the usual modules, and ``more``."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, _SERVER, str(theirs.fileno()), *more], pass_fds=[theirs.fileno()], cwd=_SERVER.parents[2], env=_OURS
        )
    atexit.register(lambda: (ours.close(), process.wait()))
    return ours


def can_fork(command: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Whether a fork of a warm process is as good as a start of this command."""
    if len(command) < 3:
        return False
    python, how, what = command[:3]
    return (
        python == sys.executable
        and (what in PROGRAMS if how == "-m" else what.endswith("main()"))
        and _options(environment) == _options(_OURS)
    )


def start(
    command: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    stdin: int | IO[bytes] = subprocess.DEVNULL,
    stdout: int | IO[bytes] = subprocess.PIPE,
    stderr: int | IO[bytes] = subprocess.PIPE,
    start_new_session: bool = False,
    **how: Any,
) -> Process:
    """Start a program of the factory's, with streams as ``subprocess.Popen`` takes them; ``how`` they are read and written as text."""
    if not can_fork(command, env):
        streams = {"stdin": stdin, "stdout": stdout, "stderr": stderr}
        return subprocess.Popen(command, cwd=cwd, env=dict(env), start_new_session=start_new_session, **streams, **how)
    theirs: list[int] = []
    ours: list[IO[Any] | None] = []
    for number, stream in enumerate((stdin, stdout, stderr)):
        if stream == subprocess.PIPE:
            read, write = os.pipe()
            theirs.append(read if number == 0 else write)
            ours.append(os.fdopen(write, "wb") if number == 0 else os.fdopen(read, "rb"))
        elif stream == subprocess.STDOUT:
            theirs.append(os.dup(theirs[1]))
            ours.append(None)
        elif stream == subprocess.DEVNULL:
            theirs.append(os.open(os.devnull, os.O_RDWR))
            ours.append(None)
        else:
            theirs.append(os.dup(stream if isinstance(stream, int) else stream.fileno()))
            ours.append(None)
    status, told = os.pipe()
    told_what = {"program": list(command[1:]), "environment": dict(env), "cwd": str(cwd), "session": start_new_session}
    with _LOCK:
        socket.send_fds(_server(*(TEMPORAL if "temporal" in command else ())), [json.dumps(told_what).encode()], [*theirs, told])
    for fd in (*theirs, told):
        os.close(fd)
    pid = int(os.read(status, 16))
    os.set_blocking(status, False)
    if how:
        ours = [s and io.TextIOWrapper(s, how.get("encoding"), how.get("errors")) for s in ours]
    return Forked(pid, status, ours)


@contextlib.contextmanager
def agents() -> Iterator[None]:
    """Meanwhile the operators of this process start their agents so."""
    from factory_agents.runners import process

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process, "subprocess", _Subprocess)
        yield


class _Subprocess:
    PIPE, STDOUT, TimeoutExpired = subprocess.PIPE, subprocess.STDOUT, subprocess.TimeoutExpired

    @staticmethod
    def Popen(command: Sequence[str], **options: Any) -> Process:
        return start(command, cwd=Path.cwd(), **options)
