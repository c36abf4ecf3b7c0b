"""Records that no friendly client writes: they are dead-lettered, and what is beside them goes on, in bounded time and memory."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import sys
import time
from functools import cache
from typing import Any

import msgspec
import pytest

from factory_agents.protocol import AgentResult, AgentRun, merge_results
from tests.support.measured import peak_of
from tests.support.raw_records import Codec, Raw, batch, put
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


POD_MB = 1024
"""A pod's memory limit unless it is set."""


def succeeds(runs: Runs, run: AgentRun, *, database: str = "", memory_mb: int = POD_MB, **values: object) -> AgentResult:
    """An attempt in a process of its own, within a pod's memory."""
    attempt = runs.attempt(run, command=MEASURED, secrets={"DATABASE_URL": database}, **values)
    assert attempt.wait(200) == 0, attempt.log
    assert peak_of(attempt.log) < memory_mb
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

    def test_does_so_among_thousands_of_records_as_well(self, runs: Runs) -> None:
        friendly = [Raw(e, None, [(b"trace", b"1")]) for e in events(500, 100)]
        topic = poisoned(runs, *[b for _ in range(6) for b in (batch(friendly), self.BATCHES[0])])
        first = stage(runs, topic)
        result = succeeds(runs, first)
        assert (result.counts.forwarded, result.counts.rejected) == (3004, 6)
        put(runs.bootstrap, first.output_topic, 0, self.BATCHES[0])
        second = runs.run(merge_results([result]), runs.topic("next", partitions=1), "enrich", stage="second")
        assert succeeds(runs, second).counts.forwarded == 3004

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


MB = 1 << 20


@cache
def holding(megabytes: int, codec: Codec = "zstd", filling: bytes = b"x") -> bytes:
    """A batch of one record with a value so large, its key and a header."""
    return batch([Raw(filling * (megabytes * MB // len(filling)), b"k", [(b"trace", b"1")])], codec)


class TestAValueTooLargeForAProducer:
    @pytest.mark.parametrize("agent", ["enrich", "validate", "publish"])
    def test_is_dead_lettered_by_what_tells_it_again(self, runs: Runs, agent: str, database_url: str) -> None:
        bomb = holding(40)
        assert len(bomb) < 3000
        topic = poisoned(runs, bomb)
        result = succeeds(runs, stage(runs, topic, agent), database=database_url)
        assert (result.counts.consumed, result.counts.forwarded, result.counts.rejected) == (5, 4, 1)
        (letter,) = runs.manifest(result.dead_letters)
        assert (letter.key, letter.value) == (b"k", None)
        reason = letter.dead_letter
        assert (reason["rule"], reason["topic"], reason["partition"], reason["offset"]) == ("too-large", topic, 0, 2)
        assert (reason["size"], reason["sha256"]) == (40 * MB, hashlib.sha256(b"x" * 40 * MB).hexdigest())
        assert base64.b64decode(reason["prefix"]) == b"x" * 1000

    def test_is_counted_by_a_dry_run_too(self, runs: Runs, database_url: str) -> None:
        topic = poisoned(runs, holding(40))
        for agent in ("enrich", "publish"):
            result = succeeds(runs, stage(runs, topic, agent, dry_run=True), database=database_url)
            assert (result.counts.forwarded, result.counts.rejected) == (4, 1)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("codec", "megabytes", "many", "memory_mb"),
        [("zstd", 60, 12, 600), ("zstd", 1, 1100, POD_MB), ("gzip", 60, 8, 400)],
    )
    def test_many_of_them_fit_the_memory_of_a_pod(self, runs: Runs, codec: Codec, megabytes: int, many: int, memory_mb: int) -> None:
        topic = poisoned(runs, *[holding(megabytes, codec)] * many)
        result = succeeds(runs, stage(runs, topic), memory_mb=memory_mb)
        assert (result.counts.forwarded, result.counts.rejected) == (4, many)

    @pytest.mark.parametrize("filling", [b"[[],", b'{"":', b"[0,", b'"\\u0000'])
    def test_json_that_grows_when_it_is_decoded_does_too(self, runs: Runs, filling: bytes) -> None:
        whole = b'{"event_id":9,"a":[' + b"[]," * (5 * MB) + b"0]}"
        topic = poisoned(runs, batch([Raw(whole)], "zstd"), holding(15, "zstd", filling))
        result = succeeds(runs, stage(runs, topic))
        assert (result.counts.forwarded, result.counts.rejected) == (5, 1)


class TestWhatDoesNotFitTheDeadLetterTopic:
    def test_stays_where_it_was_with_a_letter_that_tells_it_again(self, runs: Runs) -> None:
        topic = poisoned(runs, batch([Raw(b"{" + random.Random(1).randbytes(50_000), b"k", [(b"own", b"1")])]))
        run = stage(runs, topic)
        runs.topic("out.dead", partitions=1, max_message_bytes=5_000)
        (letter,) = runs.manifest(succeeds(runs, run).dead_letters)
        assert (letter.key, letter.value, set(letter.headers)) == (b"k", None, {"factory-writer", "factory-dead-letter"})
        assert (letter.dead_letter["rule"], letter.dead_letter["offset"], letter.dead_letter["size"]) == ("decode", 2, 50_001)

    def test_is_a_key_or_a_header_as_well(self, runs: Runs) -> None:
        large = random.Random(1).randbytes(50_000)
        hostile = [
            Raw(b"{1", large),
            Raw(b"{2", b"k", [(b"own", large)]),
            Raw(b"{3", b"k", [(b"n" * 50_000, b"")]),
            Raw(b"{4", b"k", [(b"factory-writer", large.hex().encode())]),
            Raw(b"{5", b"k", [(b"h", b"")] * 120_000),
        ]
        topic = poisoned(runs, batch(hostile, "zstd"))
        run = stage(runs, topic)
        runs.topic("out.dead", partitions=1, max_message_bytes=8_000)
        letters = runs.manifest(succeeds(runs, run).dead_letters)
        assert [base64.b64decode(r.dead_letter.get("prefix", "")) or r.value for r in letters] == [b"{1", b"{2", b"{3", b"{4", b"{5"]
        assert [r.key for r in letters] == [None, b"k", b"k", b"k", b"k"]

    def test_is_what_an_agent_was_given_whose_output_is_too_large_for_a_producer(self, runs: Runs) -> None:
        topic = poisoned(runs, batch([Raw(json.dumps({"event_id": 9, "grow": 20_000_000}).encode())]))
        run = stage(runs, topic, name="tests.support.agents:grow")
        result = succeeds(runs, run)
        assert ids(runs.manifest(result.manifest)) == [0, 1, 2, 3]
        (letter,) = runs.manifest(result.dead_letters)
        assert (letter.id, letter.dead_letter["rule"]) == (9, "refused")
        assert "size" not in letter.dead_letter


class TestABatchThatExpandsPastEveryLimit:
    def test_fails_the_run_for_good_and_says_what_to_do(self, runs: Runs) -> None:
        topic = poisoned(runs, holding(120))
        attempt = runs.attempt(stage(runs, topic), command=MEASURED)
        began = time.monotonic()
        assert attempt.wait(60) == 1, attempt.log
        assert time.monotonic() - began < 30
        assert peak_of(attempt.log) < POD_MB
        error = attempt.result.error
        assert error is not None
        assert (error.type, error.retriable) == ("UnreadableBatchError", False)
        assert f"{topic}-0 offsets 2 to 3 cannot be read" in error.message

    def test_is_passed_over_where_that_loss_is_accepted(self, runs: Runs) -> None:
        topic = poisoned(runs, holding(120))
        result = succeeds(runs, stage(runs, topic, accept_loss=True))
        assert ids(runs.manifest(result.manifest)) == [0, 1, 2, 3]
        assert (result.counts.consumed, result.counts.lost) == (4, 1)
        assert result.notes == (f"lost: {topic}-0 offsets 2 to 3",)


class TestARecordForgedIntoWhatAStageWrites:
    def test_under_the_stages_own_name_fails_the_next_stage(self, runs: Runs) -> None:
        out = runs.topic("out", partitions=1)

        def forging(event: dict[str, Any]) -> dict[str, Any]:
            if event["event_id"] == 25:  # two chunks are in the topic
                writer = runs.everything(out)[0].headers["factory-writer"]
                put(runs.bootstrap, out, 0, batch([Raw(b'{"event_id": 666}', None, [(b"factory-writer", writer)])]))
            return event

        topic = runs.topic("in", partitions=1)
        runs.produce(topic, events(50))
        first = runs.transform(runs.run(runs.window(topic), out, chunk_records=10), forging)
        second = runs.attempt(runs.run(merge_results([first]), runs.topic("next"), "enrich", stage="second"))
        assert second.wait(60) == 1
        error = second.result.error
        assert error is not None
        assert (error.type, error.retriable) == ("ForgedRecordError", False)
        assert "its manifest says 50: 1 are somebody else's" in error.message

    def test_under_any_other_name_is_passed_over(self, runs: Runs) -> None:
        first = stage(runs, poisoned(runs))
        names = [b"enrich/0/1", b"", b"enrich/" + b"f" * 16 + b"/1", b"\xff"]
        forged = batch([Raw(b'{"event_id": 666}', None, [(b"factory-writer", name)]) for name in names])
        put(runs.bootstrap, first.output_topic, 0, forged)
        window = merge_results([succeeds(runs, first)])
        put(runs.bootstrap, first.output_topic, 0, forged)
        second = runs.run(window, runs.topic("next", partitions=1), "enrich", stage="second")
        assert ids(runs.manifest(succeeds(runs, second).manifest)) == [0, 1, 2, 3]
