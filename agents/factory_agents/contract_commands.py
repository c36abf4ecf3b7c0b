"""``factory contracts``: look at a contract, compare it with another, try it, and convert it."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from factory_agents import console
from factory_agents.commands import Bootstrap, Json, KafkaSettings, setting
from factory_agents.errors import ConfigurationError
from factory_agents.options import AgentSettings, kafka_config, parse_time

__all__ = ["contracts"]

contracts = typer.Typer(help="Data contracts: check, show, compare, try and convert them.", rich_markup_mode=None, no_args_is_help=True)

_DEFAULTS = AgentSettings()
_File = Annotated[str, typer.Argument(help="a contract's file; of several schemas in it FILE#schema", metavar="FILE", show_default=False)]
_Output = Annotated[str, typer.Option("--output", "-o", help="the file to write; - is standard output", metavar="FILE")]


class LintFormat(StrEnum):
    """How findings are written."""

    text = "text"
    json = "json"
    sarif = "sarif"


class Side(StrEnum):
    """Whom a change may break."""

    producers = "producers"
    consumers = "consumers"
    table = "table"


@contracts.command("lint")
def lint(
    files: Annotated[list[str], typer.Argument(help="contracts' files", metavar="FILE...", show_default=False)],
    format_: Annotated[LintFormat, typer.Option("--format", help="how findings are written")] = LintFormat.text,
) -> None:
    """List everything that is wrong with contracts, with line and column, and what in them is not checked or run.

    Exit status 1 if there is an error; notes are none.

    \b
    Examples:
      factory contracts lint include/contracts/*.yaml
      factory contracts lint shop.odcs.yaml --format sarif > contracts.sarif
    """
    from factory_agents.contracts.lint import lint_contract, sarif

    problems = [problem for file in files for problem in lint_contract(file)]
    errors = sum(problem.level == "error" for problem in problems)
    if format_ == LintFormat.json:
        console.print_json(problems)
    elif format_ == LintFormat.sarif:
        console.print_json(sarif(problems))
    else:
        for problem in problems:
            console.say(problem.text, "red" if problem.level == "error" else "")
        console.say(f"{_many(len(files), 'file')}, {_many(errors, 'error')}, {_many(len(problems) - errors, 'note')}", "bold")
    raise typer.Exit(1 if errors else 0)


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


@contracts.command("show")
def show(file: _File, json: Json = False) -> None:
    """Show what became of each part of a contract: columns, rules, conditions, what is counted, and what is not run.

    \b
    Example:
      factory contracts show shop.odcs.yaml#orders
    """
    from factory_agents.contracts import load_contract

    contract = load_contract(file)
    rules = [[rule.name, " ".join(rule.text.split())] for rule in contract.rules]
    conditions = [["fail_if", c.text] for c in contract.fail_if] + [["warn_if", c.text] for c in contract.warn_if]
    counted = [["missing" if f.missing else "invalid", f.name, f.field, f.values, f.pattern] for f in contract.figures]
    if console.wants_json(json):
        console.print_json(
            {
                **{name: getattr(contract, name) for name in ("name", "version", "source", "digest", "id", "key", "time", "time_unit")},
                **{name: getattr(contract, name) for name in ("version_field", "deletes", "delete_marker", "duplicate_keys", "nulls")},
                "columns": contract.columns(),
                "rules": dict(rules),
                "conditions": [dict(zip(("level", "condition"), c, strict=True)) for c in conditions],
                "references": {key.field: key.source for key in contract.foreign_keys},
                "counted": [dict(zip(("figure", "name", "field", "values", "pattern"), c, strict=True)) for c in counted],
                "notes": contract.notes,
                "not_run": contract.not_run,
            }
        )
        return
    facts = {"id": contract.id, "key": ", ".join(contract.key), "time": contract.time, "newer by": contract.version_field}
    console.say(f"{contract.name} version {contract.version} ({contract.source})", "bold")
    console.say(", ".join(f"{name}: {value}" for name, value in facts.items() if value) or "no key, no id, no time")
    marks = {c.name: [*(["key"] if c.primary_key else []), *([] if c.nullable else ["not null"])] for c in contract.columns()}
    console.print_table(["column", "type", ""], [[c.name, c.type, ", ".join(marks[c.name])] for c in contract.columns()], title="columns")
    for title, head, rows in (
        ("rules", ["rule", "holds"], rules),
        ("references", ["field", "has a value of"], [[key.field, key.source] for key in contract.foreign_keys]),
        ("conditions", ["level", "condition"], conditions),
        ("counted values", ["figure", "name", "field", "values", "pattern"], counted),
    ):
        if rows:
            console.print_table(head, rows, title=title)
    for note in (*contract.notes, *contract.not_run):
        console.say(note, "yellow")


@contracts.command("diff")
def diff(
    old: Annotated[str, typer.Argument(help="the contract as it was", metavar="OLD", show_default=False)],
    new: Annotated[str, typer.Argument(help="the contract as it is to be", metavar="NEW", show_default=False)],
    only: Annotated[list[Side] | None, typer.Option("--only", help="judge by these alone; repeatable", show_default=False)] = None,
    json: Json = False,
) -> None:
    """Say what differs between two contracts, and whom it breaks. Exit status 1 if it breaks somebody.

    Producers break where an event that was valid may be so no longer, consumers where events may come that couldn't before, the table where
    it has to be altered.

    \b
    Examples:
      git show main:contracts/events.yaml > old.yaml && factory contracts diff old.yaml contracts/events.yaml
      factory contracts diff old.yaml new.yaml --only consumers
    """
    from factory_agents.contracts import load_contract
    from factory_agents.contracts.diff import diff_contracts

    before, after = load_contract(old), load_contract(new)
    changes = diff_contracts(before, after)
    judged = set(only or Side)
    broken = [change for change in changes if judged & {Side(side) for side in change.breaks}]
    if console.wants_json(json):
        console.print_json({"changes": changes, "breaks": bool(broken)})
    elif not changes:
        console.say("the same in meaning")
    else:
        console.print_table(["what", "change", "breaks"], [[c.what, c.text, ", ".join(c.breaks) or "nobody"] for c in changes])
        if broken and before.version == after.version:
            console.say(f"{_many(len(broken), 'breaking change')}, and the version is still {after.version}", "yellow")
    raise typer.Exit(1 if broken else 0)


@contracts.command("test")
def try_(
    contract: _File,
    topic: Annotated[str, typer.Option("--topic", help="records of this topic", metavar="TOPIC", show_default=False)] = "",
    last: Annotated[
        int, typer.Option("--last", help="the last so many of its records, of each partition as many", metavar="N", min=1)
    ] = 10_000,
    since: Annotated[str | None, typer.Option("--since", help="in place of --last: from this time", metavar="TIME")] = None,
    until: Annotated[str | None, typer.Option("--until", help="with --since: the end of the interval", metavar="TIME")] = None,
    file: Annotated[
        str, typer.Option("--file", help="records of a file of JSON lines; - is standard input", metavar="FILE", show_default=False)
    ] = "",
    fail_if: Annotated[
        list[str] | None, typer.Option("--fail-if", help="another condition, such as 'rejected > 0'; repeatable", metavar="CONDITION")
    ] = None,
    codec: Annotated[str, setting("input_codec")] = "",
    prefix: Annotated[str, setting("prefix")] = _DEFAULTS.prefix,
    bootstrap: Bootstrap = None,
    kafka_settings: KafkaSettings = None,
    json: Json = False,
) -> None:
    """Run a contract over records that are there already, and write nothing. Exit status 1 if a fail_if condition is broken.

    \b
    Examples:
      factory contracts test contracts/events.yaml --topic raw_events --last 1000
      factory contracts test shop.odcs.yaml#orders --topic orders --since 2026-11-01T04:00 --until 2026-11-01T05:00
      factory contracts test contracts/events.yaml --file events.jsonl --fail-if 'rejected > 0'
    """
    from factory_agents import trial
    from factory_agents.contracts import judge, load_contract
    from factory_agents.kafka.record_times import why_empty
    from factory_agents.protocol import Interval
    from factory_agents.runtime.loading import working_directory_first

    if bool(topic) == bool(file):
        raise ConfigurationError("expected either --topic or --file")
    if (since is None) != (until is None) or (since and file):
        raise ConfigurationError("--since and --until go together, with --topic")
    loaded = load_contract(contract)
    interval = Interval(parse_time(since, "--since"), parse_time(until, "--until")) if since and until else None
    if file:
        batches = trial.lines_of(file)
    else:
        config = kafka_config(bootstrap, kafka_settings or ())
        window = trial.window_of(config, topic, interval, prefix=prefix) if interval else trial.last_records(config, topic, last)
        batches = trial.records_of(config, window, codec)
    with working_directory_first():
        report = trial.try_contract(loaded, batches, interval)
    verdict = judge(report, fail_if or ())
    hint = why_empty(config, topic, interval) if interval and not report["rows"] else ""
    if console.wants_json(json):
        console.print_json({**report, "checks": verdict.checks, "outcome": verdict.outcome, "notes": [hint] * bool(hint)})
    else:
        if hint:
            console.say(hint, "yellow")
        for line in verdict.lines:
            console.say(line.text, {"fail": "red", "warn": "yellow"}.get(line.outcome, ""))
    raise typer.Exit(1 if verdict.outcome == "fail" else 0)


@contracts.command("export")
def export(file: _File, output: _Output = "-") -> None:
    """Write a contract as one of the Open Data Contract Standard, version 3.2.0, that is read back the same.

    \b
    Example:
      factory contracts export contracts/events.yaml -o events.odcs.yaml
    """
    from factory_agents.contracts import load_contract, split_name
    from factory_agents.contracts.odcs_export import export_odcs
    from factory_agents.paths import resolve_path

    folder = resolve_path(split_name(file)[0], "contract").parent.absolute()
    _write(output, export_odcs(load_contract(file), folder), ())


@contracts.command("import")
def import_(file: _File, output: _Output = "-") -> None:
    """Write a contract of any notation in the short form; what is not run stands above it as comments.

    \b
    Example:
      factory contracts import shop.odcs.yaml#orders -o contracts/orders.yaml
    """
    from factory_agents.contracts import load_contract
    from factory_agents.contracts.odcs_export import short_form

    contract = load_contract(file)
    _write(output, short_form(contract), (*contract.notes, *contract.not_run))


def _write(output: str, data: Any, comments: tuple[str, ...]) -> None:
    from factory_agents.contracts.documents import dump_yaml
    from factory_agents.text import printable

    text = "".join(f"# {printable(line)}\n" for line in comments) + dump_yaml(data)
    if output == "-":
        typer.echo(text, nl=False)
        return
    try:
        Path(output).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"--output {output}: cannot be written: {error.strerror or error}") from error
