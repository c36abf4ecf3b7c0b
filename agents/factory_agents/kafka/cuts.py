"""Plans windows: turns times into offsets once and for good (cuts), by compare-and-set on the ledger."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from confluent_kafka import KafkaException, Producer

from factory_agents import failpoints
from factory_agents.errors import ConfigurationError, DataLossError, DeadlineError, FencedError, WindowError
from factory_agents.kafka.config import KafkaConfig, kafka_error
from factory_agents.kafka.ledger import CutRecord, Ledger, LedgerRecord, LedgerView, PipelineRecord, PlanRecord
from factory_agents.kafka.topics import Cluster, TopicFacts
from factory_agents.protocol import Interval, PartitionRange, Window
from factory_agents.telemetry import fields

__all__ = ["FUTURE_MS", "CutRequest", "check_names", "check_window_topic", "decide_cut", "plan_window", "preview_window", "window_closed"]

log = logging.getLogger(__name__)

FUTURE_MS = 5 * 60 * 1000
"""How far ahead of now a record's time may lie before the index's answer is taken for a wrong clock's."""

_CLOCK_SKEW_MS = 60 * 1000

Policy = Literal["carry", "index"]


def _at(cut: CutRecord, partition: int) -> int:
    return cut.offsets[partition] if partition < len(cut.offsets) else 0


def decide_cut(
    known: Sequence[CutRecord], at: int, index: Mapping[int, tuple[int, int]], stable: Mapping[int, int], now_ms: int
) -> tuple[int, ...]:
    """Offsets of a new cut at a time (ms): the index's answer, the stable offset where that has none or lies in the future, clamped.

    ``known`` are the topic's cuts; ``index`` maps each partition (0 to n-1, all of them) to (offset, timestamp) or (-1, -1), ``stable`` to the
    last stable offset. Never below an earlier cut nor above a later one: windows tile whatever the order in which they are planned.
    """
    offsets = []
    for p in range(len(stable)):
        offset, stamp = index[p]
        if offset < 0 or stamp > now_ms + FUTURE_MS:
            offset = stable[p]
        lower = max((_at(c, p) for c in known if c.at < at), default=0)
        upper = min((_at(c, p) for c in known if c.at > at), default=None)
        offset = max(offset, lower)
        offsets.append(offset if upper is None else min(offset, upper))
    return tuple(offsets)


@dataclass(frozen=True)
class CutRequest:
    """What a planner wants of the ledger: a window of an interval, or one since the last cut under a run's key."""

    pipeline: str
    topic: TopicFacts
    interval: Interval | None
    run_key: str = ""
    policy: Policy = "index"
    accept_loss: bool = False

    @property
    def mode(self) -> Literal["intervals", "since_last"]:
        """How this window is made."""
        return "since_last" if self.interval is None else "intervals"

    @property
    def window(self) -> str:
        """The window's key."""
        return self.run_key if self.interval is None else self.interval.key


def check_names(**names: str) -> None:
    """Refuse names that cannot stand in ledger keys and transactional ids."""
    for what, name in names.items():
        if not name or "|" in name or not name.isprintable():
            raise ConfigurationError(f"{what}: expected a printable name without '|', got {name!r}")


def check_window_topic(cluster: Cluster, topic: str) -> None:
    """Refuse a topic whose records may vanish from within a window: compacted before its retention is over."""
    settings = cluster.settings(topic)
    policy = {p.strip() for p in settings.get("cleanup.policy", "delete").split(",")}
    if policy == {"delete"}:
        return
    retention = int(settings.get("retention.ms", "-1"))
    horizon = retention if retention > 0 else 7 * 24 * 3600 * 1000
    lag = int(settings.get("min.compaction.lag.ms", "0"))
    if "delete" not in policy or lag < horizon:
        raise WindowError(
            f"topic {topic!r}: cleanup.policy={','.join(sorted(policy))} with min.compaction.lag.ms={lag} may remove records from within a window; "
            f"use delete, or compact,delete with min.compaction.lag.ms of at least {horizon}"
        )


def plan_window(
    config: KafkaConfig,
    *,
    pipeline: str,
    topic: str,
    interval: Interval | None,
    run_key: str = "",
    prefix: str = "factory",
    policy: Policy = "index",
    accept_loss: bool = False,
    timeout: float = 120.0,
) -> Window:
    """The window of an interval on a topic (or, without one, since the pipeline's last cut), planned once and then always the same.

    ``policy`` says what a missing start cut takes: ``carry`` the latest earlier scheduled cut (scheduled runs: a pause is carried into the next
    run), ``index`` the timestamp index. Raises WindowError (mixed modes, overlap), DataLossError (a recreated topic), UnavailableError,
    DeadlineError after ``timeout`` seconds.
    """
    check_names(pipeline=pipeline, prefix=prefix, **({} if interval else {"run key": run_key}))
    _check_past(interval)
    deadline = time.monotonic() + timeout
    cluster = Cluster(config)
    facts = cluster.topic(topic)
    check_window_topic(cluster, topic)
    request = CutRequest(pipeline, facts, interval, run_key, policy, accept_loss)
    ledger = Ledger(config, cluster, prefix=prefix, pipeline=pipeline)
    ledger.ensure()
    window = _planned(ledger.read(deadline=deadline), request)
    while window is None:
        if time.monotonic() > deadline:
            raise DeadlineError(
                f"planning {request.window} of {pipeline!r} on {topic!r}: other planners kept taking over for {timeout:.0f} s; try again"
            )
        window = _compare_and_set(config, cluster, ledger, request, prefix, deadline)
    if interval is not None and cluster.settings(topic).get("message.timestamp.type") == "CreateTime":
        log.warning("topic %r stamps records with the producer's time (CreateTime); LogAppendTime makes windows follow arrival", topic)
    log.info(
        "window planned",
        extra=fields(
            pipeline=pipeline,
            topic=topic,
            window=request.window,
            records=window.size,
            carried=window.carried,
            partitions=len(window.ranges),
        ),
    )
    return window


def preview_window(
    config: KafkaConfig, *, pipeline: str, topic: str, interval: Interval, prefix: str = "factory", timeout: float = 120.0
) -> Window:
    """The window that ``plan_window`` would give now, for a dry run: nothing is written, so a later plan may still differ. Raises as it does."""
    check_names(pipeline=pipeline, prefix=prefix)
    _check_past(interval)
    cluster = Cluster(config)
    request = CutRequest(pipeline, cluster.topic(topic), interval)
    check_window_topic(cluster, topic)
    ledger = Ledger(config, cluster, prefix=prefix, pipeline=pipeline)
    view = LedgerView() if cluster.find(ledger.topic) is None else ledger.read(deadline=time.monotonic() + timeout)
    planned = _planned(view, request)
    if planned is not None:
        return planned
    records = {record.key(): (view.end, record) for record in _decide(view, request, cluster)}
    window = _planned(LedgerView(records, view.end), request)
    if window is None:
        raise WindowError(f"interval {interval.key} of pipeline {pipeline!r}: no window came of it")
    return window


def _check_past(interval: Interval | None) -> None:
    if interval is not None and interval.end_ms > time.time() * 1000 + _CLOCK_SKEW_MS:
        raise WindowError(
            f"interval {interval.key}: it ends in the future, so its records have not all arrived; run it after {interval.end.isoformat()}"
        )


def _compare_and_set(
    config: KafkaConfig, cluster: Cluster, ledger: Ledger, request: CutRequest, prefix: str, deadline: float
) -> Window | None:
    """One try at writing what is missing; None when another planner took over."""
    producer = config.producer(f"{prefix}.{request.pipeline}.plan", transaction_timeout_ms=60_000)
    doing = f"planning {request.window} of {request.pipeline!r}"
    try:
        producer.init_transactions(max(1.0, deadline - time.monotonic()))
        view = ledger.read(deadline=deadline)
        window = _planned(view, request)
        if window is not None:
            return window
        records = _decide(view, request, cluster)
        producer.begin_transaction()
        ledger.produce(producer, records)
        failpoints.hit("plan.before-commit")
        _commit(producer, deadline)
        failpoints.hit("plan.after-commit")
    except KafkaException as error:
        if isinstance(kafka_error(error, doing), FencedError):
            return None
        raise kafka_error(error, doing) from error
    return _planned(ledger.read(deadline=deadline), request)


def _commit(producer: Producer, deadline: float) -> None:
    while True:
        try:
            producer.commit_transaction(max(1.0, deadline - time.monotonic()))
            return
        except KafkaException as error:
            if not error.args[0].retriable() or time.monotonic() > deadline:
                raise


def _cuts(view: LedgerView, request: CutRequest) -> list[CutRecord]:
    return [c for c in view.of(CutRecord) if c.topic_id == request.topic.id]


def _planned(view: LedgerView, request: CutRequest) -> Window | None:
    """The window, where everything about it stands in the ledger already."""
    plan_key = PlanRecord(request.pipeline, request.topic.name, request.topic.id, request.window, ()).key()
    plan = view.get(plan_key)
    if not isinstance(plan, PlanRecord):
        return None
    return Window(
        pipeline=request.pipeline,
        topic=plan.topic,
        topic_id=plan.topic_id,
        ranges=plan.ranges,
        interval=plan.interval,
        name="" if plan.interval else plan.window,
        ledger_offset=view.offset(plan_key) or 0,
        generation=view.offset(plan_key) or 0,
        lost=plan.lost,
        carried=plan.carried,
    )


def _check_pipeline(view: LedgerView, request: CutRequest) -> None:
    first = next(iter(view.of(PipelineRecord)), None)
    if first is not None and first.mode != request.mode:
        raise WindowError(
            f"pipeline {request.pipeline!r}: its windows are made by {first.mode.replace('_', ' ')}, this run asks for {request.mode.replace('_', ' ')}; "
            f"mixing them would read records twice: use another pipeline name"
        )
    if request.interval is not None:
        for plan in view.of(PlanRecord):
            other = plan.interval
            if (
                plan.topic_id == request.topic.id
                and other is not None
                and other.start < request.interval.end
                and request.interval.start < other.end
            ):
                raise WindowError(
                    f"pipeline {request.pipeline!r} on {request.topic.name!r}: interval {request.interval.key} overlaps {other.key}, which is planned; "
                    f"overlapping intervals would read records twice: keep to one schedule, or use another pipeline name"
                )
    others = {c.topic_id for c in view.of(CutRecord) if c.topic == request.topic.name} - {request.topic.id}
    if others and not _cuts(view, request) and not request.accept_loss:
        raise DataLossError(
            f"topic {request.topic.name!r} was deleted and created again since pipeline {request.pipeline!r} last planned on it (topic id {request.topic.id}, "
            f"was {sorted(others)[0]}): what it held and was not read is lost; accept that with --accept-loss (accept_loss=True) to go on"
        )


def _decide(view: LedgerView, request: CutRequest, cluster: Cluster) -> list[LedgerRecord]:
    """The records that are missing for this window, in the order in which they are written."""
    _check_pipeline(view, request)
    name, partitions = request.topic.name, range(request.topic.partitions)
    known = _cuts(view, request)
    now_ms = int(time.time() * 1000)
    stable = cluster.stable_offset(name, partitions)
    records: list[LedgerRecord] = [PipelineRecord(request.pipeline, request.mode)] if not view.of(PipelineRecord) else []
    if request.interval is None:
        start, end = _since_last(known, request, cluster, stable, now_ms)
        records.append(end)
        carried = 0
    else:
        start, end, carried, made = _of_interval(known, request, request.interval, cluster, stable, now_ms)
        records.extend(made)
    ranges = tuple(PartitionRange(p, _at(start, p), _at(end, p)) for p in range(len(end.offsets)) if _at(start, p) < _at(end, p))
    records.append(
        PlanRecord(
            request.pipeline,
            name,
            request.topic.id,
            request.window,
            ranges,
            interval=request.interval,
            carried=carried,
            planned_at=now_ms,
        )
    )
    return records


def _since_last(
    known: Sequence[CutRecord], request: CutRequest, cluster: Cluster, stable: Mapping[int, int], now_ms: int
) -> tuple[CutRecord, CutRecord]:
    facts = request.topic
    if known:
        start = known[-1]
    else:
        first = cluster.log_start(facts.name, range(facts.partitions))
        start = CutRecord(request.pipeline, facts.name, facts.id, 0, tuple(first[p] for p in range(facts.partitions)))
    offsets = tuple(max(stable[p], _at(start, p)) for p in range(facts.partitions))
    return start, CutRecord(request.pipeline, facts.name, facts.id, now_ms, offsets, run_key=request.run_key)


def _of_interval(
    known: Sequence[CutRecord], request: CutRequest, interval: Interval, cluster: Cluster, stable: Mapping[int, int], now_ms: int
) -> tuple[CutRecord, CutRecord, int, list[CutRecord]]:
    facts = request.topic
    made: list[CutRecord] = []
    carried = 0

    def cut(at: int, *, scheduled: bool) -> CutRecord:
        nonlocal carried
        found = next((c for c in (*known, *made) if c.at == at), None)
        if found is not None:
            return found
        index = cluster.at_time(facts.name, range(facts.partitions), at)
        offsets = decide_cut((*known, *made), at, index, stable, now_ms)
        earlier = [c for c in known if c.scheduled and c.at < at]
        if request.policy == "carry" and not scheduled and earlier:
            latest = max(earlier, key=lambda c: c.at)
            held = tuple(max([_at(latest, p), *(_at(c, p) for c in known if c.at < at)]) for p in range(facts.partitions))
            carried = sum(max(0, o - h) for o, h in zip(offsets, held, strict=True))
            offsets = tuple(min(o, h) for o, h in zip(offsets, held, strict=True))
        record = CutRecord(request.pipeline, facts.name, facts.id, at, offsets, scheduled=scheduled and request.policy == "carry")
        made.append(record)
        return record

    start = cut(interval.start_ms, scheduled=False)
    end = cut(interval.end_ms, scheduled=True)
    return start, end, carried, made


def window_closed(config: KafkaConfig, topic: str, end: datetime) -> dict[int, bool]:
    """Per partition, whether a record at or past ``end`` has arrived: nothing before it is to be expected in order."""
    cluster = Cluster(config)
    facts = cluster.topic(topic)
    found = cluster.at_time(topic, range(facts.partitions), round(end.timestamp() * 1000))
    return {p: offset >= 0 for p, (offset, _) in found.items()}
