"""Which intervals are whole, open, failed, late or missing."""

from __future__ import annotations

from datetime import timedelta

from airflow_provider_factory.page.runs import MOST_SPANS, Run, Schedule
from airflow_provider_factory.page.snapshot import Figures, Snapshot
from airflow_provider_factory.page.views.calendar import Calendar, calendar, gaps, span_of
from factory_agents.kafka.ledger import FailureRecord
from factory_agents.protocol import Counts, Shard
from tests.support.pages import HOUR, START, dead, figures, hour, plan, stage

NONE = Figures()


def run(n: int, state: str) -> Run:
    return Run(f"r{n}", state, hour(n).start, hour(n).end)


def shown(shot: Figures, *runs: Run, hours: int = 12, at: int = 12, scheduled: bool = True) -> Calendar:
    of, until, now = Snapshot(shot), START + hours * HOUR, START + at * HOUR
    left = gaps(of, "p", START, until, runs, now)
    spans = [(hour(n).start, hour(n).end) for n in range(hours) if any(a <= hour(n).start and hour(n).end <= b for a, b in left)]
    return calendar(of, "p", START, until, runs, Schedule(tuple(spans if scheduled else ()), scheduled), now)


def states(found: Calendar) -> dict[int, str]:
    return {int(cell.time[:2]): cell.state for day in found.days for cell in day.cells}


def test_each_interval_is_in_one_state() -> None:
    failed = FailureRecord("p", "enrich", hour(4).key, Shard(), 1, 2, "E", "m")
    shot = figures(plan("p", 1), dead("p", 1), plan("p", 3), plan("p", 4), failed, plan("p", 10), stage("p", 6, counts=Counts()))
    found = shown(shot, run(1, "success"), run(7, "failed"), run(8, "success"), run(10, "running"), run(9, "queued"))
    assert states(found) == {
        1: "whole",
        2: "missing",
        3: "late",
        4: "failed",
        5: "missing",
        6: "whole",
        7: "failed",
        8: "whole",
        9: "late",
        10: "open",
        11: "missing",
    }
    assert dict(found.totals) == {"whole": 3, "missing": 3, "late": 2, "failed": 2, "open": 1}
    assert found.missing == 3


def test_nothing_is_missing_before_the_pipelines_first_window_and_without_a_schedule() -> None:
    assert states(shown(figures(plan("p", 10), dead("p", 10)))) == {10: "whole", 11: "missing"}
    assert states(shown(figures(plan("p", 10), dead("p", 10)), scheduled=False)) == {10: "whole"}
    assert shown(NONE).days == ()


def test_only_times_that_nobody_knows_of_are_asked_for() -> None:
    shot = Snapshot(figures(*(plan("p", n) for n in (1, 2, 3, 6))))
    found = gaps(shot, "p", START, START + 12 * HOUR, (run(7, "success"),), START + 10 * HOUR)
    assert [((a - START) // HOUR, (b - START) // HOUR) for a, b in found] == [(4, 6), (8, 10)]
    assert gaps(shot, "p", START, START + 4 * HOUR, (), START + 10 * HOUR) == []


def test_a_cell_says_all_of_it_to_whoever_hears_it_and_leads_to_its_window() -> None:
    cell = shown(figures(plan("p", 1), dead("p", 1)), run(1, "success")).days[0].cells[0]
    assert cell.label == "2026-11-02 01:00 → 02:00: whole, run success"
    assert cell.path.startswith("window?key=2026-11-02T01")
    assert cell.start == "2026-11-02T01:00:00Z"


def test_a_calendar_is_bounded_and_leads_on() -> None:
    many = figures(*(plan("p", n) for n in range(-MOST_SPANS * 2, 0)))
    shot = Snapshot(many)
    since, until = span_of(shot, "p", None, START)
    assert (since, until) == (START - MOST_SPANS * HOUR, START)
    found = calendar(shot, "p", since, until, (), Schedule(), START)
    assert sum(len(day.cells) for day in found.days) == MOST_SPANS
    assert (found.earlier, found.later) == ("2026-10-19T00:00:00Z", "")
    since, until = span_of(shot, "p", START - MOST_SPANS * HOUR, START)
    assert calendar(shot, "p", since, until, (), Schedule(), START).later == "2026-11-02T00:00:00Z"


def test_the_span_follows_the_length_of_the_pipelines_intervals() -> None:
    assert span_of(Snapshot(), "p", None, START) == (START - MOST_SPANS * HOUR, START)
    year_one = START.replace(year=1, month=1, day=1)
    assert span_of(Snapshot(), "p", year_one, START)[1] == START
    assert span_of(Snapshot(), "p", START + timedelta(days=1), START)[1] == START + timedelta(days=1)
