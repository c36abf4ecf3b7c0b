"""Fields whose values must be in a column of other data: a file or a table of PostgreSQL."""

from __future__ import annotations

import base64
import dataclasses
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from factory_agents.contracts.documents import Document, KeyPath, show
from factory_agents.errors import ContractError

__all__ = ["ForeignKey", "pack_data", "read_foreign_keys", "unpack_data"]

_KEYS = ("file", "table", "column", "database_env")
_PACKED_BYTES = 128 * 1024
"""Files up to here, in all and compressed, travel with the contract: a pod has room for twice that in all. Larger ones must be there."""
_UNPACKED_BYTES = 64 * 1024 * 1024


@dataclasses.dataclass(frozen=True)
class ForeignKey:
    """Values of ``field``, unless they are null, must be in the ``column`` of a ``file``, or of a ``table`` in the database whose URL is in
    the environment variable ``database_env``.

    ``path`` is where the file was found beside the contract (empty: it is looked for by its name), ``content`` what came with the contract.
    """

    field: str
    file: str
    table: str
    column: str
    database_env: str
    path: str = dataclasses.field(default="", compare=False)
    content: bytes | None = dataclasses.field(default=None, compare=False, repr=False)

    @property
    def rule(self) -> str:
        """The name of the rule that an event breaks whose value isn't there."""
        return f"reference:{self.field}"

    @property
    def source(self) -> str:
        """The column, for a person."""
        return f"column {self.column!r} of {'file' if self.file else 'table'} {self.file or self.table!r}"

    @property
    def meaning(self) -> list[str]:
        """What enters the contract's digest."""
        return [self.field, self.file, self.table, self.column, self.database_env]


def read_foreign_keys(
    document: Document, data: Any, declared: Callable[[Any, KeyPath], str], folder: Path, contents: Mapping[str, bytes]
) -> tuple[ForeignKey, ...]:
    """What stands under ``references``: a mapping of fields to the columns that have their values; files are relative to ``folder``."""
    example = "{shop_id: {table: shops, column: id}, country: {file: countries.csv, column: code}}"
    given = document.mapping(("references",), data or {}, f"a mapping of fields to columns, such as {example}")
    keys = []
    for name, value in given.items():
        with document.attempt():
            keys.append(_read(document, declared(name, ("references", name)), value, folder, contents))
    return tuple(keys)


def _read(document: Document, name: str, value: Any, folder: Path, contents: Mapping[str, bytes]) -> ForeignKey:
    path = ("references", name)
    whole = document.mapping(path, value, "a mapping with a file or a table, such as {file: shops.csv, column: id}")
    document.check_keys(path, whole, _KEYS)
    for key, text in whole.items():
        if not isinstance(text, str) or not text:
            document.fail((*path, key), f"expected text, got {show(text)}")
    file, table = whole.get("file", ""), whole.get("table", "")
    if bool(file) == bool(table):
        document.fail(path, "expected either a file or a table that has the values")
    if file and "database_env" in whole:
        document.fail((*path, "database_env"), "it goes with a table", key=True)
    if file and (Path(file).is_absolute() or urlsplit(file).scheme in ("file", "local")):
        document.fail((*path, "file"), f"expected a name relative to the contract's file, or a URL, got {show(file)}")
    beside = folder / file if file and "://" not in file else None
    found = str(beside) if beside is not None and beside.is_file() else ""
    env = whole.get("database_env", "DATABASE_URL") if table else ""
    return ForeignKey(name, file, table, whole.get("column", name), env, found, contents.get(file))


def pack_data(keys: tuple[ForeignKey, ...]) -> dict[str, str]:
    """The files that are small enough to travel, by their names, compressed."""
    packed: dict[str, str] = {}
    room = _PACKED_BYTES
    for key in keys:
        if key.file in packed or not (key.path or key.content is not None):
            continue
        if key.content is None and Path(key.path).stat().st_size > _UNPACKED_BYTES:
            continue
        content = Path(key.path).read_bytes() if key.content is None else key.content
        text = base64.b64encode(zlib.compress(content, 9)).decode()
        if len(text) <= room:
            packed[key.file] = text
            room -= len(text)
    return packed


def unpack_data(packed: Any) -> dict[str, bytes]:
    """What ``pack_data`` packed; raises ContractError for something else."""
    if not isinstance(packed, Mapping):
        raise ContractError(f"packed contract: data: expected files by their names, got {show(packed)}")
    contents = {}
    for name, text in packed.items():
        try:
            inflate = zlib.decompressobj()
            contents[name] = inflate.decompress(base64.b64decode(text, validate=True), _UNPACKED_BYTES)
        except (TypeError, ValueError, zlib.error) as error:
            raise ContractError(f"packed contract: file {name!r}: damaged: {error}") from error
        if inflate.unconsumed_tail:
            raise ContractError(f"packed contract: file {name!r}: larger than {_UNPACKED_BYTES:,} bytes")
    return contents
