"""Publishing to Apache Iceberg, exactly."""

from __future__ import annotations

from factory_agents.sinks.iceberg.catalog import CatalogSettings, catalog_from_env
from factory_agents.sinks.iceberg.maintenance import Maintained, maintain
from factory_agents.sinks.iceberg.sink import IcebergSink, IcebergTarget, Mode
from factory_agents.sinks.iceberg.table import Layout, table_name

__all__ = ["CatalogSettings", "IcebergSink", "IcebergTarget", "Layout", "Maintained", "Mode", "catalog_from_env", "maintain", "table_name"]
