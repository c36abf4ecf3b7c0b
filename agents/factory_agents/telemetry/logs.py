"""Structured logs: one JSON object a line on standard error, or readable lines on a terminal."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

import msgspec

from factory_agents.text import printable

__all__ = ["CONTEXT", "bound", "configure_logging", "fields", "logs_json"]

log = logging.getLogger(__name__)

_KEY = "factory_fields"

CONTEXT = ("service", "pipeline", "stage", "agent", "version", "window", "shard", "attempt", "trace_id", "span_id")
"""What is in each JSON line of a run, as far as it is known: whose line it is."""

_BOUND: ContextVar[dict[str, Any] | None] = ContextVar("factory_bound", default=None)


def fields(**values: Any) -> dict[str, Any]:
    """``extra=`` for a log call: values that stand as their own keys in the JSON line."""
    return {_KEY: values}


@contextmanager
def bound(**values: Any) -> Iterator[dict[str, Any]]:
    """These values, all of ``CONTEXT``, stand in every JSON line that is logged within; more may be put into what is yielded.

    Within another one it adds to that one what is missing there. A thread has them where it runs in a copy of the context
    (``contextvars.copy_context``).
    """
    own = _BOUND.get()
    if own is not None:
        own.update({**values, **own})
        yield own
        return
    own = dict(values)
    token = _BOUND.set(own)
    try:
        yield own
    finally:
        _BOUND.reset(token)


class JsonFormatter(logging.Formatter):
    """One JSON object a record: time, level, logger, message, whose it is, and the call's own fields."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        """See ``logging.Formatter.format``."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": printable(_message(record)),
            "service": self._service,
        }
        for values in (_BOUND.get() or {}, getattr(record, _KEY, {})):
            line.update((k, printable(v) if isinstance(v, str) else v) for k, v in values.items())
        if record.exc_info:
            line["exception"] = printable(self.formatException(record.exc_info), lines=True)
        return printable(msgspec.json.encode(line, enc_hook=str).decode())


def _message(record: logging.LogRecord) -> str:
    """What was logged; where its values don't fit its text, the one beside the others."""
    try:
        return record.getMessage()
    except Exception:  # of whoever's values these are
        return f"{record.msg} {record.args!r}"


class TextFormatter(logging.Formatter):
    """Time, level and message, then the call's own fields as ``key=value``."""

    def format(self, record: logging.LogRecord) -> str:
        """See ``logging.Formatter.format``."""
        values = "".join(f" {k}={v}" for k, v in getattr(record, _KEY, {}).items())
        text = f"{datetime.fromtimestamp(record.created, UTC):%H:%M:%S} {record.levelname.lower():<7} {_message(record)}{values}"
        return printable(text) + ("\n" + printable(self.formatException(record.exc_info), lines=True) if record.exc_info else "")


def _failed_thread(failed: threading.ExceptHookArgs) -> None:
    """An error that ends a thread is logged, as Python's own hook would print it."""
    if failed.exc_value is not None and not isinstance(failed.exc_value, SystemExit):
        name = failed.thread.name if failed.thread is not None else ""
        log.error("thread %r failed", name, exc_info=failed.exc_value)


def _ignored(failed: sys.UnraisableHookArgs) -> None:
    """So is one that nobody can catch, such as a destructor's."""
    log.error("%s: %r", failed.err_msg or "Exception ignored in", failed.object, exc_info=failed.exc_value)


def logs_json() -> bool:
    """Whether this process's log is JSON lines."""
    return any(isinstance(handler.formatter, JsonFormatter) for handler in logging.getLogger("factory_agents").handlers)


def configure_logging(*, json: bool, level: str = "INFO", service: str = "factory-agent") -> None:
    """Send this process's logs to standard error, once; ``json`` chooses JSON lines, which name the service.

    Those of other libraries and of a user's agents too, from warnings on or from where their own loggers are set to, unless somebody
    has seen to them.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(service) if json else TextFormatter())
    others = logging.getLogger()
    if not others.handlers:
        others.addHandler(handler)
        logging.captureWarnings(True)
        threading.excepthook = _failed_thread
        sys.unraisablehook = _ignored
    root = logging.getLogger("factory_agents")
    root.handlers[:] = [handler]
    root.propagate = False
    root.setLevel(level.upper())
