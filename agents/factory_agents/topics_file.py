"""Topics as a file declares them: read it, compare it with the cluster, create what is missing, mend what differs, know their codecs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from factory_agents.codecs import codec_ref
from factory_agents.errors import ConfigurationError, ContractError
from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.control import control_topic
from factory_agents.kafka.ledger import LEDGER_PARTITIONS, LEDGER_SETTINGS, ledger_topic
from factory_agents.kafka.topics import Cluster, TopicInfo
from factory_agents.paths import candidates, resolve_path
from factory_agents.protocol import CodecRef
from factory_agents.runtime.outputs import DEAD_SETTINGS
from factory_agents.text import did_you_mean

if TYPE_CHECKING:
    from factory_agents.contracts.documents import Document, KeyPath

__all__ = ["Drift", "TopicReport", "TopicState", "WantedTopic", "apply_topics", "compare", "declared_codec", "own_topics", "read_topics"]

TOPICS_FILE = "include/topics.yaml"

_KEYS = ("partitions", "replication", "config", "codec")
_SETTINGS = (
    "cleanup.policy", "compression.type", "delete.retention.ms", "file.delete.delay.ms", "flush.messages", "flush.ms",
    "index.interval.bytes", "local.retention.bytes", "local.retention.ms", "max.compaction.lag.ms", "max.message.bytes",
    "message.timestamp.after.max.ms", "message.timestamp.before.max.ms", "message.timestamp.type", "min.cleanable.dirty.ratio",
    "min.compaction.lag.ms", "min.insync.replicas", "preallocate", "remote.storage.enable", "retention.bytes", "retention.ms",
    "segment.bytes", "segment.index.bytes", "segment.jitter.ms", "segment.ms", "unclean.leader.election.enable",
)  # fmt: skip


class WantedTopic(msgspec.Struct, frozen=True):
    """A topic as it should be. ``settings`` are those that matter; all others are the broker's business. ``codec``: None for JSON."""

    name: str
    partitions: int
    replication: int
    settings: Mapping[str, str]
    codec: CodecRef | None = None


class Drift(msgspec.Struct, frozen=True):
    """One thing in which a topic is not as it should be, what would mend it, and whether that was done."""

    topic: str
    setting: str
    wanted: str
    found: str
    hint: str
    fixed: bool = False


class TopicState(msgspec.Struct, frozen=True):
    """What became of one topic: ``created``, ``missing`` (only looked at), ``as declared`` or ``differs``."""

    name: str
    state: str


class TopicReport(msgspec.Struct, frozen=True):
    """What ``apply_topics`` found and did."""

    bootstrap: str
    topics: tuple[TopicState, ...]
    drift: tuple[Drift, ...]
    warnings: tuple[str, ...]

    @property
    def differs(self) -> bool:
        """Whether anything is still not as declared."""
        return any(not d.fixed for d in self.drift) or any(t.state == "missing" for t in self.topics)


def read_topics(path: str, *, replication: int | None = None) -> list[WantedTopic]:
    """The topics that a YAML file declares; ``replication`` goes over what it says. ``include/…`` is also looked for under FACTORY_INCLUDE.

    Raises ConfigurationError, with line and column, for a key that is not known and a value that does not fit.
    """
    from factory_agents.contracts.documents import read_document

    path, inside = _places(path)
    found = inside if any(c.exists() for c in candidates(inside)) and not any(c.exists() for c in candidates(path)) else path
    try:
        return _Reader(read_document(resolve_path(found, "topics file"), path), replication).topics()
    except ContractError as error:
        raise ConfigurationError(str(error)) from None


def declared_codec(topic: str, file: str = "") -> CodecRef | None:
    """The codec that the topics file (FACTORY_TOPICS, by default ``include/topics.yaml``) declares for a topic; None for JSON, for a topic
    that isn't in it, and where there is no such file by default.

    Raises ConfigurationError for a file that can't be read.
    """
    named = file or os.environ.get("FACTORY_TOPICS", "")
    if not topic or (not named and not any(c.exists() for name in _places(TOPICS_FILE) for c in candidates(name))):
        return None
    return next((wanted.codec for wanted in read_topics(named or TOPICS_FILE) if wanted.name == topic), None)


def _places(path: str) -> tuple[str, str]:
    return path, path.removeprefix("include/")


class _Reader:
    """Reads the declarations; every complaint names its place."""

    def __init__(self, document: Document, replication: int | None) -> None:
        self.document = document
        self.replication = replication

    def topics(self) -> list[WantedTopic]:
        document = self.document
        data = document.mapping((), document.data, "a mapping with topics")
        document.check_keys((), data, ("defaults", "topics"))
        defaults = self._spec(("defaults",), data.get("defaults"))
        topics = document.mapping(("topics",), data.get("topics"), "a mapping of topic names")
        return [self._topic(name, defaults, self._spec(("topics", name), spec)) for name, spec in topics.items()]

    def _spec(self, path: KeyPath, value: Any) -> dict[str, Any]:
        spec = self.document.mapping(path, {} if value is None else value, "a mapping with partitions, replication, config or codec")
        self.document.check_keys(path, spec, _KEYS)
        for name in ("partitions", "replication"):
            number = spec.get(name, 1)
            if type(number) is not int or number < 1:
                self.document.fail((*path, name), f"expected a whole number from 1, got {number!r}")
        if "codec" in spec:
            codec_ref(spec["codec"], self.document.where((*path, "codec")))
        config = self.document.mapping((*path, "config"), spec.get("config") or {}, "a mapping of Kafka's topic settings")
        return {**spec, "config": {name: self._setting((*path, "config", name), name, v) for name, v in config.items()}}

    def _setting(self, path: KeyPath, name: str, value: Any) -> str:
        if name not in _SETTINGS:
            hint = did_you_mean(name, _SETTINGS, cutoff=0.75)
            if hint:  # an unlike name may be a newer broker's: it is asked
                self.document.fail(path, f"unknown topic setting{hint}", key=True)
        if isinstance(value, (dict, list)) or value is None:
            self.document.fail(path, f"expected a text or a number, got {value!r}")
        return str(value).lower() if isinstance(value, bool) else str(value)

    def _topic(self, name: str, defaults: dict[str, Any], spec: dict[str, Any]) -> WantedTopic:
        merged = {"partitions": 1, "replication": 1, "codec": "json", **defaults, **spec}
        settings = {**defaults["config"], **spec["config"]}
        if name.endswith(".dead"):  # as agents make it: letters of one key are many
            settings = {**DEAD_SETTINGS, **spec["config"]}
            if "compact" in settings["cleanup.policy"]:
                self.document.fail(("topics", name, "config", "cleanup.policy"), "compaction would take dead letters away: expected delete")
        return WantedTopic(name, merged["partitions"], self.replication or merged["replication"], settings, codec_ref(merged["codec"]))


class OwnTopic(msgspec.Struct, frozen=True):
    """A topic that is the factory's own, as it is made; ``policies`` are the ones under which it doesn't lose what it must keep.

    One that isn't ``needed`` by everybody is missed by nobody: agents make it when they need it.
    """

    topic: WantedTopic
    policies: tuple[str, ...]
    needed: bool = False


def own_topics(prefix: str, replication: int) -> dict[str, OwnTopic]:
    """The ledger's topic, the answer log's and the live agents' control topic, by name."""
    from factory_agents.inference.answers import ANSWER_PARTITIONS, ANSWER_SETTINGS, answers_topic

    own = (
        OwnTopic(WantedTopic(ledger_topic(prefix), LEDGER_PARTITIONS, replication, LEDGER_SETTINGS), ("compact",), needed=True),
        OwnTopic(WantedTopic(answers_topic(prefix), ANSWER_PARTITIONS, replication, ANSWER_SETTINGS), ("compact", "compact,delete")),
        OwnTopic(WantedTopic(control_topic(prefix), LEDGER_PARTITIONS, replication, LEDGER_SETTINGS), ("compact",)),
    )
    return {one.topic.name: one for one in own}


def _normal(setting: str, value: str) -> str:
    return ",".join(sorted(p.strip() for p in value.split(","))) if setting == "cleanup.policy" else value.lower()


def _merged(wanted: Sequence[WantedTopic], own: Mapping[str, OwnTopic]) -> list[WantedTopic]:
    """What the file declares, and what is the factory's own. A file that declares one of these must not make it lose records."""
    for topic in wanted:
        one, policy = own.get(topic.name), topic.settings.get("cleanup.policy", "delete")
        if one is None:
            continue
        if _normal("cleanup.policy", policy) not in one.policies:
            raise ConfigurationError(
                f"topic {topic.name!r} is the factory's own, and would lose what it must keep with cleanup.policy={policy}; leave it out "
                f"of the file (it is made all the same), or write cleanup.policy: {' or '.join(one.policies)}"
            )
        if topic.partitions < one.topic.partitions or topic.codec is not None:
            raise ConfigurationError(
                f"topic {topic.name!r} is the factory's own: it needs {one.topic.partitions} partitions and codec json; leave it out of "
                f"the file, it is made all the same"
            )
    return [*wanted, *(one.topic for name, one in own.items() if all(name != topic.name for topic in wanted))]


def compare(wanted: WantedTopic, facts: TopicInfo, settings: Mapping[str, str], *, at_least: bool = False) -> list[Drift]:
    """How a topic differs from what is wanted; with ``at_least`` more partitions or replicas than wanted are no difference."""
    drift = []
    if facts.partitions < wanted.partitions:
        drift.append(Drift(wanted.name, "partitions", str(wanted.partitions), str(facts.partitions), "--fix adds them: keys then move"))
    elif facts.partitions > wanted.partitions and not at_least:
        drift.append(Drift(wanted.name, "partitions", str(wanted.partitions), str(facts.partitions), "Kafka cannot take partitions away"))
    if facts.replication < wanted.replication or (facts.replication > wanted.replication and not at_least):
        hint = "kafka-reassign-partitions changes it"
        drift.append(Drift(wanted.name, "replication", str(wanted.replication), str(facts.replication), hint))
    for name, value in wanted.settings.items():
        if name not in settings:
            drift.append(Drift(wanted.name, name, value, "(this broker has no such setting)", "correct the file"))
        elif _normal(name, settings[name]) != _normal(name, value):
            drift.append(Drift(wanted.name, name, value, settings[name], "--fix sets it"))
    return drift


def apply_topics(config: KafkaConfig, wanted: Sequence[WantedTopic], *, prefix: str, change: bool, fix: bool) -> TopicReport:
    """Create the topics that are missing (with ``change``), the factory's own too, mend those that differ (with ``fix``), and report.

    A topic that wants more replicas than there are brokers gets as many as there are, with a warning. Raises UnavailableError without a
    broker, ConfigurationError where one of the factory's own is declared so that it would lose records.
    """
    own = own_topics(prefix, max((w.replication for w in wanted), default=1))
    topics = _merged(wanted, own)
    cluster = Cluster(config)
    brokers = cluster.brokers()
    largest = max(topic.replication for topic in topics)
    warnings = []
    if largest > brokers:
        warnings.append(
            f"{largest} replicas are wanted and there {'is 1 broker' if brokers == 1 else f'are {brokers} brokers'}: "
            f"topics get {brokers}, and a broker that is lost takes their records along"
        )
    states: list[TopicState] = []
    drift: list[Drift] = []
    for topic in topics:
        fitting = msgspec.structs.replace(topic, replication=min(topic.replication, brokers))
        one = own.get(topic.name)
        if one is not None and not one.needed and not change and cluster.find(topic.name) is None:
            continue
        state, differences = _apply(cluster, fitting, change=change, fix=fix and change, own=one if one and topic is one.topic else None)
        states.append(TopicState(topic.name, state))
        drift.extend(differences)
    return TopicReport(config.bootstrap, tuple(states), tuple(drift), tuple(warnings))


def _apply(cluster: Cluster, topic: WantedTopic, *, change: bool, fix: bool, own: OwnTopic | None) -> tuple[str, list[Drift]]:
    facts = cluster.find(topic.name)
    if facts is None and not change:
        return "missing", []
    if facts is None:
        if cluster.create(topic.name, topic.partitions, replication=topic.replication, settings=topic.settings):
            return "created", []
        facts = cluster.topic(topic.name)  # somebody else was faster
    settings = cluster.settings(topic.name)
    if own is not None:  # of its settings only the policy matters, as long as it keeps what must be kept
        policy = settings.get("cleanup.policy", "")
        fitting = policy if _normal("cleanup.policy", policy) in own.policies else own.policies[0]
        topic = msgspec.structs.replace(topic, settings={"cleanup.policy": fitting})
    drift = compare(topic, facts, settings, at_least=own is not None)
    if not drift:
        return "as declared", []
    if fix:
        drift = [_mend(cluster, topic, d) for d in drift]
    return ("as declared now" if all(d.fixed for d in drift) else "differs"), drift


def _mend(cluster: Cluster, topic: WantedTopic, drift: Drift) -> Drift:
    if not drift.hint.startswith("--fix"):
        return drift
    if drift.setting == "partitions":
        cluster.add_partitions(topic.name, topic.partitions)
    else:
        cluster.alter(topic.name, {drift.setting: drift.wanted})
    return msgspec.structs.replace(drift, fixed=True)
