"""Records as no client writes them: raw batches (any header name, any compression) put into a partition by a socket."""

from __future__ import annotations

import gzip
import socket
import struct
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from tests.support.waiting import wait_for

Codec = Literal["none", "gzip", "snappy", "lz4", "zstd"]
_NOT_LEADER = 6
_CODECS: tuple[Codec, ...] = ("none", "gzip", "snappy", "lz4", "zstd")


@dataclass(frozen=True)
class Raw:
    """One record; header names are bytes."""

    value: bytes | None = None
    key: bytes | None = None
    headers: Sequence[tuple[bytes, bytes | None]] = field(default_factory=tuple)


def put(bootstrap: str, topic: str, partition: int, *batches: bytes) -> None:
    """Append batches, each in a request of its own; fails unless the broker takes them."""
    host, _, port = bootstrap.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        for batch in batches:
            # a topic that was just created may have no leader yet
            wait_for(lambda batch=batch: _put(connection, topic, partition, batch) == 0, f"a leader of {topic}-{partition}")  # type: ignore[misc]


def _put(connection: socket.socket, topic: str, partition: int, batch: bytes) -> int:
    name = topic.encode()
    body = struct.pack(">hhii", -1, -1, 60_000, 1) + struct.pack(">h", len(name)) + name
    body += struct.pack(">iii", 1, partition, len(batch)) + batch
    header = struct.pack(">hhih", 0, 7, 1, -1)
    connection.sendall(struct.pack(">i", len(header) + len(body)) + header + body)
    answer = _receive(connection, struct.unpack(">i", _receive(connection, 4))[0])
    code: int = struct.unpack_from(">h", answer, 4 + 4 + 2 + len(name) + 4 + 4)[0]
    assert code in (0, _NOT_LEADER), f"the broker answers {code}"
    return code


def _receive(connection: socket.socket, size: int) -> bytes:
    got = bytearray()
    while len(got) < size:
        part = connection.recv(size - len(got))
        assert part, "the broker hung up"
        got += part
    return bytes(got)


def batch(records: Iterable[Raw], codec: Codec = "none") -> bytes:
    """A record batch of the current format."""
    listed = list(records)
    body = _compress(b"".join(_record(n, record) for n, record in enumerate(listed)), codec)
    now = time.time_ns() // 1_000_000
    checked = struct.pack(">hiqqqhii", _CODECS.index(codec), len(listed) - 1, now, now, -1, -1, -1, len(listed)) + body
    rest = struct.pack(">ibI", -1, 2, _crc32c(checked)) + checked
    return struct.pack(">qi", 0, len(rest)) + rest


def _compress(data: bytes, codec: Codec) -> bytes:
    if codec == "none":
        return data
    if codec == "gzip":
        return gzip.compress(data, 9)
    import pyarrow

    compressed: bytes = pyarrow.Codec(codec, compression_level=9 if codec == "zstd" else None).compress(data, asbytes=True)
    return compressed


def _record(number: int, record: Raw) -> bytes:
    body = b"\0" + _varint(0) + _varint(number) + _bytes(record.key) + _bytes(record.value) + _varint(len(record.headers))
    body += b"".join(_bytes(name) + _bytes(value) for name, value in record.headers)
    return _varint(len(body)) + body


def _bytes(value: bytes | None) -> bytes:
    return _varint(-1) if value is None else _varint(len(value)) + value


def _varint(number: int) -> bytes:
    number = number << 1 if number >= 0 else (-number << 1) - 1
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _table() -> list[int]:
    table = []
    for n in range(256):
        for _ in range(8):
            n = n >> 1 ^ (0x82F63B78 if n & 1 else 0)
        table.append(n)
    return table


_TABLE = _table()


def _crc32c(data: bytes) -> int:
    table, crc = _TABLE, 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF
