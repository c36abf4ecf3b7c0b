"""What the page says of a snapshot."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from airflow_provider_factory.page.snapshot import Figures, Snapshot
from airflow_provider_factory.page.views.common import freshness
from airflow_provider_factory.page.views.overview import SHOWN, overview, pipeline
from factory_agents.kafka.lag import LagTotal
from factory_agents.kafka.windows import StageStatus, WindowStatus
from factory_agents.protocol import Counts
from tests.support.pages import figures as make_figures
from tests.support.pages import plan, stage

REPORT = {"contract": {"name": "orders", "version": 7}}


def shot(*windows: WindowStatus) -> Snapshot:
    return Snapshot(Figures(windows))


NOW = datetime(2026, 11, 1, 6, tzinfo=UTC)


def window(hour: int, state: str = "finished", pipeline: str = "p", **counts: int) -> WindowStatus:
    start = datetime(2026, 11, 1, tzinfo=UTC) + timedelta(hours=hour)
    key = f"{start:%FT%H}:00:00.000Z/{start + timedelta(hours=1):%FT%H}:00:00.000Z"
    stages = (StageStatus("enrich", "done" if state == "finished" else "running", counts=Counts(**counts)),) if counts else ()
    return WindowStatus(pipeline, key, state, "t", records=100, stages=stages, updated=NOW)  # type: ignore[arg-type]


def test_one_sentence_says_what_is_left_since_when_and_how_much_waits() -> None:
    found = overview(shot(window(4, "planned"), window(5, "unfinished", consumed=10, forwarded=10), window(3)), ["p"])
    assert [p.sentence for p in found] == ["2 windows not whole since 2026-11-01 04:00; 200 events wait."]


def test_a_pipeline_that_is_whole_says_so_and_how_many_were_rejected() -> None:
    found = overview(shot(window(3, consumed=10, forwarded=9, rejected=1)), ["p"])
    assert found[0].sentence == "All 1 window whole; 1 event rejected."


def test_only_what_the_user_may_read_is_there_and_work_left_comes_first() -> None:
    snapshot = shot(window(3, pipeline="a"), window(3, "planned", pipeline="b"), window(3, pipeline="secret"))
    assert [p.name for p in overview(snapshot, ["a", "b", "unknown"])] == ["b", "a"]


def test_a_page_is_bounded_and_says_what_it_leaves_out() -> None:
    found = pipeline(shot(*(window(h) for h in range(SHOWN + 5))), "p")
    assert (len(found.windows), found.more) == (SHOWN, 5)


def test_the_next_page_goes_on_where_the_first_ended() -> None:
    snapshot = shot(*(window(h) for h in range(SHOWN + 5)))
    first, second = pipeline(snapshot, "p"), pipeline(snapshot, "p", 1)
    assert (len(second.windows), second.more) == (5, 0)
    assert not {w.when for w in first.windows} & {w.when for w in second.windows}


def test_the_sentence_names_what_most_rejects_broke() -> None:
    figures = make_figures(
        plan("p", 1),
        stage("p", 1, "validate", counts=Counts(consumed=40, rejected=40), report=REPORT | {"rules": {"price < 0": 39, "schema": 1}}),
    )
    sentence = overview(Snapshot(figures), ["p"])[0].sentence
    assert sentence == "All 1 window whole; 40 events rejected, 98 % of them: price < 0 in orders v7."


def test_failed_windows_are_counted_apart() -> None:
    assert "1 window not whole since 2026-11-01 03:00 (1 failed)" in overview(shot(window(3, "failed")), ["p"])[0].sentence


def test_it_says_how_far_a_pipeline_is_behind() -> None:
    figures = Figures((window(3),), lags=(LagTotal("p", "raw", 2, 41212, 41000, 1), LagTotal("other", "x", 1, 1, 1, 0)))
    assert pipeline(Snapshot(figures), "p").lag == "41,212 records on raw"


def test_a_pipeline_that_the_ledger_does_not_know_is_empty() -> None:
    assert pipeline(Snapshot(), "p").sentence == "No window has been planned."


def test_a_sink_says_what_it_wrote_and_what_it_dropped() -> None:
    counts = {"consumed": 10, "forwarded": 9, "rejected": 1, "written": 6, "duplicates": 2, "older": 1}
    cell = pipeline(shot(window(3, **counts)), "p").windows[0].stages[0]
    assert [(p.name, p.count) for p in cell.parts] == [("written", 6), ("duplicates", 2), ("older", 1), ("rejected", 1)]


def test_figures_say_how_old_they_are_and_why_there_are_none_newer() -> None:
    assert freshness(Snapshot(), NOW).text == "Reading the ledger …"
    assert freshness(Snapshot(taken_at=NOW), NOW + timedelta(seconds=3)).text == "As of 3 s ago"
    down = freshness(Snapshot(taken_at=NOW, error="no broker answered", down_since=NOW + timedelta(minutes=12)), NOW)
    assert down.stale
    assert down.text == "Kafka cannot be read since 06:12:00 UTC; figures from 06:00:00 UTC. no broker answered"
