"""Files: where they are found, what tells them apart, and that every line is in exactly one interval."""

from __future__ import annotations

import bz2
import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from threading import Thread

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory_agents.errors import ConfigurationError, DataLossError, UnavailableError
from factory_agents.protocol import Interval
from factory_agents.sources.files import FileSource
from factory_agents.sources.rows import ReadOptions
from tests.agents.sources.reading import EPOCH, hour, read, seconds, values
from tests.support.bounded import cost_of

TIMED = ReadOptions(time_field="t")


def source(path: Path | str, options: ReadOptions = TIMED) -> FileSource:
    return FileSource([str(path)], options)


def write(path: Path, *lines: str | bytes) -> Path:
    path.write_bytes(b"".join((line.encode() if isinstance(line, str) else line) + b"\n" for line in lines))
    return path


class TestJsonLines:
    def test_the_lines_of_an_interval_come_byte_for_byte_with_key_and_place(self, tmp_path: Path) -> None:
        lines = ['{"t": 3599, "event_id": "a"}', '{"event_id":"b",  "t":3600, "ü":[1.50]}', '{"t":7199.9}', '{"t":7200}']
        records = read(source(write(tmp_path / "f.jsonl", *lines)), hour(1))
        assert values(records) == [line.encode() for line in lines[1:3]]
        assert [(r.key, r.where.rpartition("/")[2], r.reject) for r in records] == [(b"b", "f.jsonl:2", None), (None, "f.jsonl:3", None)]

    @pytest.mark.parametrize(
        ("line", "rule"),
        [
            (b'{"t":1', "decode"),
            (b"[1]", "decode"),
            (b"null", "decode"),
            (b'{"t":1} {"t":2}', "decode"),
            (b'{"t":1,"x":01}', "decode"),
            (b'{"t":1,"x":"\xff"}', "decode"),
            (b'{"t":1,"x":"a\x01b"}', "decode"),
            (b'{"t":1,"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "decode"),
            (b"\x00", "decode"),
            (b"{}", "time"),
            (b'{"t":null}', "time"),
            (b'{"t":"x"}', "time"),
            (b'{"t":true}', "time"),
            (b'{"t":[1]}', "time"),
        ],
    )
    def test_a_bad_line_is_rejected_whole_with_the_interval_of_the_line_before(self, tmp_path: Path, line: bytes, rule: str) -> None:
        path = write(tmp_path / "f.jsonl", '{"t":1}', line, '{"t":3601}')
        first, second = read(source(path), hour(0))
        assert (first.reject, second.value, second.where) == (None, line, f"{path}:2")
        assert second.reject is not None
        assert second.reject.rule == rule
        assert values(read(source(path), hour(1))) == [b'{"t":3601}']

    def test_bad_lines_before_any_time_belong_to_the_interval_of_the_first_time(self, tmp_path: Path) -> None:
        path = write(tmp_path / "f.jsonl", "a", "b", '{"t":7300}', '{"t":1}')
        assert values(read(source(path), hour(2))) == [b"a", b"b", b'{"t":7300}']
        assert values(read(source(path), hour(0))) == [b'{"t":1}']

    def test_an_id_is_kept_for_a_row_without_a_time(self, tmp_path: Path) -> None:
        path = write(tmp_path / "f.jsonl", '{"t":1}', '{"t":"x","event_id":7}')
        assert read(source(path), None)[1].key == b"7"

    def test_blank_lines_line_ends_and_a_byte_order_mark_are_no_rows(self, tmp_path: Path) -> None:
        path = tmp_path / "f.jsonl"
        path.write_bytes(b'\xef\xbb\xbf{"t":1}\r\n\r\n \t\n{"t":2}\r\n\n{"t":3}')
        records = read(source(path), hour(0))
        assert [(r.value, r.where.rpartition(":")[2]) for r in records] == [(b'{"t":1}', "1"), (b'{"t":2}', "4"), (b'{"t":3}', "6")]

    def test_an_overlong_line_is_rejected_and_reading_goes_on(self, tmp_path: Path) -> None:
        long, huge = '{"t":1,"x":"' + "x" * 2_000 + '"}', '{"t":1,"x":"' + "x" * 3_000_000 + '"}'
        path = write(tmp_path / "f.jsonl", '{"t":1}', long, '{"t":2}', huge, '{"t":3}', '{"t":4}')
        records = read(source(path, ReadOptions(time_field="t", max_line_bytes=1_000)), hour(0))
        assert [r.reject.rule if r.reject else r.value for r in records] == [
            b'{"t":1}',
            "length",
            b'{"t":2}',
            "length",
            b'{"t":3}',
            b'{"t":4}',
        ]
        assert [r.where.rpartition(":")[2] for r in records] == ["1", "2", "3", "4", "5", "6"]

    def test_an_overlong_last_line_is_rejected_too(self, tmp_path: Path) -> None:
        path = tmp_path / "f.jsonl"
        path.write_bytes(b'{"t":1}\n' + b"x" * 5_000_000)
        records = read(source(path, ReadOptions(time_field="t", max_line_bytes=1_000)), None)
        assert [r.reject.rule if r.reject else "" for r in records] == ["", "length"]

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["f.jsonl", "f.csv", "f.jsonl.gz"])
    def test_a_line_of_one_and_a_half_gigabytes_takes_no_memory(self, tmp_path: Path, name: str) -> None:
        path = tmp_path / name
        with gzip.open(path, "wb", compresslevel=1) if name.endswith("gz") else path.open("wb") as file:
            file.write(b'{"t":1}\n')
            for _ in range(1500):
                file.write(bytes(1 << 20))
            file.write(b'\n{"t":2}\n')
        code = (
            "from factory_agents.sources.files import FileSource; from factory_agents.sources.rows import ReadOptions\n"
            f"batches = FileSource([{str(path)!r}], ReadOptions()).read(None, 0)\n"
            "answer = [[r.reject.rule if r.reject else '', len(r.value)] for batch in batches for r in batch]"
        )
        cost = cost_of(code)
        assert [rule for rule, _ in cost.answer].count("length") == 1
        assert sum(size for _, size in cost.answer) < 100_000
        assert cost.mebibytes < 200
        path.unlink()

    def test_without_a_time_field_all_rows_are_read(self, tmp_path: Path) -> None:
        path = write(tmp_path / "f.jsonl", '{"a":1}', "x", '{"a":2}')
        assert [bool(r.reject) for r in read(source(path, ReadOptions()), None)] == [False, True, False]

    def test_the_time_may_be_the_id(self, tmp_path: Path) -> None:
        path = write(tmp_path / "f.jsonl", '{"t":1}')
        assert read(source(path, ReadOptions(time_field="t", id_field="t")), hour(0))[0].key == b"1"

    def test_a_number_beyond_all_bounds_rejects_its_line(self, tmp_path: Path) -> None:
        path = write(
            tmp_path / "f.jsonl", '{"t":1}', '{"t":1e123456789012345678901234567890}', '{"t":2,"event_id":1e-99999999999999999999}'
        )
        records = read(source(path), None)
        assert [r.reject.rule if r.reject else "" for r in records] == ["", "decode", "decode"]

    def test_where_nothing_but_blank_lines_comes_before_the_first_row_that_row_is_the_example(self, tmp_path: Path) -> None:
        path = tmp_path / "f.jsonl"
        path.write_bytes(b'\n{"t":"x"}')
        with pytest.raises(ConfigurationError, match=r"none of the first 1 rows has a readable time in 't'"):
            read(source(path), hour(0))

    def test_a_misspelt_time_field_is_one_line_with_the_name_meant(self, tmp_path: Path) -> None:
        path = write(tmp_path / "f.jsonl", "x", '{"occurred_at":1,"event_id":"a"}')
        with pytest.raises(ConfigurationError, match=r"time_field 'ocurred_at' is not there; did you mean 'occurred_at'\?"):
            read(source(path, ReadOptions(time_field="ocurred_at")), hour(0))

    def test_times_that_nobody_can_read_are_an_error_that_shows_one(self, tmp_path: Path) -> None:
        path = write(tmp_path / "f.jsonl", '{"t":"yesterday"}')
        with pytest.raises(ConfigurationError, match=r"none of the first 1 rows has a readable time in 't'; .*f.jsonl:1.*yesterday"):
            read(source(path), hour(0))

    def test_an_interval_needs_a_time_field(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match="an interval needs time_field"):
            source(write(tmp_path / "f.jsonl", "{}"), ReadOptions()).read(hour(0), 0)

    def test_an_empty_file_has_no_rows(self, tmp_path: Path) -> None:
        assert read(source(write(tmp_path / "f.jsonl")), hour(0)) == []


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
        for data in (whole[: len(whole) // 2], whole[:-1], b"not compressed at all"):
            path.write_bytes(data)
            with pytest.raises(DataLossError, match=r"damaged or incomplete"):
                read(source(path), None)


class TestCsv:
    def test_rows_become_objects_of_strings(self, tmp_path: Path) -> None:
        path = write(tmp_path / "f.csv", "event_id,t,note", 'a,1,"x, ""y""\nz"', "b,3600,", "c,1970-01-01T00:59:59Z,é")
        records = read(source(path), hour(0))
        assert [json.loads(r.value) for r in records] == [
            {"event_id": "a", "t": "1", "note": 'x, "y"\nz'},
            {"event_id": "c", "t": "1970-01-01T00:59:59Z", "note": "é"},
        ]
        assert [(r.key, r.where.rpartition(":")[2]) for r in records] == [(b"a", "2"), (b"c", "5")]

    def test_tabs_and_other_delimiters(self, tmp_path: Path) -> None:
        assert read(source(write(tmp_path / "f.tsv", "t\ta", "1\tx,y")), None)[0].value == b'{"t":"1","a":"x,y"}'
        semicolon = ReadOptions(time_field="t", delimiter=";")
        assert read(source(write(tmp_path / "f.csv", "t;a", "1;x,y"), semicolon), None)[0].value == b'{"t":"1","a":"x,y"}'

    def test_types_turn_text_into_values_and_empty_into_null(self, tmp_path: Path) -> None:
        options = ReadOptions(time_field="t", types={"t": "integer", "x": "number", "b": "boolean"})
        path = write(tmp_path / "f.csv", "t,x,b,s", "1,1.50,true,", "2,,,2", "3,1e3,0,x", "4,nan,,", "5,1,maybe,")
        records = read(source(path, options), None)
        assert [r.value for r in records[:3]] == [
            b'{"t":1,"x":1.50,"b":true,"s":""}',
            b'{"t":2,"x":null,"b":null,"s":"2"}',
            b'{"t":3,"x":1e3,"b":false,"s":"x"}',
        ]
        assert [r.reject.reason for r in records[3:] if r.reject] == [
            "column 'x': expected number, got 'nan'",
            "column 'b': expected boolean, got 'maybe'",
        ]

    def test_rows_that_do_not_fit_are_rejected_one_line_each(self, tmp_path: Path) -> None:
        lines = [b"t,a", b"1,x", b"2", b"3,y,z", b"4,\xff", b'5,"open', b"6,x", b'"7"x,y', b"soon,x", b"8,y"]
        path = write(tmp_path / "f.csv", *lines)
        records = read(source(path), hour(0))
        assert [(int(r.where.rpartition(":")[2]), r.reject.rule if r.reject else "") for r in records] == [
            (2, ""), (3, "decode"), (4, "decode"), (5, "decode"), (6, "decode"), (7, ""), (8, "decode"), (9, "time"), (10, ""),
        ]  # fmt: skip
        assert [r.value for r in records if r.reject] == [lines[n - 1] for n in (3, 4, 5, 6, 8, 9)]

    def test_a_quote_left_open_at_the_end_swallows_nothing(self, tmp_path: Path) -> None:
        path = write(tmp_path / "f.csv", "t,a", '1,"open', *(f"{i},x" for i in range(2, 100)))
        assert [bool(r.reject) for r in read(source(path), None)] == [True] + [False] * 98

    def test_a_header_alone_or_nothing_has_no_rows(self, tmp_path: Path) -> None:
        assert read(source(write(tmp_path / "f.csv", "t,a")), hour(0)) == []
        assert read(source(write(tmp_path / "g.csv")), hour(0)) == []

    @pytest.mark.parametrize(
        ("header", "message"),
        [("tt,a", "did you mean 'tt'"), ("t,a,a", "an empty or a repeated name"), ("t,", "an empty or a repeated name")],
    )
    def test_a_header_that_cannot_be_used_is_an_error(self, tmp_path: Path, header: str, message: str) -> None:
        with pytest.raises(ConfigurationError, match=message):
            read(source(write(tmp_path / "f.csv", header, "1,2")), None)

    @pytest.mark.parametrize(
        "encoding", ["latin-1", "cp1252", "utf-16", "utf-16-le", "utf-32", "shift_jis", "gb18030", "cp037", "utf-8-sig"]
    )
    def test_any_encoding_is_read_by_option(self, tmp_path: Path, encoding: str) -> None:
        word = {"shift_jis": "日本", "gb18030": "中文"}.get(encoding, "é")
        path = tmp_path / "f.csv"
        path.write_bytes(f't,a\r\n1,{word}\r\n2,"x\n{word}, y"\r\n'.encode(encoding))
        records = read(source(path, ReadOptions(time_field="t", encoding=encoding)), None)
        assert [json.loads(r.value) for r in records] == [{"t": "1", "a": word}, {"t": "2", "a": f"x\n{word}, y"}]

    def test_what_is_not_in_the_encoding_is_rejected_by_its_line_or_is_one_clear_error(self, tmp_path: Path) -> None:
        path = write(tmp_path / "f.csv", "t,a", b"1,\x81", b"2,\xe9")
        first, second = read(source(path, ReadOptions(time_field="t", encoding="cp1252")), None)
        assert first.reject is not None
        assert (first.reject.rule, first.value, json.loads(second.value)) == ("decode", b"1,\x81", {"t": "2", "a": "é"})
        (tmp_path / "g.csv").write_bytes("t,a\n1,x\n".encode("utf-16-le") + b"\x00")
        with pytest.raises(ConfigurationError, match=r"g\.csv: not utf-16-le: .*; correct encoding"):
            read(source(tmp_path / "g.csv", ReadOptions(time_field="t", encoding="utf-16-le")), None)
        with pytest.raises(ValueError, match="encoding 'utf-99': unknown encoding"):
            ReadOptions(encoding="utf-99")
        with pytest.raises(ValueError, match="encoding 'base64'"):
            ReadOptions(encoding="base64")

    def test_words_that_mean_null_do_so_in_any_column(self, tmp_path: Path) -> None:
        path = write(tmp_path / "f.csv", "event_id,t,n,s", "a,1,NA,NA", "\\N,2,3,x", "c,NA,1,y")
        options = ReadOptions(time_field="t", nulls=("NA", "\\N"), types={"n": "integer"})
        records = read(source(path, options), None)
        assert [json.loads(r.value) for r in records[:2]] == [
            {"event_id": "a", "t": "1", "n": None, "s": None},
            {"event_id": None, "t": "2", "n": 3, "s": "x"},
        ]
        assert [r.key for r in records] == [b"a", None, b"c"]
        assert records[2].reject is not None
        assert records[2].reject.reason == "the time 't' is missing or null"

    @pytest.mark.parametrize(
        ("header", "names"),
        [
            ("t,a,a,a", ["t", "a", "a_2", "a_3"]),
            ("t,,a,", ["t", "column_2", "a", "column_4"]),
            ("t,a,a,a_2", ["t", "a", "a_3", "a_2"]),
            ("t,column_3,,x", ["t", "column_3", "column_4", "x"]),
            ("t,a_2,a,a", ["t", "a_2", "a", "a_3"]),
        ],
    )
    def test_empty_and_repeated_names_are_renamed_by_option(self, tmp_path: Path, header: str, names: list[str]) -> None:
        path = write(tmp_path / "f.csv", header, "1,2,3,4")
        (record,) = read(source(path, ReadOptions(time_field="t", header="rename")), None)
        assert json.loads(record.value) == dict(zip(names, "1234", strict=True))

    def test_numbers_keep_their_digits(self, tmp_path: Path) -> None:
        numbers = ["12345678901234567.89", "100000000000000000000000.5", "1e-400", "0.10", "123456789012345678901234567890"]
        path = write(tmp_path / "f.csv", "n", *numbers, "1e400")
        records = read(source(path, ReadOptions(types={"n": "number"})), None)
        assert values(records[:-1]) == [b'{"n":%s}' % n.encode() for n in numbers]
        assert records[-1].reject is not None

    @pytest.mark.parametrize("time", ["20240102", "2024"])
    @pytest.mark.parametrize("name", ["f.csv", "f.jsonl", "f.parquet"])
    def test_times_that_look_like_dates_are_asked_about(self, tmp_path: Path, time: str, name: str) -> None:
        path = tmp_path / name
        if name.endswith("parquet"):
            pq.write_table(pa.table({"t": [int(time)] * 2}), path)
        else:
            write(path, "t", time, time) if name.endswith("csv") else write(path, f'{{"t":"{time}"}}', f'{{"t":{time}}}')
        with pytest.raises(ConfigurationError, match=r"readable time in 't'; .* looks like a date: set time_format to its form") as caught:
            read(source(path), hour(0))
        assert "\n" not in str(caught.value)
        day = Interval(datetime(2024, 1, 2, tzinfo=UTC), datetime(2024, 1, 3, tzinfo=UTC))
        if time == "20240102":
            assert len(read(source(path, ReadOptions(time_field="t", time_format="%Y%m%d")), day)) == 2

    @given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=5), max_size=12), st.integers(1, 3))
    def test_every_line_is_in_a_row_or_rejected(self, tmp_path_factory: pytest.TempPathFactory, lines: list[str], bound: int) -> None:
        lines = [line for line in lines if line.strip()]
        path = write(tmp_path_factory.mktemp("csv") / "f.csv", "t,a", *[f"{i % 3},{line}" for i, line in enumerate(lines)])
        timed = source(path)
        try:
            whole = read(timed, None)
        except ConfigurationError:
            return
        assert bool(whole) == bool(lines)
        covered = [int(r.where.rpartition(":")[2]) for r in whole]
        assert covered == sorted(set(covered))
        for record, number, following in zip(whole, covered, [*covered[1:], len(lines) + 2], strict=False):
            breaks = 0 if record.reject else json.loads(record.value)["a"].count("\n")
            assert following == number + 1 + breaks
        parts = [read(timed, seconds(0, bound)), read(timed, seconds(bound, 4))]
        assert sorted(r.where for part in parts for r in part) == sorted(r.where for r in whole)


class TestParquet:
    def write(self, path: Path, group: int = 1000, **columns: object) -> Path:
        pq.write_table(pa.table(columns), path, row_group_size=group)
        return path

    def test_rows_become_objects_with_times_in_utc(self, tmp_path: Path) -> None:
        at = datetime(1970, 1, 1, 1, 30, 0, 250_000)  # noqa: DTZ001
        path = self.write(
            tmp_path / "f.parquet",
            event_id=pa.array(["a", "b"]),
            t=pa.array([at, at + timedelta(hours=1)], pa.timestamp("ns")),
            n=pa.array([1, None], pa.int32()),
            b=pa.array([b"\xff", b""]),
            s=pa.array([{"at": [at]}, None], pa.struct([("at", pa.list_(pa.timestamp("ms")))])),
        )
        (record,) = read(source(path), hour(1))
        assert json.loads(record.value) == {
            "event_id": "a", "t": "1970-01-01T01:30:00.250000Z", "n": 1, "b": "/w==", "s": {"at": ["1970-01-01T01:30:00.250000Z"]},
        }  # fmt: skip
        assert (record.key, record.where) == (b"a", f"{path}:1")

    @pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
    def test_row_groups_left_out_change_nothing(self, tmp_path: Path, unit: str) -> None:
        times = [1, 2, 3700, 3800, 5, None, 3900, 3901, 7300, None, 6, 7]
        scale = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
        path = self.write(tmp_path / "f.parquet", 2, t=pa.array([None if t is None else t * scale for t in times], pa.timestamp(unit)))
        places = [[int(r.where.rpartition(":")[2]) for r in read(source(path), hour(n))] for n in range(3)]
        assert places == [[1, 2, 5, 6, 11, 12], [3, 4, 7, 8], [9, 10]]

    @pytest.mark.parametrize(
        "times", [pa.array([1, 3600]), pa.array([1.0, 3600.5]), pa.array(["1970-01-01", "1970-01-01T01:00:00"]), pa.array([1000, 3600_000])]
    )
    def test_numbers_and_texts_are_times_too(self, tmp_path: Path, times: pa.Array) -> None:
        options = ReadOptions(time_field="t", time_unit="ms") if times[0].as_py() == 1000 else TIMED
        path = self.write(tmp_path / "f.parquet", t=times)
        assert [r.where.rpartition(":")[2] for r in read(source(path, options), hour(1))] == ["2"]

    def test_a_row_without_a_time_is_rejected_as_json(self, tmp_path: Path) -> None:
        path = self.write(tmp_path / "f.parquet", t=pa.array([1, None]), a=pa.array(["x", "y"]))
        record = read(source(path), hour(0))[1]
        assert (record.value, record.reject.rule if record.reject else "") == (b'{"t":null,"a":"y"}', "time")

    @pytest.mark.parametrize(
        ("column", "text"),
        [
            (pa.array([1, 253_402_300_800_000_000, 2], pa.timestamp("us")), "10000-01-01 00:00:00.000000"),
            (pa.array([1, 253_402_300_800_000, 2], pa.timestamp("ms", "UTC")), "10000-01-01 00:00:00.000Z"),
            (pa.array([1, 3_000_000, 2], pa.date32()), "10183-09-21"),
            (pa.array([1, 2**62, 2], pa.duration("s")), "4611686018427387904"),
            (pa.array([[1], [2, 2**62], [3]], pa.list_(pa.timestamp("us"))), "a list<element: timestamp[us]>"),
        ],
    )
    def test_a_value_that_json_has_no_form_for_rejects_its_row(self, tmp_path: Path, column: pa.Array, text: str) -> None:
        path = self.write(tmp_path / "f.parquet", t=pa.array([1, 2, 3]), a=column)
        records = read(source(path), hour(0))
        assert [r.reject.rule if r.reject else "" for r in records] == ["", "type", ""]
        assert json.loads(records[1].value) == {"t": 2, "a": text}
        assert records[1].reject is not None
        assert records[1].reject.reason.startswith("column 'a': ")

    @pytest.mark.parametrize("unit", ["s", "ms", "us"])
    def test_a_time_past_the_year_9999_rejects_its_row(self, tmp_path: Path, unit: str) -> None:
        scale = {"s": 1, "ms": 10**3, "us": 10**6}[unit]
        times = pa.array([3600 * scale, 253_402_300_800 * scale, 253_402_300_799 * scale], pa.timestamp(unit))
        path = self.write(tmp_path / "f.parquet", t=times)
        assert [r.reject.rule if r.reject else "" for r in read(source(path), hour(1))] == ["", "time"]
        (last,) = read(source(path), Interval(datetime(9999, 12, 31, tzinfo=UTC), datetime.max.replace(tzinfo=UTC)))
        assert (last.where, last.reject) == (f"{path}:3", None)

    def test_what_rows_share_comes_out_as_if_they_did_not(self, tmp_path: Path) -> None:
        """Texts of a dictionary, plain or within lists, structs and maps."""
        texts = pa.array(["a", "b", None, "a"]).dictionary_encode()
        columns = {
            "plain": texts,
            "list": pa.ListArray.from_arrays(pa.array([0, 1, 1, 3, 4], pa.int32()), texts),
            "struct": pa.StructArray.from_arrays([texts], names=["x"]),
            "time": pa.array(["1970-01-01", "1970-01-01T01:00", None, "x"]).dictionary_encode(),
        }
        records = read(source(self.write(tmp_path / "f.parquet", **columns), ReadOptions(time_field="time")), None)
        assert [json.loads(r.value) for r in records] == [
            {"plain": "a", "list": ["a"], "struct": {"x": "a"}, "time": "1970-01-01"},
            {"plain": "b", "list": [], "struct": {"x": "b"}, "time": "1970-01-01T01:00"},
            {"plain": None, "list": ["b", None], "struct": {"x": None}, "time": None},
            {"plain": "a", "list": ["a"], "struct": {"x": "a"}, "time": "x"},
        ]
        assert [r.reject.rule if r.reject else "" for r in records] == ["", "", "time", "time"]

    def test_a_row_that_would_not_fit_into_a_record_is_rejected_with_its_small_columns(self, tmp_path: Path) -> None:
        path = self.write(tmp_path / "f.parquet", event_id=pa.array(["a", "b"]), t=pa.array([1, 2]), x=pa.array(["y" * 5000, "z"]))
        first, second = read(source(path, ReadOptions(time_field="t", max_line_bytes=5000)), hour(0))
        assert first.reject is not None
        assert (first.key, first.reject.rule, json.loads(first.value)) == (b"a", "length", {"event_id": "a", "t": 1})
        assert second.reject is None

    def test_a_missing_time_column_and_a_file_that_is_no_parquet_are_errors(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match="did you mean 'tt'"):
            read(source(self.write(tmp_path / "f.parquet", tt=pa.array([1]))), None)
        with pytest.raises(DataLossError, match="damaged or incomplete"):
            read(source(write(tmp_path / "g.parquet", "no")), None)


_READ = """
import json
from factory_agents.errors import ConfigurationError
from factory_agents.sources.files import FileSource
from factory_agents.sources.rows import ReadOptions
largest, answer = 0, 0
try:
    for batch in FileSource([sys.argv[1]], ReadOptions(time_field=sys.argv[2])).read(None, 0):
        largest = max(largest, sum(len(record.value) for record in batch))
        answer += len(batch)
except ConfigurationError as error:
    answer = str(error)
answer = [answer, largest]
"""


def _long() -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array([0] * 300, pa.int32()), ["x" * 1_200_000])


class TestSmallFilesThatMeanMuch:
    """Each is some hundred bytes, or some thousand, and means gigabytes."""

    @pytest.mark.parametrize(
        ("make", "time_field"),
        [
            (_long, ""),
            (_long, "a"),
            (lambda: pa.ListArray.from_arrays(pa.array(range(301), pa.int32()), _long()), ""),
            (lambda: pa.StructArray.from_arrays([_long()], names=["b"]), ""),
            (lambda: pa.array([b"x" * 1_000_000] * 40, pa.binary(1_000_000)), ""),
        ],
        ids=["text", "text as time", "in lists", "in structs", "bytes of one width"],
    )
    def test_batches_are_bounded_in_bytes(self, tmp_path: Path, make: Callable[[], pa.Array], time_field: str) -> None:
        column = make()
        pq.write_table(pa.table({"a": column}), tmp_path / "f.parquet", compression="zstd", store_schema=False)
        cost = cost_of(_READ, str(tmp_path / "f.parquet"), time_field)
        assert cost.mebibytes < 250, cost
        records, largest = cost.answer
        assert isinstance(records, str) if time_field else records == len(column)
        assert largest < 20_000_000

    @pytest.mark.parametrize(
        "make",
        [
            lambda: pa.array(["x" * 1_000_000] * 280),
            lambda: pa.ListArray.from_arrays(pa.array([0, 50_000_000], pa.int32()), pa.nulls(50_000_000, pa.int8())),
        ],
        ids=["texts", "one list"],
    )
    def test_a_column_that_would_not_fit_into_memory_is_refused(self, tmp_path: Path, make: Callable[[], pa.Array]) -> None:
        pq.write_table(pa.table({"a": make()}), tmp_path / "f.parquet", use_dictionary=False, compression="zstd", store_schema=False)
        cost = cost_of(_READ, str(tmp_path / "f.parquet"), "")
        assert cost.mebibytes < 300, cost
        assert "row group 1, column 'a" in cost.answer[0]


class TestFinding:
    def test_a_pattern_takes_its_files_in_the_order_of_their_names(self, tmp_path: Path) -> None:
        for name in ("b.jsonl", "a.csv", "c.jsonl.gz", "d.txt"):
            (tmp_path / name).write_bytes(
                gzip.compress(b'{"t":3}\n') if name.endswith("gz") else b"t\n1\n" if "csv" in name else b'{"t":2}\n'
            )
        assert values(read(source(tmp_path / "[a-c].*"), None)) == [b'{"t":"1"}', b'{"t":2}', b'{"t":3}']

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
