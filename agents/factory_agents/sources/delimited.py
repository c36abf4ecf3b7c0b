"""CSV and TSV below a header line: each row becomes a JSON object of strings, or of the types given."""

from __future__ import annotations

import csv
import re
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, TypeAlias

import msgspec

from factory_agents.errors import ConfigurationError
from factory_agents.runtime.agents import Reject
from factory_agents.sources.encoded import HINT, as_utf8
from factory_agents.sources.jsonl import read_lines
from factory_agents.sources.rows import BATCH_RECORDS, ColumnType, ReadOptions, Rows, check_field, encode_row, time_reject, to_micros

__all__ = ["delimited_blocks"]

_BLOCK_BYTES = 1 << 20
_Line: TypeAlias = "tuple[bytes, Reject | None]"


def delimited_blocks(file: BinaryIO, name: str, options: ReadOptions, delimiter: str) -> Iterator[Rows]:
    """Blocks of rows; one that doesn't fit the header is rejected by rule ``decode``, one without a readable time by ``time``.

    Of several lines that an open quote has run together and that are no row, only the first is rejected: reading goes on at the second.
    Raises ConfigurationError for a header with an empty or a repeated name (unless they are renamed), or without the time field or a field
    of ``types``.
    """
    with _field_limit.at_least(options.max_line_bytes):
        yield from _blocks(_Reader(file, name, delimiter, options), name, options)


def _blocks(reader: _Reader, name: str, options: ReadOptions) -> Iterator[Rows]:
    header = _header(reader, name, options)
    if not header:
        return
    time_index = header.index(options.time_field) if options.time_field else -1
    id_index = header.index(options.id_field) if options.id_field in header else -1
    encode = _encoder(header, options.types, frozenset(options.nulls))
    block = _Block()
    while (row := reader.row(len(header))) is not None:
        if row == []:
            continue
        block.add(reader, row, time_index, id_index, options)
        if len(block.times) == BATCH_RECORDS or block.size >= _BLOCK_BYTES:
            yield block.rows(name, encode)
            block = _Block()
    if block.times:
        yield block.rows(name, encode)


class _FieldLimit:
    """The csv module's limit on a field is the whole process's: as large as the readers at work need it, and afterwards as it was."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._before = 0
        self._needs: list[int] = []

    @contextmanager
    def at_least(self, size: int) -> Iterator[None]:
        """While a reader is at work; what it may read is bounded by itself."""
        with self._lock:
            if not self._needs:
                self._before = csv.field_size_limit()
            self._needs.append(size)
            csv.field_size_limit(max(self._before, *self._needs))
        try:
            yield
        finally:
            with self._lock:
                self._needs.remove(size)
                csv.field_size_limit(max([self._before, *self._needs]))


_field_limit = _FieldLimit()


class _Block:
    """The rows of a block as they come."""

    def __init__(self) -> None:
        self.size = 0
        self.times: list[int | None] = []
        self._numbers: list[int] = []
        self._keys: list[str | None] = []
        self._values: list[list[str] | bytes] = []
        self._rejects: dict[int, Reject] = {}

    def add(self, reader: _Reader, row: list[str] | Reject, time_index: int, id_index: int, options: ReadOptions) -> None:
        key: str | None = None
        micros: int | None = None
        reject: Reject | None = None
        if isinstance(row, Reject):
            reject = row
        else:
            key = _value(row, id_index, options)
            try:
                micros = to_micros(_value(row, time_index, options), options.time_unit, options.time_format) if time_index >= 0 else 0
            except ValueError as error:
                reject = time_reject(options.time_field, error)
        if reject is not None:
            self._rejects[len(self.times)] = reject
        self._numbers.append(reader.number)
        self.times.append(micros)
        self._keys.append(key)
        self._values.append(row if isinstance(row, list) and reject is None else reader.raw())
        self.size += reader.size

    def rows(self, name: str, encode: Callable[[list[str]], bytes]) -> Rows:
        return Rows(name, encode, self._numbers, self.times, self._keys, self._values, self._rejects)


def _value(row: list[str], index: int, options: ReadOptions) -> str | None:
    return None if index < 0 or row[index] in options.nulls else row[index]


def _header(reader: _Reader, name: str, options: ReadOptions) -> list[str]:
    header: list[str] | Reject | None = []
    while header == []:
        header = reader.row(0)
    if header is None:
        return []
    if isinstance(header, Reject):
        raise ConfigurationError(f"{name}:{reader.number}: the header line cannot be read: {header.reason}")
    if any("\0" in column for column in header):
        raise ConfigurationError(f"{name}:{reader.number}: the header has a null character; {HINT}")
    if options.header == "rename":
        header = _renamed(header)
    if "" in header or len(set(header)) < len(header):
        names = ", ".join(map(repr, header))
        raise ConfigurationError(f"{name}:{reader.number}: the header has an empty or a repeated name; header: rename takes it ({names})")
    for column in options.types:
        check_field(column, "column of types", header, name)
    if options.time_field:
        check_field(options.time_field, "time_field", header, name)
    return header


def _renamed(header: list[str]) -> list[str]:
    """Each name once: an empty one says which column it is, a repeated one how often it came; those given as they are stay."""
    given, names = set(header), list[str]()
    for i, name in enumerate(header, 1):
        n, stem = (2, name) if name else (i, "column")
        unique = name if name and name not in names else f"{stem}_{n}"
        while unique in names or (unique in given and unique != name):
            n += 1
            unique = f"{stem}_{n}"
        names.append(unique)
    return names


def _encoder(header: list[str], types: dict[str, ColumnType], nulls: frozenset[str]) -> Callable[[list[str]], bytes]:
    if not types and not nulls:
        return lambda row: encode_row(dict(zip(header, row, strict=True)))
    columns = [(name, _CONVERTERS[types.get(name, "string")]) for name in header]

    def encode(row: list[str]) -> bytes:
        event = {}
        for (name, convert), text in zip(columns, row, strict=True):
            try:
                event[name] = None if text in nulls else convert(text)
            except ValueError as error:
                raise Reject(f"column {name!r}: expected {types[name]}, got {text[:40]!r}", rule="type") from error
        return encode_row(event)

    return encode


def _number(text: str) -> int | msgspec.Raw | None:
    """A number with its digits as they stand."""
    if not text:
        return None
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(str(error)) from error
    if type(value) is int:
        return value
    if type(value) is float:
        return msgspec.Raw(text.encode())
    raise ValueError(text)


def _integer(text: str) -> int | None:
    value = _number(text)
    if isinstance(value, msgspec.Raw):
        raise ValueError(text)
    return value


def _boolean(text: str) -> bool | None:
    if not text:
        return None
    try:
        return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
    except KeyError:
        raise ValueError(text) from None


_CONVERTERS: dict[str, Callable[[str], Any]] = {"string": str, "integer": _integer, "number": _number, "boolean": _boolean}


class _Reader:
    """Rows of a CSV file, each with the lines it was read from; after a bad row of several lines goes on at the second."""

    def __init__(self, file: BinaryIO, name: str, delimiter: str, options: ReadOptions) -> None:
        limit = options.max_line_bytes
        lines_apart = _SYNTAX.decode("ascii").encode(options.encoding) == _SYNTAX
        self._encoding = options.encoding if lines_apart else "utf-8"
        stream = file if lines_apart else as_utf8(file, name, options.encoding)
        self._lines = ((line, rejects.get(i)) for lines, rejects in read_lines(stream, limit, name) for i, line in enumerate(lines))
        self._given_back: deque[_Line] = deque()
        self._taken: list[_Line] = []
        self._limit = limit
        said = self._said_delimiter()
        if said and options.delimiter not in ("", said):
            raise ConfigurationError(f"{name}:1: the file says that its delimiter is {said!r}, the option {options.delimiter!r}")
        self._csv = csv.reader(self, delimiter=said or delimiter, strict=True)
        self.number = 2 if said else 1
        """The first line of the row last read."""
        self.size = 0
        """Its bytes."""

    def _said_delimiter(self) -> str:
        """What the first line, which is left out then, says that stands between values, as Excel writes it; else nothing."""
        for line in self._lines:
            if found := _DELIMITER.fullmatch(line[0]):
                return found["delimiter"].decode("ascii")
            self._given_back.append(line)
            break
        return ""

    def __iter__(self) -> _Reader:
        """The file's lines, for the csv module: unlike a generator they go on after an end, once lines were given back."""
        return self

    def __next__(self) -> str:
        """The next line; raises Reject for one that cannot be part of a row."""
        line, reject = taken = self._given_back.popleft() if self._given_back else next(self._lines)
        self._taken.append(taken)
        self.size += len(line)
        if reject is not None:
            raise reject
        if self.size > self._limit + 2:
            raise Reject(f"the row is longer than max_line_bytes={self._limit}", rule="length")
        return line.decode(self._encoding) + "\n"

    def row(self, width: int) -> list[str] | Reject | None:
        """The next row's values (``[]`` for a blank line), why it is none, or None at the end; ``width`` 0 takes any number of values."""
        self.number += len(self._taken)
        self._taken, self.size = [], 0
        row: list[str] | Reject | None
        try:
            row = next(self._csv, None)
        except Reject as reject:
            row = reject
        except UnicodeDecodeError as error:
            row = Reject(f"not a row: {error}; {HINT}", rule="decode")
        except csv.Error as error:
            row = Reject(f"not a row: {error}", rule="decode")
        if isinstance(row, list) and row and width and len(row) != width:
            row = Reject(f"expected {width} values, as the header has, got {len(row)}", rule="decode")
        if isinstance(row, Reject):
            self._given_back.extendleft(reversed(self._taken[1:]))
            del self._taken[1:]
        return row

    def raw(self) -> bytes:
        """The lines of the row last read."""
        return b"\n".join(line for line, _ in self._taken).removesuffix(b"\r")


_DELIMITER = re.compile(rb'("?)sep=(?P<delimiter>[ -!#-~\t])\1\r?', re.IGNORECASE)
_SYNTAX = b'\n\r\t ",;|0A'
"""Where an encoding has these bytes as ASCII has them, a file's lines are told apart before they are decoded, one by one."""
