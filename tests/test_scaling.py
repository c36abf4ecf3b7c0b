"""``scripts/scaling.py``: what it computes carries the load, and rests on what was measured."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import scaling
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[1]
LOADS = st.builds(
    scaling.Load,
    events=st.floats(1, 5e6),
    event_bytes=st.integers(20, 100_000),
    peak=st.floats(1, 20),
    stages=st.integers(1, 8),
    window_hours=st.floats(0.05, 24),
    retention_days=st.floats(0.5, 60),
    replication=st.integers(1, 4),
    regions=st.integers(1, 2),
)


def test_the_page_has_the_tables_of_now() -> None:
    page = (ROOT / "docs/scaling.md").read_text()
    assert scaling.tables() in page, "run: python scripts/scaling.py --write"


def test_what_is_called_measured_stands_where_it_was_measured() -> None:
    benchmarks, pods = (ROOT / "docs/benchmarks.md").read_text(), (ROOT / "docs/kubernetes.md").read_text()
    measured = scaling.MEASURED
    assert f"| **factory** | {measured.agent:,} |" in benchmarks
    assert f"to {measured.agent_cpu * 1e6:.1f} µs of CPU per record" in benchmarks
    assert f"| 0 % bad | {math.floor(1 / measured.validate_cpu / 1000)},000 |" in benchmarks
    assert f"| **factory**, keys new to the table | 694,000 | | {measured.publish:,} |" in benchmarks
    assert f"2.3 to {measured.pod_seconds} s" in pods
    assert f"{measured.shard_events:,}" in pods


@given(LOADS)
def test_the_plan_carries_the_peak_with_the_headroom(load: scaling.Load) -> None:
    plan, assumed = scaling.plan(load), scaling.ASSUMED
    peak = load.events * load.peak * assumed.headroom
    assert plan.live_agents * scaling.MEASURED.agent * 180 / max(load.event_bytes, 180) >= peak * 0.999
    assert plan.partitions * assumed.partition_mb * 1e6 >= peak * load.event_bytes * assumed.compression * 0.999
    assert plan.live_agents <= plan.partitions
    assert 1 <= plan.shards <= plan.partitions
    assert plan.partitions % 12 == 0
    brokers = plan.brokers / load.regions
    assert brokers >= load.replication
    assert brokers * assumed.broker_mb >= plan.broker_mb * 0.999
    assert brokers * assumed.broker_disk_gb >= plan.disk_tb * 1000 / load.regions * 0.999


@given(LOADS, st.floats(1.01, 10))
def test_more_events_never_need_less(load: scaling.Load, times: float) -> None:
    one, more = scaling.plan(load), scaling.plan(replace(load, events=load.events * times))
    for name in ("partitions", "live_agents", "brokers", "disk_tb", "cores", "cost"):
        assert getattr(more, name) >= getattr(one, name), name


@given(LOADS.filter(lambda load: load.regions == 1))
def test_a_second_region_costs_more_and_makes_no_writer_of_itself(load: scaling.Load) -> None:
    one, two = scaling.plan(load), scaling.plan(replace(load, regions=2))
    assert two.cost > one.cost
    assert two.brokers == 2 * one.brokers
    assert (two.partitions, two.shards, two.live_agents) == (one.partitions, one.shards, one.live_agents)


def test_a_steady_load_is_caught_up_with_as_arithmetic_says() -> None:
    load = scaling.Load(100_000, peak=1)
    after, most = scaling.caught_up(load, 2)
    speed = scaling.plan(load).live_agents * scaling.MEASURED.agent
    assert most == pytest.approx(2 * 3600 * 100_000, rel=0.01)
    assert after == pytest.approx(most / (speed - 100_000) / 3600, abs=2 / 60)


def test_what_is_too_slow_is_never_caught_up_with() -> None:
    slow = replace(scaling.ASSUMED, headroom=0.3)
    assert scaling.caught_up(scaling.Load(1_000_000, peak=1), 1, assumed=slow)[0] == math.inf


@given(st.floats(0, 24))
def test_a_day_has_the_load_as_its_mean_and_its_peak_at_noon(hour: float) -> None:
    load = scaling.Load(1_000)
    assert 0 <= scaling.arriving(load, hour) <= scaling.arriving(load, 12)
    assert sum(scaling.arriving(load, h / 10) for h in range(240)) / 240 == pytest.approx(1_000)


@pytest.mark.parametrize("argument", ["-1", "0", "inf", "nan", "many"])
def test_a_load_that_cannot_be_is_one_line(argument: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        scaling.main(["--events", argument])
    assert "--events" in capsys.readouterr().err.splitlines()[-1]


def test_without_a_load_it_asks_for_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert scaling.main([]) == 2
    assert "--events" in capsys.readouterr().err
