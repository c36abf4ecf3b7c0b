"""Dead letters as text that does nothing."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_factory.page.letters import LetterPage, LetterQuery
from airflow_provider_factory.page.views.letters import letter, letter_list
from factory_agents.runtime.dead_letters import group_letters
from factory_agents.runtime.letter_values import Shown, plain
from tests.support.pages import START
from tests.support.pages import letter as seen

_MOVING = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
QUERY = LetterQuery("out.dead", "p")


def test_a_list_says_what_it_shows_and_what_it_leaves_out() -> None:
    page = LetterPage("ready", (seen(),), found=1_000, read=20_000, held=1_000_000, taken_at=START)
    assert letter_list(QUERY, page).said == (
        "1,000 letters, the newest 1 shown among the 20,000 that were read; the topic holds at most 1,000,000. As of 00:00:00 UTC."
    )
    assert letter_list(QUERY, LetterPage("pending")).said == ""


def test_a_reason_leads_to_its_letters() -> None:
    groups = tuple(group_letters([seen(rule="a,b", window="w").letter]))
    found = letter_list(QUERY, LetterPage("ready", groups=groups)).groups
    assert found == (("1", "enrich", "a,b", "price < 0", "letters?topic=out.dead&window=w&stage=enrich&rule=a"),)


def test_json_is_shown_as_it_reads_best_text_as_text_and_other_bytes_with_escapes() -> None:
    assert letter(seen(b'{"a":[1]}')).value == '{\n  "a": [\n    1\n  ]\n}'
    assert letter(seen(b"\x1b[31mred")).value == "\\u001b[31mred"
    shown = letter(seen(b"\xff\x1b[31mred"))
    assert (shown.value, shown.note) == (r"\xff\x1b[31mred", "Read as bytes, with escapes.")
    assert letter(seen(None)).note == "The event has no value."
    assert letter(seen(b"")).note == "The event's value is empty."


def test_numbers_and_names_are_shown_as_they_stand_in_the_record() -> None:
    shown = letter(seen(b'{"price": 1.10, "price": 1e400, "id": 73314510714175488.5}')).value
    assert [line.strip(" ,") for line in shown.splitlines()][1:-1] == ['"price": 1.10', '"price": 1e400', '"id": 73314510714175488.5']


def test_nothing_is_told_from_what_is_empty() -> None:
    shown = letter(seen(headers=[("a", None), ("b", b"")]))
    assert shown.headers == (("a", "(none)"), ("b", "(empty)"))
    keyless = seen()
    assert letter(replace(keyless, key=None)).key == "(none)"
    assert letter(replace(keyless, key=plain(b""))).key == "(empty)"


def test_a_value_that_was_cut_says_how_long_it_is() -> None:
    short = replace(seen(b"x" * 10), size=20_000_000, cut=True)
    assert "Only its beginning, of 20,000,000 bytes." in letter(short).note


def test_a_value_that_a_schema_decodes_says_by_which_and_one_that_none_does_says_why() -> None:
    binary = seen(b"\0\0\0\0\7\2a")
    shown = letter(replace(binary, value=Shown('{"id":1}', "avro, schema id 7")))
    assert (json.loads(shown.value), shown.note) == ({"id": 1}, "Read as avro, schema id 7.")
    left = letter(replace(binary, value=plain(b"\0\0\0\0\7\2a", why="schema id 7: the registry has none")))
    assert left.value == r"\x00\x00\x00\x00\x07\x02a"
    assert left.note == "Not decoded, so it is shown as bytes, with escapes: schema id 7: the registry has none."


def test_a_records_time_is_one_for_a_person() -> None:
    for milliseconds, said in ((1795811091497, "2026-11-27 20:24:51.497 UTC"), (2**62, str(2**62))):
        assert ("timestamp", said) in letter(seen(b"1", timestamp=milliseconds)).facts


def test_an_event_that_did_not_fit_a_letter_says_where_it_is() -> None:
    whole = seen(None)
    why = msgspec.structs.replace(whole.letter.why, size=9_000_000, where="raw-0@7", prefix=b"begins so")
    shown = letter(replace(whole, letter=replace(whole.letter, why=why)))
    assert (shown.value, "stayed at raw-0@7" in shown.note) == ("begins so", True)


@pytest.mark.parametrize("value", [b"[" * 5000, b'"\\ud800"', b"NaN", b""])
def test_values_that_are_almost_json_are_shown(value: bytes) -> None:
    letter(seen(value)).value.encode()


@given(st.binary(max_size=300), st.text(max_size=100))
def test_whatever_a_letter_holds_becomes_printable_text(value: bytes, text: str) -> None:
    shown = letter(seen(value, error=text, rule=text, headers=[(text, value)]))
    everything = [shown.rule, shown.key, *(x for pair in (*shown.facts, *shown.headers) for x in pair)]
    assert not _MOVING.search("".join(everything))
    assert not _MOVING.search((shown.value + shown.error).replace("\n", ""))
    (shown.value + shown.error).encode()
