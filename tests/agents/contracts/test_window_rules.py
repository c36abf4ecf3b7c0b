"""Statistics of a window, and merging them over shards."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory_agents.contracts import Contract, WindowStatistics, judge, load_contract, merge_reports
from factory_agents.errors import ConfigurationError
from factory_agents.protocol import Interval

CONTRACT = load_contract(
    """
name: events
id: id
time: at
time_unit: s
schema:
  type: object
  required: [id]
  properties:
    id: {type: string}
    at: {type: [integer, "null"]}
    added: {type: [integer, "null"]}
    sure: {type: integer}
rules:
  positive: added is None or added >= 0
window:
  fail_if:
    - rejected > 20 %
    - null_rate(added) > 50 %
  warn_if:
    - late > 0
    - freshness > 10 min
    - duplicates > 10 %
"""
)
START = datetime(2026, 11, 1, 4, tzinfo=UTC)
HOUR = Interval(START, START + timedelta(hours=1))


def seconds(minute: float) -> int:
    """An event time, counted in minutes from the window's start."""
    return int((START + timedelta(minutes=minute)).timestamp())


def feed(statistics: WindowStatistics, contract: Contract, records: list[tuple[int, dict[str, Any]]], batch: int = 3) -> None:
    """Records are pairs of offset and event; the partition is the offset's last bit."""
    check = contract.checker()
    for i in range(0, len(records), batch):
        valid = [event for _, event in records[i : i + batch] if check(event)]
        statistics.add_valid(valid)
        statistics.add_times([contract.event_time(event) for event in valid])
        for offset, event in records[i : i + batch]:
            if not check(event):
                broken = contract.violations(event)
                statistics.add_rejected([v.rule for v in broken], "; ".join(v.reason for v in broken), ("t", offset % 2, offset))


def report_of(records: list[tuple[int, dict[str, Any]]], interval: Interval | None = HOUR) -> dict[str, Any]:
    statistics = WindowStatistics(CONTRACT, interval)
    feed(statistics, CONTRACT, records)
    report = statistics.report()
    statistics.close()
    return report


def test_a_window_is_counted_as_it_streams_by() -> None:
    events: list[dict[str, Any]] = [
        {"id": "a", "at": seconds(5), "added": 1, "sure": 1},
        {"id": "b", "at": seconds(30), "added": None},
        {"id": "a", "at": seconds(-1)},
        {"id": "c", "at": seconds(60), "added": 2},
        {"id": "d", "at": None, "added": 3},
        {"id": "e", "added": -1},
        {"added": "x"},
    ]
    report = report_of(list(enumerate(events)))
    assert report | {"contract": None, "checks": None} == {
        "format": 1,
        "keyed": None,
        "missing": {},
        "invalid": {},
        "duplicates_of": {},
        "not_run": [],
        "contract": None,
        "rows": 7,
        "valid": 5,
        "rejected": 2,
        "rejected_rate": 2 / 7,
        "rules": {"positive": 1, "schema:id": 1, "schema:added": 1},
        "nulls": {"at": 1, "added": 2, "sure": 4},
        "null_rates": {"at": 0.2, "added": 0.4, "sure": 0.8},
        "duplicates": 1,
        "duplicate_rate": 0.2,
        "late": 1,
        "late_rate": 0.2,
        "early": 1,
        "untimed": 1,
        "first_event": "2026-11-01T03:59:00.000000Z",
        "last_event": "2026-11-01T05:00:00.000000Z",
        "window_start": "2026-11-01T04:00:00.000000Z",
        "window_end": "2026-11-01T05:00:00.000000Z",
        "freshness_seconds": 0.0,
        "samples": [
            {"topic": "t", "partition": 0, "offset": 6, "rules": ["schema:id", "schema:added"],
             "reason": 'id: expected a value, got none (the field is missing); added: expected integer or null, got "x"'},
            {"topic": "t", "partition": 1, "offset": 5, "rules": ["positive"],
             "reason": "rule positive: expected added is None or added >= 0, got added = -1"},
        ],
        "shards": 1,
        "checks": None,
    }  # fmt: skip
    assert [(c["rule"], c["outcome"]) for c in report["checks"]] == [
        ("rejected > 20 %", "fail"),
        ("null_rate(added) > 50 %", "pass"),
        ("late > 0", "warn"),
        ("freshness > 10 min", "pass"),
        ("duplicates > 10 %", "warn"),
    ]
    assert json.loads(json.dumps(report)) == report


def test_freshness_is_relative_to_the_windows_end_not_to_the_clock() -> None:
    report = report_of([(0, {"id": "a", "at": seconds(40)})])
    assert report["freshness_seconds"] == 1200
    assert [c["outcome"] for c in report["checks"] if c["rule"] == "freshness > 10 min"] == ["warn"]


def test_without_an_interval_nothing_is_late_or_fresh() -> None:
    report = report_of([(0, {"id": "a", "at": seconds(40)})], interval=None)
    assert (report["late"], report["early"], report["freshness_seconds"]) == (None, None, None)
    assert (report["first_event"], report["untimed"]) == ("2026-11-01T04:40:00.000000Z", 0)


def test_an_empty_window_has_no_rates_and_passes() -> None:
    report = report_of([])
    assert (report["rows"], report["rejected_rate"], report["null_rates"]["added"], report["duplicate_rate"]) == (0, None, None, None)
    assert report["freshness_seconds"] is None
    assert judge(report).outcome == "pass"
    assert judge(report, fail_if="rows < 1").outcome == "fail"


def test_ids_of_all_kinds_are_told_apart() -> None:
    contract = load_contract({"name": "e", "id": "id"})
    statistics = WindowStatistics(contract)
    ids: list[Any] = ["1", 1, -1, -2, 2**61 - 1, 0, 1.5, None, None, True, "True", "\x001"]
    statistics.add_valid([{"id": i} for i in ids] + [{}])
    assert statistics.report()["duplicates"] == 0
    statistics.add_valid([{"id": -2}, {"id": "1"}])
    assert statistics.report()["duplicates"] == 2


EVENTS = st.fixed_dictionaries(
    {},
    optional={
        "id": st.integers(0, 15).map(str),
        "at": st.one_of(st.none(), st.integers(-30, 90).map(seconds)),
        "added": st.one_of(st.none(), st.integers(-2, 9), st.just("x")),
        "sure": st.integers(),
    },
)


@given(st.lists(EVENTS, max_size=30), st.integers(1, 4))
def test_the_merged_reports_of_shards_are_the_report_of_the_whole(events: list[dict[str, Any]], shards: int) -> None:
    """With all events of an id in one shard, as a topic keyed by id has them."""
    records = list(enumerate(events))
    parts = [[r for r in records if int(r[1].get("id", 0)) % shards == n] for n in range(shards)]
    merged = merge_reports([report_of(part) for part in parts])
    whole = report_of(records)
    assert merged == whole | {"shards": shards}
    assert judge(merged).outcome == judge(whole).outcome


@given(st.lists(st.lists(EVENTS, max_size=8), min_size=3, max_size=3))
def test_merging_is_associative(parts: list[list[dict[str, Any]]]) -> None:
    a, b, c = (report_of(list(enumerate(events, 100 * n))) for n, events in enumerate(parts))
    assert merge_reports([merge_reports([a, b]), c]) == merge_reports([a, merge_reports([b, c])]) == merge_reports([a, b, c])
    assert merge_reports([a]) == a


def test_the_same_id_in_two_shards_is_not_seen_and_the_verdict_says_so() -> None:
    parts = [report_of([(0, {"id": "a", "at": seconds(59)})]), report_of([(1, {"id": "a", "at": seconds(59)})])]
    merged = merge_reports(p | {"keyed": ""} for p in parts)
    assert (merged["duplicates"], merged["shards"]) == (0, 2)
    assert "0 duplicates (within each of 2 shards)" in judge(merged).lines[0].text
    (*_, check) = judge(merged, "duplicates > 0").checks
    assert (check["outcome"], check["observed"]) == ("warn", 0)
    assert "key the records by the id" in check["note"]


def test_more_duplicates_within_shards_than_allowed_are_enough_for_a_verdict() -> None:
    parts = [report_of([(n, {"id": "a", "at": seconds(59)}) for n in range(3)]), report_of([(9, {"id": "a", "at": seconds(59)})])]
    outcomes = [
        judge(merge_reports(p | {"keyed": ""} for p in parts), condition).checks[-1]["outcome"]
        for condition in ("duplicates > 1", "duplicates >= 3", "duplicates < 5")
    ]
    assert outcomes == ["fail", "warn", "warn"]


def test_shares_of_shards_are_not_averaged() -> None:
    good = report_of([(i, {"id": str(i), "at": seconds(59), "added": 1}) for i in range(9)])
    bad = report_of([(9, {"id": "9", "added": -1})])
    merged = merge_reports([good, bad])
    assert merged["rejected_rate"] == 0.1
    assert judge(merged).outcome != "fail"
    assert judge(bad).outcome == "fail"


def test_what_does_not_belong_together_is_refused() -> None:
    report = report_of([])
    with pytest.raises(ConfigurationError, match="expected the validation reports of all shards of a stage, got"):
        merge_reports([])
    with pytest.raises(ConfigurationError, match="is the stage a validate agent"):
        merge_reports([report, None])  # type: ignore[list-item]
    with pytest.raises(ConfigurationError, match="differ in their window_end"):
        merge_reports([report, report_of([], Interval(START, START + timedelta(hours=2)))])
