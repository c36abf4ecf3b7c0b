"""What gathers around a table over the months, taken away beside publishers at work: old snapshots, small files of deletes, orphans."""

from __future__ import annotations

from collections.abc import Iterator, Set
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from factory_agents.errors import ConfigurationError, SinkError
from factory_agents.sinks.iceberg.catalog import CatalogSettings, ConflictError, explained, open_catalog
from factory_agents.sinks.iceberg.files import DELETES, MAIN, commit_once, read_rows, write_rows

if TYPE_CHECKING:
    import pyarrow as pa
    from pyiceberg.manifest import DataFile
    from pyiceberg.table import FileScanTask, Table

__all__ = ["Maintained", "maintain"]

_TRIES = 10
_SMALL, _WHOLE = 16 * 1024 * 1024, 64 * 1024 * 1024
"""Bytes of a file of deletes that is joined with others, and about those of what they become."""
_PLACES = ("data", "metadata")
"""Where below its location a table keeps its files."""
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
    table_uuid: str = ""


def maintain(
    catalog: CatalogSettings, name: tuple[str, ...], *, snapshots_after: timedelta, orphans_after: timedelta, dry_run: bool = False
) -> Maintained:
    """Expire snapshots, join small files of remembered deletes, and delete files that nothing names, each beside publishers at work.

    Snapshots older than ``snapshots_after`` go, but for the heads of branches and tags: the ledger is in the table's properties and stays.
    Files below the table's location that no snapshot and no metadata name go when they are older than ``orphans_after``: that has to be
    longer than any publication takes, whose files are named by its last commit only.

    Raises:
        ConfigurationError: there is no such table, or the catalog refuses.
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
            joined, into = _join_deletes(table, dry_run)
            expired = _expire(table, now - snapshots_after, dry_run)
            orphans, size, elsewhere = _delete_orphans(table, now - orphans_after, expired if dry_run else set(), dry_run)
    finally:
        opened.close()
    return Maintained(shown, len(expired), joined, into, orphans, size, elsewhere, dry_run)


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
        transaction = table.transaction()
        made: list[DataFile] = []
        with transaction.update_snapshot(branch=DELETES).overwrite() as snapshot:
            for group in groups:
                files = write_rows(table, _together(table, group))
                made += files
                for task in group:
                    snapshot.delete_data_file(task.file)
                for file in files:
                    snapshot.append_data_file(file)
        main = table.metadata.refs.get(MAIN)
        same = AssertRefSnapshotId(ref=MAIN, snapshot_id=main.snapshot_id if main else None)  # or its number would be taken
        try:
            with explained(f"table {'.'.join(table.name())}"):
                commit_once(table, transaction, same)
        except ConflictError:
            for file in made:
                table.io.delete(file.file_path)
            if not tries_left:
                raise
            continue
        return sum(map(len, groups)), len(made)
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


def _expire(table: Table, before: datetime, dry_run: bool) -> set[int]:
    """Snapshots that go: older than that, and no branch's or tag's head. After a commit of others in between it looks again."""
    from pyiceberg.table.update.snapshot import ExpireSnapshots

    for tries_left in reversed(range(_TRIES)):
        table.refresh()
        heads = {ref.snapshot_id for ref in table.metadata.refs.values()}
        limit = int(before.timestamp() * 1000)
        old = {s.snapshot_id for s in table.metadata.snapshots if s.timestamp_ms < limit} - heads
        if not old or dry_run:
            break
        transaction = table.transaction()
        ExpireSnapshots(transaction).by_ids(sorted(old)).commit()
        try:
            with explained(f"table {'.'.join(table.name())}"):
                commit_once(table, transaction)
        except ConflictError:
            if not tries_left:
                raise
            continue
        break
    return old


def _delete_orphans(table: Table, before: datetime, gone: Set[int], dry_run: bool) -> tuple[int, int, tuple[str, ...]]:
    """Delete files older than that which nothing names (``gone``: snapshots that are taken for expired); how many, their bytes, and
    the folders left out.

    What is named is asked before the files are listed, and all of it has to be among them, or names aren't compared rightly; and after,
    for what was committed meanwhile.
    """
    from pyarrow.fs import FileSelector
    from pyiceberg.io.pyarrow import PyArrowFileIO

    io = PyArrowFileIO(table.io.properties)
    location = table.location().rstrip("/")
    scheme, netloc, base = io.parse_location(location, io.properties)
    files = io.fs_by_scheme(scheme, netloc)
    inside = tuple(f"{base}/{place}/" for place in _PLACES)
    elsewhere = {table.properties.get(f"write.{place}.path", location).rstrip("/") for place in _PLACES}

    def named() -> set[str]:
        table.refresh()
        paths = (io.parse_location(path, io.properties)[2] for path in _named(table, gone))
        return {path for path in paths if path.startswith(inside)}

    before_listing = named()
    found = {
        info.path: info
        for place in inside
        for info in files.get_file_info(FileSelector(place.rstrip("/"), recursive=True, allow_not_found=True))
        if info.is_file
    }
    since = named()
    if missing := (before_listing & since) - found.keys():
        raise SinkError(f"table {'.'.join(table.name())} names {min(missing)}, which is not there: nothing was deleted")
    unnamed = [info for path, info in found.items() if path.endswith(_OURS) and path not in before_listing | since]
    orphans = [info for info in unnamed if info.mtime < before]
    for info in orphans:
        if info.path.endswith(".metadata.json"):
            with files.open_input_stream(info.path) as stream:
                uuid = msgspec.json.decode(stream.read(), type=_Metadata).table_uuid
            if uuid != str(table.metadata.table_uuid):
                raise SinkError(
                    f"{location} holds the metadata of another table too ({uuid}, in {info.path}), whose files would be deleted: if it was"
                    " dropped, delete its files by hand; else move one of the two"
                )
    if not dry_run:
        for info in orphans:
            with suppress(FileNotFoundError):  # another maintenance was faster
                files.delete_file(info.path)
    left_out = tuple(sorted(path for path in elsewhere if path != location and not path.startswith(f"{location}/")))
    return len(orphans), sum(info.size for info in orphans), left_out


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
