"""Structured logs: one JSON object a line on standard error, or readable lines on a terminal."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime
from typing import Any

import msgspec

from factory_agents.text import printable

__all__ = ["configure_logging", "fields"]

_KEY = "factory_fields"


def fields(**values: Any) -> dict[str, Any]:
    """``extra=`` for a log call: values that stand as their own keys in the JSON line."""
    return {_KEY: values}


class JsonFormatter(logging.Formatter):
    """One JSON object a record: time, level, logger, message, and the call's own fields."""

    def format(self, record: logging.LogRecord) -> str:
        """See ``logging.Formatter.format``."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": printable(record.getMessage()),
        }
        line.update((k, printable(v) if isinstance(v, str) else v) for k, v in getattr(record, _KEY, {}).items())
        if record.exc_info:
            line["exception"] = printable(self.formatException(record.exc_info), lines=True)
        return printable(msgspec.json.encode(line, enc_hook=str).decode())


class TextFormatter(logging.Formatter):
    """Time, level and message, then the call's own fields as ``key=value``."""

    def format(self, record: logging.LogRecord) -> str:
        """See ``logging.Formatter.format``."""
        values = "".join(f" {k}={v}" for k, v in getattr(record, _KEY, {}).items())
        text = f"{datetime.fromtimestamp(record.created, UTC):%H:%M:%S} {record.levelname.lower():<7} {record.getMessage()}{values}"
        return printable(text) + ("\n" + printable(self.formatException(record.exc_info), lines=True) if record.exc_info else "")


def configure_logging(*, json: bool, level: str = "INFO") -> None:
    """Send this process's logs to standard error, once; ``json`` chooses JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if json else TextFormatter())
    root = logging.getLogger("factory_agents")
    root.handlers[:] = [handler]
    root.propagate = False
    root.setLevel(level.upper())
