"""``factory windows`` tells what the ledger knows: unfinished windows first, each with how far its stages are."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import msgspec
import pytest

from factory_agents.kafka import windows
from factory_agents.kafka.ledger import FailureRecord, LedgerRecord, LedgerView, PlanRecord, Progress, StageRecord, StoredResult
from factory_agents.kafka.records import VerdictRecord
from factory_agents.kafka.windows import read_windows, windows_of
from factory_agents.protocol import AgentResult, Counts, Interval, Manifest, PartitionRange, Shard
from tests.support.runs import Runs

WHOLE = Shard()
NOW = int(time.time() * 1000)
MINUTE = 60_000


@pytest.fixture(autouse=True)
def _no_time_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is NOW, however long ago this module was imported."""
    monkeypatch.setattr(windows, "_now", lambda: datetime.fromtimestamp(NOW / 1000, UTC))


def at(hour: int) -> Interval:
    return Interval(datetime(2026, 11, 1, hour, tzinfo=UTC), datetime(2026, 11, 1, hour + 1, tzinfo=UTC))


def plan(hour: int, pipeline: str = "p") -> PlanRecord:
    ranges = (PartitionRange(0, 100, 200), PartitionRange(1, 0, 100))
    return PlanRecord(pipeline, "t", "id", at(hour).key, ranges, interval=at(hour), planned_at=1_793_505_600_000)


def done(hour: int, stage: str = "enrich", shard: Shard = WHOLE, consumed: int = 200, updated_at: int = NOW) -> StageRecord:
    read = Manifest("t", "id", "", (PartitionRange(shard.index, 100, 200),) if shard.of > 1 else plan(hour).ranges)
    if stage != "enrich":
        read = None if stage == "ingest" else Manifest("t2", "id2", "w", (PartitionRange(0, 5, 300),))
    result = AgentResult("p", stage, at(hour).key, input=read, interval=at(hour), counts=Counts(consumed=consumed, forwarded=consumed))
    return StageRecord("p", stage, at(hour).key, shard, "f", 7, updated_at=updated_at, result=StoredResult.of(result))


def running(hour: int, positions: dict[int, int], stage: str = "enrich", shard: Shard = WHOLE, updated_at: int = NOW - 5000) -> StageRecord:
    progress = Progress(positions=positions, counts=Counts(consumed=50, forwarded=49, rejected=1))
    return StageRecord("p", stage, at(hour).key, shard, "f", 7, updated_at=updated_at, progress=progress)


def failed(hour: int, stage: str = "enrich", shard: Shard = WHOLE, began: int = NOW - MINUTE, ended: int = NOW) -> FailureRecord:
    return FailureRecord("p", stage, at(hour).key, shard, began, ended, "SinkError", "the table has no column b")


def view(*records: LedgerRecord) -> LedgerView:
    return LedgerView(records=records)


def test_unfinished_windows_come_first_and_each_part_newest_first() -> None:
    found = windows_of(view(plan(1), done(1), plan(2), plan(3), done(3), plan(4), running(4, {0: 150})))
    assert [(w.window[:13], w.state) for w in found] == [
        ("2026-11-01T04", "unfinished"),
        ("2026-11-01T02", "planned"),
        ("2026-11-01T03", "finished"),
        ("2026-11-01T01", "finished"),
    ]


def test_a_running_stage_shows_the_share_of_the_planned_offsets() -> None:
    (window,) = windows_of(view(plan(1), running(1, {0: 150, 1: 0})))
    assert window.records == 200
    assert (window.stages[0].state, window.stages[0].percent) == ("running", 25)
    assert window.stages[0].summary == "enrich: running 25 %, 50 read, 1 rejected"


def test_a_stage_is_done_when_all_its_shards_are() -> None:
    (window,) = windows_of(view(plan(1), done(1, shard=Shard(0, 2)), running(1, {1: 50}, shard=Shard(1, 2))))
    assert (window.state, window.stages[0].shards, window.stages[0].of) == ("unfinished", 1, 2)
    assert window.stages[0].summary == "enrich: running 75 % (1 of 2 shards), 250 read, 1 rejected"


def test_a_stage_that_other_windows_have_and_this_one_has_not_is_waited_for() -> None:
    found = {w.window[:13]: w for w in windows_of(view(plan(1), done(1), done(1, "publish"), plan(2), done(2)))}
    assert found["2026-11-01T01"].state == "finished"
    assert found["2026-11-01T02"].state == "unfinished"
    assert found["2026-11-01T02"].stages[1].summary == "publish: not begun"


def test_a_window_without_a_plan_is_one_that_ingest_wrote() -> None:
    (window,) = windows_of(view(done(1, "ingest", consumed=12)))
    assert (window.state, window.topic, window.records) == ("finished", "", 12)


def test_a_failed_window_comes_first_with_the_reason() -> None:
    found = windows_of(view(plan(1), failed(1), plan(2), running(2, {0: 150}), plan(3), done(3)))
    assert [(w.window[:13], w.state) for w in found] == [
        ("2026-11-01T01", "failed"),
        ("2026-11-01T02", "unfinished"),
        ("2026-11-01T03", "finished"),
    ]
    assert found[0].stages[0].summary == "enrich: failed, 0 read: SinkError: the table has no column b"


def test_no_other_window_waits_for_a_judge_which_leaves_a_record_only_where_it_fails() -> None:
    verdict = VerdictRecord("p", "judge", at(2).key, "validate", 7, NOW)
    found = windows_of(view(plan(1), done(1), plan(2), done(2), failed(2, "judge"), verdict))
    assert [(w.state, [s.state for s in w.stages]) for w in found] == [("failed", ["done", "failed"]), ("finished", ["done"])]


def test_the_first_window_of_a_pipeline_is_not_finished_where_its_last_stage_failed_before_it_began() -> None:
    (window,) = windows_of(view(done(1, "ingest"), done(1, "validate"), failed(1, "publish")))
    assert (window.state, [s.state for s in window.stages]) == ("failed", ["done", "done", "failed"])


@pytest.mark.parametrize(
    ("record", "failure", "state"),
    [
        (running(1, {0: 150}, updated_at=NOW - 2000), failed(1, ended=NOW - 1000), "failed"),
        (running(1, {0: 150}, updated_at=NOW - 1000), failed(1, ended=NOW - 2000), "running"),
        (done(1, updated_at=NOW), failed(1, ended=NOW - 1000), "done"),
        (done(1, updated_at=NOW - 2 * MINUTE), failed(1), "failed"),
        (done(1, updated_at=NOW - 1000), failed(1), "done"),
    ],
    ids=[
        "died after its last commit",
        "a retry goes on",
        "a retry is done",
        "done before, cleared, failed",
        "an older attempt wakes and fails",
    ],
)
def test_a_failure_counts_until_something_newer_is_known(record: StageRecord, failure: FailureRecord, state: str) -> None:
    (window,) = windows_of(view(plan(1), record, failure))
    assert window.stages[0].state == state


def test_one_failed_shard_fails_its_stage() -> None:
    half = done(1, shard=Shard(0, 2))
    (window,) = windows_of(view(plan(1), half, failed(1, shard=Shard(1, 2))))
    assert (window.state, window.stages[0].state, window.stages[0].shards, window.stages[0].of) == ("failed", "failed", 1, 2)


def test_an_attempt_that_says_nothing_for_minutes_is_not_called_running() -> None:
    (window,) = windows_of(view(plan(1), running(1, {0: 199, 1: 99}, updated_at=NOW - 7 * MINUTE)))
    assert window.stages[0].summary == "enrich: stalled 99 %, 50 read, 1 rejected; nothing was committed for 7 min"


def test_the_number_of_records_is_what_was_read_once_that_is_known() -> None:
    (planned,) = windows_of(view(plan(1)))
    assert planned.records_text == "≤ 200"
    (read,) = windows_of(view(plan(1), done(1, "publish", consumed=190), done(1, consumed=196)))
    assert read.records_text == "196"
    (ingested,) = windows_of(view(done(1, "validate", consumed=11), done(1, "ingest", consumed=12)))
    assert ingested.records_text == "12"


def test_an_interval_that_no_run_covers_is_named() -> None:
    def beside(hour: int, start: int) -> PlanRecord:
        return PlanRecord("p", "t", "id", at(hour).key, (PartitionRange(0, start, start + 100),), interval=at(hour))

    found = windows_of(view(beside(1, 100), beside(2, 200), beside(5, 330), done(5)))
    (hole,) = [w for w in found if w.state == "uncovered"]
    assert (hole.when, hole.topic, hole.records) == ("2026-11-01 03:00 → 05:00", "t", 30)
    assert found.index(hole) == 2, "after what is unfinished, before what is finished"
    assert not [w for w in windows_of(view(beside(1, 100), beside(5, 200))) if w.state == "uncovered"], "a run after a pause carries on"
    sources = windows_of(view(done(1, "ingest"), done(4, "ingest")))
    assert [w.when for w in sources if w.state == "uncovered"] == ["2026-11-01 02:00 → 04:00"]


def test_a_window_says_when_in_few_words() -> None:
    (window,) = windows_of(view(plan(4)))
    assert window.when == "2026-11-01 04:00 → 05:00"
    (night,) = windows_of(view(PlanRecord("p", "t", "id", Interval(at(4).start, datetime(2026, 11, 2, tzinfo=UTC)).key, ())))
    assert night.when == "2026-11-01 04:00 → 2026-11-02 00:00"
    (named,) = windows_of(view(PlanRecord("p", "t", "id", "manual-1", ())))
    assert named.when == "manual-1"


def test_without_a_ledger_there_are_no_windows(runs: Runs) -> None:
    assert read_windows(runs.config, prefix=runs.prefix) == []


def test_two_topics_of_one_interval_are_one_window_done_when_both_are() -> None:
    other = msgspec.structs.replace(plan(1), topic="u", topic_id="id-u", ranges=(PartitionRange(0, 0, 40),))

    def enriched(scope: str, **more: object) -> StageRecord:
        return msgspec.structs.replace(done(1), scope=scope, **more)

    (half,) = windows_of(view(plan(1), other, enriched("t"), msgspec.structs.replace(running(1, {0: 20}), scope="u[1]")))
    (stage,) = half.stages
    assert (half.state, half.topic, half.records) == ("unfinished", "t, u", 240)
    assert (stage.state, stage.shards, stage.of, stage.counts.consumed) == ("running", 1, 2, 250)
    (whole,) = windows_of(view(plan(1), other, enriched("t"), enriched("u[1]")))
    assert (whole.state, whole.stages[0].shards) == ("finished", 2)


def test_sources_and_what_stays_as_it_was_are_no_windows_of_their_own() -> None:
    source = PlanRecord("p", "", "ingest", at(1).key, (), interval=at(1))
    former = PlanRecord("p", "t", "recreated", at(1).key, (), interval=at(1), former=True)
    (window,) = windows_of(view(source, former, plan(1), done(1)))
    assert (window.state, window.topic, window.records) == ("finished", "t", 200)
