"""Publishing to PostgreSQL, exactly."""

from __future__ import annotations

from factory_agents.sinks.postgres.names import TableName
from factory_agents.sinks.postgres.sink import PostgresSink, PostgresTarget
from factory_agents.sinks.postgres.table import WantedColumn, WantedTable

__all__ = ["PostgresSink", "PostgresTarget", "TableName", "WantedColumn", "WantedTable"]
