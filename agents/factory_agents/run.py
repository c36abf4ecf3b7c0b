"""Runs one ``AgentRun``: what an orchestrator starts, as a pod or a process (``python -m factory_agents.run``)."""

from __future__ import annotations

import argparse
import gc
import importlib
import logging
import os
import signal
import sys
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from factory_agents import errors
from factory_agents.errors import ConfigurationError, DeadlineError, FactoryError, StoppedError, TooManyRejectedError
from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.failures import leave_failure
from factory_agents.protocol import AgentRef, AgentResult, AgentRun, ErrorInfo, Shard, decode_run, encode
from factory_agents.runtime.loading import load_agent_ref, working_directory_first
from factory_agents.runtime.session import RunContext
from factory_agents.runtime.traced import traced
from factory_agents.telemetry import Batch, Commit, Observer, Subject, bound, configure_logging, fields, tracing
from factory_agents.text import printable, shortened

__all__ = [
    "BUILT_IN",
    "EXIT_FAILED",
    "EXIT_RETRY",
    "LONGEST_MESSAGE",
    "TRANSFORM",
    "build_transform",
    "execute",
    "failed_result",
    "main",
    "quiet_collector",
]

log = logging.getLogger("factory_agents.run")  # also where this module is __main__

EXIT_FAILED, EXIT_RETRY = 1, 75

LONGEST_MESSAGE = 10_000
"""Characters of an error: whoever takes a result, or a failure, has a limit, and would tell of that and no longer of the error."""

_TERMINATION_LOG, _TERMINATION_LIMIT = Path("/dev/termination-log"), 4096

TRANSFORM = "factory_agents.runtime.window:run_transform"
"""What runs an agent that reads events and writes events: yours, and the built-in ones of that kind."""

BUILT_IN = {
    "ingest": "factory_agents.runtime.source:run_source",
    "replicate": "factory_agents.replication.runner:run_replication",
    "enrich": TRANSFORM,
    "infer": TRANSFORM,
    "validate": TRANSFORM,
    "publish": "factory_agents.runtime.sink:run_sink",
}
"""The built-in agents by name, and what runs each, as ``module:function``: a process imports that of its own agent only."""


def build_transform(ref: AgentRef, params: dict[str, Any], run: AgentRun | None) -> Any:
    """The agent that a reference names, with its parameters checked: a transform, a source or a sink.

    Raises AgentError where it cannot be loaded and ConfigurationError for parameters that it does not take.
    """
    if ref.name in BUILT_IN and not ref.source:
        return importlib.import_module(f"factory_agents.{ref.name}").build(params, run)
    return load_agent_ref(ref).bind(params, run)


def execute(context: RunContext, run: AgentRun) -> AgentResult:
    """Run it to its end; raises a FactoryError where it cannot, and leaves word of it in the ledger."""
    runner = _runner(run.agent)
    with bound(**_whose(run)) as own:
        began = own["attempt"] / 1000

        def make() -> Any:
            made = build_transform(run.agent, run.params, run)
            own.update(agent=made.name, version=run.agent.version or made.version)
            return made

        try:
            with traced(context, run) as traced_context:
                result = runner(traced_context, run, make)
        except Exception as error:
            paused = context.sliced and isinstance(error, StoppedError | DeadlineError)
            if not run.dry_run and not paused:
                leave_failure(context.config, run.work, error=error, began=began, agent=own["agent"], run_id=run.run_id, prefix=run.prefix)
            raise
        facts = {"reused": result.reused, "resumed": result.resumed, "seconds": result.seconds}
        log.info("done", extra=fields(**facts, counts=result.counts.told()))
    return result


def _runner(ref: AgentRef) -> Callable[..., AgentResult]:
    module, _, name = (TRANSFORM if ref.source else BUILT_IN.get(ref.name, TRANSFORM)).partition(":")
    runner: Callable[..., AgentResult] = getattr(importlib.import_module(module), name)
    return runner


def _whose(run: AgentRun) -> dict[str, Any]:
    """What is in each of a run's log lines; ``attempt`` is when it began, in milliseconds, as in the ledger's word of a failure."""
    return {
        "pipeline": run.pipeline,
        "stage": run.stage,
        "agent": run.agent.name.rpartition(":")[2],
        "version": run.agent.version,
        "window": run.key if run.window is not None or run.interval is not None else run.name,
        "shard": run.shard.key,
        "attempt": int(time.time() * 1000),
    }


def failed_result(run: AgentRun | None, error: Exception) -> AgentResult:
    """What is answered for a run that raised."""
    known = isinstance(error, FactoryError)
    message = str(error) if known else f"{type(error).__name__}: {error}"
    passes = isinstance(error, (OSError, MemoryError))  # a disk, a network, the memory of this attempt
    retriable = error.retriable if isinstance(error, FactoryError) else passes
    kind = next((kind for kind in type(error).__mro__ if kind.__name__ in errors.__all__), type(error))
    info = ErrorInfo(kind.__name__, shortened(printable(message), LONGEST_MESSAGE), retriable=retriable)
    key = "" if run is None or (run.window is None and run.interval is None) else run.key
    return AgentResult(
        pipeline=run.pipeline if run else "",
        stage=run.stage if run else "",
        key=key,
        shard=run.shard if run else Shard(),
        status="failed",
        error=info,
        reasons=error.reasons if isinstance(error, TooManyRejectedError) else (),
    )


def fit_result(result: AgentResult, limit: int) -> bytes:
    """The result as JSON of at most ``limit`` bytes, marked as truncated where something had to go (in the ledger it is whole).

    What can be found elsewhere goes first: report, notes and examples, then ranges and reasons, then the end of the error's message.
    """
    data = encode(result)
    if len(data) <= limit:
        return data
    reasons = tuple(msgspec.structs.replace(reason, examples=()) for reason in result.reasons)
    result = msgspec.structs.replace(result, report=None, notes=(), input=None, reasons=reasons, truncated=True)
    if len(data := encode(result)) > limit:
        result = msgspec.structs.replace(result, manifest=None, dead_letters=None, reasons=())
        data = encode(result)
    if len(data) > limit and (error := result.error) is not None:

        def cut(kept: int) -> bytes:
            return encode(msgspec.structs.replace(result, error=msgspec.structs.replace(error, message=error.message[:kept] + "…")))

        data = cut(bisect_left(range(len(error.message)), True, key=lambda kept: len(cut(kept + 1)) > limit))
    return data


def write_result(path: Path, result: AgentResult) -> None:
    """Write the result whole and at once, or to a termination message as much of it as fits there."""
    if path == _TERMINATION_LOG:
        path.write_bytes(fit_result(result, _TERMINATION_LIMIT))
        return
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_bytes(encode(result))
    partial.replace(path)


class Stop:
    """Whether this process was asked to stop: by SIGTERM, SIGINT or the end of its standard input."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def __call__(self) -> bool:
        """The question that the runtime asks."""
        return self._event.is_set()

    @contextmanager
    def watching_signals(self) -> Iterator[None]:
        """Stop at SIGTERM and SIGINT; a second one ends the process at once. Afterwards signals do what they did before."""

        def asked(number: int, _: object) -> None:
            if self._event.is_set():
                os._exit(128 + number)
            log.info("asked to stop", extra=fields(signal=signal.Signals(number).name))
            self._event.set()

        before = {number: signal.signal(number, asked) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def watch_stdin(self) -> None:
        """Stop when the parent closes our standard input (it ended, or wants us to)."""

        def wait() -> None:
            while os.read(0, 4096):
                pass
            if not self._event.is_set():
                log.info("standard input closed, stopping")
                self._event.set()

        threading.Thread(target=wait, daemon=True, name="stdin").start()


@contextmanager
def quiet_collector() -> Iterator[None]:
    """While the process runs one agent: what is loaded by now isn't searched for cycles, and records, which make none, seldom are (7 % of
    the CPU).
    """
    thresholds, frozen = gc.get_threshold(), gc.get_freeze_count()
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        if not frozen:
            gc.unfreeze()


def _read_line() -> bytes:
    """One line of standard input, unbuffered, so that what follows stays for the watcher."""
    parts = bytearray()
    while not parts.endswith(b"\n"):
        got = os.read(0, 65536)
        if not got:
            break
        parts += got
    return bytes(parts)


class ProgressLog(Observer):
    """A line in the log every few seconds, as long as something is done."""

    def __init__(self, every: float) -> None:
        self._every = every
        self._last = time.monotonic()
        self._read = 0
        self._commit: Commit | None = None

    def batch(self, subject: Subject, batch: Batch) -> None:
        """See ``Observer``."""
        self._read += batch.records
        self._say(subject)

    def committed(self, subject: Subject, commit: Commit) -> None:
        """See ``Observer``."""
        self._commit = commit
        self._say(subject)

    def _say(self, subject: Subject) -> None:
        if time.monotonic() - self._last >= self._every:
            self._last = time.monotonic()
            done, rejected = (self._commit.done, self._commit.rejected_in_all) if self._commit is not None else (0, 0)
            log.info("progress", extra=fields(stage=subject.stage, read=self._read, committed=done, total=subject.total, rejected=rejected))


def main(argv: list[str] | None = None) -> int:
    """Run the AgentRun given as a file or on standard input; exit status 0, 1 (no use retrying) or 75 (a retry may succeed)."""
    parser = argparse.ArgumentParser(prog="python -m factory_agents.run", description="Run one AgentRun.")
    parser.add_argument(
        "--run",
        default="-",
        help="file that holds the AgentRun as JSON; - reads one line of standard input and stops when that closes (default)",
    )
    parser.add_argument(
        "--result", type=Path, default=None, help=f"where the AgentResult goes (default: {_TERMINATION_LOG} where it exists)"
    )
    parser.add_argument("--slice", action="store_true", help="a stop is the end of a slice, which another goes on from: no failure")
    options = parser.parse_args(argv)
    configure_logging(json=not sys.stderr.isatty(), level=os.environ.get("FACTORY_LOG_LEVEL", "INFO"))
    stop = Stop()
    with bound() as own, stop.watching_signals(), working_directory_first(), tracing("factory-agent") as traces:

        def context() -> RunContext:
            return RunContext(KafkaConfig.from_env(), stop=stop, observer=ProgressLog(10.0), sliced=options.slice, traces=traces)

        return _main(options.run, context, stop, _answer(options.result), own)


def _main(where: str, context: Callable[[], RunContext], stop: Stop, answer: Callable[[AgentResult], None], own: dict[str, Any]) -> int:
    """The run that stands somewhere; ``own`` takes whose log lines these are."""
    run: AgentRun | None = None
    try:
        run = _read_run(where, stop)
        own.update(_whose(run))
        with quiet_collector():
            result = execute(context(), msgspec.structs.replace(run, traceparent=run.traceparent or os.environ.get("TRACEPARENT", "")))
    except FactoryError as error:
        result = failed_result(run, error)
        log.error(str(error), extra=fields(error=type(error).__name__, retriable=error.retriable))
    except Exception as error:
        result = failed_result(run, error)
        log.exception("unexpected error; please report it")
    try:
        answer(result)
    except OSError as error:
        log.error("the result cannot be written", extra=fields(file=error.filename, error=error.strerror))
        return EXIT_RETRY
    if result.error is None:
        return 0
    return EXIT_RETRY if result.error.retriable else EXIT_FAILED


def _read_run(where: str, stop: Stop) -> AgentRun:
    """The run from a file, or from one line of standard input, which is then watched for its end."""
    if where == "-":
        data = _read_line()
        stop.watch_stdin()
        return decode_run(data)
    try:
        return decode_run(Path(where).read_bytes())
    except OSError as error:
        raise ConfigurationError(f"--run {where}: {error.strerror}") from error


def _answer(path: Path | None) -> Callable[[AgentResult], None]:
    """How the result is given: in a file, or on standard output, which is then kept from whatever an agent prints."""
    target = path or (_TERMINATION_LOG if _TERMINATION_LOG.exists() else None)
    if target is not None:
        return lambda result: write_result(target, result)
    sys.stdout.flush()
    own = os.dup(1)
    os.dup2(2, 1)

    def write(result: AgentResult) -> None:
        with os.fdopen(own, "wb") as out:
            out.write(encode(result) + b"\n")

    return write


if __name__ == "__main__":
    sys.exit(main())
