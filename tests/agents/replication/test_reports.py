"""What other replicators were reported to get wrong: the copy is the source none the less."""

from __future__ import annotations

from typing import Any

import pytest
from psycopg import sql

from factory_agents.errors import ConfigurationError
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
