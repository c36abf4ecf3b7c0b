"""The ingest agent's parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from factory_agents.errors import ConfigurationError
from factory_agents.ingest import build, source_name
from factory_agents.kafka.config import KafkaConfig
from factory_agents.protocol import AgentRef, AgentRun, merge_results
from factory_agents.run import execute
from factory_agents.runtime.session import RunContext
from factory_agents.sources.files import FileSource
from factory_agents.sources.table import TableSource
from tests.agents.sources.reading import hour, read, values
from tests.conftest import TopicFactory


@pytest.fixture(autouse=True)
def events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory with a file of events."""
    (tmp_path / "events.jsonl").write_text('{"t":1}\n{"t":3600}\n')
    (tmp_path / "more.jsonl").write_text('{"t":2}\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FACTORY_SOURCE", raising=False)


def test_a_file_or_several_are_read_by_their_time() -> None:
    assert values(read(build({"source": "events.jsonl", "time_field": "t"}), hour(0))) == [b'{"t":1}']
    assert values(read(build({"source": ["more.jsonl", "events.jsonl"], "time_field": "t"}), hour(0))) == [b'{"t":2}', b'{"t":1}']


def test_the_source_may_stand_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACTORY_SOURCE", "*.jsonl")
    assert len(read(build({}), None)) == 3


@pytest.mark.parametrize("params", [{"table": "events"}, {"query": "SELECT 1 AS t"}])
def test_a_table_or_query_is_not_asked_before_it_is_read(params: dict[str, Any]) -> None:
    assert isinstance(build(params | {"time_field": "t"}), TableSource)


def test_numbers_may_come_as_text() -> None:
    source = build({"source": "events.jsonl", "rate_limit": "1000.5", "max_line_bytes": "3"})
    assert isinstance(source, FileSource)
    assert [r.reject.rule for r in read(source, None) if r.reject] == ["length", "length"]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, "nothing to read; set source"),
        ({"source": "events.jsonl", "table": "e"}, "source and table are given; keep one"),
        ({"sorce": "events.jsonl"}, "unknown parameter 'sorce'; did you mean 'source'"),
        ({"source": "events.jsonl", "format": "xml"}, "format: expected one of: auto, jsonl, csv, tsv, parquet; found 'xml'"),
        ({"source": "events.jsonl", "time_unit": "days"}, "time_unit: expected one of: auto, s, ms, us, ns; found 'days'"),
        ({"source": "events.jsonl", "rate_limit": -1}, "rate_limit"),
        ({"source": "none.jsonl"}, "source 'none.jsonl': no such file"),
    ],
)
def test_what_it_does_not_take_is_one_clear_line(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        build(params)
    assert "\n" not in str(caught.value)


def test_a_run_over_an_interval_without_a_time_field_fails_at_once() -> None:
    run = AgentRun(pipeline="p", stage="ingest", agent=AgentRef("ingest"), interval=hour(0))
    with pytest.raises(ConfigurationError, match="an interval needs time_field"):
        build({"source": "events.jsonl"}, run)


def test_an_hour_reaches_a_topic_once_and_enrich_reads_on(bootstrap: str, topic: TopicFactory, prefix: str, tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text('{"t":1,"event_id":"a"}\nbad\n{"t":3600,"event_id":"b"}\n{"t":2,"event_id":"c"}\n')
    (tmp_path / "ref.csv").write_text("k,v\na,1\n")
    context = RunContext(KafkaConfig(bootstrap))
    ingest = AgentRun(
        pipeline=prefix, stage="ingest", agent=AgentRef("ingest"), interval=hour(0), output_topic=topic("raw"),
        dead_letter_topic=topic("dead"), params={"source": "events.jsonl", "time_field": "t"}, prefix=prefix,
    )  # fmt: skip
    result = execute(context, ingest)
    assert (result.counts.consumed, result.counts.forwarded, result.counts.rejected) == (3, 2, 1)
    assert execute(context, ingest).reused
    enrich = AgentRun(
        pipeline=prefix, stage="enrich", agent=AgentRef("enrich"), window=merge_results([result]), output_topic=topic("rich"),
        dead_letter_topic=topic("dead2"), params={"lookups": [{"on": "event_id", "key": "k", "file": "ref.csv", "on_missing": "reject"}]},
        prefix=prefix, max_rejected="60 %",
    )  # fmt: skip
    enriched = execute(context, enrich)
    assert (enriched.counts.consumed, enriched.counts.forwarded, enriched.counts.rejected) == (2, 1, 1)
    (tmp_path / "events.jsonl").write_text('{"t":1,"event_id":"a"}\n')
    again = execute(context, ingest)
    assert (again.reused, again.counts.consumed) == (False, 1)


@pytest.mark.parametrize(
    ("ways", "other"),
    [
        ([{"table": name} for name in ("s.T", 's."T"', '"s"."T"')], {"table": "s.t"}),
        ([{"table": 'a."b.c"'}], {"table": '"a.b".c'}),
        ([{"query": "SELECT 1" + end} for end in ("", ";", " -- all\n;")], {"query": "SELECT 2"}),
        ([{"source": "data/a.csv"}, {"source": ["./data//a.csv"]}], {"source": "s3://data/a.csv"}),
    ],
    ids=["tables", "dots", "queries", "files"],
)
def test_a_source_is_the_same_one_however_it_is_written(ways: list[dict[str, Any]], other: dict[str, Any]) -> None:
    """Else intervals of it that overlap would be read twice."""
    assert len({source_name(way) for way in ways}) == 1
    assert source_name(other) != source_name(ways[0])


def test_its_name_and_version_are_stable() -> None:
    source = build({"source": "events.jsonl"})
    assert (source.name, source.version) == ("ingest", "1")
