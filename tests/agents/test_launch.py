"""From settings to a run: what a person may start after what."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from factory_agents import launch
from factory_agents.errors import ConfigurationError, WindowError
from factory_agents.launch import run_agent_live, run_agent_over_window
from factory_agents.options import AgentSettings
from factory_agents.runtime.session import RunContext
from tests.support.runs import Runs, events

MARK = "tests.support.agents:mark"


def settings(runs: Runs, source: str, output: str, **more: object) -> AgentSettings:
    return AgentSettings(in_topic=source, out_topic=output, prefix=runs.prefix, **more)  # type: ignore[arg-type]


def test_a_live_agent_that_begins_does_not_write_once_more_what_windows_have_written(runs: Runs) -> None:
    source, output = runs.topic("in"), runs.topic("out")
    runs.topic("out.dead")
    runs.produce(source, events(20))
    now = datetime.now(UTC)
    run_agent_over_window(RunContext(runs.config), MARK, settings(runs, source, output, since=now - timedelta(hours=1), until=now))
    with pytest.raises(ConfigurationError, match=r"holds what windows of pipeline 'cli\.mark\..*--out-topic.*--reset-offsets --group"):
        run_agent_live(RunContext(runs.config), MARK, settings(runs, source, output))

    apart = runs.topic("live")
    runs.topic("live.dead")
    counts = run_agent_live(RunContext(runs.config, stop=until_seen(runs, apart, 20)), MARK, settings(runs, source, apart)).counts
    assert counts.consumed == 20
    run_agent_live(RunContext(runs.config, stop=lambda: True), MARK, settings(runs, source, output))  # its group has a position now

    group = f"factory.mark.{source}"
    runs.admin.delete_consumer_groups([group])[group].result()  # as Kafka does with one that has had no members for a week
    with pytest.raises(ConfigurationError, match=rf"group '{group}' has written topic '{apart}', and Kafka has forgotten its position"):
        run_agent_live(RunContext(runs.config), MARK, settings(runs, source, apart))


def test_a_live_agent_that_begins_while_another_member_first_commits_begins(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records and position come at once, between one question to Kafka and the next."""
    source, output = runs.topic("in"), runs.topic("out")
    runs.topic("out.dead")
    runs.produce(source, events(20))
    wrote_last = launch._wrote_last

    def meanwhile(*about: Any) -> bool:
        monkeypatch.setattr(launch, "_wrote_last", wrote_last)
        run_agent_live(RunContext(runs.config, stop=until_seen(runs, output, 20)), MARK, settings(runs, source, output))
        assert wrote_last(*about)
        return True

    monkeypatch.setattr(launch, "_wrote_last", meanwhile)
    run_agent_live(RunContext(runs.config, stop=lambda: True), MARK, settings(runs, source, output))


def until_seen(runs: Runs, topic: str, count: int) -> Callable[[], bool]:
    partitions = range(runs.cluster.topic(topic).partitions)
    return lambda: sum(runs.cluster.stable_offset(topic, partitions).values()) >= count and len(runs.everything(topic)) >= count


def test_a_dry_run_over_an_overlapping_interval_names_the_way_on(runs: Runs) -> None:
    source = runs.topic("in")
    runs.produce(source, events(5))
    now = datetime.now(UTC)
    output = runs.topic("out")
    first = settings(runs, source, output, since=now - timedelta(hours=1), until=now)
    run_agent_over_window(RunContext(runs.config), MARK, first)
    overlapping = {"since": now - timedelta(minutes=30), "until": now, "dry_run": True}
    with pytest.raises(WindowError, match=r"overlaps .*use another pipeline name \(--pipeline\)"):
        run_agent_over_window(RunContext(runs.config), MARK, settings(runs, source, output, **overlapping))
    other = run_agent_over_window(RunContext(runs.config), MARK, settings(runs, source, output, pipeline="try", **overlapping))
    assert other.counts.consumed == 5


def test_an_interval_without_records_says_what_times_the_topic_holds(runs: Runs) -> None:
    """Whoever asks by the times of events, where records bear those of their arrival, reads nothing."""
    source, output = runs.topic("in"), runs.topic("out")
    first, last = (datetime.now(UTC).replace(microsecond=0) - timedelta(hours=n) for n in (6, 4))  # younger than any retention
    for value, moment in zip(events(2), (first, last), strict=True):
        runs.produce(source, [value], partition=0, timestamp=int(moment.timestamp() * 1000))
    by_event = {"since": datetime(2018, 6, 5, 8, tzinfo=UTC), "until": datetime(2018, 6, 5, 9, tzinfo=UTC)}
    says = f"those that it holds are of {first.isoformat()} to {last.isoformat()}. --since and --until go by"
    for more in ({"dry_run": True}, {}, {}):
        done = run_agent_over_window(RunContext(runs.config), MARK, settings(runs, source, output, **by_event, **more))
        assert done.counts.consumed == 0
        assert says in " ".join(done.notes)
    held = {"since": first, "until": last + timedelta(hours=1)}
    done = run_agent_over_window(RunContext(runs.config), MARK, settings(runs, source, output, **held))
    assert (done.counts.consumed, done.notes) == (2, ())
