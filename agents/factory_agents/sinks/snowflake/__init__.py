"""Publishing to Snowflake, exactly."""

from __future__ import annotations

from factory_agents.sinks.snowflake.names import TableName
from factory_agents.sinks.snowflake.session import Account, account_from_env
from factory_agents.sinks.snowflake.sink import SnowflakeSink, SnowflakeTarget

__all__ = ["Account", "SnowflakeSink", "SnowflakeTarget", "TableName", "account_from_env"]
