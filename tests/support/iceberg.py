"""An Iceberg table of a test's own, in whatever catalog, and publishers to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.table import Table

from factory_agents.protocol import Shard
from factory_agents.publish import build
from factory_agents.runtime.agents import Claim, SinkOutcome
from factory_agents.testing.records import CONTRACT, W1, at


class Bench:
    """The table ``lake.t`` in a catalog with these properties."""

    table = "lake.t"

    def __init__(self, properties: Mapping[str, str]) -> None:
        self.properties = dict(properties)
        self.params: dict[str, Any] = {}
        self.contract: dict[str, Any] = CONTRACT
        self.generation = 0

    @property
    def catalog(self) -> Catalog:
        return load_catalog("default", **self.properties)

    def load(self) -> Table:
        return self.catalog.load_table(self.table)

    def rows(self, *columns: str) -> list[tuple[Any, ...]]:
        """What a reader who knows nothing of us sees."""
        found = self.load().scan(selected_fields=columns).to_arrow().select(columns).to_pylist()
        return sorted((tuple(row[c] for c in columns) for row in found), key=repr)

    def sink(self, **params: Any) -> Any:
        return build({"sink": "iceberg", "table": self.table, "contract": self.contract, "timeout": 60} | self.params | params)

    def claim(self, window: str = W1, **changes: Any) -> Claim:
        self.generation += 1
        values: dict[str, Any] = {"plan": "plan", "fingerprint": f"f{self.generation}", "input_generation": self.generation}
        return Claim("p", "publish", window, changes.pop("shard", Shard()), generation=self.generation, **values | changes)

    def publish(self, events: Sequence[Any], window: str = W1, params: Mapping[str, Any] | None = None, **changes: Any) -> SinkOutcome:
        """All of an attempt, each of another generation."""
        sink = self.sink(**(params or {}))
        try:
            outcome: SinkOutcome | None = sink.claim(self.claim(window, **changes))
            if outcome is None:
                assert sink.write(at(events)) == {}
                outcome = sink.commit(rejected=0)
            return outcome
        finally:
            sink.close()
