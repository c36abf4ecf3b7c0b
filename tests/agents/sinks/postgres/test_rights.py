"""A publisher, a source and a look-up with just the rights that docs/least-rights.md gives them; each one missing is named."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from follow_docs import blocks

from factory_agents.errors import ConfigurationError, SinkError
from factory_agents.sinks.postgres.live import PostgresLive
from factory_agents.sources.lookups import Lookup, LookupJoin
from factory_agents.sources.rows import ReadOptions
from factory_agents.sources.table import TableSource
from tests.support.databases import own_database
from tests.support.sink_bench import W2, Bench, at

PAGE = Path(__file__).resolve().parents[4] / "docs" / "least-rights.md"
SAID = {b.words: b.text for b in blocks(PAGE.read_text()) if b.language == "sql"}
ORDERS = {"name": "orders", "id": "id", "time": "ordered_at", "columns": {"id": "text", "amount": "numeric", "ordered_at": "timestamptz"}}
ROWS = [{"id": f"o{i}", "amount": i, "ordered_at": "2026-11-01T00:00:00Z"} for i in range(4)]


class Rights:
    """A database in which nobody may anything but its owner, and roles as the page makes them, under names of this test's own."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.database = urlsplit(url).path.removeprefix("/")
        self.owner = psycopg.connect(url, autocommit=True)
        self.owner.execute(f"REVOKE ALL ON DATABASE {self.database} FROM PUBLIC")  # type: ignore[arg-type]
        self.owner.execute("REVOKE ALL ON SCHEMA public FROM PUBLIC")
        self.owner.execute("CREATE TABLE customers (id text, name text)")
        self.owner.execute("INSERT INTO customers VALUES ('o1', 'Ann')")
        self._suffix = secrets.token_hex(4)
        self.roles: list[str] = []

    def say(self, sql: str) -> None:
        """As the page says it."""
        sql = re.sub(r"\b(publisher|reader|creator)\b", rf"\1_{self._suffix}", sql).replace("analytics", self.database)
        self.roles += re.findall(r"CREATE ROLE (\w+)", sql)
        self.owner.execute(sql)  # type: ignore[arg-type]

    def of(self, role: str) -> str:
        parts = urlsplit(self.url)
        return parts._replace(netloc=f"{role}_{self._suffix}:change-me@{parts.hostname}:{parts.port}").geturl()

    def close(self) -> None:
        for role in self.roles:
            self.owner.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")  # type: ignore[arg-type]
        self.owner.close()


@pytest.fixture
def rights(database_url: str) -> Iterator[Rights]:
    with own_database(database_url, "rights") as url:
        rights = Rights(url)
        yield rights
        rights.close()


@pytest.fixture
def orders(rights: Rights, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """A publisher to the table of the page, with the rights of the page."""
    rights.say(SAID["tables"])
    rights.say(SAID["publisher"])
    monkeypatch.setenv("DATABASE_URL", rights.of("publisher"))
    bench = Bench(rights.url)
    bench.name, bench.contract = "orders", ORDERS
    yield bench
    bench.close()


def grants(name: str) -> list[str]:
    """Each right of a role by itself, as ``RIGHT ON THING``."""
    found = re.findall(r"GRANT ([\w, ]+) ON (DATABASE \w+|SCHEMA \w+|\w+) TO", SAID[name])
    return [f"{right.strip()} ON {thing}" for rights, thing in found for right in rights.split(",")]


class TestAPublisher:
    def test_publishes_publishes_again_and_replaces(self, orders: Bench) -> None:
        assert orders.publish(at(ROWS)).written == 4
        assert orders.publish(at([r | {"amount": 9} for r in ROWS]), W2).written == 4  # keys that are there: staged and merged
        outcome = orders.publish(at(ROWS[:2]), W2)
        assert (outcome.written, outcome.removed) == (2, 2)

    def test_says_what_rows_from_elsewhere_need_whose_numbers_it_may_not_pass(self, rights: Rights, orders: Bench) -> None:
        own = "_factory_window, _factory_partition, _factory_offset, _factory_timestamp, _factory_publication"
        rights.owner.execute(f"INSERT INTO orders (id, {own}) VALUES ('theirs', now(), 0, 0, 0, 1000000)")  # type: ignore[arg-type]
        with pytest.raises(SinkError, match=r"up to 1000000, .* say: ALTER TABLE") as raised:
            orders.publish(at(ROWS))
        rights.owner.execute(str(raised.value).rpartition("say: ")[2])  # type: ignore[arg-type]
        assert orders.publish(at(ROWS)).written == 4

    @pytest.mark.parametrize("right", grants("publisher"))
    def test_says_which_right_it_lacks_before_it_writes_a_row(self, rights: Rights, orders: Bench, right: str) -> None:
        rights.say(f"REVOKE {right} FROM publisher")
        with pytest.raises(ConfigurationError) as raised:
            orders.sink().claim(orders.claim())
        said = str(raised.value)
        what, _, thing = right.partition(" ON ")
        assert "\n" not in said
        assert what in said
        assert thing.split()[-1].replace("analytics", rights.database) in said
        if what != "CONNECT":
            grant = re.search(r"say: (GRANT .*?)(?:; or |$)", said)
            assert grant, said
            rights.owner.execute(grant[1])  # type: ignore[arg-type]  # what it asks for is enough
            assert orders.publish(at(ROWS)).written == 4

    @pytest.mark.parametrize("right", grants("positions"))
    def test_says_which_right_it_lacks_before_it_publishes_live(self, rights: Rights, orders: Bench, right: str) -> None:
        rights.say(SAID["positions"])
        live = PostgresLive(orders.sink().target, {}, "g", "t")
        rights.say(f"REVOKE {right} FROM publisher")
        with pytest.raises(ConfigurationError, match=right.partition(" ON ")[0]):
            live.load()
        rights.say(f"GRANT {right} TO publisher")
        live.load()
        assert live.process(at(ROWS)) == [[]] * 4
        live.close()

    @pytest.mark.parametrize("hidden", ["orders", "factory_publishes"])
    def test_is_refused_where_row_level_security_may_hide_rows_from_it(self, rights: Rights, orders: Bench, hidden: str) -> None:
        """What it doesn't see it can't replace: a window that is published again would keep such rows beside the new ones."""
        assert orders.publish(at(ROWS)).written == 4
        rights.owner.execute(f"ALTER TABLE {hidden} ENABLE ROW LEVEL SECURITY; CREATE POLICY all_of_it ON {hidden} USING (true)")  # type: ignore[arg-type]
        rights.owner.execute("CREATE POLICY small ON orders AS RESTRICTIVE FOR SELECT USING (amount < 2)")
        with pytest.raises(ConfigurationError, match=rf"rows of {hidden} .* ALTER ROLE publisher_\w+ BYPASSRLS") as raised:
            orders.publish(at(ROWS[:1]))
        assert "\n" not in str(raised.value)
        rights.owner.execute(f"ALTER ROLE {rights.of('publisher').split('//')[1].split(':')[0]} BYPASSRLS")  # type: ignore[arg-type]
        assert orders.publish(at(ROWS[:1])).removed == 3

    def test_needs_no_more_on_the_columns_that_it_writes(self, rights: Rights, orders: Bench) -> None:
        rights.owner.execute("ALTER TABLE orders ADD COLUMN secret text")
        rights.say("REVOKE SELECT, INSERT, UPDATE ON orders FROM publisher")
        own = "id, amount, ordered_at, " + ", ".join(f"_factory_{c}" for c in ("window", "publication", "partition", "offset", "timestamp"))
        rights.say(f"GRANT SELECT ({own}), INSERT ({own}), UPDATE ({own}) ON orders TO publisher")
        assert orders.publish(at(ROWS)).written == 4
        assert orders.publish(at(ROWS), W2).written == 4

    def test_of_a_table_without_the_columns_of_ours_needs_no_delete(self, rights: Rights, orders: Bench) -> None:
        rights.owner.execute("CREATE TABLE plain (id text PRIMARY KEY, amount numeric, ordered_at timestamptz)")
        rights.say("GRANT SELECT, INSERT, UPDATE ON plain TO publisher")
        orders.name = "plain"
        assert orders.publish(at(ROWS)).written == 4
        assert orders.publish(at(ROWS)).written == 4

    def test_that_finds_no_tables_says_that_it_may_not_create_them(self, rights: Rights, orders: Bench) -> None:
        orders.name = "others"
        with pytest.raises(
            ConfigurationError, match=r"others does not exist.*GRANT USAGE, CREATE ON SCHEMA public TO publisher_\w+; or create"
        ):
            orders.sink().claim(orders.claim())

    def test_with_deletes_needs_the_memory_of_them(self, rights: Rights, orders: Bench) -> None:
        orders.contract = ORDERS | {"deletes": True}
        with pytest.raises(ConfigurationError, match="factory_deleted_orders does not exist"):
            orders.sink().claim(orders.claim())
        rights.say("GRANT CREATE ON SCHEMA public TO publisher")
        assert orders.publish(at(ROWS)).written == 4
        rights.say("REVOKE CREATE ON SCHEMA public FROM publisher")
        assert orders.publish(at(ROWS), W2).written == 4


def test_the_tables_of_the_page_are_those_that_a_creator_makes(rights: Rights, monkeypatch: pytest.MonkeyPatch) -> None:
    rights.say(SAID["creator"])
    monkeypatch.setenv("DATABASE_URL", rights.of("creator"))
    bench = Bench(rights.url)
    bench.name, bench.contract = "orders", ORDERS
    assert bench.publish(at(ROWS)).written == 4
    shape = (
        "SELECT table_name, column_name, data_type, is_nullable, collation_name, is_identity FROM information_schema.columns"
        " WHERE table_schema = 'public' AND table_name <> 'customers' ORDER BY 1, ordinal_position"
    )
    made = bench.admin.execute(shape).fetchall()
    bench.admin.execute("DROP TABLE orders, factory_publishes, factory_publications, factory_horizons")
    rights.say(SAID["tables"])
    assert bench.admin.execute(shape).fetchall() == made
    bench.close()


class TestAReader:
    @pytest.fixture
    def reader(self, rights: Rights, monkeypatch: pytest.MonkeyPatch) -> Rights:
        rights.say(SAID["reader"])
        monkeypatch.setenv("DATABASE_URL", rights.of("reader"))
        return rights

    def source(self) -> int:
        source = TableSource("customers", "", "DATABASE_URL", ReadOptions())
        try:
            return sum(map(len, source.read(None, 0)))
        finally:
            source.close()

    def look_up(self) -> object:
        join = LookupJoin([Lookup(on="id", table="customers")])
        try:
            return join.join([{"id": "o1"}])
        finally:
            join.close()

    def test_reads_and_looks_up(self, reader: Rights) -> None:
        assert self.source() == 1
        assert self.look_up() == [{"id": "o1", "name": "Ann"}]

    @pytest.mark.parametrize("right", grants("reader"))
    def test_says_which_right_it_lacks(self, reader: Rights, right: str) -> None:
        reader.say(f"REVOKE {right} FROM reader")
        for work in (self.source, self.look_up):
            with pytest.raises(ConfigurationError, match=right.split()[0]) as raised:
                work()
            assert "\n" not in str(raised.value)
            assert right.split()[-1].replace("analytics", reader.database) in str(raised.value)
