"""The control topic: the orders of live agents' rollouts, and signs of life of their members.

Orders are written by compare and set. Who holds a partition doesn't lie here but beside the position itself (see ``routes``): what is lost
of this topic delays a rollout and breaks nothing.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterable
from typing import cast

import msgspec
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from factory_agents import failpoints
from factory_agents.errors import ConfigurationError, DeadlineError, FencedError, UnavailableError
from factory_agents.kafka.config import KafkaConfig, connect, is_transient, kafka_error, unauthorized
from factory_agents.kafka.ledger import LEDGER_PARTITIONS, LEDGER_SETTINGS, partition_of
from factory_agents.kafka.messages import Message
from factory_agents.kafka.routes import Route
from factory_agents.kafka.topics import Cluster
from factory_agents.protocol import transactional_id
from factory_agents.telemetry import fields

__all__ = ["Control", "Member", "control_topic"]

log = logging.getLogger(__name__)

_LOOK_SECONDS = 5.0
_ORDER_MS = 10_000  # an order's transaction lasts milliseconds; a killed writer's hides later ones for so long at most


class Member(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a member last said of itself: counts and seconds are of the last window of its judge (``records`` handled, ``errors``…).

    ``code`` tells one agent's code from another under the same version, ``busy`` is for how long it has been at one call.
    """

    group: str
    version: str
    id: str
    code: str = ""
    held: tuple[int, ...] = ()
    records: int = 0
    errors: int = 0
    rejected: int = 0
    seconds: float = 0.0
    waiting: float = 0.0
    span: float = 0.0
    asked: int = 0
    tokens: int = 0
    nanocost: int = 0
    lag: int = 0
    busy: float = 0.0
    breakers: dict[str, str] = {}
    host: str = ""
    at: float = 0.0


def control_topic(prefix: str) -> str:
    """The control topic's name for a prefix: ``factory.control`` by default."""
    return f"{prefix}.control"


class Control:
    """One group's part of the control topic: followed without waiting (``tail``), or read to its end (``catch_up``).

    ``route`` is the newest order, None where there is none; ``members`` what each member said last, by its id. ``is_lost``: the topic is
    another one than before, and may lack the newest order.
    """

    def __init__(self, config: KafkaConfig, cluster: Cluster, *, prefix: str, group: str) -> None:
        self._config, self._cluster, self._prefix = config, cluster, prefix
        self.topic, self.group = control_topic(prefix), group
        self._partition = partition_of(group.encode())
        self._topic_id = ""
        self._position = 0
        self._is_answered = False
        self._stored = 0
        self._look_at = 0.0
        self._passed: set[int] = set()
        self._consumer: Consumer = config.consumer(auto_offset_reset="earliest")
        self._producer: Producer | None = None
        self._refused: KafkaError | None = None
        self.route: Route | None = None
        self.is_lost = False
        self.members: dict[str, Member] = {}
        self._heard: dict[str, float] = {}
        self._is_current = False

    def close(self) -> None:
        """Disconnect."""
        self._consumer.close()
        if self._producer is not None:
            self._producer.flush(1.0)

    def ensure(self) -> None:
        """Create the topic where there is none."""
        facts = self._cluster.ensure(self.topic, LEDGER_PARTITIONS, settings=LEDGER_SETTINGS)
        if facts.partitions < LEDGER_PARTITIONS:
            raise ConfigurationError(f"topic {self.topic!r} has {facts.partitions} partitions, rollouts need {LEDGER_PARTITIONS}")

    @property
    def exists(self) -> bool:
        """Whether anybody has made the topic."""
        return self._cluster.find(self.topic) is not None

    def tail(self) -> bool:
        """Take what has come since; whether there was anything. Waits for nobody.

        Raises ConfigurationError where the user may not read here, or may not say what it said.
        """
        self.settle(0.0)
        if time.monotonic() >= self._look_at:
            try:
                self._look()
            except UnavailableError as error:
                log.info("the control topic cannot be looked at now", extra=fields(topic=self.topic, reason=str(error)))
        return self._take(0.0)

    def _look(self) -> None:
        """Begin again where the topic is another one: what was said in the former one is remembered until something else is said."""
        self._look_at = time.monotonic() + _LOOK_SECONDS
        found = self._cluster.find(self.topic)
        if found is None or found.id == self._topic_id:
            return
        if self._topic_id:
            log.warning("the control topic was deleted and created again", extra=fields(topic=self.topic))
            self.is_lost = True
        self._topic_id, self._position, self._stored, self._is_answered = found.id, 0, 0, False
        self._consumer.assign([TopicPartition(self.topic, self._partition, 0)])

    def _take(self, wait: float) -> bool:
        came = False
        for message in cast("list[Message]", self._consumer.consume(1_000, wait)):
            error = message.error()
            self._is_answered |= error is None or error.code() == KafkaError._PARTITION_EOF
            if error is None:
                self._position = message.offset() + 1
                self._read(message.key() or b"", message.value(), message.timestamp()[1] / 1000)
                came = True
            elif error.code() == KafkaError._PARTITION_EOF:
                self._position = max(self._position, message.offset())
            elif error.code() in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.OFFSET_OUT_OF_RANGE, KafkaError._AUTO_OFFSET_RESET):
                self._look_at = 0.0
            elif not is_transient(error):
                raise kafka_error(error, f"reading {self.topic}", topic=f"READ on topic {self.topic!r}")
        return came

    def _read(self, key: bytes, value: bytes | None, at: float) -> None:
        kind, _, rest = key.decode(errors="replace").partition("|")
        group, _, what = rest.partition("|")
        if group != self.group:
            return
        try:
            if kind == "route" and value is not None:
                route = msgspec.json.decode(value, type=Route)
                self._stored = max(self._stored, route.epoch)
                if self.route is None or route.epoch >= self.route.epoch:
                    self.route = route
            elif kind == "passed" and value is not None:
                self._passed.add(int(what))
            elif kind == "member" and value is None:
                self.members.pop(what, None)
            elif kind == "member" and value is not None:
                old = 0.0 if self._is_current else max(0.0, time.time() - at)
                self._heard[what] = time.monotonic() - old
                self.members[what] = msgspec.structs.replace(msgspec.json.decode(value, type=Member), at=at)
        except (msgspec.MsgspecError, ValueError) as error:
            log.warning(
                "a record that this release can't read", extra=fields(topic=self.topic, key=key.decode(errors="replace"), why=str(error))
            )

    def catch_up(self, deadline: float) -> Route | None:
        """Read to the end of now, waiting for open transactions, and return the newest order.

        Raises DeadlineError past the deadline, UnavailableError where no broker answers: nobody takes that for a group without versions;
        and ConfigurationError where the user may not read here, even if there is nothing to read.
        """
        self._look_at = 0.0
        self._look()
        if not self._topic_id:
            return None
        end = self._cluster.high_watermark(self.topic, [self._partition])[self._partition]
        while self._position < end or not self._is_answered:
            self._take(0.02)
            if time.monotonic() > deadline:
                raise DeadlineError(f"{self.topic}-{self._partition} could not be read to its end in time; is its broker up?")
        self._is_current = True
        return self.route

    def heard(self, seconds: float) -> list[Member]:
        """Members that gave a sign of life within so many seconds."""
        since = time.monotonic() - seconds
        return [m for m in self.members.values() if self._heard[m.id] >= since]

    def alive(self, version: str, seconds: float) -> list[Member]:
        """Those of one version among them."""
        return [m for m in self.heard(seconds) if m.version == version]

    def forget_silent(self, seconds: float) -> None:
        """Members that died without a word, and so long ago, are not there any more."""
        before = time.monotonic() - seconds
        for member in [id_ for id_ in self.members if self._heard[id_] < before]:
            del self.members[member]
            self.forget(member)

    def take_passed(self) -> set[int]:
        """Partitions that changed hands since this was asked the last time."""
        passed, self._passed = self._passed, set()
        return passed

    def order(self, change: Callable[[Route | None], Route | None], *, timeout: float = 30.0) -> Route | None:
        """Write the order that ``change`` makes of the newest one, unless another one came between: then ``change`` is asked again.

        It returns None, or what it was given, to leave things as they are. Returns the newest order.
        """
        deadline = time.monotonic() + timeout
        lost = 0
        while True:
            done, route = self._try(change, deadline)
            if done:
                return route
            if time.monotonic() > deadline:
                raise DeadlineError(f"group {self.group!r}: others kept giving orders for {timeout:.0f} s; try again")
            lost += 1
            time.sleep(random.uniform(0.01, 0.05 * min(2**lost, 20)))

    def _try(self, change: Callable[[Route | None], Route | None], deadline: float) -> tuple[bool, Route | None]:
        self.ensure()
        id_ = transactional_id(self._prefix, "route", self.group)
        producer = self._config.producer(id_, transaction_timeout_ms=_ORDER_MS, linger_ms=0)
        connect(producer, self.topic)
        try:
            producer.init_transactions(max(1.0, deadline - time.monotonic()))
            before = self.catch_up(deadline)
            route = change(before)
            if route is None or (route == before and route.epoch == self._stored):
                self.is_lost = False
                return True, before
            producer.begin_transaction()
            producer.produce(self.topic, msgspec.json.encode(route), f"route|{self.group}".encode(), partition=self._partition)
            producer.flush(max(1.0, deadline - time.monotonic()))
            failpoints.hit("order.before-commit")
            producer.commit_transaction(max(1.0, deadline - time.monotonic()))
        except KafkaException as error:
            failure = kafka_error(
                error,
                f"giving an order to group {self.group!r}",
                topic=f"WRITE on topic {self.topic!r}",
                transactional_id=f"WRITE on transactional id {id_!r}",
            )
            if isinstance(failure, FencedError) or (error.args[0].txn_requires_abort() and not unauthorized(error)):
                return False, None
            raise failure from error
        finally:
            del producer
        self.route, self.is_lost = route, False
        return True, route

    def tell_passed(self, partitions: Iterable[int]) -> None:
        """Have who waits for these partitions look: they changed hands."""
        self._say({f"passed|{self.group}|{p}": b"1" for p in partitions})

    def tell(self, member: Member) -> None:
        """Give a sign of life."""
        said = msgspec.structs.replace(member, at=round(time.time(), 3))
        self._say({f"member|{self.group}|{member.id}": msgspec.json.encode(said)})

    def forget(self, member: str) -> None:
        """A member is not there any more."""
        self._say({f"member|{self.group}|{member}": None})

    def settle(self, seconds: float) -> None:
        """Wait at most so long until what was said has arrived. Raises ConfigurationError where the user may not say it."""
        if self._producer is not None:
            self._producer.flush(seconds)
        if self._refused is not None:
            raise kafka_error(self._refused, f"writing to {self.topic}", topic=f"WRITE on topic {self.topic!r}")

    def _say(self, records: dict[str, bytes | None]) -> None:
        if self._producer is None:
            self._producer = self._config.plain_producer()
        for key, value in records.items():
            try:
                self._producer.produce(self.topic, value, key.encode(), partition=self._partition, on_delivery=self._said)
            except (BufferError, KafkaException) as error:
                log.info("nothing can be said in the control topic now", extra=fields(topic=self.topic, reason=str(error)))
        self._producer.poll(0)

    def _said(self, error: KafkaError | None, _: object) -> None:
        if error is not None and unauthorized(error):
            self._refused = error
