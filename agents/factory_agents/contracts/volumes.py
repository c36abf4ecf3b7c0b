"""Counts how many events each key has, in bounded memory: past a size the counts go to temporary files."""

from __future__ import annotations

import tempfile
from array import array
from collections import Counter
from collections.abc import Hashable, Iterable
from typing import IO, NamedTuple

__all__ = ["VolumeCounter", "Volumes"]

_BUCKET_BITS = 6
_BUCKETS = 1 << _BUCKET_BITS
_PAIR = 16
_MOST_LEVEL = 9


class Volumes(NamedTuple):
    """How many keys there are, and how many events those with the most and the fewest have (zero without a key)."""

    keys: int
    most: int
    fewest: int


class VolumeCounter:
    """The events of each key. Keys are told apart by their 64-bit hashes (see ``DistinctCounter``), of which ``limit`` stay in memory."""

    def __init__(self, limit: int = 1 << 17, *, level: int = 0) -> None:
        self._limit = limit
        self._level = level
        self._counts: Counter[int] = Counter()
        self._files: list[IO[bytes]] = []

    def add(self, keys: Iterable[Hashable]) -> None:
        """Count an event of each of these keys."""
        self._counts.update(map(hash, keys))
        if len(self._counts) > self._limit:
            self._spill()

    def volumes(self) -> Volumes:
        """What was counted so far."""
        if not self._files:
            counts = self._counts.values()
            return Volumes(len(counts), max(counts, default=0), min(counts, default=0))
        self._spill()
        found = [volumes for file in self._files if (volumes := self._of_bucket(file)).keys]
        return Volumes(sum(v.keys for v in found), max(v.most for v in found), min(v.fewest for v in found))

    def close(self) -> None:
        """Give memory and disk back."""
        for file in self._files:
            file.close()
        self._files = []
        self._counts = Counter()

    def _spill(self) -> None:
        if not self._files:
            self._files = [tempfile.TemporaryFile(prefix="factory-keys-") for _ in range(_BUCKETS)]  # noqa: SIM115
        parts = [array("q") for _ in range(_BUCKETS)]
        shift, mask = self._level * _BUCKET_BITS, _BUCKETS - 1
        for pair in self._counts.items():
            parts[pair[0] >> shift & mask].extend(pair)
        for file, part in zip(self._files, parts, strict=True):
            part.tofile(file)
        self._counts = Counter()

    def _of_bucket(self, file: IO[bytes]) -> Volumes:
        """Its pairs, of which several may be of one key, counted in memory; spread again where there are more keys than fit."""
        inner = VolumeCounter(self._limit if self._level < _MOST_LEVEL else 1 << 62, level=self._level + 1)
        try:
            size = file.seek(0, 2) // _PAIR
            file.seek(0)
            for start in range(0, size, self._limit):
                pairs = array("q")
                pairs.fromfile(file, 2 * min(self._limit, size - start))
                for key, count in zip(pairs[::2], pairs[1::2], strict=True):
                    inner._counts[key] += count
                if len(inner._counts) > inner._limit:
                    inner._spill()
            return inner.volumes()
        finally:
            inner.close()
