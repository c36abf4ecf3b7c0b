"""The factory command as a person or a container runs it: in a process of its own, judged by its exit status and outputs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tests.support import warm
from tests.support.waiting import wait_for

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = (sys.executable, "-m", "factory_agents.cli")
IMPATIENT = (
    sys.executable,
    "-c",
    (
        "from factory_agents.kafka.topics import Cluster; Cluster.__init__.__kwdefaults__['timeout'] = 1.0\n"
        "from factory_agents.cli import main; main()"
    ),
)
"""The same, but a broker that doesn't answer is given up after a second."""


def clean_environment(**variables: str) -> dict[str, str]:
    """This process's environment without settings of the factory's own, and with these variables."""
    topics = ("INPUT_TOPIC", "INPUT_CODEC", "OUTPUT_TOPIC", "OUTPUT_CODEC", "DEAD_LETTER_TOPIC")
    ours = ("KAFKA_", "FACTORY_", "SCHEMA_REGISTRY_", *topics, "CONSUMER_GROUP", "DATABASE_URL")
    return {k: v for k, v in os.environ.items() if not k.startswith(ours)} | variables


@dataclass(frozen=True)
class Done:
    """What a command that has ended gave."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        """Standard output as the one JSON document that it must be."""
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """Standard error, which must be one line; a JSON one of a command that logs."""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        if lines[0].startswith("{"):
            line = json.loads(lines[0])
            assert (line["level"], bool(line["error"])) == ("error", True), self.err
            return str(line["message"])
        assert lines[0].startswith("error: "), self.err
        return lines[0].removeprefix("error: ")


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode()


class Command:
    """Runs commands with an environment of their own, in a folder of their own."""

    def __init__(self, cwd: Path, environment: Mapping[str, str]) -> None:
        self.cwd = cwd
        self.environment = dict(environment)
        self._live: list[Live] = []

    def __call__(self, *arguments: str, program: Sequence[str] = PROGRAM, stdin: str = "", **variables: str) -> Done:
        """Run a command to its end; more keywords are environment variables."""
        with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            given.write(stdin.encode())
            given.seek(0)
            streams = {"stdin": given if stdin else subprocess.DEVNULL, "stdout": out, "stderr": err}
            process = warm.start([*program, *arguments], cwd=self.cwd, env=self.environment | variables, **streams)
            try:
                code = process.wait(120)
            finally:
                process.kill()
            return Done(code, _text(out), _text(err))

    def ok(self, *arguments: str, **variables: Any) -> Done:
        """Run a command that must succeed."""
        done = self(*arguments, **variables)
        assert done.code == 0, done.err
        return done

    def start(self, *arguments: str, program: Sequence[str] = PROGRAM, **variables: str) -> Live:
        """Start a command that runs until it is told to stop."""
        live = Live([*program, *arguments], self.cwd, self.environment | variables)
        self._live.append(live)
        return live

    def close(self) -> None:
        """Kill what still runs."""
        for live in self._live:
            live.end()


class Live:
    """A command that runs."""

    def __init__(self, command: Sequence[str], cwd: Path, environment: Mapping[str, str]) -> None:
        self.process = warm.start(command, cwd=cwd, env=environment)
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._drain, daemon=True)
        self._reader.start()

    def _drain(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.decode().rstrip())

    @property
    def partitions(self) -> set[int]:
        """The partitions it was assigned, by its log (none where some were taken away since)."""
        found: set[int] = set()
        for line in list(self.lines):
            logged = json.loads(line)
            if logged["message"] == "partitions assigned":
                found |= set(logged["partitions"])
        return found

    def wait_assigned(self, partitions: set[int] | None = None) -> None:
        """Until it has these partitions (any, without)."""
        wait_for(
            lambda: self.process.poll() is not None or (partitions <= self.partitions if partitions else self.partitions),
            "the agent to be assigned partitions",
        )
        assert self.process.poll() is None, "\n".join(self.lines)

    def wait_logged(self, message: str, patience: float = 60) -> None:
        """Until it has logged this message, or ended."""
        logged = f"{message!r} in the log"
        wait_for(lambda: self.process.poll() is not None or any(message in line for line in self.lines), logged, patience)

    def stop(self, number: int = signal.SIGTERM) -> Done:
        """Send a signal and wait for the end."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self, patience: float = 60) -> Done:
        """Wait for the end."""
        code = self.process.wait(patience)
        self._reader.join(5)
        assert self.process.stdout is not None
        return Done(code, self.process.stdout.read().decode(), "\n".join(self.lines))

    def end(self) -> None:
        """Kill what is left of it."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join(5)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()
