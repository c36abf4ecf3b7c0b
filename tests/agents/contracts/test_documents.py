"""YAML and JSON with places."""

from __future__ import annotations

from pathlib import Path

import pytest

from factory_agents.contracts.documents import parse_document, read_document
from factory_agents.errors import ContractError


def test_plain_words_stay_text_as_json_schema_means_them() -> None:
    document = parse_document("a: no\nb: on\nc: 2026-11-01\nd: 1_000\ne: 0x10\nf: 12:30:00\ng: y\n", "f.yaml")
    assert document.data == {"a": "no", "b": "on", "c": "2026-11-01", "d": "1_000", "e": "0x10", "f": "12:30:00", "g": "y"}


def test_numbers_booleans_and_nulls_are_read() -> None:
    document = parse_document("[1, -2, 1.5, 1e3, .5, true, False, null, ~, '1', \"true\", ]", "f.yaml")
    assert document.data == [1, -2, 1.5, 1000.0, 0.5, True, False, None, None, "1", "true"]


def test_json_is_read_with_its_places() -> None:
    document = parse_document('{"a": {"b": [1,\n  {"c": 2}]}}', "f.json")
    assert document.data == {"a": {"b": [1, {"c": 2}]}}
    assert document.where(("a", "b", 1, "c")) == "f.json:2:9"
    assert document.where(("a", "b", 1, "c"), key=True) == "f.json:2:4"
    assert document.where(("a", "b", 7, "nowhere")) == "f.json:1:13"


def test_anchors_and_aliases_work() -> None:
    assert parse_document("a: &x {b: 1}\nc: *x\n", "f").data == {"a": {"b": 1}, "c": {"b": 1}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1\n", "f.yaml:2:1: not YAML: "),
        ("a: 1\n\tb: 2\n", "f.yaml:2:1: not YAML: "),
        ("a: 1\na: 2\n", "f.yaml:2:1: the key 'a' stands here twice"),
        ("a: 1\n2: b\n", "f.yaml:2:1: expected a name as key, got 2; quote it"),
        ("a: &x [*x]\n", "f.yaml:1:4: an alias that holds itself"),
        ("a: !!python/object:os.system {}\n", "f.yaml:1:4: expected plain YAML, got the tag"),
        ("a: !secret b\n", "f.yaml:1:4: expected plain YAML, got the tag '!secret'"),
        ("a: 1\n---\nb: 1\n", "f.yaml:2:1: not YAML: "),
        ("a: \x07\n", "f.yaml:1:1: not YAML: "),
        ("# nothing\n", "f.yaml:1:1: expected a contract, got an empty file"),
    ],
)
def test_what_cannot_be_read_is_said_with_line_and_column(text: str, message: str) -> None:
    with pytest.raises(ContractError) as caught:
        parse_document(text, "f.yaml")
    assert str(caught.value).startswith(message)


def test_a_file_that_is_not_text_or_not_readable_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "f.yaml").write_bytes(b"a: 1\nb: \xff\n")
    with pytest.raises(ContractError, match=r"f\.yaml:2:1: expected UTF-8 text, got the byte 0xff"):
        read_document(tmp_path / "f.yaml")
    with pytest.raises(ContractError, match="cannot be read: Is a directory"):
        read_document(tmp_path)
