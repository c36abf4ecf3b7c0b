"""The grammar of contracts."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from factory_agents.contracts import DeleteMarker, load_contract
from factory_agents.errors import ConfigurationError, ContractError

ROOT = Path(__file__).parents[3]

BASE = """name: events
schema:
  type: object
  required: [event_id]
  properties:
    event_id: {type: string}
    added: {type: [integer, "null"]}
    path: {type: string}
    at: {type: integer}
"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BASE + "rulez: {}\n", "10:1: rulez: unknown key; did you mean 'rules'?"),
        (BASE + "schedule: x\n", "10:1: schedule: unknown key"),
        ("version: 1\n\n", "1:1: expected a name"),
        ("name: 3\n\n", "1:7: name: expected a name of letters"),
        ("- a\n- b\n", "1:1: expected a contract (a mapping with a name), got"),
        (BASE + "version: [1]\n", "10:10: version: expected a number or text"),
        (BASE + "id: eventid\n", "10:5: id: the schema declares no field 'eventid'; did you mean 'event_id'?"),
        ("name: e\nschema: {properties: {id: {}}}\n", "1:1: expected id: to name the field that identifies an event"),
        (BASE + "time: at\n", "10:1: time: 'at' is a number: expected time_unit: s, ms or us beside it"),
        (BASE + "time: at\ntime_unit: h\n", '11:12: time_unit: expected one of s, ms, us, iso, got "h"'),
        (BASE + "time: path\ntime_unit: s\n", "11:12: time_unit: 's' does not fit 'path', which the schema says is string"),
        (BASE + "time_unit: s\n", "10:1: time_unit: expected time: to name the field"),
        (BASE + "version_field: rev\n", "10:16: version_field: the schema declares no field 'rev'"),
        (BASE + "key: [event_id, path]\n", "10:17: key.1: the key field 'path' may be missing or null"),
        (BASE + "key: []\n", "10:6: key: expected a field's name or a list of them"),
        (BASE + "key: [event_id, event_id]\n", "10:6: key: a field stands twice"),
        (BASE + "columns: {event_id: txt}\n", "10:21: columns.event_id: unknown type \"txt\"; did you mean 'text'?"),
        (BASE + "columns: {path: text}\n", "10:10: columns: expected the key field 'event_id' among the columns"),
        (BASE + "columns: {pth: text}\n", "10:16: columns.pth: the schema declares no field 'pth'; did you mean 'path'?"),
        (BASE + "rules: [a]\n", "10:8: rules: expected a mapping of rule names to expressions"),
        (BASE + "rules:\n  schema: added > 1\n", "11:3: rules.schema: expected a rule's name"),
        (BASE + "rules:\n  a: true\n", "11:6: rules.a: expected an expression"),
        (BASE + "rules:\n  a: added > && 1\n", "11:14: rules.a: not an expression"),
        (BASE + "rules:\n  a: path == 'é' and addd > 3\n", "11:22: rules.a: the schema declares no field 'addd'; did you mean 'added'?"),
        (BASE + "rules:\n  a: \"path == 'é' and addd > 3\"\n", "11:23: rules.a: the schema declares no field 'addd'"),
        (BASE + "rules:\n  a: |\n    added > 3 and\n      addd < 4\n", "13:7: rules.a: the schema declares no field 'addd'"),
        (BASE + "rules:\n  a: >\n    added > 3 and\n    addd < 4\n", "11:6: rules.a: the schema declares no field 'addd'"),
        (BASE + "window: {rows: 1}\n", "10:10: window.rows: unknown key; expected one of: fail_if, warn_if, nulls"),
        (BASE + "window: {fail_if: rejectd > 1 %}\n", "10:19: window.fail_if: condition 'rejectd > 1 %': unknown figure"),
        (BASE + "window: {fail_if: [3]}\n", "10:20: window.fail_if.0: condition 3: expected a figure"),
        (BASE + "window: {fail_if: {rows: 1}}\n", "10:19: window.fail_if: expected a condition or a list"),
        (BASE + "window: {warn_if: [null_rate(ad) > 1 %]}\n", "10:20: window.warn_if.0: the schema declares no field 'ad'"),
        (BASE + "window: {warn_if: [rejected(x) > 1]}\n", "10:20: window.warn_if.0: there is no rule 'x'"),
        (BASE + "window: {warn_if: [late > 1]}\n", "10:20: window.warn_if.0: late needs event times"),
        (BASE + "window: {nulls: [x]}\n", "10:18: window.nulls.0: the schema declares no field 'x'"),
        ('{"name": "e", "schema": {"propertees": {}}}', "1:26: schema.propertees: not a keyword of JSON Schema"),
    ],
)
def test_a_mistake_is_one_line_with_its_place_and_what_was_expected(text: str, message: str) -> None:
    with pytest.raises(ContractError) as caught:
        load_contract(text)
    assert str(caught.value).startswith(f"inline contract:{message}")
    assert "\n" not in str(caught.value)


def test_a_file_s_mistake_names_the_file_as_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "contracts").mkdir()
    (tmp_path / "contracts" / "events.yaml").write_text("name: e\nrulez: {}\n")
    monkeypatch.setenv("FACTORY_INCLUDE", str(tmp_path))
    with pytest.raises(ContractError, match=r"^contracts/events\.yaml:2:1: rulez: unknown key"):
        load_contract("contracts/events.yaml")
    with pytest.raises(ConfigurationError, match=r"contract 'contracts/nope\.yaml': no such file"):
        load_contract("contracts/nope.yaml")


def test_a_mapping_s_mistake_names_the_path() -> None:
    with pytest.raises(ContractError, match=r"^inline contract: window\.rows: unknown key"):
        load_contract({"name": "e", "window": {"rows": 1}})


def test_the_least_contract_is_a_name() -> None:
    least = load_contract("name: e\n")
    assert (least.id, least.key, least.time, least.version, least.columns()) == ("event_id", ("event_id",), None, "1", ())
    assert least.checker()({"anything": 1})
    assert not least.checker()([])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("version: 1.10  # not 1.1", "1.10"),
        ("version: 2", "2"),
        ("version: '1.10'", "1.10"),
        ("version: &v 1.20", "1.20"),
        ("version: !!float 1.30", "1.30"),
    ],
)
def test_a_version_is_what_is_written(text: str, version: str) -> None:
    assert load_contract(f"name: e\n{text}\n").version == version
    assert load_contract('{"name": "e", "version": 1.10}').version == "1.10"


def test_an_event_may_have_no_id() -> None:
    assert load_contract(BASE + "id: null\n").key == ()


def test_columns_may_be_chosen_ordered_and_typed() -> None:
    columns = load_contract(BASE + "columns:\n  added: numeric\n  event_id:\n").columns()
    assert [(c.name, c.type, c.nullable, c.primary_key) for c in columns] == [
        ("added", "numeric", True, False),
        ("event_id", "text", False, True),
    ]


def test_equal_meaning_has_an_equal_digest() -> None:
    text = BASE + "rules: {a: added is None or added > 0}\nwindow: {fail_if: rows < 1}\n"
    same = "# a comment\n" + text.replace("rows < 1", "['rows  < 1']").replace("None or added > 0", "'None or\n   added > 0'")
    same = same.replace("{a: added is 'None", "{a: 'added is None").replace("name: events", "name:   'events'\nowner: me")
    assert load_contract(text).digest == load_contract(same).digest


@pytest.mark.parametrize(
    "change",
    [
        ("name: events", "name: event"),
        ("name: events", "name: events\nversion: 2"),
        ("added > 0", "added > 1"),
        ("rows < 1", "rows < 2"),
        ("{type: string}\n    added", "{type: string, minLength: 1}\n    added"),
        ("fail_if", "warn_if"),
    ],
)
def test_another_meaning_has_another_digest(change: tuple[str, str]) -> None:
    text = BASE + "rules: {a: added is None or added > 0}\nwindow: {fail_if: rows < 1}\n"
    assert change[0] in text
    assert load_contract(text).digest != load_contract(text.replace(*change)).digest


@pytest.mark.parametrize(
    ("unit", "value", "expected"),
    [
        ("s", 1_762_000_000, "2025-11-01T12:26:40+00:00"),
        ("s", 1_762_000_000.5, "2025-11-01T12:26:40.500000+00:00"),
        ("ms", 1_762_000_000_123, "2025-11-01T12:26:40.123000+00:00"),
        ("us", 1_762_000_000_123_456, "2025-11-01T12:26:40.123456+00:00"),
        ("s", -1, "1969-12-31T23:59:59+00:00"),
        ("iso", "2025-11-01T12:26:40Z", "2025-11-01T12:26:40+00:00"),
        ("iso", "2025-11-01t12:26:40.5z", "2025-11-01T12:26:40.500000+00:00"),
        ("iso", "2025-11-01T12:26:40.123456789+02:00", "2025-11-01T10:26:40.123456+00:00"),
        ("iso", "2025-11-01 12:26:40", "2025-11-01T12:26:40+00:00"),
        ("iso", "2016-12-31T23:59:60Z", "2016-12-31T23:59:59+00:00"),
    ],
)
def test_event_times_are_microseconds_whatever_they_came_as(unit: str, value: Any, expected: str) -> None:
    contract = load_contract({"name": "e", "time": "at", "time_unit": unit})
    time = contract.event_time({"at": value})
    assert time is not None
    assert datetime.fromtimestamp(time // 1_000_000, UTC).replace(microsecond=time % 1_000_000).isoformat() == expected
    assert contract.event_time({}) is None


@pytest.mark.parametrize(
    ("unit", "value"),
    [("s", 1_762_000_000_123), ("s", "now"), ("s", True), ("iso", "yesterday"), ("iso", 3), ("iso", "2025-13-01T00:00:00Z"), ("s", 1e300)],
)
def test_what_is_no_time_breaks_the_rule_time(unit: str, value: Any) -> None:
    contract = load_contract({"name": "e", "time": "at", "time_unit": unit})
    (violation,) = contract.violations({"at": value})
    assert violation.rule == "time"
    assert violation.reason.startswith("at: expected ")
    with pytest.raises(ValueError, match="expected"):
        contract.event_time({"at": value})


def test_a_broken_rule_shows_its_text_and_the_values() -> None:
    contract = load_contract(BASE + "rules:\n  small: added is None or added < 10\n  both: added < 5 or at > 3\n")
    small, both = contract.violations({"event_id": "1", "added": 12})
    assert small == ("small", "rule small: expected added is None or added < 10, got added = 12")
    why = "'>' not supported between instances of 'NoneType' and 'int'"
    assert both == ("both", f"rule both: cannot be decided ({why}): expected added < 5 or at > 3, got added = 12, no at")
    assert [v.rule for v in contract.violations({"event_id": "1", "added": "x"})] == ["schema:added"]
    assert not contract.checker()({"event_id": "1", "added": 12})
    assert not contract.checker()({"event_id": "1", "added": "x"})
    assert contract.checker()({"event_id": "1", "added": 3})


@pytest.mark.parametrize("rule", ["max(tags) > 1", "min(tags) < 1", "len(n) > 1", "n // 0 == 1", "max(tags, n) > 0"])
def test_a_rule_that_these_values_do_not_fit_is_named_and_stops_nothing(rule: str) -> None:
    contract = load_contract({"name": "e", "id": None, "schema": {"properties": {"tags": {}, "n": {}}}, "rules": {"suspect": rule}})
    (broken,) = contract.violations({"tags": [], "n": 1})
    assert broken.rule == "suspect"
    assert broken.reason.startswith("rule suspect: cannot be decided (")
    assert rule in broken.reason
    assert not contract.checker()({"tags": [], "n": 1})


def test_the_fast_test_and_the_explanation_agree_on_the_sample_contract() -> None:
    contract = load_contract(ROOT / "include" / "contracts" / "events.yaml")
    good = {"event_id": "r:abcdef0:p q", "repo": "r", "commit": "abcdef0", "path": "p q", "added": 1, "deleted": 0}
    good |= {"occurred_at": 1_400_000_000, "language": "python", "size_class": "small"}
    check = contract.checker()
    assert check(good)
    assert contract.violations(good) == ()
    for change in ({"added": None}, {"added": -1}, {"event_id": "x"}, {"commit": "XYZ"}, {"occurred_at": "now"}, {"path": ""}):
        event = json.loads(json.dumps(good | change))
        assert check(event) is False, change
        assert contract.violations(event) != (), change
    assert [(c.name, c.type) for c in contract.columns() if c.nullable] == [("added", "bigint"), ("deleted", "bigint")]


def test_the_sample_contract_refuses_what_is_wrong_with_the_sample_data_on_purpose() -> None:
    contract = load_contract(ROOT / "include" / "contracts" / "events.yaml")
    broken = {}
    for number, line in enumerate((ROOT / "include" / "data" / "changes.jsonl").read_text("utf-8").splitlines(), 1):
        try:
            event = json.loads(line)
        except ValueError:
            continue
        size = "binary" if event.get("added") is None else "small"
        violations = contract.violations(event | {"language": "C", "size_class": size})
        if violations:
            broken[number] = [v.rule for v in violations]
    assert broken == {
        418: ["schema:path"],
        444: ["schema:added"],
        543: ["schema:event_id", "id_names_its_file"],
        595: ["schema:occurred_at"],
    }


def test_the_example_in_the_documentation_is_a_contract() -> None:
    page = (ROOT / "docs" / "contracts.md").read_text("utf-8")
    contract = load_contract(page.split("```yaml\n")[1].split("```")[0])
    assert [(c.name, c.type) for c in contract.columns()] == [("event_id", "text"), ("occurred_at", "bigint"), ("added", "numeric")]
    assert contract.checker()({"event_id": "1", "occurred_at": 1, "added": None})


def test_the_example_of_marked_deletes_in_the_documentation_is_a_contract() -> None:
    page = (ROOT / "docs" / "contracts.md").read_text("utf-8")
    (text,) = (block for block in page.split("```yaml\n") if block.startswith("name: customers"))
    contract = load_contract(text.split("```")[0])
    assert (contract.delete_marker, [c.name for c in contract.columns()]) == (DeleteMarker("op", ("d",)), ["id", "name"])
    assert contract.checker()({"id": 1, "op": "d"})


def test_deletes_are_asked_for_and_enter_the_digest() -> None:
    plain, deleting = load_contract(BASE), load_contract(BASE + "deletes: true\n")
    assert (plain.deletes, deleting.deletes) == (False, True)
    assert plain.digest == load_contract(BASE + "deletes: false\n").digest != deleting.digest
    with pytest.raises(ContractError, match=r'expected true, false, or what marks an event that deletes, .*, got "yes"'):
        load_contract(BASE + "deletes: 'yes'\n")


def test_an_event_may_be_marked_as_a_delete() -> None:
    marked = load_contract(BASE + "deletes: {field: event_id, values: [gone]}\n")
    assert (marked.deletes, marked.delete_marker) == (True, DeleteMarker("event_id", ("gone",)))
    assert marked.table().delete_marker == marked.delete_marker
    other = load_contract(BASE + "deletes: {field: event_id, values: [gone, away]}\n")
    assert len({contract.digest for contract in (marked, other, load_contract(BASE + "deletes: true\n"))}) == 3


@pytest.mark.parametrize(
    ("deletes", "says"),
    [
        ("{values: [d]}", "expected the field that marks an event that deletes"),
        ("{field: event_id}", "expected values, a list such as"),
        ("{field: event_id, values: []}", "expected values, a list such as"),
        ("{field: event_id, values: d}", 'got "d"'),
        ("{field: event_id, values: [d, null]}", "expected text, a number, true or false, got null"),
        ("{field: event_id, values: [[d]]}", "expected text, a number, true or false"),
        ("{field: event_id, values: [1]}", "1 is never in 'event_id', which the schema says is string"),
        ("{field: evnt_id, values: [d]}", "did you mean 'event_id'"),
        ("{field: event_id, value: [d]}", "did you mean 'values'"),
    ],
)
def test_what_marks_a_delete_is_checked(deletes: str, says: str) -> None:
    with pytest.raises(ContractError, match=r"inline contract:\d+:\d+: .*" + re.escape(says)):
        load_contract(BASE + f"deletes: {deletes}\n")


@pytest.mark.parametrize("type_", ["numeric(10,2)", "char(3)", "varchar(5)", "text[]", "numeric(4)[]", "uuid"])
def test_a_columns_type_may_have_arguments_and_be_a_list(type_: str) -> None:
    assert load_contract(BASE + f"columns:\n  event_id:\n  added: {type_}\n").columns()[1].type == type_


@pytest.mark.parametrize("type_", ["uid", "text(3)", "numeric(1,2,3)", "char()", "text[][]", "'text; DROP TABLE x'"])
def test_a_columns_type_that_is_none_is_refused(type_: str) -> None:
    with pytest.raises(ContractError, match="unknown type"):
        load_contract(BASE + f"columns:\n  event_id:\n  added: {type_}\n")
