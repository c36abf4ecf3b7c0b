"""JSON Lines: one JSON object a line, forwarded byte for byte (without the line's end); blank lines are no rows."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import Any, BinaryIO

import msgspec

from factory_agents.runtime.agents import Reject, decode_event
from factory_agents.sources.encoded import as_utf8, check_narrow
from factory_agents.sources.rows import ReadOptions, Rows, all_to_micros, as_is, time_reject, to_micros
from factory_agents.text import not_json

__all__ = ["field_names", "jsonl_blocks", "read_lines"]

_BLOCK_BYTES = 1 << 20
_KEPT_BYTES = 64 * 1024
"""What is kept of an overlong line, which would not fit into a record."""
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_UNFIT = (msgspec.DecodeError, RecursionError, ValueError, ArithmeticError)
"""What reading a line raises that is no row: one of too large an exponent is an arithmetic error of Decimal's."""


def read_lines(file: BinaryIO, limit: int, name: str) -> Iterator[tuple[list[bytes], dict[int, Reject]]]:
    """Lines without their newlines, about a mebibyte at a time; one longer than ``limit`` is cut, and rejected by its index in the list.

    A byte order mark is no part of the first line. Raises ConfigurationError where the text of this name is UTF-16 or UTF-32.
    """
    reject = Reject(f"the line is longer than max_line_bytes={limit}; its beginning is kept", rule="length")
    rest = b""
    data = file.read(_BLOCK_BYTES)
    check_narrow(data, name)
    data = data.removeprefix(_BYTE_ORDER_MARK)
    while data:
        whole, newline, tail = data.rpartition(b"\n")
        if newline:
            lines = (rest + whole).split(b"\n")
            yield _cut(lines, limit, reject)
            rest = tail
        else:
            rest += data
        if len(rest) > limit:
            _pass_over_line(file)
            yield [rest[:_KEPT_BYTES]], {0: reject}
            rest = b""
        data = file.read(_BLOCK_BYTES)
    if rest:
        yield [rest], {}


def _cut(lines: list[bytes], limit: int, reject: Reject) -> tuple[list[bytes], dict[int, Reject]]:
    rejects = {index: reject for index, line in enumerate(lines) if len(line) > limit} if max(map(len, lines)) > limit else {}
    for index in rejects:
        lines[index] = lines[index][:_KEPT_BYTES]
    return lines, rejects


def _pass_over_line(file: BinaryIO) -> None:
    piece = file.readline(_BLOCK_BYTES)
    while piece and not piece.endswith(b"\n"):
        piece = file.readline(_BLOCK_BYTES)


def jsonl_blocks(file: BinaryIO, name: str, options: ReadOptions) -> Iterator[Rows]:
    """Blocks of rows; a line that is no JSON object is rejected by rule ``decode``, one without a readable time by ``time``."""
    decoder = msgspec.json.Decoder(_row_type(options.time_field, options.id_field), float_hook=Decimal)
    number = 1
    for lines, overlong in read_lines(as_utf8(file, name, options.encoding), options.max_line_bytes, name):
        yield _block(name, number, lines, overlong, decoder, options)
        number += len(lines)


def _row_type(time_field: str, id_field: str) -> type[Any]:
    """A struct of a row's time and id: msgspec decodes these two and only checks the syntax of the rest."""
    names = {name: given for name, given in (("time", time_field), ("id", id_field)) if given}
    namespace = {}
    if time_field == id_field:
        del names["id"]
        namespace["id"] = property(lambda row: row.time)
    return msgspec.defstruct("Row", [(name, Any, None) for name in names], rename=names, namespace=namespace, gc=False)


def _block(
    name: str, first: int, lines: list[bytes], overlong: dict[int, Reject], decoder: msgspec.json.Decoder[Any], options: ReadOptions
) -> Rows:
    joined = b"".join(lines)
    if b"\r" in joined:
        lines = [line.rstrip(b"\r") for line in lines]
    if not overlong:
        try:
            if not joined.isascii():
                for line in lines:
                    line.decode()  # msgspec doesn't look into the strings that it passes over
            decoded = [decoder.decode(line) for line in lines]
            times = (
                all_to_micros([row.time for row in decoded], options.time_unit, options.time_format)
                if options.time_field
                else [0] * len(lines)
            )
            return Rows(name, as_is, range(first, first + len(lines)), times, [row.id for row in decoded], lines)
        except _UNFIT:
            pass
    return _careful_block(name, first, lines, overlong, decoder, options)


def _careful_block(
    name: str, first: int, lines: list[bytes], overlong: dict[int, Reject], decoder: msgspec.json.Decoder[Any], options: ReadOptions
) -> Rows:
    """Line by line, where there is something amiss with one of them."""
    timed, unit, format_ = bool(options.time_field), options.time_unit, options.time_format
    numbers: list[int] = []
    times: list[int | None] = []
    keys: list[Any] = []
    values: list[bytes] = []
    rejects: dict[int, Reject] = {}
    for number, line in enumerate(lines, first):
        if not line or line.isspace():
            continue
        key: Any = None
        micros: int | None = None
        try:
            if number - first in overlong:
                raise overlong[number - first]
            line.decode()
            row = decoder.decode(line)
            key = row.id
            micros = to_micros(row.time, unit, format_) if timed else 0
        except (Reject, *_UNFIT) as error:
            rejects[len(times)] = _reject(error, line, options.time_field)
        numbers.append(number)
        times.append(micros)
        keys.append(key)
        values.append(line)
    return Rows(name, as_is, numbers, times, keys, values, rejects)


def _reject(error: Exception, line: bytes, time_field: str) -> Reject:
    if isinstance(error, Reject):
        return error
    if isinstance(error, (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ArithmeticError)):
        return Reject(f"not a JSON object: {not_json(line, error)}", rule="decode")
    return time_reject(time_field, ValueError(error))


def field_names(file: BinaryIO, name: str, options: ReadOptions) -> list[str]:
    """The names in the first line that is a JSON object."""
    for lines, _ in read_lines(as_utf8(file, name, options.encoding), options.max_line_bytes, name):
        for line in lines:
            try:
                return list(decode_event(line))
            except Reject:
                continue
    return []
