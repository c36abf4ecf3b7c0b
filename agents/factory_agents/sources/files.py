"""Files, local or at any URL that fsspec opens: JSON Lines, CSV and Parquet, plain or compressed, one or several."""

from __future__ import annotations

import glob
import hashlib
import importlib
import io
import os
import re
import stat
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol
from urllib.parse import urlsplit

import msgspec

from factory_agents.errors import ConfigurationError, DataLossError, FactoryError, UnavailableError
from factory_agents.paths import allowed_roots, candidates, check_inside, check_name, check_url, confined_path, resolve_path
from factory_agents.protocol import Interval
from factory_agents.runtime.agents import SourceRecord
from factory_agents.sources.delimited import delimited_blocks
from factory_agents.sources.jsonl import field_names, jsonl_blocks
from factory_agents.sources.parquet import parquet_blocks
from factory_agents.sources.rows import Block, ReadOptions, check_field, paced, require_time_field, select, window_micros

__all__ = ["FileSource"]

_CHECKSUM_BYTES = 256 * 1024 * 1024
"""Up to here a local file is told from another by its content, above by its size and time of change."""
_PROBED_ROWS = 100_000
_COMPRESSIONS = {".gz": "gz", ".bz2": "bz2", ".zst": "zst"}
_FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_REMOTE_STAMPS = (
    "ETag",
    "etag",
    "md5Hash",
    "Content-MD5",
    "content_md5",
    "mtime",
    "LastModified",
    "last_modified",
    "updated",
    "modified",
    "created",
)


class _File(msgspec.Struct, frozen=True):
    """One file as it was found: ``name`` for a person, ``stamp`` changes with the content (empty: nothing tells)."""

    name: str
    path: str
    system: _System
    size: int
    stamp: str
    checksum: str = ""

    @property
    def identity(self) -> dict[str, Any]:
        """What tells this content from another."""
        told = {"sha256": self.checksum} if self.checksum else {"stamp": self.stamp}
        return {"name": self.name, "size": self.size} | told


class _System(Protocol):
    """Where files lie."""

    def find(self, source: str) -> list[tuple[str, str]]:
        """Names and paths of the files that a path or pattern means, sorted; a file's name is the same however it is written."""
        ...

    def look(self, path: str) -> tuple[int, str]:
        """A file's size in bytes and its stamp."""
        ...

    def checksum(self, path: str) -> str:
        """SHA-256 of the content, or nothing where finding it out is dear."""
        ...

    def place(self, path: str) -> Hashable:
        """What tells a file from any other: the same for all paths and links that lead to it."""
        ...

    def open(self, path: str, *, seek: bool) -> BinaryIO:
        """Open to read from the start, or with ``seek`` from anywhere."""
        ...


class _LocalSystem:
    def find(self, source: str) -> list[tuple[str, str]]:
        for place in candidates(source):
            if place.exists():
                return [(os.path.normpath(source), str(place))]
            if glob.has_magic(source):
                before = len(str(place)) - len(str(Path(source)))
                found = [m for m in sorted(glob.glob(str(place), recursive=True)) if not Path(m).is_dir()]  # noqa: PTH207
                if found:
                    return [(os.path.normpath(match[max(0, before) :]), match) for match in found]
        if glob.has_magic(source):
            raise ConfigurationError(f"source {source!r}: no file fits this pattern; were the files written yet?")
        resolve_path(source, "source")
        return []

    def look(self, path: str) -> tuple[int, str]:
        status = os.stat(path)  # noqa: PTH116
        if stat.S_ISDIR(status.st_mode):
            raise ConfigurationError(f"source {path!r} is a directory; name its files, for example {path.rstrip('/')}/*.jsonl")
        if not stat.S_ISREG(status.st_mode):
            raise ConfigurationError(f"source {path!r} is not a regular file; a source must be readable again, so write it to a file first")
        return status.st_size, f"{status.st_mtime_ns}"

    def checksum(self, path: str) -> str:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() if os.fstat(file.fileno()).st_size <= _CHECKSUM_BYTES else ""

    def place(self, path: str) -> Hashable:
        return os.path.realpath(path)

    def open(self, path: str, *, seek: bool) -> BinaryIO:
        return Path(path).open("rb", buffering=1 << 18)


class _ConfinedSystem(_LocalSystem):
    """Local files that someone from outside may name."""

    def find(self, source: str) -> list[tuple[str, str]]:
        if not glob.has_magic(source):
            return [(os.path.normpath(source), str(confined_path(source, "source")))]
        for root in allowed_roots():
            matches = [Path(match) for match in sorted(glob.glob(str(root / source), recursive=True))]  # noqa: PTH207
            for match in matches:
                check_inside(match, source, "source")
            if found := [(os.path.relpath(match, root), str(match)) for match in matches if match.is_file()]:
                return found
        raise ConfigurationError(f"source {source!r}: no file fits this pattern; were the files written yet?")


class _RemoteSystem:
    """Any system of fsspec's, set up by fsspec's own configuration (``FSSPEC_<PROTOCOL>_<KEY>``) and the clients' environment."""

    def __init__(self, url: str) -> None:
        try:
            import fsspec
        except ImportError as error:
            raise ConfigurationError(f"source {_public(url)!r}: a URL needs fsspec; pip install 'factory-agents[files]'") from error
        try:
            self._files, self._path = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise ConfigurationError(f"source {_public(url)!r}: {_public(str(error))}") from error
        self._url = url

    def find(self, source: str) -> list[tuple[str, str]]:
        if not glob.has_magic(self._path) or source.startswith(("http://", "https://")):
            return [(_public(source), self._path)]
        found = [path for path in sorted(self._files.glob(self._path)) if not self._files.isdir(path)]
        if not found:
            raise ConfigurationError(f"source {source!r}: no file fits this pattern; were the files written yet?")
        return [(_public(self._files.unstrip_protocol(path)), path) for path in found]

    def look(self, path: str) -> tuple[int, str]:
        self._files.invalidate_cache()
        info = self._files.info(path)
        if info.get("type") == "directory":
            raise ConfigurationError(f"source {_public(self._url)!r} is a directory; name its files with a pattern")
        stamp = next((str(info[key]) for key in _REMOTE_STAMPS if info.get(key)), "")
        return int(info.get("size") or 0), stamp

    def checksum(self, path: str) -> str:
        return ""

    def place(self, path: str) -> Hashable:
        return self._files, path  # two buckets, or two archives, may hold files of one path

    def open(self, path: str, *, seek: bool) -> BinaryIO:
        if self._url.startswith("http") and not seek:
            # A stream: not every web server answers requests for ranges.
            return io.BufferedReader(self._files.open(path, "rb", block_size=0), 1 << 18)
        file: BinaryIO = self._files.open(path, "rb")
        return file


def _public(text: str) -> str:
    """A URL, or a text with URLs, without what may be secret: user and password, and the query of a web address (a signature)."""
    text = re.sub(r"(\w+://)[^/@\s]*@", r"\1", text)
    return re.sub(r"(https?://[^\s'\"?]*)\?[^\s'\"]*", r"\1", text)


def _locate(source: str, *, confined: bool) -> list[_File]:
    local = source.removeprefix("file://")
    remote = "://" in local or "::" in local
    if confined and remote:
        check_url(source, "source")
    with _reading(_public(source)):
        if not remote:
            check_name(local, "source")
        system: _System = _RemoteSystem(source) if remote else _ConfinedSystem() if confined else _LocalSystem()
        return [_File(name, path, system, *system.look(path), system.checksum(path)) for name, path in system.find(local)]


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Turn what opening and reading raise into errors that say whether a retry helps."""
    try:
        yield
    except FactoryError:
        raise
    except PermissionError as error:
        raise ConfigurationError(f"source {name!r}: may not be read: {_public(str(error))}") from error
    except FileNotFoundError as error:
        # fsspec's web client says this of whatever went wrong, and what that was is in the cause.
        if name.startswith("http") and getattr(error.__cause__, "status", 0) != 404:
            raise UnavailableError(f"source {name!r} cannot be read now: {_public(str(error.__cause__ or error))}") from error
        raise ConfigurationError(f"source {name!r}: no such file") from error
    except Exception as error:
        if _is_damage(error):
            raise DataLossError(f"source {name!r} is damaged or incomplete: {_public(str(error))}; fetch or write it again") from error
        if isinstance(error, OSError) or "://" in name:
            raise UnavailableError(f"source {name!r} cannot be read now: {type(error).__name__}: {_public(str(error))}") from error
        raise


def _undamaged(blocks: Iterator[Block], name: str) -> Iterator[Block]:
    """The same; what a Parquet file's own reader stumbles over (it looks up what the file says of itself) is the file's fault."""
    try:
        yield from blocks
    except FactoryError:
        raise
    except (LookupError, ValueError, TypeError, AttributeError, ArithmeticError) as error:
        if _is_damage(error):
            raise
        raise DataLossError(
            f"source {name!r} is damaged: {type(error).__name__}: {_public(str(error))}; fetch or write it again"
        ) from error


def _is_damage(error: Exception) -> bool:
    """Whether it is a decoder's complaint: those of bz2 and of Arrow's codecs are bare OSErrors without a number."""
    import zlib
    from gzip import BadGzipFile

    bare = type(error) is OSError and error.errno is None
    return (
        bare
        or isinstance(error, (EOFError, BadGzipFile, zlib.error))
        or "ArrowException" in {kind.__name__ for kind in type(error).__mro__}
    )


def _split_name(name: str, options: ReadOptions) -> tuple[str, str]:
    """Format and compression by a file's name, unless the format is given."""
    path = urlsplit(name).path if name.startswith(("http://", "https://")) else name
    stem, suffix = os.path.splitext(path.lower())  # noqa: PTH122
    compression = _COMPRESSIONS.get(suffix, "")
    if compression:
        suffix = os.path.splitext(stem)[1]  # noqa: PTH122
    kind = _FORMATS.get(suffix, "") if options.format == "auto" else options.format
    if not kind:
        raise ConfigurationError(f"source {name!r}: the name doesn't tell its format; set format to jsonl, csv, tsv or parquet")
    if kind == "parquet" and compression:
        raise ConfigurationError(f"source {name!r}: Parquet is compressed within; decompress the file as a whole first")
    return kind, compression


@contextmanager
def _decompressed(file: BinaryIO, compression: str) -> Iterator[BinaryIO]:
    import bz2
    import gzip

    if not compression:
        yield file
        return
    stream: Any = gzip.GzipFile(fileobj=file) if compression == "gz" else bz2.BZ2File(file) if compression == "bz2" else _zstd(file)
    with io.BufferedReader(stream, 1 << 18) as buffered:
        if not buffered.peek(1) and file.tell() == 0:
            raise EOFError("no bytes at all, where even nothing takes some when it is compressed")
        yield buffered


def _zstd(file: BinaryIO) -> Any:
    try:
        return importlib.import_module("compression.zstd").ZstdFile(file)  # Python 3.14
    except ImportError:
        pass
    try:
        import pyarrow as pa
    except ImportError as error:
        raise ConfigurationError("a .zst file needs Python 3.14 or pyarrow; pip install 'factory-agents[files]'") from error
    return pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd")


class FileSource:
    """The rows of one or several files, in the order of their names, then of their lines; a file that several names lead to counts once.

    ``sources`` are paths, patterns or URLs, ``confined`` to those that someone from outside may name or not. The files are looked up, and
    local ones read for a checksum, when this is made. Raises ConfigurationError for what cannot be used, UnavailableError for what cannot
    be reached now.
    """

    name = "ingest"
    version = "1"

    def __init__(self, sources: Sequence[str], options: ReadOptions, *, confined: bool = False) -> None:
        found: dict[Hashable, _File] = {}
        for file in (file for source in sources for file in _locate(source, confined=confined)):
            found.setdefault(file.system.place(file.path), file)
        self._files = list(found.values())
        for file in self._files:
            _split_name(file.name, options)
        self._options = options
        self.identity: dict[str, Any] = {
            "params": options.identity,
            "files": [file.identity for file in self._files],
        }
        if not all(file.checksum or file.stamp for file in self._files):
            self.identity["volatile"] = True

    def read(self, interval: Interval | None, skip: int) -> Iterator[Sequence[SourceRecord]]:
        """See ``Source.read``.

        Raises ConfigurationError where no row has a readable time, DataLossError for a damaged file, UnavailableError (as do failures to
        read) when a file changes meanwhile.
        """
        require_time_field(self._options, interval)
        first_time = self._first_time if self._options.time_field else lambda: 0
        batches = select(self._blocks(window_micros(interval)), interval, skip, first_time)
        return paced(batches, self._options.rate_limit)

    def close(self) -> None:
        """See ``Source.close``: files are open only while they are read."""

    def _blocks(self, bounds: tuple[int, int]) -> Iterator[Block]:
        for file in self._files:
            kind, compression = _split_name(file.name, self._options)
            with _reading(file.name), file.system.open(file.path, seek=kind == "parquet") as raw:
                with _decompressed(raw, compression) as stream:
                    yield from self._file_blocks(stream, file.name, kind, bounds)
                if file.system.look(file.path) != (file.size, file.stamp):
                    raise UnavailableError(f"source {file.name!r} changed while it was read; let its writer finish, then try again")

    def _file_blocks(self, stream: BinaryIO, name: str, kind: str, bounds: tuple[int, int]) -> Iterator[Block]:
        if kind == "parquet":
            return _undamaged(parquet_blocks(stream, name, self._options, bounds), name)
        if kind == "jsonl":
            return jsonl_blocks(stream, name, self._options)
        return delimited_blocks(stream, name, self._options, self._options.delimiter or ("\t" if kind == "tsv" else ","))

    def _first_time(self) -> int:
        seen = 0
        example = ""
        for block in self._blocks(window_micros(None)):
            for micros in block.times:
                if micros is not None:
                    return micros
            if not example and block.times:
                record = block.records([0])[0]
                example = f"{record.where}: {record.reject.reason if record.reject else ''}"
            seen += len(block.times)
            if seen >= _PROBED_ROWS:
                break
        self._check_json_names()
        field = self._options.time_field
        raise ConfigurationError(f"source: none of the first {seen} rows has a readable time in {field!r}; {example}")

    def _check_json_names(self) -> None:
        """Raise ConfigurationError with the name meant, where the time field is a misspelt one."""
        for file in self._files:
            kind, compression = _split_name(file.name, self._options)
            if kind != "jsonl":
                continue
            with _reading(file.name), file.system.open(file.path, seek=False) as raw, _decompressed(raw, compression) as stream:
                names = field_names(stream, file.name, self._options)
            if names:
                check_field(self._options.time_field, "time_field", names, file.name)
                return
