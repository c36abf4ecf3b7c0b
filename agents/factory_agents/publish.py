"""The built-in publish agent: lands a window's events in PostgreSQL, BigQuery, Snowflake, Iceberg, or a sink of your own, exactly once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import msgspec

from factory_agents.contracts import Contract, TableSpec, load_contract
from factory_agents.databases.postgres import database_from_env
from factory_agents.errors import ConfigurationError
from factory_agents.params import read_params
from factory_agents.protocol import AgentRun
from factory_agents.runtime.agents import Sink
from factory_agents.runtime.exact_sink import ExactSink, exact
from factory_agents.runtime.ledger_sink import LedgerSink
from factory_agents.runtime.plugins import SINKS, find_plugin
from factory_agents.sinks import bigquery, iceberg, snowflake
from factory_agents.sinks.postgres import PostgresSink, PostgresTarget, TableName

__all__ = ["BigQueryParams", "IcebergParams", "PublishParams", "SnowflakeParams", "build"]

_TABLE = "the table to publish to, such as"


class PublishParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What ``publish`` takes for PostgreSQL.

    ``table``: ``table`` (in the first schema of the ``search_path``) or ``schema.table``, taken literally. ``contract`` (a file, YAML
    text or a mapping) gives columns, key and order; without one an existing table's own columns and primary key do, and what is
    published last wins. ``create_table``: create it from the contract if absent. ``database_url_env`` names the environment variable
    that holds the database's URL. ``statement_timeout`` (0: none) and ``lock_timeout`` are seconds. ``deletes``: a record without a
    value removes its key's row (by default as the contract has it). ``live``: a live publish takes what arrives in ``windows`` of some
    seconds, or as ``records``, within a fraction of a second.
    """

    table: str
    sink: str = "postgres"
    contract: str | dict[str, Any] | None = None
    create_table: bool = True
    database_url_env: str = "DATABASE_URL"
    statement_timeout: float = 900.0
    lock_timeout: float = 60.0
    deletes: bool | None = None
    live: Literal["windows", "records"] = "windows"


class BigQueryParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What ``publish`` takes with ``sink: bigquery``.

    ``table``: ``dataset.table`` or ``project.dataset.table``. ``contract`` and ``create_table`` as for PostgreSQL; ``add_columns``: add
    nullable columns that the contract has and the table lacks. A table that is created is partitioned by the time or date column
    ``partition_by`` (by default not at all) in ``partition_unit``, clustered by ``cluster_by`` (by default the key), and encrypted with
    ``kms_key``. ``labels`` stand on it and on every job. ``timeout``: seconds that one job may take. ``deletes`` as for PostgreSQL.
    """

    table: str
    sink: str = "bigquery"
    contract: str | dict[str, Any] | None = None
    create_table: bool = True
    add_columns: bool = True
    partition_by: str = ""
    partition_unit: Literal["hour", "day", "month", "year"] = "day"
    cluster_by: tuple[str, ...] | None = None
    kms_key: str = ""
    labels: dict[str, str] = {}
    timeout: float = 900.0
    deletes: bool | None = None


class SnowflakeParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What ``publish`` takes with ``sink: snowflake``.

    ``table``: ``table``, ``schema.table`` or ``database.schema.table``, as SQL reads them: a name without double quotes is upper case.
    ``contract`` (needed), ``create_table`` and ``add_columns`` as for BigQuery. A table that is created is clustered by ``cluster_by`` (by
    default not at all). ``warehouse`` and ``role``: others than the account's. ``query_tag`` stands on every statement. ``timeout``:
    seconds that one statement may take, and that others are waited for.
    """

    table: str
    sink: str = "snowflake"
    contract: str | dict[str, Any] | None = None
    create_table: bool = True
    add_columns: bool = True
    cluster_by: tuple[str, ...] = ()
    warehouse: str = ""
    role: str = ""
    query_tag: str = ""
    timeout: float = 900.0


class IcebergParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What ``publish`` takes with ``sink: iceberg``.

    ``table``: ``namespace.table``. ``catalog`` names the catalog. ``contract`` (needed) and ``create_table`` as for PostgreSQL; ``evolve``:
    add nullable columns that the contract has and the table lacks, and widen those that are too narrow. ``mode``: ``append`` keeps every
    window's rows, and replaces a window that is published again; ``upsert`` keeps the newest row of each key, and writes the files that
    hold one again, up to ``rewrite_limit`` megabytes at once. A table that is created is partitioned by ``partition_by`` (columns, or
    ``year``, ``month``, ``day``, ``hour``, ``bucket(16, …)``, ``truncate(4, …)`` of one), has ``properties``, and lies at ``location``.
    ``timeout``: seconds that others, who commit to the table too, are waited for.
    """

    table: str
    sink: str = "iceberg"
    catalog: str = "default"
    contract: str | dict[str, Any] | None = None
    mode: iceberg.Mode = "append"
    create_table: bool = True
    evolve: bool = True
    partition_by: tuple[str, ...] = ()
    properties: dict[str, str] = {}
    location: str = ""
    rewrite_limit: float = 4096
    timeout: float = 900.0


def build(params: Mapping[str, Any], run: AgentRun | None = None) -> Sink:
    """The sink for these parameters; it connects when it claims.

    ``sink`` is ``postgres`` (the default), ``bigquery``, ``snowflake``, ``iceberg``, the name of an installed one, or your own as
    ``module:Class``; the other parameters are the sink's. Raises ConfigurationError for parameters it doesn't take or a database URL that
    isn't set, ContractError for a contract that can't be read.
    """
    sink = str(params.get("sink") or "postgres")
    if sink in _SINKS:
        return _SINKS[sink](params, run)
    return _own_sink(sink, {name: value for name, value in params.items() if name != "sink"}, run)


def _contract(named: str | dict[str, Any] | None, run: AgentRun | None) -> Contract | None:
    return load_contract(named, untrusted=run is not None and "contract" in run.untrusted) if named else None


def _postgres(params: Mapping[str, Any], run: AgentRun | None) -> Sink:
    settings = read_params("publish", params, PublishParams, required={"table": f"{_TABLE} events or analytics.events"})
    if settings.statement_timeout < 0 or settings.lock_timeout <= 0:
        raise ConfigurationError("agent 'publish': statement_timeout must be at least 0 and lock_timeout more than 0 seconds")
    if run is not None and settings.live == "records":
        raise ConfigurationError(
            "agent 'publish': 'live': 'records' is for a live publish; the rows of a window land together: leave it out"
        )
    contract = _contract(settings.contract, run)
    database = database_from_env(settings.database_url_env)
    deletes = settings.deletes if settings.deletes is not None else contract is not None and contract.deletes
    wanted = contract.table() if contract is not None else TableSpec()
    target = PostgresTarget(
        database=database,
        table=TableName.parse(settings.table),
        wanted=msgspec.structs.replace(wanted, deletes=deletes),
        create_table=settings.create_table,
        statement_timeout=settings.statement_timeout,
        lock_timeout=settings.lock_timeout,
    )
    digest = contract.digest if contract is not None else ""
    identity: dict[str, Any] = {"table": settings.table, "contract": digest, "database": database.address}
    if deletes:
        identity["deletes"] = True
    if settings.live == "records":
        from factory_agents.sinks.postgres.live import PostgresRecords

        return PostgresRecords(target, identity)
    return PostgresSink(target, identity)


def _bigquery(params: Mapping[str, Any], run: AgentRun | None) -> Sink:
    settings = read_params("publish", params, BigQueryParams, required={"table": f"{_TABLE} analytics.events or project.analytics.events"})
    if settings.timeout <= 0:
        raise ConfigurationError("agent 'publish': timeout must be more than 0 seconds")
    contract = _contract(settings.contract, run)
    deletes = settings.deletes if settings.deletes is not None else contract is not None and contract.deletes
    wanted = bigquery.wanted_table(contract) if contract is not None else bigquery.WantedTable()
    account = bigquery.account_from_env()
    target = bigquery.BigQueryTarget(
        account=account,
        table=bigquery.TableName.parse(settings.table),
        wanted=msgspec.structs.replace(wanted, deletes=deletes),
        layout=bigquery.Partitioning(settings.partition_by, settings.partition_unit, settings.cluster_by, settings.kms_key),
        create_table=settings.create_table,
        add_columns=settings.add_columns,
        labels=settings.labels,
        timeout=settings.timeout,
    )
    identity = {
        "sink": "bigquery",
        "table": settings.table,
        "contract": contract.digest if contract is not None else "",
        "project": account.project,
    } | ({"deletes": True} if deletes else {})
    table = contract.table() if contract is not None else TableSpec()
    spec = msgspec.structs.replace(table, deletes=deletes)
    return ExactSink(bigquery.BigQuerySink(target), spec, identity, timeout=settings.timeout)


def _snowflake(params: Mapping[str, Any], run: AgentRun | None) -> Sink:
    settings = read_params("publish", params, SnowflakeParams, required={"table": f"{_TABLE} events or analytics.public.events"})
    if settings.timeout <= 0:
        raise ConfigurationError("agent 'publish': timeout must be more than 0 seconds")
    contract = _contract(settings.contract, run)
    if contract is None:
        raise ConfigurationError("agent 'publish': parameter 'contract' is required for Snowflake: it gives columns, key and order")
    account = snowflake.account_from_env()
    place = {name: value for name in ("warehouse", "role") if (value := getattr(settings, name))}
    target = snowflake.SnowflakeTarget(
        account=msgspec.structs.replace(account, **place),
        table=snowflake.TableName.parse(settings.table),
        create_table=settings.create_table,
        add_columns=settings.add_columns,
        cluster_by=settings.cluster_by,
        query_tag=settings.query_tag,
        timeout=settings.timeout,
    )
    identity = {
        "sink": "snowflake",
        "table": [account.database, account.schema, settings.table],
        "contract": contract.digest,
        "account": account.name,
    }
    return exact(snowflake.SnowflakeSink(target), contract, identity, timeout=settings.timeout)


def _iceberg(params: Mapping[str, Any], run: AgentRun | None) -> Sink:
    settings = read_params("publish", params, IcebergParams, required={"table": f"{_TABLE} analytics.events"})
    if settings.timeout <= 0 or settings.rewrite_limit <= 0:
        raise ConfigurationError("agent 'publish': timeout and rewrite_limit must be more than 0")
    contract = _contract(settings.contract, run)
    if contract is None:
        raise ConfigurationError("agent 'publish': parameter 'contract' is required for Iceberg: it gives columns, key and order")
    if contract.deletes and settings.mode == "append":
        raise ConfigurationError(
            "publish to Iceberg takes no deletes with mode: append, and the contract has deletes: true; use mode: upsert"
        )
    catalog = iceberg.catalog_from_env(settings.catalog)
    target = iceberg.IcebergTarget(
        catalog=catalog,
        table=iceberg.table_name(settings.table),
        mode=settings.mode,
        layout=iceberg.Layout(settings.partition_by, settings.properties, settings.location),
        create_table=settings.create_table,
        evolve=settings.evolve,
        rewrite_limit=settings.rewrite_limit,
    )
    identity = {
        "sink": "iceberg",
        "table": settings.table,
        "mode": settings.mode,
        "contract": contract.digest,
        "catalog": [settings.catalog, catalog.place],
    }
    return exact(iceberg.IcebergSink(target), contract, identity, timeout=settings.timeout)


def _own_sink(name: str, params: dict[str, Any], run: AgentRun | None) -> Sink:
    """A sink of the user's: a ``LedgerSink``, which the runtime makes exact with the contract's columns, or a ``Sink`` of its own."""
    untrusted = run.untrusted if run is not None else ()
    plugin = find_plugin(SINKS, name, untrusted="sink" in untrusted)
    given = params.get("contract")
    own = params if plugin.takes("contract") else {name: value for name, value in params.items() if name != "contract"}
    made: Any = plugin.make(own, untrusted=untrusted)
    if isinstance(made, LedgerSink):
        contract = _contract(given, run)
        if contract is None:
            raise ConfigurationError(f"{plugin.where}: parameter 'contract' is required: it gives columns, key and order")
        return exact(made, contract, {"sink": name, "contract": contract.digest, **made.identity}, made.version)  # type: ignore[attr-defined]
    if own is not params and given is not None:
        raise ConfigurationError(f"{plugin.where}: unknown parameter 'contract'; only a LedgerSink takes one")
    lacking = [method for method in ("claim", "write", "commit") if not callable(getattr(made, method, None))]
    if lacking:
        raise ConfigurationError(f"{plugin.where}: not a sink: expected a LedgerSink, or one with {', '.join(lacking)} too")
    sink: Sink = made
    return sink


_SINKS: Mapping[str, Callable[[Mapping[str, Any], AgentRun | None], Sink]] = {
    "postgres": _postgres,
    "bigquery": _bigquery,
    "snowflake": _snowflake,
    "iceberg": _iceberg,
}


if __name__ == "__main__":
    from factory_agents.commands import run_built_in

    run_built_in("publish")
