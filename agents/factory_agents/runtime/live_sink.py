"""``run_sink_live``: a sink over what arrives, exactly once: one small window after the other, since the last one's end."""

from __future__ import annotations

import logging
import time
import zlib
from collections.abc import Callable
from datetime import UTC, datetime

from factory_agents.errors import ConfigurationError, FencedError, StoppedError, UnavailableError
from factory_agents.kafka.cuts import plan_window
from factory_agents.kafka.ledger import Ledger, MarkRecord, PlanRecord, StageRecord
from factory_agents.kafka.plan_view import PlanView
from factory_agents.kafka.planning import window_of
from factory_agents.kafka.presence import Presence
from factory_agents.kafka.topics import Cluster
from factory_agents.protocol import AgentRun, Counts, Window
from factory_agents.runtime.agents import Sink
from factory_agents.runtime.session import RunContext
from factory_agents.runtime.sink import run_sink
from factory_agents.runtime.traced import traced
from factory_agents.telemetry import Subject, fields

__all__ = ["KEEP_WINDOWS", "run_sink_live"]

log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.2
_LEDGER_SECONDS = 120.0
_LONGEST_PAUSE = 30.0
_NOTHING: tuple[str, dict[int, int]] = ("", {})

KEEP_WINDOWS = "1 d"
"""For how long the ledger remembers windows that nobody asks for again: there is one every few seconds."""


def run_sink_live(
    context: RunContext,
    make_run: Callable[[Window], AgentRun],
    make: Callable[[], Sink],
    *,
    pipeline: str,
    in_topic: str,
    prefix: str = "factory",
    every: float = 5.0,
    accept_loss: bool = False,
    keep: str = KEEP_WINDOWS,
) -> Counts:
    """Publish what arrives, from the topic's beginning at the first start, until ``context.stop`` says so; returns the counts.

    A database has no place in a consumer group's transaction. So positions are cuts in the ledger, a window since the last one at most
    each ``every`` seconds, and the sink's own ledger row makes it once. Several of one pipeline may run side by side: what one of them
    planned and did not live to publish, another one publishes. Raises DataLossError where records that were not published are gone, unless
    ``accept_loss`` (which ``make_run`` has to pass on), and another FactoryError where it cannot go on; starting it again loses and doubles
    nothing. Once it has published, a database or a broker that is away is waited for. ``keep`` as in ``plan_window``.
    """
    live = _Live(context, make_run, make, pipeline, in_topic, prefix, accept_loss=accept_loss, keep=keep)
    log.info("live", extra=fields(pipeline=pipeline, topic=in_topic))
    try:
        live.run(every)
    finally:
        live.close()
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
        *,
        accept_loss: bool,
        keep: str,
    ) -> None:
        self.context, self.make_run, self.make = context, make_run, make
        self.pipeline, self.in_topic, self.prefix, self.accept_loss, self.keep = pipeline, in_topic, prefix, accept_loss, keep
        self.cluster = Cluster(context.config)
        self.cluster.topic(in_topic)
        self.subject = Subject(pipeline, "live")
        self.ledger = Ledger(context.config, self.cluster, prefix=prefix, pipeline=pipeline)
        self.ledger.ensure()
        sink = make()
        self.table = str(sink.identity.get("table", ""))
        sink.close()
        self.presence = Presence(context.config, self.cluster, group=f"{pipeline}.members", topic=in_topic, work=self.table)
        self.plans = PlanView(pipeline)
        self.read_to = 0
        self.unfinished: dict[str, Window] = {}
        self.seen: tuple[str, dict[int, int]] = _NOTHING
        self.inherited = self.published = float("-inf")
        self.looked = self.has_published = False
        self.counts = Counts()

    def close(self) -> None:
        """Leave the others to it."""
        try:
            self.presence.leave()
        finally:
            self.cluster.close()

    def run(self, every: float) -> None:
        """Until asked to stop: what nobody else will publish, and what is new; each looked for ``every`` seconds at most."""
        pause = _LOOK_SECONDS
        while not self.context.stop():
            try:
                self.turn(every)
                pause = _LOOK_SECONDS
            except UnavailableError as error:
                if not self.has_published:
                    raise  # an address that is wrong from the start is told at once
                log.warning("waiting", extra=fields(pipeline=self.pipeline, reason=str(error), seconds=round(pause, 1)))
                self.inherited, self.seen = float("-inf"), _NOTHING  # what was planned and could not be published comes first
                self.looked = False
                pause = min(2 * pause, _LONGEST_PAUSE)
            self.wait(pause)

    def turn(self, every: float) -> None:
        """Publish what nobody else will, and what is new, where it is time to look."""
        now = time.monotonic()
        if now - self.inherited >= every and (peers := self.presence.peers()):
            self.refuse_other(peers)
            for window in self.abandoned(peers):
                self.publish(window)
            self.inherited, self.looked = now, True
        if self.looked and now - self.published >= every and self.has_new():
            self.published = now
            self.publish(self.plan())

    def refuse_other(self, peers: list[str]) -> None:
        """Each window is published once: of two tables each would get a part of them. Who has not published yet gives way."""
        if not self.has_published and any(map(self.presence.is_of_another, peers)):
            raise ConfigurationError(
                f"group {self.pipeline!r} has members that publish to another table than {self.table!r}, and would share its records with"
                " them; give each table a group of its own (--group)"
            )

    def wait(self, seconds: float) -> None:
        """A while, or until asked to stop."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self.context.stop():
            self.context.observer.turn(self.subject, joined=True)
            time.sleep(min(_LOOK_SECONDS, seconds))

    def abandoned(self, peers: list[str]) -> list[Window]:
        """Windows that are planned, and that nobody is publishing: this member left off, or who planned them is not there any more.

        Oldest first. Each falls to one of the peers, the same whichever of them asks.
        """
        view = self.ledger.read(start=self.read_to, deadline=time.monotonic() + _LEDGER_SECONDS)
        self.read_to = view.end
        for plan in view.of(PlanRecord):
            if plan.ranges:
                self.unfinished[plan.window] = window_of(plan, view.offset(plan.key()) or 0)
        for record in view.of(StageRecord):
            if record.result is not None:
                self.unfinished.pop(record.window, None)
        for mark in view.of(MarkRecord):
            self.unfinished = {name: w for name, w in self.unfinished.items() if w.ledger_offset >= mark.offset}
        return [w for w in self.unfinished.values() if _heir(w, peers) == self.presence.me]

    def has_new(self) -> bool:
        """Whether anything was committed to the topic since it was last looked at."""
        topic = self.cluster.topic(self.in_topic)
        found = topic.id, self.cluster.stable_offset(topic.name, range(topic.partitions))  # another topic may end where this one did
        changed = found != self.seen
        self.seen = found
        return changed

    def plan(self) -> Window:
        """The window of what has arrived since the last one; its name says who is going to publish it."""
        return plan_window(
            self.context.config,
            pipeline=self.pipeline,
            topic=self.in_topic,
            interval=None,
            run_key=f"live-{time.time_ns()}-{self.presence.me}",
            prefix=self.prefix,
            accept_loss=self.accept_loss,
            asked=datetime.now(UTC),
            keep=self.keep,
            view=self.plans,
        )

    def publish(self, window: Window) -> None:
        """Publish a window, unless another member took it over."""
        if not window.ranges:
            return
        try:
            run = self.make_run(window)
            with traced(self.context, run) as context:
                result = run_sink(context, run, self.make)
            self.has_published = True
        except FencedError as error:
            log.warning("another member took this window over", extra=fields(window=window.key, reason=str(error)))
            return
        except StoppedError:
            return  # nothing of it is published; the next start, or a peer, finishes it
        self.counts.add(result.counts)


def _heir(window: Window, peers: list[str]) -> str:
    """Who is to publish a window: who planned it, else one of those who are there."""
    planner = window.name.rpartition("-")[2]
    return planner if planner in peers else peers[zlib.crc32(window.name.encode()) % len(peers)]
