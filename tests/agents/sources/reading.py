"""Helpers for tests of sources: intervals, and reading them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from factory_agents.protocol import Interval
from factory_agents.runtime.agents import Source, SourceRecord
from factory_agents.sources.files import FileSource
from factory_agents.sources.rows import ReadOptions

HOUR = timedelta(hours=1)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TIMED = ReadOptions(time_field="t")


def hour(n: int, hours: int = 1) -> Interval:
    """The n-th hour since 1970, or several from there."""
    return Interval(EPOCH + n * HOUR, EPOCH + (n + hours) * HOUR)


def seconds(start: int, end: int) -> Interval:
    """From one second since 1970 to another."""
    return Interval(EPOCH + timedelta(seconds=start), EPOCH + timedelta(seconds=end))


def read(source: Source, interval: Interval | None, skip: int = 0) -> list[SourceRecord]:
    """All records of an interval."""
    return [record for batch in source.read(interval, skip) for record in batch]


def values(records: list[SourceRecord]) -> list[bytes]:
    """Their values."""
    return [record.value for record in records]


def source(path: Path | str, options: ReadOptions = TIMED) -> FileSource:
    """A file, or a pattern of them."""
    return FileSource([str(path)], options)


def write(path: Path, *lines: str | bytes) -> Path:
    """A file of these lines."""
    path.write_bytes(b"".join((line.encode() if isinstance(line, str) else line) + b"\n" for line in lines))
    return path
