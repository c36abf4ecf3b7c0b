"""Dead letters are replayed exactly once, as the events were or through an agent that was mended."""

from __future__ import annotations

import os
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pytest

from factory_agents.codecs.registry import RegistryConfig
from factory_agents.errors import ConfigurationError, FencedError, StoppedError
from factory_agents.kafka import followed
from factory_agents.kafka.ledger import Progress, StageRecord, StoredResult
from factory_agents.protocol import CodecRef, Manifest, PartitionRange, Shard
from factory_agents.reject import Reject
from factory_agents.runtime import replays
from factory_agents.runtime.agents import agent
from factory_agents.runtime.codecs import open_codec
from factory_agents.runtime.dead_letters import LetterTopic, Selection, group_letters
from factory_agents.runtime.letter_states import purge_letters
from factory_agents.runtime.letter_values import LetterReader
from factory_agents.runtime.outputs import DeadLetter
from factory_agents.runtime.replays import Through, replay_letters
from tests.support import raw_records as raw
from tests.support.commands import Command
from tests.support.letters import EVERY, fill, letter, put, replayed, select, vouch, write_ledger
from tests.support.observers import Recorder
from tests.support.runs import Runs, events
from tests.support.topics import recreate


def test_a_replay_restores_key_value_headers_and_partition(runs: Runs) -> None:
    target = runs.topic("in", partitions=4)
    topic = fill(runs, [(letter(topic=target, partition=3, offset=17), b'{"event_id":"a"}')])
    result = replay_letters(runs.config, topic, target, EVERY, prefix=runs.prefix)
    assert (result.replayed, result.before, result.superseded) == (1, 0, 0)
    (record,) = runs.everything(target)
    assert (record.partition, record.key, record.value) == (3, b"k0", b'{"event_id":"a"}')
    assert record.headers == {"own": b"kept", "factory-writer": f"replay/{topic}-0@0/0".encode()}


def test_a_second_replay_of_the_same_letters_is_refused_unless_again(runs: Runs) -> None:
    target = runs.topic("in", partitions=2)
    topic = fill(runs, [(letter(rule="a"), b"1"), (letter(rule="b"), b"2")])
    assert replay_letters(runs.config, topic, target, Selection(rule="a"), prefix=runs.prefix).replayed == 1
    with pytest.raises(ConfigurationError, match=r"all matching letters \(1\) were replayed before; --again"):
        replay_letters(runs.config, topic, target, Selection(rule="a"), prefix=runs.prefix)
    rest = replay_letters(runs.config, topic, target, EVERY, prefix=runs.prefix)
    assert (rest.replayed, rest.before) == (1, 1)
    assert [r.value for r in replayed(runs, target)] == [b"1", b"2"]
    replay_letters(runs.config, topic, target, EVERY, prefix=runs.prefix, again=True)
    assert [r.value for r in replayed(runs, target)] == [b"1", b"1", b"2", b"2"]


def test_a_repetition_with_a_name_goes_on_where_it_ended(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replays, "_CHUNK", 2)
    target = runs.topic("in", partitions=2)
    topic = fill(runs, [(letter(), str(i).encode()) for i in range(5)])

    def times(again: bool | str, observer: Recorder | None = None) -> list[int]:
        stop = (lambda: bool(observer.commits)) if observer else (lambda: False)
        replay_letters(runs.config, topic, target, EVERY, prefix=runs.prefix, again=again, observer=observer, stop=stop)
        counts = Counter(r.value for r in runs.everything(target))
        return [counts[str(i).encode()] for i in range(5)]

    with pytest.raises(StoppedError, match="the same command goes on from there"):
        times("one", Recorder())
    assert times("one") == [1] * 5, "what was never replayed is not left out either"
    with pytest.raises(StoppedError, match="the same command goes on from there"):
        times("other", Recorder())
    assert times("other") == [2] * 5
    with pytest.raises(ConfigurationError, match=r"all matching letters \(5\) were replayed by the repetition 'other'"):
        times("other")
    with pytest.raises(StoppedError, match="--again starts from the first letter"):
        times(True, Recorder())


def test_a_dead_letter_topic_is_no_place_for_its_own_letters(runs: Runs) -> None:
    topic = fill(runs, [(letter(), b"1")])
    with pytest.raises(ConfigurationError, match="is the dead-letter topic itself"):
        replay_letters(runs.config, topic, topic, EVERY, prefix=runs.prefix)
    assert len(runs.everything(topic)) == 1


def test_events_go_to_no_topic_whose_codec_could_not_read_them(runs: Runs) -> None:
    """An event that could not be encoded is a letter in the form it had before."""
    target, other = runs.topic("in", partitions=2), runs.topic("other", partitions=2)
    topic = fill(runs, [(letter(topic=target), b"\0\0\0\0\1\2"), (letter(topic="", where="a.jsonl:1"), b"{}")])
    codecs = {target: CodecRef("avro", {"version": 2}), other: CodecRef("avro")}
    with pytest.raises(ConfigurationError, match=rf"1 event \(the first at 1@0\) would go unchanged, in json, into '{target}', .* avro:"):
        replay_letters(runs.config, topic, target, EVERY, prefix=runs.prefix, codec_of=codecs.get)
    assert not runs.everything(target)
    kept = Selection(positions=frozenset({"0@0"}))
    assert replay_letters(runs.config, topic, other, kept, prefix=runs.prefix, codec_of=codecs.get).replayed == 1
    with pytest.raises(ConfigurationError, match=r"in avro, into .* the codec json"):
        replay_letters(runs.config, topic, runs.topic("new"), kept, prefix=runs.prefix, again=True, codec_of=codecs.get)


def test_nothing_to_replay_is_told(runs: Runs) -> None:
    target = runs.topic("in", partitions=2)
    topic = fill(runs, [(letter(), b"1")])
    with pytest.raises(ConfigurationError, match="no dead letter matches these filters"):
        replay_letters(runs.config, topic, target, Selection(rule="none"), prefix=runs.prefix)


@pytest.mark.parametrize(
    ("selection", "said"),
    [
        (Selection(rule="agent-eror"), "unknown rule 'agent-eror'; did you mean 'agent-error'?"),
        (Selection(rule="zzz"), "unknown rule 'zzz'; expected one of: agent-error, schema"),
        (Selection(stage="enrch"), "unknown stage 'enrch'; did you mean 'enrich'?"),
        (Selection(pipeline="x"), "unknown pipeline 'x'; expected one of: p"),
        (Selection(rule="schema", stage="enrich", window="other"), "no dead letter matches these filters$"),
    ],
)
def test_a_mistyped_filter_is_told_what_there_is(runs: Runs, selection: Selection, said: str) -> None:
    topic = fill(runs, [(letter(rule="agent-error,schema", stage="enrich"), b"1")])
    with pytest.raises(ConfigurationError, match=said):
        replay_letters(runs.config, topic, runs.topic("in", partitions=1), selection, prefix=runs.prefix)
    letters = LetterTopic(runs.config, topic, prefix=runs.prefix)
    assert list(letters.select(selection)) == []
    assert ("unknown" not in said) == (selection.unmet(letters.names) == "")


def test_two_replays_at_once_bring_each_event_once(runs: Runs, factory: Command) -> None:
    """The later one fences the earlier; whichever ends, nothing is doubled, and what is left goes with the next."""
    target = runs.topic("in", partitions=2)
    topic = fill(runs, [(letter(), b"%d" % n) for n in range(2_000)])
    with ThreadPoolExecutor(3) as pool:
        codes = list(pool.map(lambda _: factory("dead-letters", "replay", topic, "--to", target, "--rate", "5000").code, range(3)))
    assert set(codes) <= {0, 1, 75}
    rest = factory("dead-letters", "replay", topic, "--to", target)
    assert rest.code in (0, 1)
    assert Counter(r.value for r in runs.everything(target)) == {b"%d" % n: 1 for n in range(2_000)}


def test_a_replay_that_was_fenced_and_begins_again_writes_nothing_that_the_other_one_wrote(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its client refuses an event before the broker is asked, so it doesn't hear that it was fenced."""
    target = runs.topic("in", partitions=2)
    topic = fill(runs, [(letter(), os.urandom(3_000)), (letter(), b"2"), (letter(), b"3")], partitions=1)
    read, reads, other = LetterTopic.read, [0], [0]

    def counted(self: LetterTopic, *arguments: Any) -> Any:
        reads[0] += 1
        return read(self, *arguments)

    def meanwhile() -> bool:
        if reads[0] == 2:  # the letters are chosen, none is written yet
            other[0] += replay_letters(runs.config, topic, target, EVERY, prefix=runs.prefix).replayed
        return False

    monkeypatch.setattr(LetterTopic, "read", counted)
    with pytest.raises(FencedError, match="another replay of these letters ran meanwhile"):
        replay_letters(runs.configured(message_max_bytes=2_000), topic, target, EVERY, prefix=runs.prefix, stop=meanwhile)
    assert other == [3]
    assert len(runs.everything(target)) == 3


def test_a_purge_beside_a_replay_deletes_nothing_that_was_not_written(runs: Runs, factory: Command) -> None:
    target = runs.topic("in", partitions=2)
    topic = fill(runs, [(letter(), b"%d" % n) for n in range(2_000)])

    def purge(_: int) -> int:
        return int(factory("dead-letters", "purge", topic, "--yes").code)

    with ThreadPoolExecutor(3) as pool:
        replay = pool.submit(factory, "dead-letters", "replay", topic, "--to", target, "--rate", "2000")
        assert list(pool.map(purge, range(4))) == [0] * 4
        assert replay.result().code == 0
    assert Counter(r.value for r in runs.everything(target)) == {b"%d" % n: 1 for n in range(2_000)}
    assert factory("dead-letters", "purge", topic, "--yes").code == 0
    assert runs.everything(topic) == []


def test_letters_of_a_topic_that_was_made_again_are_new_ones(runs: Runs) -> None:
    target = runs.topic("in", partitions=2)
    topic = fill(runs, [(letter(), b"old")])
    assert replay_letters(runs.config, topic, target, EVERY, prefix=runs.prefix).replayed == 1
    recreate(runs.admin, topic, 2)
    put(runs, topic, [(letter(), b"new")])
    vouch(runs, topic)
    assert replay_letters(runs.config, topic, target, EVERY, prefix=runs.prefix).replayed == 1
    assert [r.value for r in replayed(runs, target)] == [b"new", b"old"]
    letters = LetterTopic(runs.config, topic, prefix=runs.prefix)
    assert purge_letters(letters).deleted == 1


def test_of_two_letters_about_one_event_the_last_is_replayed(runs: Runs) -> None:
    target = runs.topic("in", partitions=2)
    topic = fill(
        runs, [(letter("first", topic="x", partition=0, offset=5), b"old"), (letter("again", topic="x", partition=0, offset=5), b"new")]
    )
    result = replay_letters(runs.config, topic, target, EVERY, prefix=runs.prefix)
    assert (result.replayed, result.superseded) == (1, 1)
    assert [r.value for r in replayed(runs, target)] == [b"new"]
    with pytest.raises(ConfigurationError, match="were replayed before"):
        replay_letters(runs.config, topic, target, EVERY, prefix=runs.prefix)


def test_a_dry_run_writes_nothing(runs: Runs) -> None:
    target = runs.topic("in", partitions=2)
    topic = fill(runs, [(letter(), b"1")])
    assert replay_letters(runs.config, topic, target, EVERY, prefix=runs.prefix, dry_run=True).replayed == 1
    assert runs.everything(target) == []
    assert replay_letters(runs.config, topic, target, EVERY, prefix=runs.prefix).replayed == 1


def test_a_limit_takes_the_oldest(runs: Runs) -> None:
    target = runs.topic("in", partitions=2)
    topic = fill(runs, [(letter(), str(i).encode()) for i in range(5)])
    replay_letters(runs.config, topic, target, Selection(limit=2), prefix=runs.prefix)
    assert [r.value for r in replayed(runs, target)] == [b"0", b"1"]
    replay_letters(runs.config, topic, target, Selection(limit=2), prefix=runs.prefix)
    assert [r.value for r in replayed(runs, target)] == [b"0", b"1", b"2", b"3"]


def test_a_replay_that_was_stopped_goes_on_without_doubling(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replays, "_CHUNK", 2)
    target = runs.topic("in", partitions=2)
    topic = fill(runs, [(letter(), str(i).encode()) for i in range(5)])
    observed = Recorder()
    with pytest.raises(StoppedError):
        replay_letters(runs.config, topic, target, EVERY, prefix=runs.prefix, observer=observed, stop=lambda: bool(observed.commits))
    assert len(runs.everything(target)) == 2
    assert replay_letters(runs.config, topic, target, EVERY, prefix=runs.prefix).replayed == 3
    assert [r.value for r in replayed(runs, target)] == [b"0", b"1", b"2", b"3", b"4"]


def test_a_rate_is_kept_to_and_a_stop_while_it_waits_is_heard(runs: Runs) -> None:
    target = runs.topic("in", partitions=2)
    topic = fill(runs, [(letter(), str(i).encode()) for i in range(5)])
    observed = Recorder()
    began = time.monotonic()
    with pytest.raises(StoppedError):
        replay_letters(
            runs.config, topic, target, EVERY, prefix=runs.prefix, rate=0.01, observer=observed, stop=lambda: bool(observed.commits)
        )
    assert time.monotonic() - began < 60  # one event, and not the 100 seconds until the next
    assert len(runs.everything(target)) == 1
    began = time.monotonic()
    assert replay_letters(runs.config, topic, target, EVERY, prefix=runs.prefix, rate=2).replayed == 4
    assert time.monotonic() - began >= 1
    assert [r.value for r in replayed(runs, target)] == [b"0", b"1", b"2", b"3", b"4"]


@pytest.mark.parametrize("rate", [-1, float("nan"), float("inf")])
def test_a_rate_that_is_none_is_refused(runs: Runs, rate: float) -> None:
    topic = fill(runs, [(letter(), b"0")])
    with pytest.raises(ConfigurationError, match="expected events a second"):
        replay_letters(runs.config, topic, "other", EVERY, prefix=runs.prefix, rate=rate)


@pytest.mark.parametrize("failpoint", ["chunk.before-commit", "chunk.after-commit"])
def test_a_replay_that_was_killed_at_its_commit_is_complete_after_the_next_though_a_purge_came_between(
    runs: Runs, factory: Command, failpoint: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(followed, "_QUIET_SECONDS", 0.2)
    caplog.set_level("INFO", "factory_agents")
    target = runs.topic("in", partitions=2)
    topic = fill(runs, [(letter(), str(i).encode()) for i in range(5)])
    soon = ("-X", "transaction.timeout.ms=3000")  # a purge waits for what is open
    assert factory("dead-letters", "replay", topic, "--to", target, *soon, FACTORY_FAILPOINTS=f"{failpoint}=kill").code == -9
    purged = purge_letters(LetterTopic(runs.config, topic, prefix=runs.prefix))
    assert purged.deleted == (5 if failpoint == "chunk.after-commit" else 0)
    assert ("waiting for the transaction to end that is open since offset" in caplog.text) == (failpoint == "chunk.before-commit")
    again = factory("dead-letters", "replay", topic, "--to", target)
    assert again.code == (1 if failpoint == "chunk.after-commit" else 0)
    assert [r.value for r in replayed(runs, target)] == [b"0", b"1", b"2", b"3", b"4"]


def test_an_event_that_the_target_refuses_is_told_and_all_others_are_replayed(runs: Runs) -> None:
    target = runs.topic("in", partitions=2, max_message_bytes=1000)
    topic = fill(runs, [(letter(), b"1"), (letter(), os.urandom(2000)), (letter(), b"3"), (letter(), b"4")])
    result = replay_letters(runs.config, topic, target, EVERY, prefix=runs.prefix)
    assert (result.replayed, len(result.refused)) == (3, 1)
    assert f"{topic} 1@0: " in result.refused[0]
    assert [r.value for r in replayed(runs, target)] == [b"1", b"3", b"4"]


def test_letters_of_two_events_at_one_place_are_both_replayed(runs: Runs) -> None:
    """The topic was recreated, or the file overwritten, between them."""
    target = runs.topic("in", partitions=2)
    topic = fill(
        runs,
        [
            (letter(topic="x", topic_id="one", partition=0, offset=5), b"1"),
            (letter(topic="x", topic_id="two", partition=0, offset=5), b"2"),
            (letter(where="file:3", source="one"), b"3"),
            (letter(where="file:3", source="two"), b"4"),
        ],
    )
    result = replay_letters(runs.config, topic, target, EVERY, prefix=runs.prefix)
    assert (result.replayed, result.superseded) == (4, 0)
    assert [r.value for r in replayed(runs, target)] == [b"1", b"2", b"3", b"4"]


def test_of_two_mapped_tasks_each_has_its_own_letter_and_the_event_is_replayed_once(runs: Runs) -> None:
    """Both read it again where it is put back, so that once is enough for both."""
    source, out = runs.topic("in", partitions=2), runs.topic("out", partitions=2)
    runs.produce(source, [*events(4), b"{broken", *events(4, 4)])
    window = runs.window(source)
    results = [runs.transform(runs.run(window, out, origin=source, instance=i, mapped=2)) for i in range(2)]
    topic = f"{out}.dead"
    letters = list(select(runs, topic))
    assert [x.attempt for x in letters] == ["finished"] * 2
    assert len({x.writer for x in letters}) == 2, "neither counts as the other's"
    assert [len(runs.manifest(r.dead_letters)) for r in results] == [1, 1]
    found = replay_letters(runs.config, topic, source, EVERY, prefix=runs.prefix)
    assert (found.replayed, found.superseded) == (1, 1)
    assert [r.value for r in runs.everything(source)].count(b"{broken") == 2
    with pytest.raises(ConfigurationError, match="were replayed before"):
        replay_letters(runs.config, topic, source, Selection(since=max(x.written for x in letters)), prefix=runs.prefix)
    purged = purge_letters(LetterTopic(runs.config, topic, prefix=runs.prefix))
    assert (purged.deleted, purged.kept) == (2, 0)


def test_an_event_replayed_once_is_not_replayed_by_a_later_letter_about_it_that_alone_is_meant(runs: Runs) -> None:
    target = runs.topic("in", partitions=2)
    topic = fill(runs, [(letter(topic="x", partition=0, offset=5), b"old")])
    replay_letters(runs.config, topic, target, EVERY, prefix=runs.prefix)
    put(runs, topic, [(letter(topic="x", partition=0, offset=5), b"new")])
    vouch(runs, topic)
    since = max(x.written for x in select(runs, topic))
    with pytest.raises(ConfigurationError, match="replayed before; --again"):
        replay_letters(runs.config, topic, target, Selection(since=since), prefix=runs.prefix)
    assert replay_letters(runs.config, topic, target, Selection(since=since), prefix=runs.prefix, again=True).replayed == 1
    assert [r.value for r in replayed(runs, target)] == [b"new", b"old"]


def test_what_a_stage_reads_by_a_manifest_is_no_place_for_a_replay(runs: Runs) -> None:
    target, first = runs.topic("enriched", partitions=1), runs.topic("raw", partitions=1)
    topic = runs.topic("valid.dead", partitions=1)
    put(runs, topic, [(letter(topic=target, partition=0, offset=0), b"1")], partitions=1)
    vouch(runs, topic, read=Manifest(target, "id", "enrich/f/1"), origin=first)
    with pytest.raises(ConfigurationError, match=rf"it would never see these events there. .*--to {first}"):
        replay_letters(runs.config, topic, target, EVERY, prefix=runs.prefix)
    assert replay_letters(runs.config, topic, first, EVERY, prefix=runs.prefix).replayed == 1


def test_what_only_other_stages_read_and_by_a_manifest_is_no_place_either(runs: Runs) -> None:
    """In a pipeline that begins with a file, what was rejected late would wait in its first topic for ever."""
    raw, topic = runs.topic("raw", partitions=1), fill(runs, [(letter(), b"1")])
    vouch(runs, topic, "enrich", read=Manifest(raw, "id", "ingest/f/1"))
    with pytest.raises(ConfigurationError, match=r"stage 'enrich' reads only what the stage before it wrote .*into a new one"):
        replay_letters(runs.config, topic, raw, EVERY, prefix=runs.prefix, dry_run=True)
    vouch(runs, topic, "other", read=Manifest(raw, "id", ""), window="planned on the topic itself")
    assert replay_letters(runs.config, topic, raw, EVERY, prefix=runs.prefix).replayed == 1


def test_what_a_live_agent_reads_is_the_place_of_its_own_letters(runs: Runs) -> None:
    raw, topic = runs.topic("raw", partitions=1), runs.topic("out.dead", partitions=1)
    put(runs, topic, [(DeadLetter("e", "r", "g", "live", "a", "1", topic=raw), b"live")], "live/g/0", partitions=1)
    vouch(runs, topic, "enrich", read=Manifest(raw, "id", "ingest/f/1"))
    assert replay_letters(runs.config, topic, raw, EVERY, prefix=runs.prefix).replayed == 1


class TestAttempts:
    def test_of_unfinished_and_unknown_work_are_not_offered_unless_asked_for(self, runs: Runs) -> None:
        target, topic = runs.topic("in", partitions=2), runs.topic("out.dead", partitions=1)
        put(runs, topic, [(letter(), b"finished")], partitions=1)
        vouch(runs, topic)
        put(runs, topic, [(letter(stage="t"), b"unfinished")], partitions=1)
        progress = Progress(dead={0: (1, 2, 1)})
        record = StageRecord(pipeline="p", stage="t", window="w", shard=Shard(), fingerprint="f", generation=1, progress=progress)
        write_ledger(runs, record)
        put(runs, topic, [(letter(), b"unknown")], "s/f/0", partitions=1)
        put(runs, topic, [(DeadLetter("e", "r", "g", "live", "a", "1"), b"live")], "live/g/0", partitions=1)
        assert {(x.value, x.attempt) for x in select(runs, topic, Selection(attempt="all"))} == {
            (name.encode(), name) for name in ("finished", "unfinished", "unknown", "live")
        }
        letters = LetterTopic(runs.config, topic, prefix=runs.prefix)
        assert {x.value for x in letters.select(EVERY)} == {b"finished", b"unfinished", b"live"}
        assert letters.passed_over == 1
        result = replay_letters(runs.config, topic, target, EVERY, prefix=runs.prefix)
        assert (result.replayed, result.others) == (2, 2)
        assert {r.value for r in runs.everything(target)} == {b"finished", b"live"}
        assert replay_letters(runs.config, topic, target, Selection(attempt="unknown"), prefix=runs.prefix).replayed == 1

    def test_are_columns_and_filters_with_pipeline_and_window(self, runs: Runs) -> None:
        topic = fill(runs, [(letter(), b"1"), (letter(), b"2"), (letter(stage="other"), b"3")])
        groups = group_letters(select(runs, topic))
        assert [(g.pipeline, g.window, g.attempt, g.stage, g.count) for g in groups] == [
            ("p", "w", "finished", "s", 2),
            ("p", "w", "finished", "other", 1),
        ]
        assert list(select(runs, topic, Selection(pipeline="q"))) == []
        assert list(select(runs, topic, Selection(window="v"))) == []
        assert len(list(select(runs, topic, Selection(pipeline="p", window="w", attempt="finished")))) == 3
        with pytest.raises(ConfigurationError, match="expected one of finished, unfinished"):
            Selection(attempt="finnished")

    def test_that_were_made_again_over_the_same_records_are_not_offered_and_over_others_are(self, runs: Runs) -> None:
        """A letter of the first making is obsolete where the second one saw its event too."""
        out, target = runs.topic("out", partitions=1), runs.topic("target", partitions=1)
        topic = runs.topic("in", partitions=1)
        runs.produce(topic, [b"{first"])
        run = runs.run(runs.window(topic), out, max_rejected="100 %")
        runs.transform(run)
        runs.transform(msgspec.structs.replace(run, rerun="redo", run_id="again"))
        recreate(runs.admin, topic, 1)
        runs.produce(topic, [b"{second"])
        runs.transform(msgspec.structs.replace(run, window=runs.window(topic)))
        result = replay_letters(runs.config, f"{out}.dead", target, EVERY, prefix=runs.prefix)
        assert (result.replayed, result.others) == (2, 1)
        assert [r.value for r in replayed(runs, target)] == [b"{first", b"{second"]


class TestAWriterOfTheDeadLetterTopic:
    def test_who_puts_in_what_is_no_letter_stops_nothing(self, runs: Runs) -> None:
        target = runs.topic("in", partitions=2)
        topic = fill(runs, [(letter(), b"1"), (letter(), b"2")])
        runs.produce(topic, [b"{}", None])
        hostile = [b"", b"{", b"[]", b'{"error": 7}', b"\xff", b"[" * 100_000]
        raw.put(runs.bootstrap, topic, 0, raw.batch([raw.Raw(b"x", None, [(b"factory-dead-letter", value)]) for value in hostile]))
        raw.put(runs.bootstrap, topic, 1, raw.batch([raw.Raw(b"x", None, [(b"\xff", b""), (b"factory-dead-letter", b"{}")])]))
        letters = LetterTopic(runs.config, topic, prefix=runs.prefix)
        assert len(list(letters.select(EVERY))) == 2
        assert letters.foreign == 2 + len(hostile) + 1
        result = replay_letters(runs.config, topic, target, EVERY, prefix=runs.prefix)
        assert (result.replayed, result.foreign) == (2, letters.foreign)

    def test_who_forges_a_letter_about_a_genuine_ones_event_does_not_replace_it(self, runs: Runs) -> None:
        target = runs.topic("in", partitions=2)
        why = letter(topic="x", topic_id="i", partition=0, offset=5)
        topic = fill(runs, [(why, b"genuine")])
        put(runs, topic, [(why, b"forged")])
        put(runs, topic, [(why, b"forged")], "live/p/0")
        put(runs, topic, [(why, b"forged")], "s/f/2")
        result = replay_letters(runs.config, topic, target, EVERY, prefix=runs.prefix)
        assert (result.replayed, result.superseded, result.others) == (1, 0, 3)
        assert [r.value for r in runs.everything(target)] == [b"genuine"]

    def test_who_does_so_in_the_midst_of_genuine_ones_has_none_of_them_replayed(self, runs: Runs) -> None:
        target, topic = runs.topic("in", partitions=2), runs.topic("out.dead", partitions=1)
        put(runs, topic, [(letter(), b"genuine"), (letter(), b"forged")], partitions=1)
        manifest = Manifest(topic, runs.cluster.topic(topic).id, "s/f/1", (PartitionRange(0, 0, 2, 1),))
        vouch(runs, topic, result=StoredResult(dead_letters=manifest))
        with pytest.raises(ConfigurationError, match=r"the 2 matching letters are from attempts that failed .*unknown to the ledger"):
            replay_letters(runs.config, topic, target, EVERY, prefix=runs.prefix)


def test_a_letter_without_its_event_is_told_and_not_replayed(runs: Runs) -> None:
    target = runs.topic("in", partitions=2)
    pointer = letter(topic="x", partition=0, offset=5, size=40_000_000, sha256="0" * 64, prefix=b"xxx")
    topic = fill(runs, [(pointer, None), (letter(), b"1")])
    result = replay_letters(runs.config, topic, target, EVERY, prefix=runs.prefix)
    assert result.replayed == 1
    assert result.refused == (f"{topic} 0@0: the event (40,000,000 bytes) didn't fit a letter and stayed at x-0@5",)
    assert next(iter(select(runs, topic))).to_data(LetterReader(RegistryConfig.from_env))["why"]["prefix"] == "xxx"


def mended(text: bytes = b"") -> Any:
    """An agent that still rejects what is odd, filters what is 4, and makes two events of 6."""

    def mend(event: dict[str, Any]) -> Any:
        if event["n"] % 2:
            raise Reject(f"{event['n']} is odd", rule="odd")
        if event["n"] == 4:
            return None
        return [event, {**event, "twin": True}] if event["n"] == 6 else {**event, "mended": True}

    return agent(version="1")(mend).bind({})


class TestThroughAnAgent:
    def test_what_it_makes_is_written_and_what_it_rejects_stays_a_letter(self, runs: Runs) -> None:
        target = runs.topic("in", partitions=2)
        topic = fill(runs, [(letter(topic="x", partition=0, offset=n), b'{"n":%d}' % n) for n in range(8)] + [(letter(), b"{")])
        result = replay_letters(runs.config, topic, target, EVERY, prefix=runs.prefix, through=Through(mended()))
        assert (result.replayed, result.returned, result.stopped) == (4, 5, "")
        assert result.reasons == {"odd: # is odd": 4, "decode: not JSON: Input data was truncated": 1}
        written = replayed(runs, target)
        assert [r.value for r in written] == [
            b'{"n":0,"mended":true}', b'{"n":2,"mended":true}', b'{"n":6,"twin":true}', b'{"n":6}',
        ]  # fmt: skip
        assert all(r.headers["own"] == b"kept" and r.headers["factory-writer"].startswith(f"replay/{topic}-".encode()) for r in written)
        rest = replay_letters(runs.config, topic, target, EVERY, prefix=runs.prefix)
        assert (rest.replayed, rest.before) == (5, 4)

    def test_a_dry_run_says_what_would_come_back(self, runs: Runs) -> None:
        target = runs.topic("in", partitions=2)
        topic = fill(runs, [(letter(), b'{"n":%d}' % n) for n in range(5)])
        result = replay_letters(runs.config, topic, target, EVERY, prefix=runs.prefix, through=Through(mended()), dry_run=True)
        assert (result.replayed, result.returned, result.dry_run) == (3, 2, True)
        assert runs.everything(target) == []

    def test_nothing_more_is_written_once_too_many_come_back(self, runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(replays, "_CANARY", 4)
        monkeypatch.setattr(replays, "_THROUGH_CHUNK", 4)
        target = runs.topic("in", partitions=2)
        numbers = [0, 2, 8, 10, 12, 1, 3, 5, 14, 16, 18, 20]
        topic = fill(runs, [(letter(), b'{"n":%d}' % n) for n in numbers], partitions=1)
        canary = Through(mended(), stop_above=30)
        result = replay_letters(runs.config, topic, target, EVERY, prefix=runs.prefix, through=canary)
        assert (result.replayed, result.returned) == (4, 3)
        assert result.stopped == "3 of the first 8 events came back, more than 30 %"
        assert [r.value for r in runs.everything(target)] == [b'{"n":%d,"mended":true}' % n for n in numbers[:4]]
        again = replay_letters(runs.config, topic, target, EVERY, prefix=runs.prefix, through=Through(mended(), stop_above=80))
        assert (again.replayed, again.before, again.returned, again.stopped) == (5, 4, 3, "")

    def test_events_are_read_and_written_by_their_topics_codecs(self, runs: Runs) -> None:
        target, pairs = runs.topic("in", partitions=2), CodecRef("tests.support.codecs:Pairs")
        topic = fill(runs, [(letter(), b"n=2"), (letter(), b"n"), (letter(), b"n=3")])
        reading, writing = (open_codec(pairs, topic, writing=writing) for writing in (False, True))
        through = Through(mended(), lambda _: reading, writing)
        result = replay_letters(runs.config, topic, target, EVERY, prefix=runs.prefix, through=through)
        assert (result.replayed, result.returned) == (1, 2)
        (record,) = runs.everything(target)
        assert (record.value, record.headers["pairs"]) == (b"n=2;mended=True", b"1")

    def test_a_topic_that_any_stage_reads_by_a_manifest_is_refused(self, runs: Runs) -> None:
        target = runs.topic("valid", partitions=1)
        topic = fill(runs, [(letter(), b'{"n":2}')])
        vouch(runs, topic, "publish", read=Manifest(target, "id", "validate/f/1"))
        with pytest.raises(ConfigurationError, match="stage 'publish' reads only what the stage before it wrote"):
            replay_letters(runs.config, topic, target, EVERY, prefix=runs.prefix, through=Through(mended()))
