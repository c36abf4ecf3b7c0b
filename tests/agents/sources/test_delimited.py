"""Delimited files: rows become objects of strings, and every line is in a row or rejected."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory_agents.errors import ConfigurationError
from factory_agents.protocol import Interval
from factory_agents.sources.rows import ReadOptions
from tests.agents.sources.reading import hour, read, seconds, source, values, write


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
        for delimiter in ('"', "\n", "\r"):  # with these each row would be one value, under one long name
            with pytest.raises(ValueError, match=r"delimiter .*: expected what stands between two values"):
                ReadOptions(time_field="t", delimiter=delimiter)
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
