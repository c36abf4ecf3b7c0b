"""The built-in validate agent."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from confluent_kafka import Message

from factory_agents.contracts import judge, load_contract, merge_reports, pack_contract
from factory_agents.errors import AccountingError, ConfigurationError, ContractError
from factory_agents.protocol import AgentRef, AgentRun, Counts, Interval, Shard, Window
from factory_agents.runtime.agents import Reject
from factory_agents.validate import ValidateTransform, build

CONTRACT: dict[str, Any] = {
    "name": "events",
    "time": "at",
    "time_unit": "iso",
    "schema": {
        "type": "object",
        "required": ["event_id"],
        "properties": {"event_id": {"type": "string"}, "at": {"type": "string"}, "added": {"type": ["integer", "null"]}},
        "additionalProperties": False,
    },
    "rules": {"positive": "added is None or added >= 0", "small": "added is None or abs(added) < 100"},
    "window": {"fail_if": ["rejected > 10 %"]},
}
START = datetime(2026, 11, 1, 4, tzinfo=UTC)
RUN = AgentRun("p", "validate", AgentRef("validate"), interval=Interval(START, START + timedelta(hours=1)))


def message(value: bytes | None, offset: int = 0, key: bytes | None = None) -> Any:
    return Message(topic="events", partition=3, offset=offset, value=value, key=key)


def transform(run: AgentRun | None = RUN, **changes: Any) -> ValidateTransform:
    return build({"contract": CONTRACT | changes}, run)


def reject_of(value: bytes | None) -> Reject:
    (output,) = transform().process([message(value)])
    assert isinstance(output, Reject)
    return output


def test_valid_events_pass_byte_for_byte() -> None:
    values = [
        b' {"event_id" : "a\\u00e9", "added":1.0 }',
        b'{"event_id":"b"}',
        b'{"event_id":"c","added":null,"at":"2026-11-01T04:30:00Z"}',
    ]
    validate = transform()
    outputs = validate.process([message(v, i) for i, v in enumerate(values)])
    assert outputs == values
    report = validate.finish(Counts(consumed=3))
    assert (report["rows"], report["valid"], report["freshness_seconds"]) == (3, 3, 1800)


@pytest.mark.parametrize("rule", ["max(tags) > 0", "tags[0] / 0 > 1", "tags.lower() == 'a'", "len(added) > 0", "path.matches('a')"])
def test_a_rule_that_cannot_be_decided_is_named(rule: str) -> None:
    validate = build({"contract": {"name": "e", "rules": {"by_name": rule, "other": "added == 1"}}}, RUN)
    (reject,) = validate.process([message(b'{"event_id": "a", "tags": [], "added": 1, "path": 3}')])
    assert isinstance(reject, Reject)
    assert reject.rule == "by_name"
    assert reject.reason.startswith("rule by_name: cannot be decided (")
    assert validate.finish(Counts(consumed=1))["rules"] == {"by_name": 1, "other": 0}


@pytest.mark.parametrize("closed", [False, True], ids=["validator", "fast path"])
@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "integer"}, "9007199254740993.0", "9007199254740993.5"),
        ({"type": "number", "maximum": 0.1}, "0.1", "0.10000000000000000001"),
        ({"type": "number", "minimum": 100}, "100.0", "99.99999999999999999"),
        ({"type": "number", "exclusiveMaximum": 1}, "0.99999999999999999999", "1.0"),
        ({"type": "number", "maximum": 1.0}, "1.0", "1.000000000000000000001"),
        ({"type": "number", "multipleOf": 0.01}, "0.5", "null"),
        ({"type": ["string", "number"], "not": {"const": 3}}, '"3"', "null"),
        ({"type": "number", "exclusiveMinimum": 2**53}, "9007199254740992.5", "9007199254740992.0"),
        ({"type": ["number", "null"], "multipleOf": 0.01}, "12345678901234567.89", "12345678901234567.895"),
        ({"const": 0.1}, "0.10", "0.10000000000000000001"),
        ({"enum": [9007199254740993, 0.5]}, "9007199254740993.0", "9007199254740992.0"),
        ({"uniqueItems": True}, "[0.1, 0.10000000000000000001]", "[0.10000000000000000001, 0.100000000000000000010]"),
        ({"type": "array", "items": {"type": "number", "maximum": 5}}, "[5.0]", "[5.0000000000000000001]"),
        ({"properties": {"b": {"multipleOf": 3}}}, '{"b": 9007199254740993.0}', '{"b": 9007199254740994.0}'),
    ],
)  # fmt: skip
def test_a_schema_sees_all_digits_of_a_number(schema: dict[str, Any], good: str, bad: str, closed: bool) -> None:
    contract = {"name": "e", "id": None, "schema": {"type": "object", "properties": {"n": schema}, "additionalProperties": not closed}}
    more = "" if closed else ', "more": 1'
    good_one, bad_one = (f'{{"n": {n}{more}}}'.encode() for n in (good, bad))
    outputs = build({"contract": contract}, RUN).process([message(good_one), message(bad_one, 1)])
    assert outputs[0] == good_one
    assert isinstance(outputs[1], Reject)
    assert outputs[1].rule == "schema:n" if not bad.startswith("{") else "schema"


@pytest.mark.parametrize(
    "text",
    [
        "name: e\nid: null\nschema: {properties: {n: {maximum: %s}}}\n",
        '{"name":"e","id":null,"schema":{"properties":{"n":{"maximum":%s}}}}',
    ],
)
def test_a_contract_keeps_all_digits_of_its_numbers(text: str) -> None:
    validate = build({"contract": text % "99999999999999999.99"}, RUN)
    outputs = validate.process([message(b'{"n": 99999999999999999.99}'), message(b'{"n": 100000000000000000}', 1)])
    assert isinstance(outputs[0], bytes)
    assert isinstance(outputs[1], Reject)
    assert outputs[1].reason == "n: expected at most 99999999999999999.99, got 100000000000000000"


def test_such_a_number_may_stand_anywhere_in_a_contract() -> None:
    number = "0.12345678901234567890123"
    text = f"""name: e
id: null
version: {number}
schema: {{properties: {{n: {{maximum: 5, x-pi: {number}, examples: [{number}]}}}}}}
window: {{invalid: {{n: {{values: [{number}]}}}}, fail_if: [invalid(n) > 0]}}
"""
    contract = load_contract(text)
    assert contract.version == number
    assert load_contract(pack_contract(contract)).digest == contract.digest
    validate = build({"contract": text}, RUN)
    assert isinstance(validate.process([message(f'{{"n": {number}}}'.encode())])[0], bytes)
    assert validate.finish(Counts(consumed=1))["invalid"] == {"n": 0}


def test_a_rule_sees_the_float_of_a_number_with_more_digits() -> None:
    contract = {"name": "e", "id": None, "rules": {"r": "n * 2.5 > 1"}, "schema": {"properties": {"n": {"maximum": 9}}}}
    validate = build({"contract": contract}, RUN)
    value = b'{"n": 0.123456789012345678901234567890e1}'
    assert validate.process([message(value)]) == [value]


def test_outputs_keep_the_order_of_the_messages() -> None:
    values = [b'{"event_id":"%d"%s}' % (i, b',"added":-1' if i % 3 == 0 else b"") for i in range(10)]
    outputs = transform().process([message(v, i) for i, v in enumerate(values)])
    assert [o if isinstance(o, bytes) else None for o in outputs] == [None if i % 3 == 0 else v for i, v in enumerate(values)]


def test_all_broken_rules_are_named() -> None:
    reject = reject_of(b'{"event_id": 7, "added": -500, "at": "yesterday", "extra": 1}')
    assert reject.rule == "schema:event_id,schema,time,positive,small"
    assert reject.reason.split("; ") == [
        "event_id: expected string, got 7",
        'the event: expected only declared fields, got also "extra"',
        'at: expected an ISO-8601 time, such as 2026-11-01T04:00:00Z, got "yesterday"',
        "rule positive: expected added is None or added >= 0, got added = -500",
        "rule small: expected added is None or abs(added) < 100, got added = -500",
    ]


@pytest.mark.parametrize(
    ("value", "rule", "reason"),
    [
        (None, "decode", "tombstone"),
        (b"", "decode", "not JSON"),
        (b"{", "decode", "not JSON"),
        (b"[1]", "decode", "expected a JSON object, got list"),
        (b"\xff", "decode", "not JSON"),
        (b'{"event_id":"\\ud800"}', "decode", "not JSON: half a character (\\ud800), which no text can hold"),
        (b"[" * 100_000, "decode", "not JSON"),
        (b"{}", "schema:event_id", "event_id: expected a value"),
        (b'{"event_id":"a","at":"2026-13-01T00:00:00Z"}', "time", "at: expected an ISO-8601 time"),
        (b'{"event_id":"a","at":"9999-12-31T23:59:59-05:00"}', "time", "at: expected a time between the years 1 and 9999 in UTC"),
        (b'{"event_id":"a","at":"0001-01-01T00:00:00+00:01","more":1}', "schema,time", "at: expected a time between the years"),
    ],
)
def test_what_cannot_be_an_event_is_rejected_never_raised(value: bytes | None, rule: str, reason: str) -> None:
    reject = reject_of(value)
    assert reject.rule == rule
    assert reason in reject.reason


def test_a_report_shows_what_an_event_is_made_of_as_text() -> None:
    """It goes into XCom, whose database holds no NUL, and into a log."""
    contract = {"name": "e", "id": None, "schema": {"properties": {"deep": {"additionalProperties": {"type": "integer"}}}}}
    validate = build({"contract": contract}, None)
    validate.process([message(b'{"deep": {"a\\u0000\\u001b[2J": "x"}}', 1), message(b'{"deep": {"%s": 1.5}}' % (b"\\u0000" * 500), 2)])
    samples = validate.finish(Counts(consumed=2))["samples"]
    assert samples[0]["reason"] == 'deep.a\\u0000\\u001b[2J: expected integer, got "x"'
    assert all(s["reason"].isprintable() and len(s["reason"]) < 300 for s in samples)


def test_one_event_breaking_much_stays_readable() -> None:
    reject = reject_of(json.dumps({f"field{i}": "x" * 1000 for i in range(1000)}).encode())
    assert len(reject.reason) < 500


def test_the_report_counts_rules_and_shows_the_first_rejected() -> None:
    validate = transform()
    validate.process([message(b'{"event_id":"%d","added":-1}' % i, 100 - i) for i in range(50)])
    validate.process([message(b"{", 200), message(b'{"event_id":"ok"}', 201)])
    report = validate.finish(Counts(consumed=52))
    assert report["rules"] == {"positive": 50, "small": 0, "decode": 1}
    assert [s["offset"] for s in report["samples"]] == [51, 52, 53, 54, 55]
    assert judge(report).outcome == "fail"
    assert len(json.dumps(report)) < 4096


def test_events_seen_more_or_less_often_than_consumed_are_a_bug_not_a_report() -> None:
    validate = transform()
    validate.process([message(b'{"event_id":"a"}')])
    with pytest.raises(AccountingError, match="saw 1 events of 2"):
        validate.finish(Counts(consumed=2))


def test_live_events_are_checked_one_by_one() -> None:
    validate = transform(run=None)
    assert not validate.stateful
    assert transform().stateful
    value = b'{"event_id":"a"}'
    assert validate.process([message(value), message(value)]) == [value, value]
    assert validate.finish(Counts(consumed=2))["duplicates"] is None


def test_the_interval_may_come_with_the_window() -> None:
    window = Window("p", "t", "id", (), interval=RUN.interval)
    run = AgentRun("p", "validate", AgentRef("validate"), window=window)
    report = build({"contract": CONTRACT}, run).finish(Counts())
    assert report["window_end"] == "2026-11-01T05:00:00.000000Z"


def test_the_same_contract_is_the_same_work_wherever_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "contracts").mkdir()
    (tmp_path / "contracts" / "events.yaml").write_text("# a comment\n" + json.dumps(CONTRACT, indent=2))
    monkeypatch.setenv("FACTORY_INCLUDE", str(tmp_path))
    by_path = build({"contract": "contracts/events.yaml"}, RUN)
    assert by_path.identity == transform().identity
    assert transform(rules={}).identity != by_path.identity


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, "parameter 'contract' is required"),
        ({"contrct": "x"}, "unknown parameter 'contrct'; did you mean 'contract'?"),
        ({"contract": 3}, "agent 'validate': Expected `str | object`, got `int` - at `$.contract`"),
        ({"contract": "nope.yaml"}, "contract 'nope.yaml': no such file"),
    ],
)
def test_wrong_parameters_are_one_line(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        build(params, RUN)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_wrong_contract_is_one_line() -> None:
    with pytest.raises(ContractError, match=r"^inline contract:2:1: rulez: unknown key; did you mean 'rules'\?$"):
        build({"contract": "name: e\nrulez: {}\n"}, RUN)


@pytest.mark.parametrize(
    ("keys", "exact"), [([b"a", b"7", b"b"], True), ([b"a", b"7", None], False), ([b"b", b"7", b"a"], False), ([b"a", b"7.0", b"b"], False)]
)
@pytest.mark.parametrize("extra", [b"", b',"x":1'])  # fields that aren't declared are not for the fast path
def test_over_shards_duplicates_are_exact_where_records_are_keyed_by_the_id(keys: list[bytes | None], exact: bool, extra: bytes) -> None:
    contract = {
        "name": "e",
        "schema": {"type": "object", "required": ["event_id"], "properties": {"event_id": {"type": ["string", "integer"]}}},
    }
    values = [b'{"event_id":"a"%s}' % extra, b'{"event_id":7%s}' % extra, b'{"event_id":"b"%s}' % extra]
    reports = []
    for shard in (Shard(0, 2), Shard(1, 2)):
        validate = build({"contract": contract}, msgspec.structs.replace(RUN, shard=shard))
        if shard.index == 0:
            validate.process([message(v, i, key) for i, (v, key) in enumerate(zip(values, keys, strict=True))])
        reports.append(validate.report())
    merged = merge_reports(reports)
    assert merged["keyed"] == ("event_id" if exact else "")
    conditions = ["duplicates > 0", "duplicates(event_id) > 0"]
    with pytest.raises(ConfigurationError):
        judge(merged, conditions)  # it wasn't counted
    assert judge(merged, conditions[:1]).outcome == ("pass" if exact else "warn")


def test_masked_values_are_told_nowhere() -> None:
    contract = CONTRACT | {
        "masked": ["event_id", "at", "added"],
        "rules": {"positive": "added is None or added >= 0", "early": "time(at) < time('2026')"},
    }
    validate = build({"contract": contract}, RUN)
    secrets = [
        b'{"event_id": 987654}',
        b'{"event_id": "a", "at": "secret time"}',
        b'{"event_id": "a", "added": -987654}',
        b'{"event_id": "a", "added": "secret"}',
        b'{"event_id": "a", "at": "secret", "more": 1}',
    ]
    outputs = validate.process([message(value, i) for i, value in enumerate(secrets)])
    reasons = [output.reason for output in outputs if isinstance(output, Reject)]
    assert len(reasons) == len(secrets)
    told = json.dumps([reasons, validate.report()])
    assert "secret" not in told
    assert "987654" not in told
    assert reasons[0].startswith("event_id: not what the contract says; its value is masked")
    assert reasons[2].startswith("rule positive: expected added is None or added >= 0, got added = a masked value")
    assert 'got also "more"' in reasons[4]


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        (b'{"event_id":"a","added":NaN}', "decode"),
        (b'{"event_id":"a","added":Infinity}', "decode"),
        (b'{"event_id":"a","added":1e999}', "decode"),
        (b'{"event_id":"a","added":123456789012345678901234567890}', "small"),
        (b'{"event_id":"\xc3\x28"}', "decode"),
        (b'{"event_id":"a","at":"10000-01-01T00:00:00Z"}', "time"),
        (b'{"event_id":"a","at":"2026-02-30T00:00:00Z"}', "time"),
        (b'{"event_id":"a","at":"2026-11-01T25:00:00Z"}', "time"),
        (b'{"event_id":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001, "decode"),
        (b'{"event_id":"a","added":"' + b"x" * 10_000_000 + b'"}', "schema:added,small,positive"),
    ],
    ids=["NaN", "Infinity", "1e999", "30 digits", "UTF-8", "year 10000", "February 30", "hour 25", "nested", "10 MB"],
)
def test_evil_records_are_rejected_by_name_among_good_ones(value: bytes, rule: str) -> None:
    validate = transform()
    good = b'{"event_id":"b"}'
    first, reject, last = validate.process([message(good, 0), message(value, 1), message(good, 2)])
    assert (first, last) == (good, good)
    assert isinstance(reject, Reject)
    assert set(reject.rule.split(",")) <= set(rule.split(","))
    assert len(reject.reason) < 1_000


@pytest.mark.parametrize("extra", [b"", b',"at":1'])  # by both paths
def test_of_a_key_that_stands_twice_the_last_counts_as_for_every_reader_after(extra: bytes) -> None:
    good, bad = b'{"event_id":"a","added":-1,"added":1}', b'{"event_id":"a","added":1,"added":-1%s}' % extra
    first, second = transform().process([message(good, 0), message(bad, 1)])
    assert first == good
    assert isinstance(second, Reject)
    assert "positive" in second.rule


def test_closing_twice_is_fine() -> None:
    validate = transform()
    validate.close()
    validate.close()
