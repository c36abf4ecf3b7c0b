"""YAML and JSON with places."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import yaml

from factory_agents.contracts import documents
from factory_agents.contracts.documents import parse_document, read_document
from factory_agents.errors import ContractError
from tests.support.bounded import cost_of


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
    document = parse_document("a: &x {b: [1]}\n&k c: *x\nd: &x {e: *k}\nf: *x\n&l l: *l\n", "f")
    assert document.data == {"a": {"b": [1]}, "c": {"b": [1]}, "d": {"e": "c"}, "f": {"e": "c"}, "l": "l"}
    assert (document.where(("c", "b", 0)), document.where(("c", "b"), key=True)) == ("f:1:12", "f:1:8")


def test_mappings_are_merged() -> None:
    text = "a: &a {x: 1, y: {z: 2}}\nb: &b {<<: *a, x: 3}\nc: {x: 4, <<: [{w: 5}, *b, {w: 6}]}\nd: {'<<': 7}\n"
    document = parse_document(text, "f")
    assert document.data["b"] == {"x": 3, "y": {"z": 2}}
    assert document.data["c"] == {"x": 4, "w": 5, "y": {"z": 2}}
    assert document.data["d"] == {"<<": 7}
    assert (document.where(("c", "y", "z")), document.where(("c", "y"), key=True)) == ("f:1:21", "f:1:14")
    for wrong in ("<<: 1", "<<: [{}, 2]"):
        with pytest.raises(ContractError, match=r"f:2:3: <<: expected a mapping to merge, or a list of them, got [12]"):
            parse_document(f"b:\n  {wrong}\n", "f")


SAMPLE = """%YAML 1.2
--- # a comment
plain: 1 # another
"quo\\u00e9ted": 'it''s'
ünï: [a, {b: c, d: ''}, "e\\n", -1.5e3]
? explicit
: - - nested
    - ! 7
    - !!str 8
block: |-
   text
    indented
folded: >
   one
   two
empty:
list:
- a: &here {x: 1}
  b: *here
- ~
"""


def test_both_of_pyyamls_parsers_give_the_same_values_and_places(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [SAMPLE, (Path(__file__).parent / "odcs_examples" / "full-example.odcs.yaml").read_text()]
    found = []
    for parser in ("CSafeLoader", "SafeLoader"):
        monkeypatch.setattr(documents, "_Parser", getattr(yaml, parser))
        found.append([parse_document(text, "f.yaml") for text in texts])
    assert found[0] == found[1]
    assert found[0][0].data["explicit"] == [["nested", 7, "8"]]


@pytest.mark.parametrize("parser", ["CSafeLoader", "SafeLoader"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1\n", "f.yaml:2:1: not YAML: "),
        ("a: 1\n\tb: 2\n", "f.yaml:2:1: not YAML: "),
        ("a: 1\na: 2\n", "f.yaml:2:1: the key 'a' stands here twice"),
        ("a: 1\n2: b\n", "f.yaml:2:1: expected a name as key, got 2; quote it"),
        ("a: &x [*x]\n", "f.yaml:1:8: an alias that holds itself"),
        ("a: !!python/object:os.system {}\n", "f.yaml:1:4: expected plain YAML, got the tag"),
        ("a: !secret b\n", "f.yaml:1:4: expected plain YAML, got the tag '!secret'"),
        ("a: 1\n---\nb: 1\n", "f.yaml:2:1: not YAML: expected one document"),
        ("a: \x07\n", "f.yaml:1:4: not YAML: special characters are not allowed (character '\\x07')"),
        ("a: 1\nb: \ud800\n", "f.yaml:2:4: not YAML: special characters are not allowed"),
        ("a: [1, *x]\n", "f.yaml:1:8: not YAML: found undefined alias 'x'"),
        ("a: {b: 1\nc: 2\n", "f.yaml:2:2: not YAML: "),
        ("a: b: c\n", "f.yaml:1:5: not YAML: "),
        ("# nothing\n", "f.yaml:1:1: expected a contract, got an empty file"),
    ],
)
def test_what_cannot_be_read_is_said_with_line_and_column(text: str, message: str, parser: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By both of PyYAML's parsers: the one in C is not everywhere."""
    monkeypatch.setattr(documents, "_Parser", getattr(yaml, parser))
    with pytest.raises(ContractError) as caught:
        parse_document(text, "f.yaml")
    assert str(caught.value).startswith(message)


def test_a_file_that_is_not_text_or_not_readable_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "f.yaml").write_bytes(b"a: 1\nb: \xff\n")
    with pytest.raises(ContractError, match=r"f\.yaml:2:1: expected UTF-8 text, got the byte 0xff"):
        read_document(tmp_path / "f.yaml")
    with pytest.raises(ContractError, match="cannot be read: Is a directory"):
        read_document(tmp_path)


def test_a_json_file_that_begins_with_a_comment_is_no_yaml() -> None:
    for text in ('// a\n{\n\t"a": 1\n}\n', '# a\n{\n\t"a": 1\n}\n'):
        with pytest.raises(ContractError, match=r"f\.json:1:1: not JSON: expected a value; JSON has no comments"):
            parse_document(text, "f.json")


def test_json_may_be_indented_by_tabs() -> None:
    document = parse_document('{\n\t"a":\t{\n\t\t"b": "x\\ty"\n\t}\n}\n', "f.json")
    assert document.data == {"a": {"b": "x\ty"}}
    assert document.where(("a", "b")) == "f.json:3:8"
    assert document.where(("a", "b"), key=True) == "f.json:3:3"


@pytest.mark.parametrize(
    "text",
    [
        '{"a": "\\ud83d\\ude00\\/"}',
        '{"a":1e3,"b":-0.5,"c":[],"d":{}}',
        '[true, false, null, ""]',
        '{"' + "k" * 2000 + '": 1}',
        '{"a"\n:\n1}',
        '{"": 0}',
    ],
)
def test_json_is_read_as_json_has_it(text: str) -> None:
    assert parse_document(text, "f").data == json.loads(text)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{\t"a": 1,}', "f.json:1:10: not JSON: expected something after the comma"),
        ('{"a": 1 "b": 2}', "f.json:1:9: not JSON: expected a comma or }"),
        ('{"a": tru}', "f.json:1:7: not JSON: expected a value"),
        ('{"a": 1} x', "f.json:1:10: not JSON: something follows the value"),
        ('{"a": "x\n"}', "f.json:1:9: not JSON: "),
        ('{"a": 1, "a": 2}', "f.json:1:10: not JSON: the key 'a' stands here twice"),
        ('{"a": 1e999}', "f.json:1:7: not JSON: a number that is too large"),
        ('{"a": 1' + "0" * 5000 + "}", "f.json:1:7: not JSON: a number of too many digits"),
        ("[" * 100_000, "f.json:1:202: not JSON: nested too deeply"),
        ("[0" + ",0" * 600_000 + "]", "f.json:1:1000000: not JSON: more than 500,000 values"),
    ],
)
def test_what_is_no_json_is_said_with_line_and_column(text: str, message: str) -> None:
    with pytest.raises(ContractError) as caught:
        parse_document(text, "f.json")
    assert str(caught.value).startswith(message)


def bomb(levels: int) -> str:
    """Some hundred bytes that mean ten to the power of ``levels`` values."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (bomb(9), "aliases repeat more than 10,000 values"),
        ("a: " + "[" * 10_000, "nested too deeply"),
        ("- " * 10_000, "nested too deeply"),
        ("a: " + "x" * (256 << 10), "characters are too many"),
        ("{" + "x" * (16 << 20), "characters are too many"),
        ("a: 1" + "0" * 5000, "expected a value of type int"),
        ("a: 1e999", "expected a value of type float"),
    ],
)
def test_a_text_that_means_more_than_it_is_costs_little_and_is_one_line(text: str, message: str) -> None:
    began = time.process_time()
    with pytest.raises(ContractError, match=message) as caught:
        parse_document(text, "f.yaml")
    assert time.process_time() - began < 10
    assert len(str(caught.value)) < 200


@pytest.mark.slow
@pytest.mark.parametrize("text", [bomb(9), "[0" + ",0" * 5_000_000 + "]", "a: [0" + ",0" * 60_000 + "]"])
def test_no_text_takes_much_memory(text: str, tmp_path: Path) -> None:
    (tmp_path / "f").write_text(text)
    cost = cost_of(
        """
from pathlib import Path
from factory_agents.contracts.documents import read_document
from factory_agents.errors import ContractError
try:
    read_document(Path(sys.argv[1]))
    answer = "read"
except ContractError as error:
    answer = str(error)
""",
        str(tmp_path / "f"),
    )
    assert cost.mebibytes < 300, cost


def test_of_a_file_without_an_end_no_more_is_read_than_fits() -> None:
    with pytest.raises(ContractError, match="characters are too many"):
        read_document(Path("/dev/zero"))
