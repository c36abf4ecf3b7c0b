"""``factory windows`` tells what the ledger knows: unfinished windows first, each with how far its stages are."""

from __future__ import annotations

from datetime import UTC, datetime

from factory_agents.kafka.ledger import LedgerRecord, LedgerView, PlanRecord, Progress, StageRecord
from factory_agents.kafka.windows import read_windows, windows_of
from factory_agents.protocol import AgentResult, Counts, Interval, Manifest, PartitionRange, Shard
from tests.support.runs import Runs

WHOLE = Shard()


def at(hour: int) -> Interval:
    return Interval(datetime(2026, 11, 1, hour, tzinfo=UTC), datetime(2026, 11, 1, hour + 1, tzinfo=UTC))


def plan(hour: int, pipeline: str = "p") -> PlanRecord:
    ranges = (PartitionRange(0, 100, 200), PartitionRange(1, 0, 100))
    return PlanRecord(pipeline, "t", "id", at(hour).key, ranges, interval=at(hour), planned_at=1_793_505_600_000)


def done(hour: int, stage: str = "enrich", shard: Shard = WHOLE, consumed: int = 200) -> StageRecord:
    read = Manifest("t", "id", "", (PartitionRange(shard.index, 100, 200),) if shard.of > 1 else plan(hour).ranges)
    result = AgentResult("p", stage, at(hour).key, input=read, counts=Counts(consumed=consumed, forwarded=consumed))
    return StageRecord("p", stage, at(hour).key, shard, "f", 7, updated_at=1_793_505_700_000, result=result)


def running(hour: int, positions: dict[int, int], stage: str = "enrich", shard: Shard = WHOLE) -> StageRecord:
    progress = Progress(positions=positions, counts=Counts(consumed=50, forwarded=49, rejected=1))
    return StageRecord("p", stage, at(hour).key, shard, "f", 7, updated_at=1_793_505_700_000, progress=progress)


def view(*records: LedgerRecord) -> LedgerView:
    return LedgerView({r.key(): (i, r) for i, r in enumerate(records)}, len(records))


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


def test_a_window_says_when_in_few_words() -> None:
    (window,) = windows_of(view(plan(4)))
    assert window.when == "2026-11-01 04:00 → 05:00"
    (night,) = windows_of(view(PlanRecord("p", "t", "id", Interval(at(4).start, datetime(2026, 11, 2, tzinfo=UTC)).key, ())))
    assert night.when == "2026-11-01 04:00 → 2026-11-02 00:00"
    (named,) = windows_of(view(PlanRecord("p", "t", "id", "manual-1", ())))
    assert named.when == "manual-1"


def test_without_a_ledger_there_are_no_windows(runs: Runs) -> None:
    assert read_windows(runs.config, prefix=runs.prefix) == []
