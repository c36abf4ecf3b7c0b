"""The command that runs an agent, for ``factory agent run NAME`` and ``python -m factory_agents.<agent>`` alike."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from factory_agents import console
from factory_agents.errors import TooManyRejectedError
from factory_agents.options import (
    AGENT_PARAMETERS,
    Resolved,
    declared,
    flag_of,
    kafka_config,
    parse_assignments,
    read_params_file,
    read_settings_file,
    resolve,
)
from factory_agents.text import printable

if TYPE_CHECKING:
    from factory_agents.launch import LiveResult
    from factory_agents.protocol import AgentResult, Counts, Reason

__all__ = ["Bootstrap", "Json", "KafkaSettings", "SettingsPath", "invoke", "run_agent", "run_built_in"]


def _option(name: str, *flags: str, metavar: str = "") -> Any:
    """The option of a declared setting, with the help that stands there."""
    key = declared()[name]
    text = key.help + (f" [{key.env}]" if key.env else "")
    return typer.Option(*(flags or (flag_of(name),)), help=text, metavar=metavar or None, show_default=False)


Bootstrap = Annotated[
    str | None,
    typer.Option("--bootstrap", "-b", help="Kafka brokers, host:port[,host:port] [KAFKA_BOOTSTRAP]", metavar="HOSTS", show_default=False),
]
KafkaSettings = Annotated[
    list[str] | None,
    typer.Option(
        "-X", help="a librdkafka setting, key=value; repeatable [KAFKA_CONFIG, KAFKA_CONFIG_FILE]", metavar="KEY=VALUE", show_default=False
    ),
]
SettingsPath = Annotated[
    str | None,
    typer.Option("--config", help="YAML or JSON file with any of these settings [FACTORY_CONFIG]", metavar="FILE", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="JSON on standard output (the default where that is no terminal)")]


def _param(name: str, metavar: str) -> Any:
    known = AGENT_PARAMETERS[name]
    text = f"{', '.join(known.agents)}: {known.help}" + (f" [{known.env}]" if known.env else "")
    return typer.Option(flag_of(name), help=text, metavar=metavar, show_default=False)


def run_agent(  # one parameter an option
    name: Annotated[
        str, typer.Argument(help="ingest, enrich, validate, publish, or your own as module:function", metavar="NAME", show_default=False)
    ],
    in_topic: Annotated[str | None, _option("in_topic", metavar="TOPIC")] = None,
    out_topic: Annotated[str | None, _option("out_topic", "--out-topic", "--topic", metavar="TOPIC")] = None,
    dead_letter_topic: Annotated[str | None, _option("dead_letter_topic", metavar="TOPIC")] = None,
    input_codec: Annotated[str | None, _option("input_codec", metavar="CODEC")] = None,
    output_codec: Annotated[str | None, _option("output_codec", metavar="CODEC")] = None,
    source: Annotated[str | None, _param("source", "FILE")] = None,
    time_field: Annotated[str | None, _param("time_field", "FIELD")] = None,
    function: Annotated[str | None, _param("function", "MODULE:FUNCTION")] = None,
    contract: Annotated[str | None, _param("contract", "FILE")] = None,
    table: Annotated[str | None, _param("table", "TABLE")] = None,
    param: Annotated[
        list[str] | None,
        typer.Option(
            "--param", "-p", help="a parameter of the agent: key=text, or key:=JSON; repeatable", metavar="KEY=VALUE", show_default=False
        ),
    ] = None,
    params_file: Annotated[
        str | None,
        typer.Option(help="YAML or JSON file with the agent's parameters; flags override it", metavar="FILE", show_default=False),
    ] = None,
    since: Annotated[str | None, _option("since", metavar="TIME")] = None,
    until: Annotated[str | None, _option("until", metavar="TIME")] = None,
    window: Annotated[str | None, _option("window", metavar="FILE")] = None,
    pipeline: Annotated[str | None, _option("pipeline", metavar="NAME")] = None,
    stage: Annotated[str | None, _option("stage", metavar="NAME")] = None,
    prefix: Annotated[str | None, _option("prefix", metavar="NAME")] = None,
    group: Annotated[str | None, _option("group", metavar="NAME")] = None,
    shard: Annotated[str | None, _option("shard", metavar="I/N")] = None,
    dry_run: Annotated[bool, _option("dry_run")] = False,
    show: Annotated[str | None, _option("show", metavar="N")] = None,
    rerun: Annotated[str | None, _option("rerun", metavar="reuse|redo")] = None,
    accept_loss: Annotated[bool, _option("accept_loss")] = False,
    max_rejected: Annotated[str | None, _option("max_rejected", metavar="LIMIT")] = None,
    keep_windows: Annotated[str | None, _option("keep_windows", metavar="TIME")] = None,
    deadline: Annotated[str | None, _option("deadline", metavar="SECONDS")] = None,
    chunk_records: Annotated[str | None, _option("chunk_records", metavar="N")] = None,
    database_url: Annotated[str | None, _option("database_url", metavar="URL")] = None,
    bootstrap: Bootstrap = None,
    kafka_settings: KafkaSettings = None,
    config: SettingsPath = None,
    json: Json = False,
) -> None:
    """Run an agent: over a window (--since and --until, or --window), else live in a consumer group until stopped.

    Every setting comes from its flag, else its environment variable (in brackets), else the --config file, else its default.

    \b
    Examples:
      factory agent run enrich --in-topic raw_events --out-topic enriched_events
      factory agent run enrich --in-topic raw_events --since 2026-11-01T04:00 --until 2026-11-01T05:00
      factory agent run my_agents.clicks:enrich --in-topic raw_events --out-topic clicks --dry-run
      factory agent run validate --window enriched.json --contract contracts/events.yaml --out-topic valid_events --json
    """
    given = locals()
    file = read_settings_file(config)
    flags = {key: given[key] or None if isinstance(given[key], bool) else given[key] for key in declared() if key in given}
    params = {key: given[key] for key in AGENT_PARAMETERS if given[key] is not None} | parse_assignments(param or (), "--param")
    resolved = resolve(name, flags, file=file, params=params, params_file=read_params_file(params_file) if params_file else None)
    from factory_agents import launch

    launch.check(name, resolved)
    kafka = kafka_config(bootstrap, kafka_settings or (), file=file)
    _Run(name, resolved, as_json=console.wants_json(json)).start(kafka)


class _Run:
    """One run as a person sees it: progress while it lasts, then its result."""

    def __init__(self, agent: str, resolved: Resolved, *, as_json: bool) -> None:
        self.agent, self.settings, self.as_json = agent, resolved.settings, as_json
        self.shown = 0

    def start(self, kafka: Any) -> None:
        import gc

        from factory_agents import launch
        from factory_agents.run import Stop
        from factory_agents.runtime.session import RunContext
        from factory_agents.telemetry import configure_logging

        live = launch.is_live(self.agent, self.settings)
        terminal = sys.stderr.isatty()
        stop = Stop()
        label = f"{self.agent}{' (live, Ctrl-C ends it)' if live else ''}"
        try:
            with console.progress(label, shown=terminal) as observer:
                configure_logging(json=not terminal, level=os.environ.get("FACTORY_LOG_LEVEL") or ("WARNING" if terminal else "INFO"))
                stop.watch_signals()
                gc.collect()
                gc.freeze()
                context = RunContext(kafka, stop=stop, observer=observer, show=self._show, examples=self.settings.show)
                if live:
                    outcome: LiveResult | AgentResult = launch.run_agent_live(context, self.agent, self.settings)
                else:
                    outcome = launch.run_agent_over_window(context, self.agent, self.settings)
        except TooManyRejectedError as error:
            if self.settings.dry_run:
                self._print_failed(error)
            raise
        self._print(outcome)

    def _show(self, topic: str, key: bytes | None, value: bytes | None) -> None:
        """A record that a dry run would write."""
        self.shown += 1
        if self.shown > self.settings.show:
            return
        out = sys.stderr if self.as_json else sys.stdout
        text = "(no value)" if value is None else printable(value.decode(errors="replace"))
        out.write(f"→ {topic or 'the sink'}  {'' if key is None else printable(key.decode(errors='replace'))}\n  {text}\n")

    def _print_failed(self, error: TooManyRejectedError) -> None:
        """What a dry run found before it failed."""
        if self.as_json:
            from factory_agents.run import failed_result

            console.print_json(failed_result(None, error))
        else:
            _print_reasons(error.reasons)

    def _print(self, outcome: LiveResult | AgentResult) -> None:
        if self.as_json:
            console.print_json(outcome)
            return
        from factory_agents.protocol import AgentResult

        if isinstance(outcome, AgentResult):
            _print_result(outcome, self.shown - self.settings.show)
        else:
            console.say(f"{outcome.agent} in group {outcome.group}: stopped after {outcome.seconds:.1f} s", "bold")
            _print_counts(outcome.counts)


def _print_result(result: AgentResult, more: int) -> None:
    if more > 0:
        console.say(f"… and {more:,} more")
    state = "dry run" if result.dry_run else "done before" if result.reused else "resumed and done" if result.resumed else "done"
    target = result.table or (result.manifest.topic if result.manifest is not None else "")
    source = result.input.topic if result.input is not None else ""
    console.say(f"{result.stage} {result.key}: {state} in {result.seconds:.1f} s", "bold")
    if source or target:
        console.say(f"{source or 'source'} → {target or 'nothing (dry run)' if result.dry_run else target}")
    _print_counts(result.counts)
    for note in result.notes:
        console.say(note, "yellow")
    _print_reasons(result.reasons)
    if result.dead_letters is not None:
        console.say(f"why events were rejected: factory dead-letters list {result.dead_letters.topic}", "yellow")


def _print_reasons(reasons: Sequence[Reason]) -> None:
    """Why a dry run rejected events."""
    from factory_agents.runtime.reasons import reason_lines

    if reasons:
        console.say("rejected, with nothing written (dry run):", "yellow")
    for line in reason_lines(reasons):
        console.say(f"  {line}")


def _print_counts(counts: Counts) -> None:
    import msgspec

    figures = {k: v for k, v in msgspec.structs.asdict(counts).items() if v or k in ("consumed", "forwarded", "rejected")}
    console.print_table(["count", "records"], list(figures.items()), right=["records"])


def invoke(app: Callable[..., Any], program: str) -> int:
    """Run a Typer app: its exit status, with a mistyped command line told in one line. The status goes to ``sys.exit``."""
    usage_error: type[Exception] = typer.BadParameter.__mro__[1]  # Typer brings Click along since 0.29 and depends on it before

    def command() -> object:
        try:
            return app(prog_name=program, standalone_mode=False)
        except usage_error as error:
            console.error_line(f"{error.format_message()} (see {_path_of(error, program)} --help)")  # type: ignore[attr-defined]
            return console.EXIT_USAGE
        except typer.Exit as error:
            return error.exit_code
        except typer.Abort:
            return console.EXIT_INTERRUPTED

    return console.guarded(command)


def _path_of(error: Any, program: str) -> str:
    context = getattr(error, "ctx", None)
    return context.command_path if context is not None else program


def run_built_in(name: Literal["ingest", "enrich", "validate", "publish"]) -> None:
    """``python -m factory_agents.<name>``: the agent with its name filled in. Never returns."""
    app = typer.Typer(rich_markup_mode=None, add_completion=False)
    program = f"python -m factory_agents.{name}"

    def command(**flags: Any) -> None:
        run_agent(name, **flags)

    import inspect

    signature = inspect.signature(run_agent, eval_str=True)
    command.__signature__ = signature.replace(parameters=[p for k, p in signature.parameters.items() if k != "name"])  # type: ignore[attr-defined]
    command.__doc__ = (run_agent.__doc__ or "").replace("Run an agent:", f"Run the {name} agent:").partition("\b")[0]
    app.command()(command)
    sys.exit(invoke(app, program))
