"""Validation reports for people: whole windows only, a trend, and nothing in them that a browser or a Markdown reader would obey."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from typing import Any

import msgspec
import pytest

from factory_agents.contracts import WindowStatistics, load_contract
from factory_agents.errors import ConfigurationError
from factory_agents.kafka.records import StageRecord, StoredResult
from factory_agents.protocol import Interval, Shard
from factory_agents.reports import WindowReport, chosen, html_page, markdown, reports_of

CONTRACT = load_contract(
    {
        "name": "orders",
        "id": "id",
        "schema": {"type": "object", "required": ["id"], "properties": {"id": {"type": "string"}, "price": {"type": ["number", "null"]}}},
        "rules": {"positive": "price is None or price >= 0"},
        "window": {"fail_if": ["rejected > 10 %"], "warn_if": ["rejected > 0", "rows < 5"]},
    }
)
HOSTILE = "</td><script>alert(1)</script>|`<img src=x onerror=alert(1)>\x1b[2J\n# x"


def report(valid: int = 9, rejected: int = 1, reason: str = "price: expected at least 0, got -1") -> dict[str, Any]:
    statistics = WindowStatistics(CONTRACT)
    statistics.add_valid([{"id": str(i), "price": None} for i in range(valid)])
    for i in range(rejected):
        statistics.add_rejected(["positive"], reason, ("orders", 0, i))
    found = statistics.report()
    statistics.close()
    return found


def window(hour: int) -> str:
    start = datetime(2026, 11, 1, hour, tzinfo=UTC)
    return Interval(start, start + timedelta(hours=1)).key


def shown(hour: int = 4, **figures: Any) -> WindowReport:
    return WindowReport("shop", "validate", window(hour), hour, report(**figures))


class View:
    """What the ledger holds, as its reader gives it."""

    def __init__(self, *records: StageRecord) -> None:
        self.records = records

    def of(self, kind: type[Any]) -> list[Any]:
        return [record for record in self.records if isinstance(record, kind)]


def record(hour: int, shard: Shard, found: dict[str, Any] | None, stage: str = "validate", at: int = 1) -> StageRecord:
    result = None if found is None else StoredResult(report=found)
    return StageRecord("shop", stage, window(hour), shard, "f", 1, updated_at=at, result=result)


def test_shards_are_merged_and_a_stage_without_all_of_them_has_no_report() -> None:
    view: Any = View(
        record(4, Shard(0, 2), report(9, 1)),
        record(4, Shard(1, 2), report(8, 2)),
        record(5, Shard(0, 2), report()),
        record(5, Shard(1, 2), None),
        record(6, Shard(), {"of an agent": "of a user"}),
    )
    found = reports_of(view)
    assert [(r.window, r.report["rows"], r.report["shards"]) for r in found] == [(window(4), 20, 2)]


def test_of_two_numbers_of_shards_the_later_work_counts() -> None:
    view: Any = View(record(4, Shard(0, 2), report(), at=5), record(4, Shard(1, 2), report(), at=6), record(4, Shard(), report(3, 0), at=9))
    assert [r.report["rows"] for r in reports_of(view)] == [3]


@pytest.mark.parametrize("name", [window(4), "2026-11-01T04", "2026-11-01 04:00 → 2026-11-01 05:00"])
def test_a_window_is_found_by_its_name_or_the_start_of_it(name: str) -> None:
    reports = [shown(3), shown(4), shown(5)]
    assert chosen(reports, "shop", name) is reports[1]
    assert chosen(reports, "shop") is reports[2]


def test_mapped_tasks_have_a_report_each() -> None:
    records = [msgspec.structs.replace(record(4, Shard(), report(n, 0)), scope=scope) for scope, n in (("a[0]", 1), ("b[1]", 2))]
    view: Any = View(*records)
    found = reports_of(view)
    assert [r.report["rows"] for r in found] == [1, 2]
    with pytest.raises(ConfigurationError, match=r"2 reports fit .*b\[1\]"):
        chosen(found, "shop", window(4))
    assert chosen(found, "shop", f"{window(4)} b[1]") is found[1]


@pytest.mark.parametrize(
    ("reports", "name", "said"), [([], "", "no validation report"), ([3, 4], "2026", "2 reports fit"), ([3], "x", "no report of")]
)
def test_what_is_not_found_is_said(reports: list[int], name: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        chosen([shown(hour) for hour in reports], "shop", name)


@pytest.mark.parametrize(("rejected", "outcome"), [(0, "pass"), (1, "warn"), (5, "fail")])
def test_both_say_the_outcome_the_figures_and_the_rules(rejected: int, outcome: str) -> None:
    one = shown(valid=9, rejected=rejected)
    for text in (markdown(one), html_page(one)):
        assert outcome.upper() in text
        assert ("positive" in text) == (rejected > 0)
        assert ("orders-0@0" in text) == (rejected > 0)
    assert f"| rejected | {rejected} (" in markdown(one)


def test_both_say_what_was_counted_and_what_was_not_run() -> None:
    one = shown()
    counted = {
        "missing": {"a|b": 3},
        "invalid": {"price": 0},
        "duplicates_of": {"a, b": 2, "c": None},
        "not_run": ["c.yaml:3:5: not run: sql check"],
    }
    for text in (markdown(replace(one, report=one.report | counted)), html_page(replace(one, report=one.report | counted))):
        assert all(word in text for word in ("missing a", "duplicates of a, b", "not run: sql check"))
        assert "invalid price" not in text
    assert "| missing a\\|b | 3 (" in markdown(replace(one, report=one.report | counted))


class Tags(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))


def test_nothing_from_an_event_is_obeyed() -> None:
    one = shown(reason=HOSTILE)
    tags = Tags(html_page(one, [shown(3, reason=HOSTILE)])).seen
    assert not {"script", "img", "iframe", "link", "a"} & {tag for tag, _ in tags}
    assert not [attrs for _, attrs in tags for name in attrs if name.startswith("on") or name in ("src", "href")]
    assert "\x1b" not in html_page(one)
    line = next(line for line in markdown(one).splitlines() if line.startswith("- "))
    assert "<img" not in line
    assert "# x" not in markdown(one).splitlines()


def test_the_trend_is_of_earlier_windows_of_the_stage() -> None:
    others = [shown(3, rejected=0), shown(5), WindowReport("shop", "other", window(2), 2, report())]
    page = html_page(shown(4, rejected=5), others)
    assert len(re.findall("<rect", page)) == 2
    assert "<rect" not in html_page(shown(4))


def test_a_page_of_very_many_rejects_stays_small() -> None:
    assert len(html_page(shown(valid=0, rejected=10_000)).encode()) < 20_000
