"""Versions of a live agent: partitions go from one to another exactly, whoever dies meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from factory_agents.kafka.control import Control
from factory_agents.kafka.routes import Limits, rolled_back, shifted, started
from factory_agents.protocol import Counts
from factory_agents.runtime.agents import agent
from factory_agents.runtime.session import RunContext
from factory_agents.runtime.versions import run_version
from tests.support.runs import Runs, events
from tests.support.waiting import wait_for


class Version:
    """A member of one version, in a thread of its own."""

    def __init__(self, runs: Runs, source: str, out: str, version: str, function: Callable[..., Any], **more: Any) -> None:
        self.stop = threading.Event()
        self.counts: Counts | None = None
        self.error: BaseException | None = None
        self._work = lambda: run_version(
            RunContext(runs.config, stop=self.stop.is_set),
            agent(version="1")(function).bind({}),
            version,
            in_topic=source,
            out_topic=out,
            group=f"{runs.prefix}.group",
            prefix=runs.prefix,
            **more,
        )
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.counts = self._work()
        except BaseException as error:
            self.error = error

    def end(self) -> Counts:
        self.stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive()
        if self.error is not None:
            raise self.error
        assert self.counts is not None
        return self.counts


@contextmanager
def version(runs: Runs, source: str, out: str, name: str, function: Callable[..., Any] | None = None, **more: Any) -> Iterator[Version]:
    def handle(event: dict[str, Any]) -> dict[str, Any]:
        return event | {"by": name}

    running = Version(runs, source, out, name, function or handle, **more)
    try:
        yield running
    finally:
        running.stop.set()
        running._thread.join(60)


@contextmanager
def control_of(runs: Runs) -> Iterator[Control]:
    control = Control(runs.config, runs.cluster, prefix=runs.prefix, group=f"{runs.prefix}.group")
    try:
        yield control
    finally:
        control.close()


def by_version(runs: Runs, out: str) -> dict[str, int]:
    counts: dict[str, int] = {}
    for record in runs.everything(out):
        counts[record.event["by"]] = counts.get(record.event["by"], 0) + 1
    return counts


def test_partitions_go_to_a_new_version_and_back_and_each_event_is_handled_once(runs: Runs) -> None:
    source, out = runs.topic("in"), runs.topic("out")
    runs.produce(source, events(100))

    with version(runs, source, out, "v1") as one, version(runs, source, out, "v2") as two, control_of(runs) as control:
        wait_for(lambda: len(runs.everything(out)) == 100, "the first events")
        first = by_version(runs, out)
        assert len(first) == 1  # whichever came first
        new = "v2" if "v1" in first else "v1"
        control.order(lambda r: started(r, new, (0.5,), hold=0, limits=Limits()) if r else r)
        wait_for(lambda: (runs.produce(source, events(4, 1000)) or True) and by_version(runs, out).get(new, 0) > 0, "the new version's")
        control.order(lambda r: shifted(r, 1.0) if r else r)
        control.order(lambda r: rolled_back(r, "as a test") if r else r)
        runs.produce(source, events(100, 100))
        wait_for(lambda: {r.id for r in runs.everything(out)} >= set(range(200)), "all events")
        one.end()
        two.end()
    assert sorted(r.id for r in runs.everything(out) if r.id < 1000) == list(range(200))
