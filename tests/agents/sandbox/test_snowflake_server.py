"""The Snowflake emulator's answers, as Snowflake's client takes them."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping

from snowflake.connector.errors import DatabaseError

from tests.support.snowflake import SnowflakeSchema

LOCKED = 625


def test_a_statement_that_meets_a_transaction_is_aborted_whatever_idle_sessions_begin_meanwhile(
    snowflake_account: Mapping[str, str],
) -> None:
    schemas = [SnowflakeSchema(snowflake_account) for _ in range(12)]
    one, other, *idle = schemas
    one.query(f"CREATE TABLE {one.name}.t (n INT)")
    one.query(f"INSERT INTO {one.name}.t VALUES (1)")
    over, met = threading.Event(), Counter[int | None]()

    def asks_now_and_then(schema: SnowflakeSchema) -> None:
        while not over.wait(1.0):  # for longer it is not idle
            assert schema.query("SELECT ?", 1) == [(1,)]

    clients = [threading.Thread(target=asks_now_and_then, args=(schema,)) for schema in idle]
    for client in clients:
        client.start()
    while met.total() < 100:
        one.query("BEGIN")
        one.query(f"UPDATE {one.name}.t SET n = 2")
        try:
            other.query(f"UPDATE {one.name}.t SET n = 3")
        except DatabaseError as error:
            met[error.errno] += 1
        one.query("COMMIT")
    over.set()
    for client in clients:
        client.join()
    for schema in schemas:
        schema.close()
    assert met == {LOCKED: 100}
