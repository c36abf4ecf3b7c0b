"""What is counted of the ledger, whatever order things happen in: no scrape and no restart changes what the increments add up to."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from factory_agents.kafka.ledger import partition_of
from factory_agents.kafka.records import (
    AttemptRecord,
    CutRecord,
    FailureRecord,
    LedgerRecord,
    PlanRecord,
    Progress,
    StageRecord,
    StoredResult,
    encode_record,
)
from factory_agents.metrics.tally import LedgerTally, Told
from factory_agents.protocol import Counts, Interval, Shard
from factory_agents.telemetry.metrics import Values
from factory_agents.telemetry.shown import Shown
from tests.support.scrapes import Increments
from tests.support.soak import examples

WHOLE = Shard()
START = datetime(2026, 11, 1, tzinfo=UTC)


def hour(n: int) -> Interval:
    return Interval(START + timedelta(hours=n), START + timedelta(hours=n + 1))


def done(n: int = 0, shard: Shard = WHOLE, *, after: int = 0, pipeline: str = "p", stage: str = "s", **more: Any) -> StageRecord:
    """A shard's result, so many seconds after its interval's end."""
    at = hour(n).end_ms + after * 1000
    result = StoredResult(agent="a", interval=hour(n), counts=Counts(consumed=3, forwarded=2, rejected=1), seconds=2.5)
    return StageRecord(pipeline, stage, hour(n).key, shard, "f", 1, updated_at=at, result=result, **more)


def begun(n: int = 0, shard: Shard = WHOLE, *, at: int = 1000, stage: str = "s") -> StageRecord:
    return StageRecord("p", stage, hour(n).key, shard, "f", 1, updated_at=at, progress=Progress())


def plan(n: int = 0, at: int = 500) -> PlanRecord:
    return PlanRecord("p", "t", "id", hour(n).key, (), hour(n), planned_at=at)


class Log:
    """A ledger as one who follows it sees it."""

    def __init__(self, *records: LedgerRecord | bytes) -> None:
        self.records: dict[int, list[tuple[bytes, bytes | None]]] = {}
        for record in records:
            self.write(record)

    def write(self, record: LedgerRecord | bytes) -> None:
        """A record, or the deletion of a key."""
        key, value = (record, None) if isinstance(record, bytes) else (record.key().encode(), encode_record(record))
        self.records.setdefault(partition_of(key.split(b"|")[1]), []).append((key, value))

    def follow(self, tally: LedgerTally, topic_id: str = "id") -> Told:
        if tally.topic_id != topic_id:
            tally.restart(topic_id)
        for p, records in self.records.items():
            for offset in range(tally.positions.get(p, 0), len(records)):
                tally.take(offset, *records[offset])
                tally.positions[p] = offset + 1
        return tally.told()


def told(*records: LedgerRecord | bytes) -> dict[tuple[str, ...], float]:
    """All figures by name and labels' values; of a histogram its count."""
    found = Log(*records).follow(LedgerTally())
    return {(name, *labels): sum(v[:-1] or v) for (name, labels), v in {**found.totals, **found.gauges}.items()}


def test_a_window_has_landed_when_its_last_shard_has_and_once() -> None:
    first, last = (done(0, Shard(i, 2), after=60 * (i + 1)) for i in range(2))
    assert ("factory_windows_finished_total", "p", "s") not in told(first)
    found = Log(first, last).follow(LedgerTally()).totals
    assert found["factory_windows_finished_total", ("p", "s")][0] == 1
    assert found["factory_window_landing_seconds", ("p", "s")][-1] == 120
    again = told(first, last, done(0, Shard(1, 2), after=9000, epoch=1), done(0, Shard(0, 2), after=9000, redo="r"))
    assert again["factory_windows_finished_total", "p", "s"] == 3
    assert again["factory_window_landing_seconds", "p", "s"] == 1
    assert again["agent_success_total", "a", "p", "s"] == 4


def test_what_a_model_took_is_no_outcome_of_events_and_stands_in_its_own_metrics() -> None:
    counts = Counts(consumed=4, forwarded=4, asked=3, prompt_tokens=60, cached_tokens=20, completion_tokens=15, nanocost=250_000_000)
    record = msgspec.structs.replace(done(), result=StoredResult(agent="a", counts=counts))
    figures = told(record)
    assert figures["agent_calls_total", "a", "p", "s"] == 3
    assert [figures["agent_tokens_total", "a", "p", "s", kind] for kind in ("prompt", "cached", "completion")] == [60, 20, 15]
    assert figures["agent_cost_total", "a", "p", "s"] == 0.25
    assert {name[-1] for name in figures if name[0] == "factory_events_total"} == {"consumed", "forwarded", "filtered", "rejected"}


def test_the_version_of_an_agent_is_that_of_its_latest_run() -> None:
    def by(version: str, n: int, after: int) -> StageRecord:
        return msgspec.structs.replace(done(n, after=after), result=StoredResult(agent="a", version=version))

    def told_of(*records: StageRecord | bytes) -> list[tuple[str, ...]]:
        return [labels for labels in told(*records) if labels[0] == "factory_agent_info"]

    runs = [by("1", 0, 0), by("2", 2, 60), by("1", 1, 0)]
    assert told_of(*runs) == [("factory_agent_info", "a", "p", "s", "2")]
    assert told_of(*runs, *(run.key().encode() for run in runs)) == [], "all of it was pruned"


def test_an_open_window_is_the_one_that_is_begun_and_not_finished() -> None:
    assert told(plan()) == {
        ("factory_windows_open", "p", ""): 1,
        ("factory_window_open_updated_timestamp_seconds", "p", ""): 0.5,
        ("factory_ledger_unreadable_records",): 0,
    }
    found = told(plan(), begun(0, Shard(0, 2), at=2000), done(0, Shard(1, 2)), begun(1, at=1000))
    assert found["factory_windows_open", "p", "s"] == 2
    assert found["factory_windows_open", "p", ""] == 0
    assert found["factory_window_open_updated_timestamp_seconds", "p", "s"] == 1
    found = told(plan(), begun(0), done(0))
    assert found["factory_windows_open", "p", "s"] == 0
    assert found["factory_window_end_timestamp_seconds", "p", "s"] == hour(0).end.timestamp()
    assert found["factory_window_length_seconds", "p", "s"] == 3600


def test_a_plan_of_other_shards_begins_again() -> None:
    found = told(done(0, Shard(0, 2)), begun(0, Shard(0, 3)), done(0, Shard(1, 3)))
    assert found["factory_windows_open", "p", "s"] == 1


def test_a_failure_keeps_a_window_open_and_attempts_are_counted_each() -> None:
    failed = FailureRecord("p", "s", hour(0).key, Shard(), 1000, 2000, "E", "why")
    attempts = [AttemptRecord("p", "s", hour(0).key, Shard(), at, at, "E", "a") for at in (1000, 2000)]
    found = told(failed, *attempts)
    assert found["agent_failure_total", "a", "p", "s", "E"] == 2
    assert found["factory_windows_open", "p", "s"] == 1
    assert ("factory_windows_open", "p", "s") not in told(failed, failed.key().encode())


def test_what_was_pruned_is_gone_from_the_gauges_and_stays_counted() -> None:
    records: list[PlanRecord | StageRecord] = [plan(), begun(0), done(0), plan(1), begun(1)]
    found = told(*records, *{record.key().encode() for record in records})
    assert not [name for name in found if name[0].startswith("factory_window") and "finished" not in name[0] and "landing" not in name[0]]
    assert found["agent_success_total", "a", "p", "s"] == 1


def test_the_last_cut_of_a_topic_counts() -> None:
    cuts = [CutRecord("p", "t", "id", at, (at,)) for at in (1, 3, 2)]
    assert Log(*cuts).follow(LedgerTally()).cuts == {("p", "t", "id"): (3,)}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (b"stage|p|s||w|0of1", b"no json"),
        (b"stage|p|s||w|0of1", b'{"kind":"stage","pipeline":"p","version":99}'),
        (b"stage|p|s||w|0of1", b'{"pipeline":"p","shard":[99999999999999,1]}'),
        (b"stage|p|s||w|0of1", b'{"pipeline":"p","shard":[-1,1]}'),
        (b"stage|p|s||w|0of1", b'{"pipeline":"p","shard":[0,99999999999999]}'),
        (b"stage|p|s||w|0of1", b"[" * 100_000),
    ],
)
def test_a_record_that_cannot_be_read_is_told_and_passed_over(key: bytes, value: bytes) -> None:
    tally = LedgerTally()
    tally.restart("id")
    tally.take(0, key, value)
    tally.take(1, b"stage|p|s||w|99999999999999of1", None)
    tally.take(2, b"\xff|\xfe", b"x")
    tally.take(3, b"", None)
    assert tally.told().gauges["factory_ledger_unreadable_records", ()][0] == 1


def samples(values: Values) -> dict[Any, float]:
    return {(name, labels): v[0] for (name, labels), v in values.items() if name.endswith("_total")}


class Story:
    """A ledger, a server that may start again, and who scrapes it. What is answered is kept at once: the kill tests are about less."""

    def __init__(self) -> None:
        self.log, self.seen, self.truth, self.kept = Log(), Increments(), Counter[str](), Told()
        self.restart()

    def restart(self) -> None:
        self.tally, self.shown = LedgerTally(self.kept.positions, self.kept.topic_id), Shown(Told())

    def follow(self) -> None:
        self.shown.tell(self.log.follow(self.tally))

    def scrape(self) -> None:
        values, sent = self.shown.to("prometheus")
        self.seen.take(samples(values))
        sent()
        if self.shown.whole.number:
            self.kept = self.shown.whole

    def lose_a_scrape(self) -> None:
        self.shown.to("prometheus")

    def rest_for_long(self) -> None:
        self.tally.restart(self.tally.topic_id)

    def write(self, record: LedgerRecord | bytes) -> None:
        self.log.write(record)
        if isinstance(record, StageRecord) and record.result is not None:
            self.truth["agent_success_total"] += 1
        elif isinstance(record, AttemptRecord):
            self.truth["agent_failure_total"] += 1


_RECORDS = st.one_of(
    st.builds(done, st.integers(0, 2), pipeline=st.sampled_from(["p", "q"]), stage=st.sampled_from(["s", "t"])),
    st.builds(begun, st.integers(0, 2)),
    st.builds(lambda at: AttemptRecord("p", "s", "w", Shard(), at, at, "E", "a"), st.integers(0, 9)),
    st.builds(lambda n: done(n).key().encode(), st.integers(0, 2)),
)


_STEPS = st.sampled_from([Story.follow, Story.scrape, Story.scrape, Story.lose_a_scrape, Story.restart, Story.rest_for_long])


@settings(max_examples=examples(100, 300), deadline=None)
@given(st.lists(st.one_of(_RECORDS, _STEPS), max_size=40))
@example([done(), Story.follow, Story.scrape, done(stage="t"), Story.follow, Story.scrape, Story.restart])
def test_increments_add_up_to_what_the_ledger_holds(steps: list[Any]) -> None:
    story = Story()
    for step in [*steps, Story.follow, Story.scrape, Story.scrape, Story.scrape]:
        if callable(step):
            step(story)
        else:
            story.write(step)
    for name in ("agent_success_total", "agent_failure_total"):
        assert sum(v for (of, _), v in story.seen.total.items() if of == name) == story.truth[name]


def test_a_ledger_that_was_made_again_is_counted_from_its_beginning() -> None:
    log = Log(done(0), done(1))
    first = log.follow(LedgerTally())
    again = Log(done(2)).follow(LedgerTally(first.positions, first.topic_id), topic_id="another")
    assert again.totals["agent_success_total", ("a", "p", "s")][0] == 1


def test_two_scrapers_are_each_shown_the_zero_and_one_is_not_shown_less_than_before() -> None:
    log, tally, shown = Log(done(0)), LedgerTally(), Shown(Told())
    shown.tell(log.follow(tally))

    def see(client: str) -> float:
        values, sent = shown.to(client)
        sent()
        return values["agent_success_total", ("a", "p", "s")][0]

    assert [see("one"), see("one"), see("two"), see("two")] == [0, 1, 0, 1]
    log.write(done(1))
    log.write(done(0, stage="new"))
    shown.tell(log.follow(tally))
    assert [see("one"), see("one")] == [1, 2]
