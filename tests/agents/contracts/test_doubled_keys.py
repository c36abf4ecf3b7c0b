"""Keys that stand twice in a JSON object."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory_agents.contracts import load_contract
from factory_agents.contracts.diff import diff_contracts
from factory_agents.contracts.doubled_keys import doubled_key
from factory_agents.contracts.odcs_export import export_odcs
from factory_agents.errors import ContractError
from factory_agents.runtime.agents import Reject
from factory_agents.validate import ValidateTransform, build
from tests.agents.test_validate import CONTRACT, RUN, message
from tests.support.soak import examples

NAMES = st.sampled_from(["a", "b", "\u00e9", 'a"', '":', "\\", " :", ""])
SPACES = st.sampled_from(["", " ", "\n\t"])
TEXTS = st.one_of(NAMES, st.text(max_size=5))


@st.composite
def objects(draw: st.DrawFn, depth: int = 3) -> tuple[str, bool]:
    """The text of an object, and whether a key stands twice in it or in one within."""
    seen: set[str] = set()
    twice = False
    parts = []
    for _ in range(draw(st.integers(0, 4))):
        name = draw(NAMES)
        twice |= name in seen
        seen.add(name)
        value, within = draw(values(depth - 1))
        twice |= within
        spelt = json.dumps(name, ensure_ascii=draw(st.booleans()))
        parts.append(f"{draw(SPACES)}{spelt}{draw(SPACES)}:{draw(SPACES)}{value}")
    return "{" + ",".join(parts) + "}", twice


@st.composite
def values(draw: st.DrawFn, depth: int) -> tuple[str, bool]:
    """The text of any value."""
    kind = draw(st.integers(0, 3 if depth else 1))
    if kind == 0:
        return json.dumps(draw(TEXTS), ensure_ascii=draw(st.booleans())), False
    if kind == 1:
        return draw(st.sampled_from(["1", "-2.5e3", "null", "true", "12345678901234567890123"])), False
    if kind == 2:
        return draw(objects(depth))
    inner = draw(st.lists(values(depth - 1), max_size=3))
    return "[" + ",".join(text for text, _ in inner) + "]", any(twice for _, twice in inner)


@pytest.mark.slow
@settings(max_examples=examples(150, 1500), deadline=None)
@given(objects())
def test_a_key_is_found_if_and_only_if_it_stands_twice(given: tuple[str, bool]) -> None:
    text, twice = given
    assert (doubled_key(text.encode("utf-8", "surrogatepass")) is not None) == twice


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (b'{"a":1,"a":1}', "a"),
        (b'{"a":1,"\\u0061":1}', "a"),
        (b'{"a" :1,"a":1}', "a"),
        (b'{"a":{"b":[{"c":1,"c":2}]}}', "c"),
        (b'{"t":"x\\":y","a":null}', None),
        (b'{"a":{"a":{"a":1}},"b":{"a":1}}', None),
        (b'[{"a":1,"a":1}]', "a"),
        (b"not JSON", None),
        (b"\xff", None),
        (b'{"a":1,"a":', None),
        (b"", None),
        (b'{"a":' * 900 + b"1" + b"}" * 900, None),
    ],
)
def test_texts_of_all_kinds(text: bytes, key: str | None) -> None:
    assert doubled_key(text) == key


EVENTS = [b'{"event_id":"1","added":1}', b'{"event_id":"2","added":1,"added":-1}', b'{"event_id":"3","at":"2026-11-01T04:30:00Z"}']


def rejects(validate: ValidateTransform) -> list[str]:
    outputs = validate.process([message(value, i) for i, value in enumerate(EVENTS)])
    assert [o for o in outputs if isinstance(o, bytes)] == [v for v, o in zip(EVENTS, outputs, strict=True) if isinstance(o, bytes)]
    return [f"{o.rule}: {o.reason}" if isinstance(o, Reject) else "" for o in outputs]


@pytest.mark.parametrize("fast", [True, False])
def test_a_contract_may_refuse_them(fast: bool) -> None:
    validate = build({"contract": CONTRACT | {"duplicate_keys": "refuse"}}, RUN)
    if not fast:
        validate._fast = None
    assert rejects(validate) == ["", 'decode: the key "added" stands twice in one object', ""]
    assert validate.report()["rules"]["decode"] == 1
    valid = build({"contract": {"name": "any", "id": None, "schema": {"type": "object"}}}, RUN)
    assert rejects(valid) == ["", "", ""]


def test_it_is_part_of_what_a_contract_means_in_every_notation() -> None:
    loose, strict = (load_contract(CONTRACT | {"duplicate_keys": how}) for how in ("last", "refuse"))
    assert loose.digest == load_contract(CONTRACT).digest != strict.digest
    assert load_contract(export_odcs(strict)).digest == strict.digest
    (change,) = diff_contracts(loose, strict)
    assert (change.what, change.text, change.breaks) == ("duplicate_keys", "last → refuse", ("producers", "consumers"))
    with pytest.raises(ContractError, match="expected last or refuse, got"):
        load_contract(CONTRACT | {"duplicate_keys": True})
