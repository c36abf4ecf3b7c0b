"""Facts about topics that exist: identity, partitions, offsets, settings; and creating those that don't."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Set
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from functools import partial
from typing import Any, Self, TypeVar

from confluent_kafka import (
    OFFSET_INVALID,
    Consumer,
    ConsumerGroupState,
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import (
    AclOperation,
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    NewTopic,
    OffsetSpec,
    ResourceType,
)

from factory_agents.errors import ConfigurationError, UnavailableError, WindowError
from factory_agents.kafka.config import NOT_NOW, KafkaConfig, kafka_error, message_error, unauthorized
from factory_agents.text import did_you_mean

__all__ = ["Cluster", "GroupInfo", "TopicInfo", "check_window_topic"]

_WEEK_MS = 7 * 24 * 3600 * 1000
_TIMEOUT = 15.0
_COORDINATOR_SECONDS = 3600.0
"""How long librdkafka tries to ask a group's coordinator; we stop waiting before that.

When it gives up by itself and the coordinator answers after all, an assertion in it (2.16) ends the whole process.
"""
_DEAF_SECONDS = 5.0
_FIRST_SECONDS = 2.0
"""How long a client is waited for before another one is asked, which is waited for twice as long."""
_LEAST_SECONDS = 0.5
_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 1.0  # after an answer that says "not now"
_SOON_SECONDS = 0.2  # for which a client that gets such answers is kept
_KEPT_ONLOOKERS = 8  # groups whose consumer is kept
_SPREAD_SECONDS = 2.0
"""How long a topic that no broker asked has heard of is looked for, where the controller may not be asked."""
_SHOWN_SECONDS = 10.0  # at most, until a broker shows settings that were altered
_Answer = TypeVar("_Answer")

_NO_ANSWER = (KafkaException, FutureTimeoutError, TimeoutError)

_REFUSED = {KafkaError._AUTHENTICATION, KafkaError.SASL_AUTHENTICATION_FAILED}
_UNAUTHORIZED = {KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED}
_UNANSWERED = {
    KafkaError._TIMED_OUT,
    KafkaError._TRANSPORT,
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._TIMED_OUT_QUEUE,
    KafkaError._DESTROY,  # another thread has given this client up
    KafkaError._DESTROY_BROKER,  # the broker is not in the cluster any more
    KafkaError._WAIT_COORD,
}
_PASSING = _UNANSWERED | NOT_NOW | {KafkaError._NOENT}
"""``_NOENT``: no leaders were found. A client that knows an older leader may get such answers for minutes."""


@dataclass(frozen=True)
class TopicInfo:
    """A topic's name, id (new when it is recreated), number of partitions and of replicas of each (the fewest).

    ``away`` are the partitions that have no leader now: nobody can say anything about them.
    """

    name: str
    id: str
    partitions: int
    replication: int = 0
    away: frozenset[int] = frozenset()


@dataclass(frozen=True)
class GroupInfo:
    """A consumer group's name, how many members it has now, what they are assigned, and their clients' and their own ids."""

    name: str
    members: int
    assigned: frozenset[tuple[str, int]]
    clients: frozenset[str] = frozenset()
    member_ids: frozenset[str] = frozenset()


class Cluster:
    """Questions to one cluster, each answered or refused with one clear line. Holds its clients until ``close``; thread-safe.

    A topic that was created a moment ago is found: brokers learn of it one after the other, so one that doesn't know a topic yet is asked
    again for as long as the controller has it.
    """

    def __init__(self, config: KafkaConfig, *, timeout: float = _TIMEOUT) -> None:
        self._config = config
        self._timeout = timeout
        self._admin: AdminClient | None = None
        self._turn = 0
        self._refused: list[KafkaError] = []
        self._onlookers: dict[str, Consumer] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def admin(self) -> AdminClient:
        """The admin client, made on first use."""
        admin = self._admin  # another thread may give it up meanwhile
        if admin is None:
            with self._lock:
                # a callback that knew this object would keep the client, its threads and its sockets until the next garbage collection
                admin = self._admin = self._admin or self._config.admin(error_cb=partial(_note_refusal, self._refused))
        return admin

    def close(self) -> None:
        """Let the clients go, with their threads and sockets; a later question makes new ones."""
        self._admin = None
        with self._lock:
            onlookers, self._onlookers = self._onlookers, {}
        for onlooker in onlookers.values():
            onlooker.close()

    def _wait(self, future: Any, seconds: float | None = None) -> Any:
        """A future's result; what refuses us (a wrong password) is raised as soon as it is known, not when the request times out."""
        until = time.monotonic() + (self._timeout + 5 if seconds is None else seconds)
        while True:
            try:
                return future.result(0.2)
            except KafkaException as error:
                # the future keeps its error, which would keep who asked for it, this cluster and its client
                raise KafkaException(error.with_traceback(None).args[0]) from None
            except (FutureTimeoutError, TimeoutError):
                self.admin.poll(0)
                if self._refused:
                    raise KafkaException(self._refused[-1]) from None
                if time.monotonic() > until:
                    raise

    def _answered(self, ask: Callable[[float], _Answer], passing: Set[int] = frozenset()) -> _Answer:
        """Ask for so many seconds, and again, mostly by a new client, where there is no answer yet; only what may be asked twice.

        A client asks the broker that it takes for the controller, or for a partition's leader. Where that one dies it asks no other until
        it looks at the cluster again, which it does after minutes. (No client is a variable here: an error that is kept would keep it, with
        its threads and its sockets.) ``passing`` are more errors than usual after which it is asked again.
        """
        began = time.monotonic()
        deadline, patience, pause = began + self._timeout, _FIRST_SECONDS, _FIRST_PAUSE
        while True:
            turn, asked_at = self._turn, time.monotonic()
            seconds = max(_LEAST_SECONDS, min(patience, deadline - asked_at))
            try:
                return ask(seconds)
            except _NO_ANSWER as error:
                code, now = _code(error), time.monotonic()
                if code not in _PASSING | passing or now > deadline - _LEAST_SECONDS:
                    raise
            if code in _UNANSWERED or now > began + _SOON_SECONDS:
                self._replace(turn)
            if now >= asked_at + seconds:
                patience *= 2
            else:
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)

    def _replace(self, turn: int) -> None:
        """Ask by another client from now on, unless somebody has seen to that."""
        if self._turn == turn:
            self._turn, self._admin = turn + 1, None

    def _asked_of(self, doing: str, ask: Callable[[float], _Answer], passing: Set[int] = frozenset(), **needed: str) -> _Answer:
        try:
            return self._answered(ask, passing)
        except _NO_ANSWER as error:
            raise self._failed(error, doing, **needed) from error

    def _result(self, future: Any, doing: str, **needed: str) -> Any:
        try:
            return self._wait(future)
        except _NO_ANSWER as error:
            raise self._failed(error, doing, **needed) from error

    def _failed(self, error: Exception, doing: str, **needed: str) -> Exception:
        """Ours for a question that failed; ``needed`` as for ``kafka_error``."""
        if isinstance(error, KafkaException) and error.args[0].code() not in _UNANSWERED:
            return kafka_error(error, doing, **needed)
        return self._unreachable(doing)

    def _unreachable(self, doing: str) -> Exception:
        """Tell a wrong password from a broker that is down: librdkafka reports both as a time-out of the request."""
        reason = _connection_error(self._config)
        if reason is not None:
            return kafka_error(reason, f"{doing} at {self._config.bootstrap}")
        return UnavailableError(
            f"{doing}: no broker answered at {self._config.bootstrap} within {self._timeout:.0f} s; is it up, is the address right?"
        )

    def topic(self, name: str) -> TopicInfo:
        """A topic's facts; ConfigurationError where there is none."""
        found = self.find(name)
        if found is None:
            unknown = message_error(KafkaError.UNKNOWN_TOPIC_OR_PART, "", "", f"topic {name!r}")
            raise ConfigurationError(f"{unknown}{self._near(name)}")
        return found

    def _near(self, name: str) -> str:
        try:
            return did_you_mean(name, self._listed(), 0.8)
        except _NO_ANSWER:
            return ""

    def not_writable(self, names: Iterable[str]) -> list[str]:
        """Those of these topics that the user may not write to, or not even look at; none where no broker says."""
        wanted = TopicCollection(sorted(names))

        def ask(seconds: float) -> list[str]:
            futures = self.admin.describe_topics(wanted, include_authorized_operations=True, request_timeout=seconds)
            return [name for name, future in futures.items() if not self._may_write(future, seconds + 1)]

        try:
            return self._answered(ask)
        except _NO_ANSWER:
            return []

    def _may_write(self, future: Any, seconds: float) -> bool:
        try:
            return AclOperation.WRITE in (self._wait(future, seconds).authorized_operations or ())
        except KafkaException as error:
            if unauthorized(error):
                return False
            raise

    def topics(self, names: Iterable[str]) -> dict[str, TopicInfo]:
        """Several topics' facts; ConfigurationError naming the first that does not exist."""
        return {name: self.topic(name) for name in names}

    def find(self, name: str) -> TopicInfo | None:
        """A topic's facts, or None where there is none."""

        try:
            return self._spread(name, lambda: self._answered(partial(self._describe, name)))
        except _NO_ANSWER as error:
            if _is_unknown(error):
                return None
            raise self._failed(error, f"topic {name!r}", topic=f"DESCRIBE on topic {name!r}") from error

    def _describe(self, name: str, seconds: float) -> TopicInfo:
        return _facts(name, self._wait(self.admin.describe_topics(TopicCollection([name]), request_timeout=seconds)[name], seconds + 1))

    def _spread(self, topic: str, ask: Callable[[], _Answer]) -> _Answer:
        """Ask about one topic, again while the broker that answers doesn't know it and the controller does."""
        began = time.monotonic()
        patience: float | None = None
        while True:
            try:
                return ask()
            except KafkaException as error:
                if not _is_unknown(error):
                    raise
                patience = self._patience(topic) if patience is None else patience
                if time.monotonic() > began + patience:
                    if patience == self._timeout:
                        raise UnavailableError(
                            f"topic {topic!r} exists, but a broker has not heard of it in {patience:.0f} s; is it behind the controller?"
                        ) from error
                    raise
            time.sleep(0.02)

    def _patience(self, topic: str) -> float:
        """Seconds for which it is worth asking for a topic again.

        Only the controller knows for certain what there is: it is asked to validate the topic's creation, which creates nothing.
        """

        def ask(seconds: float) -> None:
            self._wait(self.admin.create_topics([NewTopic(topic, 1)], request_timeout=seconds, validate_only=True)[topic], seconds + 1)

        try:
            self._answered(ask)
        except KafkaException as error:
            code = error.args[0].code()
            if code == KafkaError.TOPIC_ALREADY_EXISTS:
                return self._timeout
            return _SPREAD_SECONDS if code in _UNAUTHORIZED | _UNANSWERED else 0.0
        except (FutureTimeoutError, TimeoutError):
            return _SPREAD_SECONDS
        return 0.0

    def _offsets(self, topic: str, partitions: Iterable[int], spec: OffsetSpec, isolation: IsolationLevel) -> dict[int, tuple[int, int]]:
        wanted = {TopicPartition(topic, p): spec for p in partitions}
        found: dict[int, tuple[int, int]] = {}
        unsettled = {KafkaError.UNKNOWN_TOPIC_OR_PART}  # as it is shortly after a topic was created

        def ask(seconds: float) -> None:
            """Those that are not found yet."""
            until, failed = time.monotonic() + seconds + 1, list[Exception]()
            for tp, future in self.admin.list_offsets(wanted, isolation_level=isolation, request_timeout=seconds).items():
                try:
                    info = self._wait(future, until - time.monotonic())
                    if info.offset == OFFSET_INVALID:  # of a leader that died meanwhile, without an error (librdkafka 2.16)
                        raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
                    found[tp.partition] = (info.offset, info.timestamp)
                    del wanted[tp]
                except _NO_ANSWER as error:
                    failed.append(error)
            try:
                if failed:
                    raise max(failed, key=lambda error: _code(error) not in _PASSING | unsettled)
            finally:
                failed.clear()  # an error would keep itself, and this cluster

        if wanted:
            self._asked_of(f"offsets of topic {topic!r}", ask, unsettled, topic=f"DESCRIBE on topic {topic!r}")
        return found

    def log_start(self, topic: str, partitions: Iterable[int]) -> dict[int, int]:
        """The first offset still there, per partition."""
        return {p: o for p, (o, _) in self._offsets(topic, partitions, OffsetSpec.earliest(), IsolationLevel.READ_UNCOMMITTED).items()}

    def high_watermark(self, topic: str, partitions: Iterable[int]) -> dict[int, int]:
        """One past the last offset, open transactions included, per partition."""
        return {p: o for p, (o, _) in self._offsets(topic, partitions, OffsetSpec.latest(), IsolationLevel.READ_UNCOMMITTED).items()}

    def stable_offset(self, topic: str, partitions: Iterable[int]) -> dict[int, int]:
        """The last stable offset (one past what a committed reader may see), per partition."""
        return {p: o for p, (o, _) in self._offsets(topic, partitions, OffsetSpec.latest(), IsolationLevel.READ_COMMITTED).items()}

    def at_time(self, topic: str, partitions: Iterable[int], ms: int) -> dict[int, tuple[int, int]]:
        """The timestamp index's answer for a time (milliseconds): offset and timestamp of the first record at or past it, per partition.

        ``(-1, -1)`` where there is none.
        """
        return self._offsets(topic, partitions, OffsetSpec.for_timestamp(ms), IsolationLevel.READ_UNCOMMITTED)

    def newest(self, topic: str, partitions: Iterable[int]) -> dict[int, tuple[int, int]]:
        """Offset and time (milliseconds) of the record with the greatest time, per partition; ``(-1, -1)`` where there is none."""
        return self._offsets(topic, partitions, OffsetSpec.max_timestamp(), IsolationLevel.READ_UNCOMMITTED)

    def settings(self, topic: str) -> dict[str, str]:
        """A topic's configuration, defaults included."""
        resource = ConfigResource(ResourceType.TOPIC, topic)

        def ask(seconds: float) -> dict[str, ConfigEntry]:
            found: dict[str, ConfigEntry] = self._wait(
                self.admin.describe_configs([resource], request_timeout=seconds)[resource], seconds + 1
            )
            return found

        try:
            entries = self._spread(topic, lambda: self._answered(ask))
        except _NO_ANSWER as error:
            raise self._failed(error, f"settings of topic {topic!r}", topic=f"DESCRIBE_CONFIGS on topic {topic!r}") from error
        return {name: entry.value or "" for name, entry in entries.items()}

    def group(self, name: str) -> GroupInfo | None:
        """A consumer group's facts, or None where it has neither members nor committed offsets."""
        described = self._asked(
            name,
            lambda patience: self._wait(self.admin.describe_consumer_groups([name], request_timeout=_COORDINATOR_SECONDS)[name], patience),
            f"consumer group {name!r}",
        )
        assigned = frozenset(
            (tp.topic, tp.partition) for m in described.members for tp in (m.assignment.topic_partitions if m.assignment else ())
        )
        if described.state == ConsumerGroupState.DEAD and not described.members:
            return None
        members = described.members
        return GroupInfo(name, len(members), assigned, frozenset(m.client_id for m in members), frozenset(m.member_id for m in members))

    def groups(self) -> list[str]:
        """The names of all consumer groups."""
        listed: Any = None

        def ask(seconds: float) -> None:
            nonlocal listed
            listed = self._wait(self.admin.list_consumer_groups(request_timeout=seconds), seconds + 1)
            for error in listed.errors:  # of one broker each
                raise error if isinstance(error, KafkaException) else KafkaException(error)

        try:
            self._answered(ask)
        except _NO_ANSWER as error:
            if listed is None:
                raise self._failed(error, "listing consumer groups") from error
        return sorted(g.group_id for g in listed.valid)

    def committed(self, group: str, topics: Iterable[str] | None = None) -> dict[tuple[str, int], int]:
        """The offsets that a group has committed on topics (None: all there are), by topic and partition. Joins nothing, changes nothing.

        A consumer asks, not the admin client: that one's question ends the whole process where the coordinator moved (librdkafka 2.16).
        """
        sizes = self.sizes() if topics is None else {name: facts.partitions for name, facts in self.topics(topics).items()}
        return self.positions(group, sizes)

    def positions(self, group: str, sizes: Mapping[str, int]) -> dict[tuple[str, int], int]:
        """As ``committed``, of topics whose numbers of partitions are known: one question to the group's coordinator, and no other."""
        found = self.stands(group, sizes)
        return {(tp.topic, tp.partition): tp.offset for tp in found if tp.offset >= 0}

    def stands(self, group: str, sizes: Mapping[str, int]) -> list[TopicPartition]:
        """As ``positions``, each with the metadata beside it, and with a negative offset where the group has committed none."""
        wanted = [TopicPartition(name, p) for name, size in sizes.items() for p in range(size)]
        return self._asked(group, lambda patience: self._stands(group, wanted, patience), f"offsets of consumer group {group!r}")

    def _stands(self, group: str, wanted: list[TopicPartition], patience: float) -> list[TopicPartition]:
        """A group's committed offsets, by a consumer that is kept for the next time: to make one takes some milliseconds."""
        with self._lock:
            onlooker = self._onlookers.pop(group, None) or self._config.onlooker(group)
        try:
            found: list[TopicPartition] = onlooker.committed(wanted, timeout=patience)
            for tp in found:
                if tp.error is not None:
                    raise KafkaException(tp.error)
        except BaseException:
            onlooker.close()
            raise
        with self._lock:
            spare = [] if self._onlookers.setdefault(group, onlooker) is onlooker else [onlooker]
            while len(self._onlookers) > _KEPT_ONLOOKERS:
                spare.append(self._onlookers.pop(next(iter(self._onlookers))))
        for other in spare:
            other.close()
        return found

    def sizes(self) -> dict[str, int]:
        """The number of partitions of every topic but Kafka's own."""
        try:
            known = self._listed()
        except _NO_ANSWER as error:
            raise self._failed(error, "listing topics") from error
        return {name: len(found.partitions) for name, found in known.items() if not name.startswith("__")}

    def _listed(self) -> dict[str, Any]:
        return self._answered(lambda seconds: self.admin.list_topics(timeout=seconds).topics)

    def _asked(self, group: str, ask: Callable[[float], _Answer], doing: str) -> _Answer:
        """Ask a group's coordinator for so many seconds, again while it moves or loads, and by a new client where this one gets no answer.

        A client that once found no coordinator may stay deaf: it asks nobody any more.
        """
        deadline = time.monotonic() + self._timeout
        while True:
            turn = self._turn
            try:
                return ask(min(_DEAF_SECONDS, self._timeout / 2, max(0.0, deadline - time.monotonic())))
            except _NO_ANSWER as error:
                refused = isinstance(error, KafkaException) and error.args[0].code() not in _PASSING
                if refused or time.monotonic() > deadline:
                    raise self._failed(error, doing, group=f"DESCRIBE on group {group!r}") from error
                if not isinstance(error, KafkaException):
                    self._replace(turn)
            time.sleep(0.05)

    def broker_setting(self, name: str, default: str) -> str:
        """One setting of a broker (any), or the default where it may not be read."""
        try:
            nodes = itertools.cycle(self._nodes())  # one of them may be gone

            def ask(seconds: float) -> dict[str, ConfigEntry]:
                resource = ConfigResource(ResourceType.BROKER, str(next(nodes).id))
                found: dict[str, ConfigEntry] = self._wait(
                    self.admin.describe_configs([resource], request_timeout=seconds)[resource], seconds + 1
                )
                return found

            entry = self._asked_of("broker settings", ask).get(name)
        except ConfigurationError:
            return default
        return entry.value if entry is not None and entry.value is not None else default

    def ensure(self, name: str, partitions: int, *, settings: Mapping[str, str] | None = None) -> TopicInfo:
        """A topic's facts; it is created first where there is none."""
        found = self.find(name)
        if found is None:
            self.create(name, partitions, settings=settings)
            found = self.topic(name)
        return found

    def create(self, name: str, partitions: int, *, replication: int = -1, settings: Mapping[str, str] | None = None) -> bool:
        """Create a topic; False where it is there already, whoever created it. Returns when its metadata can be read.

        Of a topic deleted a moment ago, a broker may still show what was: that is waited out, or what is written next goes the way of it.
        """
        shown = self._shown_now(name)
        wanted = NewTopic(name, partitions, replication, config=dict(settings or {}))
        asked = itertools.count()
        patience = self._timeout

        def ask(seconds: float) -> None:
            nonlocal patience
            again = next(asked)
            try:
                self._wait(self.admin.create_topics([wanted], request_timeout=seconds, operation_timeout=seconds)[name], seconds + 1)
            except KafkaException as error:
                if not again or _code(error) != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise
                patience = _SPREAD_SECONDS  # it was created, and the answer did not come; or what was shown is not deleted, but another's

        try:
            self._answered(ask)
        except _NO_ANSWER as error:
            if _code(error) != KafkaError.TOPIC_ALREADY_EXISTS:
                needed = f"CREATE on topic {name!r} (or on the cluster)"
                raise self._failed(error, f"creating topic {name!r}", topic=needed, cluster=needed) from error
            return False
        deadline = time.monotonic() + patience
        while self.topic(name).id == shown != "":
            if time.monotonic() > deadline:
                if patience < self._timeout:
                    return False
                raise UnavailableError(
                    f"topic {name!r} was created, but a broker shows the deleted one of that name ({shown}) after {self._timeout:.0f} s; "
                    f"is it behind the controller?"
                )
            time.sleep(0.02)
        return True

    def _shown_now(self, name: str) -> str:
        """The id of the topic that a broker shows at this moment; empty where it shows none."""
        try:
            return self._answered(partial(self._describe, name)).id
        except _NO_ANSWER:
            return ""

    def brokers(self) -> int:
        """How many brokers the cluster has now."""
        return len(self._nodes())

    def _nodes(self) -> list[Any]:
        def ask(seconds: float) -> list[Any]:
            found: list[Any] = self._wait(self.admin.describe_cluster(request_timeout=seconds), seconds + 1).nodes
            return found

        return self._asked_of("describing the cluster", ask)

    def add_partitions(self, name: str, total: int) -> None:
        """Give a topic more partitions, ``total`` in all; records of one key may lie in two partitions afterwards."""
        asked = itertools.count()

        def ask(seconds: float) -> None:
            again = next(asked)
            future = self.admin.create_partitions([NewPartitions(name, total)], request_timeout=seconds)[name]
            try:
                self._wait(future, seconds + 1)
            except KafkaException as error:
                if not again or _code(error) != KafkaError.INVALID_PARTITIONS or self._describe(name, seconds).partitions != total:
                    raise  # else it was done, and the answer did not come

        self._asked_of(f"adding partitions to topic {name!r}", ask, topic=f"ALTER on topic {name!r}")

    def delete_before(self, name: str, offsets: Mapping[int, int]) -> None:
        """Delete a topic's records before an offset of each partition. Raises ConfigurationError where it may not be done."""
        places = [TopicPartition(name, p, offset) for p, offset in offsets.items()]

        def ask(seconds: float) -> None:
            for future in self.admin.delete_records(places, request_timeout=seconds, operation_timeout=seconds).values():
                self._wait(future, seconds + 1)

        if places:
            self._asked_of(f"deleting records of topic {name!r}", ask, topic=f"DELETE on topic {name!r}")

    def alter(self, name: str, settings: Mapping[str, str]) -> None:
        """Set some of a topic's settings and leave the others. Who asks afterwards is told of them: a broker may be a moment behind."""
        entries = [ConfigEntry(k, v, incremental_operation=AlterConfigOpType.SET) for k, v in settings.items()]
        resource = ConfigResource(ResourceType.TOPIC, name, incremental_configs=entries)
        self._asked_of(
            f"altering topic {name!r}",
            lambda seconds: self._wait(self.admin.incremental_alter_configs([resource], request_timeout=seconds)[resource], seconds + 1),
            topic=f"ALTER_CONFIGS on topic {name!r}",
        )
        until = time.monotonic() + _SHOWN_SECONDS
        with contextlib.suppress(ConfigurationError):  # whoever may alter settings need not be one who may read them
            while not settings.items() <= self.settings(name).items() and time.monotonic() < until:
                time.sleep(0.05)


def _note_refusal(refused: list[KafkaError], error: KafkaError) -> None:
    if error.code() in _REFUSED:
        refused.append(error)


def _is_unknown(error: BaseException | None) -> bool:
    return isinstance(error, KafkaException) and error.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART


def _facts(name: str, described: Any) -> TopicInfo:
    partitions = described.partitions
    away = frozenset(p.id for p in partitions if p.leader is None or p.leader.id < 0)
    return TopicInfo(name, str(described.topic_id), len(partitions), min((len(p.replicas) for p in partitions), default=0), away)


def _code(error: BaseException) -> int:
    return int(error.args[0].code()) if isinstance(error, KafkaException) else KafkaError._TIMED_OUT


def _connection_error(config: KafkaConfig) -> KafkaError | None:
    """Why a connection fails, where librdkafka knows it: authentication or TLS."""
    reasons: list[KafkaError] = []
    consumer = config.consumer(error_cb=reasons.append)
    try:
        consumer.list_topics(timeout=2.0)
    except KafkaException:
        consumer.poll(0)
    finally:
        consumer.close()
    for reason in reasons:
        if reason.code() in (KafkaError._AUTHENTICATION, KafkaError.SASL_AUTHENTICATION_FAILED, KafkaError._SSL):
            return reason
    return None


def check_window_topic(cluster: Cluster, topic: str) -> None:
    """Refuse a topic whose records may vanish from within a window: compacted before its retention is over."""
    settings = cluster.settings(topic)
    policy = {p.strip() for p in settings.get("cleanup.policy", "delete").split(",")} - {""}
    if "compact" not in policy:
        return
    retention = int(settings.get("retention.ms", "-1"))
    horizon = retention if retention > 0 else _WEEK_MS
    lag = int(settings.get("min.compaction.lag.ms", "0"))
    if "delete" not in policy or lag < horizon:
        raise WindowError(
            f"topic {topic!r}: cleanup.policy={','.join(sorted(policy))} with min.compaction.lag.ms={lag} may remove records from within "
            f"a window; use delete, or compact,delete with min.compaction.lag.ms of at least {horizon}"
        )
