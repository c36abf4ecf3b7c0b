"""Sources, look-ups and publish behind PgBouncer in transaction mode: two sessions of the server for all; other modes are told apart."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from factory_agents.errors import ConfigurationError, FactoryError, FencedError, UnavailableError
from factory_agents.sources.lookups import Lookup, LookupJoin
from factory_agents.sources.rows import ReadOptions
from factory_agents.sources.table import TableSource
from tests.support.databases import own_database
from tests.support.pooler import PROGRAM, pooler
from tests.support.sink_bench import W1, W2, Bench, at, event
from tests.support.waiting import wait_for

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="PgBouncer is not installed (apt-get install pgbouncer)")


@pytest.fixture
def database(database_url: str) -> Iterator[str]:
    with own_database(database_url, "pooled") as url:
        yield url


@pytest.fixture
def pooled(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with pooler(tmp_path / "pooler", database) as url:
        monkeypatch.setenv("DATABASE_URL", url)
        yield url


@pytest.fixture
def bench(database: str, pooled: str) -> Iterator[Bench]:
    """Publishers through the pooler, judged by a session beside it."""
    bench = Bench(database)
    yield bench
    bench.close()


def prepared_or_set(url: str) -> list[tuple[object, ...]]:
    """What sessions of the pooler were left with by whoever used them last."""
    with psycopg.connect(url, autocommit=True, prepare_threshold=None) as connection:
        query = (
            "SELECT name FROM pg_prepared_statements UNION ALL SELECT name FROM pg_settings WHERE source = 'session' AND name NOT IN"
            " ('application_name', 'client_encoding', 'DateStyle', 'TimeZone', 'standard_conforming_strings')"
            " UNION ALL SELECT locktype FROM pg_locks JOIN pg_database ON pg_database.oid = pg_locks.database"
            " WHERE locktype = 'advisory' AND datname = current_database()"
        )
        return connection.execute(query).fetchall()


def test_sources_and_look_ups_leave_nothing_in_the_sessions_that_they_share(database: str, pooled: str) -> None:
    with psycopg.connect(database, autocommit=True) as owner:
        owner.execute("CREATE TABLE customers AS SELECT n::text AS id, 'c' || n AS name, now() AS at FROM generate_series(1, 3000) n")

    def look_up(first: int) -> int:
        join = LookupJoin([Lookup(on="id", table="customers", cache_size=0)])
        try:
            return sum(e["name"] == f"c{e['id']}" for n in range(first, first + 40) for e in join.join([{"id": str(n)}]))  # type: ignore[index]
        finally:
            join.close()

    def read(_: int) -> int:
        source = TableSource("customers", "", "DATABASE_URL", ReadOptions(id_field="id", time_field="at"))
        try:
            return sum(map(len, source.read(None, 0)))
        finally:
            source.close()

    with ThreadPoolExecutor(8) as pool:
        looked_up = pool.map(look_up, range(1, 1600, 200))
        assert list(pool.map(read, range(4))) == [3000] * 4
        assert list(looked_up) == [40] * 8
    assert prepared_or_set(pooled) == []


class TestPublish:
    def test_writes_merges_and_replaces_and_leaves_nothing_behind(self, bench: Bench, pooled: str) -> None:
        assert bench.publish(at([event(f"k{i}") for i in range(20)])).written == 20
        assert bench.publish(at([event(f"k{i}", "y") for i in range(10, 30)]), W2).written == 20
        assert bench.publish(at([event(f"k{i}", "z") for i in range(5)]), W1).removed == 5
        assert prepared_or_set(pooled) == []

    def test_a_newer_attempt_fences_an_older_one_that_is_in_the_middle(self, bench: Bench) -> None:
        old, new = bench.sink(), bench.sink()
        old.claim(bench.claim())
        assert old.write(at([event("old")])) == {}
        new.claim(bench.claim())
        assert new.write(at([event("new")])) == {}
        assert new.commit(rejected=0).written == 1
        with pytest.raises(FencedError, match="a newer attempt took over"):
            old.commit(rejected=0)
        assert bench.rows() == {"new": "x"}

    def test_an_older_attempt_that_has_not_begun_is_fenced_too(self, bench: Bench) -> None:
        old, new = bench.sink(), bench.sink()
        old.claim(bench.claim())
        new.claim(bench.claim())
        with pytest.raises(FencedError):
            old.write(at([event("old")]))
        assert new.write(at([event("new")])) == {}
        assert new.commit(rejected=0).written == 1

    def test_publishers_that_are_more_than_the_sessions_all_land(self, bench: Bench) -> None:
        bench.publish(at([]))
        windows = [f"2026-11-02T{hour:02}:00:00.000Z/2026-11-02T{hour + 1:02}:00:00.000Z p" for hour in range(8)]
        claims = [bench.claim(window, fingerprint=window) for window in windows]

        def publish(i: int) -> int:
            sink = bench.sink()
            sink.claim(claims[i])
            sink.write(at([event(f"w{i}-{n}") for n in range(10)]))
            written = sink.commit(rejected=0).written
            sink.close()
            return int(written)

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(publish, range(8))) == [10] * 8
        assert len(bench.rows()) == 80

    def test_two_sessions_are_enough_where_rows_change_over_to_be_merged(self, bench: Bench) -> None:
        bench.publish(at([event(f"k{i}") for i in range(20)]))
        assert bench.publish(at([event(f"k{i}", "y") for i in range(20)]), W2).written == 20

    def test_one_session_is_not_and_that_is_said(self, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with pooler(tmp_path / "small", database, sessions=1) as url:
            monkeypatch.setenv("DATABASE_URL", url)
            bench = Bench(database)
            bench.publish(at([event(f"k{i}") for i in range(20)]))
            with pytest.raises(UnavailableError, match=r"no session free .*default_pool_size"):
                bench.publish(at([event(f"k{i}", "y") for i in range(20)]), W2)
            bench.close()

    def test_whoever_waits_for_a_session_behind_claims_gets_it(self, bench: Bench) -> None:
        """A claim that waits for another's lock holds a session; the one that is to free the lock needs one, too."""
        done = threading.Event()
        first = bench.sink()
        first.claim(bench.claim())
        first.write(at([event("a")]))  # holds one of the two

        def again() -> None:
            second = bench.sink()
            second.claim(bench.claim())
            second.write(at([event("b")]))
            second.commit(rejected=0)
            done.set()

        thread = threading.Thread(target=again)
        thread.start()
        wait_for(done.is_set, "the newer attempt")
        thread.join()
        with pytest.raises(FactoryError):
            first.commit(rejected=0)
        assert bench.rows() == {"b": "x"}


@pytest.mark.parametrize("what", ["publish", "source", "look-up"])
def test_a_pooler_in_statement_mode_is_refused_with_one_line(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    with pooler(tmp_path / "pooler", database, mode="statement") as url, psycopg.connect(database, autocommit=True) as owner:
        owner.execute("CREATE TABLE customers (id text)")
        monkeypatch.setenv("DATABASE_URL", url)
        bench = Bench(database)
        work = {
            "publish": lambda: bench.sink().claim(bench.claim()),
            "source": lambda: list(TableSource("customers", "", "DATABASE_URL", ReadOptions()).read(None, 0)),
            "look-up": lambda: LookupJoin([Lookup(on="id", table="customers")]).join([{"id": "a"}]),
        }[what]
        with pytest.raises(ConfigurationError, match="statement") as raised:
            work()
        assert "\n" not in str(raised.value)
        bench.close()


@pytest.mark.parametrize(
    ("changed", "kind", "said"),
    [
        ({"query": "options=-csearch_path%3Dx"}, ConfigurationError, "unsupported startup parameter"),
        ({"path": "/nowhere"}, ConfigurationError, "nowhere"),
    ],
)
def test_what_a_pooler_refuses_is_told_from_a_server_that_is_down(
    pooled: str, changed: dict[str, str], kind: type[FactoryError], said: str
) -> None:
    from urllib.parse import urlsplit

    from factory_agents.databases.postgres import database_from_url

    url = urlsplit(pooled)._replace(**changed).geturl()
    with pytest.raises(kind, match=said):
        database_from_url(url, "DATABASE_URL").connect("test")
