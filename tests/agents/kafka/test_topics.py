"""Questions to a cluster: right answers, or one clear line."""

from __future__ import annotations

import gc
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec

from factory_agents.errors import ConfigurationError, UnavailableError
from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.ledger import LEDGER_PARTITIONS, Ledger
from factory_agents.kafka.topics import Cluster
from factory_agents.sandbox import Sandbox, SandboxInfo
from tests.chaos.kafka_proxy import CREATE_TOPICS, KafkaProxy
from tests.conftest import TopicFactory
from tests.support.brokers import three_brokers
from tests.support.log import Transaction, Writer, hours_ago
from tests.support.process_resources import tasks_and_sockets
from tests.support.waiting import wait_for


@pytest.fixture
def cluster(bootstrap: str) -> Cluster:
    return Cluster(KafkaConfig(bootstrap))


def test_a_topic_has_another_id_once_it_is_recreated(cluster: Cluster, admin: AdminClient, prefix: str) -> None:
    name = f"{prefix}.recreated"
    assert cluster.create(name, 2)
    assert not cluster.create(name, 3), "it is there already"
    seen = [cluster.topic(name)]
    for _ in range(10):  # a broker may show the deleted one for a moment, and take records for it
        admin.delete_topics([name])[name].result()
        assert cluster.create(name, 2)
        seen.append(cluster.topic(name))
    assert {(each.name, each.partitions) for each in seen} == {(name, 2)}
    assert len({each.id for each in seen}) == len(seen)
    admin.delete_topics([name])[name].result()


def test_a_topic_that_was_looked_for_before_it_was_there_has_offsets_once_it_is(cluster: Cluster, bootstrap: str, prefix: str) -> None:
    """Whoever waits for a pipeline's first plan asks for its ledger again and again."""
    name = f"{prefix}.later"
    assert cluster.find(name) is None
    Cluster(KafkaConfig(bootstrap)).create(name, 2)
    wait_for(lambda: cluster.find(name) is not None, "the topic to be there")
    assert cluster.high_watermark(name, range(2)) == {0: 0, 1: 0}
    cluster.admin.delete_topics([name])[name].result()


def test_a_client_that_knows_an_older_leader_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one may for minutes that looked for its leaders while their broker was starting: no broker does it when it is told to."""
    made: list[AdminClient] = []

    class Client:
        def list_offsets(self, request: dict[TopicPartition, OffsetSpec], **_: Any) -> dict[TopicPartition, Future[Any]]:
            futures: dict[TopicPartition, Future[Any]] = {place: Future() for place in request}
            for future in futures.values():
                if len(made) == 1:
                    future.set_exception(KafkaException(KafkaError(KafkaError.FENCED_LEADER_EPOCH)))
                else:
                    future.set_result(SimpleNamespace(offset=7, timestamp=1))
            return futures

    def admin(self: KafkaConfig, **_: Any) -> Any:
        made.append(Client())  # type: ignore[arg-type]
        return made[-1]

    monkeypatch.setattr(KafkaConfig, "admin", admin)
    assert Cluster(KafkaConfig("nowhere:1")).high_watermark("t", [0, 1]) == {0: 7, 1: 7}
    assert len(made) == 2


class FirstUsers:
    """Eight threads, each with a client that is connected, that do the same thing at once; round after round for some seconds."""

    def __init__(self, config: KafkaConfig, admin: AdminClient) -> None:
        self.clusters = [Cluster(config) for _ in range(8)]
        self.admin = admin

    def rounds(self, prefix: str, act: Callable[[Cluster, str], object], *, before: Callable[[str], object] = lambda name: None) -> int:
        """``act`` by all on a new name, 40 times or as often as it can be in 20 seconds; ``before`` comes just before it."""
        for cluster in self.clusters:
            cluster.brokers()
        gate, until, names = threading.Barrier(len(self.clusters)), time.monotonic() + 20, []

        def one(cluster: Cluster, name: str) -> None:
            if gate.wait() == 0:
                before(name)
            gate.wait()
            act(cluster, name)

        with ThreadPoolExecutor(len(self.clusters)) as pool:
            while len(names) < 40 and time.monotonic() < until:
                names.append(f"{prefix}-{len(names)}")
                for done in [pool.submit(one, cluster, names[-1]) for cluster in self.clusters]:
                    done.result()
        return len(names)


@pytest.fixture
def first_users(bootstrap: str, admin: AdminClient, prefix: str) -> Iterator[FirstUsers]:
    yield FirstUsers(KafkaConfig(bootstrap), admin)
    made = [name for name in admin.list_topics(timeout=20).topics if name.startswith(prefix)]
    for future in admin.delete_topics(made).values():
        future.exception()


def test_first_users_of_a_prefix_all_find_the_ledger_that_one_of_them_made(first_users: FirstUsers, prefix: str) -> None:
    def ensure(cluster: Cluster, name: str) -> None:
        Ledger(KafkaConfig("unused"), cluster, prefix=name, pipeline="p").ensure()
        assert len(cluster.high_watermark(f"{name}.ledger", range(LEDGER_PARTITIONS))) == LEDGER_PARTITIONS

    assert first_users.rounds(prefix, ensure) >= 5


def test_first_users_of_a_topic_all_read_its_settings(first_users: FirstUsers, prefix: str) -> None:
    def ensure(cluster: Cluster, name: str) -> None:
        assert cluster.ensure(name, 3, settings={"retention.ms": "1234567"}).partitions == 3
        assert cluster.settings(name)["retention.ms"] == "1234567"

    assert first_users.rounds(prefix, ensure) >= 5


def test_a_topic_that_another_client_created_a_moment_ago_is_found(first_users: FirstUsers, admin: AdminClient, prefix: str) -> None:
    def create(name: str) -> None:
        admin.create_topics([NewTopic(name, 2)])[name].result(20)

    def look(cluster: Cluster, name: str) -> None:
        assert cluster.find(name) is not None
        assert cluster.topic(name).partitions == 2

    assert first_users.rounds(prefix, look, before=create) >= 5


def test_a_mistyped_topic_is_told_of_the_one_that_was_meant(cluster: Cluster, topic: TopicFactory) -> None:
    name = topic(partitions=1)
    with pytest.raises(ConfigurationError, match=rf"unknown topic or partition; .*; did you mean '{name}'\?$"):
        cluster.topic(name + "s")


def test_an_unknown_topic_is_asked_for_once(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    describe, asked = cluster.admin.describe_topics, []
    monkeypatch.setattr(cluster.admin, "describe_topics", lambda *args, **more: asked.append(args) or describe(*args, **more))
    assert cluster.find("nowhere") is None
    assert len(asked) == 1


@pytest.mark.parametrize("end", ["closed", "left", "dropped"])
def test_a_client_goes_with_its_threads_and_sockets_without_the_garbage_collector(bootstrap: str, end: str) -> None:
    gc.collect()
    gc.disable()
    try:
        before = tasks_and_sockets()
        for _ in range(5):
            cluster = Cluster(KafkaConfig(bootstrap))
            if end == "left":
                with cluster:
                    cluster.brokers()
            else:
                cluster.brokers()
            if end == "closed":
                cluster.close()
            del cluster
        wait_for(lambda: tasks_and_sockets() <= before, "the clients' threads to end")
    finally:
        gc.enable()


def test_a_question_that_fails_keeps_no_client(bootstrap: str) -> None:
    gc.collect()
    gc.disable()
    try:
        before = tasks_and_sockets()
        for _ in range(3):
            with pytest.raises((ConfigurationError, UnavailableError), match="nowhere"):
                Cluster(KafkaConfig(bootstrap), timeout=1).high_watermark("nowhere", [0])
        wait_for(lambda: tasks_and_sockets() <= before, "the clients' threads to end")
    finally:
        gc.enable()


@pytest.mark.soak
def test_a_process_that_asked_for_a_group_during_an_outage_survives_its_end(own_sandbox: Sandbox) -> None:
    """The coordinator answers a question that nobody waits for any more."""
    config = KafkaConfig(own_sandbox.info().bootstrap, {"reconnect.backoff.max.ms": "500"})
    assert Cluster(config, timeout=60).group("nobody") is None
    hasty = Cluster(config, timeout=1)
    hasty.brokers()
    own_sandbox.stop_kafka()
    for _ in range(3):
        with pytest.raises(UnavailableError, match="no broker answered"):
            hasty.group("nobody")
        with pytest.raises(UnavailableError, match="no broker answered"):
            hasty.committed("nobody")
    own_sandbox.start_kafka()
    assert Cluster(config, timeout=60).committed("nobody") == {}
    wait_for(lambda: hasty.brokers() == 1, "the client that gave up to be connected again")
    assert Cluster(config, timeout=60).group("nobody") is None


def test_an_unknown_topic_is_named(cluster: Cluster) -> None:
    assert cluster.find("nowhere") is None
    with pytest.raises(ConfigurationError, match=r"'nowhere': unknown topic.*factory topics apply"):
        cluster.topic("nowhere")


def test_offsets_tell_log_start_stable_and_end_apart(cluster: Cluster, bootstrap: str, admin: AdminClient, topic: TopicFactory) -> None:
    name = topic(partitions=2)
    Writer(bootstrap, name).write("abc")
    for future in admin.delete_records([TopicPartition(name, 0, 1)]).values():
        future.result(20)
    transaction = Transaction(bootstrap, name, "open")
    transaction.write("de")
    assert cluster.log_start(name, [0, 1]) == {0: 1, 1: 0}
    assert cluster.stable_offset(name, [0, 1]) == {0: 3, 1: 0}
    assert cluster.high_watermark(name, [0, 1]) == {0: 5, 1: 0}
    transaction.abort()
    assert cluster.high_watermark(name, []) == {}


def test_the_index_gives_the_first_record_at_or_past_a_time(cluster: Cluster, bootstrap: str, topic: TopicFactory) -> None:
    name = topic(partitions=1, message_timestamp_type="CreateTime")
    for ago in (5, 3, 4, 1):
        Writer(bootstrap, name).write("x", hours_ago(ago))

    def at(ago: float) -> tuple[int, int]:
        return cluster.at_time(name, [0], round(hours_ago(ago).timestamp() * 1000))[0]

    assert [at(ago)[0] for ago in (6, 5, 4, 3, 2, 1, 0)] == [0, 0, 1, 1, 3, 3, -1]
    assert at(4)[1] == round(hours_ago(3).timestamp() * 1000)


def test_settings_hold_defaults_too(cluster: Cluster, topic: TopicFactory) -> None:
    settings = cluster.settings(topic(retention_ms=1234567))
    assert settings["retention.ms"] == "1234567"
    assert settings["cleanup.policy"] == "delete"
    assert int(cluster.broker_setting("transaction.max.timeout.ms", "0")) > 0


def test_a_topic_with_settings_nobody_can_have_is_refused(cluster: Cluster, prefix: str) -> None:
    with pytest.raises(ConfigurationError, match=f"creating topic '{prefix}.wrong'.*retention.ms"):
        cluster.create(f"{prefix}.wrong", 1, settings={"retention.ms": "soon"})


def test_a_wrong_password_is_not_taken_for_a_broker_that_is_down(sandbox_info: SandboxInfo) -> None:
    config = KafkaConfig(
        f"{sandbox_info.sasl_bootstrap}",
        {
            "security.protocol": "SASL_PLAINTEXT",
            "sasl.mechanism": "PLAIN",
            "sasl.username": "factory",
            "sasl.password": "correct horse battery staple",
        },
    )
    with pytest.raises(ConfigurationError, match="authentication failed") as caught:
        Cluster(config, timeout=1).topic("t")
    assert "correct horse" not in str(caught.value)


def test_a_topic_that_another_made_just_before_is_there_already_though_an_answer_is_lost(bootstrap: str, topic: TopicFactory) -> None:
    """The second one, that there is one of that name, is not taken for a sign that what brokers show was deleted."""
    name, proxy = topic(partitions=1), KafkaProxy(bootstrap)
    try:
        with Cluster(KafkaConfig(proxy.bootstrap)) as cluster:
            cluster.find(name)
            lost = proxy.trouble(CREATE_TOPICS, "answer lost")
            assert not cluster.create(name, 1)
            assert lost.came.is_set()
    finally:
        proxy.close()


_PATIENCE = 40.0
"""Seconds: a broker's session of 9 s passes before others lead its partitions, and fifty clients ask at once beside other tests."""


@pytest.mark.slow
def test_each_question_is_answered_while_one_of_three_brokers_is_gone(tmp_path: Path) -> None:
    """By clients from before: most take the one that is gone for the controller, and ask nobody else.

    Of one cluster that threads share none takes an answer from another by giving the client up. An answer is right, or there is none:
    librdkafka (2.16) gives -1001 for the offset of a partition whose leader it could not ask, and no error.
    """

    def offsets(cluster: Cluster) -> None:
        for ask in (cluster.high_watermark, cluster.stable_offset, cluster.log_start):
            assert ask("t", range(6)) == dict.fromkeys(range(6), 0)
        for found in (cluster.newest("t", range(6)), cluster.at_time("t", range(6), 1)):
            assert found == dict.fromkeys(range(6), (-1, -1))

    def grow(cluster: Cluster) -> None:
        name = f"t{uuid.uuid4()}"
        cluster.create(name, 1)
        cluster.add_partitions(name, 2)

    questions: list[Callable[[Cluster], object]] = [
        *[lambda c: c.find("t")] * 6,
        lambda c: c.settings("t"),
        *[offsets] * 6,
        lambda c: c.groups(),
        lambda c: c.group("g"),
        lambda c: c.positions("g", {"t": 6}),
        lambda c: c.sizes(),
        lambda c: c.brokers(),
        lambda c: c.broker_setting("log.retention.hours", ""),
        grow,
        lambda c: c.alter("t", {"retention.ms": "100000000"}),
        lambda c: c.delete_before("t", dict.fromkeys(range(6), 0)),
        lambda c: c.not_writable(["t"]),
        lambda c: c.find("none"),
    ]
    with three_brokers(tmp_path, "127.0.0.1") as brokers, ExitStack() as opened:
        config = KafkaConfig(brokers.bootstrap)
        shared = opened.enter_context(Cluster(config, timeout=_PATIENCE))
        asked = [(opened.enter_context(Cluster(config, timeout=_PATIENCE)), question) for question in questions]
        asked += [(shared, question) for question in questions]
        shared.create("t", 6)
        for cluster, question in asked:
            cluster.find("t")
            question(cluster)
        for node in (1, 2):
            brokers.kill(node)
            with ThreadPoolExecutor(len(asked)) as pool:
                for done in [pool.submit(question, cluster) for cluster, question in asked]:
                    done.result()
            brokers.launch(node)
            brokers.wait_ready()
