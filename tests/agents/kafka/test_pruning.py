"""What is pruned is decided purely: above the mark nobody notices it, below it everybody is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Literal, TypeVar

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from factory_agents.errors import ConfigurationError, FactoryError, WindowError
from factory_agents.kafka.ledger import CutRecord, LedgerView, MarkRecord, PlanRecord, StageRecord, StoredResult
from factory_agents.kafka.plan_view import PlanView
from factory_agents.kafka.planning import LogAnswers, PlanRequest, Policy, relevant, source_plan
from factory_agents.kafka.prune_view import PruneView
from factory_agents.kafka.pruning import MOST_SPANS, Horizon, Pruning, decide_pruning, is_due
from factory_agents.kafka.records import (
    ALWAYS,
    FailureRecord,
    LedgerRecord,
    PipelineRecord,
    Progress,
    VerdictRecord,
    encode_record,
    mark_key,
)
from factory_agents.kafka.topics import TopicInfo
from factory_agents.protocol import Interval, Manifest, PartitionRange, Shard, Window, Work
from tests.support.planning_model import ModelLedger, ModelLog, check, interval, ms, offsets, outcome, request, since_last
from tests.support.soak import examples

T = TypeVar("T")

ALL = 10**15
NO_LETTERS: Callable[[Manifest], bool] = lambda letters: False  # noqa: E731


class LoggedView(PruneView):
    """All that was written, for whoever begins to read it."""

    def __init__(self) -> None:
        self.log: list[tuple[int, bytes, bytes | None]] = []
        super().__init__("p")

    def take(self, offset: int, key: bytes, value: bytes | None) -> None:
        self.log.append((offset, key, value))
        super().take(offset, key, value)

    def put(self, record: LedgerRecord, offset: int) -> None:
        self.log.append((offset, record.key().encode(), encode_record(record)))
        super().put(record, offset)

    def read(self, room: int, marks: Iterable[MarkRecord]) -> PruneView:
        view = PruneView("p", room=room, marks=marks, topics=("t",))  # as in every round but the first
        for offset, key, value in self.log:
            view.take(offset, key, value)
        return view


class PrunedLedger(ModelLedger):
    """A ledger that is pruned now and then, in rounds with room for some records, by prunes that may have been killed before their end."""

    view: LoggedView

    def __init__(self) -> None:
        super().__init__(LoggedView())
        self.gone: set[str] = set()

    def work(self, window: str, *, stage: str = "stage", scope: str = "t", at: float = 0, finished: bool = True, **more: object) -> bytes:
        """What a stage did."""
        result = StoredResult(**more) if finished else None  # type: ignore[arg-type]
        record = StageRecord(
            "p", stage, window, Shard(), "f", 1, scope=scope, updated_at=ms(at), result=result, progress=None if finished else Progress()
        )
        self.view.take(self.view.end, record.key().encode(), encode_record(record))
        self.view.end += 1
        return record.key().encode()

    def prune(
        self,
        horizon: Horizon,
        now: float,
        *,
        killed_after: int = ALL,
        there: Callable[[Manifest], bool] = NO_LETTERS,
        room: int = ALL,
    ) -> Pruning:
        """As ``pruner`` does it."""
        told = Pruning()
        known = {mark.origin: mark for mark in self.view.of(MarkRecord)}
        while True:
            pruning = decide_pruning(self.view.read(room, known.values()), horizon, ms(now), there)
            self.view.add(*pruning.marks)
            keys = [*pruning.works, *pruning.plans]
            self.gone |= {key.decode() for key in pruning.plans}
            for key in keys[:killed_after]:
                self.view.take(self.view.end, key, None)
                self.view.end += 1
            known |= {mark.origin: mark for mark in pruning.marks}
            told.windows += pruning.windows
            told.unfinished += pruning.unfinished
            told.works += pruning.works
            told.plans += pruning.plans
            told.kept, told.letters, told.more = pruning.kept, pruning.letters, pruning.more
            killed_after -= len(keys)
            if not pruning.more or killed_after <= 0:
                return told
            room *= 1 if keys or pruning.windows else 2

    def judged(self, request: PlanRequest, topic: TopicInfo, judge: Callable[[LedgerView], T]) -> T:
        """It is all the same how far the deletions have come."""
        clean = PlanView("p")
        for offset, key in sorted((self.view.offset(key) or 0, key) for key in set(self.view.keys()) - self.gone):
            record = self.view.get(key)
            assert record is not None
            clean.put(record, offset)
        clean.end = self.view.end
        found = outcome(judge, relevant(self.view, request, topic))
        assert found == outcome(judge, relevant(clean, request, topic)) == outcome(judge, clean)
        return judge(relevant(self.view, request, topic))

    def mark(self, origin: str = "t") -> MarkRecord:
        found = self.view.get(mark_key("p", origin))
        assert isinstance(found, MarkRecord)
        return found

    def keys(self) -> set[str]:
        return {*self.view.keys(), *(key.decode() for key in self.view.works)}


def until(hour: float, *, unfinished: bool = True) -> Horizon:
    return Horizon(ms(hour), by="time", unfinished=unfinished)


def hourly(hours: int = 10, policy: Policy = "index", *, works: bool = True) -> tuple[ModelLog, PrunedLedger]:
    """Ten records an hour, a finished window each."""
    log, ledger = ModelLog(), PrunedLedger()
    for i in range(hours * 10):
        log.append(0, ms(i / 10))
    for hour in range(hours):
        window = ledger.plan(log, request(hour, hour + 1, policy), ms(hour + 1))
        if works:
            ledger.work(window.key, at=hour + 1)
    return log, ledger


class TestTheMark:
    def test_lies_at_the_end_of_the_last_window_that_goes(self) -> None:
        _, ledger = hourly()
        pruning = ledger.prune(until(4.5), 10)
        assert pruning.windows == [interval(h, h + 1).key for h in range(4)]
        assert ledger.mark().spans == ((ALWAYS, ms(4) * 1000),)
        assert [(k.origin, k.window, k.why) for k in pruning.kept] == [("t", interval(4, 5).key, "it is newer")]

    def test_leaves_what_the_next_windows_need_and_no_more(self) -> None:
        _, ledger = hourly()
        ledger.prune(until(8), 10)
        assert {c.at for c in ledger.view.of(CutRecord)} == {ms(h) for h in (7, 8, 9, 10)}
        assert {p.window for p in ledger.view.of(PlanRecord)} == {interval(h, h + 1).key for h in (7, 8, 9)}
        assert {d.window for d in ledger.view.works.values()} == {interval(h, h + 1).key for h in (8, 9)}

    def test_is_not_passed_by_windows_in_use(self) -> None:
        """By the time at which something was done last: a window of long ago that was cleared today stays, and so do those after it."""
        _, ledger = hourly()
        ledger.work(interval(3, 4).key, at=9.5)
        pruning = ledger.prune(Horizon(ms(9), by="rest"), 10)
        assert ledger.mark().low_water == ms(3)
        assert pruning.kept[0].why == "something was done on it since"

    def test_is_not_passed_by_hand_where_a_window_isnt_finished_unless_that_is_said(self) -> None:
        _, ledger = hourly(works=False)
        for hour in (0, 1, 3, 4):
            ledger.work(interval(hour, hour + 1).key, at=hour)
        pruning = ledger.prune(until(8, unfinished=False), 10)
        assert ledger.mark().low_water == ms(2)
        assert "isn't finished" in pruning.kept[0].why
        assert ledger.prune(until(8), 10).unfinished == [interval(h, h + 1).key for h in (2, 5, 6, 7)]
        assert ledger.mark().low_water == ms(8)

    def test_is_not_passed_by_a_window_that_lacks_a_stage_which_those_before_it_had(self) -> None:
        _, ledger = hourly()
        for hour in range(4):
            ledger.work(interval(hour, hour + 1).key, stage="publish", at=hour)
        for _ in range(2):  # the windows that had it are gone by the second time
            assert "isn't finished" in ledger.prune(Horizon(ms(90), by="rest"), 100).kept[0].why
            assert ledger.mark().low_water == ms(4)
        ledger.prune(until(5), 100)
        ledger.prune(Horizon(ms(90), by="rest"), 100)
        assert ledger.mark().low_water == ms(10), "it was taken out of the pipeline"

    def test_is_not_passed_by_itself_while_records_of_an_unfinished_window_may_be_there(self) -> None:
        _, ledger = hourly(works=False)
        ledger.prune(Horizon(ms(90), by="rest", lost=ms(1)), 100)
        assert ledger.mark().low_water is None
        assert ledger.prune(Horizon(ms(90), by="rest", lost=ms(7.5)), 100).unfinished == [interval(h, h + 1).key for h in range(7)]
        assert ledger.mark().low_water == ms(7)

    def test_never_goes_back(self) -> None:
        _, ledger = hourly()
        ledger.prune(until(8), 10)
        before = ledger.keys()
        assert ledger.prune(until(3), 10).windows == []
        assert ledger.mark().low_water == ms(8)
        assert ledger.keys() == before

    def test_done_again_deletes_what_a_killed_prune_left(self) -> None:
        _, killed = hourly()
        _, whole = hourly()
        killed.prune(until(8), 10, killed_after=3)
        killed.prune(until(8), 10)
        whole.prune(until(8), 10)
        assert killed.keys() == whole.keys()
        assert whole.prune(until(8), 10).works == []

    def test_takes_failures_and_verdicts_too_and_waits_for_no_judge_who_leaves_no_other_record(self) -> None:
        _, ledger = hourly()
        failure = FailureRecord("p", "judge", interval(1, 2).key, Shard(), ms(2), ms(2), "E", "why", scope="t")
        verdict = VerdictRecord("p", "judge", interval(1, 2).key, "stage", 1, ms(2), scope="t")
        for record in (failure, verdict):
            ledger.view.take(ledger.view.end, record.key().encode(), encode_record(record))
        pruning = ledger.prune(until(8), 10)
        assert {failure.key().encode(), verdict.key().encode()} <= set(pruning.works)
        assert len(pruning.windows) == 8
        assert pruning.unfinished == []

    def test_leaves_records_whose_dead_letters_are_there(self) -> None:
        log, ledger = hourly(works=False)
        letters = Manifest("t.dead", "id-d", "w", (PartitionRange(0, 5, 6, 1),))
        key = ledger.work(interval(1, 2).key, dead_letters=letters)
        assert ledger.prune(until(8), 10, there=letters.__eq__).letters == 1
        assert key in ledger.view.works
        with pytest.raises(WindowError, match="was pruned"):
            ledger.plan(log, request(1, 2), ms(10))
        ledger.prune(until(8), 10)
        assert key not in ledger.view.works

    def test_is_refused_where_a_newer_release_wrote_what_is_not_understood(self) -> None:
        _, ledger = hourly()
        with pytest.raises(ConfigurationError, match="nothing of its pipeline is pruned"):
            ledger.view.take(999, b"stage|p|s|t|w|0of1", b'{"version": 3, "kind": "stage"}')


class TestAPlan:
    def test_below_the_mark_is_refused_in_one_line(self) -> None:
        log, ledger = hourly()
        ledger.prune(until(8), 10)
        for start, end in ((0, 1), (7, 8), (6, 9), (-3, -2)):
            with pytest.raises(WindowError, match=r"pipeline 'p' on 't': window .* was pruned from the ledger.*--pipeline") as caught:
                ledger.plan(log, request(start, end), ms(10))
            assert "\n" not in str(caught.value)

    def test_above_it_is_what_it_was(self) -> None:
        log, ledger = hourly()
        before = ledger.plan(log, request(8, 9), ms(10))
        ledger.prune(until(8), 10)
        assert ledger.plan(log, request(8, 9), ms(10)) == before

    def test_after_a_pause_longer_than_the_horizon_carries_all_of_it(self) -> None:
        log, ledger = hourly(policy="carry")
        ledger.prune(until(10), 60)
        for i in range(500):
            log.append(0, ms(10 + i / 10))
        window = ledger.plan(log, request(58, 59, "carry"), ms(60))
        assert offsets(window) == {(0, o) for o in range(100, 590)}
        assert (window.carried, window.gap) == (480, 0)

    @pytest.mark.parametrize("pruned", [False, True])
    def test_carries_a_pause_where_the_last_runs_before_it_were_by_hand(self, pruned: bool) -> None:
        log, ledger = hourly(3, "carry")
        for i in range(30, 90):
            log.append(0, ms(i / 10))
        for hour in (3, 4, 5):
            ledger.plan(log, request(hour, hour + 1), ms(9))
        if pruned:
            ledger.prune(until(6), 9)
        window = ledger.plan(log, request(8, 9, "carry"), ms(9))
        assert (window.carried, window.gap) == (20, 0)

    @pytest.mark.parametrize("pruned", [False, True])
    def test_says_what_lies_between_it_and_the_last_window_though_that_was_pruned(self, pruned: bool) -> None:
        log, ledger = hourly(4)
        for i in range(40, 80):
            log.append(0, ms(i / 10))
        if pruned:
            ledger.prune(until(4), 8)
        assert ledger.plan(log, request(6, 7), ms(8)).gap == 20

    def test_says_nothing_of_gaps_below_the_mark(self) -> None:
        log, ledger = hourly(1, "carry")
        for i in range(10, 80):
            log.append(0, ms(i / 10))
        ledger.plan(log, request(2, 3), ms(8))
        ledger.prune(until(3), 8)
        assert ledger.plan(log, request(6, 7, "carry", follows=True), ms(8)).gap == 30

    def test_of_a_recreated_topic_still_says_so(self) -> None:
        _, ledger = hourly()
        ledger.prune(until(10), 60)
        again = ModelLog(topic_id="id-2")
        with pytest.raises(FactoryError, match="created again"):
            ledger.plan(again, request(58, 59), ms(60))

    def test_without_an_interval_goes_on_from_the_last_cut(self) -> None:
        log, ledger = ModelLog(), PrunedLedger()
        for n in range(5):
            log.append(0, ms(n))
            ledger.work(ledger.plan(log, since_last(f"run-{n}"), ms(n)).key, at=n)
        ledger.prune(Horizon(ms(3), by="rest"), 5)
        assert {p.window for p in ledger.view.of(PlanRecord)} == {"run-3", "run-4"}
        assert {d.window for d in ledger.view.works.values()} == {"run-3", "run-4"}
        log.append(0, ms(5))
        assert offsets(ledger.plan(log, since_last("run-5"), ms(5))) == {(0, 5)}
        assert offsets(ledger.plan(log, since_last("run-3"), ms(5))) == {(0, 3)}

    def test_without_an_interval_of_a_run_that_was_there_before_is_refused(self) -> None:
        log, ledger = ModelLog(), PrunedLedger()
        for n in range(5):
            log.append(0, ms(n))
            ledger.plan(log, since_last(f"run-{n}"), ms(n))
        ledger.prune(Horizon(ms(3), by="rest", unfinished=True), 5, killed_after=2)
        log.append(0, ms(5))
        for run, asked in (("run-0", 0), ("run-2", 2), ("never-planned", 1)):
            with pytest.raises(WindowError, match="was pruned"):
                ledger.plan(log, PlanRequest("p", "t", None, run_key=run, asked=ms(asked)), ms(5))
        ledger.plan(log, PlanRequest("p", "t", None, run_key="new", asked=ms(4.5)), ms(5))


class TestASource:
    """Its windows are of whatever time: what was read is remembered as the very intervals."""

    def ledger(self, *hours: int, at: float = 1) -> PrunedLedger:
        ledger = PrunedLedger()
        for hour in hours:
            self.read(ledger, hour, at)
        return ledger

    def read(self, ledger: PrunedLedger, hour: int, at: float) -> None:
        span = interval(hour, hour + 1)
        ledger.view.add(msgspec.structs.replace(source_plan(Work("p", "ingest", span.key), span), planned_at=ms(at)))
        ledger.work(span.key, stage="ingest", scope="", at=at)
        ledger.work(span.key, stage="enrich", scope="", at=at)

    def plan(self, start: float, end: float) -> PlanRecord:
        return source_plan(Work("p", "ingest", interval(start, end).key), interval(start, end))

    def test_is_pruned_by_when_it_was_read_not_by_its_own_time(self) -> None:
        ledger = self.ledger(-9000, -9001, 3, 2)
        self.read(ledger, -9002, 50)
        pruning = ledger.prune(Horizon(ms(40), by="rest"), 60)
        assert sorted(pruning.windows) == sorted(interval(h, h + 1).key for h in (-9000, -9001, 3, 2))
        assert len(ledger.mark("").spans) == 2
        assert {d.window for d in ledger.view.works.values()} == {interval(-9002, -9001).key}
        assert {p.window for p in ledger.view.of(PlanRecord)} == {interval(-9002, -9001).key}

    def test_is_read_once_and_for_good(self) -> None:
        ledger = self.ledger(2, 3, 5)
        ledger.prune(Horizon(ms(40), by="rest"), 60, killed_after=4)
        for start, end in ((2, 3), (3.5, 3.6), (0, 9), (5, 6), (3.9999999, 4.5)):
            with pytest.raises(WindowError, match=r"stage 'ingest': window .* was pruned"):
                check(ledger.view, self.plan(start, end))
        with pytest.raises(WindowError, match="was pruned"):
            check(ledger.view, source_plan(Work("p", "ingest", "all"), None))
        for start, end in ((4, 5), (0, 2), (6, 7)):
            check(ledger.view, self.plan(start, end))

    def test_a_window_in_use_is_covered_by_no_span(self) -> None:
        ledger = self.ledger(2, 3, 4)
        ledger.work(interval(3, 4).key, stage="enrich", scope="", at=55)
        ledger.prune(Horizon(ms(40), by="rest"), 60)
        assert not ledger.mark("").covers(interval(3, 4))
        assert ledger.mark("").covers(interval(2, 3))

    def test_has_few_spans_however_scattered_it_was_read(self) -> None:
        ledger = self.ledger(*range(0, 2 * MOST_SPANS + 40, 2))
        self.read(ledger, 7, 50)
        ledger.prune(Horizon(ms(40), by="rest"), 60)
        mark = ledger.mark("")
        assert len(mark.spans) == MOST_SPANS
        assert not mark.covers(interval(7, 8))
        assert all(mark.covers(interval(h, h + 1)) for h in range(0, 2 * MOST_SPANS + 40, 2))


class TestWhenItIsDue:
    def test_once_an_eighth_more_than_what_is_remembered_has_passed(self) -> None:
        _, ledger = hourly(8)
        lanes, keep = ledger.view.lanes_of("t").values(), ms(8) - ms(0)
        assert not is_due(ledger.view, lanes, None, keep, ms(10))
        assert is_due(ledger.view, lanes, None, keep, ms(10.1))

    def test_not_where_somebody_looked_a_moment_ago(self) -> None:
        _, ledger = hourly(8)
        lanes, keep = ledger.view.lanes_of("t").values(), ms(8) - ms(0)
        ledger.prune(Horizon(0, by="rest"), 20)
        assert not is_due(ledger.view, lanes, ledger.mark(), keep, ms(20.9))
        assert is_due(ledger.view, lanes, ledger.mark(), keep, ms(21.1))

    def test_no_more_once_it_is_done(self) -> None:
        _, ledger = hourly(8)
        ledger.prune(until(7), 20)
        lanes, keep = ledger.view.lanes_of("t").values(), ms(8) - ms(0)
        assert not is_due(ledger.view, lanes, ledger.mark(), keep, ms(8 + 8 + 0.9))


class Pairs(RuleBasedStateMachine):
    """Any history, once with a ledger that is pruned and once with one that isn't: above the mark they say the same."""

    @initialize(partitions=st.integers(1, 3), policy=st.sampled_from(["carry", "index"]))
    def begin(self, partitions: int, policy: Policy) -> None:
        self.log, self.whole, self.pruned, self.policy = ModelLog(partitions), ModelLedger(), PrunedLedger(), policy
        self.now = 10.0
        self.ids = 1
        self.windows: list[Window] = []
        self.runs(6)

    @rule(hours=st.integers(2, 5))
    def runs(self, hours: int) -> None:
        """One scheduled run after the other."""
        for _ in range(hours):
            self.append(2, 0.0, 1)
            self.plan(int(self.now) - 1, 1, self.policy, follows=True, accept_loss=True)

    @rule(n=st.integers(1, 3), shift=st.sampled_from([0.0, 0.0, -0.3, -1.0, -5.0, 0.05, 1.0, 9999.0]), hours=st.sampled_from([0, 0.25, 1]))
    def append(self, n: int, shift: float, hours: float) -> None:
        for p in range(len(self.log.stamps)):
            for _ in range(n):
                self.log.append(p, ms(self.now + shift))
        self.now += hours

    @rule(hours=st.sampled_from([1, 3]))
    def time_passes(self, hours: float) -> None:
        self.now += hours

    @precondition(lambda self: len(self.log.stamps) < 4)
    @rule()
    def partition_is_added(self) -> None:
        self.log.stamps.append([ms(self.now)] * 2)

    @precondition(lambda self: self.ids < 3)
    @rule()
    def topic_is_created_again(self) -> None:
        self.ids += 1
        self.log = ModelLog(len(self.log.stamps), f"id-{self.ids}")

    @rule(ago=st.sampled_from([1, 1, 1, 2, 4]), follows=st.booleans(), accept_loss=st.booleans())
    def scheduled_run(self, ago: int, follows: bool, accept_loss: bool) -> None:
        self.plan(int(self.now) - ago, 1, self.policy, follows=follows, accept_loss=accept_loss)

    @rule(ago=st.integers(1, 9), hours=st.sampled_from([1, 1, 2]), accept_loss=st.booleans())
    def backfill_or_manual_run(self, ago: int, hours: int, accept_loss: bool) -> None:
        self.plan(int(self.now) - ago, min(hours, ago), "index", accept_loss=accept_loss)

    @precondition(lambda self: self.pruned.view.lanes)
    @rule(
        ago=st.integers(-1, 6),
        by=st.sampled_from(["time", "rest"]),
        killed_after=st.sampled_from([0, 1, 3, ALL, ALL]),
        room=st.sampled_from([1, 2, 5, ALL]),
    )
    def prune(self, ago: int, by: Literal["time", "rest"], killed_after: int, room: int) -> None:
        self.pruned.prune(Horizon(ms(self.now - ago), by=by, unfinished=True), self.now, killed_after=killed_after, room=room)

    @precondition(lambda self: self.windows)
    @rule(back=st.integers(1, 6), stage=st.sampled_from(["enrich", "publish"]))
    def stage_is_done(self, back: int, stage: str) -> None:
        self.pruned.work(self.windows[-back:][0].key, stage=stage, at=self.now)

    def plan(self, hour: int, hours: int, policy: Policy, **more: bool) -> None:
        asked = request(hour, hour + hours, policy, **more)
        assert asked.interval is not None
        answers = self.log.answers(asked.interval)
        mark = self.pruned.view.get(mark_key("p", "t"))
        if isinstance(mark, MarkRecord) and mark.covers(asked.interval):
            with pytest.raises(FactoryError, match="was pruned"):
                self.pruned.plan(self.log, asked, ms(self.now), answers)
            return
        one, other = self.tried(self.whole, asked, answers), self.tried(self.pruned, asked, answers)
        if isinstance(one, Window) and isinstance(other, Window):
            assert other.gap <= one.gap, "what is below the mark is nobody's to take any more"
            one, other = (msgspec.structs.replace(w, gap=0, generation=0, ledger_offset=0) for w in (one, other))
            self.windows.append(one)
        assert one == other

    def tried(self, ledger: ModelLedger, asked: PlanRequest, answers: LogAnswers) -> Window | str:
        try:
            return ledger.plan(self.log, asked, ms(self.now), answers)
        except FactoryError as error:
            return f"{type(error).__name__}: {error}"

    @invariant()
    def what_was_pruned_stays_refused(self) -> None:
        mark = getattr(self, "pruned", None) and self.pruned.view.get(mark_key("p", "t"))
        if isinstance(mark, MarkRecord) and mark.low_water is not None:
            start = datetime.fromtimestamp(mark.low_water / 1000 - 3600, interval(0, 1).start.tzinfo)
            asked = PlanRequest("p", "t", Interval(start, datetime.fromtimestamp(mark.low_water / 1000, start.tzinfo)))
            with pytest.raises(FactoryError, match="was pruned"):
                self.pruned.plan(self.log, asked, ms(self.now))


TestPairs = pytest.mark.slow(Pairs.TestCase)
TestPairs.settings = settings(max_examples=examples(20, 60), stateful_step_count=25, deadline=None)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 60), st.booleans()), max_size=25), st.lists(st.integers(0, 70), max_size=4))
def test_of_a_source_each_window_is_remembered_or_refused(reads: list[tuple[int, int, bool]], prunes: list[int]) -> None:
    """Whatever was read, in whatever order, and pruned in between: it is in the ledger or below the mark; what was never read is free."""
    ledger = PrunedLedger()
    source, was_read = TestASource(), set()
    for n, (hour, at, _) in enumerate(reads):
        if n < len(prunes):
            ledger.prune(Horizon(ms(prunes[n]), by="rest"), 100)
        try:
            check(ledger.view, source.plan(hour, hour + 1))
        except FactoryError:
            assert hour in was_read
            continue
        source.read(ledger, hour, at)
        was_read.add(hour)
    for before in prunes:
        ledger.prune(Horizon(ms(before), by="rest"), 100, killed_after=before)
    there = {d.window for d in ledger.view.works.values()}
    for hour in range(31):
        span = interval(hour, hour + 1)
        found = ledger.view.get(mark_key("p", ""))
        covered = isinstance(found, MarkRecord) and found.covers(span)
        assert (span.key in there or covered) == (hour in was_read)


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[str, tuple[int, ...]]]:
    """What was planned and done, in whatever order: of a topic's and a source's windows, by time or by run."""
    hours, ats, either = st.integers(0, 12), st.integers(0, 40), st.integers(0, 1)
    work = st.tuples(st.just("work"), st.tuples(st.integers(0, 2), hours, either, ats, either, either))
    planned = st.tuples(st.sampled_from(["plan", "read"]), st.tuples(hours, ats))
    return draw(st.lists(st.one_of(work, work, planned), min_size=1, max_size=40))


def retold(history: Iterable[tuple[str, tuple[int, ...]]], *, by_interval: bool) -> PrunedLedger:
    ledger, log = PrunedLedger(), ModelLog()
    ledger.view.add(PipelineRecord("p", "intervals" if by_interval else "since_last"))
    for n, (what, numbers) in enumerate(history):
        if what == "work":
            scope, hour, stage, at, finished, letters = numbers
            name = interval(hour, hour + 1).key if by_interval or scope == 2 else f"run-{hour}"
            more = {"dead_letters": Manifest("t.dead", "d", "w", (PartitionRange(0, n, n + 1, 1),))} if letters and finished else {}
            ledger.work(name, stage="ab"[stage], scope=("t", "t[1]", "s")[scope], at=at, finished=bool(finished), **more)
            continue
        hour, at = numbers
        if what == "read":
            span = interval(hour, hour + 1)
            ledger.view.add(msgspec.structs.replace(source_plan(Work("p", "a", span.key, scope="s"), span), planned_at=ms(at)))
        else:
            log.append(0, ms(hour))
            ledger.plan(log, request(hour, hour + 1) if by_interval else since_last(f"run-{hour}"), ms(at))
    return ledger


@given(
    history=histories(),
    by_interval=st.booleans(),
    room=st.integers(1, 6),
    prunes=st.lists(st.tuples(st.integers(0, 45), st.booleans(), st.sampled_from([0, 2, 5, ALL, ALL])), min_size=1, max_size=3),
)
@settings(max_examples=examples(100, 2000), deadline=None)
def test_in_rounds_it_comes_to_the_same_as_at_once(
    history: list[tuple[str, tuple[int, ...]]], by_interval: bool, room: int, prunes: list[tuple[int, bool, int]]
) -> None:
    """However little room there is, the same goes and the same stays; and whatever round a prune dies in, the next one does the rest."""
    there: Callable[[Manifest], bool] = lambda letters: letters.ranges[0].start % 2 == 0  # noqa: E731
    at_once, in_rounds = retold(history, by_interval=by_interval), retold(history, by_interval=by_interval)
    for before, lost, killed_after in prunes:
        horizon = Horizon(ms(before), by="rest", lost=ms(before) if lost else 0)
        at_once.prune(horizon, 50, there=there)
        in_rounds.prune(horizon, 50, there=there, room=room, killed_after=killed_after)
        told = in_rounds.prune(horizon, 50, there=there, room=room)
        assert not told.more
    assert {m.origin: m for m in in_rounds.view.of(MarkRecord)} == {m.origin: m for m in at_once.view.of(MarkRecord)}
    assert in_rounds.keys() >= at_once.keys()
    in_rounds.prune(horizon, 50, there=there)  # of what lies below the mark, a little may be left to a later prune
    assert in_rounds.keys() == at_once.keys()
