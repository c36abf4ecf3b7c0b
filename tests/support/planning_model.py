"""The model of a topic and of a ledger, for tests of planning and pruning: what would be asked of a broker is a list here."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from factory_agents.errors import FactoryError
from factory_agents.kafka.ledger import CutRecord, LedgerView, PlanRecord
from factory_agents.kafka.plan_view import PlanView
from factory_agents.kafka.planning import LogAnswers, PlanRequest, Policy, check_source, decide, planned, relevant, relevant_source
from factory_agents.kafka.topics import TopicInfo
from factory_agents.protocol import Interval, Window

T = TypeVar("T")

HOUR = 3_600_000
DAY0 = datetime(2026, 11, 1, tzinfo=UTC)


def ms(hour: float) -> int:
    return round(DAY0.timestamp() * 1000 + hour * HOUR)


def interval(start: float, end: float) -> Interval:
    return Interval(DAY0 + timedelta(hours=start), DAY0 + timedelta(hours=end))


def cut(at: float, *offsets: int, scheduled: bool = False) -> CutRecord:
    return CutRecord("p", "t", "id-1", ms(at), offsets, scheduled=scheduled)


class ModelLog:
    """The model of a topic: per partition a list of timestamps, and the first offset of an open transaction, if there is one."""

    def __init__(self, partitions: int = 1, topic_id: str = "id-1") -> None:
        self.topic_id = topic_id
        self.stamps: list[list[int]] = [[] for _ in range(partitions)]
        self.open_since: dict[int, int] = {}

    def append(self, partition: int, stamp: int) -> None:
        self.stamps[partition].append(stamp)

    def answers(self, interval: Interval | None) -> LogAnswers:
        """What a broker would say: its index gives the first record, in the order of offsets, at or past a time."""
        partitions = range(len(self.stamps))
        return LogAnswers(
            TopicInfo("t", self.topic_id, len(self.stamps)),
            log_start=dict.fromkeys(partitions, 0),
            stable={p: self.open_since.get(p, len(self.stamps[p])) for p in partitions},
            index={
                at: {
                    p: next(((o, stamp) for o, stamp in enumerate(self.stamps[p]) if stamp >= at), (-1, -1)) for p in partitions
                }
                for at in (() if interval is None else (interval.start_ms, interval.end_ms))
            },
        )  # fmt: skip


def outcome(judge: Callable[[LedgerView], T], view: LedgerView) -> T | str:
    """What comes of a judgement: a value, or an error's text."""
    try:
        return judge(view)
    except FactoryError as error:
        return f"{type(error).__name__}: {error}"


class ModelLedger:
    """The model of a ledger: what is written is there at once, for good."""

    def __init__(self, view: PlanView | None = None) -> None:
        self.view = view or PlanView("p")

    def plan(self, log: ModelLog, request: PlanRequest, now_ms: int, answers: LogAnswers | None = None) -> Window:
        """As the planner does it; ``answers`` may be older than the ledger."""
        answers = answers or log.answers(request.interval)
        window = self.judged(request, answers.topic, lambda view: planned(view, request, answers.topic))
        if window is None:
            self.view.add(*self.judged(request, answers.topic, lambda view: decide(view, request, answers, now_ms)))
            window = self.judged(request, answers.topic, lambda view: planned(view, request, answers.topic))
        assert window is not None
        return window

    def judged(self, request: PlanRequest, topic: TopicInfo, judge: Callable[[LedgerView], T]) -> T:
        """By the few records that matter, which has to be the same as by all of them."""
        assert outcome(judge, relevant(self.view, request, topic)) == outcome(judge, self.view)
        return judge(relevant(self.view, request, topic))


def request(start: float, end: float, policy: Policy = "index", **more: bool) -> PlanRequest:
    return PlanRequest("p", "t", interval(start, end), policy=policy, **more)


def since_last(run: str, **more: bool) -> PlanRequest:
    return PlanRequest("p", "t", None, run_key=run, **more)


def check(view: PlanView, plan: PlanRecord) -> None:
    check_source(relevant_source(view, plan), plan)


def offsets(window: Window) -> set[tuple[int, int]]:
    return {(r.partition, o) for r in window.ranges for o in range(r.start, r.end)}
