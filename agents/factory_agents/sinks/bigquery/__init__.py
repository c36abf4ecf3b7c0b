"""Publishing to BigQuery, exactly."""

from __future__ import annotations

from factory_agents.sinks.bigquery.sink import BigQuerySink, BigQueryTarget
from factory_agents.sinks.bigquery.table import Partitioning, TableName, WantedTable, wanted_table
from factory_agents.sinks.bigquery.warehouse import account_from_env

__all__ = ["BigQuerySink", "BigQueryTarget", "Partitioning", "TableName", "WantedTable", "account_from_env", "wanted_table"]
