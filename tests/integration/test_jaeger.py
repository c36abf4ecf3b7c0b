"""A real Jaeger shows an event's way as one trace, as long as it took from its producer to the table."""

from __future__ import annotations

import itertools
import os
import time
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
from psycopg import sql

from factory_agents.errors import AgentCrashedError
from factory_agents.protocol import AgentRef, AgentResult, AgentRun, merge_results
from factory_agents.runners.process import AgentProcess, child_environment
from tests.support.jaeger import PROGRAM, jaeger
from tests.support.runs import Runs, events
from tests.support.waiting import wait_for

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Jaeger is built: traces go to a receiver in the tests' own process alone")

NAMES = ["enrich", "validate", "publish"]
PRODUCED = "4bf92f3577b34da6a3ce929d0e0e4736"


def stages(runs: Runs, table: str) -> list[AgentRun]:
    base = AgentRun(runs.prefix, "", AgentRef(""), prefix=runs.prefix, output_topic="")
    contract = {"name": "events", "id": "event_id", "columns": {"event_id": "bigint", "text": "text"}}
    params: list[dict[str, Any]] = [
        {"function": "tests.support.agents:mark"},
        {"contract": {"name": "events", "id": "event_id"}},
        {"contract": contract, "table": table},
    ]
    topics = [runs.topic("enriched", partitions=1), runs.topic("valid", partitions=1), ""]
    return [
        msgspec.structs.replace(base, stage=stage, agent=AgentRef(stage), params=given, output_topic=topic)
        for stage, given, topic in zip(NAMES, params, topics, strict=True)
    ]


def note_commits(database_url: str, table: str) -> None:
    """Create the table, with a trigger that notes when a transaction which inserted into it commits."""
    names = {name: sql.Identifier(f"{table}{suffix}") for name, suffix in (("table", ""), ("landed", "_landed"), ("note", "_note"))}
    script = """
        CREATE TABLE {table} (event_id bigint PRIMARY KEY, text text);
        CREATE TABLE {landed} (at timestamptz);
        CREATE FUNCTION {note}() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN INSERT INTO {landed} VALUES (clock_timestamp()); RETURN NULL; END $$;
        CREATE CONSTRAINT TRIGGER note AFTER INSERT ON {table} DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION {note}();
    """
    with psycopg.connect(database_url) as connection:
        connection.execute(sql.SQL(script).format(**names))


def test_a_trace_is_as_long_as_from_the_producer_to_the_table_and_what_was_killed_left_nothing(
    runs: Runs, database_url: str, tmp_path: Path
) -> None:
    source, table = runs.topic("raw", partitions=1), f"t_{runs.prefix.replace('-', '_')}"
    note_commits(database_url, table)
    with jaeger(tmp_path) as seen:
        secrets = {**runs.config.to_env(), "DATABASE_URL": database_url}

        def attempt(run: AgentRun, **extra: str) -> AgentResult:
            extra |= {"OTEL_EXPORTER_OTLP_ENDPOINT": seen.otlp_url}
            return AgentProcess(
                run, child_environment(os.environ, private=(), secrets=secrets, extra=extra, python_path=[Path.cwd()])
            ).run()

        produced = time.time_ns() // 1_000_000  # as Kafka stamps records
        runs.produce(source, events(1), headers={"traceparent": f"00-{PRODUCED}-00f067aa0ba902b7-01"})
        window = runs.window(source)
        for run in stages(runs, table):
            run = msgspec.structs.replace(run, window=window, origin=window.origin)
            if run.stage == "enrich":
                with pytest.raises(AgentCrashedError):
                    attempt(run, FACTORY_FAILPOINTS="chunk.before-commit=kill")
            result = attempt(run)
            assert result.error is None, result.error
            if result.manifest is not None:
                window = merge_results([result])
        returned = time.time()
        with psycopg.connect(database_url) as connection:
            row = connection.execute(sql.SQL("SELECT at FROM {}").format(sql.Identifier(f"{table}_landed"))).fetchone()
        assert row is not None

        wait_for(lambda: len(spans_of(seen.traces("factory-agent"), PRODUCED)) >= 3, "the event's spans", 30)
        found = seen.traces("factory-agent")
        way = sorted(spans_of(found, PRODUCED), key=lambda span: span["startTime"])
        assert [span["operationName"] for span in way] == [f"{name} event" for name in NAMES], (
            "one each, and none of the attempt that was killed"
        )
        parents = [reference["spanID"] for span in way for reference in span["references"] if reference["refType"] == "CHILD_OF"]
        assert parents == ["00f067aa0ba902b7", *(span["spanID"] for span in way[:-1])]
        ended = max(span["startTime"] + span["duration"] for span in way) / 1e6
        assert produced <= way[0]["startTime"] / 1e3
        assert row[0].timestamp() <= ended <= returned
        print(f"the trace ends {1000 * (ended - row[0].timestamp()):.0f} ms after the table's commit began")
        runs_seen = {span["operationName"]: span for trace in found for span in trace["spans"] if span["operationName"] in NAMES}
        assert runs_seen.keys() == set(NAMES)
        for before, after in itertools.pairwise(NAMES):
            link = next(r for r in runs_seen[after]["references"] if r["refType"] == "FOLLOWS_FROM")
            assert (link["traceID"], link["spanID"]) == (runs_seen[before]["traceID"], runs_seen[before]["spanID"])


def spans_of(traces: list[dict[str, Any]], trace: str) -> list[dict[str, Any]]:
    return [span for each in traces if each["traceID"] == trace for span in each["spans"]]
