"""Typed Kafka connection settings: every librdkafka key passes, mistyped ones are refused, secrets are masked."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient

from factory_agents.errors import ConfigurationError, FactoryError, FencedError, UnavailableError
from factory_agents.kafka.oauth import CALLBACK, token_source
from factory_agents.text import did_you_mean

__all__ = [
    "LARGEST_MESSAGE",
    "NOT_NOW",
    "KafkaConfig",
    "connect",
    "is_secret",
    "is_transient",
    "kafka_error",
    "message_error",
    "unauthorized",
]

_Client = TypeVar("_Client")

LARGEST_MESSAGE = 16_777_216
"""``message.max.bytes`` unless it is set: the most that a producer of ours puts into a record."""

_SECRETS = ("password", "secret", ".key", "key.pem", "pem", "jaas", "token", "credentials", "userinfo", "oauthbearer.config")
_RESERVED = {
    "enable.auto.commit": "offsets are committed with the outputs",
    "isolation.level": "windows are read committed",
    "enable.partition.eof": "the end of a range is told by it",
    "auto.offset.reset": "a missing offset is an error, never a jump",
    "transactional.id": "it is derived from pipeline, stage, window and shard",
    "enable.idempotence": "transactions need it",
}
_CALLBACKS = {"error_cb", "stats_cb", "on_delivery", "logger"}
_REFUSED_KEYS = {
    "default.topic.config": "its keys stand beside all others nowadays",
    **dict.fromkeys(
        (
            *("error_cb", "throttle_cb", "stats_cb", "log_cb", "dr_cb", "dr_msg_cb", "background_event_cb", "socket_cb", "connect_cb"),
            *("closesocket_cb", "open_cb", "resolve_cb", "ssl.certificate.verify_cb", "oauthbearer_token_refresh_cb", "rebalance_cb"),
            *("offset_commit_cb", "consume_cb", "partitioner_cb", "msg_order_cmp", "opaque", "on_commit", "on_delivery", "logger"),
        ),
        "it names a Python callback, which agents in processes of their own cannot call",
    ),
}
_ALIASES = {
    "bootstrap": "bootstrap.servers",
    "bootstrap_servers": "bootstrap.servers",
    "metadata.broker.list": "bootstrap.servers",
}


_NUMBERS = ("transaction.timeout.ms", "session.timeout.ms", "message.max.bytes", "fetch.max.bytes", "receive.message.max.bytes")
"""Keys that the factory reads itself, too."""


@lru_cache(maxsize=1024)
def _is_known(key: str) -> bool:
    """Whether librdkafka (the installed one, which is the authority) has a key of this name."""
    try:
        Consumer({"group.id": "factory-check", "log_level": 0, key: "\x00"}).close()
    except KafkaException as error:
        return "No such configuration property" not in str(error)
    except (TypeError, ValueError):
        return True
    return True


_COMMON = (
    "bootstrap.servers", "security.protocol", "sasl.mechanism", "sasl.mechanisms", "sasl.username", "sasl.password", "ssl.ca.location",
    "ssl.ca.pem", "ssl.certificate.location", "ssl.certificate.pem", "ssl.key.location", "ssl.key.pem", "ssl.key.password", "client.id",
    "group.id", "linger.ms", "compression.type", "compression.codec", "batch.size", "fetch.wait.max.ms", "transaction.timeout.ms",
    "message.max.bytes", "session.timeout.ms", "max.poll.interval.ms", "socket.timeout.ms", "statistics.interval.ms",
    "queue.buffering.max.messages", "fetch.min.bytes", "fetch.max.bytes",
)  # fmt: skip


def is_secret(key: str) -> bool:
    """Whether a setting of this name holds what nobody may see."""
    return any(word in key for word in _SECRETS) and not key.endswith(".location")


class _Settings(dict[str, Any]):
    """Settings that show themselves with their secrets masked."""

    def __repr__(self) -> str:
        return repr({key: "***" if is_secret(key) else value for key, value in self.items()})


def _check(key: str, where: str) -> str:
    key = _ALIASES.get(key, key)
    if key in _RESERVED:
        raise ConfigurationError(f"{where}: {key!r} is set by the factory ({_RESERVED[key]}); leave it out")
    if key in _REFUSED_KEYS:
        raise ConfigurationError(f"{where}: {key!r} cannot be used: {_REFUSED_KEYS[key]}")
    if key not in _COMMON and key != CALLBACK and not _is_known(key):
        raise ConfigurationError(f"{where}: unknown librdkafka key {key!r}{did_you_mean(key, _COMMON)}")
    return key


@dataclass(frozen=True)
class KafkaConfig:
    """How to reach a cluster. ``values`` are librdkafka's keys; what the factory itself must set is refused there.

    No connection is made before a client is asked for.
    """

    bootstrap: str
    values: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse an empty bootstrap, and what is no number."""
        if not self.bootstrap.strip():
            raise ConfigurationError("Kafka: no broker named; set KAFKA_BOOTSTRAP (host:port[,host:port]) or give --bootstrap")
        for key in _NUMBERS:
            if not (value := str(self.values.get(key, 0))).strip().isdecimal():
                raise ConfigurationError(f"Kafka at {self.bootstrap}: {key!r}: expected a whole number, got {value!r}")
        object.__setattr__(self, "values", _Settings(self.values))

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], *, where: str = "Kafka configuration") -> KafkaConfig:
        """From librdkafka keys (``bootstrap.servers`` among them).

        Raises ConfigurationError for keys that librdkafka doesn't know, and where no broker is named. Keys of consumer groups and the
        reserved ones that the official Airflow connection often carries (``group.id``, ``enable.auto.commit``, ``auto.offset.reset``) are
        for the caller to drop beforehand. A value of None leaves the key unset.
        """
        checked = _checked(values, where)
        bootstrap = checked.pop("bootstrap.servers", "")
        if not bootstrap.strip():
            raise ConfigurationError(f'{where}: it names no broker; set "bootstrap.servers": "host:port"')
        return cls(bootstrap, checked)

    @classmethod
    def from_env(
        cls,
        environ: Mapping[str, str] | None = None,
        *,
        bootstrap: str = "",
        overrides: Mapping[str, str] | None = None,
        defaults: Mapping[str, Any] | None = None,
        defaults_from: str = "Kafka configuration",
    ) -> KafkaConfig:
        """From flags, then ``KAFKA_BOOTSTRAP`` and ``KAFKA_CONFIG`` (a JSON object), then the file named by ``KAFKA_CONFIG_FILE``.

        The file holds a JSON object or ``key=value`` lines, as librdkafka's own tools read. ``defaults`` come last; ``defaults_from`` names
        them in errors.
        """
        env = os.environ if environ is None else environ
        values = _checked(defaults or {}, defaults_from)
        if path := env.get("KAFKA_CONFIG_FILE"):
            values.update(_read_file(Path(path)))
        if text := env.get("KAFKA_CONFIG"):
            values.update(_parse_object(text, "KAFKA_CONFIG"))
        if env.get("KAFKA_BOOTSTRAP"):
            values["bootstrap.servers"] = env["KAFKA_BOOTSTRAP"]
        for key, value in (overrides or {}).items():
            values[_check(key, "-X")] = value
        if bootstrap:
            values["bootstrap.servers"] = bootstrap
        return cls(values.pop("bootstrap.servers", ""), values)

    def __repr__(self) -> str:
        """Settings with secrets masked."""
        shown = ", ".join(f"{k}={'***' if is_secret(k) else v}" for k, v in sorted(self.values.items()))
        return f"KafkaConfig({self.bootstrap}{', ' + shown if shown else ''})"

    def to_env(self) -> dict[str, str]:
        """What a child process needs in its environment to read the same settings."""
        return {"KAFKA_BOOTSTRAP": self.bootstrap, "KAFKA_CONFIG": json.dumps(dict(self.values), sort_keys=True)}

    def client(self, **extra: Any) -> dict[str, Any]:
        """librdkafka's settings for one client; keywords stand for keys with dots as underscores."""
        settings = _Settings(
            {
                "bootstrap.servers": self.bootstrap,
                "log_level": 0,
                "socket.keepalive.enable": True,
                "reconnect.backoff.ms": 20,  # half of it passes before the first connection, too; it doubles up to reconnect.backoff.max.ms
                **self.values,
                **{k if k in _CALLBACKS else k.replace("_", "."): v for k, v in extra.items()},
            }
        )
        if tokens := token_source(self.bootstrap, self.values):
            settings[CALLBACK] = tokens
        return settings

    def admin(self, **extra: Any) -> AdminClient:
        """A new admin client; keep it until its futures are done."""
        return _make(AdminClient, self.client(**extra))

    def consumer(self, **extra: Any) -> Consumer:
        """A new consumer that reads committed records, commits nothing by itself and reports partition ends."""
        return _make(
            Consumer,
            {
                "group.id": "factory-window",
                "fetch.wait.max.ms": 20,
                "fetch.queue.backoff.ms": 10,
                "queued.min.messages": 50_000,
                "queued.max.messages.kbytes": 32_768,  # four times as much is no faster, and 100 MB larger
                **self.client(**extra),
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "isolation.level": "read_committed",
                "enable.partition.eof": True,
                "auto.offset.reset": extra.get("auto_offset_reset", "error"),
            },
        )

    def onlooker(self, group: str) -> Consumer:
        """A new consumer that only asks where a group stands: it reads and joins nothing."""
        return _make(Consumer, {**self.client(group_id=group), "enable.auto.commit": False, "isolation.level": "read_uncommitted"})

    def producer(self, transactional_id: str, **extra: Any) -> Producer:
        """A new transactional producer; ``init_transactions`` is the caller's."""
        return _make(
            Producer,
            {
                "linger.ms": 5,
                "compression.type": "lz4",
                "queue.buffering.max.messages": 500_000,
                "queue.buffering.max.kbytes": 131_072,
                "message.max.bytes": LARGEST_MESSAGE,
                **self.client(**extra),
                "transactional.id": transactional_id,
                "delivery.report.only.error": True,
            },
        )

    def plain_producer(self, **extra: Any) -> Producer:
        """A new producer without transactions, for what is said beside the work."""
        return _make(Producer, {"linger.ms": 0, **self.client(**extra), "enable.idempotence": True})


def connect(producer: Producer, topic: str) -> None:
    """Have a new client connected: ``init_transactions`` that comes before that waits half a second for its next try.

    It takes two questions about a topic that exists: the first one is answered by the bootstrap address, whose connection is then dropped.
    A broker that doesn't answer is for ``init_transactions`` to find.
    """
    with contextlib.suppress(KafkaException):
        for _ in range(2):
            producer.list_topics(topic, 1.0)


def _make(make: Callable[[dict[str, Any]], _Client], settings: dict[str, Any]) -> _Client:
    try:
        return make(settings)
    except KafkaException as error:
        raise ConfigurationError(f"Kafka client for {settings['bootstrap.servers']}: {error.args[0].str()}") from error


def _text(value: Any, key: str, where: str) -> str:
    if isinstance(value, dict | list):
        raise ConfigurationError(f"{where}: {key!r}: expected text, a number, true or false, got {type(value).__name__}")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _parse_object(text: str, where: str) -> dict[str, str]:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        # the text may hold a password: it is not quoted
        raise ConfigurationError(
            f"{where}: expected a JSON object of librdkafka keys, which it is not (at character {getattr(error, 'pos', 0)})"
        ) from None
    if not isinstance(data, dict):
        raise ConfigurationError(f"{where}: expected a JSON object of librdkafka keys, got {type(data).__name__}")
    return _checked(data, where)


def _checked(values: Mapping[str, Any], where: str) -> dict[str, str]:
    return {(key := _check(str(k), where)): _text(v, key, where) for k, v in values.items() if v is not None}


def _read_file(path: Path) -> dict[str, str]:
    try:
        text = path.read_text()
    except OSError as error:
        raise ConfigurationError(f"KAFKA_CONFIG_FILE: cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError:
        raise ConfigurationError(f"KAFKA_CONFIG_FILE: {path} is not a text file") from None
    if text.lstrip().startswith("{"):
        return _parse_object(text, str(path))
    values: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        key, sep, value = line.partition("=")
        if not sep:
            raise ConfigurationError(f"{path}:{number}: expected key=value")
        values[_check(key.strip(), f"{path}:{number}")] = value.strip()
    return values


_AUTH = {
    KafkaError._AUTHENTICATION: "authentication failed",
    KafkaError.SASL_AUTHENTICATION_FAILED: "authentication failed",
    KafkaError._SSL: "TLS failed",
}
_UNAUTHORIZED = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED: ("topic", "not allowed on this topic"),
    KafkaError.GROUP_AUTHORIZATION_FAILED: ("group", "not allowed to use this group"),
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: ("cluster", "not allowed on this cluster"),
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED: ("transactional_id", "not allowed to use this transactional id"),
}
_FENCED = {KafkaError._FENCED, KafkaError.PRODUCER_FENCED, KafkaError.INVALID_PRODUCER_EPOCH}
_REFUSED = {
    KafkaError.INVALID_CONFIG,
    KafkaError.INVALID_PARTITIONS,
    KafkaError.INVALID_REPLICATION_FACTOR,
    KafkaError.INVALID_GROUP_ID,
    KafkaError.POLICY_VIOLATION,
}
NOT_NOW = frozenset(
    {
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.REQUEST_TIMED_OUT,
        KafkaError.BROKER_NOT_AVAILABLE,
        KafkaError.REPLICA_NOT_AVAILABLE,
        KafkaError.NETWORK_EXCEPTION,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.NOT_COORDINATOR,
        KafkaError.NOT_ENOUGH_REPLICAS,
        KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND,
        KafkaError.NOT_CONTROLLER,
        KafkaError.KAFKA_STORAGE_ERROR,
        KafkaError.FENCED_LEADER_EPOCH,
        KafkaError.UNKNOWN_LEADER_EPOCH,
        KafkaError.OFFSET_NOT_AVAILABLE,
        KafkaError.PREFERRED_LEADER_NOT_AVAILABLE,
        KafkaError.ELIGIBLE_LEADERS_NOT_AVAILABLE,
        KafkaError.THROTTLING_QUOTA_EXCEEDED,
    }
)
"""What brokers answer while they come and go, or are busy; the protocol has it tried again."""
_PASSING = NOT_NOW | {
    KafkaError._TRANSPORT,
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._TIMED_OUT,
    KafkaError._RESOLVE,
    KafkaError.GROUP_AUTHORIZATION_FAILED,  # a client must name a group, and asks for it; reading by offsets needs none
}


def is_transient(error: KafkaError) -> bool:
    """Whether a consumer that is in no group gets over this by itself: it connects again, so it is waited for until the deadline."""
    return error.retriable() or error.code() in _PASSING


def unauthorized(error: KafkaException | KafkaError) -> bool:
    """Whether the user lacks a right, which no retry mends."""
    cause = error.args[0] if isinstance(error, KafkaException) else error
    return cause.code() in _UNAUTHORIZED


def kafka_error(error: KafkaException | KafkaError, doing: str, **needed: str) -> FactoryError:
    """Kafka's error as one of ours, with its name: what was being done, what came, and whether trying again may help.

    ``needed`` says which right this takes, by the kind of resource (``topic``, ``group``, ``cluster``, ``transactional_id``): a broker
    that refuses says only of what kind it was.
    """
    cause = error.args[0] if isinstance(error, KafkaException) else error
    return message_error(cause.code(), cause.str(), cause.name(), doing, **needed)


def message_error(code: int, text: str, name: str, doing: str, **needed: str) -> FactoryError:
    """See ``kafka_error``; from the parts of a KafkaError."""
    if code in _UNAUTHORIZED:
        kind, what = _UNAUTHORIZED[code]
        right = needed.get(kind, "a right that it lacks")
        return ConfigurationError(f"{doing}: {what} ({name}): the Kafka user needs {right}; add that ACL")
    if code in _AUTH:
        return ConfigurationError(f"{doing}: {_AUTH[code]} ({name}: {text}); check security.protocol, sasl.* and ssl.* of the connection")
    if code in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION):
        return ConfigurationError(f"{doing}: unknown topic or partition; create it (factory topics apply) or correct its name")
    if code == KafkaError.TOPIC_EXCEPTION:
        return ConfigurationError(f"{doing}: no name that a topic can have (letters, digits, '.', '_' and '-', at most 249)")
    if code in _REFUSED:
        return ConfigurationError(f"{doing}: {text} ({name})")
    if code in _FENCED:
        return FencedError(f"{doing}: a newer attempt at the same work has taken over; this one stops without committing")
    return UnavailableError(f"{doing}: {text} ({name})")
