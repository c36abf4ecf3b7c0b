"""Fields whose values must be in other data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from factory_agents.contracts import judge, load_contract, merge_reports, pack_contract
from factory_agents.contracts.diff import diff_contracts
from factory_agents.contracts.lint import lint_contract
from factory_agents.contracts.odcs_export import export_odcs, short_form
from factory_agents.errors import ContractError
from factory_agents.runtime.agents import Reject
from factory_agents.validate import ValidateTransform, build
from tests.agents.test_validate import RUN, message

SCHEMA = {
    "type": "object",
    "required": ["event_id"],
    "properties": {"event_id": {"type": "string"}, "shop": {"type": ["string", "integer", "null"]}, "added": {"type": "integer"}},
}
EVENTS: list[dict[str, Any]] = [
    {"event_id": "1", "shop": "a"},
    {"event_id": "2", "shop": "z"},
    {"event_id": "3", "shop": None},
    {"event_id": "4"},
    {"event_id": "5", "shop": 7, "more": [1]},
    {"event_id": "6", "shop": 8.0},
    {"event_id": "7", "shop": True},
]


@pytest.fixture
def contract(tmp_path: Path) -> Path:
    """A contract with a reference to a file in a folder beside it."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "shops.csv").write_text("code,name\na,A\n7,B\n")
    path = tmp_path / "orders.json"
    references = {"shop": {"file": "data/shops.csv", "column": "code"}}
    path.write_text(
        json.dumps({"name": "orders", "schema": SCHEMA, "references": references, "window": {"fail_if": ["rejected(reference:shop) > 1"]}})
    )
    return path


def run(validate: ValidateTransform, events: list[dict[str, Any]] = EVENTS) -> tuple[list[Any], dict[str, Any]]:
    outputs = validate.process([message(msgspec.json.encode(event), i) for i, event in enumerate(events)])
    try:
        return outputs, validate.report()
    finally:
        validate.close()


def test_an_event_whose_value_is_not_there_is_rejected_by_name(contract: Path) -> None:
    outputs, report = run(build({"contract": str(contract)}, RUN))
    reasons = [o.reason if isinstance(o, Reject) else "" for o in outputs]
    what = "shop: expected a value of column 'code' of file 'data/shops.csv', got "
    of_type = reasons.pop()
    assert reasons == ["", f'{what}"z"', "", "", "", f"{what}8.0"]
    assert of_type.startswith("shop: expected")
    assert report["rules"] == {"reference:shop": 2, "schema:shop": 1}
    assert report["references"]["shop"]["values"] == 2
    verdict = judge(report)
    assert verdict.outcome == "fail"
    assert "shop: 2 values in column 'code' of file 'data/shops.csv'" in "\n".join(line.text for line in verdict.lines)


@pytest.mark.parametrize("closed", [True, False])
def test_both_paths_say_the_same(contract: Path, closed: bool) -> None:
    data = json.loads(contract.read_text())
    data["schema"]["additionalProperties"] = not closed
    contract.write_text(json.dumps(data))
    fast, slow = (build({"contract": str(contract)}, RUN) for _ in range(2))
    assert fast._fast is not None
    slow._fast = None
    told = [[o.reason if isinstance(o, Reject) else o for o in run(one)[0]] for one in (fast, slow)]
    assert told[0] == told[1]


def test_a_masked_value_is_told_nowhere(contract: Path) -> None:
    data = json.loads(contract.read_text()) | {"masked": ["shop"]}
    contract.write_text(json.dumps(data))
    outputs, report = run(build({"contract": str(contract)}, RUN), [{"event_id": "1", "shop": "secret"}])
    assert outputs[0].rule == "reference:shop"
    assert "secret" not in outputs[0].reason + str(report)


def test_its_file_travels_with_the_contract(contract: Path) -> None:
    packed = json.loads(json.dumps(pack_contract(load_contract(contract))))
    again = pack_contract(load_contract(packed))
    (contract.parent / "data" / "shops.csv").unlink()
    assert again == packed
    outputs, _ = run(build({"contract": packed}, RUN))
    assert [isinstance(o, Reject) for o in outputs] == [False, True, False, False, False, True, True]
    for data in ({"data/shops.csv": "bm90IHpsaWI="}, {"data/shops.csv": 1}, ["data/shops.csv"]):
        with pytest.raises(ContractError, match=r"packed contract: .*(damaged|expected files)"):
            load_contract(packed | {"data": data})


def test_a_large_file_is_left_behind_by_its_name(contract: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("factory_agents.contracts.foreign_keys._PACKED_BYTES", 10)
    packed = pack_contract(load_contract(contract))
    assert "data" not in packed
    monkeypatch.setenv("FACTORY_INCLUDE", str(contract.parent))
    assert isinstance(run(build({"contract": packed}, RUN))[0][1], Reject)


def test_the_fingerprint_is_that_of_the_content(contract: Path) -> None:
    def identity() -> Any:
        validate = build({"contract": str(contract)}, RUN)
        validate.close()
        return validate.identity

    before = identity()
    shops = contract.parent / "data" / "shops.csv"
    shops.write_text("code,name\n7,C\na,D\n")
    assert identity() == before
    shops.write_text("code\na\n7\n7\n")
    assert identity() == before
    shops.write_text("code\n7\nb\n")
    assert identity() != before


def test_shards_are_merged_and_a_change_between_them_is_told(contract: Path) -> None:
    _, first = run(build({"contract": str(contract)}, RUN), EVENTS[:2])
    _, second = run(build({"contract": str(contract)}, RUN), EVENTS[2:])
    merged = merge_reports([first, second])
    assert merged["rules"]["reference:shop"] == 2
    assert all(line.outcome != "warn" for line in judge(merged).lines)
    (contract.parent / "data" / "shops.csv").write_text("code\na\n")
    _, other = run(build({"contract": str(contract)}, RUN), EVENTS[2:])
    warnings = [line.text for line in judge(merge_reports([first, other])).lines if line.outcome == "warn"]
    (warning,) = warnings
    assert warning.startswith("  shop: 2 values in column 'code' of file 'data/shops.csv'; they changed meanwhile: ")


def test_a_live_agent_reads_files_but_no_tables(contract: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not build({"contract": str(contract)}).only_windows
    monkeypatch.setattr("factory_agents.validate.read_members", lambda key: pytest.importorskip("factory_agents.sources.members").Members())
    table = {"name": "orders", "schema": SCHEMA, "references": {"shop": {"table": "shops"}}}
    assert "in a live agent use enrich with a lookup" in build({"contract": table}).only_windows


@pytest.mark.parametrize(
    ("references", "message"),
    [
        ({"shops": {"file": "a.csv"}}, "the schema declares no field 'shops'; did you mean 'shop'?"),
        ({"shop": {}}, "expected either a file or a table that has the values"),
        ({"shop": {"file": "a.csv", "table": "b"}}, "expected either a file or a table"),
        ({"shop": {"file": "a.csv", "database_env": "X"}}, "it goes with a table"),
        ({"shop": {"file": "/etc/passwd"}}, "expected a name relative to the contract's file, or a URL"),
        ({"shop": {"file": "file:///etc/passwd"}}, "expected a name relative to the contract's file, or a URL"),
        ({"shop": {"file": 3}}, "expected text, got 3"),
        ({"shop": {"fil": "a.csv"}}, "fil"),
        ({"shop": "a.csv"}, "expected a mapping with a file or a table"),
        (["shop"], "expected a mapping of fields to columns"),
    ],
)
def test_what_it_cannot_be_is_one_line_with_its_place(tmp_path: Path, references: Any, message: str) -> None:
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"name": "orders", "schema": SCHEMA, "references": references}))
    assert any(message in problem.text for problem in lint_contract(str(path)))
    with pytest.raises(ContractError, match=r"c\.json:1:\d+: "):
        load_contract(path)


def test_a_condition_names_a_reference_that_is_there() -> None:
    data = {"name": "orders", "schema": SCHEMA, "window": {"fail_if": ["rejected(reference:shop) > 0"]}}
    with pytest.raises(ContractError, match="there is no rule 'reference:shop'"):
        load_contract(data)


def test_the_standards_relationships() -> None:
    """Those that say where the data is are references, the others are named."""
    where = [{"property": "factory", "value": {"table": "dwh.shops", "database_env": "DWH_URL"}}]
    properties = [
        {"name": "shop", "logicalType": "string", "relationships": [{"to": "shops.code", "customProperties": where}]},
        {"name": "user", "logicalType": "string", "relationships": [{"to": "users.id"}]},
    ]
    relationship = {
        "from": "orders.user",
        "to": "schema/users/properties/uid",
        "customProperties": [{"property": "factory", "value": {"file": "users.csv"}}],
    }
    schema = {"name": "orders", "properties": properties, "relationships": [relationship]}
    odcs = {"apiVersion": "v3.1.0", "kind": "DataContract", "id": "o", "version": "1", "status": "active", "schema": [schema]}
    contract = load_contract(odcs)
    assert [key.meaning for key in contract.foreign_keys] == [
        ["shop", "", "dwh.shops", "code", "DWH_URL"],
        ["user", "users.csv", "", "uid", ""],
    ]
    (not_run,) = contract.not_run
    assert 'the relationship to "users.id" (its custom property factory says no file or table)' in not_run


def test_both_ways_into_the_standard(contract: Path) -> None:
    data = {"name": "orders", "schema": SCHEMA, "references": {"shop": {"table": "shops", "column": "code"}, "added": {"file": "n.csv"}}}
    for one in (load_contract(contract), load_contract(data)):
        exported = export_odcs(one, contract.parent)
        assert load_contract(exported, folder=contract.parent).digest == one.digest
        assert load_contract(short_form(load_contract(exported))).digest == one.digest
    (shop,) = [p for p in exported["schema"][0]["properties"] if p["name"] == "shop"]
    assert shop["relationships"][0]["to"] == "shops.code"


def test_diff_says_whom_a_reference_breaks(contract: Path) -> None:
    new = load_contract(contract)
    data = json.loads(contract.read_text())
    del data["references"], data["window"]
    changes = {change.what: change for change in diff_contracts(load_contract(data), new)}
    assert changes["reference of shop"].breaks == ("producers",)
    assert changes["reference of shop"].text == "added: column 'code' of file 'data/shops.csv'"
