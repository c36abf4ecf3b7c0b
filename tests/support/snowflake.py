"""A schema of a test's own on the Snowflake emulator, or on an account, and publishers to a table in it."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import snowflake.connector

from factory_agents.kafka.messages import Message
from factory_agents.protocol import Shard
from factory_agents.publish import build
from factory_agents.runtime.agents import Claim, SinkOutcome
from factory_agents.sinks.snowflake import account_from_env
from tests.support.sink_bench import CONTRACT, W1, WHOLE


class SnowflakeSchema:
    """A client of the account that the environment names, and one schema in it."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.name = f"FACTORY_TEST_{secrets.token_hex(4).upper()}"
        self.environment = {**environment, "SNOWFLAKE_SCHEMA": self.name}
        account = account_from_env(self.environment)
        named = {name: getattr(account, name) for name in ("database", "schema", "warehouse", "role")}
        self.connection = snowflake.connector.connect(
            **account.place,
            **account.secrets,
            **{name: value for name, value in named.items() if value},
            paramstyle="qmark",
            enable_server_session_keep_alive_auto_detection=False,
        )
        self.query(f"CREATE SCHEMA IF NOT EXISTS {self.name}")

    @property
    def url(self) -> str:
        """Where the emulator is."""
        return f"http://{self.environment['SNOWFLAKE_HOST']}:{self.environment['SNOWFLAKE_PORT']}"

    def close(self) -> None:
        self.query(f"DROP SCHEMA {self.name} CASCADE")
        self.connection.close()

    def query(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """What a statement gives."""
        with self.connection.cursor() as cursor:
            cursor.execute(sql, values or None)
            return [tuple(row) for row in cursor.fetchall()]

    def tables(self) -> list[str]:
        return sorted(row[1] for row in self.query(f"SHOW TABLES IN SCHEMA {self.name}"))


class Bench:
    """One table of this test's own, and publishers to it."""

    def __init__(self, schema: SnowflakeSchema) -> None:
        self.schema = schema
        self.table = "t"
        self.contract: dict[str, Any] = CONTRACT
        self.params: dict[str, Any] = {}
        self.generation = 0
        self.sinks: list[Any] = []

    def close(self) -> None:
        for sink in self.sinks:
            sink.close()

    def sink(self, **params: Any) -> Any:
        sink = build({"sink": "snowflake", "table": self.table, "contract": self.contract, "timeout": 60} | self.params | params)
        self.sinks.append(sink)
        return sink

    def claim(self, window: str = W1, shard: Shard = WHOLE, stage: str = "publish", **changes: Any) -> Claim:
        self.generation += 1
        values: dict[str, Any] = {"plan": "plan", "fingerprint": "f", "input_generation": 1, "generation": self.generation}
        return Claim("p", stage, window, shard, **values | changes)

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
        return self.schema.query(f"SELECT {what} FROM {self.table} {rest}")

    def rows(self) -> dict[str, str]:
        return {row[0]: row[1] for row in self.query("ID, VALUE", "ORDER BY ID")}
