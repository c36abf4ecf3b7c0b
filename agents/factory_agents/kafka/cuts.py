"""Plans windows: turns times into offsets once and for good (cuts), by compare-and-set on the ledger."""

from __future__ import annotations

import contextlib
import logging
import random
import time
from collections.abc import Iterable
from datetime import datetime

from confluent_kafka import KafkaException, Producer

from factory_agents import failpoints
from factory_agents.errors import ConfigurationError, DeadlineError, FencedError, WindowError
from factory_agents.kafka.config import KafkaConfig, connect, kafka_error
from factory_agents.kafka.ledger import Ledger, LedgerRecord, LedgerView, about_plans
from factory_agents.kafka.planning import FUTURE_MS, LogAnswers, PlanRequest, Policy, decide, planned
from factory_agents.kafka.topics import Cluster
from factory_agents.protocol import Interval, Window, transactional_id
from factory_agents.telemetry import fields

__all__ = ["check_names", "check_window_topic", "partition_passed", "plan_window", "preview_window"]

log = logging.getLogger(__name__)

_CLOCK_SKEW_MS = 60 * 1000
_TRANSACTION_MS = 20_000  # a plan's transaction lasts milliseconds; a killed planner's holds the ledger's readers this long at most
_WEEK_MS = 7 * 24 * 3600 * 1000


def check_names(**names: str) -> None:
    """Refuse names that cannot stand in ledger keys and transactional ids."""
    for what, name in names.items():
        if not name or "|" in name or not name.isprintable():
            raise ConfigurationError(f"{what.replace('_', ' ')}: expected a printable name without '|', got {name!r}")


def check_window_topic(cluster: Cluster, topic: str) -> None:
    """Refuse a topic whose records may vanish from within a window: compacted before its retention is over."""
    settings = cluster.settings(topic)
    policy = {p.strip() for p in settings.get("cleanup.policy", "delete").split(",")} - {""}
    if "compact" not in policy:
        return
    retention = int(settings.get("retention.ms", "-1"))
    horizon = retention if retention > 0 else _WEEK_MS
    lag = int(settings.get("min.compaction.lag.ms", "0"))
    if "delete" not in policy or lag < horizon:
        raise WindowError(
            f"topic {topic!r}: cleanup.policy={','.join(sorted(policy))} with min.compaction.lag.ms={lag} may remove records from within "
            f"a window; use delete, or compact,delete with min.compaction.lag.ms of at least {horizon}"
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

    ``policy`` says what a missing start cut takes: ``carry`` the latest earlier scheduled cut (scheduled runs: a pause is carried into the
    next run), ``index`` the timestamp index. Raises WindowError (mixed modes, overlap, an interval that is not over), DataLossError (a
    recreated topic), UnavailableError, and DeadlineError after ``timeout`` seconds.
    """
    check_names(pipeline=pipeline, prefix=prefix, **({} if interval else {"run_key": run_key}))
    _check_past(interval)
    with Cluster(config) as cluster:
        window = _Planner(config, cluster, PlanRequest(pipeline, topic, interval, run_key, policy, accept_loss), prefix, timeout).plan()
        stamped = cluster.settings(topic).get("message.timestamp.type")
    if interval is not None and stamped == "CreateTime":
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
        log.warning("%d offsets beside this window are in no window; a backfill of that time takes them", window.gap, extra=facts)
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
        return _Planner(config, cluster, PlanRequest(pipeline, topic, interval), prefix, timeout).preview()


def _check_past(interval: Interval | None) -> None:
    if interval is not None and interval.end_ms > time.time() * 1000 + _CLOCK_SKEW_MS:
        raise WindowError(
            f"interval {interval.key}: it ends in the future, so its records have not all arrived; run it after {interval.end.isoformat()}"
        )


class _Planner:
    """One planner at work: reads the ledger, asks the log, writes what is missing, and begins again when another took over."""

    def __init__(self, config: KafkaConfig, cluster: Cluster, request: PlanRequest, prefix: str, timeout: float) -> None:
        self._config = config
        self._cluster = cluster
        self._request = request
        self._transactional_id = transactional_id(prefix, "plan", request.pipeline)
        self._timeout = timeout
        self._deadline = time.monotonic() + timeout
        self._ledger = Ledger(config, cluster, prefix=prefix, pipeline=request.pipeline)
        self._doing = f"planning {request.window} of {request.pipeline!r}"

    def plan(self) -> Window:
        """The window, from the ledger or newly written there."""
        topic = self._cluster.topic(self._request.topic)
        check_window_topic(self._cluster, topic.name)
        self._ledger.ensure()
        lost = 0
        while True:
            window = planned(self._ledger.glance(deadline=self._deadline, wanted=about_plans), self._request, topic)
            if window is not None:
                return window
            if time.monotonic() > self._deadline:
                raise DeadlineError(
                    f"{self._doing} on {self._request.topic!r}: other planners kept taking over for {self._timeout:.0f} s; try again"
                )
            answers = self._ask()
            topic = answers.topic
            window = self._write(answers)
            if window is not None:
                return window
            lost += 1  # whoever took over is given time to finish, or all would fence each other for ever
            time.sleep(random.uniform(0.05, 0.1 * min(2**lost, 30)))

    def preview(self) -> Window:
        """The window that ``plan`` would give now; writes nothing."""
        check_window_topic(self._cluster, self._request.topic)
        absent = self._cluster.find(self._ledger.topic) is None
        view = LedgerView() if absent else self._ledger.glance(deadline=self._deadline, wanted=about_plans)
        answers = self._ask()
        window = planned(view, self._request, answers.topic)
        if window is None:
            records = decide(view, self._request, answers, int(time.time() * 1000))
            would_be = LedgerView({**view.records, **{record.key(): (view.end, record) for record in records}}, view.end)
            window = planned(would_be, self._request, answers.topic)
        if window is None:
            raise WindowError(f"{self._doing}: no window came of it")
        return window

    def _ask(self) -> LogAnswers:
        """What the log says now, all of it about one topic id and number of partitions."""
        name, interval = self._request.topic, self._request.interval
        while True:
            topic = self._cluster.topic(name)
            partitions = range(topic.partitions)
            start, stable = self._cluster.log_start(name, partitions), self._cluster.stable_offset(name, partitions)
            times = () if interval is None else (interval.start_ms, interval.end_ms)
            index = {at: self._cluster.at_time(name, partitions, at) for at in times}
            if self._cluster.topic(name) == topic:
                return LogAnswers(topic, start, stable, index)
            if time.monotonic() > self._deadline:
                raise DeadlineError(f"{self._doing}: topic {name!r} kept changing for {self._timeout:.0f} s; try again")

    def _write(self, answers: LogAnswers) -> Window | None:
        """One try at writing what is missing; None where another planner took over, or the broker aborted: the ledger tells what now.

        A producer of the same id that died with its transaction open is fenced first, so that nobody waits for it.
        """
        producer = self._config.producer(self._transactional_id, transaction_timeout_ms=_TRANSACTION_MS)
        connect(producer, self._ledger.topic)
        try:
            producer.init_transactions(max(1.0, self._deadline - time.monotonic()))
            view = self._ledger.read(deadline=self._deadline, wanted=about_plans)
            window = planned(view, self._request, answers.topic)
            if window is not None:
                return window
            now_ms = int(time.time() * 1000)
            records = decide(view, self._request, answers, now_ms)
            _warn_of_clocks(answers, now_ms)
            self._commit(producer, records)
        except KafkaException as error:
            failure = kafka_error(error, self._doing)
            if isinstance(failure, FencedError) or error.args[0].txn_requires_abort():
                return None
            raise failure from error
        finally:
            del producer  # an error's traceback would keep it, with its threads and sockets
        return planned(self._ledger.read(deadline=self._deadline, wanted=about_plans), self._request, answers.topic)

    def _commit(self, producer: Producer, records: Iterable[LedgerRecord]) -> None:
        producer.begin_transaction()
        self._ledger.produce(producer, records)
        producer.flush(max(1.0, self._deadline - time.monotonic()))
        failpoints.hit("plan.before-commit")
        while True:
            try:
                producer.commit_transaction(max(1.0, self._deadline - time.monotonic()))
                break
            except KafkaException as error:
                if not error.args[0].retriable() or time.monotonic() > self._deadline:
                    raise
        failpoints.hit("plan.after-commit")


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
