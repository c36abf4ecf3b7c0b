"""Prunes the ledger, the oldest windows first; marks and then deletions, so that it may be killed at any point; see ``pruning``."""

from __future__ import annotations

import contextlib
import logging
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import TypeAlias, TypeVar

import msgspec
from confluent_kafka import KafkaException, Producer

from factory_agents import failpoints
from factory_agents.errors import ConfigurationError, DeadlineError, FactoryError, FencedError
from factory_agents.kafka.alerts import ALERTS_KEPT_MS
from factory_agents.kafka.config import KafkaConfig, connect, kafka_error
from factory_agents.kafka.ledger import Ledger, ReplayRecord
from factory_agents.kafka.plan_view import PlanView
from factory_agents.kafka.prune_view import PruneView
from factory_agents.kafka.pruning import Horizon, Kept, Pruning, decide_pruning, looked_at
from factory_agents.kafka.records import MarkRecord, mark_key
from factory_agents.kafka.topics import Cluster, TopicInfo
from factory_agents.kafka.view import Follower
from factory_agents.protocol import Manifest, to_ms, transactional_id
from factory_agents.telemetry import fields
from factory_agents.text import seconds_of

__all__ = ["RETENTION", "Pruned", "keep_seconds", "pipelines_of", "prune_beside", "prune_pipeline", "retention_of"]

log = logging.getLogger(__name__)

_T = TypeVar("_T")
_Progress: TypeAlias = Callable[[int, int], None]
_HorizonOf: TypeAlias = Callable[[PruneView], Horizon | None]

RETENTION = "retention"
"""Windows are remembered for as long as the topics of their pipeline keep records, and a margin."""

_FOREVER = "forever"
_DAY_MS = 24 * 3600 * 1000
_WEEK_MS = 7 * _DAY_MS
_CHUNK = 5_000
_TRANSACTION_MS = 20_000  # a chunk takes a second; what a killed prune leaves open holds readers this long at most
_BESIDE_SECONDS = 60.0
_BESIDE_TIMEOUT = 300.0  # of a round that is under way: the ledger is read at least once, whatever that takes
_ROOM = 100_000  # records of an origin that a round holds, some 80 MB
_NAMES = 20


class Pruned(msgspec.Struct, frozen=True):
    """What a prune of one pipeline did, or would do: how many windows and records went, and what stays (``kept``), with the reason.

    ``before`` is the horizon (None: there is none, as a topic keeps its records for ever). ``unfinished`` names some of the windows that
    went without having been finished. ``letters`` is the number of records that stay for the sake of dead letters still in their topic.
    ``more``: only the oldest windows were looked at, and some of the others may go too.
    """

    pipeline: str
    before: datetime | None = None
    windows: int = 0
    records: int = 0
    first: str = ""
    last: str = ""
    unfinished: tuple[str, ...] = ()
    unfinished_windows: int = 0
    letters: int = 0
    kept: tuple[Kept, ...] = ()
    dry_run: bool = False
    more: bool = False

    @property
    def notes(self) -> list[str]:
        """What else to tell of it."""
        notes = [] if self.before is not None else ["everything: it has no topic whose records go after a time (--before, --keep-windows)"]
        if self.letters:
            notes.append(f"{self.letters:,} records whose dead letters are still there")
        if self.more:
            notes.append("newer windows, which were not looked at yet" + ("" if self.dry_run else ": run it again"))
        return notes


def keep_seconds(text: str) -> float | None:
    """For how long windows are remembered: ``45 d``, ``forever`` (infinite), or None for ``retention``. Raises ConfigurationError."""
    if text.strip() in ("", RETENTION):
        return None
    if text.strip() == _FOREVER:
        return math.inf
    seconds = seconds_of(text)
    if seconds is None:
        raise ConfigurationError(f"keep_windows: expected a time such as '45 d' or '36 h', {RETENTION} or {_FOREVER}; got {text!r}")
    return seconds


def prune_pipeline(
    config: KafkaConfig,
    pipeline: str,
    *,
    prefix: str = "factory",
    keep: str = RETENTION,
    before: datetime | None = None,
    unfinished: bool = False,
    dry_run: bool = False,
    progress: _Progress = lambda done, of: None,
    go_on: float = 3600.0,
    timeout: float = 3600.0,
) -> Pruned:
    """Forget windows of one pipeline: of before a time, or (without one) those on which nothing was done for as long as ``keep`` says.

    By a time, what isn't finished stays unless ``unfinished``. ``progress`` is told how many records of how many are deleted. A large
    ledger takes several rounds, the oldest windows first; none begins that would end after ``go_on`` seconds. It may be killed at any
    point: done again, it deletes the rest. Raises ConfigurationError, UnavailableError, and DeadlineError where nothing was
    done after ``timeout`` seconds.
    """
    now = int(time.time() * 1000)
    seconds = keep_seconds(keep)
    with Cluster(config) as cluster:
        pruner = _Pruner(config, cluster, pipeline, prefix, go_on, timeout, progress)

        def horizon(view: PruneView) -> Horizon | None:
            if before is not None:
                return Horizon(min(to_ms(before), now), by="time", unfinished=unfinished)
            return _horizon(cluster, view, seconds, now)

        return pruner.run(horizon, dry_run=dry_run)


def prune_beside(config: KafkaConfig, cluster: Cluster, view: PlanView, *, origin: str, prefix: str, keep: str) -> None:
    """What a planner of an origin's windows does beside its plan, when the oldest are past the horizon; ``view`` is what it has read.

    Raises nothing: where it doesn't get far, a later planner goes on from there.
    """
    now = int(time.time() * 1000)
    seconds, pipeline = keep_seconds(keep), view.pipeline
    try:
        pruner = _Pruner(config, cluster, pipeline, prefix, _BESIDE_SECONDS, _BESIDE_TIMEOUT, lambda done, of: None)
        if not pruner.claim(view, origin):
            return
        done = pruner.run(lambda found: _horizon(cluster, found, seconds, now), view.of(MarkRecord))
    except DeadlineError as error:
        log.warning(
            "the ledger was not pruned beside a plan; 'factory windows prune --pipeline %s' does it: %s",
            pipeline,
            error,
            extra=fields(pipeline=pipeline),
        )
        return
    except (FactoryError, KafkaException) as error:
        log.info("the ledger was not pruned, a later planner tries again: %s", error, extra=fields(pipeline=pipeline))
        return
    facts = fields(pipeline=pipeline, windows=done.windows, records=done.records, first=done.first, last=done.last, more=done.more)
    if done.windows:
        log.info("ledger pruned", extra=facts)
    if done.unfinished:
        log.warning(
            "%d windows that were never finished are past what the ledger remembers, and were pruned: %s",
            done.unfinished_windows,
            ", ".join(done.unfinished),
            extra=facts,
        )


def pipelines_of(config: KafkaConfig, *, prefix: str = "factory", timeout: float = 120.0) -> list[str]:
    """The names of all pipelines in a ledger; none where there is no ledger."""
    with Cluster(config) as cluster:
        ledger = Ledger(config, cluster, prefix=prefix, pipeline="")
        if cluster.find(ledger.topic) is None:
            return []
        names = _Names()
        ledger.follow(names, deadline=time.monotonic() + timeout, stable=True)
        return sorted(names.found)


class _Names(Follower):
    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def take(self, offset: int, key: bytes, value: bytes | None) -> None:
        """See ``Follower.take``."""
        parts = key.split(b"|", 2)
        if len(parts) > 1 and value is not None:
            with contextlib.suppress(UnicodeDecodeError):
                self.found.add(parts[1].decode())

    def forget(self) -> None:
        """See ``Follower.forget``."""
        self.found.clear()


def _horizon(cluster: Cluster, view: PruneView, seconds: float | None, now: int) -> Horizon | None:
    """How far back windows are remembered: as was said, else for as long as the topic that keeps records longest; None: for ever.

    A window that isn't finished is remembered for as long as its topics keep records, in any case.
    """
    names = view.topics | set(view.origins.values())
    kept = [retention for name in sorted(names - {""}) for retention in _retention(cluster, name)]
    retention = None if not kept or None in kept else max(filter(None, kept))
    keep = retention if seconds is None else None if math.isinf(seconds) else int(seconds * 1000)
    return None if keep is None else Horizon(now - keep, by="rest", lost=0 if retention is None else now - retention, keep=keep)


def _retention(cluster: Cluster, topic: str) -> list[int | None]:
    """For how long records lie in a topic, if there is one; where it may not be asked, for ever."""
    try:
        return [] if cluster.find(topic) is None else [retention_of(cluster.settings(topic))]
    except ConfigurationError as error:
        log.info("topic %r: its retention cannot be read, so windows are remembered for ever: %s", topic, error)
        return [None]


def retention_of(settings: dict[str, str]) -> int | None:
    """For how long records may lie in a topic (milliseconds), a margin included; None for ever."""
    retention = int(settings.get("retention.ms", "-1"))
    if retention < 0 or "delete" not in settings.get("cleanup.policy", "delete"):
        return None
    return retention + int(settings.get("segment.ms", _WEEK_MS)) + _DAY_MS


class _Letters:
    """Which dead letters may still lie in their topic."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._topics: dict[str, tuple[TopicInfo | None, dict[int, int]]] = {}

    def there(self, letters: Manifest) -> bool:
        """Whether some of these are."""
        return self.offsets_there(letters.topic, letters.topic_id, {r.partition: [r.end - 1] for r in letters.ranges})

    def offsets_there(self, topic: str, topic_id: str, offsets: dict[int, list[int]]) -> bool:
        """Whether one of some offsets of a topic is; a topic that may not be asked may have them."""
        if topic not in self._topics:
            try:
                facts = self._cluster.find(topic)
                starts = self._cluster.log_start(topic, range(facts.partitions)) if facts is not None else {}
            except ConfigurationError:
                return True
            self._topics[topic] = (facts, starts)
        found, starts = self._topics[topic]
        return found is not None and found.id == topic_id and any(o >= starts.get(p, 0) for p, of in offsets.items() for o in of)


class _Pruner:
    """Prunes at work, under the name of a pipeline's planners: whoever starts later stops those before it.

    It goes on in rounds: each reads the ledger from its beginning, and forgets the oldest windows, as many as there is room for. Another
    one begins only where it should end within ``seconds``; one that is under way has until ``timeout``.
    """

    def __init__(
        self, config: KafkaConfig, cluster: Cluster, pipeline: str, prefix: str, seconds: float, timeout: float, progress: _Progress
    ) -> None:
        self.config, self.cluster, self.progress = config, cluster, progress
        self.doing = f"pruning the ledger of {pipeline!r}"
        self.ledger = Ledger(config, cluster, prefix=prefix, pipeline=pipeline)
        self.until = time.monotonic() + seconds
        self.timeout, self.deadline = timeout, time.monotonic() + timeout
        self._transactional_id = transactional_id(prefix, "plan", pipeline)
        self._letters = _Letters(cluster)
        self._done = Pruned(pipeline)

    def claim(self, view: PlanView, origin: str) -> bool:
        """Say in an origin's mark that its pipeline is being looked at, so that no other planner does for a while; False where one did."""
        looked = looked_at(view)

        def write(producer: Producer) -> bool:
            self.ledger.follow(view, deadline=self.deadline)
            if looked_at(view) > looked:
                return False
            found = view.get(mark_key(view.pipeline, origin))
            mark = found if isinstance(found, MarkRecord) else MarkRecord(view.pipeline, origin)
            mark = msgspec.structs.replace(mark, at=int(time.time() * 1000))
            self._commit(producer, "claim", partial(self.ledger.produce, producer, [mark]))
            return True

        return self._as_planner(write)

    def run(self, horizon: _HorizonOf, marks: Iterable[MarkRecord] | None = None, *, dry_run: bool = False) -> Pruned:
        """Round after round. ``marks`` are those that are there, if that is known; a dry run is one round."""
        if self.cluster.find(self.ledger.topic) is None:
            return msgspec.structs.replace(self._done, dry_run=dry_run)
        known = {mark.origin: mark for mark in (self._marks() if marks is None else marks)}
        room, topics = _ROOM, set[str]()
        while True:
            began = time.monotonic()
            view = PruneView(self.ledger.pipeline, room=room, marks=known.values(), topics=topics)
            try:
                self.ledger.follow(view, deadline=self.deadline, stable=True)  # it takes long, and stops no planner
                pruning = self._decide(view, horizon) if dry_run else self._as_planner(partial(self._write, view, horizon))
            except DeadlineError:
                if not self._done.windows:
                    raise
                return msgspec.structs.replace(self._done, more=True)
            if dry_run:
                self._tell(pruning)
                self._count(len(pruning.works) + len(pruning.plans))
            now = time.monotonic()
            if dry_run or not pruning.more or now + (now - began) > self.until:
                return msgspec.structs.replace(self._done, more=pruning.more, dry_run=dry_run)
            known |= {mark.origin: mark for mark in pruning.marks}
            topics = view.topics
            if not (pruning.windows or pruning.works or pruning.plans):  # all that there was room for stays
                room *= 2

    def _marks(self) -> list[MarkRecord]:
        return self.ledger.read_stable(deadline=self.deadline, wanted=(b"mark|",)).of(MarkRecord)

    def _decide(self, view: PruneView, horizon: _HorizonOf) -> Pruning:
        limit = horizon(view)
        if limit is None:
            return Pruning()
        self._done = msgspec.structs.replace(self._done, before=_moment(limit.before))
        now = int(time.time() * 1000)
        pruning = decide_pruning(view, limit, now, self._letters.there)
        pruning.works += self._replays(view)
        pruning.works += (key for key, at in view.alerts.items() if at < now - ALERTS_KEPT_MS)
        return pruning

    def _replays(self, view: PruneView) -> Iterator[bytes]:
        """Notes of dead letters that were put back, once none of these letters is there any more."""
        topic = self.ledger.pipeline.removeprefix("replay.")
        for record in view.of(ReplayRecord):
            if not self._letters.offsets_there(topic, record.topic_id, record.offsets):
                yield record.key().encode()

    def _write(self, view: PruneView, horizon: _HorizonOf, producer: Producer) -> Pruning:
        """Marks and then deletions; a planner that takes over in between finds the marks, and whoever prunes next deletes the rest."""
        self.ledger.follow(view, deadline=self.deadline)
        pruning = self._decide(view, horizon)
        if pruning.marks:
            self._commit(producer, "marks", partial(self.ledger.produce, producer, pruning.marks))
        self._tell(pruning)
        self._delete(producer, [*pruning.works, *pruning.plans])
        return pruning

    def _as_planner(self, write: Callable[[Producer], _T]) -> _T:
        """Write under the name of the pipeline's planners; again where one of them took over."""
        lost = 0
        while True:
            producer = self.config.producer(self._transactional_id, transaction_timeout_ms=_TRANSACTION_MS)
            connect(producer, self.ledger.topic)
            try:
                producer.init_transactions(self._left)
                return write(producer)
            except KafkaException as error:
                failure = kafka_error(error, self.doing)
                if not isinstance(failure, FencedError) and not error.args[0].txn_requires_abort():
                    raise failure from error
            finally:
                del producer  # an error's traceback would keep it, with its threads and sockets
            if time.monotonic() > self.deadline:
                raise DeadlineError(f"{self.doing}: planners kept taking over for {self.timeout:.0f} s; try again")
            lost += 1
            time.sleep(random.uniform(0.05, 0.1 * min(2**lost, 30)))

    @property
    def _left(self) -> float:
        return max(1.0, self.deadline - time.monotonic())

    def _delete(self, producer: Producer, keys: Sequence[bytes]) -> None:
        for first in range(0, len(keys), _CHUNK):
            self.progress(first, len(keys))
            chunk = keys[first : first + _CHUNK]
            self._commit(producer, "deletions", partial(self.ledger.erase, producer, chunk))
            self._count(len(chunk))
        self.progress(len(keys), len(keys))

    def _commit(self, producer: Producer, what: str, put: Callable[[], None]) -> None:
        producer.begin_transaction()
        put()
        producer.flush(self._left)
        failpoints.hit(f"prune.before-{what}")
        while True:
            try:
                producer.commit_transaction(self._left)
                break
            except KafkaException as error:
                if not error.args[0].retriable() or time.monotonic() > self.deadline:
                    raise
        failpoints.hit(f"prune.after-{what}")

    def _tell(self, pruning: Pruning) -> None:
        """Note what went, once its marks are written."""
        done, windows = self._done, pruning.windows
        kept = {k.origin: k for k in (*done.kept, *pruning.kept)}
        self._done = msgspec.structs.replace(
            done,
            windows=done.windows + len(windows),
            first=min((w for w in (done.first, *windows) if w), default=""),
            last=max((done.last, *windows)),
            unfinished=(*done.unfinished, *pruning.unfinished)[:_NAMES],
            unfinished_windows=done.unfinished_windows + len(pruning.unfinished),
            letters=pruning.letters,
            kept=tuple(kept.values())[:_NAMES],
        )

    def _count(self, records: int) -> None:
        self._done = msgspec.structs.replace(self._done, records=self._done.records + records)


def _moment(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)
