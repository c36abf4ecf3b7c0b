"""``run_sink_live``: a sink over what arrives, exactly once: one small window after the other, since the last one's end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator

from factory_agents.errors import FencedError, StoppedError
from factory_agents.kafka.cuts import plan_window
from factory_agents.kafka.ledger import Ledger, PlanRecord, StageRecord
from factory_agents.kafka.topics import Cluster
from factory_agents.protocol import AgentRun, Counts, Window
from factory_agents.runtime.agents import Sink
from factory_agents.runtime.session import RunContext
from factory_agents.runtime.sink import run_sink
from factory_agents.telemetry import fields

__all__ = ["run_sink_live"]

log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.2
_LEDGER_SECONDS = 120.0


def run_sink_live(
    context: RunContext,
    make_run: Callable[[Window], AgentRun],
    make: Callable[[], Sink],
    *,
    pipeline: str,
    in_topic: str,
    prefix: str = "factory",
    every: float = 5.0,
) -> Counts:
    """Publish what arrives, from the topic's beginning at the first start, until ``context.stop`` says so; returns the counts.

    A database has no place in a consumer group's transaction. So positions are cuts in the ledger, a window since the last one at most
    each ``every`` seconds, and the sink's own ledger row makes it once. A window that an earlier start left unfinished is finished first.
    Several of one pipeline may run side by side. Raises a FactoryError where it cannot go on; starting it again loses and doubles nothing.
    """
    live = _Live(context, make_run, make, pipeline, in_topic, prefix)
    log.info("live", extra=fields(pipeline=pipeline, topic=in_topic))
    for key in live.unfinished():
        live.publish(key)
    looked = -every
    while not context.stop():
        if time.monotonic() - looked >= every and live.has_new():
            looked = time.monotonic()
            live.publish(f"live-{time.time_ns()}")
        time.sleep(_LOOK_SECONDS)
    return live.counts


class _Live:
    def __init__(
        self,
        context: RunContext,
        make_run: Callable[[Window], AgentRun],
        make: Callable[[], Sink],
        pipeline: str,
        in_topic: str,
        prefix: str,
    ) -> None:
        self.context, self.make_run, self.make = context, make_run, make
        self.pipeline, self.in_topic, self.prefix = pipeline, in_topic, prefix
        self.cluster = Cluster(context.config)
        self.partitions = self.cluster.topic(in_topic).partitions
        self.seen: dict[int, int] = {}
        self.counts = Counts()

    def unfinished(self) -> Iterator[str]:
        """Keys of the windows that are planned and not published, oldest first."""
        ledger = Ledger(self.context.config, self.cluster, prefix=self.prefix, pipeline=self.pipeline)
        ledger.ensure()
        view = ledger.read(deadline=time.monotonic() + _LEDGER_SECONDS)
        finished = {record.window for record in view.of(StageRecord) if record.result is not None}
        yield from (plan.window for plan in view.of(PlanRecord) if plan.window not in finished and plan.ranges)

    def has_new(self) -> bool:
        """Whether anything was committed to the topic since it was last looked at."""
        ends = self.cluster.stable_offset(self.in_topic, range(self.partitions))
        changed = ends != self.seen
        self.seen = ends
        return changed

    def publish(self, key: str) -> None:
        """Plan the window of this key (or take its plan) and publish it, unless another member does."""
        try:
            window = plan_window(
                self.context.config, pipeline=self.pipeline, topic=self.in_topic, interval=None, run_key=key, prefix=self.prefix
            )
            if not window.ranges:
                return
            result = run_sink(self.context, self.make_run(window), self.make)
        except FencedError as error:
            log.warning("another member took this window over", extra=fields(window=key, reason=str(error)))
            return
        except StoppedError:
            return  # nothing of it is published; the next start finishes it
        self.counts.add(result.counts)
        self.context.observer(self.pipeline, self.counts.consumed, -1, self.counts)
