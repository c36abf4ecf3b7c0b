"""``factory doctor``: what a factory needs, looked at part by part; one line each, and what to do where something is missing."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stdout
from datetime import UTC, datetime
from importlib.metadata import entry_points
from typing import Literal

import confluent_kafka
import msgspec

from factory_agents import __version__
from factory_agents.errors import ConfigurationError, FactoryError
from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.topics import Cluster
from factory_agents.runtime.codecs import CODECS
from factory_agents.runtime.plugins import SINKS, SOURCES, find_plugin, installed
from factory_agents.topics_file import TopicReport, WantedTopic, apply_topics, read_topics

__all__ = ["ENTRY_POINTS", "Finding", "examine"]

ENTRY_POINTS = "factory_agents.doctor"
"""Group of the functions by which other distributions add their findings: without arguments, returning Findings."""

_SKEW_SECONDS = 5.0


class Finding(msgspec.Struct, frozen=True):
    """What was found of one part; ``todo`` says what to do about it where it isn't ``ok``."""

    part: str
    state: Literal["ok", "warn", "fail", "skip"]
    text: str
    todo: str = ""


def examine(kafka: Callable[[], KafkaConfig], *, topics: str, prefix: str, environment: Mapping[str, str] | None = None) -> list[Finding]:
    """Look at every part. ``kafka`` reads the settings (and may refuse them), ``topics`` names the topics file. Changes nothing."""
    env = os.environ if environment is None else environment
    return [_versions(), *_kafka(kafka, topics, prefix), *_database(env), *_plugins(), *_elsewhere()]


def _versions() -> Finding:
    client, librdkafka = confluent_kafka.version()[0], confluent_kafka.libversion()[0]
    text = f"factory-agents {__version__}, Python {platform.python_version()}, confluent-kafka {client} (librdkafka {librdkafka})"
    return Finding("versions", "ok", text)


def _kafka(read: Callable[[], KafkaConfig], topics: str, prefix: str) -> Iterator[Finding]:
    try:
        config = read()
        with Cluster(config) as cluster:
            brokers = cluster.brokers()
            yield Finding("Kafka", "ok", f"{config.bootstrap}, {brokers} broker{'' if brokers == 1 else 's'}")
            yield from _topics(config, cluster, topics, prefix)
    except ConfigurationError as error:
        yield Finding("Kafka", "fail", str(error), "set KAFKA_BOOTSTRAP and KAFKA_CONFIG, or on this machine: factory sandbox up")
    except FactoryError as error:
        yield Finding("Kafka", "fail", str(error), "start the broker, or correct the address: KAFKA_BOOTSTRAP")


def _topics(config: KafkaConfig, cluster: Cluster, file: str, prefix: str) -> Iterator[Finding]:
    try:
        wanted = read_topics(file)
    except FactoryError as error:
        yield Finding("topics", "skip", str(error), "name your own: factory doctor --topics FILE")
        return
    yield _topic_finding(apply_topics(config, wanted, prefix=prefix, change=False, fix=False), file)
    yield _kafka_clock(cluster, wanted)


def _topic_finding(report: TopicReport, file: str) -> Finding:
    missing = [t.name for t in report.topics if t.state == "missing"]
    if missing:
        return Finding("topics", "fail", f"missing: {', '.join(missing)}", f"factory topics apply {file}")
    if report.drift:
        first = report.drift[0]
        text = f"{len(report.drift)} settings differ from {file}: {first.topic}: {first.setting} is {first.found}, wanted {first.wanted}"
        return Finding("topics", "warn", text, f"factory topics apply {file} --fix, where it can")
    return Finding("topics", "ok", f"{len(report.topics)} as {file} says, the factory's own included")


def _kafka_clock(cluster: Cluster, wanted: list[WantedTopic]) -> Finding:
    ahead = ""
    for topic in wanted:
        facts = cluster.find(topic.name)
        newest = max((ms for _, ms in cluster.newest(topic.name, range(facts.partitions)).values()), default=-1) if facts else -1
        if newest / 1000 > time.time() + _SKEW_SECONDS:
            ahead = f"{topic.name} has a record of {datetime.fromtimestamp(newest / 1000, UTC):%F %H:%M:%S} UTC, which is in the future"
    if ahead:
        return Finding(
            "clocks: Kafka", "warn", ahead, "set the clock of the producer, or with LogAppendTime the broker's (NTP); see docs/tuning.md"
        )
    return Finding("clocks: Kafka", "ok", "no record is from the future")


def _database(env: Mapping[str, str]) -> Iterator[Finding]:
    url = env.get("DATABASE_URL")
    if not url:
        yield Finding("database", "skip", "DATABASE_URL is not set; publish and look-ups need it")
        return
    try:
        from factory_agents.databases.postgres import database_from_url

        database = database_from_url(url, "DATABASE_URL")
        with database.connect("factory-doctor") as connection:
            before = time.time()
            version, now = connection.execute("SELECT current_setting('server_version'), clock_timestamp()").fetchone() or ("?", None)
            skew = abs(now.timestamp() - (before + time.time()) / 2) if now else 0.0
    except ImportError:
        yield Finding("database", "fail", "psycopg is not installed", "pip install 'factory-agents[postgres]'")
        return
    except FactoryError as error:
        yield Finding("database", "fail", str(error), "start it, or correct DATABASE_URL")
        return
    yield Finding("database", "ok", f"PostgreSQL {version} at {database.address}")
    if skew > _SKEW_SECONDS:
        yield Finding("clocks: database", "warn", f"{skew:.0f} s apart from this machine's", "set both clocks by NTP")
    else:
        yield Finding("clocks: database", "ok", f"{skew:.1f} s apart from this machine's")


def _plugins() -> Iterator[Finding]:
    """Installed sources, sinks and codecs, each loaded once."""
    for kind in (SOURCES, SINKS, CODECS):
        fine = []
        for name, found in sorted(installed(kind).items()):
            try:
                with redirect_stdout(sys.stderr):
                    find_plugin(kind, name)
                fine.append(f"{name} ({found[0][0].name} {found[0][0].version})")
            except FactoryError as error:
                yield Finding(f"{kind.name}s", "fail", str(error), "repair it, or uninstall it")
        if fine:
            yield Finding(f"{kind.name}s", "ok", f"installed: {', '.join(fine)}")


def _elsewhere() -> Iterator[Finding]:
    for point in entry_points(group=ENTRY_POINTS):
        try:
            with redirect_stdout(sys.stderr):
                yield from point.load()()
        except Exception as error:
            yield Finding(point.name, "fail", f"can't be checked: {type(error).__name__}: {error}", f"see {point.value}")
