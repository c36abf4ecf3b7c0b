"""The metrics server where something is wrong: no broker, a ledger that is made again, a second server, clients that mean no good."""

from __future__ import annotations

import contextlib
import json
import secrets
import signal
import socket
import time
from pathlib import Path

import msgspec
import pytest
from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from factory_agents.kafka.config import KafkaConfig, is_transient
from factory_agents.kafka.ledger import ledger_topic
from factory_agents.metrics.lags import LagChoice
from factory_agents.metrics.server import MetricsServer
from factory_agents.run import execute
from factory_agents.runtime.session import RunContext
from factory_agents.sandbox import Sandbox
from factory_agents.telemetry.serving import Answer, SmallServer, text
from tests.support.brokers import three_brokers
from tests.support.commands import Command
from tests.support.runs import Runs, events
from tests.support.scrapes import Increments, scrape, value
from tests.support.topics import create_topic
from tests.support.waiting import quickest, wait_for


def run_window(runs: Runs, source: str, out: str, name: str) -> None:
    execute(RunContext(runs.config), runs.run(msgspec.structs.replace(runs.window(source), name=name), out))


def test_while_the_broker_is_away_the_last_figures_are_told_with_their_age(own_sandbox: Sandbox) -> None:
    bootstrap, prefix = own_sandbox.info().bootstrap, secrets.token_hex(4)
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})

    def make(name: str, partitions: int = 1) -> str:
        create_topic(admin, f"{prefix}.{name}", partitions)
        return f"{prefix}.{name}"

    runs = Runs(bootstrap, prefix, make, admin)
    source, out = make("in"), make("out")
    runs.produce(source, events(3))
    server = MetricsServer(runs.config, listen="127.0.0.1:0", prefix=prefix, every=0.2, lag=LagChoice(topics=source))
    server.start()
    seen = Increments()
    try:
        run_window(runs, source, out, "w1")
        seen.until(server.address, "agent_success_total", 1)
        own_sandbox.stop_kafka()
        wait_for(lambda: value(scrape(server.address), "factory_metrics_up", part="ledger") == 0, "the server to notice", 60)
        took, samples = quickest(lambda: scrape(server.address))
        assert took < 1
        assert value(samples, "agent_success_total") == 1
        assert (value(samples, "factory_metrics_age_seconds", part="ledger") or 0) > 1
        own_sandbox.start_kafka()
        for part in ("ledger", "lag"):
            wait_for(lambda part=part: value(scrape(server.address), "factory_metrics_up", part=part) == 1, f"the {part}", 60)
        runs.cluster.close()
        run_window(runs, source, out, "w2")
        seen.until(server.address, "agent_success_total", 2)
        assert seen.of("agent_success_total") == 2
    finally:
        server.close()


@pytest.mark.slow
def test_topics_without_a_leader_keep_no_other_topics_lag_waiting(tmp_path: Path) -> None:
    with three_brokers(tmp_path, "127.0.0.1") as brokers:
        config, prefix = KafkaConfig(brokers.bootstrap), secrets.token_hex(4)
        apart = [f"{prefix}.away-{n}" for n in range(6)]
        placed = {f"{prefix}.here": [[1]], f"{prefix}.half": [[1], [3]], **{name: [[3]] for name in apart}}
        for future in brokers.admin.create_topics([NewTopic(name, len(at), replica_assignment=at) for name, at in placed.items()]).values():
            future.result()
        runs = Runs(brokers.bootstrap, prefix, lambda name, _: name, brokers.admin)
        for name, at in placed.items():
            for partition in range(len(at)):
                runs.produce(name, events(3), partition=partition)
        at_start = [TopicPartition(name, p, 0) for name, at in placed.items() for p in range(len(at))]
        consumer = Consumer({"bootstrap.servers": brokers.bootstrap, "group.id": f"{prefix}.g", "log_level": 0})

        def committed() -> bool:
            try:
                return bool(consumer.commit(offsets=at_start, asynchronous=False))
            except KafkaException as error:
                if not is_transient(error.args[0]):
                    raise
                return False

        wait_for(committed, "the group's coordinator to be found by brokers that have just begun")
        consumer.close()
        server = MetricsServer(config, listen="127.0.0.1:0", prefix=prefix, every=0.2, lag=LagChoice(f"{prefix}.g"))
        server.start()

        def lag(name: str, partition: int = 0) -> float | None:
            return value(scrape(server.address), "kafka_consumer_lag", topic=f"{prefix}.{name}", partition=str(partition))

        try:
            wait_for(lambda: (lag("here"), lag("half", 1), lag("away-5")) == (3, 3, 3), "the lag of all")
            brokers.kill(3)
            wait_for(lambda: lag("away-0") is None and lag("half", 1) is None, "the others to be without a leader", 120)
            for told in (4, 5, 6):  # each of these looks would wait for the topics that are away
                runs.produce(f"{prefix}.here", events(1))
                runs.produce(f"{prefix}.half", events(1), partition=0)
                wait_for(lambda told=told: (lag("here"), lag("half")) == (told, told), "the lag of what is there", 5)  # type: ignore[misc]
            assert value(scrape(server.address), "factory_metrics_up", part="lag") == 0
        finally:
            server.close()
            runs.close()


@pytest.mark.slow
def test_a_server_without_a_broker_starts_says_why_once_and_ends_when_it_is_told(offline: Command) -> None:
    live = offline.start("metrics", "serve", "--listen", "0")
    live.wait_logged("this part fails")
    (address,) = [json.loads(line)["address"] for line in live.lines if "serving metrics" in line]
    assert value(scrape(address), "factory_metrics_up", part="ledger") == 0
    began = time.monotonic()
    done = live.stop(signal.SIGTERM)
    offline.close()
    assert (done.code, done.out) == (0, "")
    assert time.monotonic() - began < 10
    told = [json.loads(line) for line in done.err.splitlines()]
    assert {line["service"] for line in told} == {"factory-metrics"}
    reasons = [line["reason"] for line in told if line["message"].startswith("this part fails")]
    assert len(reasons) == len(set(reasons))


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--groups", "("), "--groups: '(' is not a regular expression"),
        (("--topics", "*"), "--topics: '*' is not a regular expression"),
        (("--listen", "nowhere"), "--listen: expected host:port"),
        (("--listen", "198.51.100.1:9"), "--listen: cannot listen on '198.51.100.1:9'"),
        (("-X", "nonsense=1"), "nonsense"),
    ],
)
def test_a_wrong_flag_is_one_line(offline: Command, flags: tuple[str, ...], says: str) -> None:
    done = offline("metrics", "serve", *flags)
    assert done.code == 1
    assert says in done.error


def test_a_ledger_that_is_made_again_is_counted_from_its_beginning(runs: Runs, admin: AdminClient) -> None:
    source, out = runs.topic("in", partitions=1), runs.topic("out", partitions=1)
    runs.produce(source, events(3))
    server, seen = MetricsServer(runs.config, listen="0", prefix=runs.prefix, lag=LagChoice("none", "none")), Increments()
    server.start()
    try:
        for i in range(2):
            run_window(runs, source, out, f"w{i}")
        seen.until(server.address, "agent_success_total", 2)
        admin.delete_topics([ledger_topic(runs.prefix)])[ledger_topic(runs.prefix)].result()
        wait_for(lambda: runs.cluster.find(ledger_topic(runs.prefix)) is None, "the ledger to be gone")
        run_window(runs, source, out, "w2")
        seen.until(server.address, "agent_success_total", 3)
    finally:
        server.close()
    again = MetricsServer(runs.config, listen="0", prefix=runs.prefix, lag=LagChoice("none", "none"))
    again.start()
    try:
        run_window(runs, source, out, "w3")
        seen.until(again.address, "agent_success_total", 4)
        assert seen.of("agent_success_total") == 4
    finally:
        again.close()


def test_groups_are_told_of_whatever_they_are_called(runs: Runs) -> None:
    source = runs.topic("in", partitions=1)
    runs.produce(source, events(7))
    names = [
        f"{runs.prefix}{name}" for name in ('a"b', "new\nline", "back\\slash", '{x="y"} 1', "日本", "}\n# EOF\n", "x\r\ny", "\x01", "", " ")
    ]
    for name in names:
        consumer = Consumer({"bootstrap.servers": runs.bootstrap, "group.id": name, "log_level": 0})
        consumer.commit(offsets=[TopicPartition(source, 0, 2)], asynchronous=False)
        consumer.close()
    server = MetricsServer(runs.config, listen="0", prefix=runs.prefix, every=0.2, lag=LagChoice(topics=source))
    server.start()
    try:
        wait_for(lambda: value(scrape(server.address), "factory_metrics_up", part="lag"), "the lag")
        told = {dict(labels)["group"]: lag for (of, labels), lag in scrape(server.address).items() if of == "kafka_consumer_lag"}
        assert told == dict.fromkeys(names, 5)
    finally:
        server.close()


class TestClientsThatMeanNoGood:
    """The small server answers everybody else meanwhile."""

    @pytest.fixture
    def address(self) -> object:
        server = SmallServer("127.0.0.1:0", {"/metrics": lambda asked: text("fine"), "/broken": self.broken}, where="--listen")
        yield server.address
        server.close()

    @staticmethod
    def broken(asked: object) -> Answer:
        raise RuntimeError("a defect")

    @staticmethod
    def raw(address: str, sent: bytes) -> bytes:
        host, _, port = address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(sent)
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_WR)
            got = b""
            with contextlib.suppress(ConnectionError):
                while part := connection.recv(65536):
                    got += part
        return got

    @pytest.mark.parametrize(
        ("sent", "status"),
        [
            (b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", b"200"),
            (b"HEAD /metrics HTTP/1.1\r\n\r\n", b"200"),
            (b"GET /metrics?x=/../../etc HTTP/1.1\r\n\r\n", b"200"),
            (b"GET /../../etc/passwd HTTP/1.1\r\n\r\n", b"404"),
            (b"GET http://[ HTTP/1.1\r\n\r\n", b"404"),
            (b"POST /metrics HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", b"501"),
            (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n", b"414"),
            (b"GET /metrics HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n", b"431"),
            (b"GET /broken HTTP/1.1\r\n\r\n", b"500"),
            (b"\x16\x03\x01\x02\x00\x01", b""),
            (b"", b""),
        ],
    )
    def test_whatever_is_sent_is_answered_or_dropped(self, address: str, sent: bytes, status: bytes) -> None:
        answer = self.raw(address, sent)
        assert not status or answer.split(b" ", 2)[1] == status
        assert self.raw(address, b"GET /metrics HTTP/1.0\r\n\r\n").endswith(b"fine\n")

    @pytest.mark.slow
    def test_clients_that_say_nothing_are_dropped_and_keep_nobody_out_for_long(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        silent = [socket.create_connection((host, int(port))) for _ in range(100)]
        try:
            wait_for(lambda: self.raw(address, b"GET /metrics HTTP/1.0\r\n\r\n").endswith(b"fine\n"), "an answer", 20)
        finally:
            for connection in silent:
                connection.close()

    @pytest.mark.slow
    def test_clients_that_say_what_they_want_a_letter_at_a_time_are_dropped_too(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        slow = [socket.create_connection((host, int(port))) for _ in range(100)]

        def served() -> bool:
            for connection in slow:
                with contextlib.suppress(OSError):
                    connection.sendall(b"G")
            return self.raw(address, b"GET /metrics HTTP/1.0\r\n\r\n").endswith(b"fine\n")

        try:
            wait_for(served, "an answer", 30)
        finally:
            for connection in slow:
                connection.close()


def test_its_kafka_settings_are_those_of_the_command(offline: Command) -> None:
    assert "KAFKA_BOOTSTRAP" in offline("metrics", "serve", KAFKA_BOOTSTRAP="").error


def test_a_password_is_not_told(runs: Runs) -> None:
    config = KafkaConfig("127.0.0.1:1", {"sasl.password": "hunter2"})
    server = MetricsServer(config, listen="0", prefix=runs.prefix)
    server.start()
    try:
        assert "hunter2" not in repr(scrape(server.address))
    finally:
        server.close()
