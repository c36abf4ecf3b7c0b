"""Validation reports of earlier windows in the ledger."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from factory_agents.kafka.ledger import StageRecord, StoredResult
from factory_agents.protocol import AgentRef, AgentResult, AgentRun, Interval, Shard, Window
from factory_agents.run import execute
from factory_agents.runtime.history import earlier_reports, merged_reports
from factory_agents.runtime.session import RunContext
from tests.agents.contracts.test_drift import CONTRACT, report
from tests.support.runs import Runs, events

START = datetime(2026, 11, 1, tzinfo=UTC)


class View:
    """What was read of a ledger."""

    def __init__(self, *records: StageRecord) -> None:
        self._records = records

    def of(self, kind: type[StageRecord]) -> list[StageRecord]:
        return list(self._records)


def interval(hour: int) -> Interval:
    return Interval(START + timedelta(hours=hour), START + timedelta(hours=hour + 1))


def record(window: str, rows: int, at: int = 1, scope: str = "", stage: str = "v", shard: Shard = Shard(), **facts: Any) -> StageRecord:  # noqa: B008
    return StageRecord("p", stage, window, shard, "f", 1, updated_at=at, scope=scope, result=StoredResult(report=report(rows) | facts))


def rows(view: Any, run: AgentRun) -> list[int]:
    return [found["rows"] for found in earlier_reports(view, run)]


def test_windows_without_an_interval_are_in_the_order_of_their_work() -> None:
    run = AgentRun("p", "v", AgentRef("validate"), window=Window("p", "t", "id", (), name="w"))
    timed = record("z", 9, window_start="2026-11-01T00:00:00.000000Z")
    view = View(record("b", 2, at=20), record("a", 1, at=10), record(run.key, 3, at=30), record("c", 4, stage="w"), timed)
    assert rows(view, run) == [1, 2]


def test_windows_with_an_interval_are_those_before_it_in_its_order() -> None:
    run = AgentRun("p", "v", AgentRef("validate"), interval=interval(5))
    starts = {hour: (START + timedelta(hours=hour)).isoformat(timespec="microseconds").replace("+00:00", "Z") for hour in range(9)}
    hours = [record(str(h), h, at=9 - h, window_start=starts[h]) for h in (6, 3, 5, 4, 1)]
    assert rows(View(*hours, record("other", 7), record("1", 8, scope="m[0]", window_start=starts[1])), run) == [1, 3, 4]


def test_a_window_whose_shards_are_of_two_contracts_has_no_report() -> None:
    view: Any = View(
        record("a", 1, shard=Shard(0, 2)),
        record("a", 1, shard=Shard(1, 2), contract={"name": "e", "version": "2", "digest": "x"}),
        record("b", 2),
    )
    assert [found["rows"] for *_, found in merged_reports(view)] == [2]


def test_a_pipelines_windows_are_compared_with_those_before_in_the_ledger(runs: Runs) -> None:
    """In the order of their intervals: one that is done again later is compared with what came before it, not after."""

    def window(hour: int, count: int, again: bool = False) -> AgentResult:
        topic = runs.topic(f"in{hour}", partitions=2) if not again else names[hour]
        names[hour] = topic
        if not again:
            runs.produce(topic, events(count))
        span = interval(hour)
        planned = msgspec.structs.replace(runs.window(topic, name=f"{span.start.isoformat()}/{span.end.isoformat()}"), interval=span)
        contract = CONTRACT | {"version": 2 if again else 1}
        return execute(RunContext(runs.config), runs.run(planned, out, "validate", stage="validate", params={"contract": contract}))

    names: dict[int, str] = {}
    out = runs.topic("out", partitions=1)
    results = [window(hour, count) for hour, count in enumerate((4, 4, 6, 5, 20))]
    checks = [(result.report or {})["checks"][0] for result in results]
    assert [c["observed"] for c in checks] == [None, None, None, 0.25, pytest.approx(15.5 / 4.5)]
    assert [c["outcome"] for c in checks] == ["pass", "pass", "pass", "pass", "fail"]
    assert (window(3, 5, again=True).report or {})["checks"][0]["observed"] == 0.25
