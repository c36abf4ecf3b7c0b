"""Where a pipeline's events go: topics, stages and tables in turn, with what its newest window made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from airflow_provider_factory.page.snapshot import Details, Snapshot
from airflow_provider_factory.page.views.run import in_order, newest_plan, output_of
from factory_agents.kafka.records import StageRecord
from factory_agents.kafka.windows import WindowStatus
from factory_agents.text import count

__all__ = ["Flow", "Step", "flow"]

_MOST_LINES = 8
_NEVER = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Step:
    """A topic or a table; or a stage: ``agent`` with its version, and ``figures``, what it read and how fast."""

    name: str
    agent: str = ""
    figures: str = ""


@dataclass(frozen=True)
class Flow:
    """Lines of steps, each from a topic (or a source's stage) on, as they were in the window ``when``; what branches off begins a line."""

    when: str = ""
    lines: tuple[tuple[Step, ...], ...] = ()


def flow(snapshot: Snapshot, windows: Sequence[WindowStatus]) -> Flow:
    """The way through a pipeline in its newest window that has results, a whole one if there is one."""
    known = snapshot.figures.details
    done = [w for w in windows if any(r.result is not None for r in known.get((w.pipeline, w.window), Details()).stages)]
    shown = max(done, key=lambda w: (w.state == "finished", w.updated or _NEVER), default=None)
    if shown is None:
        return Flow()
    of: dict[str, list[StageRecord]] = {}
    for record in known[shown.pipeline, shown.window].stages:
        if record.result is not None:
            of.setdefault(record.stage, []).append(record)
    lines: list[list[Step]] = []
    for status in in_order(shown, of):
        apart: dict[tuple[str, str], list[StageRecord]] = {}  # a mapped stage may read and write several topics
        for record in newest_plan(of.get(status.stage, [])):
            apart.setdefault((_source(record), _target(record)), []).append(record)
        for (source, target), records in apart.items():
            _add(lines, source, target, records)
    return Flow(shown.when, tuple(tuple(line) for line in lines[:_MOST_LINES]))


def _source(record: StageRecord) -> str:
    read = record.result.input if record.result is not None else None
    return read.topic if read is not None else ""


def _target(record: StageRecord) -> str:
    if record.result is not None and (table := record.result.dataset) is not None:
        return f"{table.name} ({table.system})"
    wrote = output_of(record)
    return wrote.topic if wrote is not None else ""


def _add(lines: list[list[Step]], source: str, target: str, records: Sequence[StageRecord]) -> None:
    results = [r.result for r in records if r.result is not None]
    line = next((line for line in lines if line[-1].name == source and not line[-1].agent), None)
    if line is None or not source:
        line = [Step(source)] if source else []
        lines.append(line)
    read, seconds = sum(r.counts.consumed for r in results), max(r.seconds for r in results)
    rate = f", {read / seconds:,.0f} a second" if read and seconds > 0 else ""
    line.append(Step(records[0].stage, f"{results[0].agent} {results[0].version}".strip(), f"{count(read, 'event')}{rate}"))
    if target:
        line.append(Step(target))
