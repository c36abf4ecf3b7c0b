"""Reasons: counted by rule and kind of error, with examples that may be shown; what an aborted chunk counted comes again."""

from __future__ import annotations

import pytest

from factory_agents.protocol import Example, Reason
from factory_agents.runtime.reasons import Reasons, reason_lines


def test_events_count_together_whose_errors_differ_by_figures_and_quoted_values_only() -> None:
    reasons = Reasons()
    for i in range(3):
        reasons.add("agent-error", f"cannot bear {i} of 'x{i}'", f"t-0@{i}", None, None)
    reasons.add("no-path", "the change names no file", "t-1@7", None, None)
    reasons.add("agent-error", "something else", "t-1@8", None, None)
    assert [(r.rule, r.error, r.count, r.first, r.examples) for r in reasons.told()] == [
        ("agent-error", "cannot bear 0 of 'x0'", 3, "t-0@0", ()),
        ("no-path", "the change names no file", 1, "t-1@7", ()),
        ("agent-error", "something else", 1, "t-1@8", ()),
    ]
    assert reasons.commonest() == "; most often (3×) agent-error: cannot bear 0 of 'x0' (first at t-0@0)"


def test_examples_are_few_short_and_safe_to_show() -> None:
    reasons = Reasons(examples=2)
    for i in range(3):
        reasons.add("r\x1b[31m", "e\n" + "x" * 1000, f"t-0@{i}", b"k\x07", b"\xff" + "€".encode() * 500)
    (reason,) = reasons.told()
    assert reason.rule == "r\\u001b[31m"
    assert reason.error.startswith("e\\nx")
    assert len(reason.error) == 300
    assert [e.at for e in reason.examples] == ["t-0@0", "t-0@1"]
    assert reason.examples[0].key == "k\\u0007"
    assert reason.examples[0].value == "\ufffd" + "€" * 198 + "…"


@pytest.mark.parametrize(("asked", "kept"), [(0, 0), (1, 1), (1000, 5)])
def test_no_more_examples_are_kept_than_anybody_reads(asked: int, kept: int) -> None:
    reasons = Reasons(examples=asked)
    for i in range(10):
        reasons.add("r", "e", f"t-0@{i}", None, None)
    assert len(reasons.told()[0].examples) == kept


def test_what_an_aborted_chunk_counted_is_forgotten() -> None:
    reasons = Reasons(examples=5)
    reasons.add("a", "e", "t-0@0", None, None)
    reasons.end_chunk(committed=True)
    for rule, at in (("a", "t-0@1"), ("b", "t-0@2")):
        reasons.add(rule, "e", at, None, None)
    reasons.end_chunk(committed=False)
    assert reasons.told() == (Reason("a", "e", 1, "t-0@0", (Example("t-0@0"),)),)
    reasons.add("b", "e", "t-0@2", None, None)
    reasons.end_chunk(committed=True)
    assert [(r.rule, r.count) for r in reasons.told()] == [("a", 1), ("b", 1)]


def test_memory_stays_bounded_however_many_kinds_there_are() -> None:
    reasons = Reasons()
    for i in range(1000):
        reasons.add(f"rule-{i}", "e", f"t-0@{i}", None, None)
    told = reasons.told()
    assert len(told) == 51
    assert (told[0].error, told[0].count) == ("other reasons", 950)
    assert sum(r.count for r in told) == 1000


def test_a_tolerated_event_is_told_of_and_is_no_cause() -> None:
    reasons = Reasons()
    for i in range(3):
        reasons.add("decode", "a tombstone", f"t-0@{i}", b"k", None, tolerated=True)
    assert reasons.commonest() == ""
    reasons.add("column", "no number", "t-0@9", None, None)
    assert reasons.commonest() == "; most often (1×) column: no number (first at t-0@9)"
    assert [r.count for r in reasons.told()] == [3, 1]


def test_a_person_reads_a_line_for_each_reason_and_each_example() -> None:
    examples = (Example("t-0@3", "k", '{"a": 1}'), Example("t-0@4"))
    assert reason_lines([Reason("r", "too small", 1234, "t-0@3", examples), Reason("s", "odd", 1, "file.csv:7")]) == [
        "1,234 × r: too small",
        '    t-0@3  k  {"a": 1}',
        "    t-0@4  (no value)",
        "1 × s: odd (first at file.csv:7)",
    ]
