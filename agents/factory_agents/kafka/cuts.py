"""Plans windows: turns times into offsets once and for good (cuts), by compare-and-set on the ledger."""

from __future__ import annotations

import contextlib
import logging
import math
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from datetime import datetime
from typing import Generic, TypeVar

import msgspec
from confluent_kafka import KafkaException, Producer

from factory_agents import failpoints
from factory_agents.errors import DeadlineError, FencedError, WindowError
from factory_agents.kafka.config import KafkaConfig, connect, kafka_error, unauthorized
from factory_agents.kafka.ledger import Ledger, LedgerRecord, LedgerView, PlanRecord
from factory_agents.kafka.plan_view import Lane, PlanView
from factory_agents.kafka.planning import (
    FUTURE_MS,
    LogAnswers,
    PlanRequest,
    Policy,
    check_source,
    decide,
    planned,
    relevant,
    relevant_source,
    source_plan,
)
from factory_agents.kafka.prune_view import origin_of
from factory_agents.kafka.pruner import RETENTION, keep_seconds, prune_beside, retention_of
from factory_agents.kafka.pruning import is_due
from factory_agents.kafka.records import MarkRecord, check_names, mark_key
from factory_agents.kafka.topics import Cluster, check_window_topic
from factory_agents.protocol import Interval, Window, Work, transactional_id
from factory_agents.telemetry import fields

__all__ = ["partition_passed", "plan_source", "plan_window", "preview_window"]

log = logging.getLogger(__name__)

_T = TypeVar("_T")

_CLOCK_SKEW_MS = 60 * 1000
_TRANSACTION_MS = 20_000  # a plan's transaction lasts milliseconds; a killed planner's holds the ledger's readers this long at most


def plan_window(
    config: KafkaConfig,
    *,
    pipeline: str,
    topic: str,
    interval: Interval | None,
    run_key: str = "",
    prefix: str = "factory",
    policy: Policy = "index",
    follows: bool = False,
    accept_loss: bool = False,
    asked: datetime | None = None,
    keep: str = RETENTION,
    view: PlanView | None = None,
    timeout: float = 120.0,
) -> Window:
    """The window of an interval on a topic (or, without one, since the pipeline's last cut), planned once and then always the same.

    ``policy`` says what a missing start cut takes: ``carry`` the latest earlier scheduled cut (scheduled runs: a pause is carried into the
    next run), ``index`` the timestamp index; and so does ``carry`` where the run ``follows`` another scheduled one, planned yet or not,
    whose interval ends where this one begins. ``asked`` is when a run without an interval came into being: one that is older than what was
    pruned is refused. ``keep``: for how long the ledger remembers windows, see ``prune_pipeline``; what is older goes beside the plan.
    ``view``: what a planner that lives long has followed so far.

    Raises WindowError (mixed modes, overlap, an interval that is not over, pruned), DataLossError (a recreated topic), UnavailableError,
    and DeadlineError after ``timeout`` seconds.
    """
    keep_seconds(keep)
    check_names(pipeline=pipeline, prefix=prefix, **({} if interval else {"run_key": run_key}))
    _check_past(interval)
    request = PlanRequest(pipeline, topic, interval, run_key, policy, accept_loss, follows, round(asked.timestamp() * 1000) if asked else 0)
    with Cluster(config) as cluster:
        planner = _WindowPlanner(config, cluster, request, prefix, timeout, view)
        window = planner.plan()
        settings = cluster.settings(topic)
        planner.prune(keep, retention_of(settings))
    if interval is not None and settings.get("message.timestamp.type") == "CreateTime":
        log.warning("topic %r stamps records with the producer's time (CreateTime); LogAppendTime makes windows follow arrival", topic)
    facts = fields(
        pipeline=pipeline,
        topic=topic,
        window=window.key,
        records=window.size,
        carried=window.carried,
        gap=window.gap,
        partitions=len(window.ranges),
    )
    log.info("window planned", extra=facts)
    if window.gap:
        log.warning(
            "%d offsets beside this window are in no window yet; the runs of that time, or a backfill of it, take them",
            window.gap,
            extra=facts,
        )
    return window


def preview_window(
    config: KafkaConfig, *, pipeline: str, topic: str, interval: Interval, prefix: str = "factory", timeout: float = 120.0
) -> Window:
    """The window that ``plan_window`` would give now, for a dry run: nothing is written, so a later plan may still differ.

    Raises what ``plan_window`` does.
    """
    check_names(pipeline=pipeline, prefix=prefix)
    _check_past(interval)
    with Cluster(config) as cluster:
        return _WindowPlanner(config, cluster, PlanRequest(pipeline, topic, interval), prefix, timeout).preview()


def plan_source(
    config: KafkaConfig,
    work: Work,
    interval: Interval | None,
    *,
    prefix: str = "factory",
    dry_run: bool = False,
    output_topic: str = "",
    keep: str = RETENTION,
    timeout: float = 120.0,
) -> None:
    """Say in the ledger that a stage reads an interval of its source (None: all of it), so that no other one reads the same rows again.

    A dry run says nothing. ``keep`` as in ``plan_window``, by the retention of ``output_topic`` at first. Raises WindowError where the
    interval overlaps another one of the stage or was pruned, UnavailableError, and DeadlineError after ``timeout`` seconds.
    """
    keep_seconds(keep)
    with Cluster(config) as cluster:
        planner = _SourcePlanner(config, cluster, work, interval, prefix, timeout)
        if dry_run:
            planner.preview()
            return
        planner.plan()
        if output_topic:
            planner.prune(keep, retention_of(cluster.settings(output_topic)))


def _check_past(interval: Interval | None) -> None:
    if interval is not None and interval.end_ms > time.time() * 1000 + _CLOCK_SKEW_MS:
        raise WindowError(
            f"interval {interval.key}: it ends in the future, so its records have not all arrived; run it after {interval.end.isoformat()}"
        )


class _Planner(ABC, Generic[_T]):
    """One planner at work: reads the ledger, writes what is missing, and begins again when another took over."""

    def __init__(
        self, config: KafkaConfig, cluster: Cluster, pipeline: str, doing: str, prefix: str, timeout: float, view: PlanView | None = None
    ) -> None:
        self.config = config
        self.prefix = prefix
        self.cluster = cluster
        self.timeout = timeout
        self.deadline = time.monotonic() + timeout
        self.doing = doing
        self.ledger = Ledger(config, cluster, prefix=prefix, pipeline=pipeline)
        self.view = view or PlanView(pipeline)
        self._transactional_id = transactional_id(prefix, "plan", pipeline)

    @abstractmethod
    def near(self) -> LedgerView:
        """What there is in the ledger that matters."""

    @abstractmethod
    def found(self, view: LedgerView) -> _T | None:
        """The plan, where the ledger has it."""

    @abstractmethod
    def missing(self, view: LedgerView, now_ms: int) -> list[LedgerRecord]:
        """What the ledger lacks for it; raises WindowError and DataLossError for a plan that must not be made."""

    def ask(self) -> None:
        """Ask whatever ``missing`` has to know, before the transaction begins."""

    def plan(self) -> _T:
        """The plan, from the ledger or newly written there."""
        self.ledger.ensure()
        lost = 0
        while True:
            self.ledger.follow(self.view, deadline=self.deadline, stable=True)
            found = self.found(self.near())
            if found is not None:
                return found
            if time.monotonic() > self.deadline:
                raise DeadlineError(f"{self.doing}: other planners kept taking over for {self.timeout:.0f} s; try again")
            self.ask()
            found = self._write()
            if found is not None:
                return found
            lost += 1  # whoever took over is given time to finish, or all would fence each other for ever
            time.sleep(random.uniform(0.05, 0.1 * min(2**lost, 30)))

    @property
    @abstractmethod
    def origin(self) -> str:
        """The topic or source whose windows are planned."""

    @abstractmethod
    def lanes(self) -> Iterable[Lane]:
        """All that was planned on it."""

    def prune(self, keep: str, retention_ms: int | None) -> None:
        """Beside the plan, forget what is older than the ledger has to remember; raises nothing."""
        seconds = keep_seconds(keep)
        found = self.view.get(mark_key(self.ledger.pipeline, self.origin))
        mark = found if isinstance(found, MarkRecord) else None
        if seconds is not None:
            keep_ms = 0.0 if math.isinf(seconds) else seconds * 1000
        else:  # some other topic of the pipeline may keep its records longer, as was seen when it was pruned last
            keep_ms = 0.0 if retention_ms is None else max(retention_ms, mark.keep if mark is not None else 0)
        if keep_ms and is_due(self.view, self.lanes(), mark, int(keep_ms), int(time.time() * 1000)):
            prune_beside(self.config, self.cluster, self.view, origin=self.origin, prefix=self.prefix, keep=keep)

    def preview(self) -> _T:
        """The plan that would be made now; writes nothing."""
        if self.cluster.find(self.ledger.topic) is not None:
            self.ledger.follow(self.view, deadline=self.deadline, stable=True)
        self.ask()
        near = self.near()
        found = self.found(near)
        if found is None:
            near.add(*self.missing(near, int(time.time() * 1000)))
            found = self.found(near)
        if found is None:
            raise WindowError(f"{self.doing}: no plan was made")
        return found

    def _write(self) -> _T | None:
        """One try at writing what is missing; None where another planner took over, or the broker aborted: the ledger tells what now.

        A producer of the same id that died with its transaction open is fenced first, so that nobody waits for it.
        """
        producer = self.config.producer(self._transactional_id, transaction_timeout_ms=_TRANSACTION_MS)
        connect(producer, self.ledger.topic)
        try:
            producer.init_transactions(max(1.0, self.deadline - time.monotonic()))
            self.ledger.follow(self.view, deadline=self.deadline)
            near = self.near()
            found = self.found(near)
            if found is not None:
                return found
            self._commit(producer, self.missing(near, int(time.time() * 1000)))
        except KafkaException as error:
            failure = kafka_error(
                error,
                self.doing,
                topic=f"WRITE on topic {self.ledger.topic!r}",
                transactional_id=f"WRITE on transactional id {self._transactional_id!r}",
            )
            if isinstance(failure, FencedError) or (error.args[0].txn_requires_abort() and not unauthorized(error)):
                return None
            raise failure from error
        finally:
            del producer  # an error's traceback would keep it, with its threads and sockets
        self.ledger.follow(self.view, deadline=self.deadline)
        return self.found(self.near())

    def _commit(self, producer: Producer, records: Iterable[LedgerRecord]) -> None:
        producer.begin_transaction()
        self.ledger.produce(producer, records)
        producer.flush(max(1.0, self.deadline - time.monotonic()))
        failpoints.hit("plan.before-commit")
        while True:
            try:
                producer.commit_transaction(max(1.0, self.deadline - time.monotonic()))
                break
            except KafkaException as error:
                if not error.args[0].retriable() or time.monotonic() > self.deadline:
                    raise
        failpoints.hit("plan.after-commit")


class _WindowPlanner(_Planner[Window]):
    """Plans a window on a topic."""

    def __init__(
        self, config: KafkaConfig, cluster: Cluster, request: PlanRequest, prefix: str, timeout: float, view: PlanView | None = None
    ) -> None:
        doing = f"planning {request.window} of {request.pipeline!r} on {request.topic!r}"
        super().__init__(config, cluster, request.pipeline, doing, prefix, timeout, view)
        self._request = request
        self._topic = cluster.topic(request.topic)
        self._answers: LogAnswers | None = None
        check_window_topic(cluster, request.topic)

    @property
    def origin(self) -> str:
        return self._request.topic

    def lanes(self) -> Iterable[Lane]:
        return self.view.lanes_of(self.origin).values()

    def near(self) -> LedgerView:
        return relevant(self.view, self._request, self._topic)

    def found(self, view: LedgerView) -> Window | None:
        return planned(view, self._request, self._topic)

    def missing(self, view: LedgerView, now_ms: int) -> list[LedgerRecord]:
        answers = self._answers or self._ask()
        records = decide(view, self._request, answers, now_ms)
        _warn_of_clocks(answers, now_ms)
        return records

    def ask(self) -> None:
        self._answers = self._ask()
        self._topic = self._answers.topic

    def _ask(self) -> LogAnswers:
        """What the log says now, all of it about one topic id and number of partitions."""
        name, interval = self._request.topic, self._request.interval
        while True:
            topic = self.cluster.topic(name)
            partitions = range(topic.partitions)
            start, stable = self.cluster.log_start(name, partitions), self.cluster.stable_offset(name, partitions)
            times = () if interval is None else (interval.start_ms, interval.end_ms)
            index = {at: self.cluster.at_time(name, partitions, at) for at in times}
            if self.cluster.topic(name) == topic:
                return LogAnswers(topic, start, stable, index)
            if time.monotonic() > self.deadline:
                raise DeadlineError(f"{self.doing}: the topic kept changing for {self.timeout:.0f} s; try again")


class _SourcePlanner(_Planner[PlanRecord]):
    """Plans which rows of a source a stage reads."""

    def __init__(self, config: KafkaConfig, cluster: Cluster, work: Work, interval: Interval | None, prefix: str, timeout: float) -> None:
        doing = f"planning {work.window} of {work.pipeline!r}, stage {work.stage!r}"
        super().__init__(config, cluster, work.pipeline, doing, prefix, timeout)
        self._record = source_plan(work, interval)
        self._origin = origin_of(work.scope)

    @property
    def origin(self) -> str:
        return self._origin

    def lanes(self) -> Iterable[Lane]:
        return [self.view.lane(self._record.topic_id)]

    def near(self) -> LedgerView:
        return relevant_source(self.view, self._record, self.origin)

    def found(self, view: LedgerView) -> PlanRecord | None:
        found = view.get(self._record.key())
        return found if isinstance(found, PlanRecord) else None

    def missing(self, view: LedgerView, now_ms: int) -> list[LedgerRecord]:
        check_source(view, self._record, self.origin)
        return [msgspec.structs.replace(self._record, planned_at=now_ms)]


def _warn_of_clocks(answers: LogAnswers, now_ms: int) -> None:
    ahead = sorted({p for found in answers.index.values() for p, (_, stamp) in found.items() if stamp > now_ms + FUTURE_MS})
    if ahead:
        log.warning(
            "topic %r: partitions %s hold records of a clock more than 5 minutes ahead, which hide later ones from the timestamp index: "
            "windows are cut at the log's end there, and may hold more than their time",
            answers.topic.name,
            ahead[:20],
        )


def partition_passed(config: KafkaConfig, topic: str, end: datetime, *, cluster: Cluster | None = None) -> dict[int, bool]:
    """Per partition, whether a record at or past ``end`` has arrived, so that nothing before it is to be expected in order.

    One that lies further ahead of now than a cut would believe does not count. ``cluster``: a client to ask with, for who asks often.
    """
    with contextlib.ExitStack() as stack:
        cluster = cluster or stack.enter_context(Cluster(config))
        facts = cluster.topic(topic)
        found = cluster.at_time(topic, range(facts.partitions), round(end.timestamp() * 1000))
    latest = time.time() * 1000 + FUTURE_MS
    return {p: offset >= 0 and stamp <= latest for p, (offset, stamp) in found.items()}
