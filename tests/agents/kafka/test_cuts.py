"""The planner at work: what it holds while it plans goes with it."""

from __future__ import annotations

import gc

import pytest

from factory_agents.errors import ConfigurationError, WindowError
from factory_agents.kafka.cuts import plan_window, preview_window
from tests.support.log import hour
from tests.support.process_resources import tasks_and_sockets
from tests.support.runs import Runs, events
from tests.support.waiting import wait_for


def test_twenty_plans_leave_no_thread_and_no_socket_behind(runs: Runs) -> None:
    topic = runs.topic(partitions=1)
    runs.produce(topic, events(3))

    def plan(ago: float, topic: str = topic) -> None:
        plan_window(runs.config, pipeline=runs.prefix, topic=topic, interval=hour(ago), prefix=runs.prefix)

    plan(30)
    gc.collect()
    gc.disable()
    try:
        before = tasks_and_sockets()
        for ago in range(10, 30):
            plan(ago)
        preview_window(runs.config, pipeline=runs.prefix, topic=topic, interval=hour(5), prefix=runs.prefix)
        with pytest.raises(WindowError, match="overlaps") as overlap:
            plan(10.5)
        with pytest.raises(ConfigurationError, match="unknown topic") as unknown:
            plan(5, "nowhere")
        wait_for(lambda: tasks_and_sockets() <= before, "the planners' threads to end, their errors kept or not")
        del overlap, unknown
    finally:
        gc.enable()
