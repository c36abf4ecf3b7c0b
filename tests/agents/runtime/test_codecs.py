"""A user's codec on real topics: agents, contracts and sinks see JSON, topics hold what it writes, dead letters what came."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest

from factory_agents.errors import ConfigurationError, WindowError
from factory_agents.protocol import (
    AgentRef,
    AgentResult,
    AgentRun,
    CodecRef,
    Shard,
    Window,
    decode_result,
    decode_run,
    decode_window,
    encode,
)
from factory_agents.run import execute
from factory_agents.runtime.session import RunContext, fingerprint
from factory_agents.stage_plan import plan_shards, stage_input
from tests.support.codecs import Pinned
from tests.support.runs import Runs
from tests.support.samples import window

PAIRS = CodecRef("tests.support.codecs:Pairs")
CONTRACT = {
    "name": "pairs",
    "key": "event_id",
    "schema": {"type": "object", "required": ["event_id"], "properties": {"event_id": {"type": "integer"}, "text": {"type": "string"}}},
}


def pairs(*ids: int) -> list[bytes]:
    return [f"event_id={n};text=event {n}".encode() for n in ids]


def read_by(window: Window, codec: CodecRef | None) -> Window:
    return msgspec.structs.replace(window, codec=codec)


def run(runs: Runs, run: AgentRun, **context: Any) -> AgentResult:
    return execute(RunContext(runs.config, **context), run)


def test_a_run_over_json_is_told_and_fingerprinted_as_before_there_were_codecs() -> None:
    told = AgentRun("p", "s", AgentRef("enrich"), window=window(), output_topic="out", params={"a": 1})
    assert fingerprint(told, "enrich", "1", {"params": {}}, "T9") == "62b088a00c836fe2"
    assert told.digest == "43b4bc79a61a0eb7"
    assert b"codec" not in encode(told)
    assert decode_run(encode(told)) == told


def test_events_are_read_and_written_and_what_is_none_stays_whole(runs: Runs) -> None:
    source, out = runs.topic("in", partitions=2), runs.topic("out", partitions=2)
    runs.produce(source, [*pairs(1, 2), b"no pair", b"event_id=7;text=\xff", None], headers=[("trace", b"t"), ("pairs", b"old")])
    result = run(runs, runs.run(read_by(runs.window(source), PAIRS), out, "tests.support.agents:mark", output_codec=PAIRS))
    assert (result.counts.forwarded, result.counts.rejected) == (2, 3)
    written = runs.manifest(result.manifest)
    assert sorted(r.value or b"" for r in written) == [b"event_id=1;text=event 1;seen=True", b"event_id=2;text=event 2;seen=True"]
    assert all(r.headers["pairs"] == b"1" and r.headers["trace"] == b"t" for r in written)
    letters = {r.value: (r.dead_letter["rule"], r.headers["pairs"]) for r in runs.manifest(result.dead_letters)}
    assert letters == {b"no pair": ("pairs", b"old"), b"event_id=7;text=\xff": ("decode", b"old"), None: ("decode", b"old")}


def test_the_next_stage_reads_by_what_its_input_was_written_with(runs: Runs, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    source, out, valid = (runs.topic(name, partitions=2) for name in ("in", "out", "valid"))
    runs.produce(source, [json.dumps({"event_id": n, "text": f"event {n}"}).encode() for n in range(6)])
    marked = run(runs, runs.run(runs.window(source), out, output_codec=PAIRS))
    assert marked.manifest is not None
    assert marked.manifest.codec == PAIRS
    given = stage_input(decode_result(encode(marked)))
    validated = run(
        runs, runs.run(given.window, valid, "validate", params={"contract": CONTRACT}, stage="valid", plan=given.plan, output_codec=PAIRS)
    )
    assert (validated.counts.forwarded, (validated.report or {})["rows"]) == (6, 6)
    published = run(
        runs,
        runs.run(stage_input(validated).window, "", "publish", stage="publish", params={"contract": CONTRACT, "table": f"t_{runs.prefix}"}),
    )
    assert published.counts.written == 6
    with psycopg.connect(database_url) as connection:
        rows = connection.execute(f'SELECT event_id, text FROM "t_{runs.prefix}" ORDER BY event_id').fetchall()
    assert rows == [(n, f"event {n}") for n in range(6)]


def test_a_sink_never_sees_what_is_no_event(runs: Runs, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    source = runs.topic("in", partitions=1)
    runs.produce(source, [b"no pair", *pairs(1), b"no pair either", *pairs(2), b"text=without a key"])
    told = runs.run(
        read_by(runs.window(source), PAIRS), "", "publish", params={"contract": CONTRACT, "table": f"t_{runs.prefix}"}, max_rejected="10"
    )
    result = run(runs, told)
    assert (result.counts.written, result.counts.rejected) == (2, 3)
    assert [r.value for r in runs.manifest(result.dead_letters)] == [b"no pair", b"no pair either", b"text=without a key"]


def test_what_the_output_cannot_say_is_rejected_whole(runs: Runs) -> None:
    source, out = runs.topic("in", partitions=1), runs.topic("out", partitions=1)
    values = [b'{"event_id": 1, "text": {"a": 1}}', b'{"event_id": 2}']
    runs.produce(source, values)
    result = run(runs, runs.run(runs.window(source), out, output_codec=PAIRS))
    assert [r.value for r in runs.manifest(result.manifest)] == [b"event_id=2;seen=True"]
    (letter,) = runs.manifest(result.dead_letters)
    assert (letter.value, letter.dead_letter["rule"], letter.dead_letter["error"]) == (values[0], "pairs", "a value in a value")
    assert "pairs" not in letter.headers


def test_ingest_writes_by_the_codec_of_its_topic(runs: Runs, tmp_path: Path) -> None:
    out = runs.topic("out", partitions=2)
    (tmp_path / "rows.jsonl").write_text('{"event_id": 1}\n{"event_id": 2, "text": {}}\n{"event_id": 3}\n')
    params = {"source": str(tmp_path / "rows.jsonl")}
    told = AgentRun(runs.prefix, "ingest", AgentRef("ingest"), params=params, name="all", prefix=runs.prefix)
    told = msgspec.structs.replace(told, output_topic=out, output_codec=PAIRS, dead_letter_topic=runs.topic("dead"))
    result = run(runs, told)
    assert sorted(r.value or b"" for r in runs.manifest(result.manifest)) == [b"event_id=1", b"event_id=3"]
    assert [r.dead_letter["rule"] for r in runs.manifest(result.dead_letters)] == ["pairs"]


def test_a_compacted_topic_gets_the_events_id_as_its_key(runs: Runs) -> None:
    source, out = (
        runs.topic("in", partitions=1),
        runs.topic("out", partitions=2, cleanup_policy="compact,delete", min_compaction_lag_ms=10**9),
    )
    runs.produce(source, [b'{"event_id": "a", "text": "x"}'])
    result = run(runs, runs.run(runs.window(source), out, output_codec=PAIRS))
    assert [(r.key, r.value) for r in runs.manifest(result.manifest)] == [(b"a", b"event_id=a;text=x;seen=True")]


def test_a_dry_run_shows_json_and_still_says_what_cannot_be_written(runs: Runs) -> None:
    source, out = runs.topic("in", partitions=1), runs.topic("out", partitions=1)
    runs.produce(source, [*pairs(1), b"no pair"])
    shown: list[Any] = []
    told = runs.run(read_by(runs.window(source), PAIRS), out, output_codec=PAIRS, dry_run=True)
    result = run(runs, told, show=lambda topic, key, value: shown.append(value))
    assert shown == [b'{"event_id":1,"text":"event 1","seen":true}']
    assert [(r.rule, r.count) for r in result.reasons] == [("pairs", 1)]


def test_what_a_codec_found_out_is_found_out_once(runs: Runs) -> None:
    """A retry, a second shard and a run that is told again go by it; only a run that is told to redo all of it asks again."""
    source, out = runs.topic("in", partitions=2), runs.topic("out", partitions=2)
    runs.produce(source, pairs(*range(10)))
    codec = CodecRef("tests.support.codecs:Pinned")
    told = runs.run(read_by(runs.window(source), codec), out)
    before = Pinned.found
    first = run(runs, told)
    assert run(runs, told).reused
    again = run(runs, msgspec.structs.replace(told, agent=AgentRef(told.agent.name, version="2")))
    assert not again.reused
    assert Pinned.found == before + 1
    redone = run(runs, msgspec.structs.replace(told, rerun="redo", run_id="r2"))
    assert Pinned.found == before + 2
    assert len({first.fingerprint, again.fingerprint, redone.fingerprint}) == 3


def test_every_shard_goes_by_what_the_first_one_found_out(runs: Runs) -> None:
    source, out = runs.topic("in", partitions=2), runs.topic("out", partitions=2)
    runs.produce(source, pairs(*range(10)))
    codec = CodecRef("tests.support.codecs:Pinned")
    shards = [decode_window(part["window"]) for part in plan_shards(read_by(runs.window(source), codec), 2)]
    before = Pinned.found
    results = [run(runs, runs.run(part, out, output_codec=codec, shard=Shard(i, 2), plan="p")) for i, part in enumerate(shards)]
    assert Pinned.found == before + 2  # one to read, one to write
    merged = stage_input(results).window
    assert merged.codec is not None
    assert merged.codec.pinned == {"found": before + 2}


def test_results_by_different_codecs_are_no_window() -> None:
    from tests.support.samples import result

    one = result(0, 2)
    other = msgspec.structs.replace(result(1, 2), manifest=msgspec.structs.replace(result(1, 2).manifest, codec=PAIRS))
    with pytest.raises(WindowError, match="were not written by one codec and one schema; clear the whole stage"):
        stage_input([one, other])


@pytest.mark.parametrize(
    ("codec", "says"),
    [
        (CodecRef("pears"), r"codec 'pears': there is no such codec.* \(there are json"),
        (CodecRef("tests.support.codecs:Pears"), "has no 'Pears'; did you mean 'Pairs'?"),
        (CodecRef("tests.support.codecs:NoCodec"), "codec 'tests.support.codecs:NoCodec': expected a subclass of factory_agents.Codec"),
        (CodecRef("tests.support.codecs:Pairs", {"seperator": "|"}), "unknown parameter 'seperator'; did you mean 'separator'"),
        (CodecRef("tests.support.codecs:Pairs", {"topic": "|"}), "unknown option 'topic'; leave it out"),
        (CodecRef("tests.support.codecs:Unfinished"), "codec Unfinished: it has no decode, so it cannot read a topic"),
    ],
)
def test_a_codec_that_cannot_be_used_is_one_line(runs: Runs, codec: CodecRef, says: str) -> None:
    source, out = runs.topic("in", partitions=1), runs.topic("out", partitions=1)
    runs.produce(source, pairs(1))
    with pytest.raises(ConfigurationError, match=says):
        run(runs, runs.run(read_by(runs.window(source), codec), out))


def test_what_a_codec_raises_by_mistake_rejects_that_event(runs: Runs) -> None:
    source, out = runs.topic("in", partitions=1), runs.topic("out", partitions=1)
    runs.produce(source, pairs(1))
    result = run(runs, runs.run(read_by(runs.window(source), CodecRef("tests.support.codecs:Broken")), out, max_rejected="10"))
    (letter,) = runs.manifest(result.dead_letters)
    assert letter.dead_letter["error"].startswith("codec 'tests.support.codecs:Broken' raised KeyError: 'not today' (")
