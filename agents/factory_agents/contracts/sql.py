"""Runs a contract's SQL over the valid events of a window, in DuckDB: in bounded memory, with nothing else of the machine in reach."""

from __future__ import annotations

import math
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import msgspec

from factory_agents.contracts.documents import Document, KeyPath, show
from factory_agents.contracts.table import Column, ColumnType
from factory_agents.contracts.times import iso_time
from factory_agents.errors import ConfigurationError, ContractError
from factory_agents.text import printable

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["SQL_MEMORY_MB", "Query", "WindowTable", "read_queries"]

SQL_MEMORY_MB = 256
"""What DuckDB may take by default; what doesn't fit is spilled to a temporary folder."""

_BATCH = 20_000
_SECONDS = 300.0
_EXTRA = "SQL in a contract needs DuckDB: pip install 'factory-agents[sql]'"
_KEYS = ("query", "table", "required")
_TABLE = "events"
_TYPES = dict.fromkeys(("smallint", "integer", "bigint"), "HUGEINT") | dict.fromkeys(("real", "double", "numeric"), "DOUBLE")
_TYPES |= dict.fromkeys(("timestamptz", "timestamp"), "TIMESTAMPTZ") | {"boolean": "BOOLEAN", "date": "DATE", "json": "JSON"}
_NUMBERS = ("INT", "DECIMAL", "DOUBLE", "FLOAT", "BOOL")


@dataclass(frozen=True)
class Query:
    """A query that gives one number. It calls the events ``table``; ``where`` is its place in the contract's file.

    One that is not ``required`` may be for another engine: where DuckDB can't run it, its figure is not known.
    """

    name: str
    text: str
    table: str
    required: bool
    where: str

    @property
    def meaning(self) -> list[Any]:
        """What enters the contract's digest."""
        return [self.name, " ".join(self.text.split()), self.table, self.required]


def read_queries(document: Document, path: KeyPath, data: Any) -> tuple[Query, ...]:
    """The queries at ``path``: a mapping of names to texts, or to mappings with ``query``."""
    given = document.mapping(path, data or {}, "a mapping of names to queries, such as {orphans: SELECT count(*) FROM events WHERE …}")
    queries = []
    for name, value in given.items():
        with document.attempt():
            queries.append(_read(document, (*path, name), name, value))
    return tuple(queries)


def _read(document: Document, path: KeyPath, name: str, value: Any) -> Query:
    whole = {"query": value} if isinstance(value, str) else document.mapping(path, value, "a query, or a mapping with one")
    document.check_keys(path, whole, _KEYS)
    if not name or set(name) & set("(),") or name != name.strip():
        document.fail(path, f"expected a name without brackets and commas, got {show(name)}", key=True)
    text, table, required = whole.get("query"), whole.get("table", _TABLE), whole.get("required", True)
    if not isinstance(text, str) or not text.strip():
        document.fail(path, f"expected a query, such as SELECT count(*) FROM events WHERE …, got {show(text)}")
    if not isinstance(table, str) or not table:
        document.fail((*path, "table"), f"expected what the query calls the events, such as {_TABLE}, got {show(table)}")
    if not isinstance(required, bool):
        document.fail((*path, "required"), f"expected true or false, got {show(required)}")
    return Query(name, text.strip().rstrip(";"), table, required, document.where(path))


class WindowTable:
    """The events of a window as a table in DuckDB, and the queries over it.

    It holds only the columns that queries name: numbers, booleans, dates and times (with a zone) as such, nested values as JSON, the rest
    as text. ``unknown`` says of which queries the answer can't be known, and why. Raises ContractError for a required query that DuckDB
    doesn't take, ConfigurationError where it isn't installed.
    """

    def __init__(self, queries: Sequence[Query], columns: Sequence[Column], read_times: Mapping[str, Callable[[Any], int | None]]) -> None:
        self.unknown: dict[str, str] = {}
        self.columns: tuple[str, ...] = ()
        self._queries = queries
        self._kinds = {c.name: _kind(c.type, c.name in read_times) for c in columns}
        self._read_times = read_times
        self._pending: list[list[Any]] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._connection: DuckDBPyConnection | None = None

    def open(self, memory_mb: int = SQL_MEMORY_MB) -> None:
        """Prepare the queries and the table."""
        try:
            import duckdb
            import pyarrow  # noqa: F401
        except ImportError:
            self._give_up(_EXTRA, ConfigurationError)
            return
        self._folder = tempfile.TemporaryDirectory(prefix="factory-sql-")
        options: dict[str, str | bool | int | float | list[str]] = {
            "temp_directory": self._folder.name,
            "memory_limit": f"{memory_mb}MB",
            "threads": 1,
            "python_enable_replacements": False,
        }
        options |= {"autoinstall_known_extensions": False, "autoload_known_extensions": False}
        self._connection = duckdb.connect(":memory:", config=options)
        if not self._kinds:
            self._give_up("the schema declares no fields", ContractError)
            return
        try:
            self._connection.execute("SET enable_external_access = false; SET lock_configuration = true")
            self._create(list(self._kinds))
            used = [self._prepare(query) for query in self._queries]
            self.columns = tuple(name for name in self._kinds if any(names is None or name.lower() in names for names in used))
            self.columns = self.columns or tuple(self._kinds)[:1]  # rows are counted by some column
            self._create(self.columns)
        except duckdb.Error as error:  # such as two fields that differ in case alone
            self._give_up(_line(error), ContractError)

    def _give_up(self, why: str, raised: type[ConfigurationError | ContractError]) -> None:
        for query in self._queries:
            self._refuse(query, why, raised)
        self.close()

    def _refuse(self, query: Query, why: str, raised: type[ConfigurationError | ContractError] = ContractError) -> None:
        if query.required:
            self.close()
            raise raised(f"{query.where}: window.sql.{query.name}: {why}")
        self.unknown.setdefault(query.name, why)

    def _create(self, names: Sequence[str]) -> None:
        connection = self._connection
        if connection is None:
            return
        listed = ", ".join(f"{_quoted(name)} {self._kinds[name]}" for name in names)
        connection.execute(f'CREATE OR REPLACE TABLE "{_TABLE}" ({listed})')
        for table in {query.table for query in self._queries if query.table.lower() != _TABLE}:
            connection.execute(f'CREATE OR REPLACE VIEW {_quoted(table)} AS SELECT * FROM "{_TABLE}"')

    def _prepare(self, query: Query) -> set[str] | None:
        """The columns that a query names; all (None) where it takes them by another way."""
        import duckdb

        if self._connection is None:
            return set()
        try:
            (parsed,) = self._connection.execute("SELECT json_serialize_sql(?)", [query.text]).fetchone() or ("{}",)
            tree = msgspec.json.decode(parsed)
            if tree.get("error") or len(tree["statements"]) != 1:
                self._refuse(query, f"expected one SELECT: {tree.get('error_message', 'there are several')}")
                return set()
            gives = self._connection.execute(f"DESCRIBE {query.text}").fetchall()
        except duckdb.Error as error:
            self._refuse(query, _line(error))
            return set()
        if len(gives) != 1 or not any(kind in gives[0][1] for kind in _NUMBERS):
            self._refuse(query, f"expected one number, got {', '.join(f'{name} ({kind})' for name, kind, *_ in gives[:5])}")
            return set()
        return _names(tree, {name.lower() for name in self._kinds})

    def add(self, events: Sequence[Any], reader: Callable[[str], Callable[[Any], Any]]) -> None:
        """Take a batch of events."""
        if self._connection is None or len(self.unknown) == len(self._queries):
            return
        self._pending = self._pending or [[] for _ in self.columns]
        for name, values in zip(self.columns, self._pending, strict=True):
            values.extend(map(reader(name), events))
        if len(self._pending[0]) >= _BATCH:
            self._flush()

    def _flush(self) -> None:
        pending, self._pending = self._pending, []
        if self._connection is None or not pending:
            return
        import duckdb
        import pyarrow

        arrays = []
        for name, values in zip(self.columns, pending, strict=True):
            try:
                arrays.append(_array(pyarrow, self._kinds[name], values, self._read_times.get(name, iso_time)))
            except (ValueError, TypeError, OverflowError, pyarrow.ArrowException) as error:
                self._lose(f"a value of {name!r} is no {self._kinds[name]}: {_line(error)}")
                return
        try:
            self._connection.register("_batch", pyarrow.Table.from_arrays(arrays, [f"c{i}" for i in range(len(arrays))]))
            self._connection.execute(f'INSERT INTO "{_TABLE}" SELECT * FROM _batch')
            self._connection.unregister("_batch")
        except duckdb.Error as error:
            self._lose(_line(error))

    def _lose(self, why: str) -> None:
        """Not every event is in the table: no answer is right."""
        self.unknown |= {query.name: why for query in self._queries if query.name not in self.unknown}

    def answers(self) -> dict[str, int | float | None]:
        """What each query gives; None where it isn't known."""
        self._flush()
        return {query.name: None if query.name in self.unknown else self._answer(query) for query in self._queries}

    def _answer(self, query: Query) -> int | float | None:
        if self._connection is None:
            return None
        import duckdb

        timer = threading.Timer(_SECONDS, self._connection.interrupt)
        timer.start()
        try:
            rows = self._connection.execute(query.text).fetchmany(2)
        except duckdb.Error as error:
            self.unknown[query.name] = _line(error)
            return None
        finally:
            timer.cancel()
        if len(rows) != 1:
            self.unknown[query.name] = f"the query gave {'several rows' if rows else 'no row'}"
            return None
        value = _number(rows[0][0])
        if value is None:
            self.unknown[query.name] = f"the query gave {'null' if rows[0][0] is None else 'no finite number'}"
        return value

    @property
    def not_run(self) -> list[str]:
        """``unknown`` as lines for a person, with the queries' places."""
        known = self.unknown
        return [f"{q.where}: not run: query {q.name} ({known[q.name]})" for q in self._queries if q.name in known]

    def close(self) -> None:
        """Free memory and disk."""
        connection, folder = self._connection, self._folder
        self._connection = self._folder = None
        self._pending = []
        if connection is not None:
            connection.close()
        if folder is not None:
            folder.cleanup()


def _kind(type_: str, timed: bool) -> str:
    parsed = ColumnType.parse(type_)
    if parsed is None or parsed.array:
        return "JSON"
    return "TIMESTAMPTZ" if timed else _TYPES.get(parsed.name, "VARCHAR")


def _array(pyarrow: Any, kind: str, values: Sequence[Any], read_time: Callable[[Any], int | None]) -> Any:
    """A column of a batch; ValueError or the like for a value that it can't hold."""
    if kind == "HUGEINT":
        try:
            return pyarrow.array(values, pyarrow.int64())
        except (ValueError, TypeError, OverflowError, pyarrow.ArrowException):
            return pyarrow.array([None if v is None else Decimal(int(v)) for v in values], pyarrow.decimal128(38, 0))
    if kind == "DOUBLE":
        return pyarrow.array([None if v is None else float(v) for v in values], pyarrow.float64())
    if kind == "TIMESTAMPTZ":
        return pyarrow.array(list(map(read_time, values)), pyarrow.timestamp("us", tz="UTC"))
    if kind == "JSON":
        return pyarrow.array([None if v is None else msgspec.json.encode(v).decode() for v in values], pyarrow.string())
    return pyarrow.array(values, pyarrow.bool_() if kind == "BOOLEAN" else pyarrow.string())


def _number(value: Any) -> int | float | None:
    if isinstance(value, Decimal):
        value = int(value) if value == value.to_integral_value() else float(value)
    if not isinstance(value, (bool, int, float)) or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if isinstance(value, float):
        return value
    return int(value) if abs(value) < 1 << 63 else float(value)


def _names(tree: Any, known: Collection[str]) -> set[str] | None:
    """The names of columns in a parsed query, in lower case; None where it takes columns without their names, as in ``SELECT *``."""
    found: set[str] = set()
    for node in _nodes(tree):
        if node.get("class") in ("STAR", "POSITIONAL_REFERENCE") or "PIVOT" in str(node.get("type")) or node.get("ref_type") == "NATURAL":
            return None
        for key in ("column_names", "using_columns"):
            names = [str(name).lower() for name in node.get(key) or ()]
            if len(names) == 1 and names[0] not in known:  # an alias, perhaps of whole rows
                return None
            found.update(names)
    return found


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        yield tree
        tree = list(tree.values())
    for part in tree if isinstance(tree, list) else ():
        yield from _nodes(part)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _line(error: BaseException) -> str:
    text = printable(str(error).strip().split("\n")[0])
    return text if len(text) <= 200 else text[:199] + "…"
