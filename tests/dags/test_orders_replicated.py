"""The shipped pipeline from a database's log into two sinks, run as its users run it in CI."""

from __future__ import annotations

import psycopg
import pytest

from tests.support.repository import Repository

pytestmark = [pytest.mark.airflow, pytest.mark.slow]

DAG = "orders_replicated"
ROWS = "SELECT id, customer, total::text, at FROM {} ORDER BY id"


def rows(connection: psycopg.Connection, table: str) -> list[tuple[object, ...]]:
    return connection.execute(ROWS.format(table)).fetchall()  # type: ignore[arg-type]  # the test's own names


def test_one_sink_that_fails_holds_back_only_itself(repository: Repository) -> None:
    with psycopg.connect(repository.database_url, autocommit=True) as connection:
        connection.execute("CREATE TABLE orders (id bigint PRIMARY KEY, customer text, total numeric(10, 2), at timestamptz)")
        connection.execute("INSERT INTO orders SELECT g, 'c' || g, g * 1.1, now() FROM generate_series(1, 500) g")
        connection.execute("CREATE VIEW orders_reporting AS SELECT 1")  # what no sink can write to
        state, printed = repository.run(dag=DAG)
        assert state == "failed", printed
        assert "orders_reporting" in printed
        assert rows(connection, "orders_copy") == rows(connection, "orders")

        connection.execute("DROP VIEW orders_reporting")
        connection.execute("DELETE FROM orders WHERE id > 400")  # of a later hour
        state, printed = repository.run(dag=DAG)
        assert state == "success", printed
        assert len(rows(connection, "orders_copy")) == 500
        assert rows(connection, "orders_reporting") == rows(connection, "orders_copy")
