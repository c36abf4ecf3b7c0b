"""``factory replicate``: a table's changes from PostgreSQL's log into a topic; how the slots stand; and giving one up."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from factory_agents import console
from factory_agents.commands import Bootstrap, Json, KafkaSettings, setting, start_agent
from factory_agents.errors import ConfigurationError
from factory_agents.options import AgentSettings, kafka_config

__all__ = ["replicate"]

replicate = typer.Typer(
    help="A PostgreSQL table's changes, from its log into a topic, each once.", rich_markup_mode=None, no_args_is_help=True
)

_DEFAULTS = AgentSettings()
_Prefix = Annotated[str, setting("prefix")]
_Pipeline = Annotated[str, typer.Option(help="only this pipeline's", metavar="NAME", show_default=False)]
_Stage = Annotated[str, typer.Option(help="only this stage's", metavar="NAME", show_default=False)]
_DatabaseUrl = Annotated[str, setting("database_url")]


@replicate.command("run")
def run(
    table: Annotated[str, typer.Argument(help="table or schema.table", metavar="TABLE")],
    topic: Annotated[str, typer.Option("--topic", "--out-topic", help="topic to write to", metavar="TOPIC", envvar="OUTPUT_TOPIC")],
    since: Annotated[
        str | None, typer.Option(help="start of the window's interval; without it, it runs until it is stopped", metavar="TIME")
    ] = None,
    until: Annotated[str | None, typer.Option(help="end of the window's interval", metavar="TIME")] = None,
    slot: Annotated[str, typer.Option(help="the slot's name; by default one of the table and the pipeline", metavar="NAME")] = "",
    publication: Annotated[str, typer.Option(help="the publication's name; by default the slot's", metavar="NAME")] = "",
    snapshot: Annotated[bool, typer.Option("--snapshot/--no-snapshot", help="begin with the rows that the table has")] = True,
    truncate: Annotated[str, typer.Option(help="at a TRUNCATE: stop, or pass it on as an event and go on", metavar="stop|pass")] = "stop",
    max_lag: Annotated[
        str, typer.Option(help="stop where the slot holds back more of the log than this, such as '50 GB'", metavar="SIZE")
    ] = "",
    output_codec: Annotated[str, setting("output_codec")] = "",
    pipeline: Annotated[str, setting("pipeline")] = "",
    stage: Annotated[str, setting("stage")] = "",
    accept_loss: Annotated[
        bool, typer.Option("--accept-loss", help="begin again with a snapshot where changes are lost, and record that")
    ] = False,
    max_rejected: Annotated[str, setting("max_rejected")] = "0",
    deadline: Annotated[float, setting("deadline")] = _DEFAULTS.deadline,
    chunk_records: Annotated[int, setting("chunk_records")] = _DEFAULTS.chunk_records,
    keep_windows: Annotated[str, setting("keep_windows")] = _DEFAULTS.keep_windows,
    database_url: _DatabaseUrl = "",
    prefix: _Prefix = _DEFAULTS.prefix,
    bootstrap: Bootstrap = None,
    kafka_settings: KafkaSettings = None,
    json: Json = False,
) -> None:
    """Write a table's rows, then its changes, to a topic: those of an interval, or live until stopped.

    Slot and publication are made if they are not there. Events are Debezium's (JSON without schemas), so that factory agent run publish
    lands them as rows and deletes.

    \b
    Examples:
      factory replicate run public.orders --topic orders_changes
      factory replicate run public.orders --topic orders_changes --pipeline orders --since 2026-11-01T04:00 --until 2026-11-01T05:00
    """
    from factory_agents.options import parse_time

    params: dict[str, Any] = {"table": table, "truncate": truncate, "snapshot": snapshot, "max_lag": max_lag}
    params |= {name: value for name, value in (("slot", slot), ("publication", publication)) if value}
    if (since is None) != (until is None):
        raise ConfigurationError("--since and --until: give both, or neither")
    settings = AgentSettings(
        out_topic=topic,
        params=params,
        since=parse_time(since, "--since") if since else None,
        until=parse_time(until, "--until") if until else None,
        output_codec=output_codec,
        pipeline=pipeline,
        stage=stage,
        accept_loss=accept_loss,
        max_rejected=max_rejected,
        deadline=deadline,
        chunk_records=chunk_records,
        keep_windows=keep_windows,
        database_url=database_url,
        prefix=prefix,
    )
    start_agent("replicate", settings, kafka_config(bootstrap, kafka_settings or ()), as_json=console.wants_json(json))


@replicate.command("status")
def status(
    pipeline: _Pipeline = "",
    stage: _Stage = "",
    max_lag: Annotated[
        str, typer.Option(help="exit with 1 where a slot holds back more of the log than this, such as '10 GB'", metavar="SIZE")
    ] = "",
    database_url: _DatabaseUrl = "",
    prefix: _Prefix = _DEFAULTS.prefix,
    bootstrap: Bootstrap = None,
    kafka_settings: KafkaSettings = None,
    json: Json = False,
) -> None:
    """Show how far each log is read, and how much of it its slot holds back. Exit status 1 where a slot is lost or gone.

    \b
    Examples:
      factory replicate status
      factory replicate status --pipeline orders --max-lag '10 GB'
    """
    from factory_agents.databases.postgres import database_from_env, database_from_url
    from factory_agents.replicate import size_of
    from factory_agents.replication.streams import find_streams, statuses

    database = database_from_url(database_url, "--database-url") if database_url else database_from_env("DATABASE_URL")
    limit = size_of(max_lag, "--max-lag")
    found = statuses(find_streams(kafka_config(bootstrap, kafka_settings or ()), prefix=prefix, pipeline=pipeline, stage=stage), database)
    if console.wants_json(json):
        console.print_json(found)
    else:
        console.print_table(
            ["pipeline", "stage", "table", "topic", "slot", "state", "read to", "newest change", "behind", "held back", "left", "note"],
            [
                [
                    s.pipeline,
                    s.stage,
                    s.table,
                    s.topic,
                    s.slot,
                    s.state,
                    s.lsn,
                    datetime.fromtimestamp(s.changed / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S") if s.changed else "",
                    _size(s.behind),
                    _size(s.held),
                    "no limit" if s.left < 0 <= s.held else _size(s.left),
                    f"copying, {s.copied:,} rows so far" if s.copied >= 0 else f"in window {s.window}" if s.window else "",
                ]
                for s in found
            ],
            right=["behind", "held back", "left"],
        )
    raise typer.Exit(1 if any(not s.is_well or (limit and s.held > limit) for s in found) else 0)


@replicate.command("drop")
def drop(
    pipeline: Annotated[str, typer.Argument(help="the pipeline, as factory replicate status shows it", metavar="PIPELINE")],
    stage: _Stage = "",
    database_url: _DatabaseUrl = "",
    prefix: _Prefix = _DEFAULTS.prefix,
    bootstrap: Bootstrap = None,
    kafka_settings: KafkaSettings = None,
    json: Json = False,
) -> None:
    """Give a log up: drop slot and publication, and forget how far it was read. A run after that begins with a snapshot.

    What was not read of the log by then is in no topic; rows that are deleted until the next snapshot stay in copies.

    \b
    Example:
      factory replicate drop orders
    """
    from factory_agents.databases.postgres import database_from_env, database_from_url
    from factory_agents.replication.streams import drop_stream, find_streams

    database = database_from_url(database_url, "--database-url") if database_url else database_from_env("DATABASE_URL")
    config = kafka_config(bootstrap, kafka_settings or ())
    found = find_streams(config, prefix=prefix, pipeline=pipeline, stage=stage)
    if len(found) != 1:
        names = ", ".join(f"{s.stage} ({s.name})" for s in found)
        reads = f"several logs: {names}; say which (--stage)" if found else "no log; see factory replicate status"
        raise ConfigurationError(f"pipeline {pipeline!r} reads {reads}")
    gone = drop_stream(config, found[0], database, prefix=prefix)
    if console.wants_json(json):
        console.print_json({"dropped": gone})
    else:
        console.say(f"dropped: {', '.join(gone) or 'nothing was left of it in the database'}; the ledger has forgotten it")


def _size(count: int) -> str:
    if count < 0:
        return ""
    value, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
