"""Which values a column has: read once, kept in bounded memory, asked for every event."""

from __future__ import annotations

import hashlib
import secrets
import tempfile
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec

from factory_agents.contracts import ForeignKey
from factory_agents.errors import ConfigurationError
from factory_agents.runtime.agents import Reject, decode_event
from factory_agents.sources.files import FileSource
from factory_agents.sources.rows import ReadOptions, check_field
from factory_agents.sources.table import connect, describe, in_one_form, querying

__all__ = ["MOST_VALUES", "Members", "read_members"]

MOST_VALUES = 10_000_000
"""A column with more distinct values is refused; 8 bytes are kept of each."""

_BATCH = 10_000
_BUCKETS = 256
_MASK = (1 << 64) - 1


class Members:
    """The distinct values of a column, by 64-bit hashes: beside 10 million values, one in 10^12 others is taken for one of them.

    Values are compared as text: 5, 5.0 and "5" are one. ``digest`` tells the content of one column from another's, in whatever
    order and however often its values stand there; it is known after ``tidy``.
    """

    def __init__(self, most: int = MOST_VALUES) -> None:
        self._most = most
        self._added = 0
        self._buckets = [array("q") for _ in range(_BUCKETS)]
        self._lasting = [array("Q") for _ in range(_BUCKETS)]  # beside each hash one that is the same in every process
        self.digest = ""

    def __len__(self) -> int:
        return self._added

    def add(self, values: Iterable[Any]) -> None:
        """Add values, of which nulls, lists and objects are none. Raises ConfigurationError once there are too many."""
        for text in map(_text, values):
            if text is None:
                continue
            number = hash(text)
            lasting = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
            self._buckets[number & _BUCKETS - 1].append(number)
            self._lasting[number & _BUCKETS - 1].append(int.from_bytes(lasting))
            self._added += 1
        if self._added > self._most:
            self._drop_repeated()
            if self._added > self._most:
                raise ConfigurationError(f"it has more than {self._most:,} distinct values, the most that a reference may have")

    def tidy(self) -> None:
        """Drop what was added twice, and sort: to be done once, before the values are asked for."""
        self._drop_repeated()
        self.digest = f"{sum(map(sum, self._lasting)) & _MASK:016x}"
        self._lasting = []

    def _drop_repeated(self) -> None:
        for place, (bucket, lasting) in enumerate(zip(self._buckets, self._lasting, strict=True)):
            kept = sorted(dict(zip(bucket, lasting, strict=True)).items())
            self._buckets[place] = array("q", (number for number, _ in kept))
            self._lasting[place] = array("Q", (number for _, number in kept))
        self._added = sum(map(len, self._buckets))

    def tester(self) -> Callable[[Any], bool]:
        """Whether a value of an event is in the column."""
        buckets, mask = self._buckets, _BUCKETS - 1

        def contains(value: Any) -> bool:
            text = value if type(value) is str else _text(value)
            if text is None:
                return False
            number = hash(text)
            bucket = buckets[number & mask]
            place = bisect_left(bucket, number)
            return place < len(bucket) and bucket[place] == number

        return contains


def _text(value: Any) -> str | None:
    if type(value) is str:
        return value
    if type(value) is float and value.is_integer():
        value = int(value)
    if value is None or isinstance(value, (list, dict)):
        return None
    return msgspec.json.encode(value).decode()


def read_members(key: ForeignKey) -> Members:
    """The values that a field may have.

    Raises ConfigurationError for a column that isn't there, has no values or too many; UnavailableError where it can't be read now.
    """
    members = Members()
    batches = _of_table(key) if key.table else _of_file(key)
    try:
        for values in batches:
            members.add(values)
    except ConfigurationError as error:
        raise ConfigurationError(f"{key.rule}: {key.source}: {error}") from error
    members.tidy()
    if not len(members):
        raise ConfigurationError(f"{key.rule}: {key.source} has no values: every event would be rejected; fill it first")
    return members


def _of_file(key: ForeignKey) -> Iterator[Sequence[Any]]:
    with _file_of(key) as name:
        source = FileSource([name], ReadOptions(id_field=key.column))
        columns: dict[str, None] = {}
        for batch in source.read(None, 0):
            rows = []
            for record in batch:
                try:
                    if record.reject is not None:
                        raise record.reject
                    rows.append(decode_event(record.value))
                except Reject as reject:
                    raise ConfigurationError(f"{record.where}: {reject.reason}; correct this file") from reject
            for row in rows:
                columns.update(dict.fromkeys(row))
            if rows and key.column not in columns:
                check_field(key.column, "column", list(columns), key.file)
            yield [row.get(key.column) for row in rows]


@contextmanager
def _file_of(key: ForeignKey) -> Iterator[str]:
    """Where the file is: what came with the contract, else what lies beside it, else what has its name here."""
    if key.content is None:
        yield key.path or key.file
        return
    with tempfile.TemporaryDirectory(prefix="factory-reference-") as folder:
        path = Path(folder) / Path(key.file).name
        path.write_bytes(key.content)
        yield str(path)


def _of_table(key: ForeignKey) -> Iterator[Sequence[Any]]:
    from psycopg import sql

    with closing(connect(key.database_env)) as connection:
        connection.read_only = True
        with querying(key.source):
            in_one_form(connection)
        relation = describe(connection, key.table, "")
        check_field(key.column, "column", list(relation.columns), relation.what)
        query = sql.SQL("SELECT DISTINCT to_jsonb({column})::text FROM {body} AS q WHERE {column} IS NOT NULL").format(
            column=sql.Identifier(key.column), body=relation.body
        )
        with querying(key.source), connection.cursor(f"factory_{secrets.token_hex(4)}") as cursor:
            cursor.execute(query)
            while rows := cursor.fetchmany(_BATCH):
                yield [msgspec.json.decode(text) for (text,) in rows]
