"""What other replicators were reported to get wrong: the copy is the source none the less."""

from __future__ import annotations

import random
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from psycopg import sql

from factory_agents.errors import ConfigurationError, DataLossError
from tests.agents.replication.test_publish import publish
from tests.support.replication import CONTRACT, Source

LARGE = "x" * 2500
EXTERNAL = "ALTER TABLE {} ALTER COLUMN b SET STORAGE EXTERNAL"


def landed(source: Source, **contract: Any) -> None:
    """Replicate a window, and publish it."""
    params = {"table": "copy", "contract": CONTRACT | contract}
    assert publish(source, source.replicate(), params=params).counts.rejected == 0


def test_a_key_that_changed_is_gone_though_its_row_is_too(replicated: Source) -> None:
    replicated.run(EXTERNAL)
    replicated.run(f"INSERT INTO {{}} SELECT g, g, '{LARGE}' FROM generate_series(1, 3) g")
    landed(replicated)
    replicated.run("UPDATE {} SET id = 11 WHERE id = 1")
    replicated.run("DELETE FROM {} WHERE id = 11")
    replicated.run("UPDATE {} SET id = 12 WHERE id = 2")
    replicated.run("UPDATE {} SET id = 22 WHERE id = 12")
    landed(replicated)
    assert replicated.checksum("copy") == replicated.checksum()


def test_a_large_key_names_its_row(replicated: Source) -> None:
    replicated.run("DROP TABLE {}")
    replicated.create("id text PRIMARY KEY, a bigint, b text")
    replicated.run("ALTER TABLE {} ALTER COLUMN id SET STORAGE EXTERNAL")
    replicated.run(EXTERNAL)
    columns = CONTRACT["columns"] | {"id": "text"}
    replicated.run(f"INSERT INTO {{}} VALUES ('{LARGE}', 1, 'small'), ('{LARGE[1:]}', 2, '{LARGE}')")
    landed(replicated, columns=columns)
    replicated.run("UPDATE {} SET a = a + 10")
    landed(replicated, columns=columns)
    assert replicated.checksum("copy") == replicated.checksum()


@pytest.mark.parametrize("identity", ["DEFAULT", "FULL"])
def test_a_key_of_several_columns_is_the_same_in_whichever_order_it_was_declared(replicated: Source, identity: str) -> None:
    replicated.run("DROP TABLE {}")
    replicated.create("id bigint, a bigint, b text, PRIMARY KEY (a, id)")
    replicated.run(f"ALTER TABLE {{}} REPLICA IDENTITY {identity}")
    replicated.run(EXTERNAL)
    replicated.run("ALTER TABLE {} ADD c bigint")
    replicated.run(f"INSERT INTO {{}} VALUES (1, 2, '{LARGE}'), (2, 1, 'other')")
    first = {r.key for r in replicated.records(replicated.replicate())}
    replicated.run("UPDATE {} SET c = 5")
    second = replicated.replicate()
    assert {r.key for r in replicated.records(second)} == first
    assert {(after["id"], after["b"]) for _, _, after in replicated.changes(second)} == {(1, LARGE), (2, "other")}


def test_a_large_value_is_found_though_other_columns_were_renamed(replicated: Source) -> None:
    replicated.run(EXTERNAL)
    replicated.run(f"INSERT INTO {{}} VALUES (1, 1, '{LARGE}')")
    landed(replicated)
    replicated.run("UPDATE {} SET a = 2")
    replicated.run("ALTER TABLE {} RENAME COLUMN a TO c")
    assert [after for _, _, after in replicated.changes(replicated.replicate())] == [{"id": 1, "a": 2, "b": LARGE}]


def test_rows_and_columns_that_are_not_published_are_not_in_the_snapshot(replicated: Source) -> None:
    replicated.run("CREATE PUBLICATION own FOR TABLE {} (id, a) WHERE (id > 1) WITH (publish_via_partition_root = true)")
    replicated.params["publication"] = "own"
    replicated.run("INSERT INTO {} VALUES (1, 1, 'secret'), (2, 2, 'secret')")
    assert replicated.changes(replicated.replicate()) == [("r", None, {"id": 2, "a": 2})]
    replicated.run("INSERT INTO {} VALUES (0, 1, 'secret'), (3, 3, 'secret')")
    assert replicated.changes(replicated.replicate()) == [("c", None, {"id": 3, "a": 3})]


@pytest.mark.parametrize(
    ("identity", "type_", "column", "old", "new"),
    [
        ("DEFAULT", "numeric", "numeric", "1.0", "1.00"),
        ("FULL", "numeric", "text", "100", "100.00"),
        ("DEFAULT", "price", "numeric", "0.00", "0"),
        ("DEFAULT", "numeric(10, 2)", "numeric(10,2)", "1.0", "1.00"),
        ("DEFAULT", "real", "real", "0", "-0"),
        ("FULL", "double precision", "double", "-0", "0"),
        ("DEFAULT", "bpchar", "text", "a ", "a"),
        ("DEFAULT", "interval", "text", "1 day", "24 hours"),
    ],
)
def test_a_key_that_is_written_in_another_way_is_the_same_row(
    replicated: Source, identity: str, type_: str, column: str, old: str, new: str
) -> None:
    replicated.connection.execute("CREATE DOMAIN amount AS numeric")
    replicated.connection.execute("CREATE DOMAIN price AS amount")
    replicated.run("DROP TABLE {}")
    replicated.create(f"id {type_}, n bigint, a bigint, b text, PRIMARY KEY (n, id)")
    replicated.run(f"ALTER TABLE {{}} REPLICA IDENTITY {identity}")
    contract = {"key": ["n", "id"], "columns": CONTRACT["columns"] | {"id": column, "n": "bigint"}}
    replicated.run(f"INSERT INTO {{}} SELECT '{old}', n, 1, 'x' FROM generate_series(1, 20) n")
    landed(replicated, **contract)
    replicated.run(f"UPDATE {{}} SET id = '{new}', a = 2")
    landed(replicated, **contract)
    assert replicated.connection.execute("SELECT count(*), sum(a) FROM copy").fetchone() == (20, 40)
    replicated.run("DELETE FROM {} WHERE n > 5")
    landed(replicated, **contract)
    assert replicated.connection.execute("SELECT count(*), sum(a) FROM copy").fetchone() == (5, 10)


def test_a_publication_without_a_column_of_the_key_is_refused(replicated: Source) -> None:
    replicated.run("CREATE PUBLICATION own FOR TABLE {} (a) WITH (publish_via_partition_root = true)")
    replicated.params["publication"] = "own"
    with pytest.raises(ConfigurationError, match="all columns of the key"):
        replicated.replicate()


def test_a_table_whose_key_is_deferrable_is_refused_before_its_updates_fail(replicated: Source) -> None:
    replicated.run("DROP TABLE {}")
    replicated.create("id bigint PRIMARY KEY DEFERRABLE, a bigint, b text")
    replicated.run("INSERT INTO {} VALUES (1, 1, 'x')")
    with pytest.raises(ConfigurationError, match="has no key"):
        replicated.replicate()
    replicated.run("UPDATE {} SET a = 2")


def test_a_savepoint_that_was_rolled_back_and_an_applications_messages_are_not_there(replicated: Source) -> None:
    replicated.run("INSERT INTO {} VALUES (1, 1, 'x')")
    landed(replicated)
    with replicated.connection.transaction():
        replicated.run("INSERT INTO {} VALUES (2, 2, 'kept')")
        with replicated.connection.transaction(force_rollback=True):
            replicated.run("UPDATE {} SET a = 100")
            replicated.connection.execute("SELECT pg_logical_emit_message(true, 'an app', 'says')")
        replicated.run("UPDATE {} SET b = 'y' WHERE id = 1")
    replicated.connection.execute("SELECT pg_logical_emit_message(false, 'an app', 'says')")
    landed(replicated)
    assert replicated.checksum("copy") == replicated.checksum()


@pytest.mark.parametrize(
    ("type_", "text"),
    [
        ("date", "infinity"),
        ("timestamptz", "-infinity"),
        ("date", "0044-03-15 BC"),
        ("timestamp", "0001-01-01 00:00:00"),
        ("timestamptz", "0044-03-15 00:00:00+00 BC"),
        ("timestamptz", "20000-01-01 00:00:00+00"),
        ("numeric", "NaN"),
        ("numeric", "Infinity"),
        ("json", '{"n": 123456789012345678901234567890}'),
        ("json", '{"n": "\\u0000"}'),
        ("real", "3e38"),
        ("text", "\\N"),
    ],
)
def test_an_extreme_value_is_the_same_in_the_copy_or_is_told(replicated: Source, type_: str, text: str) -> None:
    replicated.run("DROP TABLE {}")
    replicated.create(f"id bigint PRIMARY KEY, a bigint, b {type_}")
    query = sql.SQL("INSERT INTO {} VALUES (1, 1, %s)").format(sql.Identifier(replicated.table))
    replicated.connection.execute(query, [text])
    contract = CONTRACT | {"columns": CONTRACT["columns"] | {"b": type_}}
    result = publish(replicated, replicated.replicate(), params={"table": "copy", "contract": contract}, max_rejected="1")
    assert result.counts.rejected or replicated.checksum("copy") == replicated.checksum()


def test_names_in_mixed_case_and_with_signs_are_kept(replicated: Source) -> None:
    replicated.run("DROP TABLE {}")
    replicated.table = f"Order {replicated.table} %s"
    replicated.create('id bigint PRIMARY KEY, a bigint, b text, "Total %d" bigint GENERATED ALWAYS AS (a * 2) STORED, "B%s" text')
    replicated.params["table"] = f'public."{replicated.table}"'
    replicated.run("INSERT INTO {} VALUES (1, 1, 'x')")
    landed(replicated, columns=CONTRACT["columns"] | {"B%s": "text"})
    replicated.run("UPDATE {} SET a = 2, \"B%s\" = 'z'")
    landed(replicated, columns=CONTRACT["columns"] | {"B%s": "text"})
    assert replicated.checksum("copy") == replicated.checksum()


@pytest.mark.parametrize("change", ["REPLICA IDENTITY USING INDEX other", "DROP CONSTRAINT first, ADD PRIMARY KEY (a)", "RENAME id TO key"])
def test_a_key_of_other_columns_ends_the_window_and_stops_the_next(replicated: Source, change: str) -> None:
    replicated.run("DROP TABLE {}")
    replicated.create("id bigint CONSTRAINT first PRIMARY KEY, a bigint NOT NULL, b text")
    replicated.run("CREATE UNIQUE INDEX other ON {} (a)")
    replicated.run("INSERT INTO {} SELECT g, 10 - g, 'x' FROM generate_series(1, 6) g")
    landed(replicated)
    replicated.run("UPDATE {} SET id = 14 WHERE id = 4")
    wanted = replicated.checksum()
    replicated.run(f"ALTER TABLE {{}} {change}")
    replicated.run("UPDATE {} SET b = 'y'")
    last = replicated.replicate()
    assert "its key was (id)" in last.notes[0]
    publish(replicated, last)
    assert replicated.checksum("copy") == wanted
    with pytest.raises(DataLossError, match="empty the copies"):
        replicated.replicate()


def test_another_primary_key_beside_a_full_identity_is_told_though_the_log_does_not(replicated: Source) -> None:
    replicated.run("ALTER TABLE {} REPLICA IDENTITY FULL")
    replicated.run("INSERT INTO {} VALUES (1, 1, 'x')")
    landed(replicated)
    replicated.run(f"ALTER TABLE {{}} DROP CONSTRAINT {replicated.table}_pkey, ADD PRIMARY KEY (a)")
    with pytest.raises(DataLossError, match="its key was"):
        replicated.replicate()
    assert replicated.replicate(replicated.window(accept_loss=True)).counts.consumed == 1
    replicated.run("INSERT INTO {} VALUES (1, 2, 'x')")
    assert [r.key for r in replicated.records(replicated.replicate())] == [b'{"a":2}']


@pytest.mark.parametrize("change", ["RENAME COLUMN b TO c", "DROP COLUMN b"])
def test_a_large_value_whose_column_is_gone_is_a_loss_that_is_told(replicated: Source, change: str) -> None:
    replicated.run(EXTERNAL)
    replicated.run(f"INSERT INTO {{}} VALUES (1, 1, '{LARGE}')")
    landed(replicated)
    replicated.run("UPDATE {} SET a = 2")
    replicated.run(f"ALTER TABLE {{}} {change}")
    with pytest.raises(DataLossError, match="dropped or renamed"):
        replicated.replicate()


def test_a_filter_that_changed_is_noted_since_rows_stay_in_copies(replicated: Source) -> None:
    replicated.run("ALTER TABLE {} REPLICA IDENTITY FULL")
    replicated.run("CREATE PUBLICATION own FOR TABLE {} WHERE (a > 3) WITH (publish_via_partition_root = true)")
    replicated.params["publication"] = "own"
    replicated.run("INSERT INTO {} SELECT g, g, 'x' FROM generate_series(1, 8) g")
    landed(replicated)
    replicated.run("UPDATE {} SET a = 0 WHERE id = 5")  # out of it
    replicated.run("UPDATE {} SET a = 9 WHERE id = 1")  # into it
    replicated.run("UPDATE {} SET id = 20, a = 0 WHERE id = 6")
    replicated.run("UPDATE {} SET id = 21, a = 9 WHERE id = 2")
    replicated.run("UPDATE {} SET id = 22 WHERE id = 7")
    landed(replicated)
    found = replicated.connection.execute("SELECT id, a FROM copy ORDER BY id").fetchall()
    assert found == replicated.run("SELECT id, a FROM {} WHERE a > 3 ORDER BY id")
    replicated.run("ALTER PUBLICATION own SET TABLE {} WHERE (a > 8)")
    assert "a > 3" in replicated.replicate().notes[0]
    assert replicated.replicate().notes == ()


def test_other_columns_are_published_from_a_change_on(replicated: Source) -> None:
    replicated.run(EXTERNAL)
    replicated.run("CREATE PUBLICATION own FOR TABLE {} (id, a) WITH (publish_via_partition_root = true)")
    replicated.params["publication"] = "own"
    replicated.run(f"INSERT INTO {{}} VALUES (1, 1, '{LARGE}')")
    replicated.replicate()
    replicated.run("UPDATE {} SET a = 2")
    replicated.run("ALTER PUBLICATION own SET TABLE {} (id, b)")
    replicated.run("UPDATE {} SET a = 3")
    assert [after for _, _, after in replicated.changes(replicated.replicate())] == [{"id": 1, "a": 2}, {"id": 1, "b": LARGE}]


def test_a_large_key_of_several_columns_is_followed_through_its_changes(replicated: Source) -> None:
    replicated.run("DROP TABLE {}")
    replicated.create("id bigint, k text, a bigint, b text, PRIMARY KEY (k, id)")
    replicated.run("ALTER TABLE {} ALTER COLUMN k SET STORAGE EXTERNAL")
    replicated.run(EXTERNAL)
    contract = {"key": ["id", "k"], "columns": CONTRACT["columns"] | {"k": "text"}}
    replicated.run(f"INSERT INTO {{}} SELECT g, '{LARGE[:2300]}' || g, g, '{LARGE}' FROM generate_series(1, 6) g")
    landed(replicated, **contract)
    for change in (
        "UPDATE {} SET id = 11, a = 7 WHERE id = 1",
        "UPDATE {} SET k = k || 'z' WHERE id = 2",
        "UPDATE {} SET id = 13 WHERE id = 3",
        "DELETE FROM {} WHERE id = 13",
        "UPDATE {} SET k = k || 'q' WHERE id = 4",
        "UPDATE {} SET id = 14 WHERE id = 4",
        "UPDATE {} SET id = 4, k = 'small' WHERE id = 14",
        "UPDATE {} SET a = 99 WHERE id = 5",
    ):
        replicated.run(change)
    landed(replicated, **contract)
    query = "SELECT md5(string_agg(concat_ws('|', id, k, a, b), ',' ORDER BY id)) FROM "
    assert replicated.connection.execute(query + "copy").fetchall() == replicated.run(query + "{}")


@pytest.mark.parametrize("identity", ["DEFAULT", "FULL"])
def test_large_values_whatever_becomes_of_their_rows(replicated: Source, identity: str) -> None:
    """Swaps and chains of keys, rows made again, several updates of one in a transaction."""
    chance = random.Random(3)
    replicated.run(EXTERNAL)
    replicated.run(f"ALTER TABLE {{}} REPLICA IDENTITY {identity}")
    replicated.run(f"INSERT INTO {{}} SELECT g, g, g || '{LARGE}' FROM generate_series(1, 9) g")
    landed(replicated)
    for _ in range(3):
        for _ in range(25):
            with replicated.connection.transaction(force_rollback=chance.random() < 0.15):
                for _ in range(chance.randrange(1, 6)):
                    i, j, n = chance.randrange(1, 10), chance.randrange(1, 10), chance.randrange(100)
                    change = chance.choice(
                        (
                            f"UPDATE {{}} SET id = {j} WHERE id = {i} AND NOT EXISTS (SELECT FROM {replicated.table} WHERE id = {j})",
                            f"UPDATE {{}} SET id = CASE id WHEN {i} THEN -{j} ELSE {i} END WHERE id IN ({i}, -{j})",
                            f"UPDATE {{}} SET a = a + 1 WHERE id = {i}",
                            f"DELETE FROM {{}} WHERE id = {i}",
                            f"UPDATE {{}} SET b = '{n}{LARGE}' WHERE id = {i}",
                            f"INSERT INTO {{}} VALUES ({i}, 0, '{n}{LARGE}') ON CONFLICT DO NOTHING",
                        )
                    )
                    with suppress(psycopg.errors.UniqueViolation), replicated.connection.transaction():
                        replicated.run(change)
        landed(replicated)
        assert replicated.checksum("copy") == replicated.checksum()


def test_a_partition_of_another_identity_and_order_of_columns_is_one_of_the_table(replicated: Source) -> None:
    replicated.run("DROP TABLE {}")
    replicated.run("CREATE TABLE {} (id bigint PRIMARY KEY, a bigint, b text) PARTITION BY RANGE (id)")
    replicated.run("CREATE TABLE low PARTITION OF {} FOR VALUES FROM (0) TO (10)")
    replicated.run("CREATE TABLE high (b text, id bigint PRIMARY KEY, a bigint)")
    replicated.run("ALTER TABLE high REPLICA IDENTITY FULL")
    replicated.run("ALTER TABLE {} ATTACH PARTITION high FOR VALUES FROM (10) TO (20)")
    for partition in ("low", "high"):
        replicated.run(f"ALTER TABLE {partition} ALTER COLUMN b SET STORAGE EXTERNAL")
    replicated.run(f"INSERT INTO {{}} SELECT g, g, g || '{LARGE}' FROM generate_series(1, 19) g")
    landed(replicated)
    replicated.run("DELETE FROM {} WHERE id IN (1, 12)")
    replicated.run("UPDATE {} SET id = 12 WHERE id = 2")
    replicated.run("UPDATE {} SET id = 1, a = 3 WHERE id = 13")
    replicated.run("UPDATE {} SET a = a + 1")
    replicated.run("UPDATE {} SET id = 2 WHERE id = 14")
    replicated.run("DELETE FROM {} WHERE id = 2")
    landed(replicated)
    assert replicated.checksum("copy") == replicated.checksum()
