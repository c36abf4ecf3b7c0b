"""Files of JSON lines: each line byte for byte in its interval, whatever it holds, in bounded memory."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from factory_agents.errors import ConfigurationError
from factory_agents.sources.rows import ReadOptions
from tests.agents.sources.reading import hour, read, source, values, write
from tests.support.bounded import cost_of


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
    @pytest.mark.parametrize(("name", "mebibytes"), [("f.jsonl", 1500), ("f.csv", 400), ("f.jsonl.gz", 400)])
    def test_a_line_of_a_gigabyte_and_a_half_takes_no_memory(self, tmp_path: Path, name: str, mebibytes: int) -> None:
        path = tmp_path / name
        with gzip.open(path, "wb", compresslevel=1) if name.endswith("gz") else path.open("wb") as file:
            file.write(b'{"t":1}\n')
            for _ in range(mebibytes):
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
