"""The ledger's records: each has a key of its own, passes unchanged, and is read by releases before and after."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from factory_agents.kafka.records import (
    ALWAYS,
    RECORD_VERSION,
    AlertRecord,
    AttemptRecord,
    CutRecord,
    FailureRecord,
    LedgerRecord,
    MarkRecord,
    PipelineRecord,
    PlanRecord,
    Progress,
    ReplayRecord,
    StageRecord,
    StoredResult,
    VerdictRecord,
    decode_record,
    encode_record,
    kind_of,
    microseconds,
    shards_key,
)
from factory_agents.protocol import AgentResult, Counts, Interval, Manifest, PartitionRange, Shard, Work

HOUR = Interval(datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, 1, tzinfo=UTC))
RECORDS: list[LedgerRecord] = [
    PipelineRecord("p", "intervals"),
    CutRecord("p", "t", "id", 5, (1, 2), scheduled=True),
    PlanRecord("p", "t", "id", "w", (PartitionRange(0, 1, 2),), interval=HOUR, planned_at=9),
    MarkRecord("p", "id", ((ALWAYS, 7),), stages=("enrich",)),
    StageRecord("p", "s", "w", Shard(1, 2), "print", 3, scope="t", progress=Progress({0: 4}, counts=Counts(consumed=4))),
    ReplayRecord("replay.t", "id", "to", {0: [1, 2]}, 5, "0@1"),
    FailureRecord("p", "s", "w", Shard(), 1, 2, "SinkError", "no"),
    AttemptRecord("p", "s", "w", Shard(), 1, 2, "SinkError"),
    AlertRecord("p", "w", "id", "failed", 1),
    VerdictRecord("p", "judge", "w", "validate", 3, 1, checks=({"rule": "rows < 1", "outcome": "pass"},)),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: kind_of(type(record)))
class TestARecord:
    def test_passes_unchanged(self, record: LedgerRecord) -> None:
        assert decode_record(kind_of(record.key()), encode_record(record)) == record

    def test_says_its_version_first(self, record: LedgerRecord) -> None:
        assert encode_record(record).startswith(b'{"version":%d,' % RECORD_VERSION)

    def test_without_a_version_is_of_the_first_release(self, record: LedgerRecord) -> None:
        old = msgspec.json.decode(encode_record(record))
        del old["version"]
        assert decode_record(old["kind"], msgspec.json.encode(old)) == record

    def test_of_a_later_release_is_read_without_the_fields_it_added(self, record: LedgerRecord) -> None:
        later = msgspec.json.decode(encode_record(record)) | {"mood": "good"}
        assert decode_record(later["kind"], msgspec.json.encode(later)) == record

    def test_of_a_version_that_means_something_else_is_refused(self, record: LedgerRecord) -> None:
        later = msgspec.json.decode(encode_record(record)) | {"version": RECORD_VERSION + 1}
        with pytest.raises(ValueError, match=f"its version is {RECORD_VERSION + 1}, this release reads up to {RECORD_VERSION}"):
            decode_record(later["kind"], msgspec.json.encode(later))


def test_each_has_a_key_of_its_own() -> None:
    assert len({record.key() for record in RECORDS}) == len(RECORDS)
    assert {kind_of(record.key()) for record in RECORDS} == {kind_of(type(record)) for record in RECORDS}
    assert kind_of("mood|p") == ""


def test_a_stages_key_begins_as_its_works() -> None:
    (record,) = (record for record in RECORDS if isinstance(record, StageRecord))
    assert record.key().startswith(shards_key(Work("p", "s", "w", Shard(), "t")))


def test_a_result_is_stored_without_what_the_record_says_itself() -> None:
    manifest = Manifest("out", "id", "s/print/3", (PartitionRange(0, 0, 4, 4),))
    result = AgentResult(
        "p", "s", "w", agent="a", version="1", fingerprint="print", generation=3, manifest=manifest, counts=Counts(consumed=4)
    )
    record = StageRecord("p", "s", "w", Shard(), "print", 3, result=StoredResult.of(result))
    assert record.answer() == result
    assert b"fingerprint" not in msgspec.json.encode(record.result)
    assert msgspec.structs.replace(record, result=None).answer() is None


def test_a_mark_covers_what_overlaps_its_spans() -> None:
    start = microseconds(HOUR.start)
    later = Interval(HOUR.end, HOUR.end + timedelta(hours=1))
    mark = MarkRecord("p", "id", ((start, start + 1),))
    assert [mark.covers(HOUR), mark.covers(later), mark.low_water] == [True, False, None]
    assert MarkRecord("p", "id", ((ALWAYS, start),)).low_water == HOUR.start_ms
