"""Publishing to a real PostgreSQL: every promise of the sink, and what it does when the database doesn't play along."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import secrets
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from confluent_kafka import Message
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from psycopg import sql

from factory_agents import failpoints
from factory_agents.errors import ConfigurationError, FactoryError, FencedError, SinkError, UnavailableError
from factory_agents.protocol import Shard
from factory_agents.publish import build
from factory_agents.runtime.agents import Claim, SinkOutcome
from factory_agents.sinks.postgres import way
from factory_agents.sinks.postgres.ledger import Ledger, Taken
from factory_agents.sinks.postgres.session import explain

SCHEMA = {
    "type": "object",
    "required": ["id"],
    "properties": {
        "id": {"type": "string"},
        "version": {"type": ["integer", "null"]},
        "at": {"type": ["string", "null"], "format": "date-time"},
        "value": {"type": ["string", "null"]},
    },
}
CONTRACT: dict[str, Any] = {"name": "events", "id": "id", "time": "at", "version_field": "version", "schema": SCHEMA}
ALL_TYPES: dict[str, Any] = {
    "name": "all",
    "id": "id",
    "columns": {
        "id": "text",
        "text": "text",
        "bigint": "bigint",
        "double": "double",
        "boolean": "boolean",
        "timestamptz": "timestamptz",
        "json": "json",
        "numeric": "numeric",
        "date": "date",
    },
}
W1, W2, W3 = (f"2026-11-01T0{hour}:00:00.000Z/2026-11-01T0{hour + 1}:00:00.000Z p" for hour in range(3))

WHOLE = Shard()


def event(id_: str, value: str | None = "x", version: int | None = None, at: str | None = None) -> dict[str, Any]:
    return {"id": id_, "value": value, "version": version, "at": at}


def record(e: dict[str, Any], partition: int, offset: int) -> Message:
    return Message(value=json.dumps(e).encode(), partition=partition, offset=offset)


def at(events: Sequence[dict[str, Any]], partition: int = 0) -> list[Message]:
    return [record(e, partition, offset) for offset, e in enumerate(events)]


def write_and_commit(sink: Any, rows: Sequence[Message]) -> SinkOutcome:
    assert sink.write(rows) == {}
    outcome: SinkOutcome = sink.commit(rejected=0)
    return outcome


def wait_for(condition: Callable[[], Any], seconds: float = 20) -> None:
    pause, deadline = threading.Event(), time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition never came"
        pause.wait(0.005)


@contextmanager
def holding_proxy(url: str) -> Iterator[tuple[str, threading.Event]]:
    """A way to the database, and what makes its first connection hold all further answers."""
    parts = urlsplit(url)
    hold, listener = threading.Event(), socket.create_server(("127.0.0.1", 0))
    opened = contextlib.ExitStack()

    def forward(source: socket.socket, target: socket.socket, held: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if not held.is_set():
                    target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)

    def serve() -> None:
        held = hold
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = opened.enter_context(socket.create_connection((parts.hostname, parts.port)))
                opened.enter_context(client)
                threading.Thread(target=forward, args=(client, server, threading.Event()), daemon=True).start()
                threading.Thread(target=forward, args=(server, client, held), daemon=True).start()
                held = threading.Event()

    threading.Thread(target=serve, daemon=True).start()
    yield url.replace(f":{parts.port}/", f":{listener.getsockname()[1]}/"), hold
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    opened.close()


class Bench:
    """One table of this test's own, and publishers to it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.name = f"t_{secrets.token_hex(4)}"
        self.pipeline = f"p_{secrets.token_hex(4)}"
        self.contract: dict[str, Any] | None = CONTRACT
        self.admin = psycopg.connect(url, autocommit=True)
        self.generation = 0
        self.sinks: list[Any] = []

    def close(self) -> None:
        for sink in self.sinks:
            sink.close()
        self.admin.close()

    def sink(self, **params: Any) -> Any:
        sink = build({"table": self.name, "contract": self.contract, "lock_timeout": 20} | params)
        self.sinks.append(sink)
        return sink

    def claim(self, window: str = W1, shard: Shard = WHOLE, **changes: Any) -> Claim:
        self.generation += 1
        values = {"plan": "plan", "fingerprint": "f", "input_generation": 1, "generation": self.generation} | changes
        return Claim(self.pipeline, "publish", window, shard, **values)

    def publish(self, rows: Sequence[Message], window: str = W1, shard: Shard = WHOLE, **changes: Any) -> SinkOutcome:
        """All of it; without another fingerprint each publication is a new one."""
        claim = self.claim(window, shard, **({"fingerprint": f"f{self.generation}"} | changes))
        sink = self.sink()
        try:
            outcome = sink.claim(claim)
            if outcome is None:
                for start in range(0, len(rows), 3):
                    assert sink.write(rows[start : start + 3]) == {}
                outcome = sink.commit(rejected=0)
        finally:
            sink.close()
        return outcome

    def query(self, template: str, **parts: Any) -> list[tuple[Any, ...]]:
        query = sql.SQL(template).format(t=sql.Identifier(self.name), **{k: sql.Literal(v) for k, v in parts.items()})
        return self.admin.execute(query).fetchall()

    def rows(self) -> dict[str, str]:
        return dict(self.query("SELECT id, value FROM {t} ORDER BY id"))

    def content(self) -> list[tuple[Any, ...]]:
        return self.query("SELECT id, value, version, at::text FROM {t} ORDER BY id")

    def backends(self) -> list[int]:
        name = f"factory {self.pipeline}/publish"
        return [r[0] for r in self.admin.execute("SELECT pid FROM pg_stat_activity WHERE application_name = %s", [name]).fetchall()]

    def terminate(self) -> None:
        for pid in self.backends():
            self.admin.execute("SELECT pg_terminate_backend(%s)", [pid])
        wait_for(lambda: not self.backends())

    def waits_for_lock(self) -> bool:
        name = f"factory {self.pipeline}/publish"
        query = "SELECT 1 FROM pg_stat_activity WHERE application_name = %s AND wait_event_type = 'Lock'"
        return self.admin.execute(query, [name]).fetchone() is not None


@pytest.fixture
def bench(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setenv("DATABASE_URL", database_url)
    bench = Bench(database_url)
    yield bench
    bench.close()


class SmallDisk:
    """A tablespace of 1 MB, on a file system of its own."""

    def __init__(self, place: Path, name: str) -> None:
        self.place = place
        self.name = name

    def mount(self, options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", self.place], capture_output=True, text=True, check=False)

    def grow(self) -> None:
        assert self.mount("remount,size=64m").returncode == 0


@pytest.fixture
def small_disk(bench: Bench) -> Iterator[SmallDisk]:
    [(data, pid)] = bench.admin.execute("SELECT current_setting('data_directory'), pg_backend_pid()").fetchall()
    server = Path(f"/proc/{pid}")
    if os.geteuid() != 0 or not server.exists():
        pytest.skip("a full disk needs root, to mount a small file system beside the server's files")
    name = f"small_{secrets.token_hex(4)}"
    disk = SmallDisk(Path(data).parent / name, name)
    disk.place.mkdir()
    mounted = disk.mount(f"size=1m,uid={server.stat().st_uid},mode=700")
    if mounted.returncode:
        disk.place.rmdir()
        pytest.skip(f"a full disk needs a small file system, and mount refuses: {mounted.stderr.strip()}")
    try:
        bench.admin.execute(sql.SQL("CREATE TABLESPACE {} LOCATION {}").format(sql.Identifier(name), sql.Literal(str(disk.place))))
        yield disk
        bench.admin.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(sql.Identifier(bench.name)))
        bench.admin.execute(sql.SQL("DROP TABLESPACE {}").format(sql.Identifier(name)))
    finally:
        subprocess.run(["umount", "--lazy", disk.place], check=True)
        disk.place.rmdir()


@pytest.fixture(autouse=True)
def _a_chunk_a_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that go straight into the table do so in many chunks, small as these windows are."""
    monkeypatch.setattr(way, "_CHUNK_BYTES", 1)


class TestOneWindow:
    def test_rows_are_there_once_they_are_committed_and_not_before(self, bench: Bench) -> None:
        sink = bench.sink()
        assert sink.claim(bench.claim()) is None
        sink.write(at([event("a", "1"), event("b", "2")]))
        assert bench.rows() == {}
        outcome = sink.commit(rejected=3)
        assert (outcome.rows, outcome.written, outcome.duplicates, outcome.older, outcome.removed, outcome.rejected) == (2, 2, 0, 0, 0, 3)
        assert bench.rows() == {"a": "1", "b": "2"}

    def test_the_same_again_is_answered_from_the_ledger(self, bench: Bench) -> None:
        first = bench.publish(at([event("a")]), fingerprint="f")
        again = bench.sink().claim(bench.claim(fingerprint="f"))
        assert again == replace(first, reused=True)

    def test_a_redo_or_a_later_epoch_or_another_fingerprint_is_done_anew_and_changes_nothing_visible(self, bench: Bench) -> None:
        rows = at([event("a", "1", 1, "2026-11-01T00:00:00Z"), event("b", "2")])
        bench.publish(rows, fingerprint="f")
        before = bench.content()
        for changes in ({"reuse": False}, {"epoch": 1}, {"fingerprint": "g"}):
            outcome = bench.publish(rows, **({"fingerprint": "f"} | changes))
            assert (outcome.reused, outcome.written, outcome.removed) == (False, 2, 0), changes
            assert bench.content() == before
        assert bench.sink().claim(bench.claim(fingerprint="g", epoch=0)).reused

    def test_a_new_generation_removes_what_the_window_no_longer_produces(self, bench: Bench) -> None:
        bench.publish(at([event("a", "1"), event("b", "2")]))
        bench.publish(at([event("c", "3")]), window=W2)
        outcome = bench.publish(at([event("a", "changed")]), input_generation=2)
        assert (outcome.written, outcome.removed) == (1, 1)
        assert bench.rows() == {"a": "changed", "c": "3"}

    def test_an_older_manifest_is_refused_by_both_generations(self, bench: Bench) -> None:
        bench.publish(at([event("a", "new")]), input_generation=7)
        for shard in (Shard(), Shard(1, 3)):
            with pytest.raises(SinkError, match=r"generation 7.*older generation 5"):
                bench.publish(at([event("a", "old")]), input_generation=5, shard=shard, plan="other")
        assert bench.rows() == {"a": "new"}

    def test_an_empty_window_is_committed_and_empties_what_it_had(self, bench: Bench) -> None:
        assert bench.publish([]).rows == 0
        bench.publish(at([event("a")]))
        assert bench.publish([]).removed == 1
        assert bench.rows() == {}

    def test_a_claim_may_be_made_again_by_the_same_sink(self, bench: Bench) -> None:
        sink = bench.sink()
        sink.claim(bench.claim())
        sink.write(at([event("lost")]))
        sink.claim(bench.claim())
        sink.write(at([event("kept")]))
        sink.commit(rejected=0)
        assert list(bench.rows()) == ["kept"]

    def test_without_a_claim_nothing_is_written(self, bench: Bench) -> None:
        with pytest.raises(SinkError, match="claim first"):
            bench.sink().write(at([event("a")]))


class TestTheNewestWins:
    def test_duplicates_in_a_window_go_by_version_then_time_then_coordinates(self, bench: Bench) -> None:
        rows = [
            *at([event("v", "v1", 1, "2026-11-01T09:00:00Z"), event("v", "v2", 2, "2026-11-01T01:00:00Z"), event("v", "null", None, None)]),
            *at([event("t", "late", 1, "2026-11-01T09:00:00Z"), event("t", "early", 1, "2026-11-01T01:00:00Z"), event("t", "null", 1)]),
            *[record(event("c", "p1o0"), 1, 0), record(event("c", "p0o9"), 0, 9), record(event("c", "p1o1"), 1, 1)],
        ]
        outcome = bench.publish(rows)
        assert (outcome.rows, outcome.written, outcome.duplicates, outcome.older) == (9, 3, 6, 0)
        assert bench.rows() == {"v": "v2", "t": "late", "c": "p1o1"}

    def test_what_the_table_has_newer_stays_and_is_counted(self, bench: Bench) -> None:
        bench.publish(at([event("v", "kept", 2), event("t", "kept", 1, "2026-11-01T09:00:00Z"), event("w", "kept")]), window=W2)
        older = [event("v", "old", 1, "2027-01-01T00:00:00Z"), event("t", "old", 1, "2026-11-01T08:00:00Z")]
        older += [event("w", "old"), event("w", "old")]
        outcome = bench.publish(at([*older, event("n", "new")]), window=W1)
        assert (outcome.rows, outcome.written, outcome.duplicates, outcome.older) == (5, 1, 1, 3)
        assert bench.rows() == {"v": "kept", "t": "kept", "w": "kept", "n": "new"}

    def test_with_all_equal_the_later_window_wins_whatever_came_first(self, bench: Bench) -> None:
        for order in ((W1, W2), (W2, W1)):
            for window in order:
                bench.publish(at([event("k", window)]), window=window)
            assert bench.rows() == {"k": W2}

    def test_between_shards_of_one_window_the_partition_decides_whoever_commits_last(self, bench: Bench) -> None:
        for order in ((0, 1), (1, 0)):
            for i in order:
                bench.publish(at([event("k", f"partition {i}")], partition=i), shard=Shard(i, 2))
            assert bench.rows() == {"k": "partition 1"}

    @pytest.mark.parametrize(
        ("type_", "least", "more", "most"),
        [
            ("numeric", "9", 10, "10.5"),
            ("bigint", 9, 10, 11),
            ("double", 9.5, 10, 1e3),
            ("text", "1.10", "1.9", "2"),
            ("date", "2026-09-01", "2026-10-01", "2026-11-01"),
            ("boolean", None, False, True),
        ],
    )
    def test_a_version_is_compared_as_its_column_is(self, bench: Bench, type_: str, least: Any, more: Any, most: Any) -> None:
        bench.contract = {"name": "n", "id": "id", "version_field": "v", "columns": {"id": "text", "value": "text", "v": type_}}
        bench.publish(at([{"id": "a", "v": more, "value": "more"}, {"id": "a", "v": least, "value": "least"}]), window=W2)
        assert bench.publish(at([{"id": "a", "v": least, "value": "least"}]), window=W1).older == 1
        assert bench.rows() == {"a": "more"}
        bench.publish(at([{"id": "a", "v": most, "value": "most"}]), window=W1)
        assert bench.rows() == {"a": "most"}

    def test_a_key_is_compared_as_its_column_is(self, bench: Bench) -> None:
        bench.contract = {"name": "n", "key": ["n", "id"], "columns": {"n": "numeric", "id": "text", "value": "text"}}
        outcome = bench.publish(at([{"n": "1.0", "id": "", "value": "first"}, {"n": 1, "id": "", "value": "second"}]))
        assert (outcome.written, outcome.duplicates) == (1, 1)
        assert bench.rows() == {"": "second"}

    def test_a_new_generation_of_the_window_replaces_even_by_a_lower_version(self, bench: Bench) -> None:
        bench.publish(at([event("k", "first", 9)]))
        bench.publish(at([event("k", "second", 1)]), input_generation=2)
        assert bench.rows() == {"k": "second"}


class TestStraightIn:
    """New keys go straight into the table; one that isn't new makes all of the window be merged, and nobody sees the difference."""

    @pytest.fixture
    def merges(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        seen: list[str] = []

        class Seen(way.Staged):
            def __init__(self, connection: psycopg.Connection[Any], table: Any) -> None:
                seen.append(table.text)
                super().__init__(connection, table)

        monkeypatch.setattr("factory_agents.sinks.postgres.merge.Staged", Seen)
        return seen

    def test_a_window_of_new_keys_needs_no_merge(self, bench: Bench, merges: list[str]) -> None:
        for window, ids in ((W1, "abcdefgh"), (W2, "ijklmnop")):
            outcome = bench.publish(at([event(i, i) for i in ids]), window=window)
            assert (outcome.rows, outcome.written, outcome.duplicates, outcome.older) == (8, 8, 0, 0)
        assert merges == []
        assert bench.rows() == {i: i for i in "abcdefghijklmnop"}

    @pytest.mark.parametrize("place", range(8))
    def test_a_key_that_is_there_or_comes_twice_is_decided_as_ever(self, bench: Bench, merges: list[str], place: int) -> None:
        bench.publish(at([event("there", "newer", 5), event("behind", "older", 1)]), window=W2)
        rows = [event(f"k{i}", "x", 1) for i in range(8)]
        rows[place:place] = [event("there", "late", 4), event("behind", "wins", 2), event("k0", "twice", 2), event("k7", "lower", 0)]
        outcome = bench.publish(at(rows), window=W1)
        assert merges == [f"public.{bench.name}"]
        assert (outcome.rows, outcome.written, outcome.duplicates, outcome.older) == (12, 9, 2, 1)
        assert bench.rows() == {f"k{i}": "x" for i in range(1, 8)} | {"k0": "twice", "there": "newer", "behind": "wins"}
        assert bench.query("SELECT count(DISTINCT _factory_publication), count(DISTINCT _factory_offset) FROM {t}") == [(2, 10)]

    def test_a_window_that_met_keys_twice_lets_the_next_one_be_merged_from_the_start(self, bench: Bench, merges: list[str]) -> None:
        bench.publish(at([event("a"), event("a")]), window=W1)
        bench.publish(at([event("b")]), window=W2)
        bench.publish(at([event("c")]), window=W3)
        assert len(merges) == 2

    def test_every_type_lands_alike_on_both_ways(self, bench: Bench, merges: list[str]) -> None:
        bench.contract = ALL_TYPES
        full = {
            "text": "é😀\\",
            "bigint": -(2**63),
            "double": 0.1,
            "boolean": True,
            "timestamptz": "2026-11-01T04:00:00.123456+05:30",
            "json": {"a": ["\\u0000", None, 'x"\n']},
            "numeric": "-12345678901234567890.1234567890",
            "date": "2026-02-28",
        }
        rows = at([{"id": "full"} | full, {"id": "empty"}])
        columns = ", ".join(f'"{c}"::text' for c in ALL_TYPES["columns"] if c != "id")
        bench.publish(rows)
        straight = bench.query(f"SELECT {columns} FROM {{t}} ORDER BY id")
        assert merges == []
        bench.query("DELETE FROM {t} RETURNING 1")
        bench.publish(rows)
        assert len(merges) == 1
        assert bench.query(f"SELECT {columns} FROM {{t}} ORDER BY id") == straight
        assert straight[1][4:7] == (
            "2026-10-31 22:30:00.123456+00",
            '{"a": ["\\\\u0000", null, "x\\"\\n"]}',
            "-12345678901234567890.1234567890",
        )

    def test_two_windows_that_hold_keys_of_each_other_both_land(self, bench: Bench, merges: list[str]) -> None:
        bench.publish([], window=W3)
        first, second = bench.sink(), bench.sink()
        first.claim(bench.claim(window=W1))
        second.claim(bench.claim(window=W2))
        first.write(at([event("a", "first")]))
        second.write(at([event("b", "second")]))
        first.write(at([event("c", "first")]))  # ends the chunk before: a is in the table, and held
        second.write(at([event("d", "second")]))
        assert not bench.waits_for_lock()

        def end(sink: Any, other: str, offset: int) -> SinkOutcome:
            sink.write([record(event(other, other * 2), 0, offset)])
            outcome: SinkOutcome = sink.commit(rejected=0)
            return outcome

        with ThreadPoolExecutor(2) as pool:
            ends = [pool.submit(end, first, "b", 7), pool.submit(end, second, "a", 7)]
            assert sum(e.result().rows for e in ends) == 6
        assert merges
        assert bench.rows() == {"a": "aa", "b": "second", "c": "first", "d": "second"}

    def test_what_is_published_anew_leaves_no_numbers_behind(self, bench: Bench) -> None:
        for _ in range(3):
            bench.publish(at([event("a")]))
        sink = bench.sink()
        sink.claim(bench.claim(fingerprint="abandoned"))
        bench.publish(at([event("a")]))
        query = (
            "SELECT count(*), max(publication) = (SELECT _factory_publication FROM {t}) FROM factory_publications WHERE table_name = {name}"
        )
        assert bench.query(query, name=bench.name) == [(1, True)]


class TestShards:
    def test_shards_in_parallel_all_land(self, bench: Bench) -> None:
        def one(i: int) -> SinkOutcome:
            sink = build({"table": bench.name, "contract": CONTRACT})
            try:
                sink.claim(Claim(bench.pipeline, "publish", W1, Shard(i, 8), "plan", "f", 1, 1))
                keys = [f"k{n}" for n in range(300)]
                random.Random(i).shuffle(keys)
                sink.write([record(event(k, str(i)), i, n) for n, k in enumerate(keys)])
                return sink.commit(rejected=0)
            finally:
                sink.close()

        with ThreadPoolExecutor(8) as pool:
            outcomes = list(pool.map(one, range(8)))
        assert all(o.rows == o.written + o.duplicates + o.older == 300 for o in outcomes)
        assert set(bench.rows().values()) == {"7"}
        assert len(bench.rows()) == 300

    @pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1), (3, 2), (2, 4)])
    def test_another_number_of_shards_replaces_all_when_its_last_one_is_there(self, bench: Bench, before: int, after: int) -> None:
        for i in range(before):
            bench.publish(at([event(f"k{i}"), event(f"gone{i}")], partition=i), shard=Shard(i, before), plan="one")
        removed = []
        for i in range(after):
            rows = at([event(f"k{n}") for n in range(before) if n % after == i], partition=i)
            removed.append(bench.publish(rows, shard=Shard(i, after), plan="two", input_generation=2).removed)
            assert {f"k{i}" for i in range(before)} <= set(bench.rows()), "no reader misses a row on its way between shards"
        assert removed == [0] * (after - 1) + [before]
        assert set(bench.rows()) == {f"k{i}" for i in range(before)}

    def test_one_shard_done_again_removes_its_own_at_once(self, bench: Bench) -> None:
        for i in range(3):
            bench.publish(at([event(f"a{i}"), event(f"b{i}")], partition=i), shard=Shard(i, 3))
        assert bench.publish(at([event("a1")], partition=1), shard=Shard(1, 3)).removed == 1
        assert set(bench.rows()) == {"a0", "b0", "a1", "a2", "b2"}

    def test_the_last_two_shards_at_once_sweep_all_the_same(self, bench: Bench) -> None:
        bench.publish(at([event("a"), event("gone")]))
        sinks = [bench.sink(), bench.sink()]
        for i, sink in enumerate(sinks):
            sink.claim(bench.claim(shard=Shard(i, 2), plan="two", input_generation=2))
            sink.write(at([event("a" if i == 0 else "b")], partition=i))
        with ThreadPoolExecutor(2) as pool:
            outcomes = list(pool.map(lambda s: s.commit(rejected=0), sinks))
        assert sum(o.removed for o in outcomes) == 1
        assert set(bench.rows()) == {"a", "b"}

    def test_two_stages_of_one_pipeline_keep_each_others_rows(self, bench: Bench) -> None:
        for stage in ("clicks", "views", "clicks", "views"):
            sink = bench.sink()
            sink.claim(Claim(bench.pipeline, stage, W1, Shard(), "plan", secrets.token_hex(4), 1, 1))
            sink.write(at([event(stage)]))
            sink.commit(rejected=0)
        assert set(bench.rows()) == {"clicks", "views"}


class TestFencing:
    def test_a_zombie_is_fenced_at_its_commit(self, bench: Bench) -> None:
        zombie, newer = bench.sink(), bench.sink()
        zombie.claim(bench.claim(fingerprint="old"))
        zombie.write(at([event("a", "zombie"), event("b", "zombie")]))
        newer.claim(bench.claim(fingerprint="new"))
        newer.write(at([event("a", "newer")]))
        with pytest.raises(FencedError, match="newer attempt took over"):
            zombie.commit(rejected=0)
        newer.commit(rejected=0)
        assert bench.rows() == {"a": "newer"}
        with pytest.raises(SinkError):
            zombie.commit(rejected=0)

    def test_a_zombie_after_the_newer_ones_commit_is_fenced_too(self, bench: Bench) -> None:
        zombie = bench.sink()
        zombie.claim(bench.claim(fingerprint="old"))
        zombie.write(at([event("z")]))
        bench.publish(at([event("a")]))
        with pytest.raises(FencedError):
            zombie.commit(rejected=0)
        assert list(bench.rows()) == ["a"]

    def test_a_zombie_of_another_shard_count_is_fenced(self, bench: Bench) -> None:
        zombie = bench.sink()
        zombie.claim(bench.claim(shard=Shard(3, 4), plan="four"))
        zombie.write(at([event("z")], partition=3))
        bench.publish(at([event("a")]), plan="one", input_generation=2)
        with pytest.raises(FencedError):
            zombie.commit(rejected=0)
        assert list(bench.rows()) == ["a"]

    def test_two_publishers_of_one_window_leave_one_whole_publication(self, bench: Bench) -> None:
        bench.publish([])
        started = threading.Barrier(4)

        def one(i: int) -> str:
            sink = build({"table": bench.name, "contract": CONTRACT})
            try:
                started.wait()
                sink.claim(Claim(bench.pipeline, "publish", W1, Shard(), "plan", f"mine {i}", 1, 100 + i))
                sink.write(at([event(f"k{n}", str(i)) for n in range(50)]))
                sink.commit(rejected=0)
                return "committed"
            except FencedError:
                return "fenced"
            finally:
                sink.close()

        with ThreadPoolExecutor(4) as pool:
            ends = list(pool.map(one, range(4)))
        assert "committed" in ends
        assert len(set(bench.rows().values())) == 1
        assert len(bench.rows()) == 50

    def test_a_zombie_holds_no_key_against_its_successor(self, bench: Bench) -> None:
        zombie, newer = bench.sink(), bench.sink(lock_timeout=5)
        zombie.claim(bench.claim(fingerprint="old"))
        for key in "abc":
            zombie.write(at([event(key, "zombie")]))
        newer.claim(bench.claim(fingerprint="new"))
        newer.write(at([event("a", "newer"), event("b", "newer")]))
        newer.commit(rejected=0)
        with pytest.raises(FencedError, match="newer attempt took over"):
            write_and_commit(zombie, at([event("d", "zombie")]))
        assert bench.rows() == {"a": "newer", "b": "newer"}

    def test_a_zombie_that_stands_still_before_its_commit_is_ended(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        zombie, arrived, go = bench.sink(), threading.Event(), threading.Event()
        zombie.claim(bench.claim(fingerprint="old"))
        zombie.write(at([event("a", "zombie")]))

        def hit(name: str) -> None:
            if name == "postgres.before-commit" and not arrived.is_set():
                arrived.set()
                assert go.wait(20)

        monkeypatch.setattr(failpoints, "hit", hit)
        with ThreadPoolExecutor(1) as pool:
            end = pool.submit(zombie.commit, rejected=0)
            assert arrived.wait(20)
            bench.publish(at([event("a", "newer")]))
            go.set()
            with pytest.raises((FencedError, UnavailableError)):
                end.result()
        assert bench.rows() == {"a": "newer"}

    def test_a_session_that_a_claim_under_way_has_ended_waits_to_be_told_so(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        zombie, newer = bench.sink(), bench.sink()
        zombie.claim(bench.claim(fingerprint="old"))
        zombie.write(at([event("a", "zombie")]))
        take, taken, go = Ledger.take, threading.Event(), threading.Event()

        def slowly(ledger: Ledger) -> Taken:
            outcome = take(ledger)
            taken.set()
            assert go.wait(30)
            return outcome

        monkeypatch.setattr(Ledger, "take", slowly)
        with ThreadPoolExecutor(2) as pool:
            claiming = pool.submit(newer.claim, bench.claim(fingerprint="new"))
            assert taken.wait(30)
            ending = pool.submit(zombie.commit, rejected=0)
            wait_for(bench.waits_for_lock)
            go.set()
            with pytest.raises(FencedError):
                ending.result()
            assert claiming.result() is None

    def test_another_windows_publisher_is_left_alone(self, bench: Bench) -> None:
        sinks = [(bench.sink(), w, s) for w, s in ((W1, Shard(0, 2)), (W1, Shard(1, 2)), (W2, WHOLE))]
        for i, (sink, window, shard) in enumerate(sinks):
            sink.claim(bench.claim(window, shard))
            sink.write(at([event(f"k{i}")], partition=shard.index))
        assert [sink.commit(rejected=0).written for sink, _, _ in sinks] == [1, 1, 1]


class TestTheDatabaseFails:
    @pytest.mark.parametrize("step", ["claimed", "copying", "written", "changing-over", "before-merge", "before-commit"])
    def test_a_connection_dropped_before_the_commit_leaves_nothing_and_a_retry_succeeds(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch, step: str
    ) -> None:
        bench.publish(at([event("before")]), window=W2)
        monkeypatch.setattr(failpoints, "hit", lambda name: bench.terminate() if name == f"postgres.{step}" else None)
        sink = bench.sink()

        def publish() -> None:
            sink.claim(bench.claim())
            sink.write(at([event("a"), event("b")]))
            sink.write(at([event("c")]))
            if step == "changing-over":
                sink.write(at([event("before", "again")]))
            if step == "written":
                bench.terminate()
            sink.commit(rejected=0)

        with pytest.raises(UnavailableError) as caught:
            publish()
        assert caught.value.retriable
        assert list(bench.rows()) == ["before"]
        monkeypatch.undo()
        monkeypatch.setenv("DATABASE_URL", bench.url)
        assert bench.publish(at([event("a"), event("b")])).written == 2
        assert set(bench.rows()) == {"a", "b", "before"}

    @pytest.mark.parametrize("made", [True, False])
    def test_a_lost_answer_to_the_commit_is_asked_of_the_ledger(self, bench: Bench, monkeypatch: pytest.MonkeyPatch, made: bool) -> None:
        sink = bench.sink()
        sink.claim(bench.claim())
        sink.write(at([event("a")]))
        real = psycopg.Connection.commit

        def commit(connection: psycopg.Connection[Any]) -> None:
            if made:
                real(connection)
            monkeypatch.undo()
            monkeypatch.setenv("DATABASE_URL", bench.url)
            bench.terminate()
            connection.execute("SELECT 1")

        monkeypatch.setattr(psycopg.Connection, "commit", commit)
        if made:
            assert sink.commit(rejected=0).written == 1
            assert list(bench.rows()) == ["a"]
        else:
            with pytest.raises(UnavailableError, match="was not made"):
                sink.commit(rejected=0)
            assert bench.rows() == {}

    def test_an_answer_held_on_its_way_is_given_up_and_asked_for_anew(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        with holding_proxy(bench.url) as (url, hold):
            monkeypatch.setenv("DATABASE_URL", url)
            monkeypatch.setattr("factory_agents.sinks.postgres.sink._ON_THE_WAY", 0.2)
            monkeypatch.setattr(failpoints, "hit", lambda name: hold.set() if name == "postgres.before-commit" else None)
            sink = bench.sink(statement_timeout=0.2)
            sink.claim(bench.claim())
            sink.write(at([event("a")]))
            assert sink.commit(rejected=0).written == 1
        assert list(bench.rows()) == ["a"]

    def test_a_deadlock_ends_whoever_is_chosen_and_the_publication_lands(self, bench: Bench) -> None:
        bench.publish(at([event("a", "0"), event("b", "0")]), window=W1)
        sink = bench.sink()
        sink.claim(bench.claim(window=W2))
        sink.write(at([event("a", "1"), event("b", "1")]))
        table = sql.Identifier(bench.name)
        with psycopg.connect(bench.url) as other, ThreadPoolExecutor(1) as pool:
            other.execute(sql.SQL("UPDATE {} SET value = 'other' WHERE id = 'b'").format(table))
            committing = pool.submit(sink.commit, rejected=0)
            wait_for(bench.waits_for_lock)
            with contextlib.suppress(psycopg.errors.DeadlockDetected):  # mostly the publisher, which waits longer, gives way
                other.execute(sql.SQL("UPDATE {} SET value = 'other' WHERE id = 'a'").format(table))
            other.rollback()
            assert committing.result().written == 2
        assert bench.rows() == {"a": "1", "b": "1"}

    @pytest.mark.parametrize("code", ["40001", "40P01"])
    @pytest.mark.parametrize("again", [False, True], ids=["straight in", "merged"])
    def test_a_transaction_that_the_server_gives_up_is_tried_again(self, bench: Bench, code: str, again: bool) -> None:
        bench.publish(at([event("a", "before")]) if again else [])
        bench.admin.execute(f"""
            CREATE SEQUENCE {bench.name}_tries;
            CREATE FUNCTION {bench.name}_fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                IF nextval('{bench.name}_tries') <= 2 THEN RAISE 'in the way' USING ERRCODE = '{code}'; END IF;
                RETURN new;
            END $$;
            CREATE TRIGGER t BEFORE INSERT ON {bench.name} FOR EACH ROW EXECUTE FUNCTION {bench.name}_fail();
        """)
        assert bench.publish(at([event("a", "1"), event("b", "2")]), window=W1 if again else W2).written == 2
        assert bench.rows() == {"a": "1", "b": "2"}

    def test_a_full_disk_says_so_and_a_retry_after_it_lands_all(self, bench: Bench, small_disk: SmallDisk) -> None:
        columns = f"id text PRIMARY KEY USING INDEX TABLESPACE {small_disk.name}, value text, version int8, at timestamptz"
        bench.admin.execute(f"CREATE TABLE {bench.name} ({columns}) TABLESPACE {small_disk.name}")
        rows = at([event(f"k{i}", secrets.token_hex(2000)) for i in range(1000)])
        sink = bench.sink()
        sink.claim(bench.claim())
        with pytest.raises(UnavailableError, match="disk is full") as caught:
            write_and_commit(sink, rows)
        assert caught.value.retriable
        assert bench.rows() == {}
        small_disk.grow()
        sink.claim(bench.claim())
        assert write_and_commit(sink, rows).written == 1000

    def test_a_table_locked_for_a_while_is_waited_for(self, bench: Bench) -> None:
        bench.publish(at([event("a")]))
        table = sql.Identifier(bench.name)
        for window, key in ((W1, "a"), (W2, "b")):
            sink = bench.sink()
            sink.claim(bench.claim(window))
            with psycopg.connect(bench.url) as other, ThreadPoolExecutor(1) as pool:
                other.execute(sql.SQL("LOCK TABLE {} IN EXCLUSIVE MODE").format(table))
                end = pool.submit(write_and_commit, sink, at([event(key, window)]))
                wait_for(bench.waits_for_lock)
                other.rollback()
                assert end.result().written == 1
        assert bench.rows() == {"a": W1, "b": W2}

    def test_a_lock_held_by_another_is_named_with_its_holder(self, bench: Bench) -> None:
        bench.publish(at([event("a")]))
        sink = bench.sink(lock_timeout=0.1)
        sink.claim(bench.claim())
        sink.write(at([event("b")]))
        with psycopg.connect(bench.url, application_name="nightly vacuum") as other:
            other.execute(sql.SQL("LOCK TABLE {} IN EXCLUSIVE MODE").format(sql.Identifier(bench.name)))
            with pytest.raises(UnavailableError, match=rf"'{bench.name}'.*locked for 0.1 s.*nightly vacuum"):
                sink.commit(rejected=0)
        assert list(bench.rows()) == ["a"]

    def test_a_statement_that_takes_too_long_names_the_setting(self, bench: Bench) -> None:
        bench.publish(at([event("a")]))
        sink = bench.sink(statement_timeout=0.1)
        sink.claim(bench.claim())
        sink.write(at([event("a")]))
        with psycopg.connect(bench.url) as other:
            other.execute(sql.SQL("LOCK TABLE {} IN EXCLUSIVE MODE").format(sql.Identifier(bench.name)))
            with pytest.raises(UnavailableError, match="statement_timeout"):
                sink.commit(rejected=0)

    @pytest.mark.parametrize(
        ("error", "ours", "says"),
        [
            (psycopg.errors.DiskFull("could not extend file"), UnavailableError, "disk is full"),
            (psycopg.errors.OutOfMemory("out of memory"), UnavailableError, "out of memory"),
            (psycopg.errors.TooManyConnections("sorry"), UnavailableError, "no more connections"),
            (psycopg.errors.DeadlockDetected("deadlock"), UnavailableError, "deadlock"),
            (psycopg.errors.SerializationFailure("could not serialize"), UnavailableError, "each other's way"),
            (psycopg.errors.ReadOnlySqlTransaction("cannot execute"), UnavailableError, "read-only"),
            (psycopg.errors.AdminShutdown("terminating"), UnavailableError, "lost"),
            (psycopg.OperationalError("server closed the connection"), UnavailableError, "lost"),
            (psycopg.errors.InsufficientPrivilege("permission denied for table x"), ConfigurationError, "permission denied for table x"),
            (psycopg.errors.CheckViolation("violates check constraint"), SinkError, "violates check"),
        ],
    )
    def test_each_of_its_errors_says_whether_a_retry_may_help(self, error: psycopg.Error, ours: type[FactoryError], says: str) -> None:
        explained = explain(error, "publishing to t", "db:5432/x")
        assert type(explained) is ours
        assert says in str(explained)
        assert "db:5432/x" in str(explained)

    def test_a_check_constraint_of_the_table_refuses_with_the_row(self, bench: Bench) -> None:
        bench.admin.execute(
            f"CREATE TABLE {bench.name} (id text PRIMARY KEY, value text CHECK (value <> 'bad'), version int8, at timestamptz)"
        )
        sink = bench.sink()
        sink.claim(bench.claim())
        sink.write(at([event("a", "bad")]))
        with pytest.raises(SinkError, match="check constraint"):
            sink.commit(rejected=0)

    def test_a_wrong_password_is_configuration_and_stays_secret(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        url = re.sub(r"//(\w+)(:[^@]*)?@", r"//\1:hunter2-secret@", bench.url)
        monkeypatch.setenv("DATABASE_URL", url)
        with pytest.raises(ConfigurationError, match="refuses") as caught:
            bench.sink().claim(bench.claim())
        assert "hunter2" not in str(caught.value) + repr(caught.value.__cause__)
        assert "hunter2" not in repr(bench.sink()._target)

    def test_an_unreachable_database_is_named_without_credentials(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DATABASE_URL", "postgresql://someone:hunter2-secret@127.0.0.1:1/sales")
        with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:1/sales does not answer") as caught:
            bench.sink().claim(bench.claim())
        assert "hunter2" not in str(caught.value)
        assert "someone" not in str(caught.value)

    @pytest.mark.parametrize(
        "url", ["postgresql://u:hunter2@h:port:5/x", "hunter2 is no url", "mysql://u:hunter2@h/x", "postgresql://u:hunter2@h/x?nonsense=1"]
    )
    def test_a_malformed_url_is_not_shown(self, bench: Bench, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
        monkeypatch.setenv("DATABASE_URL", url)
        with pytest.raises(FactoryError) as caught:
            bench.sink().claim(bench.claim())
        assert "hunter2" not in str(caught.value)
        assert caught.value.__suppress_context__ or caught.value.__context__ is None

    def test_a_missing_database_is_configuration(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DATABASE_URL", re.sub(r"/[^/]+$", "/no_such_database", bench.url))
        with pytest.raises(ConfigurationError, match="does not exist"):
            bench.sink().claim(bench.claim())

    def test_an_unset_variable_is_named(self, bench: Bench) -> None:
        with pytest.raises(ConfigurationError, match="WAREHOUSE_URL is not set"):
            bench.sink(database_url_env="WAREHOUSE_URL")


class TestTables:
    def test_a_created_table_says_whose_its_rows_are(self, bench: Bench) -> None:
        outcome = bench.publish(at([event("a")], partition=3), shard=Shard(0, 1))
        assert outcome.table == f"public.{bench.name}"
        [row] = bench.query(
            "SELECT window_key, shard, shards, generation, _factory_window::text, _factory_partition, _factory_offset"
            " FROM {t} JOIN factory_publications ON publication = _factory_publication"
        )
        assert row == (W1, 0, 1, 1, "2026-11-01 00:00:00+00", 3, 0)

    def test_an_existing_table_that_fits_is_used_with_its_narrower_types_checked(self, bench: Bench) -> None:
        bench.contract = {
            "name": "n",
            "id": "id",
            "columns": {"id": "text", "small": "bigint", "short": "text", "price": "numeric", "data": "json"},
        }
        bench.admin.execute(
            f"CREATE TABLE {bench.name} (id varchar(40) PRIMARY KEY, small smallint NOT NULL, short varchar(3), price numeric(5,2),"
            " data json,"
            " extra text, stamped timestamptz NOT NULL DEFAULT now())"
        )
        good = {"id": "a", "small": 7, "short": "äöü", "price": 999.99, "data": [1]}
        wrong = [{"small": 40_000}, {"small": None}, {"short": "four"}, {"price": 1000}, {"price": "999.995"}, {"id": "x" * 41}]
        sink = bench.sink()
        sink.claim(bench.claim())
        rejected = sink.write(at([good, *(good | w for w in wrong)]))
        assert sorted(rejected) == [1, 2, 3, 4, 5, 6]
        assert "40000" in rejected[1].reason
        assert rejected[2].rule == "missing"
        sink.commit(rejected=6)
        assert bench.query("SELECT id, small, short, price::text, data FROM {t}") == [("a", 7, "äöü", "999.99", [1])]

    def test_every_column_that_does_not_fit_is_named(self, bench: Bench) -> None:
        bench.admin.execute(f"CREATE TABLE {bench.name} (id text, value integer, version timestamptz, must text NOT NULL)")
        with pytest.raises(SinkError) as caught:
            bench.sink().claim(bench.claim())
        message = str(caught.value)
        for part in (
            f"public.{bench.name} does not fit",
            "'value': expected text, found integer",
            "'version': expected bigint, found timestamp with time zone",
            "'at': expected timestamptz, found no such column",
            "'must': NOT NULL without a default",
            "no unique constraint on the key (id)",
        ):
            assert part in message

    @pytest.mark.parametrize(
        "definition",
        ["id text UNIQUE DEFERRABLE", "id text, UNIQUE (id, value)", "id text"],
        ids=["deferrable", "of more columns", "none"],
    )
    def test_a_key_needs_a_unique_constraint_of_exactly_its_columns(self, bench: Bench, definition: str) -> None:
        bench.admin.execute(f"CREATE TABLE {bench.name} (value text, version int8, at timestamptz, {definition})")
        with pytest.raises(SinkError, match="no unique constraint on the key"):
            bench.sink().claim(bench.claim())

    def test_a_table_without_our_columns_is_upserted_and_says_what_is_stale(self, bench: Bench) -> None:
        bench.admin.execute(f"CREATE TABLE {bench.name} (id text PRIMARY KEY, value text, version integer, at timestamptz)")
        assert bench.publish(at([event("a"), event("b"), event("c", "kept", 5)])).notes == ()
        outcome = bench.publish(at([event("a", "y"), event("c", "old", 4)]))
        assert (outcome.written, outcome.older, outcome.removed) == (1, 1, 0)
        assert "of 3 rows" in outcome.notes[0]
        assert "at least 1 are stale" in outcome.notes[0]
        assert bench.rows() == {"a": "y", "b": "x", "c": "kept"}
        assert "cannot be told" in bench.publish([], shard=Shard(0, 2), plan="two").notes[0]

    def test_without_a_contract_the_table_says_columns_and_key(self, bench: Bench) -> None:
        bench.contract = None
        bench.admin.execute(
            f"CREATE TABLE {bench.name} (id integer PRIMARY KEY, value text, at date, place point,"
            " created timestamptz NOT NULL DEFAULT now())"
        )
        sink = bench.sink()
        sink.claim(bench.claim())
        rejected = sink.write(
            at([{"id": 1, "value": "x", "at": "2026-11-01", "other": 1}, {"id": 2**40}, {"value": "no id"}, {"id": 1, "value": "last"}])
        )
        assert sorted(rejected) == [1, 2]
        outcome = sink.commit(rejected=2)
        assert (outcome.written, outcome.duplicates) == (1, 1)
        assert "place (point)" in outcome.notes[0]
        assert bench.query("SELECT id, value, at FROM {t}") == [(1, "last", None)]

    def test_without_a_contract_there_must_be_a_table_with_a_key(self, bench: Bench) -> None:
        bench.contract = None
        with pytest.raises(ConfigurationError, match="does not exist"):
            bench.sink().claim(bench.claim())
        bench.admin.execute(f"CREATE TABLE {bench.name} (id integer)")
        with pytest.raises(SinkError, match="no primary key"):
            bench.sink().claim(bench.claim())

    def test_a_table_is_not_created_where_that_is_off(self, bench: Bench) -> None:
        with pytest.raises(ConfigurationError, match="create_table is off"):
            bench.sink(create_table=False).claim(bench.claim())

    def test_a_view_or_a_missing_schema_is_refused(self, bench: Bench) -> None:
        bench.admin.execute(f"CREATE VIEW {bench.name} AS SELECT 1 AS id")
        with pytest.raises(SinkError, match="found a view"):
            bench.sink().claim(bench.claim())
        with pytest.raises(ConfigurationError, match="schema does not exist"):
            bench.sink(table="nowhere.t").claim(bench.claim())

    def test_parallel_creation_makes_one_table_with_one_index(self, bench: Bench) -> None:
        started = threading.Barrier(8)

        def one(i: int) -> None:
            sink = build({"table": f"s_{bench.name}.t", "contract": CONTRACT})
            started.wait()
            sink.claim(Claim(bench.pipeline, "publish", W1, Shard(i, 8), "plan", "f", 1, 1))
            sink.close()

        bench.admin.execute(f"CREATE SCHEMA s_{bench.name}")
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(one, range(8)))
        [count] = bench.query("SELECT count(*) FROM pg_indexes WHERE schemaname = {s} AND tablename = 't'", s=f"s_{bench.name}")
        assert count == (2,)

    def test_a_number_as_event_time_is_read_in_the_contracts_unit(self, bench: Bench) -> None:
        for unit, value in (("s", 1793491200.5), ("ms", 1793491200500), ("us", 1793491200500000)):
            bench.contract = {
                "name": "n",
                "id": "id",
                "time": "at",
                "time_unit": unit,
                "schema": {
                    "type": "object",
                    "required": ["id"],
                    "properties": {"id": {"type": "string"}, "at": {"type": ["number", "null"]}},
                },
                "columns": {"id": "text", "at": "timestamptz"},
            }
            sink = bench.sink()
            sink.claim(bench.claim(fingerprint=unit))
            assert list(sink.write(at([{"id": "a", "at": value}, {"id": "b", "at": 1e30}, {"id": "c"}, {"id": "d", "at": "x"}]))) == [1, 3]
            sink.commit(rejected=2)
            assert bench.query("SELECT id, (at AT TIME ZONE 'UTC')::text FROM {t} ORDER BY id") == [
                ("a", "2026-11-01 00:00:00.5"),
                ("c", None),
            ]


HOSTILE_NAMES = [
    'ev"il',
    "sp ace",
    "ünï",
    "semi;colon",
    "per%s cent%",
    "br{a}ce",
    "back\\slash",
    "quo'te",
    "--",
    "select",
    "CamelCase",
    "c0",
]


class TestHostileInput:
    def test_identifiers_are_composed_never_formatted(self, bench: Bench) -> None:
        quoted = ['"{}"'.format(n.replace('"', '""')) for n in ('we"ird; %s.{x}', 'sch"ema. %')]
        bench.admin.execute(sql.SQL("DROP SCHEMA IF EXISTS {0} CASCADE; CREATE SCHEMA {0}").format(sql.Identifier('sch"ema. %')))
        properties = {n: {"type": "string"} for n in HOSTILE_NAMES} | {"version": {"type": "integer"}}
        bench.contract = {
            "name": "n",
            "id": 'ev"il',
            "version_field": "version",
            "key": ['ev"il', "per%s cent%"],
            "schema": {"type": "object", "required": ['ev"il', "per%s cent%"], "properties": properties},
        }
        one = {n: f"{n}'; DROP TABLE x; --" for n in HOSTILE_NAMES}
        for generation in (1, 2):
            sink = bench.sink(table=f"{quoted[1]}.{quoted[0]}")
            sink.claim(bench.claim(window="w'; --\\ %s {x}", input_generation=generation, fingerprint=f"f'{generation}"))
            assert sink.write([record(one | {"version": v}, 0, v) for v in range(3)]) == {}
            outcome = sink.commit(rejected=0)
            assert (outcome.written, outcome.duplicates) == (1, 2)
        query = sql.SQL("SELECT {}, version FROM {}").format(
            sql.SQL(", ").join(map(sql.Identifier, HOSTILE_NAMES)), sql.Identifier('sch"ema. %', 'we"ird; %s.{x}')
        )
        assert bench.admin.execute(query).fetchall() == [(*one.values(), 2)]

    @pytest.mark.parametrize("table", ["", "a.b.c", "a.", ".a", 'a"b', '"a', "x" * 64, "nul\0", "\ud800"])
    def test_a_table_name_that_is_none_is_refused(self, bench: Bench, table: str) -> None:
        with pytest.raises(ConfigurationError):
            bench.sink(table=table)

    def test_names_of_ours_or_too_long_are_refused(self, bench: Bench) -> None:
        for name in ("_factory_window", "x" * 64):
            bench.contract = {"name": "n", "id": "id", "columns": {"id": "text", name: "text"}}
            with pytest.raises(ConfigurationError, match=name):
                bench.sink()

    def test_values_that_postgresql_cannot_hold_are_rejected_with_column_and_reason(self, bench: Bench) -> None:
        bench.contract = ALL_TYPES
        cases: list[tuple[str, Any, str]] = [
            ("text", "a\0b", "NUL"),
            ("text", 5, "got `int`"),
            ("id", "k" * 3000, "3000 bytes"),
            ("id", None, "missing"),
            ("bigint", 2**63, "<= 9223372036854775807"),
            ("bigint", 1.5, "got `float`"),
            ("bigint", True, "got `bool`"),
            ("double", 10**400, "double"),
            ("boolean", "true", "got `str`"),
            ("timestamptz", "yesterday", "timestamptz"),
            ("timestamptz", "infinity", "timestamptz"),
            ("timestamptz", 12, "timestamptz"),
            ("json", {"a": ["\0"]}, "NUL"),
            ("numeric", "NaN", "numeric"),
            ("numeric", "1e9999", "numeric"),
            ("numeric", [1], "numeric"),
            ("numeric", "0." + "1" * 3000, "numeric"),
            ("date", "2026-13-01", "date"),
        ]
        sink = bench.sink()
        sink.claim(bench.claim())
        rejected = sink.write(at([{"id": f"k{i}"} | {name: value} for i, (name, value, _) in enumerate(cases)]))
        for i, (name, _, reason) in enumerate(cases):
            assert f"column {name!r}" in rejected[i].reason
            assert reason in rejected[i].reason, rejected[i].reason
            assert len(rejected[i].reason) < 300
        assert sink.commit(rejected=len(cases)).rows == 0

    @pytest.mark.parametrize(
        ("value", "reason"),
        [
            (None, "no value"),
            (b"[]", "got `array`"),
            (b'{"id": "a", "text": "\xff"}', "utf-8"),
            (b'{"id": "a", "unknown": "\xff"}', "utf-8"),
            (b'{"id": "a", "text": "\\ud800 and more"}', "surrogate"),
            (b'{"id": "a", "unknown": "\\ud800 and more"}', "malformed"),
            (b'{"id": "a", "double": Infinity}', "malformed"),
            (b'{"id": "a", "numeric": 1' + b"0" * 5000 + b"}", "out of range"),
            (b'{"id": "a", "json": ' + b"[" * 3000 + b"]" * 3000 + b"}", "recursion"),
            (b'{"id": "a"} {}', "trailing"),
        ],
    )
    def test_what_is_no_event_is_rejected_alone(self, bench: Bench, value: bytes | None, reason: str) -> None:
        bench.contract = ALL_TYPES
        sink = bench.sink()
        sink.claim(bench.claim())
        good = [Message(value=b'{"id": "%d"}' % i, partition=0, offset=i) for i in range(2)]
        rejected = sink.write([good[0], Message(value=value, partition=0, offset=2), good[1]])
        assert {i: r.rule for i, r in rejected.items()} == {1: "decode"}
        assert reason in rejected[1].reason
        assert sink.commit(rejected=1).written == 2

    def test_values_that_look_hostile_arrive_as_they_are(self, bench: Bench) -> None:
        bench.contract = ALL_TYPES
        texts = [
            "\t\n\r\b\f\\",
            "\\N",
            "\\.",
            "",
            '"',
            "null",
            "\\u0000",
            "é😀\u2028\x01\x7f",
            "'; DROP TABLE x; --",
            "x" * 2_000_000,
            "{}",
            ",",
        ]
        times = [
            "2026-11-01T04:00:00Z",
            "2026-11-01T04:00:00",
            "2026-11-01 04:00:00.123456+05:30",
            "2016-12-31T23:59:60Z",
            "0001-01-01T00:00:00Z",
        ]
        nested: Any = "leaf"
        for _ in range(200):
            nested = {"a": [nested, "\\u0000", "\\", '"\n']}
        rows: list[dict[str, Any]] = [{"id": f"t{i}", "text": t, "json": {"v": t}} for i, t in enumerate(texts)]
        rows += [{"id": f"z{i}", "timestamptz": t} for i, t in enumerate(times)]
        rows += [{"id": "j", "json": nested}, {"id": "n", "numeric": "12345678901234567890.123456789"}, {"id": "m", "numeric": 10**30}]
        rows += [
            {"id": "i", "bigint": -(2**63), "double": -1.7976931348623157e308, "boolean": False, "date": "9999-12-31"},
            {"id": "f", "bigint": 3.0, "double": 3},
        ]
        sink = bench.sink()
        sink.claim(bench.claim())
        assert sink.write(at(rows)) == {}
        sink.commit(rejected=0)
        found = {r[0]: r for r in bench.query("SELECT id, text, json, numeric::text, bigint, double, boolean, date::text FROM {t}")}
        assert [found[f"t{i}"][1] for i in range(len(texts))] == texts
        assert [found[f"t{i}"][2] for i in range(len(texts))] == [{"v": t} for t in texts]
        assert found["j"][2] == nested
        assert (found["n"][3], found["m"][3]) == ("12345678901234567890.123456789", str(10**30))
        assert found["i"][4:] == (-(2**63), -1.7976931348623157e308, False, "9999-12-31")
        assert found["f"][4:6] == (3, 3.0)
        at_utc = dict(bench.query("SELECT id, (timestamptz AT TIME ZONE 'UTC')::text FROM {t} WHERE id LIKE 'z%'"))
        assert [at_utc[f"z{i}"] for i in range(4)] == [
            "2026-11-01 04:00:00",
            "2026-11-01 04:00:00",
            "2026-10-31 22:30:00.123456",
            "2016-12-31 23:59:59",
        ]


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(st.characters(codec=None), max_size=20),
    st.sampled_from(["2026-11-01T00:00:00Z", "2026-11-01", "1e5", "\0", "\ud800", "infinity"]),
)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(codec=None), max_size=5), inner, max_size=3)
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(events=st.lists(st.fixed_dictionaries({}, optional=dict.fromkeys(ALL_TYPES["columns"], VALUES)), max_size=8))
def test_any_event_is_written_or_rejected_and_the_window_lands(bench: Bench, events: list[dict[str, Any]]) -> None:
    bench.contract = ALL_TYPES
    events = [{"id": f"k{i}"} | e for i, e in enumerate(events)]
    sink = bench.sink()
    sink.claim(bench.claim(window=secrets.token_hex(8)))
    rejected = sink.write(at(events))
    outcome = sink.commit(rejected=len(rejected))
    sink.close()
    assert outcome.rows + len(rejected) == len(events)
    assert outcome.rows == outcome.written + outcome.duplicates + outcome.older


class Model:
    """The table as the rules have it, kept in dictionaries."""

    def __init__(self) -> None:
        self.table: dict[str, dict[str, Any]] = {}
        self.windows: dict[str, dict[str, Any]] = {}

    def publish(
        self, window: str, shard: tuple[int, int], input_generation: int, generation: int, rows: list[tuple[dict[str, Any], int, int]]
    ) -> tuple[int, int, int, int] | None:
        """(written, duplicates, older, removed), or None where it is refused."""
        state = self.windows.setdefault(window, {"plan": None, "turn": 0, "newest": 0, "current": {}})
        if state["newest"] > input_generation:
            return None
        plan = (input_generation, shard[1])
        if state["plan"] != plan:
            state |= {"plan": plan, "turn": state["turn"] + 1, "current": {}}
        best: dict[str, tuple[Any, ...]] = {}
        for e, partition, offset in rows:
            rank = (*self.rank(e), partition, offset)
            if e["id"] not in best or rank >= best[e["id"]][0]:
                best[e["id"]] = (rank, e, partition)
        owner = {"window": window, "shard": shard, "turn": state["turn"], "generation": generation}
        written = sum(self.put(e, partition, owner) for _, e, partition in best.values())
        before = state["current"].get(shard)
        state["current"][shard] = generation
        state["newest"] = input_generation
        return written, len(rows) - len(best), len(best) - written, self.sweep(window, shard, before is not None)

    @staticmethod
    def rank(e: dict[str, Any]) -> tuple[Any, ...]:
        return (e["version"] is not None, e["version"] or 0, e["at"] is not None, e["at"] or "")

    def put(self, e: dict[str, Any], partition: int, owner: dict[str, Any]) -> bool:
        there = self.table.get(e["id"])
        row = {"event": e, "partition": partition, **owner}
        if there is not None:
            past = there["window"] == owner["window"] and (there["shard"] == owner["shard"] or there["turn"] != owner["turn"])
            newer = (*self.rank(e), owner["window"], partition) >= (*self.rank(there["event"]), there["window"], there["partition"])
            if not (past or newer):
                return False
        self.table[e["id"]] = row
        return True

    def sweep(self, window: str, shard: tuple[int, int], again: bool) -> int:
        current = self.windows[window]["current"]
        whole = len(current) == shard[1]

        def stale(row: dict[str, Any]) -> bool:
            if row["window"] != window:
                return False
            if whole:
                return bool(current.get(row["shard"]) != row["generation"])
            return again and bool(row["shard"] == shard and row["generation"] != current[shard])

        gone = [k for k, row in self.table.items() if stale(row)]
        for k in gone:
            del self.table[k]
        return len(gone)


EVENTS = st.builds(
    event,
    st.sampled_from("abcdef"),
    st.text("xyz", max_size=2),
    st.sampled_from([None, 0, 1, 2]),
    st.sampled_from([None, "2026-11-01T00:00:00Z", "2026-11-01T00:30:00Z"]),
)
PUBLICATIONS = st.tuples(
    st.sampled_from([W1, W2, W3]),
    st.integers(1, 3).flatmap(lambda of: st.tuples(st.integers(0, of - 1), st.just(of))),
    st.integers(1, 3),
    st.lists(st.tuples(EVENTS, st.integers(0, 1)), max_size=8),
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(history=st.lists(PUBLICATIONS, min_size=1, max_size=12))
@example([(W1, (0, 1), 1, [(event("a"), 0)]), (W2, (0, 1), 1, [(event("a"), 0)]), (W1, (0, 1), 1, [])])
def test_any_history_of_publications_leaves_what_the_rules_say(bench: Bench, history: list[Any]) -> None:
    bench.name = f"m_{secrets.token_hex(6)}"
    model = Model()
    for generation, (window, (index, of), input_generation, events) in enumerate(history, 1):
        rows = [(e, index + of * p, offset) for offset, (e, p) in enumerate(events)]
        expected = model.publish(window, (index, of), input_generation, generation, rows)
        changes = {
            "plan": f"{input_generation}/{of}",
            "fingerprint": f"f{generation}",
            "input_generation": input_generation,
            "generation": generation,
        }
        if expected is None:
            with pytest.raises(SinkError, match="older generation"):
                bench.publish([record(*row) for row in rows], window, Shard(index, of), **changes)
            continue
        outcome = bench.publish([record(*row) for row in rows], window, Shard(index, of), **changes)
        assert (outcome.written, outcome.duplicates, outcome.older, outcome.removed) == expected
        found = bench.query(
            "SELECT id, value, version, to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') FROM {t} ORDER BY id"
        )
        wanted = [(k, r["event"]["value"], r["event"]["version"], r["event"]["at"]) for k, r in sorted(model.table.items())]
        assert found == wanted
    bench.admin.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(sql.Identifier(bench.name)))


class TestParameters:
    @pytest.mark.parametrize(
        ("params", "says"),
        [
            ({"tabel": "x"}, "did you mean 'table'"),
            ({"table": ""}, "'table' is required"),
            ({"table": 5.5}, "table"),
            ({"table": "t", "lock_timeout": 0}, "lock_timeout"),
            ({"table": "t", "contract": {"name": "n", "id": None, "columns": {"a": "text"}}}, "names no key"),
            ({"table": "t", "contract": {"name": "n", "id": "id", "columns": {"id": "json"}}}, "no order"),
            ({"table": "t", "contract": CONTRACT | {"columns": {"id": "text", "at": "timestamptz"}}}, "version"),
        ],
    )
    def test_a_mistake_is_one_clear_line(self, bench: Bench, params: dict[str, Any], says: str) -> None:
        with pytest.raises(ConfigurationError, match=says) as caught:
            build(params)
        assert "\n" not in str(caught.value)

    def test_the_identity_tells_table_contract_and_database_and_no_secret(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DATABASE_URL", "postgresql+psycopg2://u:hunter2@h:7/x")
        identity = bench.sink().identity
        assert identity["table"] == bench.name
        assert identity["database"] == "h:7/x"
        assert "hunter2" not in repr(identity)
