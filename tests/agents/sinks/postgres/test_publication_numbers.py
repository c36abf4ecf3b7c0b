"""The numbers that a table's rows bear: each is one publication's, whatever became of the ledger."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from factory_agents.errors import SinkError
from tests.support.sink_bench import CONTRACT, W2, W3, Bench, at, event
from tests.support.waiting import wait_for

TWO = [event("a", "1"), event("b", "2")]


@pytest.fixture
def own_schema(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """Where the sink's own tables speak of this test's table alone."""
    schema = f"s_{bench.name}"
    bench.admin.execute(f"CREATE SCHEMA {schema}")
    bench.admin.execute(f"SET search_path = {schema}")
    monkeypatch.setenv("DATABASE_URL", f"{bench.url}?options=-csearch_path%3D{schema}")
    yield bench
    bench.admin.execute(f"DROP SCHEMA {schema} CASCADE")


class TestALedgerThatWasLost:
    """The table has rows that it doesn't know: no window takes them back as its own."""

    @pytest.mark.parametrize("deletes", [False, True], ids=["rows", "deletes"])
    @pytest.mark.parametrize("restored", [False, True], ids=["dropped", "restored"])
    def test_takes_no_other_windows_rows_back(self, own_schema: Bench, restored: bool, deletes: bool) -> None:
        bench, admin = own_schema, own_schema.admin
        bench.contract = {**CONTRACT, "deletes": True} if deletes else CONTRACT
        bench.publish(at(TWO), fingerprint="f")
        for own in ("factory_publishes", "factory_publications"):
            admin.execute(f"CREATE TABLE dump_{own} AS TABLE {own}")
        bench.publish(at([event("c")]), window=W2, fingerprint="f")
        for own in ("factory_publishes", "factory_publications"):
            if restored:
                admin.execute(f"TRUNCATE {own} RESTART IDENTITY")
                admin.execute(f"INSERT INTO {own} OVERRIDING SYSTEM VALUE TABLE dump_{own}")
            else:
                admin.execute(f"DROP TABLE {own}")
        for n in range(4):
            bench.publish(at([event("d")]), window=W3, fingerprint=f"f{n}")
            assert set(bench.rows()) == {"a", "b", "c", "d"}
        assert bench.publish(at([event("d")]), window=W3, fingerprint="f3").reused
        assert bench.publish(at(TWO), fingerprint="f").written == 2
        assert admin.execute("SELECT count(*) FROM factory_publications WHERE stage = 'passed'").fetchone() == (0,)

    def test_nor_those_that_bear_a_number_of_rows_that_are_gone(self, own_schema: Bench) -> None:
        """A copy of the database may not go on where the numbers stood: logical replication copies no sequence."""
        bench = own_schema
        bench.publish(at(TWO), fingerprint="f")
        bench.admin.execute(f"TRUNCATE {bench.name}")
        bench.admin.execute("ALTER TABLE factory_publications ALTER publication RESTART")
        bench.publish(at([event("c")]), window=W2, fingerprint="f")
        assert bench.publish(at(TWO), fingerprint="g").removed == 0
        assert set(bench.rows()) == {"a", "b", "c"}

    def test_nor_those_of_rows_from_elsewhere_that_bear_large_ones(self, own_schema: Bench) -> None:
        bench = own_schema
        bench.publish(at(TWO), fingerprint="f")
        last = 2_000_000_000
        bench.admin.execute(f"UPDATE {bench.name} SET _factory_publication = {last} WHERE id = 'a'")
        bench.admin.execute("DELETE FROM factory_publishes")
        bench.publish(at([event("c")]), window=W2, fingerprint="f")
        query = f"SELECT _factory_publication FROM {bench.name} WHERE id = 'c'"
        assert bench.admin.execute(query).fetchone() == (last + 1,)
        bench.admin.execute(f"UPDATE {bench.name} SET _factory_publication = 2147483647 WHERE id = 'a'")
        bench.admin.execute("DELETE FROM factory_publishes")
        with pytest.raises(SinkError, match="up to 2147483647"):
            bench.publish(at([event("d")]), window=W3, fingerprint="f")
        assert set(bench.rows()) == {"a", "b", "c"}


def test_a_table_that_is_looked_through_holds_up_no_other(own_schema: Bench) -> None:
    bench, busy = own_schema, own_schema.name
    bench.publish(at(TWO), fingerprint="f")
    bench.admin.execute("DELETE FROM factory_publishes")
    with ThreadPoolExecutor(1) as pool:
        with psycopg.connect(bench.url) as other:
            other.execute(f"LOCK TABLE s_{busy}.{busy}")
            waiting = pool.submit(bench.sink().claim, bench.claim(fingerprint="f"))
            wait_for(bench.waits_for_lock, "a session to wait for the table")
            bench.name = f"other_{busy}"
            assert bench.sink(lock_timeout=1).claim(bench.claim(fingerprint="f")) is None
        assert waiting.result() is None
