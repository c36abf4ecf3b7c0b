"""What takes bytes from elsewhere: each of these raises nothing but the project's own errors, whatever it is given."""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from airflow_provider_factory.operators.kafka_agent import summary
from airflow_provider_factory.runners.kubernetes.failure import fresh_lines
from factory_agents.codecs.registry import RegistryConfig
from factory_agents.contracts import judge, load_contract, merge_reports, parse_condition
from factory_agents.contracts.documents import parse_document
from factory_agents.contracts.expressions import ExpressionError, parse_expression
from factory_agents.errors import ConfigurationError, FactoryError
from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.fetch import LargeMessage
from factory_agents.kafka.ledger import (
    AttemptRecord,
    CutRecord,
    FailureRecord,
    LedgerView,
    PipelineRecord,
    PlanRecord,
    ReplayRecord,
    StageRecord,
)
from factory_agents.kafka.records import VerdictRecord
from factory_agents.kafka.windows import windows_of
from factory_agents.protocol import AgentRef, AgentRun, decode_result, decode_run, decode_window, plain
from factory_agents.runners.process import log_line
from factory_agents.runners.results import agent_error, check_result, shown_notes
from factory_agents.runtime.agents import Reject, agent, decode_event
from factory_agents.runtime.dead_letters import _Ledgered, _letter, group_letters
from factory_agents.runtime.letter_values import LetterReader
from factory_agents.runtime.outputs import DEAD_LETTER_HEADER
from factory_agents.sources.files import FileSource
from factory_agents.sources.rows import ReadOptions
from factory_agents.stage_plan import merged, stage_input
from factory_agents.text import printable
from factory_agents.topics_file import read_topics
from tests.agents.sources.reading import hour
from tests.fuzz import corpora

TARGETS: dict[str, tuple[Callable[[bytes], None], Callable[[], list[bytes]]]] = {}
"""By name: what takes the bytes, and what they are made of."""


def target(bases: list[bytes] | Callable[[], list[bytes]]) -> Callable[[Callable[[bytes], None]], Callable[[bytes], None]]:
    def add(function: Callable[[bytes], None]) -> Callable[[bytes], None]:
        TARGETS[function.__name__] = function, bases if callable(bases) else lambda: bases
        return function

    return add


class Record:
    """A record with any value, key and headers, as a consumer gives it."""

    def __init__(self, value: bytes | None, key: bytes | None = None, headers: list[tuple[str, bytes | None]] | None = None) -> None:
        self._value, self._key, self._headers = value, key, headers or []

    def __len__(self) -> int:
        return len(self._value or b"")

    def topic(self) -> str:
        return "t"

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return 7

    def key(self) -> bytes | None:
        return self._key

    def value(self) -> bytes | None:
        return self._value

    def headers(self) -> list[tuple[str, bytes | None]]:
        return self._headers

    def set_headers(self, value: list[tuple[str, bytes | None]]) -> None:
        self._headers = value

    def timestamp(self) -> tuple[int, int]:
        return 1, -1

    def error(self) -> None:
        return None


ACTING = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""What ends a line, moves a cursor, turns the direction of writing or can't be written."""

RUN = AgentRun("clicks", "enrich", AgentRef("enrich"), name="w", output_topic="enriched")


@target([corpora.run_message(), *corpora.JSON])
def a_run(data: bytes) -> None:
    with contextlib.suppress(FactoryError):
        run = decode_run(data)
        assert run.key
        assert run.work
        assert run.digest
    with contextlib.suppress(FactoryError):
        assert decode_window(data).key


@target([*corpora.result_messages(), *corpora.JSON])
def a_termination_message(data: bytes) -> None:
    with contextlib.suppress(FactoryError):
        result = decode_result(data)
        check_result(
            result, msgspec.structs.replace(RUN, pipeline=result.pipeline, stage=result.stage, name=result.key, shard=result.shard)
        )
        assert summary(result)
        assert not any(ACTING.search(note) for note in shown_notes(result))
        if result.error is not None:
            assert not ACTING.search(str(agent_error(result)))
        plain(result)
        json.dumps(plain(result))


@target([*corpora.result_messages(), *corpora.JSON])
def what_a_stage_is_given(data: bytes) -> None:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = data.decode(errors="replace")
    with contextlib.suppress(FactoryError):
        assert stage_input(value).label
    with contextlib.suppress(FactoryError):
        merged([value])
    if isinstance(value, dict) and isinstance(value.get("report"), dict):
        with contextlib.suppress(FactoryError):
            judge(merge_reports([value["report"]]), "rows < 1")


@target([b'{"level": "info", "message": "m", "exception": "Traceback\\n x", "n": 1}', *corpora.JSON])
def a_line_of_an_agents_log(data: bytes) -> None:
    text = data.decode(errors="replace")
    for _, line in fresh_lines(text.splitlines(), ""):
        assert not ACTING.search(log_line(line)[1].replace("\n", ""))
    assert not ACTING.search(printable(text))


@target([f"{key}\x00{json.dumps(value)}".encode() for key, value in corpora.LEDGER] + corpora.JSON)
def a_ledger_record(data: bytes) -> None:
    key, _, value = data.partition(b"\x00")
    view = LedgerView()
    view.take(3, key, value or None)
    view.take(4, *(part.encode() for part in (corpora.LEDGER[3][0], json.dumps(corpora.LEDGER[3][1]))))
    for kind in (PipelineRecord, CutRecord, PlanRecord, StageRecord, FailureRecord, AttemptRecord, ReplayRecord, VerdictRecord):
        with contextlib.suppress(ConfigurationError):
            for record in view.of(kind):
                assert record.key()
                if isinstance(record, StageRecord):
                    record.answer()
                    _Ledgered([record], "id")
    with contextlib.suppress(ConfigurationError):
        windows = windows_of(view)
        assert all(w.when is not None and w.age_text is not None and w.records_text for w in windows)
        assert all(s.summary for w in windows for s in w.stages)


LETTER = json.dumps(
    {"error": "e", "rule": "r", "pipeline": "p", "stage": "s", "agent": "a", "version": "1", "offset": 3, "size": 3, "prefix": "eHg="}
).encode()


@target([LETTER, *corpora.JSON])
def a_dead_letter(data: bytes) -> None:
    for headers in ([(DEAD_LETTER_HEADER, data)], [(DEAD_LETTER_HEADER, data), ("factory-writer", data)]):
        letter = _letter(Record(data, data, headers))  # type: ignore[arg-type]
        if letter is not None:
            json.dumps(letter.to_data(LetterReader(RegistryConfig.from_env)))
            assert letter.event
            assert group_letters([letter])
    LargeMessage(Record(data, data, [("h", data)]))  # type: ignore[arg-type]


@agent
def keep(event: dict[str, Any]) -> Any:
    """An agent that gives back what it gets, and once more."""
    return [event, {**event, "again": True}]


@target(corpora.JSON)
def an_event(data: bytes) -> None:
    with contextlib.suppress(Reject):
        assert isinstance(decode_event(data), dict)
    outputs = keep.bind({}).process([Record(data, data)])  # type: ignore[list-item]
    assert len(outputs) == 1


CONTRACT = load_contract(
    {
        "name": "e",
        "id": "event_id",
        "time": "time",
        "schema": {
            "required": ["event_id"],
            "properties": {
                "event_id": {"type": ["string", "integer"]},
                "time": {"type": "string", "format": "date-time"},
                "text": {"type": "string", "pattern": "^(a|b)*$", "maxLength": 50},
                "n": {"type": "number", "minimum": -5, "multipleOf": 0.5},
                "deep": {"type": "object", "additionalProperties": {"uniqueItems": True}},
            },
        },
        "rules": {
            "r": "n is None or n * 2 > 1 and text.lower().startswith('a')",
            "s": "not text.matches('(x+x+)+y')",
            "t": "n % 7 == n // 3",
        },
    }
)


@target(corpora.JSON)
def an_event_of_a_contract(data: bytes) -> None:
    try:
        event = decode_event(data)
    except Reject:
        return
    found = CONTRACT.violations(event)
    assert all(v.reason for v in found)
    assert CONTRACT.checker()(event) == (not found)


@target(corpora.YAML + corpora.JSON)
def a_contract(data: bytes) -> None:
    text = data.decode(errors="replace")
    with contextlib.suppress(FactoryError):
        contract = load_contract(text)
        contract.violations({"event_id": 1, "text": "a", "n": 2, "time": "2026-11-01T00:00:00Z"})
        contract.columns()
        assert contract.digest
    with contextlib.suppress(FactoryError):
        parse_document(text, "f.json")
    with contextlib.suppress(FactoryError):
        parse_condition(text[:500])
    with contextlib.suppress(ExpressionError):
        parse_expression(text)


def in_a_file(data: bytes, name: str, use: Callable[[str], object]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        with contextlib.suppress(FactoryError):
            use(str(path))


@target(corpora.YAML)
def topics(data: bytes) -> None:
    in_a_file(data, "topics.yaml", read_topics)


OPTIONS: Mapping[str, dict[str, Any]] = {
    "plain": {},
    "timed": {"time_field": "time"},
    "typed": {"time_field": "time", "types": {"event_id": "integer"}, "nulls": ("",), "header": "rename", "max_line_bytes": 2_000},
}


def read_all(path: str) -> None:
    for options in OPTIONS.values():
        for interval in (None, hour(0)) if options else (None,):
            with contextlib.suppress(FactoryError):
                for batch in FileSource([path], ReadOptions(**options)).read(interval, 0):
                    for record in batch:
                        assert isinstance(record.value, bytes)
                        assert record.where


@target(corpora.JSON)
def json_lines(data: bytes) -> None:
    in_a_file(data, "a.jsonl", read_all)


@target(corpora.DELIMITED)
def delimited(data: bytes) -> None:
    in_a_file(data, "a.csv", read_all)
    in_a_file(data, "a.tsv.gz", read_all)


@target(corpora.parquet_files)
def parquet(data: bytes) -> None:
    in_a_file(data, "a.parquet", read_all)


@target([b'{"bootstrap.servers": "b:1", "sasl.password": "x"}', b"bootstrap.servers=b:1\nsasl.password=x\n", *corpora.JSON])
def settings(data: bytes) -> None:
    def read(path: str) -> None:
        KafkaConfig.from_env({"KAFKA_CONFIG_FILE": path})

    in_a_file(data, "kafka.properties", read)
    with contextlib.suppress(FactoryError):
        KafkaConfig.from_env({"KAFKA_CONFIG": data.decode(errors="replace"), "KAFKA_BOOTSTRAP": "b:1"})
