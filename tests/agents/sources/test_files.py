"""Files: where they are found, what tells them apart, and that every line is in exactly one interval."""

from __future__ import annotations

import bz2
import gzip
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from threading import Thread

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory_agents.errors import ConfigurationError, DataLossError, UnavailableError
from factory_agents.protocol import Interval
from factory_agents.sources.files import FileSource
from factory_agents.sources.rows import ReadOptions
from tests.agents.sources.reading import EPOCH, TIMED, hour, read, seconds, source, values, write


class QuietHandler(SimpleHTTPRequestHandler):
    """A web server's files, without its log."""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


@contextmanager
def web_server(folder: Path) -> Iterator[str]:
    """The URL of a web server on loopback for the files of a folder."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=folder)) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


LINES = st.one_of(
    st.integers(0, 40).map(lambda t: f'{{"t":{t},"event_id":"é{t}"}}'.encode()),
    st.integers(0, 40).map(lambda t: f'{{"t":"{(EPOCH + timedelta(seconds=t)).isoformat()}"}}'.encode()),
    st.sampled_from([b"{", b"[]", b'{"t":null}', b'{"x":1}', b"\xff", b"plain", b'{"t":1}{"t":2}', b'"']),
    st.binary(min_size=1, max_size=6).filter(lambda b: b"\n" not in b and b.strip() != b"" and b"\xef\xbb\xbf" not in b),
)


@given(
    st.lists(st.lists(LINES, max_size=12), min_size=1, max_size=3),
    st.sets(st.integers(1, 40), max_size=6),
    st.sampled_from(["jsonl", "jsonl.gz"]),
)
def test_every_line_is_in_exactly_one_of_intervals_that_tile(
    tmp_path_factory: pytest.TempPathFactory, files: list[list[bytes]], cuts: set[int], suffix: str
) -> None:
    folder = tmp_path_factory.mktemp("tiling")
    for n, lines in enumerate(files):
        data = b"".join(line + b"\n" for line in lines)
        (folder / f"{n}.{suffix}").write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    tiled = FileSource([f"{folder}/*.{suffix}"], TIMED)
    bounds = [0, *sorted(cuts), 41]
    intervals = [seconds(a, b) for a, b in pairwise(bounds)]
    try:
        whole = read(tiled, None)
    except ConfigurationError:
        return  # no line has a readable time
    parts = [read(tiled, interval) for interval in intervals]
    assert sorted(r.where for part in parts for r in part) == sorted(r.where for r in whole)
    assert sum(map(len, parts)) == len([line for lines in files for line in lines])
    order = [r.where for r in whole]
    assert all([r.where for r in part] == [w for w in order if w in {r.where for r in part}] for part in parts)
    assert {(r.where, r.value, bool(r.reject)) for part in parts for r in part} == {(r.where, r.value, bool(r.reject)) for r in whole}


@pytest.mark.parametrize("skip", [0, 1, 2, 3, 4])
def test_skip_leaves_out_the_first_rows_of_the_interval_rejects_included(tmp_path: Path, skip: int) -> None:
    path = write(tmp_path / "f.jsonl", '{"t":1}', "x", '{"t":3601}', '{"t":2}')
    assert values(read(source(path), hour(0), skip)) == [b'{"t":1}', b"x", b'{"t":2}'][skip:]


class TestCompression:
    LINES = b"".join(b'{"t":%d}\n' % i for i in range(10_000))

    @pytest.mark.parametrize(
        ("suffix", "compress"),
        [
            (".gz", gzip.compress),
            (".bz2", bz2.compress),
            (".zst", lambda data: pa.compress(data, codec="zstd", asbytes=True)),
        ],
    )
    def test_by_the_name_and_several_members_are_one_file(self, tmp_path: Path, suffix: str, compress: Callable[[bytes], bytes]) -> None:
        path = tmp_path / f"f.jsonl{suffix}"
        path.write_bytes(compress(self.LINES) + compress(b'{"t":10000}\n'))
        records = read(source(path), seconds(0, 20_000))
        assert values(records) == [b'{"t":%d}' % i for i in range(10_001)]

    @pytest.mark.parametrize(
        ("suffix", "compress"),
        [
            (".gz", gzip.compress),
            (".bz2", bz2.compress),
            (".zst", lambda data: pa.compress(data, codec="zstd", asbytes=True)),
        ],
    )
    def test_a_file_cut_short_or_damaged_is_an_error(self, tmp_path: Path, suffix: str, compress: Callable[[bytes], bytes]) -> None:
        whole = compress(self.LINES)
        path = tmp_path / f"f.jsonl{suffix}"
        for data in (whole[: len(whole) // 2], whole[:-1], b"not compressed at all", b""):
            path.write_bytes(data)
            with pytest.raises(DataLossError, match=r"damaged or incomplete"):
                read(source(path), None)


class TestFinding:
    def test_a_pattern_takes_its_files_in_the_order_of_their_names(self, tmp_path: Path) -> None:
        for name in ("b.jsonl", "a.csv", "c.jsonl.gz", "d.txt"):
            (tmp_path / name).write_bytes(
                gzip.compress(b'{"t":3}\n') if name.endswith("gz") else b"t\n1\n" if "csv" in name else b'{"t":2}\n'
            )
        assert values(read(source(tmp_path / "[a-c].*"), None)) == [b'{"t":"1"}', b'{"t":2}', b'{"t":3}']

    def test_a_file_that_several_names_lead_to_is_read_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        write(tmp_path / "1.jsonl", '{"t":1}')
        (tmp_path / "latest.jsonl").symlink_to("1.jsonl")
        for sources in (["*.jsonl"], ["1.jsonl", "./1.jsonl", str(tmp_path / "1.jsonl")]):
            assert [r.where for r in read(FileSource(sources, TIMED), None)] == ["1.jsonl:1"]

    def test_files_of_one_path_in_several_archives_are_all_read(self, tmp_path: Path) -> None:
        for name in ("a", "b"):
            with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
                archive.writestr("f.jsonl", f'{{"t":1,"of":"{name}"}}\n')
        sources = [f"zip://f.jsonl::{tmp_path}/{name}.zip" for name in ("a", "b")]
        assert values(read(FileSource(sources, ReadOptions(format="jsonl")), None)) == [b'{"t":1,"of":"a"}', b'{"t":1,"of":"b"}']

    def test_a_line_without_a_time_at_the_start_of_a_file_goes_with_the_file_before(self, tmp_path: Path) -> None:
        write(tmp_path / "1.jsonl", '{"t":1}')
        write(tmp_path / "2.jsonl", "x", '{"t":3600}')
        assert values(read(source(tmp_path / "*.jsonl"), hour(0))) == [b'{"t":1}', b"x"]

    def test_a_relative_path_is_looked_for_here_and_then_under_factory_include(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "include" / "data").mkdir(parents=True)
        write(tmp_path / "include" / "data" / "f.jsonl", '{"t":1}')
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ConfigurationError, match=r"source 'data/f.jsonl': no such file .*FACTORY_INCLUDE, which is not set"):
            source("data/f.jsonl")
        monkeypatch.setenv("FACTORY_INCLUDE", str(tmp_path / "include"))
        for given_path in ("data/f.jsonl", "data/*.jsonl"):
            assert [r.where for r in read(source(given_path), None)] == ["data/f.jsonl:1"]

    def test_a_name_with_pattern_characters_that_is_there_is_meant_itself(self, tmp_path: Path) -> None:
        assert read(source(write(tmp_path / "f[1].jsonl", '{"t":1}')), None)

    @pytest.mark.parametrize(
        ("path", "message"),
        [
            ("none.jsonl", "no such file"),
            ("*.jsonl", "no file fits this pattern"),
            (".", "is a directory; name its files"),
            ("f.txt", "the name doesn't tell its format; set format to"),
            ("f.parquet.gz", "Parquet is compressed within"),
            ("gopher://x/f.jsonl", "(?i)protocol not known"),
        ],
    )
    def test_what_cannot_be_used_is_one_clear_line(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, message: str) -> None:
        for name in ("f.txt", "f.parquet.gz"):
            (tmp_path / name).touch()
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ConfigurationError, match=message) as caught:
            source(path)
        assert "\n" not in str(caught.value)

    def test_the_format_can_be_given(self, tmp_path: Path) -> None:
        assert read(source(write(tmp_path / "f.txt", '{"t":1}'), ReadOptions(format="jsonl")), None)

    def test_urls_are_read_through_fsspec(self) -> None:
        import fsspec

        files = fsspec.filesystem("memory")
        for name in ("b", "a"):
            files.pipe(f"/bucket/{name}.jsonl.gz", gzip.compress(b'{"t":1,"event_id":"%s"}\n' % name.encode()))
        found = source("memory://bucket/*.jsonl.gz")
        assert [(r.key, r.where) for r in read(found, hour(0))] == [
            (b"a", "memory:///bucket/a.jsonl.gz:1"),
            (b"b", "memory:///bucket/b.jsonl.gz:1"),
        ]
        assert [sorted(f) for f in found.identity["files"]] == [["name", "size", "stamp"]] * 2
        with pytest.raises(ConfigurationError, match="no such file"):
            source("memory://bucket/none.jsonl")

    @pytest.mark.slow
    def test_a_web_server_without_ranges_or_validators_will_do(self, tmp_path: Path) -> None:
        lines = b"".join(b'{"t":1,"n":%d,"x":"%s"}\n' % (n, os.urandom(4_000).hex().encode()) for n in range(1_000))
        (tmp_path / "f.jsonl").write_bytes(lines)
        (tmp_path / "g.jsonl.gz").write_bytes(gzip.compress(lines))
        with web_server(tmp_path) as url:
            for name in ("f.jsonl?signature=secret", "g.jsonl.gz"):
                found = source(f"{url}/{name}")
                assert b"".join(value + b"\n" for value in values(read(found, hour(0)))) == lines
                assert found.identity["volatile"] is True
                assert "secret" not in json.dumps(found.identity)
            with pytest.raises(ConfigurationError, match="no such file"):
                source(f"{url}/none.jsonl")

    def test_a_secret_in_a_url_is_nowhere_to_be_seen(self) -> None:
        with pytest.raises(UnavailableError) as caught:
            source("http://user:secret@127.0.0.1:1/f.jsonl?signature=secret")
        assert "secret" not in str(caught.value)


class TestIdentity:
    def test_it_is_the_content_not_its_time(self, tmp_path: Path) -> None:
        path = write(tmp_path / "f.jsonl", '{"t":1}')
        before = source(path).identity
        os.utime(path, (1, 1))
        assert source(path).identity == before
        write(path, '{"t":2}')
        assert source(path).identity != before
        assert "volatile" not in before

    @pytest.mark.parametrize("confined", [False, True])
    def test_a_file_is_the_same_one_however_it_is_written(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, confined: bool) -> None:
        """Else its rows are written again."""
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("FACTORY_INCLUDE", str(tmp_path))
        (tmp_path / "data").mkdir()
        write(tmp_path / "data" / "f.jsonl", '{"t":1}')
        ways = ["data/f.jsonl", "./data/f.jsonl", "data//f.jsonl", "data/./f.jsonl", "data/../data/f.jsonl"]
        ways += [way.replace("f.", "*.") for way in ways]
        identities = [FileSource([way], ReadOptions(), confined=confined).identity for way in ways]
        assert identities == [identities[0]] * len(ways)

    def test_options_that_change_what_comes_out_are_in_it_and_the_rate_is_not(self, tmp_path: Path) -> None:
        path = write(tmp_path / "f.jsonl", '{"t":1}')
        assert source(path).identity == source(path, ReadOptions(time_field="t", rate_limit=5)).identity
        assert source(path).identity != source(path, ReadOptions(time_field="t", time_unit="ms")).identity


@pytest.mark.parametrize("change", ["append", "replace"])
def test_a_file_that_changes_while_it_is_read_is_an_error_that_a_retry_may_mend(tmp_path: Path, change: str) -> None:
    path = write(tmp_path / "f.jsonl", *['{"t":1}'] * 200_000)
    batches = source(path).read(None, 0)
    next(batches)
    if change == "append":
        with path.open("a") as file:
            file.write('{"t":1}\n')
    else:
        other = write(tmp_path / "g.jsonl", *['{"t":2}'] * 200_000)
        os.utime(other, ns=(1, 1))
        other.replace(path)
    with pytest.raises(UnavailableError, match="changed while it was read"):
        for _ in batches:
            pass


def test_plain_files_need_neither_fsspec_nor_pyarrow(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"t":1}\n'))
    code = f"""
import sys
from factory_agents.ingest import build
assert [len(b) for b in build({{"source": {str(path)!r}, "time_field": "t"}}).read(None, 0)] == [1]
assert not {{"fsspec", "pyarrow", "psycopg", "airflow"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_sample_hours_hold_what_their_readme_says() -> None:
    sample = Path(__file__).parents[3] / "include" / "data" / "changes.jsonl"
    day = datetime(2018, 6, 5, tzinfo=UTC)
    found = source(sample, ReadOptions(time_field="occurred_at"))
    for start, consumed, rejected in ((8, 141, {392}), (9, 109, {569, 595})):
        records = read(found, Interval(day + timedelta(hours=start), day + timedelta(hours=start + 1)))
        assert len(records) == consumed
        assert {int(r.where.rpartition(":")[2]) for r in records if r.reject} == rejected
