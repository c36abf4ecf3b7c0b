"""A cluster of three brokers: two of them go on while the third is gone."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from factory_agents.sandbox import kafka
from factory_agents.sandbox.processes import ProcessRecord, free_port, stop
from factory_agents.sandbox.state import KafkaState
from tests.support.waiting import wait_for

NODES = (1, 2, 3)
_REPLICATED = {
    "default.replication.factor": "3",
    "min.insync.replicas": "2",
    "offsets.topic.replication.factor": "3",
    "transaction.state.log.replication.factor": "3",
    "transaction.state.log.min.isr": "2",
}


class Brokers:
    """Each is broker and controller, which a larger cluster has apart."""

    def __init__(self, folder: Path, host: str) -> None:
        self._folder, self._cluster = folder, kafka.cluster_id()
        self._states = {node: KafkaState(host=host, port=free_port(host), controller_port=free_port(host)) for node in NODES}
        self.processes: dict[int, ProcessRecord] = {}
        self.bootstrap = ",".join(f"{host}:{state.port}" for state in self._states.values())
        self.admin = AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0})

    def launch(self, node: int) -> None:
        """Begin to start one, on its old data if there are any."""
        voters = ",".join(f"{other}@{state.host}:{state.controller_port}" for other, state in self._states.items())
        more = {**_REPLICATED, "node.id": str(node), "controller.quorum.voters": voters}
        at = self._folder / str(node)
        self.processes[node] = kafka.start(at, self._states[node], "", lambda _: None, more=more, cluster=self._cluster)

    def wait_ready(self) -> None:
        """Until all serve, and each replica of each partition is in sync."""
        for node, process in self.processes.items():
            kafka.wait_ready(self._folder / str(node), process)
        wait_for(lambda: len(self.admin.list_topics(timeout=10).brokers) == len(NODES), "the brokers to know each other", 60)
        wait_for(self._in_sync, "every replica to be in sync", 120)

    def _in_sync(self) -> bool:
        topics = self.admin.list_topics(timeout=10).topics.values()
        return all(len(partition.isrs) == len(partition.replicas) for topic in topics for partition in topic.partitions.values())

    def leader(self, topic: str, partition: int) -> int:
        """The node that leads a partition; -1 for none, or where a frozen one was asked."""
        asking = AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0})  # one that has asked a frozen node goes on asking it
        try:
            return int(asking.list_topics(topic, 5).topics[topic].partitions[partition].leader)
        except KafkaException:
            return -1

    def stop(self, node: int) -> None:
        """End one orderly, as an update does."""
        stop(self.processes[node], (signal.SIGTERM, 60), (signal.SIGKILL, 10))

    def kill(self, node: int) -> None:
        """End one at once, as a machine ends that loses its power."""
        stop(self.processes[node], (signal.SIGKILL, 10))


@contextmanager
def three_brokers(folder: Path, host: str) -> Iterator[Brokers]:
    """Three brokers at an address of this machine."""
    brokers = Brokers(folder, host)
    try:
        for node in NODES:
            brokers.launch(node)
        brokers.wait_ready()
        yield brokers
    finally:
        for node in brokers.processes:
            brokers.kill(node)
