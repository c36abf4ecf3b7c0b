"""Registries that answer slowly, with too much, in circles, from elsewhere or with something else: each is said for what it is."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from factory_agents.codecs.avro import AvroCodec
from factory_agents.codecs.json_schema import JsonSchemaCodec
from factory_agents.codecs.registry import Registry, RegistryConfig, UnknownSchemaError
from factory_agents.errors import ConfigurationError, UnavailableError
from factory_agents.reject import Reject
from tests.support.certificates import certificate
from tests.support.registries import Served, answering, record, serving

ONE = {"schema": '"int"'}


def registry(url: str, cache: str | Path = "", **values: Any) -> Registry:
    return Registry(RegistryConfig(url, {"max.retries": 0, "timeout": 5, **values}, str(cache)))


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed_and_no_password_goes_elsewhere(status: int) -> None:
    with answering({"/schemas/ids/1": ONE}) as (elsewhere, theirs):

        def redirect(to: Served) -> None:
            to.answer(status, b"", Location=f"{elsewhere}/schemas/ids/1")

        with serving(redirect) as url, pytest.raises(ConfigurationError) as raised:
            registry(url, **{"basic.auth.user.info": "me:s3cret"}).by_id(1)
        assert theirs == []
    assert f"sends to another address (HTTP {status}): {elsewhere}/schemas/ids/1" in str(raised.value)
    assert "set SCHEMA_REGISTRY_URL" in str(raised.value)


@pytest.mark.slow
def test_an_answer_that_never_ends_is_given_up() -> None:
    def drip(to: Served) -> None:
        to.send_response(200)
        to.send_header("Content-Length", "1000000")
        to.end_headers()
        for _ in range(600):
            to.wfile.write(b" ")
            time.sleep(0.05)

    with serving(drip) as url:
        began = time.monotonic()
        with pytest.raises(UnavailableError, match=r"schema id 1: its answer isn't complete after 1 s"):
            registry(url, timeout=1).by_id(1)
        assert time.monotonic() - began < 10


def test_an_answer_that_is_too_large_is_refused_before_it_is_in_memory() -> None:
    written = []

    def flood(to: Served) -> None:
        to.send_response(200)
        to.end_headers()
        block = b'"' + b"x" * 1_000_000
        for _ in range(200):
            to.wfile.write(block)
            written.append(len(block))

    with serving(flood) as url, pytest.raises(UnavailableError, match="more than 16,777,216 bytes"):
        registry(url, timeout=20).by_id(1)
    assert sum(written) < 100_000_000


@pytest.mark.slow
def test_a_compressed_answer_of_much_more_is_refused() -> None:
    import gzip

    bomb = gzip.compress(b"x" * 200_000_000, 9)
    with (
        serving(lambda to: to.answer(200, bomb, **{"Content-Encoding": "gzip"})) as url,
        pytest.raises(UnavailableError, match="compressed"),
    ):
        registry(url).by_id(1)


@pytest.mark.slow
def test_a_schema_of_ten_megabytes_is_one_line_in_seconds() -> None:
    wide = json.dumps(record(**{f"field_{n:06d}": "string" for n in range(230_000)}))
    assert len(wide) > 10_000_000
    answers = {"/schemas/ids/1": {"schema": wide}}
    with answering(answers) as (url, _):
        began = time.monotonic()
        with pytest.raises(Reject, match=r"schema id 1 has [\d,]+ characters, more than 1,048,576"):
            reading(url).decode_json(b"\0\0\0\0\1\2", [])
        assert time.monotonic() - began < 5


def reading(url: str, kind: type[Any] = AvroCodec, **options: Any) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCHEMA_REGISTRY_URL", url)
        patch.setenv("SCHEMA_REGISTRY_CONFIG", '{"max.retries": 0, "timeout": 5}')
        return kind("t", {}, **{"version": "writer", **options})


def version(name: str, refers_to: list[tuple[str, str]], id_: int = 1, kind: str = "AVRO") -> dict[str, Any]:
    fields = {f"f{i}": other for i, (other, _) in enumerate(refers_to)} or {"n": "int"}
    text = record(name, **fields) if kind == "AVRO" else {"properties": {n: {"$ref": o} for n, o in fields.items()} if refers_to else {}}
    references = [{"name": other, "subject": subject, "version": 1} for other, subject in refers_to]
    return {"subject": name, "version": 1, "id": id_, "schemaType": kind, "schema": json.dumps(text), "references": references}


@pytest.mark.parametrize(("codec", "kind"), [(AvroCodec, "AVRO"), (JsonSchemaCodec, "JSON")])
def test_references_in_a_circle_are_one_line(codec: type[Any], kind: str) -> None:
    a, b = version("A", [("B", "B")], 1, kind), version("B", [("A", "A")], 2, kind)
    answers = {"/subjects/A/versions/1": a, "/subjects/B/versions/1": b, "/subjects/t-value/versions/latest": a, "/schemas/ids/1": a}
    with answering(answers) as (url, _):
        with pytest.raises(ConfigurationError, match="its references lead in a circle: version 1 of subject"):
            reading(url, codec, version="latest", writing=True)
        if kind == "AVRO":
            with pytest.raises(Reject, match="its references lead in a circle: version 1 of subject"):
                reading(url).decode_json(b"\0\0\0\0\1\2", [])


def test_references_that_meet_again_and_again_are_read_once_each() -> None:
    answers = {"/subjects/S0/versions/1": version("S0", [], 1)}
    for n in range(1, 40):
        answers[f"/subjects/S{n}/versions/1"] = version(f"S{n}", [(f"S{n - 1}", f"S{n - 1}")] * 2, n + 1)
    answers["/subjects/t-value/versions/latest"] = answers["/subjects/S39/versions/1"]
    answers["/schemas/ids/40"] = answers["/subjects/S39/versions/1"]
    with answering(answers) as (url, asked):
        began = time.monotonic()
        reading(url, version="latest")
        assert time.monotonic() - began < 5
        assert len(asked) < 50


def test_records_that_are_in_each_other_in_very_many_ways_take_no_time() -> None:
    def nested(leaf: dict[str, Any]) -> dict[str, Any]:
        deep = leaf
        for n in range(40):
            deep = {"type": "record", "name": f"R{n}", "fields": [{"name": "a", "type": deep}, {"name": "b", "type": deep["name"]}]}
        return deep

    again = {"name": "again", "type": ["null", "R39"], "default": None}
    schemas = {
        "of bytes": nested(record("Leaf", n="int")),
        "of nothing": nested(record("Leaf")),
        "in themselves": nested({**record("Leaf"), "fields": [again]}),
    }
    said = {}
    for name, schema in schemas.items():
        answers = {"/subjects/t-value/versions/latest": {"subject": "t-value", "version": 1, "id": 1, "schema": json.dumps(schema)}}
        with answering(answers) as (url, _):
            began = time.monotonic()
            try:
                said[name] = str(type(reading(url, version="latest", writing=True)))
            except ConfigurationError as error:
                said[name] = str(error)
            assert time.monotonic() - began < 10
    assert "AvroCodec" in said["of bytes"]
    assert "has a record of more than 100 values that take no bytes" in said["of nothing"]
    assert "hold each other in more ways than can be followed" in said["in themselves"]


def test_a_reference_that_the_registry_does_not_know_is_the_records_fault() -> None:
    with answering({"/schemas/ids/1": version("A", [("B", "B")])}) as (url, _), pytest.raises(Reject) as raised:
        reading(url).decode_json(b"\0\0\0\0\1\2", [])
    assert (raised.value.rule, "has no version 1 of subject 'B'" in str(raised.value)) == ("schema-id", True)


@pytest.mark.parametrize(
    "answer",
    [
        b"<html>log in first</html>", b"", b"null", b"[]", b"7", b'"text"', {"schema": 5}, {"schema": None}, {"schema": ""}, {},
        {"schema": '"int"', "references": "x"}, {"schema": '"int"', "references": [{"name": 1}]}, {"schema": '"int"', "schemaType": 7},
        {"error_code": 40403, "message": "no"}, b"\xff\xfe", b"[" * 100_000,
    ],
)  # fmt: skip
def test_an_answer_that_is_no_schema_is_an_outage_and_never_a_dead_letter(answer: Any) -> None:
    with answering({"/schemas/ids/1": answer}) as (url, _), pytest.raises(UnavailableError, match="cannot be asked for schema id 1"):
        reading(url).decode_json(b"\0\0\0\0\1\2", [])


@pytest.mark.parametrize(
    ("status", "error", "says"),
    [
        (500, UnavailableError, "cannot tell schema id 1 now (HTTP 500)"),
        (401, ConfigurationError, "refuses to tell schema id 1 (HTTP 401)"),
        (429, UnavailableError, "cannot tell schema id 1 now (HTTP 429)"),
        (404, UnknownSchemaError, "has no schema id 1"),
    ],
)
def test_only_what_is_not_found_is_unknown_whatever_else_the_answer_says(status: int, error: type[Exception], says: str) -> None:
    with answering({"/schemas/ids/1": (status, {"error_code": 40403, "message": "Schema not found"})}) as (url, _):
        with pytest.raises(error) as raised:
            registry(url).by_id(1)
        assert says in str(raised.value)


@pytest.mark.parametrize("answer", [{"version": 2}, {"id": -1}, {"id": 2**32}, {"id": "x"}, {"id": None}, {"version": None}])
def test_a_version_that_is_another_than_was_asked_for_is_not_used(answer: dict[str, Any]) -> None:
    wrong = {"subject": "t-value", "version": 1, "id": 1, "schema": '"int"', **answer}
    with answering({"/subjects/t-value/versions/1": wrong}) as (url, _), pytest.raises(UnavailableError, match="version 1 of subject"):
        registry(url).by_version("t-value", 1)


def test_what_it_says_is_shown_in_one_line() -> None:
    evil = "no\n2026-11-27 [error] forged\x1b[2J\u202e" + "x" * 10_000
    answers = {"/schemas/ids/1": (400, {"error_code": 42, "message": evil})}
    with answering(answers) as (url, _), pytest.raises(ConfigurationError) as raised:
        registry(url).by_id(1)
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 600


@contextmanager
def over_tls(tmp_path: Path, name: str) -> Iterator[tuple[str, Path]]:
    cert, key = certificate(tmp_path, name)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    with serving(lambda to: to.answer(200, json.dumps(ONE).encode()), context) as url:
        yield url.replace("http://127.0.0.1", "https://localhost"), cert


def test_a_certificate_that_cannot_be_trusted_is_said_and_is_no_outage(tmp_path: Path) -> None:
    with over_tls(tmp_path, "localhost") as (url, cert):
        assert registry(url, **{"ssl.ca.location": str(cert)}).by_id(1).text == '"int"'
        with pytest.raises(ConfigurationError, match=r"its certificate can't be trusted: .*ssl\.ca\.location"):
            registry(url).by_id(1)
    with (
        over_tls(tmp_path, "elsewhere") as (url, cert),
        pytest.raises(ConfigurationError, match=r"its certificate can't be trusted: .*localhost"),
    ):
        registry(url, **{"ssl.ca.location": str(cert)}).by_id(1)


def test_ids_that_mean_other_schemas_than_the_cache_knows_are_not_guessed_at(tmp_path: Path) -> None:
    latest = {"subject": "t-value", "version": 1, "id": 1, "schema": '"int"'}
    answers: dict[str, Any] = {"/schemas/ids/1": {"schema": '"int"'}, "/subjects/t-value/versions/latest": latest}
    with answering(answers) as (url, _):
        warm = registry(url, tmp_path)
        warm.by_id(1)
        assert warm.latest("t-value").text == '"int"'
        answers["/subjects/t-value/versions/latest"] = latest | {"schema": ' "int"'}
        assert registry(url, tmp_path).latest("t-value").id == 1  # written otherwise, it is the same
        answers["/subjects/t-value/versions/latest"] = latest | {"schema": '"string"'}
        with pytest.raises(ConfigurationError, match=r"schema id 1 is another schema now .*empty the schema cache"):
            registry(url, tmp_path).latest("t-value")
        assert registry(url, tmp_path / "other").latest("t-value").text == '"string"'


MONEY = {"type": "bytes", "logicalType": "decimal", "precision": 4, "scale": 2}


@pytest.mark.parametrize("version", ["latest", "writer"])
def test_a_decimal_of_more_digits_than_its_schema_says_is_not_rounded_and_one_without_end_is_refused(
    version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fastavro makes 12350 of 12345.67 here, and hours of work of a megabyte of digits."""
    schema = {"id": 1, "version": 1, "subject": "t-value", "schema": json.dumps(record(price=MONEY, more=["null", MONEY]))}
    with answering(dict.fromkeys(["/subjects/t-value/versions/latest", "/schemas/ids/1"], schema)) as (url, _):
        monkeypatch.setenv("SCHEMA_REGISTRY_URL", url)
        codec = AvroCodec("t", {}, version=version)
        assert codec.decode_json(b"\0\0\0\0\1\x08" + (1234567).to_bytes(4, "big") + b"\0", []) == b'{"price":12345.67,"more":null}'
        began = time.process_time()
        with pytest.raises(Reject, match="not Avro of schema id 1: ValueError: Exceeds the limit"):
            codec.decode_json(b"\0\0\0\0\1\x80\x89\x7a" + b"\x7f" * 1_000_000 + b"\0", [])
        assert time.process_time() - began < 5
