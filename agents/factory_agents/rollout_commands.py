"""``factory rollout`` and ``factory live``: move partitions from one version of a live agent to another, and look at them."""

from __future__ import annotations

import getpass
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from factory_agents import console
from factory_agents.commands import Bootstrap, Json, KafkaSettings, setting
from factory_agents.errors import ConfigurationError
from factory_agents.options import AgentSettings, kafka_config, parse_assignments, parse_interval, parse_time, resolve
from factory_agents.text import seconds_of

if TYPE_CHECKING:
    from factory_agents.rollouts import Rollouts, Status

__all__ = ["diff_agents", "live", "rollout"]

rollout = typer.Typer(help="Versions of a live agent: bring a new one in, or take it back.", rich_markup_mode=None, no_args_is_help=True)
live = typer.Typer(help="Live agents.", rich_markup_mode=None, no_args_is_help=True)

_DEFAULTS = AgentSettings()
_Prefix = Annotated[str, setting("prefix")]
_Group = Annotated[str, typer.Argument(help="the agent's consumer group, such as factory.enrich.raw_events", metavar="GROUP")]
_Wait = Annotated[
    float,
    typer.Option("--wait", help="seconds to wait until each partition is where it is to be; 0: don't wait", metavar="SECONDS"),
]


def _rollouts(group: str, prefix: str, bootstrap: str | None, kafka_settings: list[str] | None) -> Rollouts:
    from factory_agents.rollouts import Rollouts

    return Rollouts(kafka_config(bootstrap, kafka_settings or ()), group, prefix=prefix)


def _who() -> str:
    try:
        return f"{getpass.getuser()} on {socket.gethostname()}"
    except (KeyError, OSError):
        return socket.gethostname()


def _seconds(text: str, flag: str) -> float:
    found = 0.0 if text.strip() == "0" else seconds_of(text)
    if found is None:
        raise ConfigurationError(f"{flag} {text!r}: expected a time such as '5 min' or '30 s'")
    return found


def _print(status: Status, *, json: bool) -> None:
    if console.wants_json(json):
        import msgspec

        console.print_json(msgspec.to_builtins(status) | {"held": status.held, "settled": status.is_settled, "lag": status.lag})
        return
    new = f", {status.new} holds {status.held} of {len(status.partitions)} partitions" if status.new else ""
    console.say(f"{status.group}: {status.verdict}; base {status.base}{new}", "bold")
    if status.reason:
        console.say(f"why: {status.reason}", "yellow")
    if status.steps:
        console.say(f"steps to come: {', '.join(f'{step:.0%}' for step in status.steps)}")
    console.print_table(
        ["partition", "position", "lag", "to be handled by", "held by"],
        [[p.partition, "none" if p.position is None else p.position, p.lag, p.owner, p.holder or "nobody"] for p in status.partitions],
        right=["partition", "position", "lag"],
    )
    console.print_table(
        ["version", "member", "host", "partitions", "records", "errors", "rejected", "waiting", "breakers", "heard"],
        [
            [
                m.version,
                m.id,
                m.host,
                len(m.held),
                m.records,
                m.errors,
                m.rejected,
                f"{m.waiting:.0f} s",
                [f"{name}: {state}" for name, state in m.breakers.items()],
                f"{status.ages[m.id]:.0f} s ago",
            ]
            for m in status.members
        ],
        right=["partitions", "records", "errors", "rejected"],
        title="members, and what each did of late",
    )


def _settled(rollouts: Rollouts, status: Status, wait: float) -> Status:
    return rollouts.wait(wait) if wait > 0 else status


@rollout.command("start")
def start(
    group: _Group,
    version: Annotated[str, typer.Argument(help="the new version, as its members have it in --live-version", metavar="VERSION")],
    steps: Annotated[
        str, typer.Option(help="partitions of the new version, step by step: numbers or shares, such as 1,25%,100%", metavar="STEPS")
    ] = "100%",
    hold: Annotated[str, typer.Option(help="how long each step lasts at least, such as '5 min'", metavar="TIME")] = "1 min",
    max_errors: Annotated[float, typer.Option(help="share of events that may raise errors", metavar="SHARE")] = 0.01,
    max_rejected: Annotated[float, typer.Option(help="share of events that may be rejected", metavar="SHARE")] = 0.05,
    force: Annotated[bool, typer.Option("--force", help="also where the new version has no members yet")] = False,
    wait: _Wait = 60.0,
    prefix: _Prefix = _DEFAULTS.prefix,
    bootstrap: Bootstrap = None,
    kafka_settings: KafkaSettings = None,
    json: Json = False,
) -> None:
    """Bring a new version in: all partitions at once (blue-green), or in steps (canary).

    Its own members judge each chunk of records before they commit it: too many errors, and the version is rolled back, without any of that
    chunk's outputs to be seen.

    \b
    Examples:
      factory rollout start factory.enrich.raw_events v2
      factory rollout start factory.enrich.raw_events v2 --steps 1,25%,100% --hold '5 min'
    """
    from factory_agents.kafka.routes import Limits

    rollouts = _rollouts(group, prefix, bootstrap, kafka_settings)
    limits = Limits(errors=max_errors, rejected=max_rejected)
    status = rollouts.start(version, steps=steps.split(","), hold=_seconds(hold, "--hold"), limits=limits, by=_who(), force=force)
    _print(_settled(rollouts, status, wait), json=json)


@rollout.command("status")
def status(
    group: _Group,
    prefix: _Prefix = _DEFAULTS.prefix,
    bootstrap: Bootstrap = None,
    kafka_settings: KafkaSettings = None,
    json: Json = False,
) -> None:
    """Show a rollout: who holds each partition, how far behind it is, and what each member says of itself.

    \b
    Examples:
      factory rollout status factory.enrich.raw_events
      factory rollout status factory.enrich.raw_events --json
    """
    _print(_rollouts(group, prefix, bootstrap, kafka_settings).status(), json=json)


@live.command("status")
def live_status(
    group: Annotated[str, typer.Argument(help="one group, with its partitions and members; by default all", metavar="[GROUP]")] = "",
    prefix: _Prefix = _DEFAULTS.prefix,
    bootstrap: Bootstrap = None,
    kafka_settings: KafkaSettings = None,
    json: Json = False,
) -> None:
    """Show the groups of live agents, with and without versions: members, partitions, lag. Of one group: as factory rollout status.

    \b
    Examples:
      factory live status
      factory live status factory.enrich.raw_events
    """
    if group:
        _print(_rollouts(group, prefix, bootstrap, kafka_settings).status(), json=json)
        return
    from factory_agents.rollouts import live_groups

    found = live_groups(kafka_config(bootstrap, kafka_settings or ()), prefix=prefix)
    if console.wants_json(json):
        console.print_json(found)
        return
    console.print_table(
        ["group", "topic", "version", "rollout", "members", "partitions", "lag"],
        [
            [
                g.group,
                list(g.topics),
                g.version or "none",
                g.error or (f"{g.new}: {g.verdict}" if g.new else ""),
                g.members,
                g.partitions,
                g.lag,
            ]
            for g in found
        ],
        right=["members", "partitions", "lag"],
    )


@rollout.command("shift")
def shift(
    group: _Group,
    share: Annotated[str, typer.Argument(help="partitions of the new version: a number, or a share such as 50%", metavar="SHARE")],
    wait: _Wait = 60.0,
    prefix: _Prefix = _DEFAULTS.prefix,
    bootstrap: Bootstrap = None,
    kafka_settings: KafkaSettings = None,
    json: Json = False,
) -> None:
    """Give the new version more partitions, or fewer; the steps that were to follow are off then.

    \b
    Examples:
      factory rollout shift factory.enrich.raw_events 50%
      factory rollout shift factory.enrich.raw_events 1
    """
    rollouts = _rollouts(group, prefix, bootstrap, kafka_settings)
    _print(_settled(rollouts, rollouts.shift(share, by=_who()), wait), json=json)


@rollout.command("rollback")
def rollback(
    group: _Group,
    reason: Annotated[str, typer.Option(help="why, for whoever looks at it later", metavar="TEXT")] = "told to",
    wait: _Wait = 60.0,
    prefix: _Prefix = _DEFAULTS.prefix,
    bootstrap: Bootstrap = None,
    kafka_settings: KafkaSettings = None,
    json: Json = False,
) -> None:
    """Take all partitions from the new version; what it has not committed is dropped.

    \b
    Examples:
      factory rollout rollback factory.enrich.raw_events
      factory rollout rollback factory.enrich.raw_events --reason 'wrong segments'
    """
    rollouts = _rollouts(group, prefix, bootstrap, kafka_settings)
    _print(_settled(rollouts, rollouts.roll_back(reason, by=_who()), wait), json=json)


@rollout.command("finish")
def finish(
    group: _Group,
    prefix: _Prefix = _DEFAULTS.prefix,
    bootstrap: Bootstrap = None,
    kafka_settings: KafkaSettings = None,
    json: Json = False,
) -> None:
    """The new version holds all partitions and is the base from now on; the old one's members can be ended.

    \b
    Examples:
      factory rollout finish factory.enrich.raw_events
    """
    _print(_rollouts(group, prefix, bootstrap, kafka_settings).finish(by=_who()), json=json)


@rollout.command("repair")
def repair(
    group: _Group,
    agent: Annotated[str, typer.Option(help="the agent that is right; without it the window is printed", metavar="NAME")] = "",
    out_topic: Annotated[str, typer.Option(help="where the agent writes", metavar="TOPIC")] = "",
    version: Annotated[str, typer.Option(help="whose records; by default the version's that was rolled back", metavar="VERSION")] = "",
    param: Annotated[list[str] | None, typer.Option("--param", "-p", help="a parameter of the agent", metavar="KEY=VALUE")] = None,
    prefix: _Prefix = _DEFAULTS.prefix,
    bootstrap: Bootstrap = None,
    kafka_settings: KafkaSettings = None,
) -> None:
    """Run an agent over exactly the records that a version handled and committed.

    It may be killed and run again: it resumes, and what is done is not done twice. Without --agent, print those records' window, for
    factory agent run --window.

    \b
    Examples:
      factory rollout repair factory.enrich.raw_events --agent my_agents:enrich --out-topic enriched_events
      factory rollout repair factory.enrich.raw_events --version v2 > handled.json
    """
    rollouts = _rollouts(group, prefix, bootstrap, kafka_settings)
    window = rollouts.handled(version)
    if not agent:
        console.print_json(window)
        return
    if not out_topic:
        raise ConfigurationError("--agent: no topic to write to; give --out-topic")
    from factory_agents import launch
    from factory_agents.run import Stop, execute
    from factory_agents.runtime.loading import working_directory_first
    from factory_agents.runtime.session import RunContext
    from factory_agents.stage_plan import stage_input

    settings = resolve(agent, {"out_topic": out_topic, "prefix": prefix}, params=parse_assignments(param or (), "--param")).settings
    stop = Stop()
    with stop.watching_signals(), working_directory_first():
        run = launch.make_run(agent, settings, stage_input(window))
        console.print_json(execute(RunContext(kafka_config(bootstrap, kafka_settings or ()), stop=stop), run))


def diff_agents(
    old: Annotated[str, typer.Option(help="the agent as it is, module:function", metavar="NAME")],
    new: Annotated[str, typer.Option(help="the agent as it is to be", metavar="NAME")],
    in_topic: Annotated[str, typer.Option(help="topic to read", metavar="TOPIC", envvar="INPUT_TOPIC")] = "",
    since: Annotated[str | None, typer.Option(help="start of the interval, such as 2026-11-01T04:00", metavar="TIME")] = None,
    until: Annotated[str | None, typer.Option(help="its end", metavar="TIME")] = None,
    last: Annotated[int, typer.Option(help="without an interval: the last records of the topic, so many", metavar="N", min=1)] = 10_000,
    window: Annotated[Path | None, typer.Option(help="file that holds the window, in place of an interval", metavar="FILE")] = None,
    ignore: Annotated[list[str] | None, typer.Option(help="a field that may differ; repeatable", metavar="FIELD")] = None,
    codec: Annotated[str, typer.Option("--input-codec", help="what reads the records", metavar="CODEC")] = "",
    prefix: _Prefix = _DEFAULTS.prefix,
    bootstrap: Bootstrap = None,
    kafka_settings: KafkaSettings = None,
    json: Json = False,
) -> None:
    """Compare two versions of an agent: both get the same records, nothing is written, and each event that comes out otherwise is counted.

    Exit status 2 where there is a difference.

    \b
    Examples:
      factory agent diff --old agents_v1:enrich --new agents_v2:enrich --in-topic raw_events --last 1000
      factory agent diff --old agents_v1:enrich --new agents_v2:enrich --window handled.json --json
    """
    import msgspec

    from factory_agents.protocol import Window
    from factory_agents.runtime.loading import working_directory_first
    from factory_agents.trial import last_records, window_of
    from factory_agents.version_diff import diff_versions

    config = kafka_config(bootstrap, kafka_settings or ())
    if window is not None:
        records = msgspec.json.decode(window.read_bytes(), type=Window)
    elif not in_topic:
        raise ConfigurationError("no topic to read; give --in-topic, or set INPUT_TOPIC")
    else:
        times = {"since": parse_time(since, "--since") if since else None, "until": parse_time(until, "--until") if until else None}
        interval = parse_interval(msgspec.structs.replace(_DEFAULTS, **times))
        records = window_of(config, in_topic, interval, prefix=prefix) if interval else last_records(config, in_topic, last)
    with working_directory_first():
        found = diff_versions(config, records, old, new, ignore=ignore or (), codec=codec)
    if console.wants_json(json):
        console.print_json(found)
    else:
        console.print_table(
            ["", "events"],
            [["same", found.same], *found.kinds.items(), ["in all", found.records]],
            right=["events"],
            title=f"{old} → {new}",
        )
        if found.fields:
            console.print_table(["field", "events"], list(found.fields.items()), right=["events"], title="changed by field")
        for example in found.examples:
            console.say(f"{example.where}: {example.kind} {', '.join(example.fields)}")
            console.say(f"  - {example.old}")
            console.say(f"  + {example.new}")
    raise typer.Exit(2 if found.different else 0)
