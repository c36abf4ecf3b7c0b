"""Single rows that the database refuses: what a constraint, a missing partition or a trigger says of each.

A statement over many rows ends at the first that is refused. Which one that was, a sequence tells: what it was set to stays when all else
is rolled back. It tells nothing of what is looked at when a statement ends (foreign keys, triggers after rows): halving finds that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from factory_agents.runtime.agents import Reject
from factory_agents.sinks.postgres.copy import CHECK_CONSTRAINTS, is_of_a_row, is_raised
from factory_agents.sinks.postgres.names import compose

if TYPE_CHECKING:
    import psycopg
    from psycopg import sql

__all__ = ["NUMBER", "REACHED", "SUSPECTS", "find_refused"]

SUSPECTS = "factory_suspects"
"""The newest row of each key, with its ``NUMBER`` in the order in which they are merged."""

NUMBER = "_factory_number"

REACHED = "pg_temp.factory_reached"
"""A sequence that the merge of suspects sets to the number of each row that it comes to."""

_PIECE = 1000
"""Rows that are tried at once at most: a refused one costs no more, however many there are."""

_RULES = {"23502": "not-null", "23514": "partition"}
_FOREIGN_KEY = ("23503", "23001")


def find_refused(
    connection: psycopg.Connection[Any],
    prepare: Callable[[], None],
    apply: Callable[[int, int], sql.Composed],
    most: int,
    *,
    deferred: bool = True,
) -> dict[tuple[int, int], Reject]:
    """Why the database refuses rows, by partition and offset of their records: ``most`` of them, or all; the transaction is as before.

    ``prepare`` makes the table of suspects, ``apply`` merges (or deletes) those from one number to another, both included. ``deferred``:
    constraints count that are otherwise looked at with the commit.
    """
    connection.execute("SAVEPOINT factory_search")
    prepare()
    if deferred:  # else what the tries set would outlast them: a rollback undoes only what its own savepoint has seen
        connection.execute("SET CONSTRAINTS ALL DEFERRED")
    connection.execute(compose(f"CREATE UNIQUE INDEX ON {SUSPECTS} ({NUMBER})"))
    connection.execute(compose(f"CREATE SEQUENCE {REACHED}"))
    row = connection.execute(compose(f"SELECT count(*) FROM {SUSPECTS}")).fetchone()
    search = _Search(connection, apply, CHECK_CONSTRAINTS if deferred else "")
    search.find(int(row[0]) if row is not None else 0, most)
    search.try_orphans_again()
    numbers = sorted(search.refused)
    query = f"SELECT _factory_partition, _factory_offset FROM {SUSPECTS} WHERE {NUMBER} = ANY ({{numbers}}) ORDER BY {NUMBER}"
    places = connection.execute(compose(query, numbers=numbers)).fetchall()
    connection.execute("ROLLBACK TO SAVEPOINT factory_search")
    return {(p, o): _reject(search.refused[n]) for n, (p, o) in zip(numbers, places, strict=True)}


class _Search:
    """Rows that are not refused stay in the table while it is searched: others may refer to them, or clash with them."""

    def __init__(self, connection: psycopg.Connection[Any], apply: Callable[[int, int], sql.Composed], check: str) -> None:
        self._connection = connection
        self._apply = apply
        self._check = f"{check};" if check else ""
        self.refused: dict[int, psycopg.Error] = {}

    def find(self, count: int, most: int) -> None:
        """Find the refused rows among so many, in their order."""
        self._connection.execute("SAVEPOINT factory_pieces")
        for first in range(1, count + 1, _PIECE):
            self._find(first, min(count, first + _PIECE - 1), most)
        if not self.refused and count > _PIECE:  # of two rows that a trigger gives one key, each is right in its piece
            self._connection.execute("ROLLBACK TO SAVEPOINT factory_pieces")
            self._find(1, count, most)

    def _find(self, first: int, last: int, most: int) -> None:
        todo = [(first, last)]
        while todo and len(self.refused) < most:
            low, high = todo.pop()
            error, reached = self._try(low, high) if low <= high else (None, 0)
            if error is None:
                continue
            if _is_of_a_key_twice(error):  # alone it would be taken for the same row's next version
                self.refused[reached] = error
                todo += [(reached + 1, high), (low, reached - 1)]
            elif low == high:
                self.refused[low] = error
            elif reached < high:
                todo += [(reached + 1, high), (reached, reached), (low, reached - 1)]
            else:
                middle = (low + high) // 2
                todo += [(middle + 1, high), (low, middle)]

    def try_orphans_again(self) -> None:
        """Rows that miss another row may have found it further on, among ours; those that others refer to may be deleted after them."""
        found = True
        while found:
            found = False
            for number in [n for n, error in self.refused.items() if error.sqlstate in _FOREIGN_KEY]:
                if self._try(number, number)[0] is None:
                    del self.refused[number]
                    found = True

    def _try(self, low: int, high: int) -> tuple[psycopg.Error | None, int]:
        """Merge rows, or delete them, to stay unless one is refused; which error there was, and the number of the row that was come to."""
        import psycopg

        query = f"SAVEPOINT factory_try; {{apply}}; {self._check} RELEASE SAVEPOINT factory_try"
        try:
            self._connection.execute(compose(query, apply=self._apply(low, high)), prepare=False)
        except psycopg.Error as error:
            if not is_of_a_row(error):
                raise
            # a savepoint that is kept makes all that follows slower
            query = f"ROLLBACK TO SAVEPOINT factory_try; RELEASE SAVEPOINT factory_try; SELECT last_value FROM {REACHED}"
            answers = self._connection.execute(compose(query), prepare=False)
            while answers.nextset():
                pass
            [reached] = answers.fetchone() or (0,)
            return error, int(reached)
        return None, 0


def _is_of_a_key_twice(error: psycopg.Error) -> bool:
    """Whether a trigger has given a row the key of another one: they are told apart before."""
    return error.diag.source_function == "ExecOnConflictUpdate"


def _reject(error: psycopg.Error) -> Reject:
    diag = error.diag
    if _is_of_a_key_twice(error):
        return Reject("the database refuses it: a trigger gives it the key of another row of its window", rule="trigger")
    said = " ".join((diag.message_primary or str(error)).split())
    detail = " ".join((diag.message_detail or "").split())
    more = f" ({detail[:300]})" if detail and not detail.startswith("Failing row contains") else ""
    rule = diag.constraint_name or ("trigger" if is_raised(error) else _RULES.get(error.sqlstate or "", "database"))
    return Reject(f"the database refuses it: {said[:500]}{more}", rule=rule)
