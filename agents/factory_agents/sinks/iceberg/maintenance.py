"""What gathers around a table over the months, taken away beside publishers at work: old snapshots, small files of deletes, orphans."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Mapping, Set
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from factory_agents import failpoints
from factory_agents.errors import ConfigurationError, SinkError
from factory_agents.sinks.iceberg.catalog import CatalogSettings, ConflictError, explained, open_catalog
from factory_agents.sinks.iceberg.files import DELETES, MAIN, commit_once, read_rows, write_rows

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow.fs import FileInfo, FileSystem
    from pyiceberg.table import FileScanTask, Table
    from pyiceberg.table.metadata import TableMetadata

__all__ = ["Maintained", "maintain"]

_TRIES = 10
_AT_ONCE = 1000
"""Snapshots that one commit expires: what pyiceberg does for it grows with their number times that of all."""
_SMALL, _WHOLE = 16 * 1024 * 1024, 64 * 1024 * 1024
"""Bytes of a file of deletes that is joined with others, and about those of what they become."""
_PLACES = ("data", "metadata")
"""Where below its location a table keeps its files."""
_METADATA = (".metadata.json", ".metadata.json.gz")
_OURS = (".parquet", ".avro", ".metadata.json")
"""What a publisher may leave behind: files of rows, manifests, and metadata. Whatever else lies there is somebody's."""


class Maintained(msgspec.Struct, frozen=True):
    """What was taken away, or would be.

    ``snapshots`` that expired; ``joined`` files of deletes that became ``into`` larger ones; ``orphans``: files that nothing names, of
    ``bytes`` in all; ``elsewhere``: folders that may be shared with other tables, and were therefore not looked into.
    """

    table: str
    snapshots: int
    joined: int
    into: int
    orphans: int
    bytes: int
    elsewhere: tuple[str, ...]
    dry_run: bool


class _Metadata(msgspec.Struct, rename="kebab"):
    table_uuid: str = "without a UUID"


def maintain(
    catalog: CatalogSettings, name: tuple[str, ...], *, snapshots_after: timedelta, orphans_after: timedelta, dry_run: bool = False
) -> Maintained:
    """Expire snapshots, join small files of remembered deletes, and delete files that nothing names, each beside publishers at work.

    Snapshots older than ``snapshots_after`` go, but for the heads of branches and tags, and those that a branch or the table says it keeps:
    the ledger is in the table's properties and stays. Files below the table's location that no snapshot and no metadata name go when they
    are older than ``orphans_after``: that has to be longer than any publication takes, whose files are named by its last commit only.

    Raises:
        ConfigurationError: there is no such table, or the catalog refuses.
        SinkError: another table's files may be among its own, or some of its own are not there; nothing was done.
        ConflictError: others committed to the table all the time; a retry goes on.
        UnavailableError: catalog or storage don't answer.
    """
    from pyiceberg.exceptions import NoSuchTableError

    shown, now = ".".join(name), datetime.now(UTC)
    opened = open_catalog(catalog)
    try:
        with explained(f"table {shown}"):
            try:
                table = opened.load_table(name)
            except NoSuchTableError:
                raise ConfigurationError(f"there is no table {shown} in the catalog {catalog.name!r} ({catalog.place})") from None
            place = _Place(table)
            found = place.files(table)
            joined, into = _join_deletes(table, dry_run)
            expired = _expire(table, now - snapshots_after, now, dry_run)
            named = place.named(table, expired if dry_run else set())
            orphans = [info for path, info in found.items() if info.mtime < now - orphans_after and path not in named]
            if not dry_run:
                place.delete(orphans)
    finally:
        opened.close()
    size = sum(info.size for info in orphans)
    return Maintained(shown, len(expired), joined, into, len(orphans), size, place.elsewhere, dry_run)


def _join_deletes(table: Table, dry_run: bool) -> tuple[int, int]:
    """Make few files of many small ones on the branch of deletes; how many there were, and are.

    A publisher that read the former files meanwhile commits to the branch as it was, and tries again.
    """
    from pyiceberg.table.update import AssertRefSnapshotId

    for tries_left in reversed(range(_TRIES)):
        table.refresh()
        groups = list(_groups(table))
        if not groups or dry_run:
            break
        transaction, made = table.transaction(), 0
        with transaction.update_snapshot(branch=DELETES).overwrite() as snapshot:
            for group in groups:
                for task in group:
                    snapshot.delete_data_file(task.file)
                for file in write_rows(table, _together(table, group)):
                    snapshot.append_data_file(file)
                    made += 1
        main = table.metadata.refs.get(MAIN)
        same = AssertRefSnapshotId(ref=MAIN, snapshot_id=main.snapshot_id if main else None)  # or its number would be taken
        try:
            with explained(f"table {'.'.join(table.name())}"):
                commit_once(table, transaction, same)
        except ConflictError:  # its files stay: what was committed is refused too, where a client sends it again by itself
            if not tries_left:
                raise
            continue
        return sum(map(len, groups)), made
    return sum(map(len, groups)), len(groups)


def _groups(table: Table) -> Iterator[list[FileScanTask]]:
    """Small files of deletes of one partition, so many that they make a whole one."""
    head = table.snapshot_by_name(DELETES)
    if head is None:
        return
    small: dict[Any, list[FileScanTask]] = {}
    for task in table.scan(snapshot_id=head.snapshot_id).plan_files():
        if task.file.file_size_in_bytes < _SMALL:
            small.setdefault((task.file.spec_id, repr(task.file.partition)), []).append(task)
    for tasks in small.values():
        group: list[FileScanTask] = []
        for task in tasks:
            group.append(task)
            if sum(t.file.file_size_in_bytes for t in group) >= _WHOLE:
                yield group
                group = []
        if len(group) > 1:
            yield group


def _together(table: Table, group: list[FileScanTask]) -> pa.Table:
    import pyarrow as pa

    return pa.concat_tables([read_rows(table, task) for task in group])


def _expire(table: Table, before: datetime, now: datetime, dry_run: bool) -> set[int]:
    """Expire snapshots that are older than that and that nothing keeps. After a commit of others in between it looks again."""
    from pyiceberg.table.update import AssertRefSnapshotId
    from pyiceberg.table.update.snapshot import ExpireSnapshots

    expired, tries_left = set[int](), _TRIES
    while True:
        table.refresh()
        old = _expirable(table.metadata, _milliseconds(before), _milliseconds(now))
        if not old or dry_run:
            return expired | set(old)
        transaction = table.transaction()
        ExpireSnapshots(transaction).by_ids(old[:_AT_ONCE]).commit()
        # A branch that is rolled back meanwhile, to one of these, would go with it.
        same = [AssertRefSnapshotId(ref=name, snapshot_id=ref.snapshot_id) for name, ref in table.metadata.refs.items()]
        try:
            with explained(f"table {'.'.join(table.name())}"):
                commit_once(table, transaction, *same)
        except ConflictError:
            tries_left -= 1
            if not tries_left:
                raise
            continue
        expired.update(old[:_AT_ONCE])


def _milliseconds(time: datetime) -> int:
    return int(time.timestamp() * 1000)


def _expirable(metadata: TableMetadata, before: int, now: int) -> list[int]:
    """Snapshots older than that, the oldest first, but for heads, and what branches (or the table, for all of them) say they keep."""
    from pyiceberg.table.refs import SnapshotRefType
    from pyiceberg.utils.properties import property_as_int

    snapshots = {snapshot.snapshot_id: snapshot for snapshot in metadata.snapshots}
    least = property_as_int(metadata.properties, "history.expire.min-snapshots-to-keep", 1) or 1
    kept = {ref.snapshot_id for ref in metadata.refs.values()}
    for ref in metadata.refs.values():
        if ref.snapshot_ref_type != SnapshotRefType.BRANCH:
            continue
        since = before if ref.max_snapshot_age_ms is None else now - ref.max_snapshot_age_ms
        at, count = snapshots.get(ref.snapshot_id), 0
        while at is not None and (count < (ref.min_snapshots_to_keep or least) or at.timestamp_ms >= since):
            kept.add(at.snapshot_id)
            at, count = snapshots.get(at.parent_snapshot_id or 0), count + 1
    return [
        s.snapshot_id
        for s in sorted(snapshots.values(), key=lambda s: s.timestamp_ms)
        if s.timestamp_ms < before and s.snapshot_id not in kept
    ]


class _Place:
    """Where a table's files are: folders below its location. ``elsewhere``: other folders that it is told to write to."""

    def __init__(self, table: Table) -> None:
        from pyiceberg.io.pyarrow import PyArrowFileIO

        self._io = PyArrowFileIO(table.io.properties)
        self._location = table.location().rstrip("/")
        scheme, netloc, base = self._io.parse_location(self._location, self._io.properties)
        self._files: FileSystem = self._io.fs_by_scheme(scheme, netloc)
        self._inside = tuple(f"{base}/{place}/" for place in _PLACES)
        told = {table.properties.get(f"write.{place}.path", "").rstrip("/") for place in _PLACES} - {""}
        self.elsewhere = tuple(sorted(path for path in told if not f"{self._path(path)}/".startswith(self._inside)))

    def _path(self, location: str) -> str:
        path: str = self._io.parse_location(location, self._io.properties)[2]
        return path

    def named(self, table: Table, gone: Set[int] = frozenset()) -> set[str]:
        """What the table names here as it is now; ``gone``: snapshots that are taken for expired."""
        table.refresh()
        try:
            return {path for path in map(self._path, _named(table, gone)) if path.startswith(self._inside)}
        except FileNotFoundError as error:
            shown = ".".join(table.name())
            raise SinkError(
                f"table {shown} names what is not there ({error}): no file was deleted; is another maintenance at work?"
            ) from error

    def files(self, table: Table) -> Mapping[str, FileInfo]:
        """The files that are here and may be a publisher's.

        What is named has to be among them, or names aren't compared rightly; metadata has to be the table's own, however young it is: of a
        table at work all is young, and its rows aren't.
        """
        from pyarrow.fs import FileSelector

        named, shown = self.named(table), ".".join(table.name())
        found = {
            info.path: info
            for place in self._inside
            for info in self._files.get_file_info(FileSelector(place.rstrip("/"), recursive=True, allow_not_found=True))
            if info.is_file
        }
        missing = named - found.keys()
        if missing and (missing := missing & self.named(table)):  # but for what was let go meanwhile
            raise SinkError(f"table {shown} names {min(missing)}, which is not there: nothing was done")
        for path in found.keys() - named:
            uuid = self._owner(path) if path.endswith(_METADATA) else None
            if uuid not in (None, str(table.metadata.table_uuid)):
                raise SinkError(
                    f"{self._location} holds the metadata of another table too ({uuid}, in {path}), whose files would be deleted: if it was"
                    " dropped, delete its files by hand; else move one of the two. Nothing was done"
                )
        return {path: info for path, info in found.items() if path.endswith(_OURS)}

    def _owner(self, path: str) -> str | None:
        """The table whose metadata a file holds; None where it is gone, or cut off, as a killed publisher leaves it."""
        try:
            with self._files.open_input_stream(path, compression=None) as stream:
                text = stream.read()
            return msgspec.json.decode(gzip.decompress(text) if ".gz" in path.rpartition("/")[2] else text, type=_Metadata).table_uuid
        except (FileNotFoundError, EOFError, gzip.BadGzipFile, zlib.error, msgspec.DecodeError):
            return None

    def delete(self, files: list[FileInfo]) -> None:
        """Delete files, or find them deleted: another maintenance was faster."""
        for info in files:
            failpoints.hit("iceberg.deleting")
            with suppress(FileNotFoundError):
                self._files.delete_file(info.path)


def _named(table: Table, gone: Set[int]) -> Iterator[str]:
    """Every file that the table names, in whatever snapshot."""
    metadata, read = table.metadata, set[str]()
    yield table.metadata_location
    yield from (entry.metadata_file for entry in metadata.metadata_log)
    yield from (file.statistics_path for file in (*metadata.statistics, *metadata.partition_statistics))
    for snapshot in metadata.snapshots:
        if snapshot.snapshot_id in gone:
            continue
        yield snapshot.manifest_list
        for manifest in snapshot.manifests(table.io):
            if manifest.manifest_path not in read:
                read.add(manifest.manifest_path)
                yield manifest.manifest_path
                yield from (entry.data_file.file_path for entry in manifest.fetch_manifest_entry(table.io))
