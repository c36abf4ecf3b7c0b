"""Conditions as text, and the judge."""

from __future__ import annotations

from typing import Any

import pytest

from factory_agents.contracts import WindowStatistics, judge, load_contract, parse_condition
from factory_agents.errors import ConfigurationError


def report(**changes: Any) -> dict[str, Any]:
    """A report of 1000 rows, 7 rejected, with what a test changes."""
    contract = load_contract({"name": "events", "rules": {"r": "a == 1"}, "window": {"nulls": ["a"]}})
    empty = WindowStatistics(contract).report()
    counts = {"rows": 1000, "valid": 993, "rejected": 7, "rejected_rate": 0.007, "rules": {"r": 5, "decode": 2}, "nulls": {"a": 50}}
    return (
        empty | counts | {"duplicates": 3, "late": 10, "freshness_seconds": 7200.0, "window_end": "2026-11-01T05:00:00.000000Z"} | changes
    )


def outcome(condition: str, **changes: Any) -> str:
    return judge(report(**changes), fail_if=condition).outcome


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("rejected > 0.7 %", "pass"),  # exactly at the threshold: 7 of 1000, where floats would err
        ("rejected >= 0.7 %", "fail"),
        ("rejected > 0.69%", "fail"),
        ("rejected > 7", "pass"),
        ("rejected > 6", "fail"),
        ("rejected(r) > 0.4 %", "fail"),
        ("rejected( decode ) > 2", "pass"),
        ("rejected(schema:added) > 0", "pass"),
        ("rows < 1", "pass"),
        ("rows < 1_001", "fail"),
        ("rows<1,001", "fail"),
        ("null_rate(a) > 5 %", "fail"),
        ("null_rate(a) > 5.1 %", "pass"),
        ("duplicates > 0", "fail"),
        ("duplicates > 1 %", "pass"),
        ("late > 1 %", "fail"),
        ("freshness > 2 h", "pass"),
        ("freshness >= 120 min", "fail"),
        ("freshness > 7199 s", "fail"),
        ("freshness > 1 day", "pass"),
    ],
)
def test_a_condition_is_judged_exactly(condition: str, expected: str) -> None:
    assert outcome(condition) == expected


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("rejectd > 1 %", "unknown figure 'rejectd'; did you mean 'rejected'?"),
        ("rejected_rate > 1 %", "did you mean 'rejected'?"),
        ("duplicate_rate > 1 %", "did you mean 'duplicates'?"),
        ("wobble > 1", "expected one of: rows, valid"),
        ("rejected", "expected a figure, a comparison and a threshold, such as 'rejected > 1 %'"),
        ("rejected => 1 %", "expected a figure"),
        ("rejected > -", "expected a figure"),
        ("", "expected a figure"),
        ("rows > 5 %", "rows is a count, which has no per cent"),
        ("rows > 5 h", "got the unit 'h'"),
        ("freshness > 2", "expected a time with its unit"),
        ("freshness > 2 %", "expected a time with its unit"),
        ("null_rate(a) > 5", "such as 'null_rate(a) > 5 %'"),
        ("null_rate > 5 %", "expected a field in brackets"),
        ("late(a) > 5 %", "late takes nothing in brackets"),
        ("null_rate(b) > 5 %", "the report counts no nulls of 'b'"),
        ("rejected(s) > 5 %", "unknown rule 's'"),
    ],
)
def test_a_mistyped_condition_is_one_clear_line(condition: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        judge(report(), fail_if=[condition])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("conditions", [3, {"rejected": 1}, None])
def test_conditions_are_a_text_or_a_list(conditions: Any) -> None:
    with pytest.raises(ConfigurationError, match="fail_if: expected a condition or a list"):
        judge(report(), fail_if=conditions)


def test_the_worst_outcome_decides() -> None:
    assert judge(report(), warn_if="rejected > 6", fail_if="rejected > 8").outcome == "warn"
    assert judge(report(), warn_if=["rejected > 6"], fail_if=["rows < 1", "rejected > 6"]).outcome == "fail"
    assert judge(report()).outcome == "pass"


def test_the_contracts_own_checks_count_too() -> None:
    check = {"rule": "rejected > 6", "level": "fail", "observed": 7, "threshold": 6, "outcome": "fail"}
    assert judge(report(checks=[check])).outcome == "fail"


def test_an_empty_window_breaks_no_share_and_no_freshness() -> None:
    empty = {"rows": 0, "valid": 0, "rejected": 0, "late": 0, "nulls": {"a": 0}, "duplicates": 0, "freshness_seconds": None}
    for condition in ("rejected > 1 %", "null_rate(a) > 1 %", "late >= 0 %", "duplicates > 0 %", "freshness > 1 s"):
        verdict = judge(report(**empty), fail_if=condition)
        assert verdict.outcome == "pass"
        assert verdict.checks[0]["observed"] is None
        assert "the window is empty" in verdict.lines[1].text
    assert outcome("rows < 1", **empty) == "fail"


def test_what_cannot_be_known_warns() -> None:
    for condition, changes in (
        ("freshness > 2 h", {"freshness_seconds": None}),
        ("late > 0", {"late": None, "window_end": None}),
        ("duplicates > 0", {"duplicates": None}),
    ):
        verdict = judge(report(**changes), fail_if=condition)
        assert verdict.outcome == "warn"
        assert "not known" in verdict.checks[0]["note"]


def test_lines_tell_a_person_what_happened() -> None:
    sample = {"topic": "t", "partition": 1, "offset": 9, "rules": ["r"], "reason": "a: too small"}
    verdict = judge(report(samples=[sample], shards=4), fail_if=["rejected > 0.5 %", "freshness > 1 h"], warn_if="null_rate(a) > 50 %")
    assert [line.text for line in verdict.lines] == [
        "FAIL: events version 1: 1,000 rows, 993 valid, 7 rejected (0.7 %), 3 duplicates (within each of 4 shards), 10 late",
        "  broken: rejected 0.7 % (fails above 0.5 %)",
        "  broken: freshness 2 h (fails above 1 h)",
        "  ok: null_rate(a) 5.035 % (warns above 50 %)",
        "  5 × r",
        "  2 × decode",
        "  e.g. t-1@9: a: too small",
    ]
    assert [line.outcome for line in verdict.lines] == ["fail", "fail", "fail", "pass", "pass", "pass", "pass"]


def test_a_failure_names_what_was_broken_most_often_where_rejected_events_are_why() -> None:
    sample = {"topic": "t", "partition": 1, "offset": 9, "rules": ["r"], "reason": "a: too small"}
    failure = judge(report(samples=[sample]), fail_if="rejected > 0.5 %").failure
    assert failure.endswith("10 late; broken: rejected > 0.5 %; most often (5×) r: a: too small (t-1@9)")
    assert judge(report(samples=[sample]), fail_if="freshness > 1 h").failure.endswith("; broken: freshness > 1 h")
    assert judge(report()).failure == ""


def test_a_run_that_is_well_warns_of_nothing() -> None:
    lines = judge(report(), fail_if="rejected > 5 %", warn_if="rows < 1").lines
    assert {line.outcome for line in lines} == {"pass"}
    assert lines[1].text == "  ok: rejected 0.7 % (fails above 5 %)"
    assert lines[2].text == "  ok: rows 1,000 (warns below 1)"


@pytest.mark.parametrize("value", [None, {}, {"rows": 1}])
def test_no_report_is_said_in_one_line(value: Any) -> None:
    with pytest.raises(ConfigurationError, match="expected a validation report"):
        judge(value)


def test_a_condition_reads_back_as_its_text() -> None:
    condition = parse_condition("  null_rate( added )>  5% ")
    assert parse_condition(condition.text) == parse_condition(condition.text)
    assert (condition.figure, condition.argument, condition.unit) == ("null_rate", "added", "%")
