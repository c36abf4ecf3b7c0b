"""Publishing record by record: rows and positions move together, whoever is fenced, refused or away; and soon."""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from confluent_kafka import Message as KafkaMessage

from factory_agents.errors import UnavailableError
from factory_agents.kafka.messages import Message
from factory_agents.launch import run_agent_live
from factory_agents.options import AgentSettings
from factory_agents.publish import build
from factory_agents.runtime.agents import Output, Reject
from factory_agents.runtime.live import LiveAgent
from factory_agents.runtime.session import RunContext
from factory_agents.sinks.postgres import PostgresSink
from factory_agents.sinks.postgres.live import PostgresLive
from tests.support import warm
from tests.support.databases import own_database
from tests.support.live_work import LiveWork, ending
from tests.support.pooler import PROGRAM, pooler
from tests.support.proxy import Proxy
from tests.support.runs import ROOT, Runs, events
from tests.support.sink_bench import ALL_TYPES, Bench, at
from tests.support.waiting import wait_for

CONTRACT = {
    "name": "events",
    "id": "event_id",
    "schema": {
        "type": "object",
        "required": ["event_id"],
        "properties": {"event_id": {"type": "integer"}, "text": {"type": "string"}, "sent": {"type": "number"}},
    },
}


class Table:
    """The table of one test, and publishers to it."""

    def __init__(self, runs: Runs, url: str) -> None:
        self.runs, self.url = runs, url
        self.name = f"t_{runs.prefix.replace('-', '_')}"
        self.connection = psycopg.connect(url, autocommit=True)

        self.params = {"table": self.name, "contract": CONTRACT, "live": "records"}

    def member(self) -> PostgresLive:
        sink = build(self.params)
        assert isinstance(sink, PostgresSink)
        return PostgresLive(sink.target, {}, "g", "t")

    @contextmanager
    def publisher(self, source: str, **settings: Any) -> Iterator[LiveWork]:
        """A live publish in a thread of its own, as the command runs it."""
        group, prefix, config = f"{self.runs.prefix}.group", self.runs.prefix, self.runs.configured(session_timeout_ms=6000)
        given = AgentSettings(in_topic=source, group=group, prefix=prefix, params=self.params, **settings)
        with ending(LiveWork(lambda stop: run_agent_live(RunContext(config, stop=stop), "publish", given).counts)) as running:
            yield running

    def query(self, query: str) -> list[Any]:
        return self.connection.execute(query.replace("{t}", self.name).encode()).fetchall()

    def ids(self) -> list[int]:
        return [row[0] for row in self.query("SELECT event_id FROM {t} ORDER BY 1")] if self.is_there() else []

    def is_there(self) -> bool:
        return self.connection.execute("SELECT to_regclass(%s)", [self.name]).fetchone() != (None,)


@pytest.fixture
def table(runs: Runs, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Table]:
    monkeypatch.setenv("DATABASE_URL", database_url)
    own = Table(runs, database_url)
    yield own
    own.connection.close()


def test_rows_and_dead_letters_are_there_once_wherever_a_member_ends_and_another_goes_on(
    runs: Runs, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ended between the database's commit and Kafka's, the positions differ: what was rejected there is a dead letter all the same."""
    source, ended = runs.topic("in", partitions=2), threading.Event()
    send = LiveAgent._send_offsets

    def end(agent: LiveAgent) -> None:
        if not ended.is_set() and table.ids() and table.ids()[-1] >= 30:
            ended.set()
            raise UnavailableError("the broker is away")
        send(agent)

    monkeypatch.setattr(LiveAgent, "_send_offsets", end)
    with table.publisher(source) as first:
        runs.produce(source, events(10))
        wait_for(lambda: table.ids() == list(range(10)), "the first rows")
        table.connection.execute(f"ALTER TABLE {table.name} ADD CHECK (event_id <> 23)".encode())
        runs.produce(source, [*events(20, 10), b'{"event_id": "no number"}', *events(10, 31)])
        first.wait()
        with pytest.raises(UnavailableError, match="the broker is away"):
            first.end()
    written = [n for n in range(41) if n not in (23, 30)]
    with table.publisher(source) as second:
        wait_for(lambda: table.ids() == written and len(runs.everything(f"{source}.dead")) == 2, "the rest")
        runs.produce(source, events(5, 41))
        wait_for(lambda: len(table.ids()) == len(written) + 5, "what came since")
        counts = second.end()
    letters = runs.everything(f"{source}.dead")
    assert sorted(str(r.id) for r in letters) == ["23", "no number"]
    assert counts.forwarded + counts.rejected == counts.consumed
    assert counts.written >= 5


class Rec(tuple[int, bytes]):
    """A record of one partition."""

    def __new__(cls, offset: int, value: bytes) -> Rec:
        return super().__new__(cls, (offset, value))

    def __len__(self) -> int:
        return 1

    def value(self) -> bytes:
        return self[1]

    def key(self) -> None:
        return None

    def topic(self) -> str:
        return "t"

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return self[0]

    def timestamp(self) -> tuple[int, int]:
        return 1, self[0]


def test_one_that_was_away_writes_nothing_that_others_have_published_since(table: Table) -> None:
    """Nor what they would write next a second time: it goes on exactly where they stand."""
    members = [table.member() for _ in range(2)]
    records: list[Message] = [Rec(n, b'{"event_id": 1, "text": "%d"}' % n) for n in range(10)]

    def published() -> Any:
        return table.query("SELECT text, _factory_offset FROM {t}") + table.query(
            "SELECT position FROM factory_positions WHERE table_name = '{t}'"
        )

    away, other = members
    outputs: list[Output] = away.process(records[:2])
    assert outputs == [[], []]
    assert other.process(records[1:8]) == [[]] * 7
    assert published() == [("7", 7), (8,)]
    table.connection.execute(f"UPDATE {table.name} SET text = 'changed'".encode())
    assert away.process(records[2:6]) == [[]] * 4
    assert published() == [("changed", 7), (8,)], "nothing was written"
    assert away.process(records[6:9]) == [[]] * 3
    assert published() == [("8", 8), (9,)]
    (refused,) = other.process([Rec(9, b"no json")])
    assert isinstance(refused, Reject)
    assert isinstance(away.process([Rec(9, b"no json")])[0], Reject), "its dead letter may not be out"
    assert published() == [("8", 8), (10,)]
    for member in members:
        member.close()


HOSTILE: list[Any] = [
    {"id": "nul", "text": "x\0y"},
    {"id": "surrogate", "text": "\ud800"},
    {"id": "huge", "text": "z" * 1_000_000},
    {"id": "u" * 5000},
    {"id": "long", "bigint": 10**30},
    {"id": "digits", "numeric": 10**30},
    {"id": "infinite", "double": 1e308, "real": 1e300},
    {"id": "words", "bigint": "x", "boolean": 1},
    {"id": "json", "json": {"a": "\0"}},
    {"id": "lists", "texts": ["a", None, "\0"], "numbers": [1e20]},
    {"id": "dates", "date": "2026-02-30", "timestamptz": "0000-01-01T00:00:00Z"},
    {"id": "bounds", "smallint": 70000, "varchar": "too long", "inet": "1.2.3.4/99"},
    {"id": 7},
    {"id": None},
    {"text": "no id"},
    b"",
    b"null",
    b"[" * 2000,
    b'{"id": "nan", "double": NaN}',
    b'{"id": "twice", "text": "a", "text": "b"}',
    b"\xff\xfe",
    None,
]


def test_it_makes_of_events_what_windows_make(bench: Bench) -> None:
    bench.contract = ALL_TYPES
    records = at([*HOSTILE, *({"id": f"fine {n}"} for n in range(3))])
    sink = bench.sink()
    sink.claim(bench.claim())
    by_window = sink.write(records)
    sink.commit(rejected=len(by_window))
    rows = bench.query("SELECT id, t::text FROM (SELECT id, text, double, numeric, json FROM {t}) AS t ORDER BY id")
    sink.close()
    bench.name += "_live"
    live = PostgresLive(bench.sink().target, {}, "g", "t")
    outputs = live.process(records)
    live.close()
    assert bench.query("SELECT id, t::text FROM (SELECT id, text, double, numeric, json FROM {t}) AS t ORDER BY id") == rows
    rejects = {n: output for n, output in enumerate(outputs) if isinstance(output, Reject)}
    assert {n: (r.rule, r.reason) for n, r in rejects.items()} == {n: (r.rule, r.reason) for n, r in by_window.items()}
    assert len(rows) >= 5


@pytest.mark.parametrize("seed", range(3))
def test_the_newest_record_of_a_key_stands_in_whatever_order_partitions_come(bench: Bench, seed: int) -> None:
    """Also where some of them delete the key's row; as windows have it."""
    rnd = random.Random(seed)
    bench.contract = {"name": "e", "id": "id", "columns": {"id": "text", "n": "bigint"}, "deletes": True}
    partitions: list[list[Message]] = [[], [], []]
    for n in range(150):
        place, key = rnd.choice(partitions), f"k{rnd.randrange(8)}"
        value = None if rnd.random() < 0.3 else json.dumps({"id": key, "n": n}).encode()
        of = {"key": key.encode(), "partition": partitions.index(place), "offset": len(place), "timestamp": (1, rnd.randrange(1, 6))}
        place.append(KafkaMessage(value=value, **of))
    sink = bench.sink()
    sink.claim(bench.claim())
    assert sink.write([m for place in partitions for m in place]) == {}
    sink.commit(rejected=0)
    sink.close()
    rows = bench.query("SELECT id, n FROM {t} ORDER BY id")
    bench.name += "_live"
    live = PostgresLive(bench.sink().target, {}, "g", "t")
    while any(partitions):
        place = rnd.choice([place for place in partitions if place])
        live.process([place.pop(0) for _ in range(min(len(place), rnd.randrange(1, 9)))])
    live.close()
    assert bench.query("SELECT id, n FROM {t} ORDER BY id") == rows


def test_a_database_that_is_away_is_waited_for_and_an_idle_member_says_so_once(
    runs: Runs, table: Table, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    parts = urlsplit(table.url)
    proxy = Proxy(str(parts.hostname), parts.port or 5432)
    monkeypatch.setenv("DATABASE_URL", table.url.replace(f":{parts.port}/", f":{proxy.port}/"))
    source = runs.topic("in", partitions=2)
    runs.topic("in.dead")
    runs.produce(source, events(30))
    with table.publisher(source) as publisher:
        wait_for(lambda: table.ids() == list(range(30)), "the first rows")
        proxy.cut()
        wait_for(lambda: "waiting" in caplog.messages, "it to notice, though nothing comes")
        runs.produce(source, [*events(30, 30), b"no json"])
        wait_for(lambda: caplog.messages.count("it cannot be told now where the group stands") > 3, "some tries")
        assert caplog.messages.count("waiting") <= 2
        proxy.mend()
        wait_for(lambda: table.ids() == list(range(60)), "what came meanwhile")
        wait_for(lambda: runs.everything(f"{source}.dead"), "the dead letter")
        proxy.cut()
        publisher.end()
    proxy.close()
    assert len(runs.everything(f"{source}.dead")) == 1


@pytest.mark.skipif(PROGRAM is None, reason="needs pgbouncer")
def test_members_publish_through_a_pooler_of_one_session(runs: Runs, table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = runs.topic("in", partitions=4)
    runs.topic("in.dead")
    runs.produce(source, events(30))
    with pooler(tmp_path / "pooler", table.url, sessions=1) as url:
        monkeypatch.setenv("DATABASE_URL", url)
        with table.publisher(source) as one, table.publisher(source) as two:
            wait_for(lambda: len(table.ids()) == 30, "the first rows")
            table.connection.execute(f"ALTER TABLE {table.name} ADD CHECK (event_id % 50 <> 37)".encode())
            runs.produce(source, events(300, 30))
            expected = [n for n in range(330) if n % 50 != 37]
            wait_for(lambda: table.ids() == expected, "the rows")
            wait_for(lambda: len(runs.everything(f"{source}.dead")) == 330 - len(expected), "the dead letters")
            one.end()
            two.end()


_RAISES = (
    "CREATE FUNCTION {t}_f() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN IF NEW.event_id % 2 = 0 THEN {does}; END IF; RETURN NEW; END$$;"
    "CREATE TRIGGER odd BEFORE INSERT ON {t} FOR EACH ROW EXECUTE FUNCTION {t}_f()"
)

ALTERED: dict[str, tuple[str, set[int], set[int]]] = {
    "another column": ("ALTER TABLE {t} ADD COLUMN more text DEFAULT 'x'", set(range(30, 40)), set()),
    "a wider type": ("ALTER TABLE {t} ALTER COLUMN event_id TYPE numeric", set(range(30, 40)), set()),
    "a trigger that drops": (_RAISES.replace("{does}", "RETURN NULL"), set(range(31, 40, 2)), set()),
    "a trigger that raises": (_RAISES.replace("{does}", "RAISE 'no'"), set(range(31, 40, 2)), set(range(30, 40, 2))),
    "a check": ("ALTER TABLE {t} ADD CHECK (event_id <> 33)", set(range(30, 40)) - {33}, {33}),
    "a unique text": (
        "ALTER TABLE {t} ADD UNIQUE (text); UPDATE {t} SET text = 'event 33' WHERE event_id = 5",
        set(range(30, 40)) - {33},
        {33},
    ),
    "partitions": (
        (
            "ALTER TABLE {t} RENAME TO {t}_1; CREATE TABLE {t} (LIKE {t}_1 INCLUDING ALL) PARTITION BY RANGE (event_id);"
            "ALTER TABLE {t} ATTACH PARTITION {t}_1 FOR VALUES FROM (0) TO (35)"
        ),
        set(range(30, 35)),
        set(range(35, 40)),
    ),
}


@pytest.mark.parametrize("how", ALTERED)
def test_a_table_that_is_altered_while_live_is_published_to_as_it_is_now(runs: Runs, table: Table, how: str) -> None:
    """What it refuses from then on is dead-lettered, row by row."""
    said, rows, letters = ALTERED[how]
    source = runs.topic("in", partitions=2)
    runs.topic("in.dead")
    runs.produce(source, events(30))
    with table.publisher(source) as publisher:
        wait_for(lambda: len(table.ids()) == 30, "the first rows")
        table.connection.execute(said.replace("{t}", table.name).encode())
        runs.produce(source, events(10, 30))
        wait_for(lambda: set(table.ids()) == set(range(30)) | rows, "the rows")
        wait_for(lambda: {r.id for r in runs.everything(f"{source}.dead")} == letters, "the dead letters")
        publisher.end()


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("ADD COLUMN more text NOT NULL DEFAULT 'x', ALTER COLUMN more DROP DEFAULT", "'more': NOT NULL without a default"),
        ("DROP COLUMN text", "'text': expected text, found no such column"),
    ],
)
def test_a_table_that_no_event_fits_any_more_ends_it_and_no_record_is_a_dead_letter(runs: Runs, table: Table, said: str, why: str) -> None:
    source = runs.topic("in", partitions=2)
    runs.topic("in.dead")
    runs.produce(source, events(30))
    with table.publisher(source) as publisher:
        wait_for(lambda: len(table.ids()) == 30, "the first rows")
        table.connection.execute("; ".join(f"ALTER TABLE {table.name} {part}" for part in said.split(", ")).encode())
        runs.produce(source, events(10, 30))
        publisher.wait()
        assert why in str(publisher.error)
    assert runs.everything(f"{source}.dead") == []


def start_member(runs: Runs, table: Table, source: str) -> warm.Process:
    """A live publish in a process of its own."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("KAFKA_", "FACTORY_"))} | {"DATABASE_URL": table.url}
    environment |= runs.configured(session_timeout_ms=6000, transaction_timeout_ms=6000).to_env()
    command = [sys.executable, "-m", "factory_agents.publish", "--in-topic", source, "--group", f"{runs.prefix}.group"]
    command += ["--prefix", runs.prefix, "--param", f"table={table.name}", "--param", f"contract={json.dumps(CONTRACT)}"]
    command += ["--param", "live=records"]
    return warm.start(command, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def disturb(how: signal.Signals, member: warm.Process) -> None:
    member.send_signal(how)
    if how == signal.SIGSTOP:  # it comes back as a zombie
        threading.Timer(8.0, member.send_signal, [signal.SIGCONT]).start()


class Feed:
    """Twenty events at a time, all the time, made by the number of the first; ``sent`` counts them."""

    def __init__(self, runs: Runs, source: str, make: Callable[[int], list[bytes]]) -> None:
        self.sent = 0
        self._runs, self._source, self._make, self._ended = runs, source, make, threading.Event()
        self._thread = threading.Thread(target=self._send)
        self._thread.start()

    def _send(self) -> None:
        while not self._ended.wait(0.05):
            self._runs.produce(self._source, self._make(self.sent))
            self.sent += 20

    def wait_for_more(self, count: int) -> None:
        until = self.sent + count
        wait_for(lambda: self.sent > until, "more events", 60)

    def end(self) -> None:
        self._ended.set()
        self._thread.join()


@contextmanager
def feeding(runs: Runs, source: str, make: Callable[[int], list[bytes]]) -> Iterator[Feed]:
    feed = Feed(runs, source, make)
    try:
        yield feed
    finally:
        feed.end()


def end_members(members: Sequence[warm.Process]) -> None:
    for member in members:
        member.send_signal(signal.SIGCONT)
        member.terminate()
        member.wait(60)


@pytest.mark.soak
def test_rows_and_dead_letters_are_exact_whoever_is_killed_or_frozen(runs: Runs, table: Table) -> None:
    source, rnd = runs.topic("in"), random.Random(1)
    runs.topic("in.dead")
    members = [start_member(runs, table, source) for _ in range(3)]
    started = list(members)
    wait_for(table.is_there, "the members", 60)
    table.connection.execute(f"ALTER TABLE {table.name} ADD CHECK (event_id % 20 <> 7)".encode())
    with feeding(runs, source, lambda n: [*events(19, n), b'{"event_id": "%d"}' % (n + 19)]) as fed:
        for _ in range(20):
            fed.wait_for_more(300)
            disturb(rnd.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP]), members.pop(0))
            members.append(start_member(runs, table, source))
            started.append(members[-1])
    sent = fed.sent
    expected = [n for n in range(sent) if n % 20 not in (7, 19)]
    try:
        wait_for(lambda: len(table.ids()) >= len(expected), "all rows", 90)
        wait_for(lambda: len(runs.everything(f"{source}.dead")) >= sent // 10, "all dead letters", 60)
    finally:
        end_members(started)
    assert table.ids() == expected
    assert sorted(int(r.id) for r in runs.everything(f"{source}.dead")) == [n for n in range(sent) if n % 20 in (7, 19)]
    print(f"{sent} events, {len(started)} members")


DISTURBED = {
    "dropped": "DROP TABLE IF EXISTS {t}",
    "truncated": "TRUNCATE {t}",
    "saved": (
        "LOCK TABLE {t} IN SHARE MODE; DROP TABLE IF EXISTS saved, saved_positions; CREATE TABLE saved AS SELECT * FROM {t};"
        "CREATE TABLE saved_positions AS SELECT * FROM factory_positions"
    ),
    "restored": (
        "LOCK TABLE {t}, factory_positions; DELETE FROM {t}; INSERT INTO {t} SELECT * FROM saved; DELETE FROM factory_positions;"
        "INSERT INTO factory_positions SELECT * FROM saved_positions"
    ),
    "its sessions ended": (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'factory%'"
    ),
    "a position deleted": "DELETE FROM factory_positions WHERE partition = 1",
}


@pytest.mark.soak
@pytest.mark.parametrize("seed", [7, 8, 9])
def test_no_row_is_lost_whatever_becomes_of_the_table_and_of_members(
    runs: Runs, database_url: str, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    source, rnd, said = runs.topic("in"), random.Random(seed), Counter[str]()
    with own_database(database_url, "disturbed") as url:
        monkeypatch.setenv("DATABASE_URL", url)
        table = Table(runs, url)
        members = [start_member(runs, table, source) for _ in range(3)]
        started = list(members)
        wait_for(table.is_there, "the members", 60)
        with feeding(runs, source, lambda n: events(20, n)) as fed:
            for n in range(24):
                fed.wait_for_more(200)
                how = rnd.choice(list(DISTURBED))
                try:
                    table.connection.execute(f"BEGIN; {DISTURBED[how]}; COMMIT".replace("{t}", table.name).encode())
                    said[how] += 1
                except psycopg.Error:  # there is no table just now, nothing is saved, or members were in the way
                    table.connection.rollback()
                if n % 3 == 0:
                    disturb(rnd.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP, signal.SIGSTOP]), members.pop(0))
                    members.append(start_member(runs, table, source))
                    started.append(members[-1])
        sent = fed.sent
        try:
            wait_for(lambda: len(table.ids()) >= sent, "all rows", 90)
        finally:
            end_members(started)
        assert table.ids() == list(range(sent))
        table.connection.close()
    print(f"{sent} events, {len(started)} members, {dict(said)}")


@pytest.mark.soak
@pytest.mark.parametrize("rate", [100, 1000])
def test_half_of_the_rows_are_there_within_three_tenths_of_a_second(runs: Runs, table: Table, rate: int) -> None:
    source, ended, seen = runs.topic("in"), threading.Event(), dict[int, float]()
    with table.publisher(source):
        runs.produce(source, events(1))
        wait_for(lambda: table.ids() == [0], "the first row")

        def look() -> None:
            with psycopg.connect(table.url, autocommit=True) as connection:
                at = -1
                while not ended.wait(0.005):
                    rows = connection.execute(f"SELECT event_id FROM {table.name} WHERE event_id > {at}".encode()).fetchall()
                    now = time.time()
                    for (n,) in rows:
                        seen.setdefault(n, now)
                    while at + 1 in seen:
                        at += 1

        watcher = threading.Thread(target=look)
        watcher.start()
        sent = feed(runs, source, rate, 10.0)
        wait_for(lambda: len(seen) > len(sent), "all rows")
        ended.set()
        watcher.join()
    delays = sorted(seen[n] - at for n, at in sent.items())
    p50, p99 = statistics.median(delays), delays[int(len(delays) * 0.99)]
    print(f"{rate}/s: p50 {1000 * p50:.0f} ms, p99 {1000 * p99:.0f}, max {1000 * delays[-1]:.0f}")
    assert p50 <= 0.3


def feed(runs: Runs, source: str, rate: int, seconds: float) -> dict[int, float]:
    """When each event was written."""
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": runs.bootstrap, "linger.ms": 20, "log_level": 0})
    sent: dict[int, float] = {}
    began = time.time()
    while (now := time.time()) < began + seconds:
        while len(sent) < (now - began) * rate:
            n = len(sent) + 1
            producer.produce(source, b'{"event_id": %d}' % n, partition=n % 4)
            sent[n] = time.time()
        producer.poll(0.002)
    producer.flush(60)
    return sent
