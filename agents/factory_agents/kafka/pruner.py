"""Prunes the ledger: marks first, then deletions, so that it may be killed at any point and done again; see ``pruning`` for what goes."""

from __future__ import annotations

import contextlib
import logging
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial

import msgspec
from confluent_kafka import KafkaException, Producer

from factory_agents import failpoints
from factory_agents.errors import ConfigurationError, DeadlineError, FactoryError, FencedError
from factory_agents.kafka.config import KafkaConfig, connect, kafka_error
from factory_agents.kafka.ledger import Ledger, ReplayRecord
from factory_agents.kafka.pruning import Horizon, Kept, PruneView, Pruning, decide_pruning
from factory_agents.kafka.records import MarkRecord
from factory_agents.kafka.topics import Cluster, TopicInfo
from factory_agents.kafka.view import Follower
from factory_agents.protocol import Manifest, to_ms, transactional_id
from factory_agents.telemetry import fields
from factory_agents.text import seconds_of

__all__ = ["RETENTION", "Pruned", "keep_seconds", "pipelines_of", "prune_beside", "prune_pipeline", "retention_of"]

log = logging.getLogger(__name__)

RETENTION = "retention"
"""Windows are remembered for as long as the topics of their pipeline keep records, and a margin."""

_FOREVER = "forever"
_DAY_MS = 24 * 3600 * 1000
_WEEK_MS = 7 * _DAY_MS
_CHUNK = 5_000
_TRANSACTION_MS = 20_000  # a chunk takes a second; what a killed prune leaves open holds readers this long at most
_BESIDE_SECONDS = 60.0
_NAMES = 20


class Pruned(msgspec.Struct, frozen=True):
    """What a prune of one pipeline did, or would do: how many windows and records went, and what stays (``kept``), with the reason.

    ``before`` is the horizon (None: there is none, as a topic keeps its records for ever). ``unfinished`` names some of the windows that
    went without having been finished. ``letters`` is the number of records that stay for the sake of dead letters still in their topic.
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

    @property
    def notes(self) -> list[str]:
        """What else to tell of it."""
        notes = [] if self.before is not None else ["everything: it has no topic whose records go after a time (--before, --keep-windows)"]
        if self.letters:
            notes.append(f"{self.letters:,} records whose dead letters are still there")
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
    progress: Callable[[int, int], None] = lambda done, of: None,
    timeout: float = 600.0,
) -> Pruned:
    """Forget windows of one pipeline: of before a time, or (without one) those on which nothing was done for as long as ``keep`` says.

    By a time, what isn't finished stays unless ``unfinished``. ``progress`` is told how many records of how many are deleted. It may be
    killed at any point: done again, it deletes the rest. Raises ConfigurationError, UnavailableError, and DeadlineError after ``timeout``
    seconds.
    """
    now = int(time.time() * 1000)
    seconds = keep_seconds(keep)
    with Cluster(config) as cluster:
        pruner = _Pruner(config, cluster, pipeline, prefix, timeout, progress)

        def horizon(view: PruneView) -> Horizon | None:
            if before is not None:
                return Horizon(min(to_ms(before), now), by="time", unfinished=unfinished)
            return _horizon(cluster, view, seconds, now)

        return pruner.run(horizon, dry_run=dry_run)


def prune_beside(config: KafkaConfig, cluster: Cluster, pipeline: str, *, prefix: str, keep: str, mark: MarkRecord | None) -> None:
    """What a planner does beside its plan, when the oldest windows are past the horizon. Raises nothing: the next one tries again.

    ``mark`` is what the planner has seen: where another one looked since, nothing is done.
    """
    seen = mark.at if mark is not None else 0
    now = int(time.time() * 1000)
    seconds = keep_seconds(keep)

    def horizon(view: PruneView) -> Horizon | None:
        if any(found.at > seen for found in view.of(MarkRecord)):
            return None
        return _horizon(cluster, view, seconds, now) or Horizon(0, by="rest")  # the mark says that somebody looked, in any case

    try:
        done = _Pruner(config, cluster, pipeline, prefix, _BESIDE_SECONDS, lambda done, of: None).run(horizon, patient=False)
    except (FactoryError, KafkaException) as error:
        log.info("the ledger was not pruned, the next planner tries again: %s", error, extra=fields(pipeline=pipeline))
        return
    facts = fields(pipeline=pipeline, windows=done.windows, records=done.records, first=done.first, last=done.last)
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
    names = view.topics | {view.topic_of(lane) for lane in view.lanes.values()}
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
    """One prune at work, under the name of its pipeline's planners: whoever starts later stops those before it."""

    def __init__(
        self, config: KafkaConfig, cluster: Cluster, pipeline: str, prefix: str, timeout: float, progress: Callable[[int, int], None]
    ) -> None:
        self.config, self.cluster, self.progress = config, cluster, progress
        self.doing = f"pruning the ledger of {pipeline!r}"
        self.ledger = Ledger(config, cluster, prefix=prefix, pipeline=pipeline)
        self.timeout, self.deadline = timeout, time.monotonic() + timeout
        self._transactional_id = transactional_id(prefix, "plan", pipeline)
        self._letters = _Letters(cluster)
        self._view = PruneView(pipeline)

    def run(self, horizon: Callable[[PruneView], Horizon | None], *, dry_run: bool = False, patient: bool = True) -> Pruned:
        """Decide and do it; ``patient``: again where a planner took over."""
        if self.cluster.find(self.ledger.topic) is None:
            return Pruned(self.ledger.pipeline, dry_run=dry_run)
        if dry_run:
            self.ledger.follow(self._view, deadline=self.deadline, stable=True)
            return self._report(*self._decide(horizon), dry_run=True)
        lost = 0
        while True:
            try:
                return self._write(horizon)
            except FencedError:
                if not patient:
                    raise
                if time.monotonic() > self.deadline:
                    raise DeadlineError(f"{self.doing}: planners kept taking over for {self.timeout:.0f} s; try again") from None
            lost += 1
            time.sleep(random.uniform(0.05, 0.1 * min(2**lost, 30)))

    def _decide(self, horizon: Callable[[PruneView], Horizon | None]) -> tuple[Horizon | None, Pruning]:
        limit = horizon(self._view)
        if limit is None:
            return None, Pruning()
        pruning = decide_pruning(self._view, limit, int(time.time() * 1000), self._letters.there)
        pruning.works += self._replays()
        return limit, pruning

    def _replays(self) -> Iterator[bytes]:
        """Notes of dead letters that were put back, once none of these letters is there any more."""
        topic = self.ledger.pipeline.removeprefix("replay.")
        for record in self._view.of(ReplayRecord):
            if not self._letters.offsets_there(topic, record.topic_id, record.offsets):
                yield record.key().encode()

    def _write(self, horizon: Callable[[PruneView], Horizon | None]) -> Pruned:
        """Marks and then deletions; a planner that takes over in between finds the marks, and whoever prunes next deletes the rest."""
        producer = self.config.producer(self._transactional_id, transaction_timeout_ms=_TRANSACTION_MS)
        connect(producer, self.ledger.topic)
        try:
            producer.init_transactions(self._left)
            self.ledger.follow(self._view, deadline=self.deadline)
            limit, pruning = self._decide(horizon)
            if limit is not None:
                self._commit(producer, "marks", partial(self.ledger.produce, producer, pruning.marks))
                self._delete(producer, [*pruning.works, *pruning.plans])
            return self._report(limit, pruning, dry_run=False)
        except KafkaException as error:
            failure = kafka_error(error, self.doing)
            if isinstance(failure, FencedError) or error.args[0].txn_requires_abort():
                raise FencedError(f"{self.doing}: a planner took over") from error
            raise failure from error
        finally:
            del producer  # an error's traceback would keep it, with its threads and sockets

    @property
    def _left(self) -> float:
        return max(1.0, self.deadline - time.monotonic())

    def _delete(self, producer: Producer, keys: Sequence[bytes]) -> None:
        for first in range(0, len(keys), _CHUNK):
            self.progress(first, len(keys))
            self._commit(producer, "deletions", partial(self.ledger.erase, producer, keys[first : first + _CHUNK]))
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

    def _report(self, limit: Horizon | None, pruning: Pruning, *, dry_run: bool) -> Pruned:
        return Pruned(
            self.ledger.pipeline,
            None if limit is None else _moment(limit.before),
            len(pruning.windows),
            len(pruning.works) + len(pruning.plans),
            min(pruning.windows, default=""),
            max(pruning.windows, default=""),
            tuple(pruning.unfinished[:_NAMES]),
            len(pruning.unfinished),
            pruning.letters,
            tuple(pruning.kept[:_NAMES]),
            dry_run,
        )


def _moment(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)
