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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from factory_agents.errors import ConfigurationError, FactoryError
from factory_agents.kafka.config import KafkaConfig
from factory_agents.protocol import AgentRef, AgentResult, AgentRun, Counts, ErrorInfo, Shard, decode_run, encode
from factory_agents.runtime.loading import load_agent_ref
from factory_agents.runtime.session import RunContext
from factory_agents.runtime.sink import run_sink
from factory_agents.runtime.source import run_source
from factory_agents.runtime.window import run_transform
from factory_agents.telemetry import configure_logging, fields

__all__ = ["BUILT_IN", "EXIT_FAILED", "EXIT_RETRY", "build_transform", "execute", "main"]

log = logging.getLogger(__name__)

EXIT_FAILED, EXIT_RETRY = 1, 75
_TERMINATION_LOG, _TERMINATION_LIMIT = Path("/dev/termination-log"), 4096

BUILT_IN: dict[str, Callable[..., AgentResult]] = {
    "ingest": run_source,
    "enrich": run_transform,
    "validate": run_transform,
    "publish": run_sink,
}
"""The built-in agents by name, and what runs each."""


def build_transform(ref: AgentRef, params: dict[str, Any], run: AgentRun | None) -> Any:
    """The agent that a reference names, with its parameters checked: a transform, a source or a sink.

    Raises AgentError where it cannot be loaded and ConfigurationError for parameters that it does not take.
    """
    if ref.name in BUILT_IN and not ref.source:
        return importlib.import_module(f"factory_agents.{ref.name}").build(params, run)
    return load_agent_ref(ref).bind(params)


def execute(context: RunContext, run: AgentRun) -> AgentResult:
    """Run it to its end; raises a FactoryError where it cannot."""
    runner = BUILT_IN.get(run.agent.name, run_transform) if not run.agent.source else run_transform
    return runner(context, run, lambda: build_transform(run.agent, run.params, run))


def _failed(run: AgentRun | None, error: BaseException) -> AgentResult:
    known = isinstance(error, FactoryError)
    info = ErrorInfo(
        type(error).__name__,
        str(error) if known else f"{type(error).__name__}: {error}",
        retriable=error.retriable if known else False,
    )
    key = "" if run is None or (run.window is None and run.interval is None) else run.key
    return AgentResult(
        pipeline=run.pipeline if run else "",
        stage=run.stage if run else "",
        key=key,
        shard=run.shard if run else Shard(),
        status="failed",
        error=info,
    )


def write_result(path: Path, result: AgentResult) -> None:
    """Write the result whole, or to a termination message without its ranges where it would be cut off (the full one is in the ledger)."""
    data = encode(result)
    if path == _TERMINATION_LOG:
        if len(data) > _TERMINATION_LIMIT:
            data = encode(
                msgspec.structs.replace(result, input=None, manifest=None, dead_letters=None, report=None, notes=(), truncated=True)
            )
        path.write_bytes(data[:_TERMINATION_LIMIT])
        return
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_bytes(data)
    partial.replace(path)


class Stop:
    """Whether this process was asked to stop: by SIGTERM, SIGINT or the end of its standard input."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def __call__(self) -> bool:
        """The question that the runtime asks."""
        return self._event.is_set()

    def watch_signals(self) -> None:
        """Stop at SIGTERM and SIGINT; a second one ends the process at once."""

        def asked(number: int, frame: object) -> None:
            if self._event.is_set():
                os._exit(128 + number)
            log.info("asked to stop", extra=fields(signal=signal.Signals(number).name))
            self._event.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, asked)

    def watch_stdin(self) -> None:
        """Stop when the parent closes our standard input (it ended, or wants us to)."""

        def wait() -> None:
            while os.read(0, 4096):
                pass
            if not self._event.is_set():
                log.info("standard input closed, stopping")
                self._event.set()

        threading.Thread(target=wait, daemon=True, name="stdin").start()


def _read_line() -> bytes:
    """One line of standard input, unbuffered, so that what follows stays for the watcher."""
    parts = bytearray()
    while not parts.endswith(b"\n"):
        got = os.read(0, 65536)
        if not got:
            break
        parts += got
    return bytes(parts)


def _progress_log(every: float) -> Callable[[str, int, int, Counts], None]:
    last = time.monotonic()

    def observe(stage: str, done: int, total: int, counts: Counts) -> None:
        nonlocal last
        if time.monotonic() - last >= every:
            last = time.monotonic()
            log.info("progress", extra=fields(stage=stage, done=done, total=total, rejected=counts.rejected))

    return observe


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
    options = parser.parse_args(argv)
    configure_logging(json=not sys.stderr.isatty(), level=os.environ.get("FACTORY_LOG_LEVEL", "INFO"))
    stop = Stop()
    stop.watch_signals()
    run: AgentRun | None = None
    try:
        data = _read_line() if options.run == "-" else Path(options.run).read_bytes()
        if options.run == "-":
            stop.watch_stdin()
        run = decode_run(data)
        gc.collect()
        gc.freeze()
        context = RunContext(KafkaConfig.from_env(), stop=stop, observer=_progress_log(10.0))
        result = execute(context, run)
        log.info(
            "done",
            extra=fields(
                stage=run.stage,
                window=run.key,
                shard=run.shard.key,
                reused=result.reused,
                resumed=result.resumed,
                seconds=result.seconds,
            ),
        )
    except FactoryError as error:
        result = _failed(run, error)
        log.error(str(error), extra=fields(error=type(error).__name__, retriable=error.retriable))
    except OSError as error:
        result = _failed(run, ConfigurationError(f"{error.filename or 'input'}: {error.strerror}"))
        log.error(str(error))
    except Exception as error:
        result = _failed(run, error)
        log.exception("an error that nobody foresaw; please report it")
    target = options.result or (_TERMINATION_LOG if _TERMINATION_LOG.exists() else None)
    if target is not None:
        write_result(target, result)
    else:
        sys.stdout.buffer.write(encode(result) + b"\n")
    if result.error is None:
        return 0
    return EXIT_RETRY if result.error.retriable else EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
