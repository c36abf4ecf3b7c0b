"""The command that runs an agent, for ``factory agent run NAME`` and ``python -m factory_agents.<agent>`` alike."""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from factory_agents import console
from factory_agents.errors import TooManyRejectedError
from factory_agents.options import (
    AGENT_PARAMETERS,
    AgentSettings,
    declared,
    flag_of,
    kafka_config,
    parse_assignments,
    read_params_file,
    read_settings_file,
    resolve,
)
from factory_agents.text import did_you_mean, printable

if TYPE_CHECKING:
    from factory_agents.launch import LiveResult
    from factory_agents.protocol import AgentResult, Counts, Reason
    from factory_agents.telemetry import Observer

__all__ = [
    "Bootstrap",
    "Json",
    "KafkaSettings",
    "SettingsPath",
    "invoke",
    "run_agent",
    "run_built_in",
    "setting",
    "start_agent",
    "surroundings",
]


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


def setting(name: str) -> Any:
    """The option of a declared setting for a command that has a few of them: its flag, else its environment variable, else its default."""
    key = declared()[name]
    return typer.Option(*key.flags, help=key.help, envvar=key.env or None, metavar=key.metavar)


def _setting_flags() -> Iterator[tuple[str, Any, Any]]:
    """Name, annotation and default of each flag of ``agent run``: the declared settings, with the agent's own parameters among them."""
    for name, key in declared().items():
        if name == "params":
            yield from _parameter_flags()
            continue
        type_, default = (bool, False) if key.type is bool else (str | None, None)
        yield name, Annotated[type_, typer.Option(*key.flags, help=key.text, metavar=key.metavar or None, show_default=False)], default


def _parameter_flags() -> Iterator[tuple[str, Any, Any]]:
    for name, known in AGENT_PARAMETERS.items():
        text = f"{', '.join(known.agents)}: {known.help}" + (f" [{known.env}]" if known.env else "")
        yield name, Annotated[str | None, typer.Option(flag_of(name), help=text, metavar=known.metavar, show_default=False)], None
    text = "a parameter of the agent: key=text, or key:=JSON; repeatable"
    yield "param", Annotated[list[str] | None, typer.Option("--param", "-p", help=text, metavar="KEY=VALUE", show_default=False)], None
    text = "YAML or JSON file with the agent's parameters; flags override it"
    yield "params_file", Annotated[str | None, typer.Option(help=text, metavar="FILE", show_default=False)], None


def _with_setting_flags(command: Callable[..., None]) -> Callable[..., None]:
    """The command with every flag that ``**given`` takes in its signature, where Typer looks."""
    own = list(inspect.signature(command, eval_str=True).parameters.values())
    kind = inspect.Parameter.KEYWORD_ONLY
    flags = [inspect.Parameter(name, kind, default=default, annotation=type_) for name, type_, default in _setting_flags()]
    first = [p for p in own if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    last = [p for p in own if p.kind is kind]
    command.__signature__ = inspect.Signature([*first, *flags, *last])  # type: ignore[attr-defined]
    return command


@_with_setting_flags
def run_agent(
    name: Annotated[
        str,
        typer.Argument(
            help="ingest, replicate, enrich, infer, validate, publish, or your own as module:function", metavar="NAME", show_default=False
        ),
    ],
    *,
    bootstrap: Bootstrap = None,
    kafka_settings: KafkaSettings = None,
    config: SettingsPath = None,
    json: Json = False,
    **given: Any,
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
    file = read_settings_file(config)
    flags = {key: given[key] or None if isinstance(given[key], bool) else given[key] for key in declared() if key in given}
    params = {key: given[key] for key in AGENT_PARAMETERS if given[key] is not None} | parse_assignments(given["param"] or (), "--param")
    params_file = read_params_file(given["params_file"]) if given["params_file"] else None
    resolved = resolve(name, flags, file=file, params=params, params_file=params_file)
    from factory_agents import launch

    launch.check(name, resolved)
    kafka = kafka_config(bootstrap, kafka_settings or (), file=file)
    start_agent(name, resolved.settings, kafka, as_json=console.wants_json(json))


@contextmanager
def surroundings(settings: AgentSettings) -> Iterator[None]:
    """What agents look for around them, for this command: modules of the working directory, and the database's address."""
    from factory_agents.runtime.loading import working_directory_first

    before = os.environ.get("DATABASE_URL")
    if settings.database_url:
        os.environ["DATABASE_URL"] = settings.database_url
    try:
        with working_directory_first():
            yield
    finally:
        os.environ.pop("DATABASE_URL", None)
        if before is not None:
            os.environ["DATABASE_URL"] = before


def start_agent(agent: str, settings: AgentSettings, kafka: Any, *, as_json: bool) -> None:
    """Run an agent by these settings, and print what came of it."""
    _Run(agent, settings, as_json=as_json).start(kafka)


class _Run:
    """One run as a person sees it: progress while it lasts, then its result."""

    def __init__(self, agent: str, settings: AgentSettings, *, as_json: bool) -> None:
        self.agent, self.settings, self.as_json = agent, settings, as_json
        self.shown = 0

    def start(self, kafka: Any) -> None:
        from factory_agents import launch
        from factory_agents.run import Stop, quiet_collector
        from factory_agents.runtime.session import RunContext
        from factory_agents.telemetry import Observers, configure_logging, tracing

        live = launch.is_live(self.agent, self.settings)
        terminal = sys.stderr.isatty()
        stop = Stop()
        label = f"{self.agent}{' (live, Ctrl-C ends it)' if live else ''}"
        try:
            with (
                console.progress(label, shown=terminal) as observer,
                stop.watching_signals(),
                surroundings(self.settings),
                quiet_collector(),
                console.nothing_printed() if self.as_json else nullcontext(),
            ):
                configure_logging(json=not terminal, level=os.environ.get("FACTORY_LOG_LEVEL") or ("WARNING" if terminal else "INFO"))
                with tracing("factory-agent") as traces:
                    context = RunContext(kafka, stop=stop, observer=observer, show=self._show, examples=self.settings.show, traces=traces)
                    if live:
                        with _telling(self.settings.metrics_listen) as told:
                            context.observer = Observers(observer, told)
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


@contextmanager
def _telling(listen: str) -> Iterator[Observer]:
    """An observer that serves what it is told, if an address is given."""
    from factory_agents.telemetry import Observer

    if not listen:
        yield Observer()
        return
    from factory_agents.telemetry.live import LiveTelemetry

    telemetry = LiveTelemetry(listen)
    try:
        yield telemetry
    finally:
        telemetry.close()


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
        for argument in sys.argv[1:]:
            if not argument.isascii() and any(0xD800 <= ord(character) <= 0xDFFF for character in argument):  # a byte that is no text
                console.error_line(f"argument {argument!a}: expected text in UTF-8")
                return console.EXIT_USAGE
        try:
            return app(prog_name=program, standalone_mode=False)
        except usage_error as error:
            if type(error).__name__ == "NoArgsIsHelpError":  # nothing was mistyped: a group was named without a command
                sys.stderr.write(f"{error.format_message()}\n")  # type: ignore[attr-defined]
                return console.EXIT_USAGE
            said = f"{error.format_message().rstrip('.')}{_meant(error)}"  # type: ignore[attr-defined]
            console.error_line(f"{said} (see {_path_of(error, program)} --help)")
            return console.EXIT_USAGE
        except typer.Exit as error:
            return error.exit_code
        except typer.Abort:
            return console.EXIT_INTERRUPTED

    return console.guarded(command)


def _meant(error: Any) -> str:
    """The choice that was likely meant, for a value that is none."""
    found = re.search(r"'([^']*)' is not one of ('.*')", error.format_message())
    return did_you_mean(found[1], re.findall(r"'([^']*)'", found[2])) if found is not None else ""


def _path_of(error: Any, program: str) -> str:
    context = getattr(error, "ctx", None)
    return context.command_path if context is not None else program


def run_built_in(name: Literal["ingest", "replicate", "enrich", "infer", "validate", "publish"]) -> None:
    """``python -m factory_agents.<name>``: the agent with its name filled in. Never returns."""
    app = typer.Typer(rich_markup_mode=None, add_completion=False)
    program = f"python -m factory_agents.{name}"

    def command(**flags: Any) -> None:
        run_agent(name, **flags)

    signature = inspect.signature(run_agent)
    command.__signature__ = signature.replace(parameters=[p for k, p in signature.parameters.items() if k != "name"])  # type: ignore[attr-defined]
    command.__doc__ = (run_agent.__doc__ or "").replace("Run an agent:", f"Run the {name} agent:").partition("\b")[0]
    app.command()(command)
    sys.exit(invoke(app, program))
