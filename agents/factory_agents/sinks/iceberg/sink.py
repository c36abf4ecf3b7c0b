"""Iceberg as a sink: parts staged as the table's own files, and landed by one commit with the ledger's entry among its properties."""

from __future__ import annotations

import uuid
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Literal

import msgspec

from factory_agents.contracts import TableSpec
from factory_agents.errors import SinkError
from factory_agents.runtime.ledger_sink import RANK, ChangedError, Landing, LedgerSink, Part, Reader
from factory_agents.runtime.rows import RowReader
from factory_agents.runtime.sink_ledger import Figures
from factory_agents.sinks.arrow import ArrowReader, ArrowRows
from factory_agents.sinks.iceberg.catalog import CatalogSettings, explained, open_catalog
from factory_agents.sinks.iceberg.deletes import Deletes, deletes_of
from factory_agents.sinks.iceberg.files import DELETES, MAIN, commit_once, read_rows, write_rows
from factory_agents.sinks.iceberg.rows import (
    Keys,
    beside,
    column_of,
    deletes_table,
    filled,
    has_twice,
    joined,
    keys_of,
    newest,
    places_among,
    taken,
)
from factory_agents.sinks.iceberg.table import PUBLICATION, Layout, look_at_table, open_table

if TYPE_CHECKING:
    import pyarrow as pa
    from pyiceberg.catalog import Catalog
    from pyiceberg.expressions import BooleanExpression
    from pyiceberg.manifest import DataFile
    from pyiceberg.table import FileScanTask, Table

__all__ = ["IcebergSink", "IcebergTarget", "Mode"]

Mode = Literal["append", "upsert"]
"""``append``: a window's rows stand beside those of others, and replace its own earlier ones. ``upsert``: one row for each key."""

_LEDGER = "factory.publish."
"""What the properties begin with that hold the ledger's entries."""
_MEGABYTE = 1024 * 1024
_LISTED = 200
"""Values that files are told apart by one by one; of more only the least and the greatest are."""


class IcebergTarget(msgspec.Struct, frozen=True):
    """Where and what to publish; ``rewrite_limit``: megabytes of files that one landing may write again."""

    catalog: CatalogSettings
    table: tuple[str, ...]
    mode: Mode = "append"
    layout: Layout = Layout()
    create_table: bool = True
    evolve: bool = True
    rewrite_limit: float = 4096


class IcebergSink(LedgerSink):
    """One table of Iceberg.

    The ledger's entries are properties of the table. Each commit of ours makes a snapshot, an empty one for a claim, and says which
    snapshot it expects: so all of them come one after the other, and one that was made for another state of the table fails. pyiceberg's
    own retries, which would add a fenced publisher's files to a newer state, are passed over. The catalog is not spoken to before ``open``.

    Deletes are remembered on a branch of the table, which its readers don't see, and which expiring snapshots spares; the commit that lands
    a publication moves it too.
    """

    system = "iceberg"
    deletes = True

    def __init__(self, target: IcebergTarget) -> None:
        self.table, self.address = ".".join(target.table), target.catalog.address
        self._target = target
        self._catalog: Catalog | None = None
        self._spec = TableSpec()
        self._opened: _Opened | None = None
        self._staged: dict[int, _Staged] = {}
        self._repeats = False
        """Whether a part had a key twice. Where none does, only all of them together are looked through."""
        self._unnamed: set[str] = set()
        """Files that no commit was asked to take."""

    def open(self, table: TableSpec) -> None:
        """See ``LedgerSink.open``.

        Raises SinkError where it doesn't fit, ConfigurationError or UnavailableError where the catalog refuses or doesn't answer.
        """
        target = self._target
        if self._catalog is None:
            self._catalog = open_catalog(target.catalog)
        with explained(f"table {self.table}"):
            opened, self._spec = open_table(
                self._catalog, target.table, table, target.layout, create=target.create_table, evolve=target.evolve
            )
        self._opened = _Opened(opened.metadata.table_uuid, self._fields(opened), opened.schema().as_arrow())

    def check(self, table: TableSpec) -> list[str]:
        """See ``LedgerSink.check``. Where the table is there, a small file is written to its location and deleted."""
        target = self._target
        try:
            self._catalog = self._catalog or open_catalog(target.catalog)
            with explained(f"table {self.table}"):
                found, changes, spec = look_at_table(
                    self._catalog, target.table, table, target.layout, create=target.create_table, evolve=target.evolve
                )
                columns = ", ".join(f"{c.name} {c.type.text}" for c in spec.columns)
                lines = [f"the catalog {target.catalog.name} answers"]
                if found is None:
                    return [*lines, f"{self.table} would be created: {columns}"]
                place = f"{found.location()}/data/factory-check-{uuid.uuid4()}"
                with found.io.new_output(place).create() as file:
                    file.write(b"")
                found.io.delete(place)
                lines += [f"{self.table} is there, and takes the columns: {columns}", f"files may be written to {found.location()}"]
                return lines + [f"column {name} {type_} would be added or widened" for name, type_ in changes.items()]
        finally:
            self.close()

    def reader(self, table: TableSpec, window: str) -> Reader:
        """See ``LedgerSink.reader``: the contract's columns, within what the table takes."""
        if self._opened is None:
            raise SinkError("nothing is claimed: claim first")
        schema, names = self._opened.schema, (*(column.name for column in self._spec.columns), RANK)
        return ArrowReader(RowReader(self._spec, window), {name: column_of(schema.field(name).type) for name in names})

    def _load(self) -> Table:
        """The table as it is now. Raises ChangedError where it isn't the one that was opened."""
        from pyiceberg.exceptions import NoSuchTableError

        if self._catalog is None or self._opened is None:
            raise SinkError("nothing is claimed: claim first")
        with explained(f"table {self.table}"):
            try:
                table = self._catalog.load_table(self._target.table)
            except NoSuchTableError:
                raise ChangedError(self.table, "it was dropped") from None
        if table.metadata.table_uuid != self._opened.uuid:
            raise ChangedError(self.table, "it was recreated")
        return table

    def _load_alike(self) -> Table:
        """The same, with the columns that were opened: rows made for another column would land without it."""
        table = self._load()
        if self._opened is not None and self._fields(table) != self._opened.fields:
            raise ChangedError(self.table, "its columns were changed")
        return table

    def _fields(self, table: Table) -> dict[str, int]:
        """The columns that we write, and their ids."""
        ours = {*(column.name for column in self._spec.columns), RANK, PUBLICATION}
        return {field.name: field.field_id for field in table.schema().fields if field.name in ours}

    def read(self, key: str) -> str | None:
        """See ``LedgerSink.read``."""
        found: str | None = self._load().properties.get(_LEDGER + key)
        return found

    def change(self, key: str, old: str | None, new: str) -> bool:
        """See ``LedgerSink.change``: an empty snapshot with the entry, since a commit of properties alone fences nobody."""
        table = self._load()
        if table.properties.get(_LEDGER + key) != old:
            return False
        with explained(f"table {self.table}"):
            self._commit(table, {MAIN: _Files()}, {_LEDGER + key: new})
        return True

    def entries(self) -> list[tuple[str, str]]:
        """See ``LedgerSink.entries``."""
        return [(name.removeprefix(_LEDGER), entry) for name, entry in self._load().properties.items() if name.startswith(_LEDGER)]

    def forget(self, entries: Mapping[str, str]) -> int:
        """See ``LedgerSink.forget``."""
        table = self._load()
        gone = [_LEDGER + key for key, entry in entries.items() if table.properties.get(_LEDGER + key) == entry]
        with explained(f"table {self.table}"):
            transaction = table.transaction()
            with transaction.update_snapshot().fast_append():
                pass
            transaction.remove_properties(*gone)
            commit_once(table, transaction)
        return len(gone)

    def holds(self, publication: int) -> bool:
        """See ``LedgerSink.holds``."""
        from pyiceberg.expressions import EqualTo

        with explained(f"table {self.table}"):
            scan = self._load().scan(EqualTo(PUBLICATION, publication), selected_fields=(PUBLICATION,), limit=1)
            return bool(scan.to_arrow().num_rows)

    def stage(self, part: Part, rows: ArrowRows) -> None:
        """See ``LedgerSink.stage``: the newest row of each key is written to files that no snapshot names yet."""
        table, key = self._load_alike(), self._spec.key
        with explained(f"table {self.table}"):
            schema, narrow = table.schema().as_arrow(), self._narrow(table)
            columns = {name: rows.table.column(name).cast(schema.field(name).type) for name in rows.table.column_names}
            data = filled(schema, columns, part.publication)
            self._keep(table, part.number, data, deletes_table((*key, RANK), rows.deleted, narrow, part.publication))

    def _keep(self, table: Table, number: int, data: pa.Table, deleted: pa.Table) -> None:
        import pyarrow as pa

        keys = keys_of(data, self._spec.key)
        chosen = None
        if not self._spec.deletes and (not self._staged or self._repeats):  # with deletes a later part may leave an older row
            chosen = newest(keys)
            self._repeats = chosen is not None
        if chosen is not None:
            data, keys = data.take(chosen), taken(keys, chosen)
        self._staged[number] = _Staged(keys, self._write(table, data), table.spec().spec_id, deleted)
        del data
        pa.default_memory_pool().release_unused()

    def _write(self, table: Table, data: pa.Table) -> tuple[DataFile, ...]:
        files = write_rows(table, data)
        self._unnamed.update(file.file_path for file in files)
        return files

    def land(self, landing: Landing) -> Figures | None:
        """See ``LedgerSink.land``."""
        table = self._load_alike()
        if table.properties.get(_LEDGER + landing.key) != landing.old:
            return None
        with explained(f"publishing to {self.table}"):
            self._settle(table)
            return self._land(table, landing)

    def _settle(self, table: Table) -> None:
        """Leave each key's newest row in one part alone."""
        staged = [self._staged[number] for number in sorted(self._staged)]
        if len(staged) > 1 and not self._spec.deletes and has_twice([part.keys for part in staged]):
            chosen = newest(joined([part.keys for part in staged]))
            staged = self._only(table, staged, chosen.to_pylist()) if chosen is not None else staged
        self._staged = dict(enumerate(staged))

    def _only(self, table: Table, staged: Sequence[_Staged], chosen: Sequence[int]) -> list[_Staged]:
        """The parts with these of their rows, counted through; ``chosen`` is in order."""
        import pyarrow as pa

        made, start, at = [], 0, 0
        for part in staged:
            end = start + len(part.keys)
            upto = bisect_left(chosen, end, at)
            if upto - at < len(part.keys):
                keys = taken(part.keys, pa.array([i - start for i in chosen[at:upto]], pa.int64()))
                part = _Staged(keys, self._write(table, _with_ranks(table, part.files, keys.ranks)), part.spec_id, part.deleted)
            made.append(part)
            start, at = end, upto
        return made

    def _land(self, table: Table, landing: Landing) -> Figures:
        staged = list(self._staged.values())
        if any(part.spec_id != table.spec().spec_id for part in staged):
            raise ChangedError(self.table, "its partitioning was changed")
        deletes, remembered = self._deletes_of(table, landing)
        if deletes.left is not None:
            staged = self._only(table, staged, deletes.left)
        only_adds = self._target.mode == "append" and not (landing.past or landing.stale or self._spec.deletes)
        comparing = [] if only_adds else staged
        tasks = self._touched(table, landing, [*(part.keys for part in comparing), deletes.keys])
        new = self._keys_of(table, comparing if tasks or len(deletes.keys) else [])  # many keys: no copy is made for nothing
        rows, removed, blocked, standing = _Files(), 0, set[int](), set[int]()
        for task in tasks:
            seen = read_rows(table, task, (*self._spec.key, RANK, PUBLICATION))
            newer_wins = self._target.mode == "upsert"
            found = beside(new, deletes.keys, seen, self._spec.key, landing.past, landing.stale, newer_wins=newer_wins)
            removed += found.removed
            blocked.update(found.blocked.to_pylist())
            standing.update(found.standing.to_pylist())
            if not found.stays:
                rows.deleted.append(task.file)
                self._check_limit(rows.deleted)
                rows.added += self._write(table, read_rows(table, task).filter(found.kept))
        if blocked:
            staged = self._only(table, staged, [i for i in range(len(new)) if i not in blocked])
        rows.added += [file for part in staged for file in part.files]
        standing.update(places_among(deletes.keys, new))
        written = sum(len(part.keys) for part in staged)
        figures = Figures(deletes.distinct, written, removed, len(deletes.keys) - len(standing))
        self._commit(table, {MAIN: rows, DELETES: remembered}, {_LEDGER + landing.key: landing.entry(figures)})
        return figures

    def _keys_of(self, table: Table, staged: Sequence[_Staged]) -> Keys:
        none = keys_of(self._narrow(table).empty_table(), self._spec.key)
        return joined([none, *(part.keys for part in staged)])

    def _narrow(self, table: Table) -> pa.Schema:
        """What is asked of a table's rows, and all that is kept of a delete."""
        return table.schema().select(*self._spec.key, RANK, PUBLICATION).as_arrow()

    def _deletes_of(self, table: Table, landing: Landing) -> tuple[Deletes, _Files]:
        """The deletes that count, and the files of what is remembered then. Those that may speak of the landing's keys are read again."""
        import pyarrow as pa

        narrow, parts, key = self._narrow(table), list(self._staged.values()), self._spec.key
        told = pa.concat_tables([narrow.empty_table(), *(part.deleted for part in parts)])
        if not self._spec.deletes:
            return Deletes(keys_of(told, key), None, sum(len(part.keys) for part in parts), (), told), _Files()
        head, new = table.snapshot_by_name(DELETES), self._keys_of(table, parts)
        tasks = self._touched(table, landing, [new, keys_of(told, key)], head.snapshot_id) if head is not None else []
        seen = [read_rows(table, task, narrow.names).cast(narrow) for task in tasks]
        deletes = deletes_of(told, new, seen, key, landing.past, landing.stale)
        columns = {name: deletes.rest.column(name).combine_chunks() for name in narrow.names}
        added = self._write(table, filled(table.schema().as_arrow(), columns))
        return deletes, _Files(list(added), [tasks[i].file for i in deletes.replaced])

    def _touched(self, table: Table, landing: Landing, new: Sequence[Keys], snapshot: int | None = None) -> list[FileScanTask]:
        """Files that may hold rows which a landing replaces, or which block it."""
        from pyiceberg.expressions import AlwaysFalse, In, Or

        filter_: BooleanExpression = AlwaysFalse()
        if numbers := {*landing.past, *landing.stale}:
            filter_ = In(PUBLICATION, numbers)
        if any(map(len, new)) and self._target.mode == "upsert":
            filter_ = Or(filter_, _around(self._spec.key, new))
        return list(table.scan(filter_, snapshot_id=snapshot).plan_files()) if filter_ != AlwaysFalse() else []

    def _check_limit(self, files: Sequence[DataFile]) -> None:
        size, limit = sum(file.file_size_in_bytes for file in files) / _MEGABYTE, self._target.rewrite_limit
        if size > limit:
            raise SinkError(
                f"publishing to {self.table}: its keys lie in files of {size:,.0f} MB, and rewrite_limit is {limit:,.0f}: partition the"
                " table so that a window touches fewer files, publish with mode: append, or raise rewrite_limit"
            )

    def _commit(self, table: Table, changes: Mapping[str, _Files], properties: Mapping[str, str]) -> None:
        """Change branches and properties together; main gets a snapshot whatever comes."""
        transaction = table.transaction()
        for branch, files in changes.items():
            if not (files.added or files.deleted or branch == MAIN):
                continue
            update = transaction.update_snapshot(branch=branch)
            with update.overwrite() if files.deleted else transaction._append_snapshot_producer({}, branch) as snapshot:
                for file in files.added:
                    snapshot.append_data_file(file)
                for file in files.deleted:
                    snapshot.delete_data_file(file)
        transaction.set_properties(dict(properties))
        self._unnamed -= {
            file.file_path for files in changes.values() for file in files.added
        }  # from here on the commit may have been made
        commit_once(table, transaction)

    def discard(self, parts: Sequence[Part]) -> None:
        """See ``LedgerSink.discard``: files that no commit named; those of a commit that failed wait for the maintenance."""
        unnamed, self._unnamed, self._staged = self._unnamed, set(), {}
        if unnamed:
            io = self._load().io
            for path in unnamed:
                io.delete(path)

    def close(self) -> None:
        """See ``LedgerSink.close``."""
        catalog, self._catalog, self._staged = self._catalog, None, {}
        if catalog is not None:
            with suppress(Exception):
                catalog.close()


class _Opened(msgspec.Struct, frozen=True):
    """The table that was opened, the ids of the columns that we write, and all columns."""

    uuid: uuid.UUID
    fields: dict[str, int]
    schema: pa.Schema


class _Staged(msgspec.Struct, frozen=True):
    """A part as it is in files, with its rows' keys; how the files are partitioned; and its deletes."""

    keys: Keys
    files: tuple[DataFile, ...]
    spec_id: int
    deleted: pa.Table


class _Files(msgspec.Struct):
    """What a commit adds to a branch, and takes from it."""

    added: list[DataFile] = []
    deleted: list[DataFile] = []


def _with_ranks(table: Table, files: Iterable[DataFile], ranks: pa.Array) -> pa.Table:
    """Those rows of files that have these ranks: no two rows of a publication have one."""
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyiceberg.table import FileScanTask

    read = (read_rows(table, FileScanTask(file)) for file in files)
    return pa.concat_tables([rows.filter(pc.is_in(rows.column(RANK), value_set=ranks)) for rows in read])


def _around(key: Sequence[str], new: Sequence[Keys]) -> BooleanExpression:
    """What the first column of the key must be, for a file to hold one of the new keys."""
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyiceberg.expressions import AlwaysTrue, And, GreaterThanOrEqual, In, LessThanOrEqual

    first = pa.chunked_array([keys.first for keys in new])
    of = first.type
    if not (pa.types.is_large_string(of) or pa.types.is_integer(of) or pa.types.is_date(of) or pa.types.is_decimal(of)):
        return AlwaysTrue()
    if len(first) <= _LISTED:
        return In(key[0], set(first.to_pylist()))
    least, greatest = pc.min_max(first).as_py().values()
    return And(GreaterThanOrEqual(key[0], least), LessThanOrEqual(key[0], greatest))
