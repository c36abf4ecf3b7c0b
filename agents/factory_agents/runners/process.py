"""Runs an agent as a process of its own: its run on standard input, its log lines in the caller's log, its result in a file."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from factory_agents.errors import AgentCrashedError
from factory_agents.protocol import AgentResult, AgentRun, encode
from factory_agents.runners.results import read_result_file
from factory_agents.telemetry import CONTEXT
from factory_agents.text import printable

__all__ = ["AgentProcess", "child_environment", "log_line"]

log = logging.getLogger(__name__)

COMMAND = (sys.executable, "-m", "factory_agents.run")
_OURS = ("KAFKA_BOOTSTRAP", "KAFKA_CONFIG", "KAFKA_CONFIG_FILE", "DATABASE_URL")
_FIELDS_OF_ITS_OWN = ("time", "level", "logger", "message", "exception", *CONTEXT)
_LAST_LINES = 20
_LONGEST_LINE, _LINES_WAITING = 65_536, 500


def child_environment(
    base: Mapping[str, str],
    *,
    private: Sequence[str],
    secrets: Mapping[str, str],
    extra: Mapping[str, str],
    python_path: Sequence[Path | str],
) -> dict[str, str]:
    """The environment of an agent's process: the worker's without the orchestrator's own settings and connections, then ours.

    What begins with one of ``private`` stays with the worker. ``secrets`` (Kafka's and the database's settings) replace whatever the
    worker's environment says of them; ``extra`` is what the task adds; ``python_path`` comes before what is in PYTHONPATH.
    """
    hidden = tuple(private)
    environment = {k: v for k, v in base.items() if not k.startswith(hidden) and k not in _OURS}
    environment.update(secrets)
    environment.update(extra)
    path = [str(p) for p in python_path] + [p for p in environment.get("PYTHONPATH", "").split(os.pathsep) if p]
    if path:
        environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(path))
    environment["PYTHONUNBUFFERED"] = "1"
    return environment


def log_line(line: str) -> tuple[int, str]:
    """Level and text of a line that an agent wrote: a structured one in full, any other as information.

    It is shown as text: what a terminal would act on is escaped, and a line without an end is cut.
    """
    line = line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]}…"
    with contextlib.suppress(ValueError, TypeError, AttributeError, LookupError, RecursionError):
        record: dict[str, Any] = json.loads(line)
        level = logging.getLevelNamesMapping().get(str(record["level"]).upper(), logging.INFO)
        fields = "".join(f" {k}={v}" for k, v in record.items() if k not in _FIELDS_OF_ITS_OWN)
        text = printable(f"{record['message']}{fields}")
        return level, f"{text}\n{printable(str(record['exception']), lines=True)}" if record.get("exception") else text
    return logging.INFO, printable(line)


class AgentProcess:
    """One run of one agent as a process group of its own, ended at the latest when its owner closes or dies.

    The child stops by itself when its standard input closes, so that it doesn't outlive a worker that was killed.
    """

    def __init__(self, run: AgentRun, environment: Mapping[str, str], *, grace: float = 30.0, command: Sequence[str] = COMMAND) -> None:
        self._run = run
        self._environment = dict(environment)
        self._grace = grace
        self._command = tuple(command)
        self._process: subprocess.Popen[str] | None = None
        self._ended = False
        self._stopping = False
        self._lines: queue.Queue[str | None] = queue.Queue(_LINES_WAITING)  # an agent that talks faster than it is heard waits
        self._over = threading.Event()
        self._last: deque[str] = deque(maxlen=_LAST_LINES)

    @property
    def pid(self) -> int | None:
        """The child's process id once it is started."""
        return self._process.pid if self._process else None

    def run(self) -> AgentResult:
        """Start the agent, relay its log, wait for its end, and return its result, be it a success or a failure.

        Raises AgentCrashedError where it ended without a result. Whatever happens, its process group is gone afterwards.
        """
        with tempfile.TemporaryDirectory(prefix="factory-") as folder:
            result = Path(folder) / "result.json"
            try:
                code = self._run_to_end(result)
            finally:
                self.stop()
                self._over.set()
            return self._result(result, code)

    def ask_to_stop(self) -> None:
        """Let the agent finish or abort its chunk and end (SIGTERM), and don't wait for it. Ask once: asked twice, it ends at once."""
        self._stopping = True
        process = self._process
        if process is not None and process.poll() is None:
            log.info("Asking agent process %d to stop", process.pid)
            _signal(process.pid, signal.SIGTERM)

    def stop(self, grace: float | None = None) -> None:
        """End the process group: SIGTERM, so that the agent finishes or aborts its chunk, then SIGKILL after the grace.

        Safe to repeat, and at any moment, in another thread or a signal handler: what has not started yet never does.
        """
        self._stopping = True
        process, grace = self._process, self._grace if grace is None else grace
        if process is None:
            return
        if process.poll() is None:
            log.info("Stopping agent process %d (it has %g s)", process.pid, grace)
            _signal(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(grace)
        self._end_group(process)
        with contextlib.suppress(OSError):
            if process.stdin:
                process.stdin.close()

    def _is_stopping(self) -> bool:
        return self._stopping

    def _end_group(self, process: subprocess.Popen[str]) -> None:
        """Once: what is left of the group goes, so that nothing holds the output open; a group's number may be another's later."""
        if not self._ended:
            self._ended = True
            _signal(process.pid, signal.SIGKILL)
        process.wait()

    def _run_to_end(self, result: Path) -> int:
        if self._is_stopping():
            raise AgentCrashedError(f"agent {self._run.agent.name!r} was stopped before it started; a retry resumes")
        self._process = process = subprocess.Popen(
            [*self._command, "--result", str(result)],
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        if self._is_stopping():  # asked while the child was made, before it was known here
            self.stop()
        if process.stdin is None or process.stdout is None:
            raise AgentCrashedError("the agent's process has no pipes")
        threading.Thread(target=self._read, args=(process.stdout,), name=f"agent-{process.pid}", daemon=True).start()
        with contextlib.suppress(BrokenPipeError, ValueError):  # it ended, or was stopped, which closes the pipe
            process.stdin.write(encode(self._run).decode() + "\n")
            process.stdin.flush()
        while (talking := self._relay(timeout=0.2)) and process.poll() is None:
            pass
        code = process.wait()
        self._end_group(process)
        patience = time.monotonic() + 5
        while talking and time.monotonic() < patience:
            talking = self._relay(timeout=0.2)
        return code

    def _read(self, stream: IO[str]) -> None:
        with contextlib.suppress(ValueError, OSError), stream:
            while line := stream.readline(_LONGEST_LINE):
                self._hand_over(line.rstrip("\n"))
        self._hand_over(None)

    def _hand_over(self, line: str | None) -> None:
        while not self._over.is_set():
            with contextlib.suppress(queue.Full):
                self._lines.put(line, timeout=0.5)
                return

    def _relay(self, timeout: float) -> bool:
        """Log what arrived within ``timeout`` seconds; False once the agent has closed its output."""
        try:
            line = self._lines.get(timeout=timeout)
        except queue.Empty:
            return True
        if line is None:
            return False
        if line:
            level, text = log_line(line)
            self._last.append(text)
            log.log(level, "%s", text)
        return True

    def _result(self, path: Path, code: int) -> AgentResult:
        result = read_result_file(path)
        if result is not None:
            return result
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        memory = "; is the worker out of memory?" if code == -signal.SIGKILL else ""
        last = f"; its last words: {self._last[-1]}" if self._last else ""
        raise AgentCrashedError(f"agent {self._run.agent.name!r} {how} and left no result{memory}{last}")


def _signal(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
