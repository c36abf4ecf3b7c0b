"""A dead letter's bytes are shown as what they are: decoded by their schema, as text, or with escapes and the reason."""

from __future__ import annotations

import ast
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory_agents.codecs.framing import SCHEMA_HEADER
from factory_agents.codecs.registry import RegistryConfig
from factory_agents.kafka.messages import Headers
from factory_agents.runtime.dead_letters import LetterTopic
from factory_agents.runtime.letter_values import BYTES, LetterReader, Shown, plain
from tests.support.letters import fill, letter
from tests.support.registries import Subjects, answering, record
from tests.support.runs import Runs

AVRO = b"\0\0\0\0\7\2"


class Letter:
    """As much of a letter as is read."""

    def __init__(self, value: bytes | None, headers: Headers = ()) -> None:
        self.value, self.key, self.headers = value, None, headers


@given(st.binary(max_size=60))
def test_bytes_are_told_from_text_and_can_be_had_back(data: bytes) -> None:
    shown = plain(data)
    if shown.form == BYTES:
        assert ast.literal_eval(f'b"{shown.text.replace(chr(34), chr(92) + chr(34))}"') == data
    else:
        assert shown.text.encode() == data


def test_the_beginning_of_a_text_may_end_within_a_character() -> None:
    assert plain("të".encode()[:2], whole=False) == Shown("t")
    assert plain("të".encode()[:2]).form == BYTES


def test_a_letter_in_avro_is_shown_by_its_schema(runs: Runs, registry_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCHEMA_REGISTRY_URL", registry_url)
    subjects = Subjects(registry_url)
    (value,) = subjects.written(runs.prefix, record(id="int", text="string"), {"id": 7, "text": "tëxt"})
    subjects.client.close()
    dead = LetterTopic(runs.config, fill(runs, [(letter("broken", "r"), value)]), prefix=runs.prefix).at("0@0")
    shown = dead.to_data(LetterReader(RegistryConfig.from_env))
    assert shown["value"] == {"id": 7, "text": "tëxt"}
    assert shown["value_as"].startswith("AVRO, schema id ")
    assert "key_as" not in shown


@pytest.mark.parametrize(
    ("value", "headers", "why"),
    [
        (AVRO, (), "the registry http"),
        (AVRO, ((SCHEMA_HEADER, b"\1short"),), f"header {SCHEMA_HEADER}: expected a byte 1 and a GUID"),
        (AVRO + b"x" * 100, (), "schema id 7: 106 bytes, and no more than 100 are decoded here"),
    ],
)
def test_what_is_not_decoded_says_why(value: bytes, headers: Headers, why: str) -> None:
    with answering({}) as (url, _):
        shown = LetterReader(lambda: RegistryConfig(url, {"max.retries": 0}), most=100).value(Letter(value, headers))  # type: ignore[arg-type]
    assert shown is not None
    assert (shown.form, shown.why[: len(why)]) == (BYTES, why)


def test_without_a_registry_its_settings_are_asked_for_once_and_what_lacks_is_said() -> None:
    asked = []
    reader = LetterReader(lambda: asked.append(1) or RegistryConfig.from_env({}))  # type: ignore[func-returns-value]
    for _ in range(3):
        shown = reader.value(Letter(AVRO))  # type: ignore[arg-type]
        assert shown is not None
        assert "no schema registry is named; set SCHEMA_REGISTRY_URL" in shown.said
    assert len(asked) == 1
    assert reader.value(Letter(None)) is None  # type: ignore[arg-type]


def test_records_of_another_kind_do_not_keep_the_registry_busy() -> None:
    with answering({}) as (url, asked):
        reader = LetterReader(lambda: RegistryConfig(url, {"max.retries": 0}))
        for i in range(60):
            reader.value(Letter(i.to_bytes(8, "big")))  # type: ignore[arg-type]
            reader.value(Letter(b"\0" + i.to_bytes(4, "big") + b"\xff"))  # type: ignore[arg-type]
    assert len(asked) <= 21


def test_a_registry_that_fails_for_what_a_schema_refers_to_is_not_asked_again_for_each_record() -> None:
    schema = {"schema": json.dumps(record(x="other.X")), "references": [{"name": "other.X", "subject": "x", "version": 1}]}
    with answering({"/schemas/ids/7": schema, "/subjects/x/versions/1": (503, {"error_code": 50301, "message": "later"})}) as (url, asked):
        reader = LetterReader(lambda: RegistryConfig(url, {"max.retries": 0}))
        shown = [reader.value(Letter(AVRO)) for _ in range(9)]  # type: ignore[arg-type]
    assert all(x is not None and "HTTP 503" in x.why for x in shown)
    assert len(asked) == 2
