"""What the page shows of one window: figures by stage and shard, reasons, and links to the run's tasks."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_factory.page.runs import Run, Task
from airflow_provider_factory.page.snapshot import Snapshot
from airflow_provider_factory.page.views.run import Pod, Window, report_of, window
from factory_agents.contracts import parse_condition
from factory_agents.contracts.conditions import check
from factory_agents.kafka.ledger import FailureRecord, Progress, StageRecord
from factory_agents.kafka.records import VerdictRecord
from factory_agents.protocol import Counts, Manifest, PartitionRange, Shard
from factory_agents.reports import html_page, markdown
from tests.support.pages import dead, figures, hour, plan, report, stage

WHOLE = Shard()
RUN = Run("scheduled__1", "failed", hour(1).start, hour(1).end)


def shown(
    *records: object, tasks: tuple[Task, ...] = (), run: Run | None = RUN, pods: Mapping[tuple[str, int], Pod] | None = None
) -> Window:
    found = window(Snapshot(figures(*records)), "p", hour(1).key, run, tasks, {"raw": "https://console/raw"}, pods or {})
    assert found is not None
    return found


def failure(shard: Shard = WHOLE, at: int = 2**41, began: int = 2**41) -> FailureRecord:
    return FailureRecord("p", "enrich", hour(1).key, shard, began, at, "UnavailableError", "no broker answered")


def test_a_window_that_the_ledger_does_not_know_is_none() -> None:
    assert window(Snapshot(), "p", hour(1).key, None, (), {}, {}) is None


def test_its_figures_topic_offsets_and_run() -> None:
    page = shown(plan("p", 1), dead("p", 1), tasks=(Task("enrich", -1, "success", 1),))
    assert (page.state, page.topic, page.topic_href, page.ranges) == ("whole", "raw", "https://console/raw", ("raw-0: 0 to 100",))
    assert (page.run, page.run_state) == ("dags/p/runs/scheduled__1", "failed")
    box = page.stages[0]
    assert [(p.name, p.count) for p in box.parts] == [("forwarded", 97), ("rejected", 3)]
    assert box.task == "dags/p/runs/scheduled__1/tasks/enrich"
    assert box.letters == "letters?topic=out.dead&window=2026-11-02T01%3A00%3A00.000Z%2F2026-11-02T02%3A00%3A00.000Z&stage=enrich"


def test_shards_are_shown_one_by_one_each_with_its_task_and_the_reason_of_its_failure() -> None:
    tasks = tuple(Task("enrich", i, "failed" if i else "success", 1) for i in range(2))
    page = shown(plan("p", 1), stage("p", 1, shard=Shard(0, 2), counts=Counts(consumed=5, forwarded=5)), failure(Shard(1, 2)), tasks=tasks)
    assert page.state == "failed"
    assert [shard.pod for shard in page.stages[0].shards] == [None, None]
    first, second = page.stages[0].shards
    assert (first.name, first.state, first.consumed, first.task) == ("1 of 2", "done", 5, "dags/p/runs/scheduled__1/tasks/enrich/mapped/0")
    assert (second.state, second.error) == ("failed", "UnavailableError: no broker answered")
    assert second.task.endswith("mapped/1")


def test_a_shard_has_the_pod_of_its_own_task() -> None:
    tasks = tuple(Task("enrich", i, "failed", 1) for i in range(2))
    pods = {("enrich", i): Pod("ns", f"pod-{i}", "") for i in range(2)} | {("publish", -1): Pod("ns", "other", "")}
    page = shown(plan("p", 1), stage("p", 1, shard=Shard(0, 2)), failure(Shard(1, 2)), stage("p", 1, "publish"), tasks=tasks, pods=pods)
    assert {box.name: [shard.pod and shard.pod.name for shard in box.shards] for box in page.stages} == {
        "enrich": ["pod-0", "pod-1"],
        "publish": ["other"],
    }


def test_a_failure_that_was_mended_since_is_not_told() -> None:
    page = shown(plan("p", 1), stage("p", 1, counts=Counts()), failure(at=5, began=1))
    assert [(s.state, s.error) for s in page.stages[0].shards] == [("done", "")]


def test_a_verdict_by_a_tasks_own_conditions_is_the_windows_and_the_whole_reports() -> None:
    found = report(0)
    records = [plan("p", 1), stage("p", 1, "validate", counts=Counts(consumed=2, forwarded=2), report=found)]
    for judge, level, generation, tolerated in (("validate", "fail", 1, True), ("judge", "warn", 1, False), ("validate", "fail", 0, False)):
        checks = (check(found, parse_condition("rows < 9"), level),)  # type: ignore[arg-type]
        verdict = VerdictRecord("p", judge, hour(1).key, "validate", generation, 1, checks=checks, tolerated=tolerated)
        (box,) = shown(*records, verdict).stages
        assert box.report is not None
        whole = report_of(Snapshot(figures(*records, verdict)), "p", "validate")[-1]
        assert (box.report.outcome, box.report.tolerated) == (whole.outcome, whole.tolerated)
        assert (whole.outcome, whole.tolerated) == ((level if generation else "pass"), tolerated)  # the report was made again since
        assert ("rows < 9" in str(box.report.checks)) == (generation > 0)
        for text in (html_page(whole), markdown(whole)):
            assert (whole.verdict in text, "rows &lt; 9" in text) == (True, generation > 0)
        assert ("went on" in whole.verdict) == tolerated


def test_shards_of_an_older_plan_are_left_out() -> None:
    page = shown(plan("p", 1), stage("p", 1, shard=Shard(0, 4)), stage("p", 1, shard=Shard(0, 2)), stage("p", 1, shard=Shard(1, 2)))
    assert len(page.stages[0].shards) <= 4


def test_what_one_stage_wrote_is_compared_with_what_the_next_read() -> None:
    out = Manifest("out", "o", "enrich/f/1", (PartitionRange(0, 0, 9, 9),))
    for read, whole in ((9, True), (8, False)):
        page = shown(
            plan("p", 1),
            stage("p", 1, "publish", counts=Counts(consumed=read, forwarded=read, written=read), input=out),
            stage("p", 1, "enrich", counts=Counts(consumed=9, forwarded=9, produced=9), manifest=out),
        )
        assert [s.name for s in page.stages] == ["enrich", "publish"]
        handed = page.stages[0].handed
        assert handed is not None
        assert (handed.written, handed.read, handed.whole) == (9, read, whole)


def test_an_unfinished_shard_shows_how_far_it_is() -> None:
    record = StageRecord(
        "p", "enrich", hour(1).key, Shard(), "f", 1, updated_at=1, progress=Progress(counts=Counts(consumed=3, forwarded=3))
    )
    assert [(s.state, s.consumed) for s in shown(plan("p", 1), record).stages[0].shards] == [("running", 3)]


def test_stages_that_read_each_others_topics_are_all_shown() -> None:
    a, b = Manifest("a", "1", "x/f/1"), Manifest("b", "2", "y/f/1")
    page = shown(plan("p", 1), stage("p", 1, "x", input=b, manifest=a), stage("p", 1, "y", input=a, manifest=b))
    assert {s.name for s in page.stages} == {"x", "y"}


split = st.tuples(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6))


@given(st.lists(split, min_size=1, max_size=6))
def test_a_stages_parts_are_the_sums_of_its_shards_parts(shards: list[tuple[int, int, int]]) -> None:
    of = len(shards)
    records = [
        stage("p", 1, shard=Shard(i, of), counts=Counts(consumed=a + b + c, forwarded=a, filtered=b, rejected=c))
        for i, (a, b, c) in enumerate(shards)
    ]
    box = shown(plan("p", 1), *records).stages[0]
    assert box.consumed == sum(s.consumed for s in box.shards)
    for name in ("forwarded", "filtered", "rejected"):
        assert sum(p.count for p in box.parts if p.name == name) == sum(p.count for s in box.shards for p in s.parts if p.name == name)
    assert sum(p.count for p in box.parts) == box.consumed
