"""Which fields no model sees: those that a contract classifies, in its own notation or in the standard."""

from __future__ import annotations

from pathlib import Path

import pytest

from factory_agents.contracts import load_contract
from factory_agents.errors import ConfigurationError
from factory_agents.inference.prompt import load_prompt
from factory_agents.inference.structured import InvalidAnswer, classified_fields, load_answer_contract

STANDARD = """
apiVersion: v3.1.0
kind: DataContract
id: mails
name: mails
version: 1.0.0
status: active
schema:
  - name: mails
    properties:
      - {name: mail, logicalType: string, classification: restricted}
      - {name: text, logicalType: string, classification: Public}
      - {name: size, logicalType: integer}
"""


def test_a_contract_of_the_standard() -> None:
    assert classified_fields(load_contract(STANDARD)) == {"mail"}


SECRET = {"type": "string", "x-classification": "restricted"}
NESTED = {
    "type": "object",
    "$defs": {"person": {"type": "object", "properties": {"mail": SECRET, "name": {"type": "string"}}}},
    "properties": {
        "customer": {"$ref": "#/$defs/person"},
        "others": {"type": "array", "items": {"$ref": "#/$defs/person"}},
        "order": {"type": "object", "properties": {"ship": {"anyOf": [{"type": "object", "properties": {"street": SECRET}}]}}},
        "labels": {"type": "object", "additionalProperties": SECRET},
        "text": {"type": "string"},
    },
}


def test_what_is_classified_within_a_field_is_masked_however_the_prompt_names_it() -> None:
    masked = classified_fields(load_contract({"name": "orders", "id": None, "schema": NESTED}))
    assert masked == {"customer.mail", "others.mail", "order.ship.street", "labels"}
    names = ("customer", "customer.mail", "customer.name", "others", "order", "labels.a", "text")
    prompt = load_prompt({"name": "p@1.md", "text": " ".join(f"{{{{ {name} }}}}" for name in names)})
    person = {"mail": "secret", "name": "Ann"}
    event = {
        "customer": person,
        "others": [person, person],
        "order": {"ship": {"street": "secret"}, "id": 1},
        "labels": {"a": "secret"},
        "text": "hi",
    }
    read = prompt.reader(masked)
    assert "secret" not in prompt.render(read(event))
    assert read(event)[2] == "Ann"
    assert read(event)[4] == {"ship": {"street": "[masked]"}, "id": 1}
    assert "secret" not in prompt.render(read(event | {"customer": "secret", "order": ["secret"]}))
    assert event["order"] == {"ship": {"street": "secret"}, "id": 1}


def test_classified_fields_without_a_name_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="it classifies fields that it doesn't name"):
        classified_fields(load_contract({"name": "orders", "id": None, "schema": {"type": "object", "additionalProperties": SECRET}}))


def test_an_answer_keeps_all_digits_of_its_numbers_and_is_judged_by_them() -> None:
    schema = {"type": "object", "properties": {"n": {"maximum": 12345678901234567}}}
    contract = load_answer_contract(schema)
    assert contract.check('{"n": 0.12345678901234567890123}') == b'{"n":0.12345678901234567890123}'
    with pytest.raises(InvalidAnswer, match=r"n: expected at most 12345678901234567, got 12345678901234567\.89"):
        contract.check('{"n": 12345678901234567.89}')
    with pytest.raises(InvalidAnswer, match="n: expected at most 12345678901234567, got 1e17"):
        contract.check('{"n": 1e17}')


def test_front_matter_says_what_is_written_there(tmp_path: Path) -> None:
    """YAML 1.1 would make 1.1 of the version, and false and true of the names."""
    file = tmp_path / "p.md"
    file.write_text("---\nname: off\nversion: 1.10\nfields: [no, on]\n---\n{{ no }}", encoding="utf-8-sig")
    prompt = load_prompt(str(file))
    assert (prompt.name, prompt.version, prompt.fields) == ("off", "1.10", ("no", "on"))
