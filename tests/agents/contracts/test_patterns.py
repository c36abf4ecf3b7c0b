"""Regular expressions: one dialect, whose time is bounded whatever the text."""

from __future__ import annotations

import random
import re
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory_agents.contracts import load_contract
from factory_agents.contracts.patterns import PatternError, check_pattern, compile_search, longest_text

HOSTILE = [
    ("^(a+)+$", "a" * 27 + "!"),
    ("^(a|aa)+$", "a" * 10_000 + "!"),
    ("(x+x+)+y", "x" * 10_000),
    ("(.*)(.*)(.*)(.*)(.*)[^a]x", "a" * 10_000),
    ("^(?=(a+)+b)a", "a" * 10_000),
    ("^(?!(a|a?)+$)a", "a" * 10_000 + "!"),
    ("([a-z]{1,30}|[a-y]{2,29}){1,30}!", "abcdefghijklmnopqrstuvwxyz" * 400),
]


def best_of(times: int, call: Any) -> float:
    """The least seconds that a call took: what it needs, not what the machine was busy with."""
    took = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        took.append(time.perf_counter() - began)
    return min(took)


@pytest.mark.parametrize(("pattern", "text"), HOSTILE)
def test_no_text_takes_long(pattern: str, text: str) -> None:
    search = compile_search(pattern)
    assert best_of(3, lambda: search(text)) < 0.01


@pytest.mark.parametrize(("pattern", "text"), HOSTILE)
def test_schemas_and_rules_have_the_same_dialect(pattern: str, text: str) -> None:
    contract = load_contract(
        {
            "name": "e",
            "id": None,
            "schema": {"properties": {"by_schema": {"type": "string", "pattern": pattern}, "by_rule": {"type": "string"}}},
            "rules": {"rule": f"by_rule is None or by_rule.matches({pattern!r})"},
        }
    )
    found = compile_search(pattern)(text)
    assert [v.rule for v in contract.violations({"by_schema": text, "by_rule": text})] == ([] if found else ["schema:by_schema", "rule"])
    check = contract.checker()
    assert best_of(3, lambda: check({"by_schema": text, "by_rule": text})) < 0.02


LARGE = ["(a|b)*a(a|b){400}[c-z]", "^(?=[ab]*a[ab]{2000}[c-z])a", "^(?!(a|b)*a(a|b){400}[c-z])b", r"(a|b)*a(a|b){9000}[c-z]"]
NO_REPETITION = "".join(random.Random(1).choices("ab", k=100_000))


@pytest.mark.slow
@pytest.mark.parametrize("pattern", [LARGE[1], *(pytest.param(p, marks=pytest.mark.soak) for p in (LARGE[0], *LARGE[2:]))])
@pytest.mark.parametrize("place", ["rule", "schema"])
def test_a_large_expression_takes_short_texts_only_so_that_a_match_is_over_in_seconds(pattern: str, place: str) -> None:
    field: dict[str, Any] = {"type": "string"} | ({"pattern": pattern} if place == "schema" else {})
    rules = {"rule": f"text.matches({pattern!r})"} if place == "rule" else {}
    contract = load_contract({"name": "e", "id": None, "schema": {"properties": {"text": field}}, "rules": rules})
    for length in (20_000, 150_000, 15_000_000):
        text = (NO_REPETITION * (1 + length // len(NO_REPETITION)))[:length]
        began = time.perf_counter()
        found = contract.violations({"text": text})
        assert time.perf_counter() - began < 30  # of a machine that others use too
    assert {v.rule for v in found} == {"rule" if place == "rule" else "schema:text"}
    if "(?!" not in pattern:  # whose other half this text doesn't fit either
        assert "characters" in found[0].reason


def test_a_large_expression_matches_what_a_small_one_would() -> None:
    search = compile_search("^[ab]{3,2000}c")
    assert [search(text) for text in ("aac", "abac", "a" * 2001 + "c")] == [False, True, False]
    schema = {"properties": {"text": {"pattern": "^[ab]{3,2000}c"}}}
    contract = load_contract({"name": "e", "id": None, "schema": schema})
    assert [v.reason for v in contract.violations({"text": "aac"})] == ['text: expected text matching ^[ab]{3,2000}c, got "aac"']
    assert not contract.violations({"text": "abac"})
    assert not contract.violations({"text": 7})


@pytest.mark.parametrize("pattern", [r"^[A-Z]{2}\d{6}$", r"^\w+@\w+\.\w{2,}$", r"^\S+$", r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"])
def test_a_usual_one_takes_any_text(pattern: str) -> None:
    assert longest_text(pattern) is None


@pytest.mark.parametrize("pattern", [r"(?!x)y", r"a(?=b)", r"(?<=a)b", r"(a)\1", r"^(?!(?=x)y)z", r"^(?=a)*b", r"^(?!a)b|c"])
def test_what_has_no_bound_is_refused(pattern: str) -> None:
    with pytest.raises(PatternError):
        check_pattern(pattern)


def test_a_refusal_says_what_is_wrong() -> None:
    with pytest.raises(PatternError, match="look-around"):
        check_pattern("(?<=a)b")
    with pytest.raises(PatternError, match="not a regular expression"):
        check_pattern("((")


_HEADS = st.lists(st.sampled_from(["(?=a)", "(?!a)", "(?!.*b)", "(?=.*ab)", "(?=a|b)", "(?!ab$)", "(?![(]|\\()"]), max_size=3).map("".join)
_TAILS = st.sampled_from(["", "a", "a*", "(a|b)+$", ".b", "ab?$", "[(]", "(?:)$"])


@given(_HEADS, _TAILS, st.text("abc(", max_size=5))
def test_look_ahead_right_after_the_start_means_what_it_means_elsewhere(head: str, tail: str, text: str) -> None:
    assert compile_search(f"^{head}{tail}")(text) == bool(re.search(f"^{head}{tail}", text))


def test_what_is_no_text_cannot_be_decided() -> None:
    with pytest.raises(TypeError, match="takes a text, got int"):
        compile_search("a")(1)
