"""The built-in replicate agent: a PostgreSQL table's changes, read from the log, into a topic, once and in order."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from factory_agents.databases.postgres import database_from_env
from factory_agents.databases.statements import table_name
from factory_agents.errors import ConfigurationError
from factory_agents.params import read_params
from factory_agents.protocol import AgentRun, digest
from factory_agents.replication.runner import Replication

__all__ = ["ReplicateParams", "build", "log_name", "size_of", "slot_name"]

_SLOT = re.compile(r"[a-z0-9_]{1,63}")
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kMGT]?)B?\s*")
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


class ReplicateParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What ``replicate`` takes.

    ``table`` (``table`` or ``schema.table``) is read from the log of the database whose URL is in the environment variable
    ``database_env``. ``slot`` and ``publication`` are made if they are not there; by default they are named for table and pipeline.
    ``snapshot``: begin with the rows that the table has. ``truncate``: at a TRUNCATE ``stop``, or ``pass`` it on as an event and go on.
    ``max_lag``: stop where the slot holds back more of the log than this, such as ``50 GB`` (by default nothing stops it).
    """

    table: str
    slot: str = ""
    publication: str = ""
    snapshot: bool = True
    truncate: Literal["stop", "pass"] = "stop"
    max_lag: str = ""
    database_env: str = "DATABASE_URL"


def build(params: Mapping[str, Any], run: AgentRun | None = None) -> Replication:
    """What to replicate. Raises ConfigurationError for parameters it doesn't take, and a database URL that isn't set."""
    settings = _settings(params)
    name = settings.slot or slot_name(run, settings)
    if not _SLOT.fullmatch(name):
        raise ConfigurationError(f"agent 'replicate': slot {name!r}: expected at most 63 lower case letters, digits and underscores")
    table_name(settings.table)
    database = database_from_env(settings.database_env)
    publication = settings.publication or name
    identity = {"table": settings.table, "database": database.address, "slot": name, "publication": publication}
    return Replication(
        database=database,
        table=settings.table,
        slot=name,
        publication=publication,
        snapshot=settings.snapshot,
        truncate=settings.truncate,
        max_lag=size_of(settings.max_lag, "agent 'replicate': max_lag"),
        identity=identity,
    )


def log_name(params: Mapping[str, Any]) -> str:
    """What tells the log that is read from other sources: the origin of its windows."""
    settings = _settings(params)
    return digest(["log", settings.table, settings.database_env])


def slot_name(run: AgentRun | None, settings: ReplicateParams) -> str:
    """The name of the slot of a stage, unless it is given one."""
    table = re.sub(r"[^a-z0-9]+", "_", settings.table.rpartition(".")[2].lower()).strip("_")[:40]
    whose = [run.prefix, run.pipeline, run.stage, run.work.scope] if run is not None else []
    return f"factory_{table}_{digest(whose)[:8]}"


def _settings(params: Mapping[str, Any]) -> ReplicateParams:
    return read_params("replicate", params, ReplicateParams, required={"table": "the table to replicate, such as public.orders"})


def size_of(text: str, where: str) -> int:
    """A size such as ``50 GB`` in bytes; 0 for none. Raises ConfigurationError, which begins with ``where``."""
    if not text:
        return 0
    found = _SIZE.fullmatch(text)
    if found is None:
        raise ConfigurationError(f"{where}: expected a size such as 50 GB, got {text!r}")
    return int(float(found[1]) * _UNITS[found[2]])


if __name__ == "__main__":
    from factory_agents.commands import run_built_in

    run_built_in("replicate")
