"""A process that has imported what the factory's programs import, and becomes one of them by a fork: see ``warm``."""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import socket
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

PROGRAMS = ("factory_agents.cli", "factory_agents.run", "factory_agents.enrich")
USUAL = (
    "confluent_kafka.admin",
    "confluent_kafka.schema_registry",
    "factory_agents.codecs.avro",
    "factory_agents.ingest",
    "factory_agents.kafka.ledger",
    "factory_agents.launch",
    "factory_agents.metrics.server",
    "factory_agents.publish",
    "factory_agents.rollouts",
    "factory_agents.runtime.live",
    "factory_agents.runtime.replays",
    "factory_agents.runtime.window",
    "factory_agents.telemetry.spans",
    "factory_agents.validate",
    "jsonschema",
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "psycopg",
    "rich.console",
    "rich.table",
    "typer",
)
"""Some of it takes longer than all that a command does: a second for the registry's client."""
TEMPORAL = ("factory_agents.temporal.http", "factory_agents.temporal.starter", "factory_agents.temporal.worker")
"""For its own commands alone, whose processes end in another way: three seconds."""


def preload(*more: str) -> None:
    """Import what most programs do, and ``more``, as if nothing of it had run."""
    for name in (*PROGRAMS, *USUAL, *more):
        importlib.import_module(name)
    for name in PROGRAMS:  # run as __main__, they are imported again by whoever imports them
        del sys.modules[name]
    assert len(list(Path("/proc/self/task").iterdir())) == 1, "a thread, of whatever kind, is not there after a fork"
    gc.freeze()


def serve(requests: socket.socket) -> None:
    """Fork a program for each request, tell its process id, and its exit status once it has ended."""
    children: dict[int, tuple[int, int]] = {}  # by pidfd: the process, and the pipe that waits for its status
    poll = select.poll()
    poll.register(requests, select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd in children:
                pid, told = children.pop(fd)
                poll.unregister(fd)
                os.close(fd)
                os.write(told, b"%d\n" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
                os.close(told)
                continue
            message, descriptors, _, _ = socket.recv_fds(requests, 1 << 20, 4)
            if not message:
                return
            *streams, told = descriptors
            pid = os.fork()
            if not pid:
                requests.close()
                request = json.loads(message)
                if request.pop("session"):
                    os.setsid()
                os.write(told, b"%d\n" % os.getpid())
                os.close(told)
                for pidfd, (_, other) in children.items():
                    os.close(pidfd)
                    os.close(other)
                for number, stream in enumerate(streams):
                    os.dup2(stream, number)
                    os.close(stream)
                os._exit(run(**request))
            for stream in streams:
                os.close(stream)
            pidfd = os.pidfd_open(pid)
            children[pidfd] = (pid, told)
            poll.register(pidfd, select.POLLIN)


def run(program: Sequence[str], environment: Mapping[str, str], cwd: str) -> int:
    """What the interpreter does with ``-m NAME`` or ``-c CODE`` and more arguments; returns the exit status."""
    from factory_agents import failpoints

    os.environ.clear()
    os.environ.update(environment)
    failpoints._POINTS.update(failpoints._parse(os.environ.get("FACTORY_FAILPOINTS", "")))
    time.tzset()
    os.chdir(cwd)
    if "PYTHONUNBUFFERED" in environment:
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(write_through=True)  # type: ignore[union-attr]
    how, what, *arguments = program
    sys.argv = [what if how == "-m" else how, *arguments]
    sys.path[:0] = [cwd if how == "-m" else "", *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    try:
        if how == "-m":
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            exec(compile(what, "<string>", "exec"), {"__name__": "__main__", "__builtins__": __builtins__})
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    finish()
    return code & 0xFF


def finish() -> None:
    """What the interpreter does at its end."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()


if __name__ == "__main__":
    sys.path.pop(0)  # the tests' own modules have names of others
    preload(*sys.argv[2:])
    serve(socket.socket(fileno=int(sys.argv[1])))
