"""A Jaeger of a test's own, where its program is there, and what it tells of traces."""

from __future__ import annotations

import signal
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import psycopg
from psycopg import sql

from factory_agents.sandbox.observability import jaeger_settings
from factory_agents.sandbox.processes import alive, free_port, last_line, spawn, stop
from factory_agents.sandbox.state import ObservabilityState
from factory_agents.temporal.protocol import StageSpec
from tests.support.runs import Runs, events
from tests.support.tools import find_tool
from tests.support.waiting import wait_for

PROGRAM = find_tool("jaeger")
NO_PROGRAM = "no Jaeger is built (see CONTRIBUTING.md): traces go to a receiver in the tests' own process alone"

STAGES = ["ingest", "enrich", "validate", "publish"]
"""An event's way, from a file into a table."""


def four_stages(runs: Runs, source: Path, table: str) -> list[StageSpec]:
    """Them over a file with one event; what ``ingest`` writes is in the first one's topic."""
    source.write_bytes(b"\n".join(events(1)))
    contract = {"name": "events", "id": "event_id", "columns": {"event_id": "bigint", "text": "text"}}
    params: list[dict[str, Any]] = [
        {"source": str(source)},
        {"function": "tests.support.agents:mark"},
        {"contract": {"name": "events", "id": "event_id"}},
        {"contract": contract, "table": table},
    ]
    topics = [*(runs.topic(name, partitions=1) for name in ("raw", "enriched", "valid")), ""]
    return [
        StageSpec(name=name, agent=name, params=given, output_topic=topic)
        for name, given, topic in zip(STAGES, params, topics, strict=True)
    ]


@dataclass(frozen=True)
class Jaeger:
    """Where it shows traces, and where it takes them."""

    url: str
    otlp_url: str

    def traces(self, service: str, **query: str) -> list[dict[str, Any]]:
        """The traces in which a service has spans, as its own pages get them."""
        asked = urllib.parse.urlencode({"service": service, "limit": "1000", **query})
        with urllib.request.urlopen(f"{self.url}/api/traces?{asked}", timeout=10) as answer:
            found: list[dict[str, Any]] = msgspec.json.decode(answer.read())["data"]
        return found

    def spans(self, kind: str) -> list[Span]:
        """The spans of this kind: ``run``, ``chunk`` or ``event``, in the order in which they began."""
        told = [span for trace in self.traces("factory-agent") for span in trace["spans"]]
        spans = [Span(span) for span in told if any(tag["key"] == "factory.stage" for tag in span["tags"])]
        return sorted((span for span in spans if span.kind == kind), key=lambda span: span.start)

    def check_the_way(self, produced: float, landed: float) -> None:
        """One event's trace over the four stages: it lasts from when it was produced until the table was committed.

        Nothing stands there of what was aborted, and each run leads to the one before.
        """
        wait_for(lambda: len(self.spans("event")) >= 4 and len(self.spans("run")) >= 4, "the spans of all stages", 30)
        way, runs = self.spans("event"), [span for span in self.spans("run") if not span.failed]
        assert [span.stage for span in way] == STAGES, "one each, and none of an attempt that was killed"
        assert len({span.trace for span in way}) == 1
        assert [span.parents for span in way] == [[], *([(before.trace, before.id)] for before in way[:-1])]
        before, after = produced - way[0].start, max(span.end for span in way) - landed
        print(f"{landed - produced:.2f} s; the trace begins {1000 * before:.0f} ms earlier and ends {1000 * after:.0f} ms later")
        assert max(abs(before), abs(after)) < 0.5, "50 ms in all where the machine is quiet"
        assert [span.stage for span in runs] == STAGES
        assert [span.links for span in runs[1:]] == [[(before.trace, before.id)] for before in runs[:-1]]


class Span:
    """A span as Jaeger tells of it; times in seconds since 1970, other spans as their trace's id and their own."""

    def __init__(self, told: dict[str, Any]) -> None:
        self.stage, _, kind = told["operationName"].partition(" ")
        self.kind = kind or "run"
        self.trace, self.id = told["traceID"], told["spanID"]
        self.start = told["startTime"] / 1e6
        self.end = self.start + told["duration"] / 1e6
        self.failed = any((tag["key"], tag["value"]) == ("error", True) for tag in told["tags"])
        references = [(reference["refType"], (reference["traceID"], reference["spanID"])) for reference in told["references"]]
        self.parents = [of for kind, of in references if kind == "CHILD_OF"]
        self.links = [of for kind, of in references if kind == "FOLLOWS_FROM"]


class Landing:
    """A table of events by their id, with a trigger that notes when a transaction commits which inserted into it."""

    def __init__(self, database_url: str, table: str, columns: str = "event_id bigint PRIMARY KEY, text text") -> None:
        self._url, self.table = database_url, table
        names = {"table": table, "landed": f"{table}_landed", "note": f"{table}_note"}
        self._names = {name: sql.Identifier(value) for name, value in names.items()}
        script = """
            CREATE TABLE {table} ({columns});
            CREATE TABLE {landed} (at timestamptz);
            CREATE FUNCTION {note}() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN INSERT INTO {landed} VALUES (clock_timestamp()); RETURN NULL; END $$;
            CREATE CONSTRAINT TRIGGER note AFTER INSERT ON {table} DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION {note}();
        """
        with psycopg.connect(database_url) as connection:
            connection.execute(sql.SQL(script).format(columns=sql.SQL(columns), **self._names))

    def at(self) -> float:
        """When the last one did, in seconds since 1970."""
        with psycopg.connect(self._url) as connection:
            row = connection.execute(sql.SQL("SELECT max(at) FROM {landed}").format(**self._names)).fetchone()
        assert row is not None
        return float(row[0].timestamp())


@contextmanager
def jaeger(folder: Path, host: str = "127.0.0.1") -> Iterator[Jaeger]:
    """Run it as the sandbox does, on free ports."""
    assert PROGRAM is not None
    at = ObservabilityState(port=0, alerts_port=0, metrics_port=0, host=host, traces_port=free_port(host), otlp_port=free_port(host))
    settings, log = folder / "jaeger.json", folder / "jaeger.log"
    settings.write_bytes(msgspec.json.encode(jaeger_settings(at)))
    process = spawn([PROGRAM, f"--config=file:{settings}"], log=log)
    started = Jaeger(f"http://{host}:{at.traces_port}", f"http://{host}:{at.otlp_port}")

    def ready() -> bool:
        assert alive(process), last_line(log)
        try:
            return started.traces("nobody") == []
        except OSError:
            return False

    try:
        wait_for(ready, "Jaeger to answer", 60)
        yield started
    finally:
        stop(process, (signal.SIGTERM, 10), (signal.SIGKILL, 5))
