"""``run_version``: one version of a live agent beside others, which hand partitions over to each other exactly."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import replace

from confluent_kafka import KafkaException

from factory_agents import failpoints
from factory_agents.errors import ConfigurationError, FactoryError, FencedError
from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.control import Control, Member
from factory_agents.kafka.group import SESSION_MS
from factory_agents.kafka.messages import Message
from factory_agents.kafka.routes import Route, Token, check_version, first_route, grown, rolled_back, shifted, version_group
from factory_agents.kafka.topics import Cluster
from factory_agents.kafka.version_group import VersionReader
from factory_agents.kafka.writer import ChunkAbortedError, TransactionalWriter
from factory_agents.protocol import Counts, digest, transactional_id
from factory_agents.runtime.agents import Transform
from factory_agents.runtime.dependencies import InterruptedBatchError, breakers
from factory_agents.runtime.judge import Figures, Watch, total, verdict
from factory_agents.runtime.live import LiveAgent, LiveSettings, check_live
from factory_agents.runtime.session import RunContext
from factory_agents.telemetry import Observers, fields

__all__ = ["VersionedAgent", "check_unversioned", "run_version"]

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.02  # while partitions change hands, or may at any time: another version is there
_BEAT_SECONDS, _RARE_BEAT_SECONDS = 1.0, 10.0
_LOOK_SECONDS = 0.2
_SILENT_SECONDS, _FORGET_SECONDS = 5.0, 3600.0
_DEAF_SECONDS = 2.5
_APART_SECONDS = 3.0
"""Two versions may notice so far apart that a service hangs: the one has a call to make later, and is heard of a second after that."""
_STUCK_SECONDS = 1.0
_BUSY_SECONDS = 0.5
_MOST_DEATHS = 3
_LEAVE_SECONDS = 0.5
_KEEP_SECONDS = 3600.0
"""A group that has no members forgets, after days, each position that nobody commits: they are committed again before that."""
_PATIENCE = 60.0
_PROXY_SECONDS = 60.0
_TIMEOUT_MS = 15_000


def run_version(context: RunContext, transform: Transform, version: str, settings: LiveSettings) -> Counts:
    """As ``run_live``, as a member of one version: it handles the partitions that the version holds and gives them up when told to.

    The first version that runs handles all. Raises ConfigurationError where the group has members that know nothing of versions, or where
    the same version runs with other code.
    """
    check_live(transform, settings)
    return VersionedAgent(context, transform, version, settings).run_until_stopped()


def check_unversioned(config: KafkaConfig, group: str, prefix: str) -> None:
    """Refuse to run without a version in a group whose partitions versions handle. Raises ConfigurationError."""
    with Cluster(config) as cluster:
        control = Control(config, cluster, prefix=prefix, group=group)
        try:
            route = control.catch_up(time.monotonic() + _PATIENCE)
        finally:
            control.close()
    if route is not None:
        raise ConfigurationError(
            f"group {group!r}: its partitions are handled by versions (now {route.base!r}); give this agent one, too (--live-version)"
        )


class _HandOverError(Exception):
    """The agent is at a call, of records of a partition that is to be given away."""


class VersionedAgent(LiveAgent):
    """One member of one version (see ``kafka.routes``).

    Each transaction commits outputs, positions of the official group, and those of the version's own group, which are the fence. While a
    rollout lasts, a member of the new version judges each chunk before its commit, and drops one that shows too many errors.
    """

    def __init__(self, context: RunContext, transform: Transform, version: str, settings: LiveSettings) -> None:
        self.version = check_version(version)
        self.me = uuid.uuid4().hex
        self.watch = Watch()
        cluster = Cluster(context.config)
        of = settings
        self.tokens = VersionReader(
            context.config, cluster, of.in_topic, of.group, version, accept_loss=of.accept_loss, writes=of.out_topic
        )
        super().__init__(
            replace(context, observer=Observers(context.observer, self.watch)),
            transform,
            settings,
            cluster=cluster,
            reader=self.tokens,
            part=version,
            member=self.me,
        )
        self.control = Control(context.config, cluster, prefix=of.prefix, group=of.group)
        self.code = digest([transform.name, transform.version, transform.identity])[:16]
        self.refused = ""
        self.passing: dict[int, str] = {}
        self.passed: dict[int, Token] = {}
        self.late: dict[int, float] = {}
        self.proxies: dict[str, Proxy] = {}
        self.beat_at = self.looked_at = 0.0
        self.kept_at = time.monotonic()
        self.listening_since = self.ordered_at = 0.0
        session = int(context.config.values.get("session.timeout.ms", SESSION_MS)) / 1000
        self.silent_seconds = min(_SILENT_SECONDS, session / 2)  # so that a proxy is there when Kafka has missed who hangs

    @property
    def route(self) -> Route | None:
        """The newest order."""
        return self.control.route

    @property
    def is_on_trial(self) -> bool:
        """Whether this version is the one that is being rolled out."""
        route = self.route
        return route is not None and route.state == "rolling" and route.new == self.version

    def run(self) -> Counts:
        """See ``LiveAgent``."""
        self.control.ensure()
        self.control.catch_up(time.monotonic() + _PATIENCE)
        self._check_members()
        counts = super().run()
        self.control.settle(1.0)
        return counts

    def close(self) -> None:
        """See ``LiveAgent``."""
        for proxy in self.proxies.values():
            proxy.end()
        for proxy in self.proxies.values():
            proxy.join()
        with contextlib.suppress(FactoryError, KafkaException):
            self.control.forget(self.me)
        super().close()
        self.control.close()

    def _check_members(self) -> None:
        """Refuse to run beside what would handle the same records, or under a version that means other code."""
        plain = self.cluster.group(self.group)
        if plain is not None and plain.members:
            raise ConfigurationError(
                f"group {self.group!r} has {plain.members} members that run without a version; end them first: this version goes on where "
                f"they stop"
            )
        for member in self.control.alive(self.version, _SILENT_SECONDS + _RARE_BEAT_SECONDS):
            if member.code != self.code:
                raise ConfigurationError(
                    f"group {self.group!r}: version {self.version!r} runs with other code or parameters on {member.host}; give this one "
                    f"another version"
                )

    def _step(self) -> None:
        try:
            self._obey()
            if self.route is None:
                self.reader.idle(self.poll)
                return
            super()._step()
        except _HandOverError:
            self._leave_call()

    def _obey(self) -> None:
        """What is to be done before more is read: orders, tokens to give, signs of life."""
        self._tail()
        if self.refused:
            self._roll_back(self.version, self.refused)
            self.refused = ""
        if self.route is None or self.control.is_lost or len(self.route.owners) < self.reader.topic.partitions:
            self._order_missing()
        self._give()
        self._beat()
        self._keep()
        now = time.monotonic()
        if now - self.looked_at >= _LOOK_SECONDS:
            self.looked_at = now
            self._next_step()
            self._look_after_others()

    def _tail(self) -> None:
        before = self.route
        self.control.tail()
        route = self.route
        self.tokens.follow(route, self.control.take_passed())
        if route is not None and (before is None or route.epoch != before.epoch):
            log.info(
                "order",
                extra=fields(group=self.group, epoch=route.epoch, state=route.state, new=route.new, moved=route.moved, reason=route.reason),
            )
            self.beat_at = 0.0
            if before is None or route.since != before.since:
                self.ordered_at = time.monotonic()
                if route.new == self.version:
                    self.watch.restart()  # the version before it is judged by what it did until now
            self.listening_since = time.monotonic()
        self.poll = _POLL_SECONDS if self.is_moving or self._has_others() else LiveAgent.poll

    @property
    def is_moving(self) -> bool:
        """Whether partitions change hands."""
        route = self.route
        return bool(self.tokens.to_come or self.tokens.to_give or (route is not None and route.state == "rolling"))

    def _has_others(self) -> bool:
        """Whether members of another version are there, to which partitions may go."""
        return any(m.version != self.version for m in self.control.heard(_RARE_BEAT_SECONDS + _SILENT_SECONDS))

    def _order_missing(self) -> None:
        """Say what holds where no order does: the first version that runs has all; partitions that were added are the base's."""
        try:
            tokens = self.tokens.all_tokens()
        except KafkaException:
            return  # a transaction is open that may pass one on

        def change(route: Route | None) -> Route:
            partitions = self.reader.topic.partitions
            if route is None:
                return first_route(self.group, self.reader.topic.name, partitions, self.version, tokens)
            return grown(route, partitions)

        self.control.order(change)

    def _roll_back(self, version: str, reason: str) -> None:
        """Take the partitions from a version, unless its rollout is over."""
        log.warning("rolling back", extra=fields(group=self.group, version=version, reason=reason))

        def change(route: Route | None) -> Route | None:
            if route is None or route.state != "rolling" or route.new != version:
                return route
            return rolled_back(route, reason, now=time.time(), by=f"{self.version} on {_HOST}")

        self.control.order(change)
        self._tail()

    def _give(self) -> None:
        """Pass on the tokens of partitions that other versions are to have, with what is done of them; or without, after a rollback."""
        if time.monotonic() < self.again_at:
            self.tokens.peek()  # nothing is read meanwhile
        give = self.tokens.to_give
        if not give or self.route is None:
            return
        if self.route.back and self.positions:
            self._drop("what is not committed is not wanted any more")
            self.tokens.peek()
            give = self.tokens.to_give
        elif self.positions and not self._approved():
            return
        if give:
            self._open()
            failpoints.hit("give.begun")
            self.passing = give
            try:
                self._commit_now()
            finally:
                self.passing = {}
            failpoints.hit("give.committed")
            self.tokens.release(self.passed)
            self.control.tell_passed(self.passed)
            log.info("partitions passed on", extra=fields(group=self.group, partitions=sorted(give), to=sorted(set(give.values()))))

    def _commit(self) -> None:
        if self.positions and self._approved():
            self._commit_now()

    def _send_offsets(self) -> None:
        self.passed = self.tokens.send(self.writer, self.positions, self.passing)

    def _keep(self) -> None:
        if time.monotonic() - self.kept_at > _KEEP_SECONDS and (standing := self.tokens.standing):
            self._open()
            self.positions = standing | self.positions
            self.kept_at = time.monotonic()
            self._commit()

    def _approved(self) -> bool:
        """Whether the chunk may be committed; one that shows too many errors is dropped, and its version rolled back."""
        if self.is_on_trial and not self.refused:
            self.refused = self._verdict(self.watch.chunk(self.chunk.records, self.outputs.figures().rejected))
        if self.refused:
            self._drop(self.refused)
        return not self.refused

    def _verdict(self, chunk: Figures) -> str:
        route = self.route
        if route is None:
            return ""
        others = [m for m in self.control.alive(self.version, _SILENT_SECONDS) if m.id != self.me]
        new = total([self.watch.figures, chunk, *map(_figures, others)])
        old = total(_figures(m) for m in self.control.members.values() if m.version == route.base)
        return verdict(new, old, route.limits)

    def _wait(self, messages: Sequence[Message], interrupted: InterruptedBatchError) -> None:
        self.watch.waited(interrupted.seconds)
        super()._wait(messages, interrupted)

    def _watch(self) -> None:
        super()._watch()
        self._tail()
        self._beat()
        busy, route = self.busy_seconds, self.route
        if route is not None and self.is_on_trial and not self.refused:
            if busy > _BEAT_SECONDS and self._hangs_too(route.base, busy):
                self.watch.excuse(busy)
            elif busy > route.limits.hang:
                self.refused = f"it has been at one call for {busy:.0f} s"
            elif busy > _APART_SECONDS:
                self.refused = self._verdict(self.watch.chunk(self.chunk.records, self.outputs.figures().rejected, busy))

    def _meanwhile(self) -> None:
        super()._meanwhile()
        route = self.route
        if route is None:
            return
        if self.refused or (self.tokens.to_give and (route.back or self.thread.busy_seconds > _LEAVE_SECONDS)):
            raise _HandOverError

    def _hangs_too(self, base: str, busy: float) -> bool:
        """Whether a member of the version before is at one call, too, since about the same time: a service hangs for both, then."""
        return any(m.busy and m.busy > busy - _APART_SECONDS for m in self.control.alive(base, _DEAF_SECONDS))

    def _leave_call(self) -> None:
        """What the agent has in hand is read again, by whoever has its partitions then."""
        if self.refused:
            self._drop(self.refused)
        else:
            self._commit()
            self.reader.rewind()

    def _beat(self) -> None:
        now, route = time.monotonic(), self.route
        if now < self.beat_at:
            return
        self.beat_at = now + (_BEAT_SECONDS if self.is_moving else _RARE_BEAT_SECONDS)
        figures = self.watch.figures
        self.control.tell(
            Member(
                self.group,
                self.version,
                self.me,
                code=self.code,
                held=tuple(sorted(self.tokens.held)) if route is not None else (),
                lag=sum(self.reader.lag().values()),
                busy=round(busy, 1) if (busy := self.busy_seconds) > _BUSY_SECONDS else 0.0,
                breakers={name: state for name, state in breakers().items() if state != "closed"},
                host=_HOST,
                **figures._asdict(),
            )
        )

    def _next_step(self) -> None:
        """Go on with the rollout when it is time and all is well."""
        route = self.route
        if route is None or not self.is_on_trial or not route.steps or self.refused or self.tokens.to_come:
            return
        if time.time() - route.at < route.hold or self._verdict(Figures()):
            return

        def change(found: Route | None) -> Route | None:
            if found is None or found.epoch != route.epoch:
                return found
            return shifted(found, found.steps[0], steps=found.steps[1:], now=time.time(), by=f"{self.version} on {_HOST}")

        self.control.order(change)

    def _look_after_others(self) -> None:
        """Roll back a version that nothing is heard of; take over tokens whose holders are gone."""
        route, now = self.route, time.monotonic()
        if route is None:
            return
        self.control.forget_silent(_FORGET_SECONDS)
        if not any(m.id == self.me for m in self.control.alive(self.version, _DEAF_SECONDS)):
            self.listening_since = now  # what this member can't hear says nothing of the others
        if route.state == "rolling" and route.new != self.version and route.moved and (reason := self._is_missing(route)):
            self._roll_back(route.new, reason)
        waiting = self.tokens.to_come
        self.late = {p: self.late.get(p, now) for p in waiting}
        # who is rolled back gave a sign each second; who held before the rollout each ten, and has to have had the time to give one
        patience = _STUCK_SECONDS if route.back else self.silent_seconds
        stuck = {waiting[p] for p, since in self.late.items() if now - since > patience}
        for version, proxy in list(self.proxies.items()):
            if version not in waiting.values() or not proxy.is_alive:
                proxy.end()
                del self.proxies[version]
        for version in stuck - self.proxies.keys():
            if not self.control.alive(version, self.silent_seconds):
                log.warning("passing on tokens of a version that has no members", extra=fields(group=self.group, version=version))
                self.proxies[version] = Proxy(
                    self.context.config,
                    self.prefix,
                    self.reader.topic.name,
                    self.group,
                    version,
                    silent_seconds=self.silent_seconds,
                )

    def _is_missing(self, route: Route) -> str:
        """Why the new version is as good as not there: all of its members are silent, or most of them die, start and die again."""
        if time.monotonic() - self.listening_since <= self.silent_seconds:
            return ""
        alive = self.control.alive(route.new, self.silent_seconds)
        if not alive:
            return f"nothing was heard of it for {self.silent_seconds:g} s"
        since = self.control.alive(route.new, time.monotonic() - self.ordered_at)
        if len(since) - len(alive) >= max(_MOST_DEATHS, 2 * len(alive)):
            return f"{len(since) - len(alive)} of its members died without a word since it began, {len(alive)} are there"
        return ""


_HOST = socket.gethostname()


def _figures(member: Member) -> Figures:
    return Figures(*(getattr(member, name) for name in Figures._fields))


class Proxy:
    """Passes on, in a thread of its own, the tokens of a version whose members are gone or hang: as a member of its group, for a while.

    Kafka gives it the partitions once the session of the others is over; what they do after that is refused. What they have left open is
    ended at once: it would hide where the group stands, and all later outputs, until its timeout.
    """

    def __init__(self, config: KafkaConfig, prefix: str, topic: str, group: str, version: str, *, silent_seconds: float) -> None:
        self._config, self._prefix, self._topic, self._group, self._version = config, prefix, topic, group, version
        self._silent_seconds = silent_seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"proxy of {version}", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether it is still at it."""
        return self._thread.is_alive()

    def end(self) -> None:
        """Have it leave the group, without waiting for that: whoever waits here gives no sign of life."""
        self._ended.set()

    def join(self) -> None:
        """Wait until it has left."""
        self._thread.join(_PATIENCE)

    def _run(self) -> None:
        try:
            with Cluster(self._config) as cluster:
                self._pass_on(cluster)
        except (FactoryError, ChunkAbortedError, KafkaException) as error:
            log.warning("the proxy ended", extra=fields(group=self._group, version=self._version, reason=str(error)))

    def _pass_on(self, cluster: Cluster) -> None:
        reader = VersionReader(self._config, cluster, self._topic, self._group, self._version, handles=False)
        control = Control(self._config, cluster, prefix=self._prefix, group=self._group)
        writer = self._writer(version_group(self._group, self._version), uuid.uuid4().hex)
        try:
            reader.subscribe(came=_nothing, going=_nothing, gone=_nothing)
            reader.idle(_POLL_SECONDS)
            control.catch_up(time.monotonic() + _PATIENCE)
            self._fence(control)
            writer.open(time.monotonic() + _PATIENCE)
            until = time.monotonic() + _PROXY_SECONDS
            while not self._ended.is_set() and time.monotonic() < until:
                control.tail()
                reader.follow(control.route, control.take_passed())
                reader.idle(_POLL_SECONDS)
                reader.peek()
                if give := reader.to_give:
                    writer.begin()
                    passed = reader.send(writer, {}, give)
                    writer.commit(time.monotonic() + _PATIENCE)
                    reader.release(passed)
                    control.tell_passed(passed)
        finally:
            with contextlib.suppress(FencedError):
                writer.abort()
            reader.close()
            control.close()

    def _writer(self, *names: str) -> TransactionalWriter:
        id_ = transactional_id(self._prefix, "live", *names)
        return TransactionalWriter(self._config, id_, known_topic=self._topic, timeout_ms=_TIMEOUT_MS, stop=self._ended.is_set)

    def _fence(self, control: Control) -> None:
        heard = {member.id for member in control.alive(self._version, self._silent_seconds)}
        for member in control.alive(self._version, _PROXY_SECONDS):
            if member.id not in heard:
                writer = self._writer(self._group, member.id)
                try:
                    writer.open(time.monotonic() + _PATIENCE)
                finally:
                    writer.close()


def _nothing(_: set[int]) -> None:
    pass
