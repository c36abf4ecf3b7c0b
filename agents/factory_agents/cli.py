"""The ``factory`` command: a thin skin over the rest, which is imported where a command needs it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from factory_agents import __version__, console
from factory_agents.commands import Bootstrap, Json, KafkaSettings, invoke, run_agent, setting
from factory_agents.contract_commands import contracts
from factory_agents.letter_commands import letters
from factory_agents.model_commands import answers, evaluations
from factory_agents.options import AgentSettings, kafka_config
from factory_agents.replicate_commands import replicate
from factory_agents.rollout_commands import diff_agents, live, rollout
from factory_agents.sink_commands import sinks
from factory_agents.temporal.commands import temporal
from factory_agents.text import one_of

__all__ = ["app", "main"]


def _group(help_: str) -> typer.Typer:
    return typer.Typer(help=help_, rich_markup_mode=None, no_args_is_help=True)


app = _group("Run agents over Kafka; see to topics, windows, lag and dead letters.")
agents = _group("Run agents.")
topics = _group("Create and check the topics that a file declares.")
windows = typer.Typer(rich_markup_mode=None, invoke_without_command=True)
ledgers = _group("A pipeline's ledger as a file: moved to another cluster, or restored.")
metrics_ = _group("Counters and lag for Prometheus.")
schemas = _group("Schemas in a registry: register them, and check what may be registered.")
sandboxes = _group("Kafka, PostgreSQL, emulators of BigQuery and Snowflake, Temporal and Prometheus on this machine.")
app.add_typer(agents, name="agent")
app.add_typer(topics, name="topics")
app.add_typer(contracts, name="contracts")
app.add_typer(windows, name="windows")
app.add_typer(ledgers, name="ledger")
app.add_typer(letters, name="dead-letters")
app.add_typer(metrics_, name="metrics")
app.add_typer(schemas, name="schemas")
app.add_typer(sandboxes, name="sandbox")
app.add_typer(sinks, name="sinks")
app.add_typer(temporal, name="temporal")
app.add_typer(rollout, name="rollout")
app.add_typer(live, name="live")
app.add_typer(replicate, name="replicate")
app.add_typer(answers, name="answers")
app.add_typer(evaluations, name="eval")

agents.command("run")(run_agent)
agents.command("diff")(diff_agents)

_DEFAULTS = AgentSettings()
_Prefix = Annotated[str, setting("prefix")]


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="show the version")] = False) -> None:
    if version:
        typer.echo(f"factory {__version__}")
        raise typer.Exit


@app.command("init")
def init(
    folder: Annotated[
        Path, typer.Argument(help="the project's folder, made where it isn't there", metavar="[FOLDER]", show_default=True)
    ] = Path(),
    json: Json = False,
) -> None:
    """Start a project: a pipeline of four stages over a file of orders, with an agent, its test, a contract and topics.

    It runs as it is; its README says how. Nothing that is there is overwritten.

    \b
    Examples:
      factory init shop && cd shop
      factory init
    """
    from factory_agents.new_project import create_project

    new = create_project(folder)
    if console.wants_json(json):
        console.print_json({"folder": str(folder), "new": new})
        return
    for path in new:
        console.say(f"{folder / path}")
    console.say(f"{len(new)} files are new; {folder / 'README.md'} says how to run it" if new else "all files are there already")


@topics.command("apply")
def topics_apply(
    file: Annotated[str, typer.Argument(help="the topics file", metavar="[FILE]", show_default=True)] = "include/topics.yaml",
    check: Annotated[bool, typer.Option("--check", help="change nothing; exit with 2 if the cluster differs from the file")] = False,
    fix: Annotated[bool, typer.Option("--fix", help="add partitions and alter settings where topics differ")] = False,
    replication: Annotated[
        int | None, typer.Option(help="replicas of new topics, instead of the file's", envvar="FACTORY_REPLICATION", metavar="N", min=1)
    ] = None,
    prefix: _Prefix = _DEFAULTS.prefix,
    bootstrap: Bootstrap = None,
    kafka_settings: KafkaSettings = None,
    json: Json = False,
) -> None:
    """Create the topics that are missing and report how the others differ from the file.

    The factory's own (ledger, answer log and control topic) are made, too.

    \b
    Examples:
      factory topics apply
      factory topics apply include/topics.yaml --check
      factory topics apply --fix --replication 1
    """
    from factory_agents.topics_file import apply_topics, read_topics

    wanted = read_topics(file, replication=replication)
    report = apply_topics(kafka_config(bootstrap, kafka_settings or ()), wanted, prefix=prefix, change=not check, fix=fix)
    if console.wants_json(json):
        console.print_json(report)
    else:
        for warning in report.warnings:
            console.say(f"warning: {warning}", "yellow")
        console.print_table(
            ["topic", "state"], [[t.name, t.state] for t in report.topics], title=f"{len(report.topics)} topics at {report.bootstrap}"
        )
        if report.drift:
            console.print_table(
                ["topic", "setting", "wanted", "found", ""],
                [[d.topic, d.setting, d.wanted, d.found, "fixed" if d.fixed else d.hint] for d in report.drift],
                title="drift",
            )
    raise typer.Exit(2 if check and report.differs else 0)


@app.command("lag")
def lag(
    group: Annotated[str | None, typer.Argument(help="a consumer group", metavar="[GROUP]", show_default=False)] = None,
    topic: Annotated[
        list[str] | None, typer.Option("--topic", help="a topic; repeatable; without GROUP, every group that reads it", metavar="TOPIC")
    ] = None,
    pipeline: Annotated[str | None, typer.Option(help="a pipeline's windows, instead of a group", metavar="NAME")] = None,
    by_partition: Annotated[bool, typer.Option("--partitions", help="one line for each partition")] = False,
    prefix: _Prefix = _DEFAULTS.prefix,
    bootstrap: Bootstrap = None,
    kafka_settings: KafkaSettings = None,
    json: Json = False,
) -> None:
    """Show how far readers are behind.

    The lag of one consumer group, of every group that reads a topic, or of a pipeline's windows. This joins no group and commits nothing.

    \b
    Examples:
      factory lag factory.enrich.raw_events
      factory lag --topic raw_events
      factory lag --pipeline software_factory_pipeline
    """
    from factory_agents.kafka.lag import lag_of, lag_totals

    rows = lag_of(kafka_config(bootstrap, kafka_settings or ()), group=group, topics=topic, pipeline=pipeline, prefix=prefix)
    if console.wants_json(json):
        console.print_json([{"reader": reader, **_fields(row)} for reader, lags in rows.items() for row in lags])
    elif by_partition:
        console.print_table(
            ["reader", "topic", "partition", "committed", "end", "lag"],
            [
                [reader, r.topic, r.partition, "none" if r.committed is None else r.committed, r.end, r.lag]
                for reader, lags in rows.items()
                for r in lags
            ],
            right=["partition", "committed", "end", "lag"],
        )
    else:
        console.print_table(
            ["reader", "topic", "partitions", "lag", "worst", "worst partition"],
            [[t.reader, t.topic, t.partitions, t.lag, t.worst, t.worst_partition] for t in lag_totals(rows)],
            right=["partitions", "lag", "worst", "worst partition"],
        )


def _fields(row: Any) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(row)


@windows.callback()
def windows_list(
    context: typer.Context,
    pipeline: Annotated[str, typer.Option(help="only this pipeline's", metavar="NAME", show_default=False)] = "",
    limit: Annotated[int, typer.Option(help="most windows to show; 0 for all", metavar="N", min=0)] = 50,
    prefix: _Prefix = _DEFAULTS.prefix,
    bootstrap: Bootstrap = None,
    kafka_settings: KafkaSettings = None,
    json: Json = False,
) -> None:
    """List windows and how far each stage got.

    Failed ones come first, with the reason; then unfinished ones (planned but not started, or missing a stage that the pipeline's other
    windows have); then intervals that no run covers. "≤" before a number of records: it includes transaction markers.

    \b
    Examples:
      factory windows
      factory windows --pipeline software_factory_pipeline --json
      factory windows prune --dry-run
    """
    if context.invoked_subcommand is not None:
        _refuse_options_before(context)
        return
    from factory_agents.kafka.windows import read_windows

    config = kafka_config(bootstrap, kafka_settings or ())
    found = read_windows(config, pipeline=pipeline, prefix=prefix)
    shown = found[:limit] if limit else found
    if console.wants_json(json):
        console.print_json(shown)
        return
    if not found:
        known = {w.pipeline for w in read_windows(config, prefix=prefix)} if pipeline else set()
        console.say(f"no windows of pipeline {pipeline!r}{one_of(pipeline, sorted(known))}" if known else "no windows are planned yet")
        return
    console.print_table(
        ["window (UTC)", "pipeline", "records", "state", "stages", "age"],
        [[w.when, w.pipeline, w.records_text, _state_of(w.state), [s.summary for s in w.stages], w.age_text] for w in shown],
        right=["records"],
    )
    if len(shown) < len(found):
        console.say(f"{len(found) - len(shown):,} more: --limit 0 shows all")


def _refuse_options_before(context: typer.Context) -> None:
    """An option of the list that stands before another command would be passed over."""
    for name in context.params:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise typer.BadParameter(f"--{name.replace('_', '-')}: put it behind {context.invoked_subcommand!r}")


@windows.command("prune")
def windows_prune(
    pipeline: Annotated[str, typer.Option(help="only this pipeline's; without it all pipelines'", metavar="NAME", show_default=False)] = "",
    before: Annotated[
        str | None, typer.Option(help="windows that end by this time, in place of --keep-windows", metavar="TIME", show_default=False)
    ] = None,
    keep_windows: Annotated[str, setting("keep_windows")] = _DEFAULTS.keep_windows,
    unfinished: Annotated[bool, typer.Option("--unfinished", help="with --before: windows that are not finished, too")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would be forgotten; change nothing")] = False,
    prefix: _Prefix = _DEFAULTS.prefix,
    bootstrap: Bootstrap = None,
    kafka_settings: KafkaSettings = None,
    json: Json = False,
) -> None:
    """Forget old windows: what was planned and done goes from the ledger, and such windows are refused from then on.

    Planners do it by themselves. What later windows need stays. It may be killed at any point and run again, beside planners and agents.

    \b
    Examples:
      factory windows prune --dry-run
      factory windows prune --pipeline software_factory_pipeline --before 2026-10-01
      factory windows prune --keep-windows '90 d' --json
    """
    from factory_agents.kafka.pruner import pipelines_of, prune_pipeline
    from factory_agents.options import parse_time

    config = kafka_config(bootstrap, kafka_settings or ())
    until = parse_time(before, "--before") if before else None
    done = []
    for name in [pipeline] if pipeline else pipelines_of(config, prefix=prefix):
        with console.counting(f"pruning {name}") as progress:
            done.append(
                prune_pipeline(
                    config, name, prefix=prefix, keep=keep_windows, before=until, unfinished=unfinished, dry_run=dry_run, progress=progress
                )
            )
    if console.wants_json(json):
        console.print_json(done)
        return
    console.print_table(
        ["pipeline", "windows", "of them unfinished", "records", "first", "last", "what stays"],
        [
            [d.pipeline, d.windows, d.unfinished_windows, d.records, d.first, d.last, [*(f"{k.window}: {k.why}" for k in d.kept), *d.notes]]
            for d in done
        ],
        right=["windows", "of them unfinished", "records"],
        title="would be forgotten" if dry_run else "forgotten",
    )


@windows.command("report")
def windows_report(
    pipeline: Annotated[str, typer.Argument(help="the pipeline, as factory windows shows it", metavar="PIPELINE", show_default=False)],
    stage: Annotated[str, typer.Option(help="its validate stage, where it has several", metavar="NAME", show_default=False)] = "",
    window: Annotated[
        str,
        typer.Option(
            help="a window, by the start of its name such as 2026-11-01T04; without it the newest", metavar="WINDOW", show_default=False
        ),
    ] = "",
    html: Annotated[Path | None, typer.Option(help="write a page that needs nothing else", metavar="FILE", show_default=False)] = None,
    prefix: _Prefix = _DEFAULTS.prefix,
    bootstrap: Bootstrap = None,
    kafka_settings: KafkaSettings = None,
    json: Json = False,
) -> None:
    """Show the validation report of a window: the figures, what was broken how often, the first rejected events, and the trend.

    \b
    Examples:
      factory windows report software_factory_pipeline
      factory windows report software_factory_pipeline --window 2018-07-06T09 --html report.html
    """
    from factory_agents import reports

    found = reports.read_reports(kafka_config(bootstrap, kafka_settings or ()), pipeline, stage=stage, prefix=prefix)
    shown = reports.chosen(found, pipeline, window)
    if html is not None:
        html.write_text(reports.html_page(shown, found), encoding="utf-8")
        console.say(f"{shown.outcome}: {html}")
    elif console.wants_json(json):
        console.print_json({"pipeline": shown.pipeline, "stage": shown.stage, "window": shown.window, **shown.report})
    else:
        typer.echo(reports.markdown(shown), nl=False)


def _state_of(state: str) -> str:
    return "no run" if state == "uncovered" else state


@app.command("doctor")
def doctor(
    topics_file: Annotated[str, typer.Option("--topics", help="the topics file", metavar="FILE")] = "include/topics.yaml",
    prefix: _Prefix = _DEFAULTS.prefix,
    bootstrap: Bootstrap = None,
    kafka_settings: KafkaSettings = None,
    json: Json = False,
) -> None:
    """Check what the factory needs. Kafka, topics, database, clocks and, where configured, Airflow; exit status 1 if a check fails.

    \b
    Examples:
      factory doctor
      eval "$(factory sandbox env --airflow)" && factory doctor
    """
    from factory_agents.doctor import examine

    found = examine(lambda: kafka_config(bootstrap, kafka_settings or ()), topics=topics_file, prefix=prefix)
    if console.wants_json(json):
        console.print_json(found)
    else:
        for finding in found:
            console.say(f"{_MARKS[finding.state]} {finding.part}: {finding.text}", _STYLES[finding.state])
            if finding.todo:
                console.say(f"    {finding.todo}")
    raise typer.Exit(1 if any(finding.state == "fail" for finding in found) else 0)


_MARKS = {"ok": "✓", "warn": "!", "fail": "✗", "skip": "-"}
_STYLES = {"ok": "", "warn": "yellow", "fail": "red", "skip": "dim"}


@ledgers.command("export")
def ledger_export(
    pipeline: Annotated[str, typer.Option(help="whose ledger", metavar="NAME", show_default=False)],
    output: Annotated[str, typer.Option("--output", "-o", help="the file; - is standard output", metavar="FILE")] = "-",
    places: Annotated[
        bool,
        typer.Option(
            "--places/--no-places",
            help="note which records lie at its offsets, so that an import finds them in copies of the topics; reads those records",
        ),
    ] = True,
    prefix: _Prefix = _DEFAULTS.prefix,
    bootstrap: Bootstrap = None,
    kafka_settings: KafkaSettings = None,
) -> None:
    """Write what a pipeline has planned and done to a file of JSON lines.

    \b
    Example:
      factory ledger export --pipeline software_factory_pipeline -o ledger.jsonl
    """
    from factory_agents.kafka.transfer import export_ledger, write_lines

    config = kafka_config(bootstrap, kafka_settings or ())
    with console.counting("looking at offsets") as progress:
        written = write_lines(output, export_ledger(config, pipeline, prefix=prefix, places=places, progress=progress))
    if output != "-":  # the first line is about the file
        console.say(f"{written - 1:,} records of pipeline {pipeline!r} are in {output}")


@ledgers.command("import")
def ledger_import(
    file: Annotated[str, typer.Argument(help="an exported ledger; - is standard input", metavar="FILE")],
    offsets: Annotated[
        str | None,
        typer.Option(
            help="JSON that tells, for copies of topics, which offsets there and here are the same place, where records don't tell: "
            '{"raw_events": {"0": [[0, 0], [500, 480]]}}',
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would be written; write nothing")] = False,
    prefix: _Prefix = _DEFAULTS.prefix,
    bootstrap: Bootstrap = None,
    kafka_settings: KafkaSettings = None,
    json: Json = False,
) -> None:
    """Write an exported ledger into this cluster's: all of it or nothing, and once however often it is run.

    Refused over other work of the pipeline, and where an offset can't be translated. Stop the pipeline before the export.

    \b
    Examples:
      factory ledger import ledger.jsonl --dry-run
      factory ledger import ledger.jsonl --offsets offsets.json
    """
    from factory_agents.kafka.transfer import import_ledger, read_lines, read_offset_maps

    maps = read_offset_maps(offsets) if offsets else None
    lines = read_lines(file)
    with console.counting("filling the ledger up") as progress:
        done = import_ledger(
            kafka_config(bootstrap, kafka_settings or ()), lines, prefix=prefix, offsets=maps, dry_run=dry_run, progress=progress
        )
    if console.wants_json(json):
        console.print_json(done)
        return
    what = "would be written" if dry_run else "written" if done.records else "all of it is there already; 0 written"
    console.say(
        f"{done.pipeline}: {done.records:,} records {what}, {done.translated:,} translated, {done.left_out:,} of unfinished work left out"
    )


@metrics_.command("serve")
def metrics_serve(
    listen: Annotated[
        str,
        typer.Option("--listen", help="address to answer at; a port alone is on loopback", metavar="HOST:PORT"),
    ] = "127.0.0.1:9108",
    groups: Annotated[
        str, typer.Option("--groups", help="consumer groups whose lag is told: a regular expression", metavar="REGEX")
    ] = ".*",
    topics: Annotated[str, typer.Option("--topics", help="topics whose lag is told: a regular expression", metavar="REGEX")] = ".*",
    partitions: Annotated[bool, typer.Option("--partitions/--no-partitions", help="lag of each partition, or of a topic in all")] = True,
    every: Annotated[float, typer.Option("--every", help="seconds between two looks at lag", metavar="SECONDS", min=1.0)] = 15.0,
    group: Annotated[
        str | None, typer.Option("--group", help="group that keeps how far was counted; by default PREFIX.metrics", metavar="NAME")
    ] = None,
    prefix: _Prefix = "factory",
    bootstrap: Bootstrap = None,
    kafka_settings: KafkaSettings = None,
) -> None:
    """Serve counters of what the ledger tells, and lag, for Prometheus, until stopped.

    Counters begin at 0 with each start and count what was not shown before, so that their increases add up to what the ledger holds.
    Run one of it.

    \b
    Examples:
      factory metrics serve
      factory metrics serve --listen 0.0.0.0:9108 --topics 'raw_.*' --no-partitions
    """
    import os
    import time

    from factory_agents.metrics.lags import LagChoice
    from factory_agents.metrics.server import MetricsServer
    from factory_agents.run import Stop
    from factory_agents.telemetry import configure_logging

    configure_logging(json=not sys.stderr.isatty(), level=os.environ.get("FACTORY_LOG_LEVEL") or "INFO", service="factory-metrics")
    choice = LagChoice(groups, topics, by_partition=partitions)
    stop = Stop()
    config = kafka_config(bootstrap, kafka_settings or ())
    server = MetricsServer(config, listen=listen, prefix=prefix, group=group or "", every=every, lag=choice)
    with stop.watching_signals():
        server.start()
        while not stop():
            time.sleep(0.1)
        server.close()


class _With(StrEnum):
    bigquery = "bigquery"
    snowflake = "snowflake"
    temporal = "temporal"
    registry = "registry"
    model = "model"
    observability = "observability"


class _Compatibility(StrEnum):
    backward = "backward"
    forward = "forward"
    full = "full"


_Subject = Annotated[str, typer.Argument(help="the subject, such as orders-value", metavar="SUBJECT")]
_SchemaFile = Annotated[str, typer.Argument(help="the schema: *.avsc, *.json or *.proto", metavar="FILE")]
_References = Annotated[
    list[str] | None,
    typer.Option("--reference", help="another schema that it uses, NAME=SUBJECT:VERSION; repeatable", metavar="REF", show_default=False),
]


@schemas.command("register")
def schemas_register(
    subject: _Subject,
    file: _SchemaFile,
    reference: _References = None,
    normalize: Annotated[bool, typer.Option("--normalize", help="one that means the same as a version is that version")] = False,
    json: Json = False,
) -> None:
    """Make a file's schema the newest version of a subject. One that is there already stays as it is.

    The registry is that of SCHEMA_REGISTRY_URL. Exit status 1 where it refuses the schema.

    \b
    Example:
      factory schemas register orders-value schemas/order.avsc
    """
    from factory_agents.codecs.registry import RegistryConfig
    from factory_agents.codecs.subjects import Subjects, parse_references

    done = Subjects(RegistryConfig.from_env()).register(subject, file, parse_references(reference or ()), normalize=normalize)
    if console.wants_json(json):
        console.print_json(done)
    else:
        console.say(f"{done.subject}: version {done.version}, id {done.id}")


@schemas.command("check")
def schemas_check(
    subject: _Subject,
    file: _SchemaFile,
    reference: _References = None,
    compatibility: Annotated[
        _Compatibility | None, typer.Option("--compatibility", help="the rule, instead of the subject's own; for Avro without references")
    ] = None,
    json: Json = False,
) -> None:
    """Ask whether a file's schema may be the next version of a subject. Nothing is registered; exit status 1 if it may not.

    The registry is that of SCHEMA_REGISTRY_URL, and so is the rule: the subject's compatibility there, unless one is given.

    \b
    Examples:
      factory schemas check orders-value schemas/order.avsc
      factory schemas check orders-value schemas/order.avsc --compatibility full
    """
    from factory_agents.codecs.registry import RegistryConfig
    from factory_agents.codecs.subjects import Subjects, parse_references

    found = Subjects(RegistryConfig.from_env()).check(subject, file, parse_references(reference or ()), compatibility=compatibility or "")
    if console.wants_json(json):
        console.print_json(found)
    else:
        console.say(f"{found.subject}: {'compatible' if found.compatible else 'not compatible'}")
        for why in found.why:
            console.say(why, "red")
    raise typer.Exit(0 if found.compatible else 1)


@sandboxes.command("up")
def sandbox_up(
    with_: Annotated[
        list[_With] | None,
        typer.Option(
            "--with",
            help="also: bigquery (needs Python 3.13) or snowflake, emulators; temporal; registry, of schemas; model, a language model; "
            "observability (Prometheus, Alertmanager, a metrics server, and Jaeger where it is on the PATH); repeatable",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Start the sandbox, and print its addresses. Parts that run already are left alone.

    \b
    Examples:
      factory sandbox up && eval "$(factory sandbox env)"
      factory sandbox up --with bigquery --with snowflake
      factory sandbox up --with temporal
      factory sandbox up --with registry
      factory sandbox up --with model
      factory sandbox up --with observability
    """
    from factory_agents.sandbox import Sandbox

    wanted = with_ or ()
    info = Sandbox(
        with_bigquery=_With.bigquery in wanted,
        with_snowflake=_With.snowflake in wanted,
        with_temporal=_With.temporal in wanted,
        with_registry=_With.registry in wanted,
        with_model=_With.model in wanted,
        with_observability=_With.observability in wanted,
    ).up()
    if json:
        console.print_json(info.env())
        return
    console.say(f"Kafka       {info.bootstrap} (without a password: any user of this machine may use it)")
    console.say(f"PostgreSQL  {info.database_url}")
    if info.bigquery_url is not None:
        console.say(f"BigQuery    {info.bigquery_url} (an emulator, without a password too)")
    if info.temporal_address is not None:
        console.say(f"Temporal    {info.temporal_address}, its pages at {info.temporal_ui_url} (without a password too)")
    if info.snowflake_url is not None:
        console.say(f"Snowflake   {info.snowflake_url} (an emulator, without a password too; its data end with it)")
    if info.registry_url is not None:
        console.say(f"Registry    {info.registry_url} (without a password too)")
    if info.model_url is not None:
        console.say(f"Model       {info.model_url} (SmolLM2, 135M; it wants the database's password as its key)")
    if info.prometheus_url is not None:
        console.say(f"Prometheus  {info.prometheus_url} over {info.metrics_url} (without a password too)")
        console.say(f"Alerts      {info.alertmanager_url} (Alertmanager, without a password too; it sends them nowhere)")
    if info.jaeger_url is not None:
        console.say(f"Traces      {info.jaeger_url} (Jaeger, without a password too; it forgets them when it ends)")
    console.say('use it in this shell: eval "$(factory sandbox env)"')


@sandboxes.command("down")
def sandbox_down(wipe: Annotated[bool, typer.Option("--wipe", help="delete the data too")] = False) -> None:
    """Stop the sandbox. Its data stays unless --wipe is given.

    \b
    Example:
      factory sandbox down --wipe
    """
    from factory_agents.sandbox import Sandbox

    Sandbox().down(wipe=wipe)


@sandboxes.command("status")
def sandbox_status(json: Json = False) -> None:
    """Show what runs, and where. Exit status 1 unless Kafka and PostgreSQL run.

    \b
    Example:
      factory sandbox status
    """
    from factory_agents.sandbox import Sandbox

    status = Sandbox().status()
    if console.wants_json(json):
        console.print_json(status)
    else:
        parts = [("Kafka", status.kafka), ("PostgreSQL", status.postgres)]
        if status.bigquery is not None:
            parts.append(("BigQuery", status.bigquery))
        if status.temporal is not None:
            parts.append(("Temporal", status.temporal))
        if status.snowflake is not None:
            parts.append(("Snowflake", status.snowflake))
        if status.registry is not None:
            parts.append(("Registry", status.registry))
        if status.model is not None:
            parts.append(("Model", status.model))
        if status.observability is not None:
            parts.append(("Prometheus", status.observability))
        console.print_table(
            ["part", "state", "address", "process", "log"],
            [[name, "running" if p.running else "stopped", p.address or "", p.pid or "", p.log or ""] for name, p in parts],
            title=str(status.home),
        )
    raise typer.Exit(0 if status.running else 1)


@sandboxes.command("env")
def sandbox_env(
    shell: Annotated[
        str, typer.Option(help="sh (bash, zsh too), fish, or env (KEY=value lines, as --env-file reads)", metavar="SHELL")
    ] = "sh",
    airflow: Annotated[bool, typer.Option("--airflow", help="also what Airflow needs: the DAGs of this folder, metadata, a pool")] = False,
    trial: Annotated[
        bool, typer.Option("--trial", help="the same with a separate metadata database, for airflow dags test beside a scheduler")
    ] = False,
) -> None:
    """Print the variables that a shell needs. They make it use the running sandbox.

    \b
    Examples:
      eval "$(factory sandbox env)"
      eval "$(factory sandbox env --airflow)" && airflow dags list
      eval "$(factory sandbox env --trial)" && airflow dags test my_dag 2026-11-01T05:00
      factory sandbox env --shell fish | source
    """
    from factory_agents.options import export_lines
    from factory_agents.sandbox import Sandbox

    typer.echo("\n".join(export_lines(Sandbox().shell_env(airflow=airflow or trial, trial=trial), shell)))


def main() -> None:
    """The command: exits with 0, 1, 2 (a mistyped command), 75 (a later try may do) or 130 (Ctrl-C)."""
    sys.exit(invoke(app, "factory"))


def program() -> None:
    """The console script, after which nothing else runs in the process."""
    if os.getpid() == 1:  # of a container: the kernel drops what it has no handler for, and it would work on until it is killed
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # until the command has a way of its own to stop
    try:
        main()
    except SystemExit as end:
        if "temporalio" in sys.modules and isinstance(end.code, int):
            # Threads of its SDK may be giving an answer to Python at this moment; where it ends first they end the process with SIGABRT.
            with contextlib.suppress(BrokenPipeError):
                sys.stdout.flush()
            sys.stderr.flush()
            os._exit(end.code)
        raise


if __name__ == "__main__":
    program()
