"""The suite for sinks over Iceberg's, on real catalogs and files."""

from __future__ import annotations

from typing import Any

import pytest

from factory_agents.runtime.agents import Sink
from factory_agents.testing import DeletesConformance, SinkConformance, SinkTarget
from tests.support.iceberg import Bench


class Table(SinkTarget):
    """One table of a bench."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    def make(self) -> Any:
        raise NotImplementedError

    def sink(self, contract: dict[str, Any]) -> Sink:
        self.bench.contract = contract
        sink: Sink = self.bench.sink(mode="upsert")
        return sink

    def rows(self, *columns: str) -> list[tuple[Any, ...]]:
        return self.bench.rows(*columns)

    def empty(self) -> None:
        self.bench.load().delete()

    def drop(self) -> None:
        self.bench.catalog.drop_table(self.bench.table)


class TestIceberg(SinkConformance, DeletesConformance):
    HISTORIES = 3
    DELETE_HISTORIES = 3

    @pytest.fixture
    def target(self, bench: Bench) -> Table:
        return Table(bench)


@pytest.mark.soak
class TestIcebergInPostgres(SinkConformance, DeletesConformance):
    HISTORIES = 3
    DELETE_HISTORIES = 3

    @pytest.fixture
    def target(self, in_postgres: Bench) -> Table:
        return Table(in_postgres)


@pytest.mark.soak
class TestIcebergOverRest(SinkConformance, DeletesConformance):
    HISTORIES = 3
    DELETE_HISTORIES = 3

    @pytest.fixture
    def target(self, in_rest: Bench) -> Table:
        return Table(in_rest)
