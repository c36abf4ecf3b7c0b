"""A live agent: exactly once in a consumer group, until asked to stop."""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import ANY

import pytest
from confluent_kafka import KafkaException, Producer, TopicPartition

from factory_agents.errors import AgentError, ConfigurationError, DataLossError, FencedError, UnavailableError, WindowError
from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.predecessors import signature
from factory_agents.kafka.writer import ChunkAbortedError
from factory_agents.protocol import CodecRef, Counts, transactional_id
from factory_agents.runtime.agents import AgentFunction, agent
from factory_agents.runtime.live import LiveAgent, LiveSettings, default_group, run_live
from factory_agents.runtime.session import RunContext
from tests.support.agents import mark
from tests.support.live_work import LiveWork, ending
from tests.support.observers import Recorder
from tests.support.raw_records import Raw, batch, put
from tests.support.runs import Runs, events
from tests.support.topics import recreate
from tests.support.waiting import wait_for


class Live(LiveWork):
    """A live agent in a thread of its own."""

    def __init__(self, runs: Runs, source: str, out: str, function: Callable[..., Any], config: KafkaConfig | None, **more: Any) -> None:
        self.observed = Recorder()
        transform = (function if isinstance(function, AgentFunction) else agent(version="1")(function)).bind({})
        settings = LiveSettings(source, out, **{"group": f"{runs.prefix}.group", "prefix": runs.prefix} | more)
        super().__init__(lambda stop: run_live(RunContext(config or runs.config, stop=stop, observer=self.observed), transform, settings))

    @property
    def commits(self) -> list[int]:
        return self.observed.commits


@contextmanager
def live(
    runs: Runs, source: str, out: str, function: Callable[..., Any] = mark, config: KafkaConfig | None = None, **more: Any
) -> Iterator[Live]:
    with ending(Live(runs, source, out, function, config, **more)) as running:
        yield running


def written(runs: Runs, out: str) -> list[Any]:
    return sorted(r.id for r in runs.everything(out))


def wait_written(runs: Runs, out: str, n: int) -> None:
    wait_for(lambda: sum(runs.cluster.stable_offset(out, range(runs.cluster.topic(out).partitions)).values()) >= n, f"{n} records in {out}")
    wait_for(lambda: len(runs.everything(out)) >= n, f"{n} records in {out}")


def test_what_is_there_and_what_arrives_is_handled_once_and_a_restart_goes_on(runs: Runs) -> None:
    source, out = runs.topic("in"), runs.topic("out")
    runs.produce(source, events(200))
    with live(runs, source, out) as first:
        wait_written(runs, out, 200)
        runs.produce(source, events(50, 200))
        wait_written(runs, out, 250)
        assert first.end().consumed == 250
    runs.produce(source, events(50, 250))
    with live(runs, source, out) as second:
        wait_written(runs, out, 300)
        counts = second.end()
    assert counts == Counts(consumed=50, forwarded=50, produced=50)
    assert written(runs, out) == list(range(300))
    assert {r.headers["factory-writer"] for r in runs.everything(out)} == {f"live/{runs.prefix}.group/0".encode()}


def test_a_header_whose_name_is_no_utf8_costs_that_record_its_headers_and_stops_nothing(runs: Runs) -> None:
    source, out = runs.topic("in", partitions=1), runs.topic("out", partitions=1)
    runs.topic("out.dead", partitions=1)
    put(runs.bootstrap, source, 0, batch([Raw(b'{"event_id": 0}', b"k", [(b"ok", b"1"), (b"\xff\xfe", b"2")])]))
    runs.produce(source, events(2, 1))
    with live(runs, source, out) as running:
        wait_written(runs, out, 2)
        assert running.end() == Counts(consumed=3, forwarded=2, rejected=1, produced=2)
    (letter,) = runs.everything(f"{out}.dead")
    assert (letter.key, letter.id, letter.dead_letter["rule"]) == (b"k", 0, "headers")
    assert "ok" not in letter.headers


def test_a_batch_that_expands_is_read_by_itself_and_what_no_agent_can_take_is_dead_lettered(runs: Runs) -> None:
    source, out = runs.topic("in", partitions=1), runs.topic("out", partitions=1)
    runs.topic("out.dead", partitions=1)
    runs.produce(source, events(2))
    put(runs.bootstrap, source, 0, batch([Raw(e.ljust(400_000)) for e in events(8, 2)], "zstd"), batch([Raw(b"x" * 40_000_000)], "zstd"))
    runs.produce(source, events(2, 10))
    with live(runs, source, out) as running:
        wait_written(runs, out, 12)
        assert running.end() == Counts(consumed=13, forwarded=12, rejected=1, produced=12)
    assert written(runs, out) == list(range(12))
    (letter,) = runs.everything(f"{out}.dead")
    assert (letter.value, letter.dead_letter["rule"], letter.dead_letter["size"]) == (None, "too-large", 40_000_000)


def test_a_batch_that_cannot_be_read_is_told_and_passed_over_where_its_loss_is_accepted(runs: Runs) -> None:
    source, out = runs.topic("in", partitions=1), runs.topic("out", partitions=1)
    runs.produce(source, events(2))
    put(runs.bootstrap, source, 0, batch([Raw(b"x" * 60_000_000)] * 2, "zstd"))
    runs.produce(source, events(2, 2))
    with live(runs, source, out) as running:
        running.wait()
        with pytest.raises(DataLossError, match="offsets 2 to 4 cannot be read"):
            running.end()
    with live(runs, source, out, accept_loss=True) as running:
        wait_written(runs, out, 4)
        assert running.end().lost == 2
    assert written(runs, out) == [0, 1, 2, 3]


def test_what_an_agent_loads_is_there_before_it_joins_its_group(runs: Runs) -> None:
    source, out = runs.topic("in"), runs.topic("out")
    loading, loaded = threading.Event(), threading.Event()

    def load() -> str:
        loading.set()
        loaded.wait(30)
        return "model"

    with live(runs, source, out, agent(version="1", load=load)(lambda event, model: event | {"by": model})):
        assert loading.wait(15), "nothing has come yet, and it is loaded"
        found = runs.cluster.group(f"{runs.prefix}.group")
        assert found is None or not found.members
        loaded.set()
        runs.produce(source, events(4))
        wait_written(runs, out, 4)


def test_an_agent_that_cannot_load_what_it_needs_does_not_join(runs: Runs) -> None:
    def load() -> None:
        raise OSError("no such model")

    with live(runs, runs.topic("in"), runs.topic("out"), agent(version="1", load=load)(lambda event, model: event)) as running:
        running.wait()
    with pytest.raises(AgentError, match="load, which loads what the agent needs, raised OSError: no such model"):
        running.end()


def test_an_agent_that_stops_in_the_middle_leaves_the_rest_to_the_next_start(runs: Runs) -> None:
    source, out = runs.topic("in", partitions=1), runs.topic("out")
    runs.produce(source, events(40))
    reached, released = threading.Event(), threading.Event()

    def busy(event: dict[str, Any]) -> dict[str, Any]:
        if event["event_id"] == 30:
            reached.set()
            released.wait(60)
        return event

    with live(runs, source, out, busy) as first:
        assert reached.wait(20)
        counts = first.end()
    released.set()
    assert counts.consumed < 40
    assert written(runs, out) == list(range(counts.consumed))
    with live(runs, source, out):
        wait_written(runs, out, 40)
    assert written(runs, out) == list(range(40))


def test_an_agent_whose_transaction_cannot_be_ended_leaves_its_group_all_the_same(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = runs.topic("in"), runs.topic("out")
    runs.produce(source, events(4))
    with live(runs, source, out) as running:
        wait_written(runs, out, 4)
        monkeypatch.setattr(LiveAgent, "_drop", lambda agent, reason: (_ for _ in ()).throw(UnavailableError("no broker answered")))
        with pytest.raises(UnavailableError):
            running.end()
        found = runs.cluster.group(f"{runs.prefix}.group")
        assert found is None or not found.members


def test_members_of_a_group_share_the_partitions_and_hand_them_over(runs: Runs) -> None:
    source, out = runs.topic("in", partitions=4), runs.topic("out")
    runs.produce(source, events(400))
    config = runs.configured(session_timeout_ms=6000)
    with live(runs, source, out, config=config) as first:
        wait_written(runs, out, 400)
        with live(runs, source, out, config=config) as second:
            total = 400
            deadline = time.monotonic() + 30
            while not second.commits and time.monotonic() < deadline:  # until the second one has its share
                runs.produce(source, events(40, total))
                total += 40
                wait_written(runs, out, total)
            assert second.commits
            runs.produce(source, events(400, total))
            first.end()
            total += 400
            wait_written(runs, out, total)
            second.end()
    assert written(runs, out) == list(range(total))


def test_a_refused_record_is_dead_lettered_and_does_not_come_back_for_ever(runs: Runs) -> None:
    source, out = runs.topic("in", partitions=1), runs.topic("out", max_message_bytes=5_000)
    runs.topic("out.dead", max_message_bytes=1_000_000)

    def growing(event: dict[str, Any]) -> dict[str, Any]:
        return event | {"pad": random.Random(1).randbytes(10_000).hex()} if event["event_id"] in (50, 51) else event

    runs.produce(source, events(100))
    with live(runs, source, out, growing) as running:
        wait_written(runs, out, 98)
        counts = running.end()
    assert (counts.consumed, counts.forwarded, counts.rejected) == (100, 98, 2)
    assert written(runs, out) == [n for n in range(100) if n not in (50, 51)]
    assert written(runs, f"{out}.dead") == [50, 51]


@pytest.mark.parametrize(
    ("limit", "later", "most_aborts"),
    [
        (20_000, 20_000, 5),
        (1_000_000, 20_000, 5),  # lowered while it runs
        pytest.param(35_000, 35_000, 30, marks=pytest.mark.soak),  # whether a record fits, compressed, only the broker can tell
    ],
)
def test_of_an_agent_that_is_not_deterministic_the_events_are_found_whose_outputs_are_refused(
    runs: Runs, caplog: pytest.LogCaptureFixture, limit: int, later: int, most_aborts: int
) -> None:
    """By where they came from: other bytes come each time."""
    source, out = runs.topic("in"), runs.topic("out", max_message_bytes=limit)
    runs.topic("out.dead")
    lowered = threading.Event()

    def other_each_time(event: dict[str, Any]) -> dict[str, Any]:
        if not lowered.is_set():
            runs.cluster.alter(out, {"max.message.bytes": str(later)})
            lowered.set()
        return event | {"pad": os.urandom(25_000 if event["event_id"] % 41 == 0 else 10).hex()}

    runs.produce(source, events(1000))
    with live(runs, source, out, other_each_time) as running:
        wait_written(runs, f"{out}.dead", 25)
        wait_written(runs, out, 975)
        counts = running.end()
    assert (counts.consumed, counts.forwarded, counts.rejected) == (1000, 975, 25)
    assert written(runs, out) == [n for n in range(1000) if n % 41]
    assert written(runs, f"{out}.dead") == list(range(0, 1000, 41))
    reasons = {r.dead_letter["error"] for r in runs.everything(f"{out}.dead")}
    assert all("refused by the broker" in reason and "too large" in reason for reason in reasons), reasons
    assert sum("chunk aborted" in record.message for record in caplog.records) <= most_aborts


def test_a_dead_letter_that_is_refused_ends_the_agent(runs: Runs) -> None:
    source, out = runs.topic("in", partitions=1), runs.topic("out")
    runs.topic("out.dead", max_message_bytes=1_000)
    runs.produce(source, [*events(5), b"x" + random.Random(1).randbytes(10_000).hex().encode()])
    with live(runs, source, out) as running:
        running.wait()
        with pytest.raises(ConfigurationError, match=r"max.message.bytes"):
            running.end()


def test_an_agent_slower_than_the_transaction_timeout_goes_on(runs: Runs) -> None:
    source, out = runs.topic("in", partitions=1), runs.topic("out")
    runs.produce(source, events(40))

    def slow(event: dict[str, Any]) -> dict[str, Any]:
        if event["event_id"] == 30:
            runs.outlast_a_transaction()
        return event

    with live(runs, source, out, slow, runs.configured(transaction_timeout_ms=1000)) as running:
        wait_written(runs, out, 40)
        assert running.end().consumed == 40
    assert written(runs, out) == list(range(40))


def test_partitions_added_while_it_runs_are_read_too(runs: Runs) -> None:
    from confluent_kafka.admin import NewPartitions

    source, out = runs.topic("in", partitions=2), runs.topic("out", partitions=2)
    runs.produce(source, events(20))
    with live(runs, source, out) as running:
        wait_written(runs, out, 20)
        runs.admin.create_partitions([NewPartitions(source, 4)])[source].result()
        wait_for(lambda: runs.cluster.topic(source).partitions == 4, "the new partitions")
        for p in (2, 3):
            runs.produce(source, events(10, p * 10), partition=p)
        wait_written(runs, out, 40)
        running.end()
    assert written(runs, out) == list(range(40))


def test_poison_is_dead_lettered_with_where_it_was(runs: Runs) -> None:
    source, out = runs.topic("in", partitions=1), runs.topic("out")
    runs.topic("out.dead")
    runs.produce(source, [*events(2), b"{broken"])
    with live(runs, source, out) as running:
        wait_written(runs, f"{out}.dead", 1)
        counts = running.end()
    assert (counts.forwarded, counts.rejected) == (2, 1)
    (letter,) = runs.everything(f"{out}.dead")
    assert letter.value == b"{broken"
    assert (letter.dead_letter["topic"], letter.dead_letter["offset"]) == (source, 2)


def test_an_agent_that_judges_whole_windows_cannot_run_live(runs: Runs) -> None:
    transform = agent(version="1")(mark).bind({})
    transform.stateful = True
    with pytest.raises(WindowError, match="cannot run live"):
        run_live(RunContext(runs.config), transform, LiveSettings("a", "b", "g"))


def test_the_groups_default_name_says_agent_and_topic() -> None:
    assert default_group("enrich", "raw_events") == "factory.enrich.raw_events"


def test_the_seeds_smoke_test(runs: Runs) -> None:
    """``{"event_id":"test-123","payload":"sample"}`` written by anybody appears enriched."""
    from factory_agents.enrich import build

    source, out = runs.topic("raw_events"), runs.topic("enriched_events")
    stop = threading.Event()
    work = threading.Thread(
        target=lambda: run_live(
            RunContext(runs.config, stop=stop.is_set),
            build({}),
            LiveSettings(source, out, group=f"{runs.prefix}.g", prefix=runs.prefix),
        )
    )
    work.start()
    try:
        runs.produce(source, [b'{"event_id":"test-123","payload":"sample"}'])
        wait_written(runs, out, 1)
    finally:
        stop.set()
        work.join(30)
    assert [json.loads(r.value or b"") for r in runs.everything(out)] == [{"event_id": "test-123", "payload": "sample", "enriched": True}]


class Steady:
    """Events written steadily from a thread of their own, until the block ends."""

    def __init__(self, runs: Runs, source: str) -> None:
        self.total = 0
        self._runs, self._source = runs, source
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._write)

    def _write(self) -> None:
        while not self._end.wait(0.02):
            self._runs.produce(self._source, events(8, self.total))
            self.total += 8

    def __enter__(self) -> Steady:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()


Break = Callable[[Any, set[int]], None]


def _abort_the_commit(live: Any, partitions: set[int]) -> None:
    def refuse(*_: object) -> None:
        live.writer.send_offsets = send
        raise ChunkAbortedError(UnavailableError("the coordinator was away for a moment"), refused=False)

    send, live.writer.send_offsets = live.writer.send_offsets, refuse
    LiveAgent._on_revoke(live, partitions)


def _fence_the_commit(live: Any, partitions: set[int]) -> None:
    def refuse(*_: object) -> None:
        live.writer.commit = commit
        raise FencedError("the transaction outlived its timeout")

    commit, live.writer.commit = live.writer.commit, refuse
    LiveAgent._on_revoke(live, partitions)


def _lose_them(live: Any, partitions: set[int]) -> None:
    live._on_lost(partitions)


@pytest.mark.slow
@pytest.mark.parametrize("break_it", [_abort_the_commit, _fence_the_commit, _lose_them])
def test_a_chunk_that_is_dropped_when_some_partitions_go_is_read_again_on_those_that_stay(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, break_it: Break
) -> None:
    broken: list[set[int]] = []

    class Fragile(LiveAgent):
        def _on_revoke(self, partitions: set[int]) -> None:
            if not broken and self.positions.keys() - partitions:
                broken.append(self.positions.keys() - partitions)
                break_it(self, partitions)
            else:
                super()._on_revoke(partitions)

    monkeypatch.setattr("factory_agents.runtime.live.LiveAgent", Fragile)
    monkeypatch.setattr("factory_agents.runtime.live._COMMIT_SECONDS", 1.0)  # there is always something that is not committed yet
    source, out = runs.topic("in"), runs.topic("out")
    config = runs.configured(session_timeout_ms=6000, heartbeat_interval_ms=500)
    with Steady(runs, source) as steady, live(runs, source, out, config=config) as first:
        wait_written(runs, out, 100)
        while not broken:
            with live(runs, source, out, config=config) as second:
                wait_for(lambda: second.commits, "the second one's share")
    with live(runs, source, out, config=config):
        wait_written(runs, out, steady.total)
        first.end()
    assert written(runs, out) == list(range(steady.total))


def test_a_commit_that_fails_for_good_when_partitions_go_ends_the_agent_and_the_next_start_goes_on(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = threading.Event()

    def fail(live: Any, partitions: set[int]) -> None:
        if live.positions and not failed.is_set():
            failed.set()

            def refuse(*_: object) -> None:
                raise UnavailableError("the broker is away")

            monkeypatch.setattr(live.writer, "flush", refuse)
        LiveAgent._on_revoke(live, partitions)

    class Fragile(LiveAgent):
        def _on_revoke(self, partitions: set[int]) -> None:
            fail(self, partitions)

    monkeypatch.setattr("factory_agents.runtime.live.LiveAgent", Fragile)
    monkeypatch.setattr("factory_agents.runtime.live._COMMIT_SECONDS", 1.0)
    source, out = runs.topic("in"), runs.topic("out")
    config = runs.configured(session_timeout_ms=6000, heartbeat_interval_ms=500)
    with Steady(runs, source) as steady, live(runs, source, out, config=config) as first:
        wait_written(runs, out, 100)
        while not failed.is_set():
            with live(runs, source, out, config=config) as second:
                wait_for(lambda: second.commits, "the second one's share")
        first.wait()
        with pytest.raises(UnavailableError, match="the broker is away"):
            first.end()
    with live(runs, source, out, config=config):
        wait_written(runs, out, steady.total)
    assert written(runs, out) == list(range(steady.total))


def test_a_group_that_goes_on_to_write_to_another_topic_says_so_once(runs: Runs, caplog: pytest.LogCaptureFixture) -> None:
    """The topic may have been changed on purpose, or two agents share a group, each of which gets a part of the records."""
    source, out, other = runs.topic("in", partitions=4), runs.topic("out"), runs.topic("other")
    told = []
    for target in (out, out, other, other):
        runs.produce(source, events(40))
        before = len(runs.everything(target))
        with live(runs, source, target):
            wait_written(runs, target, before + 40)
        told.append([said for said in caplog.messages if "goes on to write to" in said])
        caplog.clear()
    assert told == [[], [], [ANY], []]
    assert f"wrote to topic {out!r}, and goes on to write to {other!r}" in told[2][0]


class TestATopicThatIsRecreated:
    """Of 100 old events and 300 new ones none of the new may be passed over."""

    @pytest.mark.parametrize("size", [100, 300])
    def test_while_it_is_read_is_an_error_and_the_next_start_reads_all_of_it(self, runs: Runs, size: int) -> None:
        source, out = runs.topic("in", partitions=2), runs.topic("out", partitions=2)
        runs.produce(source, events(100))
        config = runs.configured(topic_metadata_refresh_interval_ms=500)
        with live(runs, source, out, config=config) as running:
            wait_written(runs, out, 100)
            recreate(runs.admin, source, 2)
            runs.produce(source, events(size, 100))
            running.wait()
            with pytest.raises(DataLossError, match=r"deleted and created again|does not exist any more"):
                running.end()
        with live(runs, source, out, accept_loss=True):
            wait_written(runs, out, 100 + size)
        assert written(runs, out) == list(range(100 + size))

    def test_is_gone_over_to_where_that_is_accepted(self, runs: Runs) -> None:
        source, out = runs.topic("in", partitions=2), runs.topic("out", partitions=2)
        runs.produce(source, events(100))
        config = runs.configured(topic_metadata_refresh_interval_ms=500)
        with live(runs, source, out, config=config, accept_loss=True) as running:
            wait_written(runs, out, 100)
            recreate(runs.admin, source, 2)
            runs.produce(source, events(300, 100))
            wait_written(runs, out, 400)
            running.end()
        assert written(runs, out) == list(range(400))

    @pytest.mark.parametrize("size", [25, 50, 100])
    def test_under_a_position_that_was_committed_late_is_an_error_until_it_is_accepted(self, runs: Runs, size: int) -> None:
        """A member that commits just after the topic was replaced puts the old topic's position on the new one."""
        source, out, group = runs.topic("in", partitions=1), runs.topic("out", partitions=1), f"{runs.prefix}.group"
        runs.produce(source, events(50))
        with live(runs, source, out):
            wait_written(runs, out, 50)
        (position,) = committed(runs, group, source)
        recreate(runs.admin, source, 1)
        runs.produce(source, events(size, 50))
        commit(runs, group, [position])
        with live(runs, source, out) as refused:
            refused.wait()
            with pytest.raises(DataLossError, match=r"deleted and created again.*--accept-loss"):
                refused.end()
        with live(runs, source, out, accept_loss=True):
            wait_written(runs, out, 50 + size)
        with live(runs, source, out) as again:  # once accepted, it is the new topic's position that stands
            runs.produce(source, events(10, 50 + size))
            wait_written(runs, out, 60 + size)
            assert again.end().consumed == 10
        assert written(runs, out) == list(range(60 + size))


class TestRetention:
    def test_that_was_faster_than_the_agent_is_an_error_until_it_is_accepted_and_counted(self, runs: Runs) -> None:
        source, out = runs.topic("in", partitions=2), runs.topic("out", partitions=2)
        runs.produce(source, events(20))
        with live(runs, source, out):
            wait_written(runs, out, 20)
        runs.produce(source, events(40, 20))
        runs.admin.delete_records([TopicPartition(source, 0, 25)])[TopicPartition(source, 0)].result()
        with live(runs, source, out) as refused:
            refused.wait()
            with pytest.raises(DataLossError, match=r"-0: offsets 10 to 25 were deleted by retention.*--accept-loss"):
                refused.end()
        with live(runs, source, out, accept_loss=True) as running:
            wait_written(runs, out, 45)
            counts = running.end()
        assert (counts.consumed, counts.lost) == (25, 15)
        assert written(runs, out) == sorted([*range(20), *range(21, 60, 2), *range(50, 60, 2)])

    def test_that_deletes_what_is_being_read_is_told_too(self, runs: Runs) -> None:
        source, out = runs.topic("in", partitions=1), runs.topic("out", partitions=1)
        runs.produce(source, [e + b" " * 1000 for e in events(2000)])
        reached, go_on = threading.Event(), threading.Event()

        def slow(event: dict[str, Any]) -> dict[str, Any]:
            if event["event_id"] == 20:
                reached.set()
                go_on.wait(30)
            return event

        config = runs.configured(queued_max_messages_kbytes=16, fetch_message_max_bytes=16_000, queued_min_messages=1)
        with live(runs, source, out, slow, config) as running:
            assert reached.wait(30)
            runs.admin.delete_records([TopicPartition(source, 0, 1500)])[TopicPartition(source, 0)].result()
            go_on.set()
            running.wait()
            with pytest.raises(DataLossError, match="deleted by retention"):
                running.end()
        with live(runs, source, out, accept_loss=True) as again:
            wait_for(lambda: 1999 in written(runs, out), "the rest")
            counts = again.end()
        done = written(runs, out)
        assert len(done) == len(set(done))
        assert len(done) + counts.lost == 2000


def committed(runs: Runs, group: str, topic: str) -> list[TopicPartition]:
    reader = runs.config.consumer(group_id=group)
    try:
        return list(reader.committed([TopicPartition(topic, p) for p in range(runs.cluster.topic(topic).partitions)], timeout=10))
    finally:
        reader.close()


def commit(runs: Runs, group: str, positions: list[TopicPartition]) -> None:
    reader = runs.config.consumer(group_id=group)
    try:
        reader.commit(offsets=positions, asynchronous=False)
    finally:
        reader.close()


def test_events_of_another_codec_are_read_and_written_live(runs: Runs) -> None:
    source, out = runs.topic("in"), runs.topic("out")
    runs.produce(source, [b"event_id=1;text=a", b"no pair", b"event_id=2;text=b"])
    codec = CodecRef("tests.support.codecs:Pairs")
    with live(runs, source, out, input_codec=codec, output_codec=codec) as running:
        wait_written(runs, out, 2)
        wait_for(lambda: runs.cluster.find(f"{out}.dead") is not None and runs.everything(f"{out}.dead"), "the dead letter")
        assert running.end().rejected == 1
    assert sorted(r.value or b"" for r in runs.everything(out)) == [b"event_id=1;text=a;seen=True", b"event_id=2;text=b;seen=True"]
    assert [r.value for r in runs.everything(f"{out}.dead")] == [b"no pair"]


def slow(seconds: float, calls: list[int]) -> Callable[[dict[str, Any]], Any]:
    def handle(event: dict[str, Any]) -> Any:
        calls.append(event["event_id"])
        time.sleep(seconds if event["event_id"] < 10 else 0)
        return event

    return handle


def test_an_agent_that_takes_longer_than_the_longest_poll_keeps_its_place_and_is_called_once(runs: Runs) -> None:
    source, out = runs.topic("in", partitions=2), runs.topic("out", partitions=2)
    config = KafkaConfig(runs.bootstrap, {"max.poll.interval.ms": "6000", "session.timeout.ms": "6000"})
    calls: list[int] = []
    runs.produce(source, events(1))
    with live(runs, source, out, slow(8, calls), config=config) as running:
        wait_written(runs, out, 1)
        assert running.end().consumed == 1
    assert calls == [0]
    assert len(running.observed.of("rebalanced")) <= 2


def test_an_outage_that_shows_after_a_long_call_is_waited_out_too(runs: Runs) -> None:
    """What was paused during the call is read again."""
    source, out = runs.topic("in", partitions=2), runs.topic("out", partitions=2)
    calls: list[int] = []

    def handle(event: dict[str, Any]) -> Any:
        if event["event_id"] >= 20:
            calls.append(event["event_id"])
            time.sleep(2 if len(calls) == 1 else 0)
            if len(calls) <= 6:
                raise ConnectionError("refused")
        return event

    with live(runs, source, out, handle) as running:
        runs.produce(source, events(20))
        wait_written(runs, out, 20)
        runs.produce(source, events(20, 20))
        wait_written(runs, out, 40)
        running.end()
    assert written(runs, out) == list(range(40))


def test_a_member_that_joins_while_another_is_busy_is_served_soon(runs: Runs) -> None:
    source, out = runs.topic("in", partitions=2), runs.topic("out", partitions=2)
    at_work, go_on = threading.Event(), threading.Event()
    mine: list[int] = []

    def handle(event: dict[str, Any]) -> Any:
        at_work.set()
        go_on.wait(60)
        return event

    runs.produce(source, events(1))
    with live(runs, source, out, handle) as busy:
        assert at_work.wait(30)
        with live(runs, source, out, slow(0, mine)) as other:
            wait_for(lambda: any(other.observed.of("rebalanced")), "the other to have a partition")
            for partition in range(2):
                runs.produce(source, events(1, 10 + partition), partition=partition)
            wait_for(lambda: len(mine) >= 1, "the other to handle what is its own")
            go_on.set()
            wait_written(runs, out, 3)
            other.end()
        busy.end()
    assert written(runs, out) == [0, 10, 11]


def test_what_is_in_hand_of_a_partition_that_goes_at_the_end_of_a_call_is_left_to_its_new_owner(runs: Runs) -> None:
    """The batch held the partition's end, too, which is no position of a member that has the partition no more."""
    source, out = runs.topic("in", partitions=2), runs.topic("out", partitions=2)
    calls: list[int] = []

    def handle(event: dict[str, Any]) -> dict[str, Any]:
        calls.append(event["event_id"])
        if event["event_id"] >= 100 and len(calls) == 41:
            wait_for(lambda: len(busy.observed.of("rebalanced")[-1]) == 1, "a partition to go", 30)
        return event

    runs.produce(source, events(40))  # so that larger batches are taken
    with live(runs, source, out, handle) as busy:
        wait_written(runs, out, 40)
        runs.produce(source, events(2, 100))  # one to each partition
        wait_for(lambda: len(calls) > 40, "the call")
        with live(runs, source, out, lambda event: event) as other:
            wait_for(lambda: len(runs.everything(out)) >= 42, "both events")
            other.end()
        busy.end()
    assert written(runs, out) == [*range(40), 100, 101]


def test_what_a_member_that_died_left_open_hides_no_outputs_until_its_timeout(runs: Runs) -> None:
    source, out, group = runs.topic("in", partitions=1), runs.topic("out", partitions=1), f"{runs.prefix}.group"
    id_ = transactional_id(runs.prefix, "live", group, "dead")
    dead = Producer({"bootstrap.servers": runs.bootstrap, "transactional.id": id_, "transaction.timeout.ms": 60_000, "log_level": 0})
    dead.init_transactions(30)
    dead.begin_transaction()
    dead.produce(out, b"{}", partition=0)
    assert dead.flush(60) == 0
    position = f"topic-id:{runs.cluster.topic(source).id}{signature('dead', 'a-member-that-was')}"
    commit(runs, group, [TopicPartition(source, 0, 0, position)])
    runs.produce(source, events(10))
    with live(runs, source, out) as running:
        wait_written(runs, out, 10)
        assert running.end().consumed == 10
    with pytest.raises(KafkaException):
        dead.commit_transaction(30)
