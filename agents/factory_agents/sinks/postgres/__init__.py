"""Publishing to PostgreSQL, exactly."""

from __future__ import annotations

from factory_agents.sinks.postgres.names import TableName
from factory_agents.sinks.postgres.sink import PostgresSink, PostgresTarget

__all__ = ["PostgresSink", "PostgresTarget", "TableName"]
