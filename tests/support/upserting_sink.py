"""A sink without transactions, over a store in memory."""

from __future__ import annotations

from threading import Lock
from typing import Any

from factory_agents import Figures, Landing, LedgerSink, Part, Rows
from factory_agents.contracts import TableSpec

__all__ = ["Upserting"]


class Upserting(LedgerSink):
    """Of each key the row with the greatest rank stays; ``failures`` are raised after landings."""

    capability = "idempotent"
    table = "store"

    def __init__(self) -> None:
        self.store: dict[Any, dict[str, Any]] = {}
        self.failures: list[Exception] = []
        self.landed: list[int] = []
        self._staged: dict[Part, Rows] = {}
        self._lock = Lock()
        self._key: tuple[str, ...] = ()

    def open(self, table: TableSpec) -> None:
        self._key = table.key

    def stage(self, part: Part, rows: Rows) -> None:
        self._staged[part] = rows

    def land(self, landing: Landing) -> Figures:
        newest: dict[Any, dict[str, Any]] = {}
        for rows in (self._staged[part] for part in landing.parts):
            for values in rows.rows:
                self._put(newest, dict(zip(rows.columns, values, strict=True)))
        with self._lock:
            written = sum(self._put(self.store, row) for row in newest.values())
        self.landed.append(landing.publication)
        if self.failures:
            raise self.failures.pop()
        return Figures(len(newest), written)

    def _put(self, into: dict[Any, dict[str, Any]], row: dict[str, Any]) -> bool:
        key = tuple(row[name] for name in self._key)
        if key in into and into[key]["_factory_rank"] > row["_factory_rank"]:
            return False
        into[key] = row
        return True

    def column(self, name: str) -> list[Any]:
        """What a column holds."""
        return [row[name] for row in self.store.values()]
