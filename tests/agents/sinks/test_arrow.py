"""Records as Arrow tables: the same values, ranks, deletes and rejects as rows have, whatever chunks they come in."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq

from factory_agents.contracts import load_contract
from factory_agents.runtime.ledger_sink import RANK
from factory_agents.runtime.rows import RowReader
from factory_agents.sinks.arrow import ArrowReader, as_parquet
from factory_agents.testing.records import CONTRACT, W1, at, event, gone

TABLE = load_contract(CONTRACT | {"deletes": True}).table()
TYPES = {"id": pa.string(), "version": pa.int64(), "at": pa.timestamp("us", "UTC"), "value": pa.string(), RANK: pa.binary()}


def arrow_reader() -> ArrowReader:
    def array(type_: pa.DataType):  # type: ignore[no-untyped-def]  # of Arrow's own types
        return lambda values: pa.array(values, type_)

    return ArrowReader(RowReader(TABLE, W1), {name: array(TYPES[name]) for name in (*(c.name for c in TABLE.columns), RANK)})


def test_records_are_what_they_are_as_rows() -> None:
    events = [event(str(i), None if i % 7 == 0 else "x", i) for i in range(5_000)]
    messages = [*at([*events, b"{", event("last")]), gone("old", 5_003)]
    (rows,), rejected = RowReader(TABLE, W1).read(messages)
    batches, also = arrow_reader().read(messages)
    joined = arrow_reader().join(batches)
    assert [tuple(row.values()) for row in joined.table.to_pylist()] == rows.rows
    assert joined.deleted == rows.deleted
    assert list(rejected) == list(also) == [5_000]
    assert joined.nbytes == sum(batch.nbytes for batch in batches) > 0


def test_nothing_is_nothing() -> None:
    assert arrow_reader().read([]) == ([], {})
    assert arrow_reader().read(at([b"{"]))[0] == []


def test_deletes_alone_are_a_table_without_rows() -> None:
    (batch,), _ = arrow_reader().read([gone("a")])
    assert (batch.table.num_rows, [key for key, _ in batch.deleted]) == (0, ["a"])
    assert batch.nbytes > 0  # so many of them are a part, too


def test_a_file_holds_the_table() -> None:
    table = pa.table({"a": ["x", None], "b": [1, 2]})
    assert pq.read_table(io.BytesIO(as_parquet(table).getvalue())) == table
