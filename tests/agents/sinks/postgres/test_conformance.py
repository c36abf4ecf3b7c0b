"""The suite for sinks over PostgreSQL's."""

from __future__ import annotations

from typing import Any

import pytest
from psycopg import sql

from factory_agents.publish import build
from factory_agents.runtime.agents import Sink
from factory_agents.sinks.postgres.deletes import memory_of
from factory_agents.testing import DeletesConformance, SinkConformance, SinkTarget
from tests.support.sink_bench import Bench
from tests.support.soak import examples


class Table(SinkTarget):
    """One table of a bench."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    def make(self) -> Any:
        raise NotImplementedError

    def sink(self, contract: dict[str, Any]) -> Sink:
        return build({"table": self.bench.name, "contract": contract, "lock_timeout": 20})

    def rows(self, *columns: str) -> list[tuple[Any, ...]]:
        names = sql.SQL(", ").join(map(sql.Identifier, columns))
        return self.bench.admin.execute(sql.SQL("SELECT {} FROM {}").format(names, sql.Identifier(self.bench.name))).fetchall()

    def empty(self) -> None:
        self.bench.admin.execute(sql.SQL("DELETE FROM {}").format(sql.Identifier(self.bench.name)))

    def drop(self) -> None:
        self.bench.admin.execute(sql.SQL("DROP TABLE {}").format(sql.Identifier(self.bench.name)))
        self.bench.admin.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(sql.Identifier(memory_of(self.bench.name))))


class TestPostgres(SinkConformance, DeletesConformance):
    HISTORIES = DELETE_HISTORIES = examples(7, 20)

    @pytest.fixture
    def target(self, bench: Bench) -> Table:
        return Table(bench)
