"""Promise 7: nothing is silently lost: an event that cannot go on is dead-lettered whole, with the reason, or the run fails."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import pytest

from factory_agents.errors import AgentError, ConfigurationError, DataLossError
from factory_agents.protocol import AgentRun, Interval
from factory_agents.runtime.agents import Reject, SourceRecord
from factory_agents.runtime.outputs import Outputs
from factory_agents.runtime.session import RunContext
from factory_agents.runtime.source import run_source
from tests.support.runs import Rec, Runs, events
from tests.support.topics import recreate


def noise(size: int, seed: int = 1) -> str:
    """Text that compression doesn't make smaller than half its size."""
    return random.Random(seed).randbytes(size // 2).hex()


def over(runs: Runs, values: list[bytes | None], out: str = "", **produced: Any) -> AgentRun:
    topic = runs.topic("in", partitions=1)
    runs.produce(topic, values, **produced)
    return runs.run(runs.window(topic), out or runs.topic("out"), max_rejected="100 %")


def dead(runs: Runs, result: Any) -> list[Rec]:
    return runs.manifest(result.dead_letters)


MALFORMED = {
    "no JSON": b"{broken",
    "no object": b"[1, 2]",
    "a number": b"7",
    "empty": b"",
    "a tombstone": None,
    "no UTF-8": b'{"event_id": "\xff\xfe"}',
    "NUL bytes": b"\x00\x00\x00",
    "half a surrogate": b'{"event_id": "\\ud800"}',
    "too deep": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "two documents": b"{}{}",
    "a number too large": b'{"event_id": 1e999}',
}


@pytest.mark.parametrize("what", MALFORMED)
def test_a_malformed_record_is_dead_lettered_whole_and_the_rest_goes_on(runs: Runs, what: str) -> None:
    poison = MALFORMED[what]
    run = over(runs, [*events(2), poison, *events(2, 2)], key=b"k")
    result = runs.transform(run)
    assert sorted(r.id for r in runs.manifest(result.manifest)) == [0, 1, 2, 3]
    (letter,) = dead(runs, result)
    assert (letter.key, letter.value) == (b"k", poison)
    reason = letter.dead_letter
    assert (reason["rule"], reason["topic"], reason["offset"]) == ("decode", run.window and run.window.topic, 2)
    assert reason["error"]
    assert result.counts.rejected == 1


def test_strange_but_valid_events_travel(runs: Runs) -> None:
    deep = '{"a":' * 200 + "1" + "}" * 200
    strange = [
        '{"event_id": "nul \\u0000 and \\u2028"}',
        '{"event_id": "", "": null}',
        f'{{"event_id": 1, "deep": {deep}}}',
        json.dumps({"event_id": 2, "huge": noise(3_000_000)}),
        '{"event_id": 12345678901234567890123}',
        '{"event_id": "\\ud83d\\ude00"}',
    ]
    out = runs.topic("out", max_message_bytes=10_000_000)
    topic = runs.topic("in", partitions=1, max_message_bytes=10_000_000)
    runs.produce(topic, [s.encode() for s in strange])
    result = runs.transform(runs.run(runs.window(topic), out))
    assert result.counts.rejected == 0
    assert [r.event for r in runs.manifest(result.manifest)] == [json.loads(s) | {"seen": True} for s in strange]


def test_a_dead_letter_keeps_key_value_and_headers_and_says_where_it_was_and_why(runs: Runs) -> None:
    headers = [("trace", b"\x00\xff"), ("trace", b"2"), ("none", None), ("factory-writer", b"before/f/1")]
    run = over(runs, [b"poison"], key=b"\x00key\xff", headers=headers)
    result = runs.transform(run)
    assert result.dead_letters is not None
    assert result.dead_letters.topic == f"{run.output_topic}.dead"
    (letter,) = dead(runs, result)
    assert (letter.key, letter.value) == (b"\x00key\xff", b"poison")
    assert letter.headers["none"] is None
    assert letter.headers["trace"] == b"2"
    assert run.window is not None
    assert letter.dead_letter | {"topic_id": run.window.topic_id, "timestamp": 0, "error": ""} == {
        "error": "",
        "rule": "decode",
        "pipeline": run.pipeline,
        "stage": "stage",
        "agent": result.agent,
        "version": result.version,
        "window": run.key,
        "topic": run.window.topic,
        "topic_id": run.window.topic_id,
        "partition": 0,
        "offset": 0,
        "timestamp": 0,
        "writer": "before/f/1",
    }


class _WithoutTextError(Exception):
    def __str__(self) -> str:
        raise AttributeError("response")


HOSTILE_ERRORS: dict[str, Any] = {
    "a reason": Reject("too old", rule="age"),
    "an exception": KeyError("url"),
    "an endless message": ValueError("x" * 5_000_000),
    "half a surrogate": ValueError("\ud800"),
    "a reason that is no text": Reject(7),  # type: ignore[arg-type]
    "NUL": ValueError("\x00"),
    "recursion": RecursionError("maximum recursion depth exceeded"),
    "an end of iteration": StopIteration(3),
    "no text": _WithoutTextError(),
}


@pytest.mark.parametrize("what", HOSTILE_ERRORS)
def test_an_agent_that_raises_rejects_that_event_only(runs: Runs, what: str) -> None:
    def raising(event: dict[str, Any]) -> dict[str, Any]:
        if event["event_id"] == 1:
            raise HOSTILE_ERRORS[what]
        return event

    run = over(runs, [*events(3)])
    result = runs.transform(run, raising)
    assert [r.id for r in runs.manifest(result.manifest)] == [0, 2]
    (letter,) = dead(runs, result)
    assert letter.event["event_id"] == 1
    assert letter.dead_letter["rule"] in ("age", "agent-error", "rejected")
    assert len(letter.headers["factory-dead-letter"] or b"") < 10_000


@pytest.mark.parametrize("returned", [7, "text", [1], [[{}]], {"a": object()}, {1: {2}}, {"x": "\ud800"}, b"bytes", True])
def test_an_agent_that_returns_nonsense_rejects_that_event_only(runs: Runs, returned: Any) -> None:
    def nonsense(event: dict[str, Any]) -> Any:
        return returned if event["event_id"] == 1 else event

    result = runs.transform(over(runs, [*events(3)]), nonsense)
    assert (result.counts.forwarded, result.counts.rejected) in ((2, 1), (3, 0))
    assert result.counts.consumed == 3
    assert len(runs.manifest(result.manifest)) + result.counts.rejected == 3


def test_an_agent_that_ends_the_process_fails_the_run_instead(runs: Runs) -> None:
    def leaving(event: dict[str, Any]) -> Any:
        raise SystemExit(0)

    with pytest.raises(AgentError, match="to end the process"):
        runs.transform(over(runs, [*events(3)]), leaving)


def test_a_record_that_the_client_refuses_is_dead_lettered(runs: Runs) -> None:
    def growing(event: dict[str, Any]) -> dict[str, Any]:
        return event | {"pad": "x" * 2_000_000} if event["event_id"] == 1 else event

    config = runs.configured(message_max_bytes=1_000_000)
    result = runs.transform(over(runs, [*events(3)]), growing, config=config)
    assert [r.id for r in runs.manifest(result.manifest)] == [0, 2]
    (letter,) = dead(runs, result)
    assert (letter.id, letter.dead_letter["rule"]) == (1, "refused")


@pytest.mark.parametrize(("limit", "count"), [(3_000, 300), (1_100_000, 60)])
def test_a_record_that_the_broker_refuses_is_dead_lettered_whole(runs: Runs, limit: int, count: int) -> None:
    asked: list[int] = []
    pad, refused = noise(limit * 3), [n for n in range(count) if n % (count // 3) == count // 7]

    def growing(event: dict[str, Any]) -> dict[str, Any]:
        asked.append(event["event_id"])
        return event | {"pad": pad} if event["event_id"] in refused else event

    run = over(runs, [*events(count)], runs.topic("out", max_message_bytes=limit))
    result = runs.transform(run, growing)
    assert sorted(r.id for r in runs.manifest(result.manifest)) == [n for n in range(count) if n not in refused]
    assert sorted(r.id for r in dead(runs, result)) == refused
    assert {r.dead_letter["rule"] for r in dead(runs, result)} == {"refused"}
    assert all("max.message.bytes is" in r.dead_letter["error"] for r in dead(runs, result)), "the broker's reason"
    assert len(asked) < 4.4 * count  # the chunk again, for each that is refused; not halved and halved


def test_one_of_several_outputs_that_is_refused_takes_the_others_with_it(runs: Runs) -> None:
    """An event is forwarded whole, or rejected whole."""

    def splitting(event: dict[str, Any]) -> list[dict[str, Any]]:
        return [event, event | {"pad": noise(20_000)}, event] if event["event_id"] == 1 else [event, event]

    for limits, config in (({"max_message_bytes": 5_000}, {}), ({}, {"message_max_bytes": 5_000})):
        run = over(runs, [*events(3)], runs.topic("out", **limits))
        result = runs.transform(run, splitting, config=runs.configured(**config))
        assert sorted(r.id for r in runs.manifest(result.manifest)) == ["0-1", "0-2", "2-1", "2-2"]
        assert (result.counts.forwarded, result.counts.produced, result.counts.rejected) == (2, 4, 1)
        assert len(runs.everything(run.output_topic)) == 4
        assert [r.id for r in dead(runs, result)] == [1]


def test_small_records_are_never_refused_for_the_size_of_their_batch(runs: Runs) -> None:
    run = over(
        runs, [json.dumps({"event_id": n, "pad": noise(400, n)}).encode() for n in range(500)], runs.topic("out", max_message_bytes=1000)
    )
    aborts: list[str] = []
    result = runs.transform(run, lambda e: e)
    assert (result.counts.forwarded, result.counts.rejected, aborts) == (500, 0, [])


def test_a_dead_letter_whose_pointer_is_refused_too_fails_the_run_and_is_not_tried_for_ever(runs: Runs) -> None:
    topic = runs.topic("in", partitions=1, max_message_bytes=3_000_000)
    runs.produce(topic, [*events(5), b"x" + noise(100_000).encode(), *events(5, 5)])
    out = runs.topic("out")
    runs.topic("out.dead", max_message_bytes=500)
    run = runs.run(runs.window(topic), out, chunk_records=4)
    with pytest.raises(ConfigurationError, match=r"does not fit the topic .*dead.*max.message.bytes"):
        runs.transform(run)
    assert sorted(r.id for r in runs.everything(out)) == [0, 1, 2, 3]  # the chunk before it


WEEK = 7 * 24 * 3600 * 1000


@pytest.fixture
def compacted(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> str:
    """A topic that refuses a whole batch for one record without a key; the runtime's own remedy for that is put away."""
    resolve = Outputs.resolve

    def without_keys(self: Outputs) -> None:
        resolve(self)
        self._keyed = False

    monkeypatch.setattr(Outputs, "resolve", without_keys)
    return runs.topic("out", partitions=1, cleanup_policy="compact,delete", min_compaction_lag_ms=WEEK, retention_ms=WEEK)


def test_a_chunk_is_halved_until_a_culprit_is_alone_that_a_batch_hides(runs: Runs, compacted: str) -> None:
    topic = runs.topic("in", partitions=1)
    runs.produce(topic, events(6), key=b"k")
    runs.produce(topic, events(2, 6))
    result = runs.transform(runs.run(runs.window(topic), compacted, max_rejected="100 %"))
    assert sorted(r.id for r in runs.manifest(result.manifest)) == [0, 1, 2, 3, 4, 5]
    assert sorted(r.id for r in dead(runs, result)) == [6, 7]


def test_an_event_given_where_no_output_topic_is_named_fails_the_run(runs: Runs) -> None:
    topic = runs.topic("in")
    runs.produce(topic, events(3))
    with pytest.raises(ConfigurationError, match="no output topic is named"):
        runs.transform(runs.run(runs.window(topic)))


def test_without_an_output_topic_dead_letters_go_beside_the_input(runs: Runs) -> None:
    topic = runs.topic("in")
    runs.produce(topic, [b"poison"])
    result = runs.transform(runs.run(runs.window(topic), max_rejected="100 %"), lambda e: None)
    assert result.dead_letters is not None
    assert result.dead_letters.topic == f"{topic}.dead"


def test_an_unknown_output_topic_is_named(runs: Runs) -> None:
    topic = runs.topic("in")
    runs.produce(topic, events(1))
    with pytest.raises(ConfigurationError, match="nowhere"):
        runs.transform(runs.run(runs.window(topic), "nowhere"))


def test_the_output_topic_recreated_during_the_run_fails_it(runs: Runs) -> None:
    run = over(runs, [*events(50)])
    done: list[int] = []

    def recreating(event: dict[str, Any]) -> dict[str, Any]:
        if event["event_id"] == 25:
            recreate(runs.admin, run.output_topic, 4)
            done.append(1)
        return event

    with pytest.raises(DataLossError, match="deleted and created again during the run"):
        runs.transform(msgspec.structs.replace(run, chunk_records=10), recreating)
    result = runs.transform(run)
    assert sorted(r.id for r in runs.manifest(result.manifest)) == list(range(50))


class Rows:
    """A source of numbered rows."""

    name, version = "rows", "1"

    def __init__(self, rows: Sequence[SourceRecord], batch: int = 100) -> None:
        self.identity: dict[str, Any] = {"n": len(rows)}
        self._rows, self._batch = rows, batch

    def read(self, interval: Interval | None, skip: int) -> Iterator[Sequence[SourceRecord]]:
        for start in range(skip, len(self._rows), self._batch):
            yield self._rows[start : start + self._batch]

    def close(self) -> None:
        return None


def test_a_row_that_the_broker_refuses_is_dead_lettered_and_no_other_is_doubled(runs: Runs) -> None:
    rows = [SourceRecord(None, v, f"file:{n}") for n, v in enumerate(events(250))]
    rows[117] = SourceRecord(None, json.dumps({"event_id": 117, "pad": noise(20_000)}).encode(), "file:117")
    rows[118] = SourceRecord(b"key", b"poison", "file:118", Reject("no time", rule="time"))
    run = runs.run(None, runs.topic("out", max_message_bytes=5_000), "ingest", chunk_records=50, interval=HOUR)
    result = run_source(RunContext(runs.config), run, lambda: Rows(rows, batch=37))
    assert sorted(r.id for r in runs.manifest(result.manifest)) == [n for n in range(250) if n not in (117, 118)]
    letters = {r.dead_letter["where"]: r for r in dead(runs, result)}
    assert set(letters) == {"file:117", "file:118"}
    assert letters["file:117"].value == rows[117].value
    assert (letters["file:118"].key, letters["file:118"].dead_letter["rule"]) == (b"key", "time")
    assert (result.counts.consumed, result.counts.forwarded, result.counts.rejected) == (250, 248, 2)


def test_rows_that_a_batch_hides_are_halved_down_to_and_none_is_doubled(runs: Runs, compacted: str) -> None:
    out = compacted
    rows = [SourceRecord(None if n in (21, 22) else b"k", v, f"file:{n}") for n, v in enumerate(events(60))]
    run = runs.run(None, out, "ingest", chunk_records=40, interval=HOUR)
    result = run_source(RunContext(runs.config), run, lambda: Rows(rows, batch=13))
    assert sorted(r.id for r in runs.manifest(result.manifest)) == [n for n in range(60) if n not in (21, 22)]
    assert len(runs.everything(out)) == 58
    assert sorted(r.id for r in dead(runs, result)) == [21, 22]


def test_an_agent_of_the_latest_python_thread_bears_what_the_main_thread_bears(runs: Runs) -> None:
    """The agent's thread has a stack as deep as the main one's: nested events end as a rejection, never as a crash."""

    def deep(event: dict[str, Any]) -> dict[str, Any]:
        def down(n: int) -> int:
            return 0 if n == 0 else down(n - 1) + 1

        return event | {"depth": down(100_000 if event["event_id"] == 1 else 500)}

    result = runs.transform(over(runs, [*events(3)]), deep)
    assert (result.counts.forwarded, result.counts.rejected) == (2, 1)


def test_keyless_events_and_rows_get_a_key_where_the_topic_needs_one(runs: Runs) -> None:
    out = runs.topic("out", cleanup_policy="compact,delete", min_compaction_lag_ms=WEEK, retention_ms=WEEK)
    result = runs.transform(over(runs, [b'{"event_id":"a"}', b'{"event_id":2}'], out))
    topic = result.input and result.input.topic
    assert {r.key for r in runs.manifest(result.manifest)} == {b"a", f"{topic}-0-1".encode()}
    rows = [SourceRecord(None, v, "file") for v in (b'{"event_id":"a"}', b'{"event_id":2}')]
    result = run_source(RunContext(runs.config), runs.run(None, out, "ingest", interval=HOUR), lambda: Rows(rows))
    assert {r.key for r in runs.manifest(result.manifest)} == {b"a", f"{HOUR.key}-1".encode()}


HOUR = msgspec.convert({"start": "2026-01-01T00:00:00Z", "end": "2026-01-01T01:00:00Z"}, Interval)
