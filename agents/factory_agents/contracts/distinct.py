"""Counts distinct ids in bounded memory: their hashes go to temporary files past a size."""

from __future__ import annotations

import tempfile
from array import array
from collections.abc import Hashable, Iterable
from typing import IO

__all__ = ["DistinctCounter"]

_BUCKET_BITS = 6
_BUCKETS = 1 << _BUCKET_BITS
_WORD = 8


class DistinctCounter:
    """How many of the values added are distinct.

    Values are told apart by their 64-bit hashes: among 100 million there is a chance of 1 in 3,700 that one too few is
    counted. Up to ``limit`` hashes (8 bytes each) stay in memory; past that they are spread over 64 unlinked temporary files,
    so that nothing is left behind whatever ends the process, and each file, again spread if need be, is counted by itself.
    """

    def __init__(self, limit: int = 1 << 18, *, level: int = 0) -> None:
        self.added = 0
        self._limit = limit
        self._level = level
        self._pending = array("q")
        self._files: list[IO[bytes]] = []

    def add(self, values: Iterable[Hashable]) -> None:
        """Add ids."""
        self._take(array("q", map(hash, values)))

    def count(self) -> int:
        """Distinct values among those added so far."""
        if not self._files:
            return len(set(self._pending))
        self._spill()
        return sum(self._count_bucket(file) for file in self._files)

    def close(self) -> None:
        """Give memory and disk back."""
        for file in self._files:
            file.close()
        self._files = []
        self._pending = array("q")

    def _take(self, hashes: array[int]) -> None:
        self.added += len(hashes)
        self._pending.extend(hashes)
        if len(self._pending) > self._limit:
            self._spill()

    def _spill(self) -> None:
        if not self._files:
            self._files = [tempfile.TemporaryFile(prefix="factory-ids-") for _ in range(_BUCKETS)]  # noqa: SIM115
        parts = [array("q") for _ in range(_BUCKETS)]
        shift, mask = self._level * _BUCKET_BITS, _BUCKETS - 1
        for value in set(self._pending):  # many copies of one id take no room
            parts[value >> shift & mask].append(value)
        for file, part in zip(self._files, parts, strict=True):
            part.tofile(file)
        self._pending = array("q")

    def _count_bucket(self, file: IO[bytes]) -> int:
        size = file.seek(0, 2) // _WORD
        file.seek(0)
        if size <= self._limit or (self._level + 2) * _BUCKET_BITS > _WORD * 8:
            part = array("q")
            part.fromfile(file, size)
            return len(set(part))
        inner = DistinctCounter(self._limit, level=self._level + 1)
        try:
            for start in range(0, size, self._limit):
                part = array("q")
                part.fromfile(file, min(self._limit, size - start))
                inner._take(part)
            return inner.count()
        finally:
            inner.close()
