"""Records that no friendly client writes: they are dead-lettered, and what is beside them goes on, in bounded time and memory."""

from __future__ import annotations

import sys
from typing import Any

import msgspec
import pytest

from factory_agents.protocol import AgentResult, AgentRun, merge_results
from tests.support.raw_records import Raw, batch, put
from tests.support.runs import Rec, Runs, events

MEASURED = (sys.executable, "-m", "tests.support.measured")
CONTRACT = {
    "name": "c",
    "id": "event_id",
    "schema": {"type": "object", "required": ["event_id"], "properties": {"event_id": {"type": "integer"}, "text": {"type": "string"}}},
}
NOT_UTF8 = ((b"trace", b"1"), (b"\xff\xfe", b"2"), (b"\xc3(", b"3"), (b"last", b"4"))


def poisoned(runs: Runs, *batches: bytes, name: str = "in", **settings: object) -> str:
    """A topic of one partition: the events 0 and 1, these batches, the events 2 and 3."""
    topic = runs.topic(name, partitions=1, **settings)
    runs.produce(topic, events(2))
    put(runs.bootstrap, topic, 0, *batches)
    runs.produce(topic, events(2, 2))
    return topic


def stage(runs: Runs, topic: str, name: str = "enrich", **more: Any) -> AgentRun:
    """A run of a built-in agent over all that is in the topic."""
    params = {"validate": {"contract": CONTRACT}, "publish": {"contract": CONTRACT, "table": f"t_{runs.prefix.replace('-', '_')}"}}
    output = "" if name == "publish" else runs.topic("out", partitions=1)
    run = runs.run(runs.window(topic), output, name, stage=name, params=params.get(name, {}), max_rejected="100 %")
    return msgspec.structs.replace(run, **more)


def ids(records: list[Rec]) -> list[Any]:
    return [r.id for r in records]


def succeeds(runs: Runs, run: AgentRun, *, database: str = "") -> AgentResult:
    attempt = runs.attempt(run, command=MEASURED, secrets={"DATABASE_URL": database})
    assert attempt.wait(120) == 0, attempt.log
    return attempt.result


class TestAHeaderWhoseNameIsNoUtf8:
    BATCHES = (batch([Raw(b'{"event_id": 90}', b"k", NOT_UTF8)]), batch([Raw(b'{"event_id": 91}', b"k", ((b"\xc3\xa9", b"1"),))]))

    @pytest.mark.parametrize("agent", ["enrich", "validate"])
    def test_dead_letters_that_record_without_its_headers_and_the_rest_goes_on(self, runs: Runs, agent: str) -> None:
        result = succeeds(runs, stage(runs, poisoned(runs, *self.BATCHES), agent))
        passed = runs.manifest(result.manifest)
        assert ids(passed) == [0, 1, 91, 2, 3]
        assert passed[2].headers["é"] == b"1"
        (letter,) = runs.manifest(result.dead_letters)
        assert (letter.key, letter.value) == (b"k", b'{"event_id": 90}')
        assert set(letter.headers) == {"factory-writer", "factory-dead-letter"}
        assert (letter.dead_letter["rule"], letter.dead_letter["offset"]) == ("headers", 2)

    def test_is_no_hindrance_to_a_sink_which_passes_no_headers_on(self, runs: Runs, database_url: str) -> None:
        topic = poisoned(runs, *self.BATCHES, batch([Raw(b"{broken", None, NOT_UTF8)]))
        result = succeeds(runs, stage(runs, topic, "publish"), database=database_url)
        assert (result.counts.written, result.counts.rejected) == (6, 1)
        (letter,) = runs.manifest(result.dead_letters)
        assert (letter.value, letter.dead_letter["rule"]) == (b"{broken", "decode")

    def test_is_passed_over_in_the_range_of_a_manifest(self, runs: Runs) -> None:
        first = stage(runs, poisoned(runs))
        put(runs.bootstrap, first.output_topic, 0, *self.BATCHES)
        result = succeeds(runs, first)
        put(runs.bootstrap, first.output_topic, 0, *self.BATCHES)
        manifest = result.manifest
        assert manifest is not None
        wider = tuple(msgspec.structs.replace(r, start=0, end=r.end + 3) for r in manifest.ranges)
        window = merge_results([msgspec.structs.replace(result, manifest=msgspec.structs.replace(manifest, ranges=wider))])
        second = runs.run(window, runs.topic("next", partitions=1), "enrich", stage="second")
        assert ids(runs.manifest(succeeds(runs, second).manifest)) == [0, 1, 2, 3]
