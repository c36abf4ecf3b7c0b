"""A reader that dies, hangs or loses its connection: every change is in the topic once, and all of them are."""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest

from factory_agents.errors import ConfigurationError, UnavailableError
from factory_agents.kafka.writer import TransactionalWriter
from factory_agents.protocol import AgentResult
from tests.support.replication import Source
from tests.support.waiting import wait_for

CHUNK = 16
MOVED = 9


def replayed(source: Source, *results: AgentResult) -> dict[int, Any]:
    """The rows that the records of windows make, one window after the other; fails where a change is there twice."""
    rows: dict[int, Any] = {}
    seen: set[tuple[Any, ...]] = set()
    for result in results:
        events = [(json.loads(r.key or b""), r.event) for r in source.records(result) if r.value is not None]
        events.sort(key=lambda pair: (pair[1]["source"]["lsn"], pair[1]["op"] != "d"))
        for key, event in events:
            change = (event["source"]["lsn"], key["id"], event["op"])
            assert change not in seen, f"{change} is there twice"
            seen.add(change)
            rows.pop(key["id"], None)
            if event["after"] is not None:
                rows[key["id"]] = event["after"]
    return rows


def table_now(source: Source) -> dict[int, Any]:
    return {id_: {"id": id_, "a": a, "b": b} for id_, a, b in source.run("SELECT id, a, b FROM {}")}


def change(source: Source) -> None:
    """A large transaction, in chunks of which it is cut, and small ones."""
    with source.connection.transaction():
        source.run("INSERT INTO {} SELECT g, g, 'new' FROM generate_series(101, 150) g")
        source.run("UPDATE {} SET a = a + 1 WHERE id % 3 = 0")
        source.run("DELETE FROM {} WHERE id % 7 = 0")
    for i in range(MOVED):
        source.run(f"UPDATE {{}} SET id = id + 1000, b = 'moved' WHERE id = {106 + i + (i >= 6)}")


POINTS = [
    pytest.param("start.after-init=kill@1", marks=pytest.mark.soak),
    pytest.param("replicate.announced=kill@1", marks=pytest.mark.soak),
    "replicate.slot-made=kill@1",
    pytest.param("replicate.put=kill@1", marks=pytest.mark.soak),
    "replicate.put=kill@23",
    pytest.param("chunk.before-ledger=kill@3", marks=pytest.mark.soak),
    "chunk.before-commit=kill@3",
    pytest.param("chunk.after-commit=kill@3", marks=pytest.mark.soak),
    pytest.param("replicate.committed=kill@4", marks=pytest.mark.soak),
    pytest.param("chunk.after-commit=kill@6", marks=pytest.mark.soak),
]


@pytest.mark.parametrize("point", POINTS)
def test_killed_anywhere_it_is_gone_on_with(replicated: Source, point: str) -> None:
    replicated.run("INSERT INTO {} SELECT g, g, 'old' FROM generate_series(1, 60) g")
    first = replicated.window(chunk_records=CHUNK)
    replicated.runs.attempt(first, point).wait()
    done = replicated.replicate(first)
    change(replicated)
    second = replicated.window(chunk_records=CHUNK)
    replicated.runs.attempt(second, point).wait()
    again = replicated.replicate(second)
    assert replayed(replicated, done, again) == table_now(replicated)
    events = [r for r in replicated.records(again) if r.value is not None]
    assert len(events) == again.counts.consumed + MOVED, "a row that moves is a delete and an insert"


def test_killed_again_and_again_in_one_window(replicated: Source) -> None:
    replicated.run("INSERT INTO {} SELECT g, g, 'old' FROM generate_series(1, 60) g")
    done = replicated.replicate()
    change(replicated)
    run = replicated.window(chunk_records=4)
    for n in range(4):
        replicated.runs.killed(run, f"{'chunk.before-commit' if n % 2 else 'replicate.committed'}=kill@2")
    assert replayed(replicated, done, replicated.replicate(run)) == table_now(replicated)


def test_hung_and_overtaken_it_neither_writes_nor_confirms_anything_more(replicated: Source) -> None:
    replicated.run("INSERT INTO {} SELECT g, g, 'old' FROM generate_series(1, 60) g")
    done = replicated.replicate()
    change(replicated)
    run = replicated.window(chunk_records=CHUNK)
    zombie = replicated.runs.attempt(run, "replicate.put=stop@40")
    zombie.wait_stopped()
    again = replicated.replicate(run)
    confirmed = replicated.confirmed()
    zombie.signal(signal.SIGCONT)
    assert zombie.wait() == 75, zombie.log
    assert "another" in zombie.log or "fenced" in zombie.log.lower()
    assert replayed(replicated, done, again) == table_now(replicated)
    assert replicated.confirmed() == confirmed
    replicated.run("INSERT INTO {} VALUES (2000, 1, 'after')")
    assert replicated.replicate().counts.consumed == 1


def cut_off(replicated: Source, at: int, chunk: int) -> AgentResult:
    """A window whose reader loses its connections after so many changes."""
    attempt = replicated.runs.attempt(replicated.window(chunk_records=chunk), f"replicate.put=stop@{at}")
    attempt.wait_stopped()
    replicated.connection.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = current_database()"
        " AND application_name = 'factory-replicate'"
    )
    attempt.signal(signal.SIGCONT)
    assert attempt.wait() == 0, attempt.log
    assert "the database is gone, trying again" in attempt.log
    return attempt.result


def test_that_loses_its_connection_goes_on_by_itself(replicated: Source) -> None:
    replicated.run("INSERT INTO {} SELECT g, g, 'old' FROM generate_series(1, 60) g")
    done = replicated.replicate()
    change(replicated)
    changed = cut_off(replicated, 40, CHUNK)
    assert replayed(replicated, done, changed) == table_now(replicated)


@pytest.mark.soak
def test_that_loses_its_connection_amid_a_copy_or_a_transaction_goes_on_where_it_was(replicated: Source) -> None:
    """Of more than the connection's buffers hold: what they hold is read after the loss."""
    replicated.run("INSERT INTO {} SELECT g, g, repeat('x', 20000) FROM generate_series(2001, 3200) g")
    copied = cut_off(replicated, 300, 200)
    with replicated.connection.transaction():
        replicated.run("UPDATE {} SET a = a + 1")
        replicated.run("DELETE FROM {} WHERE id % 7 = 0")
    changed = cut_off(replicated, 300, 200)
    assert replayed(replicated, copied, changed) == table_now(replicated)
    assert copied.counts.produced == len(replicated.records(copied))


def test_an_outage_of_the_broker_is_told_as_one_and_not_waited_for_as_the_databases(
    replicated: Source, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    replicated.run("INSERT INTO {} VALUES (1, 1, 'x')")

    def refuse(*_: object) -> None:
        raise UnavailableError("writing to changes-0: no broker answers")

    with monkeypatch.context() as patched:
        patched.setattr(TransactionalWriter, "send", refuse)
        with pytest.raises(UnavailableError, match="no broker answers"):
            replicated.replicate(run := replicated.window())
    assert "the database is gone" not in caplog.text
    assert replicated.replicate(run).counts.consumed == 1


class TestLive:
    def test_changes_are_there_at_once_until_it_is_stopped_and_the_next_one_goes_on(self, replicated: Source) -> None:
        replicated.run("INSERT INTO {} VALUES (1, 1, 'x')")
        live = replicated.of(None)
        reader = replicated.runs.attempt(live)
        wait_for(lambda: len(replicated.runs.everything(replicated.topic)) == 1, "the row to be there")
        replicated.run("INSERT INTO {} VALUES (2, 2, 'y')")
        wait_for(lambda: len(replicated.runs.everything(replicated.topic)) == 2, "the change to be there")
        reader.signal(signal.SIGTERM)
        assert reader.wait() == 0, reader.log
        replicated.run("DELETE FROM {} WHERE id = 1")
        second = replicated.runs.attempt(live)
        wait_for(lambda: len(replicated.runs.everything(replicated.topic)) == 4, "the delete to be there")
        second.signal(signal.SIGKILL)
        second.wait()
        assert [r.event["op"] for r in replicated.runs.everything(replicated.topic) if r.value].count("d") == 1

    def test_an_idle_table_keeps_no_log(self, replicated: Source) -> None:
        replicated.replicate()
        reader = replicated.runs.attempt(replicated.of(None))
        before = replicated.confirmed()
        wait_for(lambda: replicated.run("SELECT active FROM pg_replication_slots WHERE database = current_database()") == [(True,)], "it")
        replicated.connection.execute("CREATE TABLE elsewhere AS SELECT g, repeat('x', 1000) AS t FROM generate_series(1, 40000) g")
        wait_for(lambda: replicated.confirmed() > before + 30_000_000, "the slot to go on", patience=60)
        assert replicated.runs.everything(replicated.topic) == []
        reader.signal(signal.SIGTERM)
        assert reader.wait() == 0, reader.log


def test_a_slot_that_holds_back_more_than_is_allowed_stops_the_reader(replicated: Source) -> None:
    replicated.replicate()
    replicated.connection.execute("CREATE TABLE elsewhere AS SELECT g, repeat('x', 1000) AS t FROM generate_series(1, 2000) g")
    replicated.params["max_lag"] = "1 MB"
    run = replicated.window()
    with pytest.raises(ConfigurationError, match="holds back"):
        replicated.replicate(run)
    replicated.params["max_lag"] = "1 GB"
    assert replicated.replicate(replicated.of(run.interval)).report is not None
