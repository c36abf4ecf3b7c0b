"""The suite for sinks over Snowflake's, on the emulator."""

from __future__ import annotations

from typing import Any

import pytest

from factory_agents.publish import build
from factory_agents.runtime.agents import Sink
from factory_agents.testing import DeletesConformance, SinkConformance, SinkTarget
from tests.support.snowflake import Bench


class Table(SinkTarget):
    """One table of a bench."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    def make(self) -> Any:
        raise NotImplementedError

    def sink(self, contract: dict[str, Any]) -> Sink:
        return build({"sink": "snowflake", "table": self.bench.table, "contract": contract, "timeout": 60})

    def rows(self, *columns: str) -> list[tuple[Any, ...]]:
        return self.bench.query(", ".join(columns))

    def empty(self) -> None:
        self.bench.schema.query("DELETE FROM T")

    def drop(self) -> None:
        self.bench.schema.query("DROP TABLE T")
        self.bench.schema.query("DROP TABLE IF EXISTS FACTORY_DELETED_T")


class TestSnowflake(SinkConformance, DeletesConformance):
    HISTORIES = 2
    DELETE_HISTORIES = 3

    @pytest.fixture
    def target(self, bench: Bench) -> Table:
        return Table(bench)
