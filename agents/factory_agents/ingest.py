"""The built-in ingest agent: the rows of files, a PostgreSQL table or your own source, an interval of them by their time, into a topic."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from typing import Any

from factory_agents.databases.statements import one_statement, table_name
from factory_agents.errors import ConfigurationError
from factory_agents.params import read_params
from factory_agents.paths import candidates
from factory_agents.protocol import AgentRun, digest
from factory_agents.runtime.agents import Source
from factory_agents.runtime.plugins import SOURCES, find_plugin, installed, is_class_path
from factory_agents.sources.rows import ReadOptions
from factory_agents.text import did_you_mean

__all__ = ["IngestParams", "build", "source_name"]


class IngestParams(ReadOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What ``ingest`` takes: one of ``source``, ``table`` and ``query``, and how to read it.

    ``source``: a path, a pattern (``data/*.jsonl.gz``), a URL that fsspec opens (``s3://…``), or a list of these; FACTORY_SOURCE by
    default. A relative path is looked for in the working directory, then under FACTORY_INCLUDE. ``table`` (``schema.name``) or ``query``
    are read from the PostgreSQL database whose URL is in the environment variable ``database_env``.

    Where ``source`` is the name of an installed source, or your own as ``module:Class``, all other parameters are that source's.
    """

    source: str | list[str] = ""
    table: str = ""
    query: str = ""
    database_env: str = "DATABASE_URL"


def build(params: Mapping[str, Any], run: AgentRun | None = None) -> Source:
    """The source to ingest from.

    Raises ConfigurationError for parameters it doesn't take, for an interval without ``time_field``, and for files that are not there or
    of unknown format.
    """
    untrusted = run.untrusted if run is not None else ()
    if plugin := _plugin(params):
        return _own_source(plugin, {name: value for name, value in params.items() if name != "source"}, untrusted)
    settings = read_params("ingest", params, IngestParams)
    if run is not None and run.interval is not None and not settings.time_field:
        raise ConfigurationError("agent 'ingest': an interval needs time_field, the name of the field that holds each row's time; set it")
    given = [name for name in ("source", "table", "query") if getattr(settings, name)]
    if len(given) > 1:
        raise ConfigurationError(f"agent 'ingest': {' and '.join(given)} are given; keep one of them")
    if settings.table or settings.query:
        from factory_agents.sources.table import TableSource

        return TableSource(settings.table, settings.query, settings.database_env, settings)
    files = _files(settings)
    if not any(files):
        raise ConfigurationError(
            "agent 'ingest': nothing to read; set source (or FACTORY_SOURCE) to a file or URL, or table to a table's name"
        )
    from factory_agents.sources.files import FileSource

    return FileSource(files, settings, confined="source" in untrusted)


def source_name(params: Mapping[str, Any]) -> str:
    """Names what these parameters read, so that work over different sources is told apart.

    That is the files, table or query, however they are written; of your own source all parameters.
    """
    if plugin := _plugin(params):
        return digest([plugin, {name: value for name, value in params.items() if name != "source"}])
    settings = read_params("ingest", params, IngestParams)
    if settings.table or settings.query:
        parts = table_name(settings.table) if settings.table else ()
        table = settings.table if any(set(part) & set('."') for part in parts) else ".".join(parts)
        return digest([table, one_statement(settings.query) if settings.query else "", settings.database_env])
    return digest([file if "://" in file else os.path.normpath(file) for file in filter(None, _files(settings))] or [""])


def _plugin(params: Mapping[str, Any]) -> str:
    """The installed source or ``module:Class`` that ``source`` names, if it isn't a file."""
    source = params.get("source") or os.environ.get("FACTORY_SOURCE", "")
    if not isinstance(source, str) or not (is_class_path(source) or re.fullmatch(r"[^\W\d][\w-]*", source)):
        return ""
    if any(path.exists() for path in candidates(source)):
        return ""
    return source if is_class_path(source) or did_you_mean(source, installed(SOURCES)) else ""


def _own_source(name: str, params: Mapping[str, Any], untrusted: Collection[str]) -> Source:
    plugin = find_plugin(SOURCES, name, untrusted="source" in untrusted)
    source: Source = plugin.make(params, untrusted=untrusted)
    if not callable(getattr(source, "read", None)):
        raise ConfigurationError(f"{plugin.where}: not a source: it has no method read")
    return source


def _files(settings: IngestParams) -> list[str]:
    source = settings.source or os.environ.get("FACTORY_SOURCE", "")
    return [source] if isinstance(source, str) else source


if __name__ == "__main__":
    from factory_agents.commands import run_built_in

    run_built_in("ingest")
