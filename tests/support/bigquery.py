"""A dataset of a test's own on the BigQuery emulator, and publishers to a table in it."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from google.auth.credentials import AnonymousCredentials
from google.cloud import bigquery

from factory_agents.kafka.messages import Message
from factory_agents.protocol import Shard
from factory_agents.publish import build
from factory_agents.runtime.agents import Claim, SinkOutcome
from factory_agents.sinks.bigquery import account_from_env
from tests.support.sink_bench import CONTRACT, W1, WHOLE


class Emulator:
    """A client of the emulator (of BigQuery itself where ``url`` is ""), and one dataset in it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.dataset = f"d_{secrets.token_hex(4)}"
        if url:
            self.client = bigquery.Client("local", AnonymousCredentials(), client_options={"api_endpoint": url})
        else:
            self.client = account_from_env().client()
        self.client.create_dataset(self.dataset)

    def close(self) -> None:
        self.client.delete_dataset(self.dataset, delete_contents=True)
        self.client.close()

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """What a query gives; ``{d}`` is the dataset."""
        return [tuple(row) for row in self.client.query_and_wait(sql.replace("{d}", self.dataset))]

    def table(self, name: str) -> bigquery.Table:
        return self.client.get_table(f"{self.dataset}.{name}")

    def tables(self) -> list[str]:
        return sorted(table.table_id for table in self.client.list_tables(self.dataset))


class Bench:
    """One table of this test's own, and publishers to it."""

    def __init__(self, emulator: Emulator) -> None:
        self.emulator = emulator
        self.name = "t"
        self.contract: dict[str, Any] | None = CONTRACT
        self.params: dict[str, Any] = {}
        self.generation = 0
        self.sinks: list[Any] = []

    @property
    def table(self) -> str:
        return f"{self.emulator.dataset}.{self.name}"

    def close(self) -> None:
        for sink in self.sinks:
            sink.close()

    def sink(self, **params: Any) -> Any:
        sink = build({"sink": "bigquery", "table": self.table, "contract": self.contract, "timeout": 120} | self.params | params)
        self.sinks.append(sink)
        return sink

    def claim(self, window: str = W1, shard: Shard = WHOLE, stage: str = "publish", **changes: Any) -> Claim:
        self.generation += 1
        values = {"plan": "plan", "fingerprint": "f", "input_generation": 1, "generation": self.generation} | changes
        return Claim("p", stage, window, shard, **values)

    def publish(self, rows: Sequence[Message], window: str = W1, shard: Shard = WHOLE, **changes: Any) -> SinkOutcome:
        """All of it; without another fingerprint each publication is a new one."""
        claim = self.claim(window, shard, **({"fingerprint": f"f{self.generation}"} | changes))
        sink = self.sink()
        try:
            outcome: SinkOutcome | None = sink.claim(claim)
            if outcome is None:
                for start in range(0, len(rows), 3):
                    assert sink.write(rows[start : start + 3]) == {}
                outcome = sink.commit(rejected=0)
        finally:
            sink.close()
        return outcome

    def query(self, what: str, rest: str = "") -> list[tuple[Any, ...]]:
        return self.emulator.query(f"SELECT {what} FROM `{self.table}` {rest}")

    def rows(self) -> dict[str, str]:
        return {row[0]: row[1] for row in self.query("id, value", "ORDER BY id")}
