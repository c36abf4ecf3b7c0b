"""From settings to a run: which window, which shard, under which names; then the run itself, over the window or live."""

from __future__ import annotations

import logging
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from factory_agents.codecs import codec_ref
from factory_agents.errors import AgentError, ConfigurationError, FactoryError
from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.cuts import plan_window, preview_window
from factory_agents.kafka.ledger import Ledger, StageRecord
from factory_agents.kafka.messages import readable_headers
from factory_agents.kafka.pruner import RETENTION
from factory_agents.kafka.reader import WRITER_HEADER, WindowReader
from factory_agents.kafka.record_times import why_empty
from factory_agents.kafka.routes import check_version, shadow_group
from factory_agents.kafka.shadow_group import other_writer
from factory_agents.kafka.topics import Cluster, check_window_topic
from factory_agents.options import AgentSettings, Resolved, flag_of, parse_interval
from factory_agents.protocol import (
    AgentRef,
    AgentResult,
    AgentRun,
    CodecRef,
    Counts,
    PartitionRange,
    Shard,
    Window,
)
from factory_agents.run import BUILT_IN, build_transform, execute
from factory_agents.runtime.codecs import codec_class
from factory_agents.runtime.session import RunContext
from factory_agents.stage_plan import StageInput, stage_input
from factory_agents.telemetry import bound, fields
from factory_agents.text import unknown
from factory_agents.topics_file import declared_codec

__all__ = [
    "WHOLE_SOURCE",
    "LiveResult",
    "check",
    "is_live",
    "make_run",
    "read_window",
    "run_agent_live",
    "run_agent_over_window",
]

log = logging.getLogger(__name__)

_LEDGER_SECONDS = 30.0
_NEWEST, _NEWEST_SECONDS = 10, 15.0  # offsets of each partition, some of which are transactions' markers

_OF_THE_OFFICIAL = ("cleanup.policy", "max.message.bytes", "retention.ms", "retention.bytes")
"""Settings that a shadow's output topic has from the official one."""

_SOURCES = ("ingest", "replicate")
"""Agents that read no topic."""

WHOLE_SOURCE = "all"
"""Names the window of an ``ingest`` that reads every row, whatever its time."""


class LiveResult(msgspec.Struct, frozen=True):
    """What a live agent did between its start and its stop."""

    agent: str
    version: str
    group: str
    in_topic: str
    out_topic: str
    counts: Counts
    seconds: float


def is_live(agent: str, settings: AgentSettings) -> bool:
    """Whether the settings ask for a live run: an agent that reads a topic, with no window and no dry run."""
    return agent not in _SOURCES and not settings.window and settings.since is None and settings.until is None and not settings.dry_run


def check(agent: str, resolved: Resolved) -> None:
    """Refuse settings that contradict each other, or that say something this agent cannot do. Raises ConfigurationError or WindowError."""
    settings = resolved.settings
    if agent not in BUILT_IN and ":" not in agent:
        module, dot, function = agent.rpartition(".")
        if dot:
            raise AgentError(f"unknown agent {agent!r}; did you mean '{module}:{function}'?")
        raise AgentError(unknown("agent", agent, [*BUILT_IN, "module:function"]))
    if settings.window and (settings.since is not None or settings.until is not None):
        raise ConfigurationError("--window already says which records to read: leave out --since and --until, or --window")
    parse_interval(settings)
    if agent in _SOURCES:
        _check_source(agent, resolved)
    elif is_live(agent, settings):
        _check_live(agent, resolved)
    elif resolved.by_flag("metrics_listen"):
        raise ConfigurationError("--metrics-listen is for live agents: factory metrics serve shows what windows do; leave it out")
    elif not settings.window and not settings.in_topic:
        raise ConfigurationError(f"agent {agent!r}: no topic to read; give --in-topic, or set INPUT_TOPIC")
    if agent == "validate" and not settings.out_topic:
        raise ConfigurationError("agent 'validate': no topic for valid events; give --out-topic, or set OUTPUT_TOPIC")


def _check_source(agent: str, resolved: Resolved) -> None:
    for name in ("in_topic", "window", "group"):
        if resolved.by_flag(name):
            raise ConfigurationError(f"agent {agent!r} reads a source, not a topic: leave out {resolved.origins[name]}")
    if not resolved.settings.out_topic:
        raise ConfigurationError(f"agent {agent!r}: no topic to write to; give --topic, or set OUTPUT_TOPIC")


def _check_live(agent: str, resolved: Resolved) -> None:
    if not resolved.settings.in_topic:
        raise ConfigurationError(f"agent {agent!r}: no topic to read; give --in-topic, or set INPUT_TOPIC")
    shadow, version = resolved.settings.shadow, resolved.settings.live_version
    if agent == "publish" and (shadow or version):
        flag = flag_of("shadow" if shadow else "live_version")
        raise ConfigurationError(f"agent 'publish': {flag} is for agents that write to a topic; leave it out")
    if shadow and version:
        raise ConfigurationError("--live-version is for a version that takes its turn, --shadow for one that only looks: leave one out")
    if shadow:
        check_version(shadow)
    for name in ("shard", "rerun", "max_rejected", "deadline", "pipeline"):
        if resolved.by_flag(name):
            raise ConfigurationError(
                f"{resolved.origins[name]} needs a window: give one (--since and --until, or --window FILE), or leave it out"
            )


def _stage_of(agent: str) -> str:
    return agent.rpartition(":")[2]


def read_window(path: str, shard: Shard) -> StageInput:
    """One shard of what a file holds (``-``: standard input): a ``Window``, a plan or one shard of it, results of the stage before.

    A planned shard names its place itself. Raises ConfigurationError where the file holds none of these, WindowError for results that are
    no complete set.
    """
    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except OSError as error:
        raise ConfigurationError(f"--window {path}: cannot be read: {error.strerror}") from None
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise ConfigurationError(f"--window {path}: not JSON: {error}") from None
    known = ("ranges", "stage", "window")
    if not all(isinstance(item, dict) and any(name in item for name in known) for item in (value if isinstance(value, list) else [value])):
        raise ConfigurationError(f"--window {path}: expected a Window, a plan, an AgentResult or a list of AgentResults as JSON")
    return stage_input(value, shard if shard.of > 1 else None)


def make_run(agent: str, settings: AgentSettings, given: StageInput | None) -> AgentRun:
    """What is to be done, as an orchestrator would say it. ``given`` is None for ``ingest``, whose source is part of what the work is."""
    interval = parse_interval(settings) if given is None else None
    window = given.window if given is not None else None
    if window is not None:
        window = msgspec.structs.replace(window, codec=_codec(settings, "input_codec", window.topic, window.codec))
    target = settings.out_topic if window is None else window.topic
    return AgentRun(
        pipeline=settings.pipeline or (window.pipeline if window is not None else "") or f"cli.{_stage_of(agent)}.{target}",
        stage=settings.stage or _stage_of(agent),
        agent=AgentRef(agent),
        params=settings.params,
        window=window,
        interval=interval,
        name=_name(agent) if window is None and interval is None else "",
        shard=given.shard if given is not None else settings.shard,
        plan=given.plan if given is not None else "",
        origin=window.origin if window is not None else _origin(agent, settings),
        instance=window.instance if window is not None else 0,
        output_topic=settings.out_topic,
        output_codec=_codec(settings, "output_codec", settings.out_topic),
        dead_letter_topic=settings.dead_letter_topic,
        rerun=settings.rerun,
        accept_loss=settings.accept_loss,
        dry_run=settings.dry_run,
        max_rejected=settings.max_rejected,
        deadline_seconds=settings.deadline,
        chunk_records=settings.chunk_records,
        max_lag_downstream=settings.max_lag_downstream if given is None else 0,
        downstream_group=settings.downstream_group if given is None else "",
        prefix=settings.prefix,
        keep_windows=settings.keep_windows,
        traceparent=os.environ.get("TRACEPARENT", ""),
    )


def _name(agent: str) -> str:
    """What names the work of a source without an interval."""
    if agent != "replicate":
        return WHOLE_SOURCE
    from factory_agents.replication.runner import LIVE

    return LIVE


def _origin(agent: str, settings: AgentSettings) -> str:
    if agent == "replicate":
        from factory_agents.replicate import log_name

        return log_name(settings.params)
    from factory_agents.ingest import source_name

    return source_name(settings.params)


def _codec(settings: AgentSettings, setting: str, topic: str, written: CodecRef | None = None) -> CodecRef | None:
    """A topic's codec: as the setting says, else the one that its records were written with, else the topics file's."""
    given = getattr(settings, setting)
    return codec_ref(given, flag_of(setting)) if given else written or declared_codec(topic)


def _window(config: KafkaConfig, agent: str, settings: AgentSettings) -> Window:
    """The interval's window on the topic, planned now if it has not been before; without an interval (a dry run) all there is."""
    interval = parse_interval(settings)
    pipeline = settings.pipeline or f"cli.{_stage_of(agent)}.{settings.in_topic}"
    if interval is None:
        return _everything(config, pipeline, settings.in_topic)
    if settings.dry_run:
        return preview_window(config, pipeline=pipeline, topic=settings.in_topic, interval=interval, prefix=settings.prefix)
    return plan_window(
        config,
        pipeline=pipeline,
        topic=settings.in_topic,
        interval=interval,
        prefix=settings.prefix,
        accept_loss=settings.accept_loss,
        keep=settings.keep_windows,
    )


def _everything(config: KafkaConfig, pipeline: str, topic: str) -> Window:
    """All that a topic holds now: what a dry run without a window looks at. It is planned nowhere."""
    cluster = Cluster(config)
    facts = cluster.topic(topic)
    check_window_topic(cluster, topic)
    partitions = range(facts.partitions)
    starts, ends = cluster.log_start(topic, partitions), cluster.stable_offset(topic, partitions)
    ranges = tuple(PartitionRange(p, starts[p], ends[p]) for p in partitions if starts[p] < ends[p])
    return Window(pipeline, topic, facts.id, ranges, name="everything", origin=topic)


def run_agent_over_window(context: RunContext, agent: str, settings: AgentSettings) -> AgentResult:
    """Plan (or read) the window and run the agent over it to its end. Raises a FactoryError; a further call resumes."""
    if agent not in _SOURCES:
        # Looked at beforehand: a mistyped function, parameter or topic plans nothing.
        build_transform(AgentRef(agent), settings.params, None).close()
    for setting, topic in (("input_codec", settings.in_topic), ("output_codec", settings.out_topic)):
        if codec := _codec(settings, setting, topic):
            codec_class(codec)
    given = read_window(settings.window, settings.shard) if settings.window else None
    if settings.out_topic:
        Cluster(context.config).topic(settings.out_topic)
    if given is not None or agent in _SOURCES:
        return execute(context, make_run(agent, settings, given))
    given = stage_input(_window(context.config, agent, settings), settings.shard)
    done = execute(context, make_run(agent, settings, given))
    interval = given.window.interval
    if interval is None or given.shard.of > 1 or done.counts.consumed:
        return done
    hint = why_empty(context.config, settings.in_topic, interval)
    return msgspec.structs.replace(done, notes=(*done.notes, hint)) if hint else done


def _in_the_shadow(config: KafkaConfig, settings: AgentSettings) -> AgentSettings:
    """The same with topics of its own; that for events is made where there is none, as the official one is."""
    official, dead = settings.out_topic, settings.dead_letter_topic
    if official:
        with Cluster(config) as cluster:
            kept = {name: value for name, value in cluster.settings(official).items() if name in _OF_THE_OFFICIAL}
            cluster.ensure(f"{official}.shadow", cluster.topic(official).partitions, settings=kept)
    return msgspec.structs.replace(settings, out_topic=official and f"{official}.shadow", dead_letter_topic=dead and f"{dead}.shadow")


def _refuse_to_double(config: KafkaConfig, settings: AgentSettings, group: str) -> None:
    """A live agent that begins is not to write once more what windows, or another group, make of the same topic. Raises ConfigurationError.

    One whose group has a position goes on from there; what it may not read says nothing.
    """
    if not settings.out_topic:
        return
    own = shadow_group(group, settings.shadow) if settings.shadow else group
    maker = other = ""
    forgotten = False
    with suppress(FactoryError), Cluster(config) as cluster:
        if cluster.committed(own, [settings.in_topic]):
            return
        # In this order: another member may just commit for the first time, records and position at once.
        forgotten = not settings.shadow and _wrote_last(config, cluster, settings.out_topic, own) and not cluster.committed(own)
        other = other_writer(cluster, settings.in_topic, settings.out_topic, own)
        maker = _pipeline_that_wrote(config, cluster, settings)
    if forgotten:
        raise ConfigurationError(
            f"group {own!r} has written topic {settings.out_topic!r}, and Kafka has forgotten its position: it does so "
            f"offsets.retention.minutes after the group's last member left, and where topic {settings.in_topic!r} is deleted. Say where to "
            f"go on (at the earliest record all that is still there is written a second time): kafka-consumer-groups --reset-offsets "
            f"--group {own}"
        )
    if maker:
        raise ConfigurationError(
            f"topic {settings.out_topic!r} holds what windows of pipeline {maker!r} made of {settings.in_topic!r}; a live agent starts "
            "at the earliest record and would write all of it a second time: give it another topic (--out-topic), or start its group "
            f"where the windows end (kafka-consumer-groups --reset-offsets --group {group})"
        )
    if other and not (settings.shadow and other.startswith(f"{group}~shadow~")):
        instead = f"run it as a version of that group (--group {other} --live-version V), in its shadow (--group {other} --shadow V), or "
        meant = f"; if both are meant to write it, say where this one begins: kafka-consumer-groups --reset-offsets --group {group}"
        raise ConfigurationError(
            f"topic {settings.out_topic!r} is what group {other!r} makes of {settings.in_topic!r}; group {own!r} would write all of it a "
            f"second time: {'' if settings.shadow else instead}give it another topic (--out-topic){'' if settings.shadow else meant}"
        )


def _wrote_last(config: KafkaConfig, cluster: Cluster, topic: str, group: str) -> bool:
    """Whether a live group is among those who wrote a topic's newest records."""
    facts = cluster.topic(topic)
    partitions = range(facts.partitions)
    starts, ends = cluster.log_start(topic, partitions), cluster.stable_offset(topic, partitions)
    newest = tuple(PartitionRange(p, max(starts[p], ends[p] - _NEWEST), ends[p]) for p in partitions if starts[p] < ends[p])
    reader = WindowReader(config, cluster, Window("", topic, facts.id, newest, name="newest"), accept_loss=True)
    try:
        reader.seek({}, {})
        found = False
        while not found and not reader.done:
            messages = reader.batch(_NEWEST, time.monotonic() + _NEWEST_SECONDS, lambda: False)
            writers = (value or b"" for m in messages for name, value in readable_headers(m) if name == WRITER_HEADER)
            found = any(writer.startswith(f"live/{group}/".encode()) for writer in writers)
        return found
    finally:
        reader.close()


def _pipeline_that_wrote(config: KafkaConfig, cluster: Cluster, settings: AgentSettings) -> str:
    ledger = Ledger(config, cluster, prefix=settings.prefix, pipeline="")
    if cluster.find(ledger.topic) is None:
        return ""
    view = ledger.read_stable(deadline=time.monotonic() + _LEDGER_SECONDS, wanted=(b"stage|",))
    results = (result for record in view.of(StageRecord) if (result := record.answer()) is not None)
    return next((r.pipeline for r in results if _topics_of(r) == (settings.in_topic, settings.out_topic)), "")


def _topics_of(result: AgentResult) -> tuple[str, str]:
    return (result.input.topic if result.input is not None else "", result.manifest.topic if result.manifest is not None else "")


def run_agent_live(context: RunContext, agent: str, settings: AgentSettings) -> LiveResult:
    """Run the agent in its consumer group until ``context.stop`` says so. Raises a FactoryError; another start goes on from there."""
    from factory_agents.runtime.live import default_group

    began, attempt = time.monotonic(), int(time.time() * 1000)
    transform: Any = build_transform(AgentRef(agent), settings.params, None)
    if only_windows := getattr(transform, "only_windows", ""):
        raise ConfigurationError(only_windows)
    if agent != "publish" and not settings.out_topic and not getattr(transform, "writes_nothing", False):
        raise ConfigurationError(
            f"agent {agent!r}: no topic to write to; give --out-topic, or set OUTPUT_TOPIC (one that never writes says so: -> None)"
        )
    group = settings.group or default_group(_stage_of(agent), settings.in_topic)
    output_codec = _codec(settings, "output_codec", settings.out_topic)
    if settings.shadow:
        settings = _in_the_shadow(context.config, settings)
    _refuse_to_double(context.config, settings, group)
    name, version, out_topic = transform.name, transform.version, "" if agent == "publish" else settings.out_topic
    with bound(pipeline=group, stage="live", agent=name, version=version, attempt=attempt):
        if agent == "publish":
            counts = _run_sink(context, transform, group, settings)
        else:
            counts = _run_transform(context, transform, group, settings, output_codec)
        seconds = round(time.monotonic() - began, 3)
        log.info("done", extra=fields(seconds=seconds, counts=counts.told()))
    return LiveResult(name, version, group, settings.in_topic, out_topic, counts, seconds)


def _run_sink(context: RunContext, sink: Any, group: str, settings: AgentSettings) -> Counts:
    from factory_agents.runtime.agents import LiveSink
    from factory_agents.runtime.live import LiveSettings
    from factory_agents.runtime.live_sink import KEEP_WINDOWS, run_sink_live

    sink.close()
    if isinstance(sink, LiveSink):
        live = LiveSettings(
            in_topic=settings.in_topic,
            out_topic="",
            group=group,
            dead_letter_topic=settings.dead_letter_topic,
            prefix=settings.prefix,
            accept_loss=settings.accept_loss,
            input_codec=_codec(settings, "input_codec", settings.in_topic),
        )
        return sink.run_live(context, live)
    return run_sink_live(
        context,
        lambda window: make_run("publish", settings, stage_input(window, settings.shard)),
        lambda: build_transform(AgentRef("publish"), settings.params, None),
        pipeline=group,
        in_topic=settings.in_topic,
        prefix=settings.prefix,
        accept_loss=settings.accept_loss,
        keep=KEEP_WINDOWS if settings.keep_windows == RETENTION else settings.keep_windows,
    )


def _run_transform(context: RunContext, transform: Any, group: str, settings: AgentSettings, output_codec: CodecRef | None) -> Counts:
    from factory_agents.runtime.live import LiveSettings, run_live
    from factory_agents.runtime.versions import check_unversioned, run_version

    live = LiveSettings(
        in_topic=settings.in_topic,
        out_topic=settings.out_topic,
        group=group,
        dead_letter_topic=settings.dead_letter_topic,
        prefix=settings.prefix,
        accept_loss=settings.accept_loss,
        input_codec=_codec(settings, "input_codec", settings.in_topic),
        output_codec=output_codec,
        max_lag_downstream=settings.max_lag_downstream,
        downstream_group=settings.downstream_group,
        shadow=settings.shadow,
    )
    if settings.live_version:
        return run_version(context, transform, settings.live_version, live)
    if not settings.shadow:
        check_unversioned(context.config, group, settings.prefix)
    return run_live(context, transform, live)
