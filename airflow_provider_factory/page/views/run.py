"""One window: what each stage and shard made of its records, why some were rejected, and where to look."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from airflow_provider_factory.page.runs import Run, Task
from airflow_provider_factory.page.snapshot import Details, Snapshot
from airflow_provider_factory.page.views.common import STATES, Part, link, paid, parts_of
from factory_agents.kafka.records import FailureRecord, PlanRecord, StageRecord, VerdictRecord
from factory_agents.kafka.view import LedgerView
from factory_agents.kafka.windows import WindowStatus
from factory_agents.protocol import Counts, Manifest
from factory_agents.reports import WindowReport, reports_of
from factory_agents.text import count

__all__ = [
    "Handed",
    "Pod",
    "Report",
    "ShardRow",
    "StageBox",
    "Window",
    "in_order",
    "interval_start",
    "newest_plan",
    "output_of",
    "report_of",
    "window",
]

_MOST_SHARDS, _MOST_RANGES, _MOST_RULES = 128, 64, 20


@dataclass(frozen=True)
class Pod:
    """The pod of a task's last try, and where your console shows it, if anywhere."""

    namespace: str
    name: str
    href: str


@dataclass(frozen=True)
class ShardRow:
    """One shard of a stage; ``task`` is its page in Airflow, below the base address."""

    name: str
    state: str
    consumed: int
    parts: tuple[Part, ...]
    error: str
    task: str
    seconds: float
    ranges: str
    pod: Pod | None


@dataclass(frozen=True)
class Handed:
    """What a stage wrote, and what the next one read of it; ``whole`` where both are done and it is the same number."""

    written: int
    read: int
    whole: bool


@dataclass(frozen=True)
class Report:
    """A validation report in short; ``path`` is the whole one's. ``tolerated``: its task's verdict was ``fail``, and it went on."""

    outcome: str
    tolerated: bool
    contract: str
    checks: tuple[tuple[str, str, str], ...]
    rules: tuple[tuple[str, int], ...]
    path: str


@dataclass(frozen=True)
class StageBox:
    """One stage over the window, its shards taken together and one by one."""

    name: str
    state: str
    summary: str
    agent: str
    topic: str
    topic_href: str
    consumed: int
    parts: tuple[Part, ...]
    paid: str
    produced: int
    handed: Handed | None
    shards: tuple[ShardRow, ...]
    more_shards: int
    letters: str
    report: Report | None
    task: str


@dataclass(frozen=True)
class Window:
    """All that is known of a window."""

    pipeline: str
    key: str
    path: str
    when: str
    state: str
    topic: str
    topic_href: str
    records: str
    ranges: tuple[str, ...]
    more_ranges: int
    run: str
    run_id: str
    run_state: str
    stages: tuple[StageBox, ...]


def interval_start(key: str) -> datetime | None:
    """When a window's interval begins; None for one that has none."""
    try:
        return datetime.fromisoformat(key.partition("/")[0]).astimezone(UTC) if "/" in key else None
    except (ValueError, OverflowError):
        return None


def window(
    snapshot: Snapshot,
    name: str,
    key: str,
    run: Run | None,
    tasks: Sequence[Task],
    topic_href: Mapping[str, str],
    pods: Mapping[tuple[str, int], Pod],
) -> Window | None:
    """A window of a pipeline; None for one that the ledger doesn't know.

    ``topic_href``: where each topic is shown, if anywhere; ``pods``: those of the run's tasks, by task id and map index.
    """
    status = next((w for w in snapshot.figures.windows if (w.pipeline, w.window) == (name, key)), None)
    if status is None:
        return None
    details = snapshot.figures.details.get((name, key), Details())
    ranges = [text for plan in details.plans for text in _plan_ranges(plan)]
    base = f"dags/{quote(name, safe='')}/runs/{quote(run.run_id, safe='')}" if run is not None else ""
    return Window(
        pipeline=name,
        key=key,
        path=link("window", key=key),
        when=status.when,
        state=STATES.get(status.state, status.state),
        topic=status.topic,
        topic_href=topic_href.get(status.topic, ""),
        records=("" if status.exact else "≤ ") + count(status.records, "record"),
        ranges=tuple(ranges[:_MOST_RANGES]),
        more_ranges=max(0, len(ranges) - _MOST_RANGES),
        run=base,
        run_id=run.run_id if run is not None else "",
        run_state=run.state if run is not None else "",
        stages=_stages(status, details, _Tasks(base, tasks, pods), topic_href),
    )


def report_of(snapshot: Snapshot, name: str, stage: str) -> list[WindowReport]:
    """The validation reports of a stage over all windows, the newest last."""
    mine = [of for (owner, _), of in snapshot.figures.details.items() if owner == name]
    view = LedgerView(records=(r for of in mine for r in of.stages))
    view.add(*(v for of in mine for v in of.verdicts))
    return reports_of(view, stage)


def _plan_ranges(plan: PlanRecord) -> Iterable[str]:
    return (f"{plan.topic}-{r.partition}: {r.start:,} to {r.end:,}" for r in plan.ranges if r.end > r.start)


def _stages(status: WindowStatus, details: Details, tasks: _Tasks, topic_href: Mapping[str, str]) -> tuple[StageBox, ...]:
    of: dict[str, list[StageRecord]] = {}
    for record in details.stages:
        of.setdefault(record.stage, []).append(record)
    boxes = []
    names = [s.stage for s in in_order(status, of)]
    for stage in in_order(status, of):
        records = newest_plan(of.get(stage.stage, []))
        failures = [f for f in details.failures if f.stage == stage.stage]
        shards = _shards(records, failures, stage.stage, tasks)
        output = next((m for r in records if (m := output_of(r)) is not None), None)
        boxes.append(
            StageBox(
                name=stage.stage,
                state=stage.state,
                summary=stage.summary,
                agent=next((f"{r.result.agent} {r.result.version}".strip() for r in records if r.result is not None), ""),
                topic=output.topic if output else "",
                topic_href=topic_href.get(output.topic, "") if output else "",
                consumed=stage.counts.consumed,
                parts=parts_of(stage.counts),
                paid=paid(stage.counts),
                produced=stage.counts.produced,
                handed=_handed(records, [r for after in names for r in newest_plan(of.get(after, []))], stage.state),
                shards=shards[:_MOST_SHARDS],
                more_shards=max(0, len(shards) - _MOST_SHARDS),
                letters=_letters(status, stage.stage, records),
                report=_report(status, stage.stage, records, details.verdicts),
                task=tasks.path(stage.stage, -1),
            )
        )
    return tuple(boxes)


def in_order(status: WindowStatus, of: Mapping[str, Sequence[StageRecord]]) -> list[Any]:
    """The window's stages, each behind the one whose topic it reads."""
    read = {name: {m.topic for r in records if (m := r.result.input if r.result else None)} for name, records in of.items()}
    wrote = {name: {m.topic for r in records if (m := output_of(r))} for name, records in of.items()}
    left, done = list(status.stages), []
    while left:
        ready = next(
            (s for s in left if not any(wrote.get(o.stage, set()) & read.get(s.stage, set()) for o in left if o is not s)), left[0]
        )
        left.remove(ready)
        done.append(ready)
    return done


def output_of(record: StageRecord) -> Manifest | None:
    """What a shard of a stage wrote to a topic."""
    return record.result.manifest if record.result is not None else None


def newest_plan(records: Sequence[StageRecord]) -> list[StageRecord]:
    """The records of each scope's newest division into shards."""
    newest: dict[str, tuple[int, int]] = {}
    for r in records:
        newest[r.scope] = max(newest.get(r.scope, (0, 0)), (r.updated_at, r.shard.of))
    return sorted((r for r in records if r.shard.of == newest[r.scope][1]), key=lambda r: (r.scope, r.shard.index))


def _counts(record: StageRecord) -> Counts:
    if record.result is not None:
        return record.result.counts
    return record.progress.counts if record.progress is not None else Counts()


def _shards(records: Sequence[StageRecord], failures: Sequence[FailureRecord], stage: str, tasks: _Tasks) -> tuple[ShardRow, ...]:
    rows = []
    failed = {(f.scope, f.shard.key): f for f in failures}
    for r in records:
        failure = failed.pop((r.scope, r.shard.key), None)
        if failure is not None and r.updated_at >= (failure.began if r.result is not None else failure.at):
            failure = None
        rows.append(_shard(r, failure, tasks))
    newest = max((r.shard.of for r in records), default=0)
    early = [f for f in failed.values() if not records or f.shard.of == newest]  # they failed before they committed anything
    for f in early:
        index = tasks.index(f)
        rows.append(
            ShardRow(_shard_name(f), "failed", 0, (), _reason(f), tasks.path(stage, index), 0.0, "", tasks.pods.get((stage, index)))
        )
    return tuple(rows)


def _shard(r: StageRecord, failure: FailureRecord | None, tasks: _Tasks) -> ShardRow:
    counts, index = _counts(r), tasks.index(r)
    read = r.result.input if r.result is not None else None
    ranges = ", ".join(f"{p.partition}: {p.start:,} to {p.end:,}" for p in (read.ranges if read else ())[:_MOST_RANGES])
    return ShardRow(
        name=_shard_name(r),
        state="failed" if failure is not None else "done" if r.result is not None else "running",
        consumed=counts.consumed,
        parts=parts_of(counts),
        error=_reason(failure) if failure is not None else "",
        task=tasks.path(r.stage, index),
        seconds=r.result.seconds if r.result is not None else 0.0,
        ranges=f"{read.topic} {ranges}" if read and ranges else "",
        pod=tasks.pods.get((r.stage, index)),
    )


def _shard_name(record: StageRecord | FailureRecord) -> str:
    shard = f"{record.shard.index + 1} of {record.shard.of}"
    return f"{record.scope}, {shard}" if "[" in record.scope else shard


def _reason(failure: FailureRecord) -> str:
    return f"{failure.error}: {failure.message}"


@dataclass(frozen=True)
class _Tasks:
    """The task instances of a run, with their pods; ``base`` is the run's page in Airflow."""

    base: str
    all: Sequence[Task]
    pods: Mapping[tuple[str, int], Pod]

    def index(self, record: StageRecord | FailureRecord) -> int:
        """The map index of a shard's task: the shard's own, where the task is mapped over its shards; -1 where it isn't mapped."""
        mapped = [t for t in self.all if t.task_id == record.stage and t.map_index >= 0]
        return record.shard.index if len(mapped) == record.shard.of else -1

    def path(self, stage: str, index: int) -> str:
        """A task's page in Airflow, below the base address; empty where the run has no such task."""
        if not self.base or not any(t.task_id == stage for t in self.all):
            return ""
        mapped = f"/mapped/{index}" if any(t.task_id == stage and t.map_index == index >= 0 for t in self.all) else ""
        return f"{self.base}/tasks/{quote(stage, safe='')}{mapped}"


def _handed(records: Sequence[StageRecord], others: Sequence[StageRecord], state: str) -> Handed | None:
    """What the stages that read this one's output got of it."""
    writers = {m.writer for r in records if (m := output_of(r)) is not None}
    readers = [r for r in others if r.result is not None and r.result.input is not None and set(r.result.input.writers) & writers]
    if not readers or state != "done":
        return None
    stage = readers[0].stage
    read = sum(r.result.counts.consumed for r in readers if r.stage == stage and r.result is not None)
    written = sum(m.count for r in records if (m := output_of(r)) is not None)
    complete = len([r for r in readers if r.stage == stage]) >= readers[0].shard.of
    return Handed(written, read, written == read) if complete else None


def _letters(status: WindowStatus, stage: str, records: Sequence[StageRecord]) -> str:
    topic = next((m.topic for r in records if (m := r.result.dead_letters if r.result else None) is not None and m.count), "")
    return link("letters", topic=topic, window=status.window, stage=stage) if topic else ""


def _report(status: WindowStatus, stage: str, records: Sequence[StageRecord], verdicts: Sequence[VerdictRecord]) -> Report | None:
    found = reports_of(LedgerView(records=(*records, *verdicts)), stage)
    if not found:
        return None
    shown = found[-1]
    about = shown.report["contract"]
    rules = sorted(((str(rule), int(n)) for rule, n in shown.report["rules"].items() if n), key=lambda x: -x[1])
    return Report(
        outcome=shown.outcome,
        tolerated=shown.tolerated,
        contract=f"{about['name']}, version {about['version']}",
        checks=tuple((f"{c['level']}s if {c['rule']}", str(c["outcome"]), _observed(c)) for c in shown.report["checks"]),
        rules=tuple(rules[:_MOST_RULES]),
        path=link("report", key=status.window, stage=stage),
    )


def _observed(check: Mapping[str, Any]) -> str:
    observed = check["observed"]
    if observed is None:
        return str(check.get("note", "not known"))
    return f"{100 * observed:.4g} %" if check["rule"].rstrip().endswith("%") else f"{observed:,}"
