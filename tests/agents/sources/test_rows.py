"""Times, intervals, keys and pacing that all sources share."""

from __future__ import annotations

import time
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory_agents.runtime.agents import SourceRecord
from factory_agents.sources.rows import (
    BATCH_RECORDS,
    ReadOptions,
    Rows,
    TimeUnit,
    TokenBucket,
    all_to_micros,
    as_is,
    encode_key,
    encode_row,
    paced,
    select,
    to_micros,
    window_micros,
)
from tests.agents.sources.reading import seconds

AT = datetime(2018, 6, 5, 8, 0, 0, 250_000, tzinfo=UTC)
MICROS = 1_528_185_600_250_000


class TestTimes:
    @pytest.mark.parametrize(
        ("value", "unit"),
        [
            (1_528_185_600.25, "auto"),
            (1_528_185_600_250, "auto"),
            (1_528_185_600_250_000, "auto"),
            (1_528_185_600_250_000_999, "auto"),
            (1_528_185_600.25, "s"),
            (1_528_185_600_250, "ms"),
            ("1528185600.25", "auto"),
            ("1528185600250", "auto"),
            ("2018-06-05T08:00:00.250Z", "auto"),
            ("2018-06-05T10:00:00.250+02:00", "auto"),
            ("2018-06-05 08:00:00.250", "auto"),
            (" 2018-06-05T08:00:00.250000999Z ", "auto"),
            (AT, "auto"),
            (AT.replace(tzinfo=None), "auto"),
            (AT.astimezone(timezone(timedelta(hours=-3))), "auto"),
        ],
    )
    def test_numbers_texts_and_datetimes_mean_the_same_microsecond(self, value: object, unit: TimeUnit) -> None:
        assert to_micros(value, unit) == MICROS

    def test_a_leap_second_a_days_end_and_a_small_z_are_times(self) -> None:
        assert to_micros("2016-12-31T23:59:60.5Z") == to_micros("2016-12-31T23:59:59.5Z")
        assert to_micros("2016-12-31T24:00:00z") == to_micros("2017-01-01T00:00:00Z")
        assert to_micros("2016-12-31T23:59:59.9999999Z") == to_micros("2016-12-31T23:59:59.999999Z")

    def test_a_date_is_its_midnight_in_utc(self) -> None:
        assert to_micros(date(2018, 6, 5)) == to_micros("2018-06-05") == to_micros("2018-06-05T00:00:00Z")

    def test_times_before_1970_round_down_too(self) -> None:
        assert to_micros(-1, "s") == -1_000_000
        assert to_micros(-1, "ns") == -1
        assert to_micros(-0.0000005, "s") == -1

    def test_an_explicit_unit_goes_before_magnitude(self) -> None:
        assert to_micros(5, "ms") == 5_000
        assert to_micros(10**12, "us") == 10**12

    @pytest.mark.parametrize(
        "value",
        [
            None,
            True,
            "",
            "yesterday",
            "2018-13-01",
            "2018-06-05T12.50",
            "9999-12-31T23:59:59-05:00",
            datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=1))),
            "2018-06-05T20180605",
            [],
            {},
            float("nan"),
            float("inf"),
            10**30,
            "9" * 5000,
            "1.5.2",
            "٣",
            -(10**20),
            10**4000,
            Decimal("1e999999999"),
            Decimal("NaN"),
        ],
    )
    def test_anything_else_is_unreadable(self, value: object) -> None:
        with pytest.raises(ValueError, match="is "):
            to_micros(value)

    @pytest.mark.parametrize(
        ("value", "text"),
        [
            (253_402_300_799, "9999-12-31T23:59:59Z"),
            (-62_135_596_800, "0001-01-01T00:00:00Z"),
            (Decimal("253402300799.999999"), "9999-12-31T23:59:59.999999Z"),
            ("253402300799.999999", "9999-12-31T23:59:59.999999Z"),
            ("-62135596799.999999", "0001-01-01T00:00:00.000001Z"),
            (1_700_000_000.123457, "2023-11-14T22:13:20.123457Z"),
            (Decimal("1700000000.1234569999999999999999999999999999999999"), "2023-11-14T22:13:20.123456Z"),
        ],
    )
    def test_seconds_mean_just_the_microsecond_of_their_text(self, value: object, text: str) -> None:
        assert to_micros(value, "s") == to_micros(text)
        assert all_to_micros([value, value], "s") == [to_micros(text)] * 2

    @pytest.mark.parametrize(
        "value",
        [
            *(2024, 202401, 20240102, 202401020304, 20240102030405, "2024", "20240102", " 20240102 ", 20240102.0),
            *(20240102030405678, 20240102030405678901, "31122024", "02012024", 12312024),
            *(2024010203, "2024010203", 2099123123, 240102, "240102", "311224", "123124", 10102, "010102", "050624"),
            *("20241301", 20243112, "202413010304", "20243112030405", "000102"),
        ],
    )
    def test_what_looks_like_a_date_is_asked_about(self, value: object) -> None:
        for read in (to_micros, lambda v: all_to_micros([v, v])):
            with pytest.raises(ValueError, match=r"looks like a date: set time_format to its form, such as %Y%m%d, or time_unit"):
                read(value)
        assert to_micros(value, "ns") == int(Decimal(str(value))) // 1000

    @pytest.mark.parametrize(
        "value",
        [1_700_000_000, 1_735_689_600, 1_893_456_000, 1_999_999_999, 1_735_689_600_123, 1_735_689_600_123_456, 86_400, 999_999],
    )
    def test_what_is_a_count_of_our_days_is_taken(self, value: int) -> None:
        size = 1_000_000 if value < 10**11 else 1_000 if value < 10**14 else 1
        assert to_micros(value) == to_micros(str(value)) == all_to_micros([value, value])[0] == value * size

    @pytest.mark.parametrize(
        ("value", "form", "text"),
        [
            ("20240102", "%Y%m%d", "2024-01-02"),
            (20240102, "%Y%m%d", "2024-01-02"),
            (20240102.0, "%Y%m%d", "2024-01-02"),
            ("02.01.2024 03:04", "%d.%m.%Y %H:%M", "2024-01-02T03:04:00"),
            ("2024-01-02 03:04 +0200", "%Y-%m-%d %H:%M %z", "2024-01-02T01:04:00Z"),
            (AT, "%Y%m%d", AT.isoformat()),
        ],
    )
    def test_a_form_of_its_own_reads_texts_and_whole_numbers(self, value: object, form: str, text: str) -> None:
        assert to_micros(value, "auto", form) == to_micros(text)
        assert all_to_micros([value], "auto", form) == [to_micros(text)]

    @pytest.mark.parametrize("value", ["2024-01-02", "20241302", 1.5e8, None, "x" * 10_000])
    def test_what_has_another_form_is_unreadable(self, value: object) -> None:
        with pytest.raises(ValueError, match=r"^is .{0,200}$"):
            to_micros(value, "auto", "%Y%m%d")

    def test_a_form_that_is_none_is_refused_at_once(self) -> None:
        with pytest.raises(ValueError, match="time_format '%Q': 'Q' is a bad directive"):
            ReadOptions(time_format="%Q")
        with pytest.raises(ValueError, match=r"time_format '%d\.%m\. %H:%M %%Y' has no year, so every time would be in 1900"):
            ReadOptions(time_format="%d.%m. %H:%M %%Y")

    def test_of_zones_by_their_names_only_utc_is_known(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TZ", "America/New_York")
        time.tzset()
        try:
            form = "%Y-%m-%d %H:%M %Z"
            assert to_micros("2024-01-02 03:04 UTC", "auto", form) == to_micros("2024-01-02T03:04:00Z")
            with pytest.raises(ValueError, match="of zones by their names only UTC and GMT are known: give its offset, as %z"):
                to_micros("2024-01-02 03:04 EST", "auto", form)
        finally:
            monkeypatch.undo()
            time.tzset()

    @given(
        st.lists(st.integers(-(10**12), 10**15) | st.floats(0, 10**10) | st.decimals(0, 10**11), max_size=5)
        | st.lists(st.integers(0, 10**11), max_size=5)
        | st.lists(st.decimals(0, 10**11), max_size=5),
        st.sampled_from(["auto", "s", "ms", "us"]),
    )
    def test_all_at_once_gives_what_each_gives(self, times: list[float], unit: TimeUnit) -> None:
        def outcome(function: object) -> object:
            try:
                return function()  # type: ignore[operator]
            except ValueError:
                return "unreadable"

        assert outcome(lambda: all_to_micros(times, unit)) == outcome(lambda: [to_micros(t, unit) for t in times])


def rows(times: list[int | None]) -> Rows:
    return Rows("f", as_is, range(1, len(times) + 1), times, [None] * len(times), [b"%d" % i for i in range(len(times))])


def never() -> int:
    raise AssertionError("asked for the first time though no row needs it")


class TestSelect:
    def test_start_is_inside_and_end_is_outside(self) -> None:
        start, end = window_micros(seconds(10, 20))
        got = list(select([rows([start - 1, start, end - 1, end])], seconds(10, 20), 0, never))
        assert [r.value for batch in got for r in batch] == [b"1", b"2"]

    def test_batches_are_bounded_and_a_block_without_a_row_gives_an_empty_one(self) -> None:
        start, end = window_micros(seconds(10, 20))
        sizes = [len(b) for b in select([rows([end]), rows([start] * (BATCH_RECORDS + 1))], seconds(10, 20), 0, never)]
        assert sizes == [0, BATCH_RECORDS, 1]

    @given(st.lists(st.none() | st.integers(0, 9), max_size=30), st.integers(0, 30), st.integers(1, 30))
    def test_skip_leaves_out_just_the_first_rows_whatever_the_blocks(self, times: list[int | None], skip: int, size: int) -> None:
        if times and set(times) == {None}:
            return
        micros = [None if t is None else t * 1_000_000 for t in times]
        first = next((t for t in micros if t is not None), 0)
        blocks = [rows(micros)]
        parts = [Rows("f", as_is, b.numbers[i : i + size], b.times[i : i + size], b.keys[i : i + size], b.values[i : i + size])
                 for b in blocks for i in range(0, len(times), size)]  # fmt: skip
        whole = [r for batch in select(blocks, seconds(2, 7), 0, lambda: first) for r in batch]
        rest = [r for batch in select(parts, seconds(2, 7), skip, lambda: first) for r in batch]
        assert rest == whole[skip:]


class TestEncoding:
    def test_a_key_is_the_id_as_it_is_or_as_json(self) -> None:
        assert [encode_key(v) for v in ("é", 7, 1.5, True, {"a": 1}, None, "")] == [
            "é".encode(),
            b"7",
            b"1.5",
            b"true",
            b'{"a":1}',
            None,
            None,
        ]

    def test_a_row_keeps_decimals_exact_and_gives_times_in_iso_and_bytes_in_base64(self) -> None:
        row = {"d": Decimal("0.10"), "t": AT, "b": b"\xff\x00", "n": float("nan")}
        assert msgspec.json.decode(encode_row(row)) == {"d": "0.10", "t": "2018-06-05T08:00:00.250000Z", "b": "/wA=", "n": None}


class TestPacing:
    def test_a_bucket_lets_a_burst_pass_and_then_the_rate(self) -> None:
        now = [0.0]
        bucket = TokenBucket(rate=10, burst=5, clock=lambda: now[0])
        assert bucket.take(5) == 0
        assert bucket.take(5) == pytest.approx(0.5)
        now[0] = 1.0
        assert bucket.take(5) == 0

    def test_records_come_at_the_rate_and_waiting_gives_empty_batches(self) -> None:
        now = [0.0]

        def sleep(span: float) -> None:
            assert span <= 0.5
            now[0] += span

        batch = [SourceRecord(None, b"%d" % i, "") for i in range(25)]
        got = []
        for part in paced(iter([batch]), 0.5, clock=lambda: now[0], sleep=sleep):
            got += part
            assert len(part) <= 1
            assert len(got) <= 1 + now[0] * 0.5 + 1e-6
        assert got == batch
        assert now[0] == pytest.approx(48)
