"""Single rows that the database refuses, found by halving: what a constraint, a missing partition or a trigger says of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from factory_agents.runtime.agents import Reject
from factory_agents.sinks.postgres.copy import CHECK_CONSTRAINTS, is_of_a_row, is_raised
from factory_agents.sinks.postgres.names import compose

if TYPE_CHECKING:
    import psycopg
    from psycopg import sql

__all__ = ["NUMBER", "SUSPECTS", "find_refused"]

SUSPECTS = "factory_suspects"
"""The newest row of each key, with its ``NUMBER`` in the order in which they are merged."""

NUMBER = "_factory_number"

_RULES = {"23502": "not-null", "23514": "partition"}
_FOREIGN_KEY = "23503"


def find_refused(
    connection: psycopg.Connection[Any], prepare: Callable[[], None], insert: Callable[[int, int], sql.Composed], most: int
) -> dict[tuple[int, int], Reject]:
    """Why the database refuses rows, by partition and offset of their records: ``most`` of them, or all; the transaction is as before.

    ``prepare`` makes the table of suspects, ``insert`` merges those from one number to another (both included).
    """
    connection.execute("SAVEPOINT factory_search")
    prepare()
    connection.execute(compose(f"CREATE UNIQUE INDEX ON {SUSPECTS} ({NUMBER})"))
    row = connection.execute(compose(f"SELECT count(*) FROM {SUSPECTS}")).fetchone()
    search = _Search(connection, insert)
    search.halve(1, int(row[0]) if row is not None else 0, most)
    search.try_orphans_again()
    numbers = sorted(search.refused)
    query = f"SELECT _factory_partition, _factory_offset FROM {SUSPECTS} WHERE {NUMBER} = ANY ({{numbers}}) ORDER BY {NUMBER}"
    places = connection.execute(compose(query, numbers=numbers)).fetchall()
    connection.execute("ROLLBACK TO SAVEPOINT factory_search")
    return {(p, o): _reject(search.refused[n]) for n, (p, o) in zip(numbers, places, strict=True)}


class _Search:
    """Rows that are not refused stay in the table while it is searched: others may refer to them, or clash with them."""

    def __init__(self, connection: psycopg.Connection[Any], insert: Callable[[int, int], sql.Composed]) -> None:
        self._connection = connection
        self._insert = insert
        self.refused: dict[int, psycopg.Error] = {}

    def halve(self, first: int, last: int, most: int) -> None:
        """Find the refused rows between two numbers, in their order."""
        todo = [(first, last)]
        while todo and len(self.refused) < most:
            low, high = todo.pop()
            error = self._try(low, high) if low <= high else None
            if error is None:
                continue
            if low == high:
                self.refused[low] = error
            else:
                middle = (low + high) // 2
                todo += [(middle + 1, high), (low, middle)]

    def try_orphans_again(self) -> None:
        """Rows that miss another row may have found it further on, among ours."""
        found = True
        while found:
            found = False
            for number in [n for n, error in self.refused.items() if error.sqlstate == _FOREIGN_KEY]:
                if self._try(number, number) is None:
                    del self.refused[number]
                    found = True

    def _try(self, low: int, high: int) -> psycopg.Error | None:
        import psycopg

        connection = self._connection
        connection.execute("SAVEPOINT factory_try")
        try:
            connection.execute(self._insert(low, high))
            connection.execute(CHECK_CONSTRAINTS)
        except psycopg.Error as error:
            if not is_of_a_row(error):
                raise
            connection.execute("ROLLBACK TO SAVEPOINT factory_try")
            return error
        connection.execute("RELEASE SAVEPOINT factory_try")
        return None


def _reject(error: psycopg.Error) -> Reject:
    diag = error.diag
    said = " ".join((diag.message_primary or str(error)).split())
    detail = " ".join((diag.message_detail or "").split())
    more = f" ({detail[:300]})" if detail and not detail.startswith("Failing row contains") else ""
    rule = diag.constraint_name or ("trigger" if is_raised(error) else _RULES.get(error.sqlstate or "", "database"))
    return Reject(f"the database refuses it: {said[:500]}{more}", rule=rule)
