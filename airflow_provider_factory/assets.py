"""Topics and tables as Airflow assets, by the systems' schemes: ``kafka://…``, ``postgres://…``, ``bigquery://…``, ``snowflake://…``, ``iceberg://…``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlsplit

from airflow.sdk import Asset
from airflow.sdk.definitions._internal.mixins import ResolveMixin

from airflow_provider_factory.settings import option
from airflow_provider_factory.version_compat import AIRFLOW_V_3_3_PLUS
from factory_agents.databases.statements import table_name
from factory_agents.errors import ConfigurationError
from factory_agents.protocol import AgentResult, plain

__all__ = ["asset_topic", "event_extra", "result_partition", "stage_assets", "table_asset", "topic_argument", "topic_asset", "topic_name"]


def topic_name(topic: Any) -> str:
    """The name of a topic given as a name or as an asset with a ``kafka://`` URI; raises ConfigurationError for anything else.

    :param topic: a name, an asset, or None for no topic.
    """
    if topic is None:
        return ""
    if isinstance(topic, Asset):
        parts = urlsplit(topic.uri)
        name = parts.path.strip("/")
        if parts.scheme != "kafka" or not name:
            raise ConfigurationError(f"topic: expected an asset with a URI kafka://<cluster>/<topic>, got {topic.uri!r}")
        return name
    if not isinstance(topic, str):
        raise ConfigurationError(f"topic: expected a name or an asset kafka://<cluster>/<topic>, got {topic!r}")
    return topic


def topic_argument(topic: Any) -> Any:
    """A topic argument as an operator keeps it: a name, or what will be one when it is rendered (another task's output, a parameter).

    :param topic: a name, an asset, or what is rendered later.
    """
    return topic if isinstance(topic, ResolveMixin) else topic_name(topic)


def topic_asset(topic: str, *, cluster: str | None = None) -> Asset:
    """The asset of a topic, named as the topic; ``cluster`` is the alias in its URI, by default ``[factory] cluster``.

    :param topic: the topic's name.
    :param cluster: its cluster's alias in the URI.

    Example::

        DAG("alerts", schedule=[topic_asset("valid_events")])
    """
    return Asset(name=topic, uri=f"kafka://{cluster or option('cluster')}/{topic}")


def asset_topic(topic: Any) -> Asset | None:
    """The asset to report for a topic argument; None where there is none, or where its name is only known when templates are rendered.

    :param topic: as an operator keeps it.
    """
    if isinstance(topic, Asset):
        return topic
    if not isinstance(topic, str) or not topic or "{" in topic:
        return None
    return topic_asset(topic)


def table_asset(table: str, *, database: str | None = None) -> Asset:
    """The asset of a table (of the schema ``public``, unless named with another), named ``schema.table``.

    ``database`` is the alias in its URI, by default ``[factory] database``.

    :param table: ``table`` or ``schema.table``, quoted as in SQL.
    :param database: the database's alias in the URI.

    Example::

        DAG("reports", schedule=[table_asset("public.events")])
    """
    *schemas, name = table_name(table)
    alias, schema = database or option("database"), schemas[0] if schemas else "public"
    return Asset(name=f"{schema}.{name}", uri=f"postgres://{alias}:5432/{alias}/{quote(schema, safe='')}/{quote(name, safe='')}")


def stage_assets(arguments: Mapping[str, Any]) -> list[Asset]:
    """What a stage writes to, by its operator's arguments: the output topic and the table of ``publish``, unless templates name them.

    :param arguments: the operator's, by name.
    """
    found = [asset_topic(arguments.get("output_topic"))]
    given = arguments.get("agent_params")
    params = given if arguments.get("agent") == "publish" and isinstance(given, Mapping) else {}
    table = params.get("table")
    if isinstance(table, str) and table and "{" not in table:
        found.append(_sink_asset(params.get("sink") or "postgres", table))
    return [asset for asset in found if asset is not None]


def _sink_asset(sink: Any, table: str) -> Asset | None:
    """A table's asset, by its sink's scheme; none for a sink that a template names, or a warehouse's table that isn't named in full."""
    if sink == "postgres":
        return table_asset(table)
    parts = table.split(".")
    if sink == "bigquery" and len(parts) == 3:
        return Asset(name=table, uri=f"bigquery://{'/'.join(parts)}")
    if sink == "iceberg" and len(parts) > 1:
        return Asset(name=table, uri=f"iceberg://{option('database')}/{'/'.join(quote(part, safe='') for part in parts)}")
    if sink == "snowflake":
        return _snowflake_asset(table)
    return None


def _snowflake_asset(table: str) -> Asset | None:
    """Its account is only known to the connection: ``[factory] database`` stands for it, as for PostgreSQL's host."""
    from factory_agents.sinks.snowflake import TableName

    name = TableName.parse(table)
    if not name.database:
        return None
    parts = (name.database, name.schema, name.table)
    return Asset(name=".".join(parts), uri=f"snowflake://{option('database')}/{'/'.join(quote(part, safe='') for part in parts)}")


def result_partition(result: AgentResult) -> str | None:
    """The partition key of a result's asset events: its interval's start; None without an interval, or where keys are not wanted.

    They are asked for by ``[factory] asset_partitions``, since Airflow starts no DAG by an event with a key unless its schedule is about
    partitions; Airflow has them from 3.3 on.

    :param result: of a finished task.
    """
    if result.interval is None or not AIRFLOW_V_3_3_PLUS or option("asset_partitions").lower() not in ("true", "1"):
        return None
    return result.interval.start.isoformat(timespec="seconds").replace("+00:00", "Z")


def event_extra(result: AgentResult) -> dict[str, Any]:
    """What an asset event says of a result: whose it is, which window, the counts, and the ranges written.

    :param result: of a finished task.
    """
    extra: dict[str, Any] = {
        "pipeline": result.pipeline,
        "stage": result.stage,
        "window": result.key,
        "shard": [result.shard.index, result.shard.of],
        "counts": plain(result.counts),
        "fingerprint": result.fingerprint,
        "generation": result.generation,
    }
    if result.manifest is not None:
        extra["manifest"] = plain(result.manifest)
    if result.dataset is not None:
        extra["dataset"] = plain(result.dataset)
    return extra
