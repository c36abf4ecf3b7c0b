"""``factory dead-letters``: rejected events, why they were rejected, and how they get back."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Annotated, Any

import typer

from factory_agents import console
from factory_agents.commands import Bootstrap, Json, KafkaSettings, setting
from factory_agents.errors import ConfigurationError
from factory_agents.options import AgentSettings, kafka_config, parse_assignments

if TYPE_CHECKING:
    from factory_agents.runtime.replays import ReplayResult, Through

__all__ = ["letters"]

letters = typer.Typer(help="Rejected events: see why, replay them, delete them.", rich_markup_mode=None, no_args_is_help=True)

_DEFAULTS = AgentSettings()
_Prefix = Annotated[str, setting("prefix")]
_DeadTopic = Annotated[str, typer.Argument(help="a dead-letter topic, such as enriched_events.dead", metavar="TOPIC")]
_Rule = Annotated[str | None, typer.Option("--rule", help="only letters that name this rule", metavar="RULE")]
_Stage = Annotated[str | None, typer.Option("--stage", help="only letters of this stage", metavar="STAGE")]
_LetterPipeline = Annotated[str | None, typer.Option("--pipeline", help="only letters of this pipeline, or live group", metavar="NAME")]
_LetterWindow = Annotated[str | None, typer.Option("--window", help="only letters of this window, as the list names it", metavar="WINDOW")]
_Attempt = Annotated[
    str | None,
    typer.Option("--attempt", help="only letters of these attempts: finished, unfinished, live, unknown, or all", metavar="ATTEMPT"),
]
_Since = Annotated[str | None, typer.Option("--since", help="only letters written at or after this time", metavar="TIME")]
_Until = Annotated[str | None, typer.Option("--until", help="only letters written before this time", metavar="TIME")]


@letters.command("list")
def letters_list(
    topic: _DeadTopic,
    rule: _Rule = None,
    stage: _Stage = None,
    pipeline: _LetterPipeline = None,
    window: _LetterWindow = None,
    attempt: _Attempt = None,
    since: _Since = None,
    until: _Until = None,
    prefix: _Prefix = _DEFAULTS.prefix,
    bootstrap: Bootstrap = None,
    kafka_settings: KafkaSettings = None,
    json: Json = False,
) -> None:
    """Count rejected events by reason. Also by window, attempt and stage, with an example of each.

    An attempt is finished, unfinished (running or failed), live, or unknown to the ledger (it failed and was redone, or no agent wrote it).

    \b
    Examples:
      factory dead-letters list enriched_events.dead
      factory dead-letters list validated_events.dead --rule schema --since 2026-11-01
      factory dead-letters list enriched_events.dead --pipeline clicks --attempt unfinished
    """
    from factory_agents.runtime.dead_letters import LetterTopic, group_letters

    letter_topic = LetterTopic(kafka_config(bootstrap, kafka_settings or ()), topic, prefix=prefix)
    selection = _selection(rule, stage, since, until, pipeline=pipeline or "", window=window or "", attempt=attempt or "")
    groups = group_letters(letter_topic.select(selection))
    if console.wants_json(json):
        console.print_json(groups)
        return
    console.print_table(
        ["pipeline", "window", "attempt", "stage", "rule", "error", "letters", "last (UTC)", "example"],
        [[g.pipeline, g.window, g.attempt, g.stage, g.rule, g.error, g.count, g.last[:19].replace("T", " "), g.example] for g in groups],
        right=["letters"],
        title=f"{sum(g.count for g in groups):,} dead letters in {topic}",
    )
    if letter_topic.passed_over:
        console.say(f"{letter_topic.passed_over:,} more are unknown to the ledger: --attempt all includes them", "yellow")
    if letter_topic.foreign:
        console.say(f"{letter_topic.foreign:,} records are not dead letters", "yellow")
    if not groups and (unmet := selection.unmet(letter_topic.names)):
        console.say(unmet, "yellow")
    if groups:
        console.say(f"see one: factory dead-letters show {topic} {groups[0].example}")


def _selection(rule: str | None, stage: str | None, since: str | None, until: str | None, limit: int = 0, **more: Any) -> Any:
    from factory_agents.options import parse_time
    from factory_agents.runtime.dead_letters import Selection

    return Selection(
        rule=rule or "",
        stage=stage or "",
        since=parse_time(since, "--since") if since else None,
        until=parse_time(until, "--until") if until else None,
        limit=limit,
        **more,
    )


@letters.command("show")
def letters_show(
    topic: _DeadTopic,
    position: Annotated[str, typer.Argument(help="partition@offset, such as 3@17", metavar="P@O")],
    prefix: _Prefix = _DEFAULTS.prefix,
    bootstrap: Bootstrap = None,
    kafka_settings: KafkaSettings = None,
    json: Json = False,
) -> None:
    """Show one dead letter, whole. Why it was rejected, where it came from, its key, headers and value.

    A value or key that names a schema (Avro, Protobuf, JSON Schema) is decoded by the registry at SCHEMA_REGISTRY_URL. One that
    cannot be is shown as its bytes, with the reason.

    \b
    Example:
      factory dead-letters show enriched_events.dead 3@17
    """
    from factory_agents.codecs.registry import RegistryConfig
    from factory_agents.runtime.dead_letters import LetterTopic
    from factory_agents.runtime.letter_values import LetterReader

    letter = LetterTopic(kafka_config(bootstrap, kafka_settings or ()), topic, prefix=prefix).at(position)
    data = letter.to_data(LetterReader(RegistryConfig.from_env))
    if console.wants_json(json):
        console.print_json(data)
        return
    for name, value in data.items():
        console.say(f"{name:<10} {value}" if not isinstance(value, dict) else f"{name}")
        if isinstance(value, dict):
            for inner, text in value.items():
                console.say(f"  {inner:<10} {text}")


@letters.command("replay")
def letters_replay(
    topic: _DeadTopic,
    to: Annotated[str, typer.Option("--to", help="topic to write the events to", metavar="TOPIC")],
    rule: _Rule = None,
    stage: _Stage = None,
    pipeline: _LetterPipeline = None,
    window: _LetterWindow = None,
    attempt: _Attempt = None,
    since: _Since = None,
    until: _Until = None,
    limit: Annotated[int, typer.Option(help="most letters to replay; 0 for all", metavar="N", min=0)] = 0,
    again: Annotated[bool, typer.Option("--again", help="include letters that were replayed before")] = False,
    again_as: Annotated[
        str,
        typer.Option(
            "--again-as", metavar="NAME", help="the same under a name: what was replayed under it is left out, so it may be ended and go on"
        ),
    ] = "",
    rate: Annotated[float, typer.Option("--rate", help="most events a second; 0 for no limit", metavar="N", min=0)] = 0.0,
    through: Annotated[
        str | None,
        typer.Option("--through", help="a mended agent that the events pass first: validate, or module:function", metavar="AGENT"),
    ] = None,
    param: Annotated[
        list[str] | None,
        typer.Option("--param", "-p", help="a parameter of that agent; repeatable", metavar="KEY=VALUE", show_default=False),
    ] = None,
    stop_above: Annotated[
        float | None,
        typer.Option("--stop-above", help="with --through: stop once more per cent of the events are rejected again", metavar="PERCENT"),
    ] = None,
    input_codec: Annotated[str | None, typer.Option("--input-codec", help="with --through: reads the events", metavar="CODEC")] = None,
    output_codec: Annotated[str | None, typer.Option("--output-codec", help="with --through: writes its outputs", metavar="CODEC")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would be replayed; write nothing")] = False,
    prefix: _Prefix = _DEFAULTS.prefix,
    bootstrap: Bootstrap = None,
    kafka_settings: KafkaSettings = None,
    json: Json = False,
) -> None:
    """Write rejected events to a topic again. Each exactly once, with its own key, value and headers.

    The ledger records what was replayed: a second replay takes only new letters, and is refused if there are none. Letters of failed
    attempts, and those unknown to the ledger, are left out unless --attempt includes them: a retry sees those events again.

    With --through, a mended agent or contract handles the events first, its outputs are written, and what it rejects stays a letter. It
    begins with 100 events; with --stop-above it ends (exit status 1) once too many come back.

    \b
    Examples:
      factory dead-letters replay enriched_events.dead --to raw_events --dry-run
      factory dead-letters replay enriched_events.dead --to raw_events --rule agent-error --rate 500
      factory dead-letters replay valid.dead --to mended --through validate -p contract=clicks.yaml --stop-above 5
    """
    from factory_agents.run import Stop
    from factory_agents.runtime.loading import working_directory_first
    from factory_agents.runtime.replays import replay_letters
    from factory_agents.topics_file import declared_codec

    stop = Stop()
    config = kafka_config(bootstrap, kafka_settings or ())
    selection = _selection(rule, stage, since, until, limit, pipeline=pipeline or "", window=window or "", attempt=attempt or "")
    if through is None and (param or stop_above is not None or input_codec or output_codec):
        raise ConfigurationError("--param, --stop-above, --input-codec and --output-codec are about the agent that --through names")
    way = nullcontext() if through is None else _way(through, param, to, input_codec, output_codec, stop_above)
    progress = console.progress("replay", shown=sys.stderr.isatty())
    with working_directory_first(), progress as observer, stop.watching_signals(), way as agent:
        outcome = replay_letters(
            config,
            topic,
            to,
            selection,
            prefix=prefix,
            again=again_as or again,
            dry_run=dry_run,
            rate=rate,
            through=agent,
            codec_of=declared_codec,
            stop=stop,
            observer=observer,
        )
    code = 1 if outcome.refused or outcome.stopped else 0
    if console.wants_json(json):
        console.print_json(outcome)
        raise typer.Exit(code)
    _say_replayed(outcome, again=bool(again_as or again))
    raise typer.Exit(code)


def _way(
    agent: str, param: list[str] | None, to: str, input_codec: str | None, output_codec: str | None, stop_above: float | None
) -> AbstractContextManager[Through]:
    from factory_agents.codecs import codec_ref
    from factory_agents.mended import through_agent
    from factory_agents.topics_file import declared_codec

    params = parse_assignments(param or (), "--param")
    written = codec_ref(output_codec, "--output-codec") if output_codec else declared_codec(to)
    given = codec_ref(input_codec, "--input-codec") if input_codec else None
    return through_agent(agent, params, (lambda _: given) if input_codec else declared_codec, written, to, stop_above=stop_above)


def _say_replayed(outcome: ReplayResult, *, again: bool) -> None:
    console.say(f"{outcome.replayed:,} events {'would go' if outcome.dry_run else 'went'} from {outcome.topic} to {outcome.to}", "bold")
    if outcome.before:
        console.say(
            f"{outcome.before:,} were replayed before{', and are replayed again' if again else ': left out (--again includes them)'}"
        )
    if outcome.superseded:
        console.say(f"{outcome.superseded:,} are older letters about an event that was rejected again later: left out")
    if outcome.others:
        console.say(
            f"{outcome.others:,} are from failed attempts, or unknown to the ledger: left out (--attempt all includes them)", "yellow"
        )
    if outcome.foreign:
        console.say(f"{outcome.foreign:,} records are not dead letters: left out", "yellow")
    for reason in outcome.refused:
        console.say(f"not replayed: {reason}", "red")
    if outcome.returned:
        console.say(f"{outcome.returned:,} were rejected again, and stay letters", "yellow")
        console.print_table(["why", "events"], [[why, count] for why, count in outcome.reasons.items()], right=["events"])
    if outcome.stopped:
        console.say(f"stopped: {outcome.stopped}", "red")


@letters.command("stats")
def letters_stats(
    topic: _DeadTopic,
    prefix: _Prefix = _DEFAULTS.prefix,
    bootstrap: Bootstrap = None,
    kafka_settings: KafkaSettings = None,
    json: Json = False,
) -> None:
    """Count a topic's letters by what became of them. How many wait to be replayed, since when, and when the retention takes the first.

    \b
    Example:
      factory dead-letters stats enriched_events.dead
    """
    from factory_agents.runtime.dead_letters import LetterTopic
    from factory_agents.runtime.letter_states import letter_stats

    stats = letter_stats(LetterTopic(kafka_config(bootstrap, kafka_settings or ()), topic, prefix=prefix))
    if console.wants_json(json):
        console.print_json(stats)
        return
    console.print_table(
        ["pipeline", "stage", "rule", "letters", "waiting", "replayed", "of failed attempts"],
        [[r.pipeline, r.stage, r.rule, r.letters, r.waiting, r.replayed, r.others] for r in stats.rules],
        right=["letters", "waiting", "replayed", "of failed attempts"],
        title=f"{stats.letters:,} dead letters in {topic} ({stats.bytes:,} bytes), {stats.waiting:,} wait",
    )
    if stats.superseded:
        console.say(f"{stats.superseded:,} are older letters about an event that was rejected again later")
    if stats.first:
        console.say(f"written from {stats.first} to {stats.last}")
    if stats.expires:
        console.say(f"the retention takes the first that waits at {stats.expires}", "yellow")
    if stats.foreign:
        console.say(f"{stats.foreign:,} records are not dead letters", "yellow")


@letters.command("purge")
def letters_purge(
    topic: _DeadTopic,
    before: Annotated[str | None, typer.Option("--before", help="only letters written before this time", metavar="TIME")] = None,
    waiting: Annotated[bool, typer.Option("--waiting", help="delete letters that were not replayed, too")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="delete; without it, say what would be deleted")] = False,
    prefix: _Prefix = _DEFAULTS.prefix,
    bootstrap: Bootstrap = None,
    kafka_settings: KafkaSettings = None,
    json: Json = False,
) -> None:
    """Delete letters that were replayed. Letters that wait stay, and those of failed and unknown attempts.

    Kafka deletes from the start of a partition on: in each partition, letters are deleted up to the first one that stays.

    \b
    Examples:
      factory dead-letters purge enriched_events.dead
      factory dead-letters purge enriched_events.dead --yes
      factory dead-letters purge enriched_events.dead --before 2026-10-01 --waiting --yes
    """
    from factory_agents.options import parse_time
    from factory_agents.runtime.dead_letters import LetterTopic
    from factory_agents.runtime.letter_states import purge_letters

    letter_topic = LetterTopic(kafka_config(bootstrap, kafka_settings or ()), topic, prefix=prefix)
    moment = parse_time(before, "--before") if before else None
    done = purge_letters(letter_topic, before=moment, waiting=waiting, dry_run=not yes)
    if console.wants_json(json):
        console.print_json(done)
        return
    console.say(f"{done.deleted:,} letters {'were deleted' if yes else 'would be deleted (--yes deletes them)'}", "bold")
    if done.kept:
        console.say(f"{done.kept:,} stay, of which {done.waiting:,} were not replayed")
