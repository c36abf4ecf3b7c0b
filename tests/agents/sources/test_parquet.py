"""Parquet files: rows become JSON, and a small file that means gigabytes is read in bounded memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from factory_agents.errors import ConfigurationError, DataLossError
from factory_agents.protocol import Interval
from factory_agents.sources.rows import ReadOptions
from tests.agents.sources.reading import TIMED, hour, read, source, write
from tests.support.bounded import cost_of


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

    @pytest.mark.parametrize(
        ("times", "reason"),
        [
            (pa.array([0, 3_000_000, 2_932_896], pa.date32()), "outside of the years 1 to 9999"),
            (pa.array([0, 10**15, 253_402_214_400_000], pa.int64()).cast(pa.date64()), "outside of the years 1 to 9999"),
            (pa.array([[1], [2**62], [3]], pa.list_(pa.timestamp("us"))), "date value out of range"),
        ],
        ids=["date32", "date64", "no time at all"],
    )
    def test_a_time_that_python_has_no_form_for_rejects_its_row(self, tmp_path: Path, times: pa.Array, reason: str) -> None:
        path = self.write(tmp_path / "f.parquet", t=times)
        if pa.types.is_list(times.type):
            with pytest.raises(ConfigurationError, match="none of the first 3 rows has a readable time in 't'"):
                read(source(path), hour(0))
            return
        _, rejected = read(source(path), hour(0))
        assert rejected.reject is not None
        assert (rejected.reject.rule, reason in rejected.reject.reason) == ("time", True)
        (last,) = read(source(path), Interval(datetime(9999, 12, 31, tzinfo=UTC), datetime.max.replace(tzinfo=UTC)))
        assert (last.where, last.reject) == (f"{path}:3", None)

    def test_a_time_in_96_bits_is_that_of_its_writer(self, tmp_path: Path) -> None:
        """Spark, Hive and Impala write these; 64 bits of nanoseconds hold the years 1678 to 2261 only."""
        times = [datetime(1, 1, 1), datetime(1600, 2, 3, 4, 5, 6, 789), datetime(9999, 12, 31, 23, 59, 59, 999_999)]  # noqa: DTZ001
        table = pa.table({"t": pa.array(times, pa.timestamp("us")), "l": pa.array([[t] for t in times], pa.list_(pa.timestamp("us")))})
        path = tmp_path / "f.parquet"
        pq.write_table(table, path, use_deprecated_int96_timestamps=True)
        assert pq.ParquetFile(path).schema.column(0).physical_type == "INT96"
        texts = ["0001-01-01T00:00:00Z", "1600-02-03T04:05:06.000789Z", "9999-12-31T23:59:59.999999Z"]
        assert [json.loads(record.value) for record in read(source(path), None)] == [{"t": text, "l": [text]} for text in texts]
        (record,) = read(source(path), Interval(datetime(1600, 2, 3, 4, tzinfo=UTC), datetime(1600, 2, 3, 5, tzinfo=UTC)))
        assert json.loads(record.value)["t"] == texts[1]

    def test_lists_of_one_length_are_lists(self, tmp_path: Path) -> None:
        lists = pa.FixedSizeListArray.from_arrays(pa.array([0, 1_000, 2_000, 3_000]).cast(pa.timestamp("ns")), 2)
        records = read(source(self.write(tmp_path / "f.parquet", t=pa.array([1, 2]), a=lists)), None)
        assert json.loads(records[1].value)["a"] == ["1970-01-01T00:00:00.000002Z", "1970-01-01T00:00:00.000003Z"]

    def test_a_text_that_is_no_utf8_rejects_its_row(self, tmp_path: Path) -> None:
        texts = pa.array([b"1970-01-01T00:00:00Z", b"\xff", b"1970-01-01T00:10:00Z"]).view(pa.string())
        path = self.write(tmp_path / "f.parquet", t=texts)
        assert [r.reject.rule if r.reject else "" for r in read(source(path), hour(0))] == ["", "time", ""]

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

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("make", "time_field"),
        [
            (_long, ""),
            pytest.param(_long, "a", marks=pytest.mark.soak),
            (lambda: pa.ListArray.from_arrays(pa.array(range(301), pa.int32()), _long()), ""),
            pytest.param(lambda: pa.StructArray.from_arrays([_long()], names=["b"]), "", marks=pytest.mark.soak),
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

    @pytest.mark.slow
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
