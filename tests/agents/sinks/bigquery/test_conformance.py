"""The suite for sinks over BigQuery's, on the emulator: what is cheap there always, the rest in the soak."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import pytest

from factory_agents.publish import build
from factory_agents.runtime.agents import Sink
from factory_agents.testing import DeletesConformance, SinkConformance, SinkTarget
from tests.support.bigquery import Bench


class Table(SinkTarget):
    """One table of a bench."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    def make(self) -> Any:
        raise NotImplementedError

    def sink(self, contract: dict[str, Any]) -> Sink:
        return build({"sink": "bigquery", "table": self.bench.table, "contract": contract, "timeout": 120})

    def rows(self, *columns: str) -> list[tuple[Any, ...]]:
        return self.bench.query(", ".join(columns))

    def empty(self) -> None:
        self.bench.emulator.query("DELETE FROM {d}.t WHERE TRUE")

    def drop(self) -> None:
        self.bench.emulator.client.delete_table(self.bench.table)


class TestBigQuery(SinkConformance, DeletesConformance):
    VERSIONS: ClassVar[Sequence[tuple[str, Any, Any, Any]]] = [SinkConformance.VERSIONS[i] for i in (0, 3, 5)]
    HISTORIES = 2
    DELETE_HISTORIES = 2
    NAMES: ClassVar[Sequence[str]] = ("order", "select", "n", "newest", "staged")

    @pytest.fixture
    def target(self, bench: Bench) -> Table:
        return Table(bench)
