"""``factory sinks``: whether a table can be published to, what the first publish would create there, and its maintenance."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from factory_agents import console
from factory_agents.commands import Json, setting, surroundings
from factory_agents.errors import ConfigurationError, FactoryError
from factory_agents.options import AgentSettings, parse_assignments

__all__ = ["sinks"]

sinks = typer.Typer(help="Where publish writes to.", rich_markup_mode=None, no_args_is_help=True)


@sinks.callback()
def _group() -> None: ...


@sinks.command("check")
def check(
    table: Annotated[str, typer.Argument(help="the table, as publish takes it", metavar="TABLE", show_default=False)],
    sink: Annotated[str, typer.Option(help="postgres, bigquery, snowflake, iceberg, or your own", metavar="NAME")] = "postgres",
    contract: Annotated[str, typer.Option(help="the contract's file", metavar="FILE", show_default=False)] = "",
    param: Annotated[
        list[str] | None,
        typer.Option("--param", "-p", help="another parameter of publish: key=text, or key:=JSON; repeatable", metavar="KEY=VALUE"),
    ] = None,
    database_url: Annotated[str, setting("database_url")] = "",
    json: Json = False,
) -> None:
    """Check that a table can be published to, without a row written: it answers, the rights are there, the contract's columns fit.

    Says what the first publish would create. In PostgreSQL all of it is done and rolled back. Exit status 1 if something is in its way.

    \b
    Examples:
      factory sinks check events --contract contracts/events.yaml
      factory sinks check analytics.events --sink bigquery --contract contracts/events.yaml --param partition_by=occurred_at
    """
    from factory_agents.publish import build

    params: dict[str, Any] = {"sink": sink, "table": table, **({"contract": contract} if contract else {})}
    lines, wrong = [], ""
    with surroundings(AgentSettings(database_url=database_url)):
        made: Any = None
        try:
            made = build({**params, **parse_assignments(param or (), "--param")})
            if not hasattr(made, "check"):
                raise ConfigurationError(f"sink {sink!r}: it has no check(), so nothing can be said of it without publishing")
            lines = made.check()
        except FactoryError as error:
            wrong = str(error)
        finally:
            if hasattr(made, "close"):
                made.close()
    if console.wants_json(json):
        console.print_json({"ok": not wrong, "found": lines, "wrong": wrong or None})
    else:
        for line in lines:
            console.say(f"✓ {line}")
        if wrong:
            console.say(f"✗ {wrong}", "red")
    raise typer.Exit(1 if wrong else 0)


@sinks.command("maintain")
def maintain(
    table: Annotated[str, typer.Argument(help="the Iceberg table: namespace.table", metavar="TABLE", show_default=False)],
    catalog: Annotated[str, typer.Option(help="the catalog's name, as publish takes it", metavar="NAME")] = "default",
    snapshot_days: Annotated[float, typer.Option(help="expire snapshots older than that", min=0, metavar="DAYS")] = 7,
    orphan_days: Annotated[
        float,
        typer.Option(help="delete files that nothing names, older than that: longer than any publish takes", min=0.25, metavar="DAYS"),
    ] = 3,
    yes: Annotated[bool, typer.Option("--yes", help="do it; without it, say what would be done")] = False,
    json: Json = False,
) -> None:
    """Maintain an Iceberg table beside its publishers: expire old snapshots, join small files of deletes, delete files that nothing names.

    The ledger, the deletes that are remembered, and the heads of branches and tags stay. Other sinks' tables need no such care.

    \b
    Examples:
      factory sinks maintain analytics.events
      factory sinks maintain analytics.events --snapshot-days 30 --yes
    """
    from datetime import timedelta

    from factory_agents.sinks import iceberg

    done = iceberg.maintain(
        iceberg.catalog_from_env(catalog),
        iceberg.table_name(table),
        snapshots_after=timedelta(days=snapshot_days),
        orphans_after=timedelta(days=orphan_days),
        dry_run=not yes,
    )
    if console.wants_json(json):
        console.print_json(done)
        return
    would = "" if yes else "would be "
    console.say(f"{done.snapshots:,} snapshots {would}expired", "bold")
    console.say(f"{done.joined:,} small files of deletes {would}joined into {done.into:,}")
    console.say(f"{done.orphans:,} files that nothing names {would}deleted ({done.bytes / 1e6:,.1f} MB)")
    for folder in done.elsewhere:
        console.say(f"{folder} may hold other tables' files, and was not looked into", "yellow")
    if not yes:
        console.say("--yes does it")
