"""The sensors' questions, answered from data."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from airflow_provider_factory.conditions import LagQuestion, WindowClosedQuestion, ask_window_closed, judge_lag
from factory_agents.kafka.lag import PartitionLag

LAGS = [PartitionLag("a", 0, 90, 100, 10), PartitionLag("a", 1, None, 30, 30), PartitionLag("b", 0, 5, 5, 0)]
END = datetime(2026, 3, 1, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    ("condition", "measure", "threshold", "met"),
    [
        ("below", "total", 40, True),
        ("below", "total", 39, False),
        ("above", "total", 39, True),
        ("above", "total", 40, False),
        ("below", "worst", 30, True),
        ("above", "worst", 29, True),
        ("above", "worst", 30, False),
    ],
)
def test_lag_is_compared_with_the_threshold(condition: str, measure: str, threshold: int, met: bool) -> None:
    question = LagQuestion(("a", "b"), threshold, group="g", condition=condition, measure=measure)  # type: ignore[arg-type]
    answer = judge_lag(question, LAGS)
    assert answer.met is met
    assert answer.facts["total"] == 40
    assert answer.facts["worst"] == 30


def test_the_reason_names_group_figure_worst_partition_and_threshold() -> None:
    answer = judge_lag(LagQuestion(("a",), 5, group="g"), LAGS)
    assert answer.reason == "group 'g': total lag 40, most on a[1] (30); wanted ≤ 5"


def test_no_partitions_have_no_lag() -> None:
    assert judge_lag(LagQuestion(("a",), 0, pipeline="p"), []).met


@pytest.mark.parametrize(("after", "met"), [(-60, False), (0, False), (119, False), (120, True), (7200, True)])
def test_the_clock_alone_closes_a_window_after_its_grace(after: int, met: bool) -> None:
    question = WindowClosedQuestion("raw", END, 120)
    assert ask_window_closed(None, question, END + timedelta(seconds=after)).met is met
