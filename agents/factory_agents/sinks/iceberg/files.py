"""The files of a table, written and read, and the one commit that names them."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from factory_agents import failpoints

if TYPE_CHECKING:
    import pyarrow as pa
    from pyiceberg.manifest import DataFile
    from pyiceberg.table import FileScanTask, Table, Transaction
    from pyiceberg.table.update import TableRequirement

__all__ = ["DELETES", "MAIN", "commit_once", "read_rows", "write_rows"]

MAIN, DELETES = "main", "factory_deletes"
"""The branch of the rows, and the one whose rows are the deletes that are remembered: key, place (as the rank) and publication."""


def write_rows(table: Table, data: pa.Table) -> tuple[DataFile, ...]:
    """Write rows to new files of the table, each in its partition."""
    from pyiceberg.io.pyarrow import _dataframe_to_data_files

    if not data.num_rows:
        return ()
    files = tuple(_dataframe_to_data_files(table_metadata=table.metadata, df=data, io=table.io, write_uuid=uuid.uuid4()))
    for file in files:
        file.spec_id = table.spec().spec_id  # it is told by a manifest otherwise, and those have none yet
    return files


def read_rows(table: Table, task: FileScanTask, columns: Sequence[str] = ()) -> pa.Table:
    """A file's rows as they are now, or some columns of them; always in the same order."""
    from pyiceberg.expressions import AlwaysTrue
    from pyiceberg.io.pyarrow import ArrowScan

    schema = table.schema().select(*columns) if columns else table.schema()
    return ArrowScan(table.metadata, table.io, schema, AlwaysTrue()).to_table([task])


def commit_once(table: Table, transaction: Transaction, *same: TableRequirement) -> None:
    """Send a transaction once, whatever the table says of retries, for exactly the state that it was made for (``same``: more of it)."""
    from pyiceberg.exceptions import CommitFailedException
    from pyiceberg.table.update import AssertCurrentSchemaId, AssertDefaultSpecId, AssertTableUUID

    same += (
        AssertTableUUID(uuid=table.metadata.table_uuid),
        AssertCurrentSchemaId(current_schema_id=table.metadata.current_schema_id),
        AssertDefaultSpecId(default_spec_id=table.spec().spec_id),
    )
    failpoints.hit("iceberg.before-commit")
    try:
        done = table.catalog.commit_table(table, (*transaction._requirements, *same), transaction._updates)
    except ValueError as error:  # a branch of others moved: its number is taken, which some catalogs notice after the requirements alone
        if table.catalog.load_table(table.name()).metadata_location == table.metadata_location:
            raise
        raise CommitFailedException(str(error)) from error
    failpoints.hit("iceberg.committed")
    with suppress(Exception):  # as the table's properties say; what stays is taken by the maintenance
        table.catalog._delete_old_metadata(table.io, table.metadata, done.metadata)
