"""Where the page says that a pipeline's events go."""

from __future__ import annotations

from typing import Any

import msgspec

from airflow_provider_factory.page.snapshot import Snapshot
from airflow_provider_factory.page.views.flow import Flow, Step, flow
from factory_agents.protocol import Counts, Dataset, Manifest
from tests.support.pages import figures, plan, stage


def topic(name: str) -> Manifest:
    return Manifest(name, f"{name}-id", f"{name}-writer")


def through(name: str, source: str, target: str, n: int = 1, scope: str = "") -> Any:
    record = stage("p", n, name, counts=Counts(consumed=30, forwarded=30), input=topic(source), manifest=topic(target))
    return msgspec.structs.replace(record, scope=scope) if scope else record


def shown(*records: Any) -> Flow:
    snapshot = Snapshot(figures(*records))
    return flow(snapshot, snapshot.of("p"))


def test_topics_stages_and_the_table_stand_in_turn_with_what_was_read() -> None:
    landed = stage("p", 1, "publish", counts=Counts(consumed=30), input=topic("clean"), dataset=Dataset("postgres", "events"))
    found = shown(plan("p", 1), landed, through("enrich", "raw", "clean"))
    assert found.lines == (
        (
            Step("raw"),
            Step("enrich", "mark 1", "30 events, 20 a second"),
            Step("clean"),
            Step("publish", "mark 1", "30 events, 20 a second"),
            Step("events (postgres)"),
        ),
    )
    assert found.when == "2026-11-02 01:00 → 02:00"


def test_a_source_begins_a_line_and_what_branches_off_another() -> None:
    source = stage("p", 1, "ingest", counts=Counts(consumed=1), manifest=topic("raw"))
    found = shown(source, through("left", "raw", "a"), through("right", "raw", "b"))
    assert [[step.name for step in line] for line in found.lines] == [["ingest", "raw", "left", "a"], ["raw", "right", "b"]]


def test_a_stage_that_is_mapped_over_topics_has_a_line_for_each() -> None:
    found = shown(through("enrich", "east", "a", scope="east[0]"), through("enrich", "west", "b", scope="west[1]"))
    assert [[step.name for step in line] for line in found.lines] == [["east", "enrich", "a"], ["west", "enrich", "b"]]


def test_a_whole_window_is_shown_before_a_newer_open_one() -> None:
    found = shown(plan("p", 1), through("enrich", "raw", "clean"), plan("p", 2))
    assert found.when == "2026-11-02 01:00 → 02:00"


def test_without_results_there_is_nothing_to_show() -> None:
    assert shown(plan("p", 1)) == Flow()
