"""What others wrote is shown, never obeyed."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory_agents.text import not_json, printable, unknown

HOSTILE = {
    "a line": "a\nb",
    "a carriage return": "a\rb",
    "a colour": "\x1b[31mred",
    "a title": "\x1b]0;title\x07",
    "the same in one byte": "\x9b31m",
    "a clipboard": "\x9d52;c;ZXZpbA==\x9c",
    "backspace": "safe\x08\x08\x08\x08evil",
    "NUL and DEL": "\0\x7f",
    "turned around": "user\u202egnp.exe",
    "isolated": "\u2066x\u2069",
    "marks of direction": "\u200e\u200f\u061c",
    "ends of lines of other kinds": "a\x85b\u2028c\u2029d",
    "half a surrogate": "\ud800",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_acts_on_a_terminal_is_shown_by_its_number(what: str) -> None:
    shown = printable(HOSTILE[what])
    assert shown.isascii() or "\\u" in shown
    assert not [c for c in shown if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp", "Cf")]
    assert shown.splitlines() == [shown]


def test_what_people_write_stays_as_it_is() -> None:
    for text in ("plain", "Ærø, 日本語, العربية, עברית", "emoji 👩‍💻", 'quotes " and \\ backslashes', "a\u00a0b", ""):
        assert printable(text) == text


def test_lines_stay_where_they_are_meant() -> None:
    assert printable("a\nb\r\x1b", lines=True) == "a\nb\\r\\u001b"


@given(st.text())
def test_any_text_is_one_line_and_can_be_encoded(text: str) -> None:
    shown = printable(text)
    assert len(shown.splitlines()) <= 1
    shown.encode()
    assert printable(shown) == shown


@pytest.mark.parametrize(
    ("name", "known", "says"),
    [
        ("tabel", ["table", "sink"], "unknown parameter 'tabel'; did you mean 'table'?"),
        ("x", ["table", "sink"], "unknown parameter 'x'; expected one of: table, sink"),
        ("x", [], "unknown parameter 'x'; expected one of: (there are none)"),
    ],
)
def test_an_unknown_key_is_told_with_the_likeliest_or_with_all(name: str, known: list[str], says: str) -> None:
    assert unknown("parameter", name, known) == says


@pytest.mark.parametrize(
    ("value", "half"),
    [
        (rb'{"a":"\ud800"}', rb"\ud800"),
        (rb'{"\uDFFF":1}', rb"\uDFFF"),
        (rb'["\ud83d\ude00 \ud83dx"]', rb"\ud83d"),
        (rb'["\\\ud800"]', rb"\ud800"),
        (rb'["\ud800\ud800"]', rb"\ud800"),
        (rb'["\\ud800 \ud83d\ude00", x]', b""),
    ],
)
def test_half_a_character_is_said_to_be_one(value: bytes, half: bytes) -> None:
    says = not_json(value, ValueError("Input data was truncated"))
    assert says == (f"half a character ({half.decode()}), which no text can hold" if half else "Input data was truncated")
