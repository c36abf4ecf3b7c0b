"""Planning is pure, so that every history can be tried: whatever happens, each record is in one window, or its absence is reported."""

from __future__ import annotations

import itertools
from datetime import timedelta, timezone

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from factory_agents.errors import DataLossError, UnavailableError, WindowError
from factory_agents.kafka.ledger import CutRecord, PlanRecord
from factory_agents.kafka.plan_view import PlanView
from factory_agents.kafka.planning import (
    FUTURE_MS,
    LogAnswers,
    PlanRequest,
    Policy,
    decide_cut,
    source_plan,
)
from factory_agents.protocol import Interval, PartitionRange, Window, Work
from tests.support.planning_model import DAY0, ModelLedger, ModelLog, check, cut, interval, ms, offsets, request, since_last
from tests.support.soak import examples


class TestACut:
    def test_takes_the_index_answer(self) -> None:
        assert decide_cut([], ms(1), {0: (7, ms(1))}, {0: 20}, ms(2)) == (7,)

    def test_takes_the_stable_offset_where_no_record_is_that_late(self) -> None:
        assert decide_cut([], ms(1), {0: (-1, -1)}, {0: 20}, ms(2)) == (20,)

    def test_does_not_believe_a_clock_more_than_five_minutes_ahead(self) -> None:
        assert decide_cut([], ms(1), {0: (7, ms(2) + FUTURE_MS + 1)}, {0: 20}, ms(2)) == (20,)

    def test_believes_a_clock_five_minutes_ahead(self) -> None:
        assert decide_cut([], ms(1), {0: (7, ms(2) + FUTURE_MS)}, {0: 20}, ms(2)) == (7,)

    def test_is_zero_in_an_empty_partition(self) -> None:
        assert decide_cut([], ms(1), {0: (-1, -1)}, {0: 0}, ms(2)) == (0,)

    def test_is_never_below_an_earlier_cut(self) -> None:
        assert decide_cut([cut(0, 9)], ms(1), {0: (7, ms(1))}, {0: 20}, ms(2)) == (9,)

    def test_is_never_above_a_later_cut(self) -> None:
        assert decide_cut([cut(2, 5)], ms(1), {0: (7, ms(1))}, {0: 20}, ms(3)) == (5,)

    def test_is_zero_in_a_partition_added_after_a_later_cut(self) -> None:
        assert decide_cut([cut(2, 5)], ms(1), {0: (3, ms(1)), 1: (4, ms(1))}, {0: 20, 1: 20}, ms(3)) == (3, 0)

    @given(st.data())
    def test_keeps_every_order_of_cuts_monotone(self, data: st.DataObject) -> None:
        now, known = ms(100), []
        partitions = data.draw(st.integers(1, 3))
        for at in data.draw(st.permutations(range(6))):
            stable = {p: data.draw(st.integers(0, 50)) for p in range(partitions)}
            found = st.tuples(st.integers(0, 50), st.integers(ms(0), ms(200))) | st.just((-1, -1))
            index = {p: data.draw(found) for p in range(partitions)}
            known.append(cut(at, *decide_cut(known, ms(at), index, stable, now)))
        known.sort(key=lambda c: c.at)
        for earlier, later in itertools.pairwise(known):
            assert all(a <= b for a, b in zip(earlier.offsets, later.offsets, strict=True))


class TestAnInterval:
    def filled(self, hours: int = 10, partitions: int = 1) -> ModelLog:
        """Ten records an hour and partition, in order."""
        log = ModelLog(partitions)
        for i in range(hours * 10):
            for p in range(partitions):
                log.append(p, ms(i / 10))
        return log

    def test_holds_the_records_of_its_time(self) -> None:
        window = ModelLedger().plan(self.filled(), request(2, 3), ms(10))
        assert window.ranges == (PartitionRange(0, 20, 30),)
        assert window.gap == window.carried == 0

    def test_is_the_same_whoever_asks_and_whatever_has_arrived_since(self) -> None:
        log, ledger = self.filled(), ModelLedger()
        first = ledger.plan(log, request(2, 3), ms(10))
        log.append(0, ms(2.5))
        assert ledger.plan(log, request(2, 3), ms(11)) == first

    def test_that_is_the_first_loses_nothing_behind_a_record_from_a_wrong_clock(self) -> None:
        """The index gives that record for every later time: what followed it would be before the first cut, in no window."""
        log, ledger = self.filled(2), ModelLedger()
        log.append(0, ms(99999))
        log.stamps[0] += [ms(h + i / 10) for h in range(2, 10) for i in range(10)]
        windows = [ledger.plan(log, request(h, h + 1), ms(10)) for h in (5, 6, 7)]
        assert sum(len(offsets(w)) for w in windows) == 81
        assert ledger.plan(log, request(1, 2), ms(10)).gap == 0

    def test_a_late_record_is_in_the_window_in_which_it_arrives(self) -> None:
        log, ledger = self.filled(4), ModelLedger()
        third = ledger.plan(log, request(3, 4), ms(4))
        log.append(0, ms(3.5))
        fourth = ledger.plan(log, request(4, 5), ms(5))
        assert (0, 40) not in offsets(third)
        assert offsets(fourth) == {(0, 40)}

    def test_a_pause_is_carried_into_the_next_scheduled_run(self) -> None:
        log, ledger = self.filled(), ModelLedger()
        ledger.plan(log, request(2, 3, "carry"), ms(3))
        window = ledger.plan(log, request(7, 8, "carry"), ms(8))
        assert offsets(window) == {(0, o) for o in range(30, 80)}
        assert window.carried == 40
        assert window.gap == 0

    def test_a_pause_with_runs_by_hand_in_it_is_carried_from_the_last_one_and_the_rest_is_reported(self) -> None:
        log, ledger = self.filled(), ModelLedger()
        ledger.plan(log, request(0, 1, "carry"), ms(1))
        ledger.plan(log, request(2, 3), ms(3))
        assert ledger.plan(log, request(4, 5), ms(5)).gap == 10
        window = ledger.plan(log, request(6, 7, "carry"), ms(7))
        assert offsets(window) == {(0, o) for o in range(50, 70)}
        assert (window.carried, window.gap) == (10, 20), "1 to 2 and 3 to 4 are in no window"
        assert ledger.plan(log, request(7, 8, "carry"), ms(8)).gap == 0, "which is said once"
        assert [len(offsets(ledger.plan(log, request(h, h + 1), ms(9)))) for h in (1, 3, 5)] == [10, 10, 0]

    @pytest.mark.parametrize("order", list(itertools.permutations((3, 4, 5))), ids=str)
    def test_scheduled_runs_planned_out_of_order_each_get_their_own_interval(self, order: tuple[int, ...]) -> None:
        log, ledger = self.filled(), ModelLedger()
        ledger.plan(log, request(2, 3, "carry"), ms(3))
        windows = {h: ledger.plan(log, request(h, h + 1, "carry", follows=True), ms(6)) for h in order}
        assert {h: offsets(w) for h, w in windows.items()} == {h: {(0, o) for o in range(10 * h, 10 * h + 10)} for h in (3, 4, 5)}
        assert not any(w.carried for w in windows.values())
        assert ledger.plan(log, request(7, 8, "carry"), ms(8)).carried == 10, "a pause after them is carried"

    def test_a_run_after_a_pause_carries_it_though_the_one_after_it_was_planned_first(self) -> None:
        log, ledger = self.filled(), ModelLedger()
        ledger.plan(log, request(0, 1, "carry"), ms(1))
        later = ledger.plan(log, request(6, 7, "carry", follows=True), ms(7))
        assert (len(offsets(later)), later.carried, later.gap) == (10, 0, 50)
        window = ledger.plan(log, request(5, 6, "carry"), ms(7))
        assert (offsets(window), window.carried, window.gap) == ({(0, o) for o in range(10, 60)}, 40, 0)

    def test_a_pause_is_left_to_a_backfill_and_reported(self) -> None:
        log, ledger = self.filled(), ModelLedger()
        ledger.plan(log, request(2, 3), ms(3))
        window = ledger.plan(log, request(7, 8), ms(8))
        assert offsets(window) == {(0, o) for o in range(70, 80)}
        assert (window.carried, window.gap) == (0, 40)

    def test_a_backfill_into_a_carried_pause_is_empty(self) -> None:
        log, ledger = self.filled(), ModelLedger()
        ledger.plan(log, request(2, 3, "carry"), ms(3))
        ledger.plan(log, request(7, 8, "carry"), ms(8))
        assert ledger.plan(log, request(4, 5), ms(9)).ranges == ()

    def test_the_first_scheduled_run_carries_nothing(self) -> None:
        window = ModelLedger().plan(self.filled(), request(7, 8, "carry"), ms(8))
        assert (len(offsets(window)), window.carried) == (10, 0)

    def test_a_trial_backfill_long_ago_is_not_carried_on_from(self) -> None:
        log, ledger = self.filled(), ModelLedger()
        ledger.plan(log, request(0, 1), ms(1))
        window = ledger.plan(log, request(7, 8, "carry"), ms(8))
        assert (len(offsets(window)), window.carried, window.gap) == (10, 0, 60)

    def test_a_pause_after_a_window_that_a_manual_run_planned_first_is_carried(self) -> None:
        log, ledger = self.filled(), ModelLedger()
        manual = ledger.plan(log, request(2, 3), ms(3))
        assert ledger.plan(log, request(2, 3, "carry"), ms(3)) == manual  # the scheduled run of the same hour
        window = ledger.plan(log, request(7, 8, "carry"), ms(8))
        assert (window.carried, window.gap) == (40, 0)

    def test_a_scheduled_end_on_the_start_of_a_manual_window_is_carried_on_from(self) -> None:
        log, ledger = self.filled(), ModelLedger()
        ledger.plan(log, request(3, 4), ms(4))
        ledger.plan(log, request(2, 3, "carry"), ms(4))
        assert ledger.plan(log, request(7, 8, "carry"), ms(8)).carried == 30

    def test_reports_the_gap_on_both_of_its_sides(self) -> None:
        log, ledger = self.filled(), ModelLedger()
        ledger.plan(log, request(8, 9), ms(9))
        assert ledger.plan(log, request(2, 3), ms(9)).gap == 50
        assert ledger.plan(log, request(5, 6), ms(9)).gap == 40

    @pytest.mark.parametrize("backwards", [False, True], ids=["forward", "in reverse"])
    def test_a_backfill_tiles(self, backwards: bool) -> None:
        log, ledger = self.filled(partitions=3), ModelLedger()
        hours = range(2, 8)
        windows = [ledger.plan(log, request(h, h + 1), ms(10)) for h in (reversed(hours) if backwards else hours)]
        assert sum(len(offsets(w)) for w in windows) == 180
        assert set().union(*map(offsets, windows)) == {(p, o) for p in range(3) for o in range(20, 80)}

    def test_overlapping_another_is_refused(self) -> None:
        log, ledger = self.filled(), ModelLedger()
        ledger.plan(log, request(2, 4), ms(10))
        for start, end in ((1, 3), (3, 5), (1, 5), (2, 3), (2, 5)):
            with pytest.raises(WindowError, match="overlaps"):
                ledger.plan(log, request(start, end), ms(10))
        ledger.plan(log, request(4, 5), ms(10))
        ledger.plan(log, request(1, 2), ms(10))

    def test_the_same_instants_in_another_zone_are_the_same_window(self) -> None:
        log, ledger = self.filled(), ModelLedger()
        first = ledger.plan(log, request(2, 3), ms(10))
        moved = interval(2, 3)
        moved = Interval(*(t.astimezone(timezone(timedelta(hours=2))) for t in (moved.start, moved.end)))
        assert ledger.plan(log, PlanRequest("p", "t", moved), ms(10)) == first

    def test_a_partition_added_between_two_plans_is_read_from_its_beginning(self) -> None:
        log, ledger = self.filled(5), ModelLedger()
        ledger.plan(log, request(4, 5), ms(5))
        log.stamps.append([ms(3), ms(5.5)])
        window = ledger.plan(log, request(5, 6), ms(6))
        assert offsets(window) == {(1, 0), (1, 1)}

    def test_answers_from_before_a_partition_was_added_are_refused(self) -> None:
        log, ledger = self.filled(5), ModelLedger()
        old = log.answers(interval(6, 7))
        log.stamps.append([ms(3), ms(5.5)])
        ledger.plan(log, request(5, 6), ms(7))
        with pytest.raises(UnavailableError, match="behind"):
            ledger.plan(log, request(6, 7), ms(7), old)


class TestRunsWithoutAnInterval:
    def test_tile_from_the_start_of_the_log(self) -> None:
        log, ledger = ModelLog(2), ModelLedger()
        windows = []
        for run in range(4):
            for i in range(run):
                log.append(i % 2, ms(9 - run))
            windows.append(ledger.plan(log, since_last(f"run-{run}"), ms(10)))
        assert [len(offsets(w)) for w in windows] == [0, 1, 2, 3]
        assert len(set().union(*map(offsets, windows))) == 6
        assert [w.key for w in windows] == ["run-0", "run-1", "run-2", "run-3"]

    def test_the_same_run_gets_the_same_window(self) -> None:
        log, ledger = ModelLog(), ModelLedger()
        log.append(0, ms(1))
        first = ledger.plan(log, since_last("a"), ms(2))
        log.append(0, ms(1))
        ledger.plan(log, since_last("b"), ms(2))
        assert ledger.plan(log, since_last("a"), ms(3)) == first

    def test_an_open_transaction_is_left_to_the_next(self) -> None:
        log, ledger = ModelLog(), ModelLedger()
        log.stamps[0] = [ms(1)] * 5
        log.open_since[0] = 3
        assert offsets(ledger.plan(log, since_last("a"), ms(2))) == {(0, 0), (0, 1), (0, 2)}
        log.open_since.clear()
        assert offsets(ledger.plan(log, since_last("b"), ms(2))) == {(0, 3), (0, 4)}

    def test_and_runs_with_one_cannot_be_mixed(self) -> None:
        log, ledger = ModelLog(), ModelLedger()
        ledger.plan(log, since_last("a"), ms(2))
        with pytest.raises(WindowError, match=r"since last.*intervals.*another pipeline"):
            ledger.plan(log, request(0, 1), ms(2))
        other = ModelLedger()
        other.plan(log, request(0, 1), ms(2))
        with pytest.raises(WindowError, match=r"intervals.*since last"):
            other.plan(log, since_last("a"), ms(2))

    def test_a_run_named_like_an_interval_is_no_way_round_that(self) -> None:
        log, ledger = ModelLog(), ModelLedger()
        ledger.plan(log, request(0, 1), ms(2))
        with pytest.raises(WindowError, match="mixing"):
            ledger.plan(log, since_last(interval(0, 1).key), ms(2))


class TestARecreatedTopic:
    def history(self) -> tuple[ModelLedger, ModelLog]:
        log, ledger = ModelLog(), ModelLedger()
        log.stamps[0] = [ms(i / 10) for i in range(40)]
        ledger.plan(log, request(2, 3, "carry"), ms(3))
        again = ModelLog(topic_id="id-2")
        again.stamps[0] = [ms(4 + i / 10) for i in range(40)]
        return ledger, again

    def test_is_refused(self) -> None:
        ledger, again = self.history()
        for policy in ("carry", "index"):
            with pytest.raises(DataLossError, match=r"created again.*accept-loss"):
                ledger.plan(again, request(7, 8, policy), ms(8))

    def test_leaves_what_was_planned_on_the_former_one_as_it_was(self) -> None:
        ledger, again = self.history()
        former = ledger.plan(again, request(2, 3, "carry"), ms(8))
        assert (former.topic_id, former.ranges) == ("id-1", (PartitionRange(0, 20, 30),))
        ledger.plan(again, request(7, 8, "carry", accept_loss=True), ms(8))
        assert ledger.plan(again, request(2, 3, "carry"), ms(8)) == former
        assert ledger.plan(again, request(2, 3), ms(8)) == former

    def test_is_planned_again_only_where_it_holds_something_for_the_window(self) -> None:
        ledger, again = self.history()
        former = ledger.plan(again, request(2, 3), ms(8))
        assert ledger.plan(again, request(2, 3, accept_loss=True), ms(8)) == former, "an empty one would take back what came of it"
        assert ledger.plan(again, request(2, 3), ms(8)) == former
        refilled = ModelLog(topic_id="id-3")
        refilled.stamps[0] = [ms(i / 5) for i in range(40)]
        window = ledger.plan(refilled, request(2, 3, accept_loss=True), ms(8))
        assert (window.topic_id, window.ranges) == ("id-3", (PartitionRange(0, 10, 15),))
        assert ledger.plan(refilled, request(2, 3), ms(8)) == window

    def test_is_taken_from_its_beginning_once_the_loss_is_accepted_and_the_ledger_says_which(self) -> None:
        ledger, again = self.history()
        window = ledger.plan(again, request(7, 8, "carry", accept_loss=True), ms(8))
        assert offsets(window) == {(0, o) for o in range(40)}
        assert window.carried == 30
        assert [plan.replaces for plan in ledger.view.of(PlanRecord)] == ["", "id-1"]
        assert len(offsets(ledger.plan(again, request(8, 9, "carry"), ms(9)))) == 0

    def test_reports_what_an_index_planned_window_leaves_of_it(self) -> None:
        ledger, again = self.history()
        assert ledger.plan(again, request(7, 8, accept_loss=True), ms(8)).gap == 30

    def test_without_intervals_begins_at_its_start(self) -> None:
        log, ledger = ModelLog(), ModelLedger()
        log.stamps[0] = [ms(1)] * 9
        ledger.plan(log, since_last("a"), ms(2))
        again = ModelLog(topic_id="id-2")
        again.stamps[0] = [ms(1)] * 4
        with pytest.raises(DataLossError, match="created again"):
            ledger.plan(again, since_last("b"), ms(2))
        assert len(offsets(ledger.plan(again, since_last("b", accept_loss=True), ms(2)))) == 4

    def test_gives_a_run_without_an_interval_nothing_of_what_came_after_it(self) -> None:
        log, ledger = ModelLog(), ModelLedger()
        log.stamps[0] = [ms(1)] * 9
        former = ledger.plan(log, since_last("a"), ms(2))
        again = ModelLog(topic_id="id-2")
        again.stamps[0] = [ms(3)] * 4
        assert ledger.plan(again, since_last("a", accept_loss=True), ms(4)) == former
        assert len(offsets(ledger.plan(again, since_last("b", accept_loss=True), ms(4)))) == 4
        again.stamps[0] += [ms(5)] * 2
        assert ledger.plan(again, since_last("a", accept_loss=True), ms(6)) == former
        assert len(offsets(ledger.plan(again, since_last("c", accept_loss=True), ms(6)))) == 2


class TestASource:
    def view(self, *plans: PlanRecord) -> PlanView:
        return PlanView("p", plans)

    def plan(self, start: float, end: float, stage: str = "ingest", scope: str = "") -> PlanRecord:
        span = interval(start, end)
        return source_plan(Work("p", stage, span.key, scope=scope), span)

    def test_is_read_in_intervals_that_dont_overlap(self) -> None:
        view = self.view(self.plan(2, 4), self.plan(6, 7))
        for start, end in ((1, 2), (4, 6), (7, 9), (2, 4)):
            check(view, self.plan(start, end))
        for start, end in ((1, 3), (3, 5), (1, 9), (2, 3), (2, 4.0000001), (6.5, 6.6)):
            with pytest.raises(WindowError, match=r"pipeline 'p', stage 'ingest': .* overlaps .*rows would be written twice"):
                check(view, self.plan(start, end))

    def test_of_another_stage_or_scope_or_a_topic_is_another_ones(self) -> None:
        view = self.view(self.plan(2, 4), PlanRecord("p", "t", "ingest", interval(5, 6).key, (), interval(5, 6)))
        for plan in (self.plan(3, 5, stage="other"), self.plan(3, 5, scope="[1]"), self.plan(5, 6)):
            check(view, plan)

    def test_is_read_whole_or_in_intervals(self) -> None:
        whole = source_plan(Work("p", "ingest", "all"), None)
        check(self.view(whole), whole)
        with pytest.raises(WindowError, match="all overlaps 2026"):
            check(self.view(self.plan(2, 4)), whole)
        with pytest.raises(WindowError, match="overlaps all"):
            check(self.view(whole), self.plan(2, 4))


@example([0.5], [1, 0, 2])
@given(
    st.lists(st.floats(0, 6, exclude_max=True), max_size=40),
    st.permutations(range(6)).flatmap(lambda p: st.integers(0, 6).map(lambda n: list(p)[:n])),
)
def test_records_in_order_are_in_the_window_of_their_time_whatever_the_order_of_planning(stamps: list[float], order: list[int]) -> None:
    log, ledger = ModelLog(), ModelLedger()
    log.stamps[0] = sorted(map(ms, stamps))
    for hour in order:
        window = ledger.plan(log, request(hour, hour + 1), ms(6))
        assert offsets(window) == {(0, o) for o, stamp in enumerate(log.stamps[0]) if ms(hour) <= stamp < ms(hour + 1)}


class Histories(RuleBasedStateMachine):
    """Any history of a topic and of the runs over it: records late and from wrong clocks, pauses, backfills, several planners at once."""

    @initialize(partitions=st.integers(1, 3), policy=st.sampled_from(["carry", "index"]))
    def begin(self, partitions: int, policy: Policy) -> None:
        self.log, self.ledger, self.policy = ModelLog(partitions), ModelLedger(), policy
        self.now = 10.0
        self.windows: dict[str, Window] = {}
        self.cuts: dict[str, CutRecord] = {}
        self.asked: dict[int, LogAnswers] = {}
        self.reported = 0

    @rule(
        n=st.integers(1, 3),
        shift=st.sampled_from([0.0, 0.0, -0.3, -1.0, -5.0, 0.05, 1.0, 3.0, 9999.0]),
        hours=st.sampled_from([0, 0.25, 1]),
    )
    def append(self, n: int, shift: float, hours: float) -> None:
        """In order, late, a little or far ahead; and time passes."""
        for p in range(len(self.log.stamps)):
            for _ in range(n):
                self.log.append(p, ms(self.now + shift))
        self.now += hours

    @rule(hours=st.sampled_from([1, 3]))
    def time_passes(self, hours: float) -> None:
        self.now += hours

    @rule()
    def transaction_opens_or_ends(self) -> None:
        last = len(self.log.stamps) - 1
        self.log.open_since = {} if self.log.open_since else {last: len(self.log.stamps[last])}

    @precondition(lambda self: len(self.log.stamps) < 4)
    @rule()
    def partition_is_added(self) -> None:
        self.log.stamps.append([ms(self.now)] * 2)

    @rule(ago=st.sampled_from([1, 1, 1, 2, 4]), follows=st.booleans())
    def scheduled_run(self, ago: int, follows: bool) -> None:
        """The last complete hour, or one that was delayed past its successors, or cleared; what was not run before it was a pause."""
        self.plan(int(self.now) - ago, self.policy, follows=follows)

    @rule(ago=st.integers(1, 6))
    def backfill_or_manual_run(self, ago: int) -> None:
        self.plan(int(self.now) - ago, "index")

    @rule(ago=st.integers(1, 3))
    def planner_asks_the_log(self, ago: int) -> None:
        """And is then held up, while others plan."""
        hour = int(self.now) - ago
        self.asked[hour] = self.log.answers(interval(hour, hour + 1))

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def held_up_planner_goes_on(self, data: st.DataObject) -> None:
        hour = data.draw(st.sampled_from(sorted(self.asked)))
        self.plan(hour, "index", self.asked.pop(hour))

    def plan(self, hour: int, policy: Policy, answers: LogAnswers | None = None, *, follows: bool = False) -> None:
        before = self.unplanned()
        try:
            window = self.ledger.plan(self.log, request(hour, hour + 1, policy, follows=follows), ms(self.now), answers)
        except UnavailableError:
            assert answers is not None
            assert answers.topic.partitions < len(self.log.stamps)
            return
        assert self.windows.setdefault(window.key, window) == window, "the same interval, another window"
        newly = self.unplanned() - before
        assert len(newly) <= window.gap, "records were passed over and nobody was told"

    def planned_offsets(self) -> list[tuple[int, int]]:
        return [o for w in self.windows.values() for o in offsets(w)]

    def unplanned(self) -> set[tuple[int, int]]:
        """What lies between the first and the last cut, and in no window."""
        cuts = sorted(self.ledger.view.of(CutRecord), key=lambda c: c.at)
        if not cuts:
            return set()
        first, last = cuts[0].offsets, cuts[-1].offsets
        return {
            (p, o) for p in range(len(last)) for o in range(first[p] if p < len(first) else 0, last[p])
        } - set(self.planned_offsets())  # fmt: skip

    @invariant()
    def every_record_is_in_at_most_one_window(self) -> None:
        everything = self.planned_offsets()
        assert len(everything) == len(set(everything))

    @invariant()
    def cuts_never_change_and_are_monotone(self) -> None:
        cuts = sorted(self.ledger.view.of(CutRecord), key=lambda c: c.at)
        for c in cuts:
            assert self.cuts.setdefault(c.key(), c).offsets == c.offsets
        for earlier, later in itertools.pairwise(cuts):
            for p in range(len(self.log.stamps)):
                a = earlier.offsets[p] if p < len(earlier.offsets) else 0
                b = later.offsets[p] if p < len(later.offsets) else 0
                assert a <= b

    @invariant()
    def no_record_past_the_first_windows_start_lies_before_its_cut(self) -> None:
        """Also where a wrong clock's record hides all that came after it from the index."""
        cuts = self.ledger.view.of(CutRecord)
        if cuts:
            first = min(cuts, key=lambda c: c.at)
            for p, passed in enumerate(first.offsets):
                assert all(stamp < first.at for stamp in self.log.stamps[p][:passed])

    def teardown(self) -> None:
        """Once every hour between the first and the last planned one is run, nothing between their cuts is left."""
        hours = sorted(int((w.interval.start - DAY0).total_seconds()) // 3600 for w in getattr(self, "windows", {}).values() if w.interval)
        for hour in range(hours[0], hours[-1]) if hours else ():
            self.plan(hour, "index")
        if hours:
            assert self.unplanned() == set()
            self.every_record_is_in_at_most_one_window()


TestHistories = pytest.mark.slow(Histories.TestCase)
TestHistories.settings = settings(max_examples=examples(60, 200), stateful_step_count=40, deadline=None)
