"""Where in the ledger a server was when it was last scraped, kept as a group's offsets: from there its next life counts."""

from __future__ import annotations

import threading

from confluent_kafka import KafkaException, TopicPartition

from factory_agents import failpoints
from factory_agents.kafka.config import KafkaConfig, kafka_error
from factory_agents.kafka.ledger import LEDGER_PARTITIONS
from factory_agents.kafka.topics import Cluster
from factory_agents.metrics.part import Part
from factory_agents.metrics.tally import Told

__all__ = ["Positions"]

_TAG = "topic-id:"
_SECONDS = 5.0
_LAST_SECONDS = 3.0


class Positions:
    """Keeps positions in a group that nobody joins. They are written by a thread of its own, the newest at once; ``part`` says whether.

    The topic's id stands beside each: of a ledger that was deleted and made again nothing was counted.
    """

    def __init__(self, config: KafkaConfig, topic: str, group: str, part: Part) -> None:
        self._config, self._topic, self._group, self._part = config, topic, group, part
        self._needed = {"group": f"READ on group {group!r}", "topic": f"READ on topic {topic!r}"}
        self._onlooker = config.onlooker(group)
        self._wanted = self._kept = Told()
        self._woken, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._write, name="positions", daemon=True)

    def load(self) -> tuple[str, dict[int, int]]:
        """The topic's id and the positions that were kept last; raises a FactoryError where nobody can tell."""
        wanted = [TopicPartition(self._topic, p) for p in range(LEDGER_PARTITIONS)]
        with Cluster(self._config, timeout=_SECONDS) as cluster:
            cluster.group(self._group)  # a right that is missing is told here; the next question would time out
        try:
            found = self._onlooker.committed(wanted, timeout=_SECONDS)
        except KafkaException as error:
            raise kafka_error(error, f"positions of group {self._group!r}", **self._needed) from error
        for tp in found:
            if tp.error is not None:
                raise kafka_error(tp.error, f"positions of group {self._group!r}", **self._needed)
        self._part.took()  # there may be nothing to keep for long
        ids = {(tp.metadata or "").removeprefix(_TAG) for tp in found if tp.offset >= 0}
        return (ids.pop() if len(ids) == 1 else ""), {tp.partition: tp.offset for tp in found if tp.offset >= 0}

    def start(self) -> None:
        """Begin to keep what ``keep`` is given."""
        self._thread.start()

    def keep(self, told: Told) -> None:
        """What was told was shown. Returns at once."""
        self._wanted = told
        self._woken.set()

    def close(self) -> None:
        """Write what isn't written yet, if a broker takes it soon."""
        self._stop.set()
        self._woken.set()
        if self._thread.is_alive():
            self._thread.join(_LAST_SECONDS)

    def _write(self) -> None:
        while not self._stop.is_set():
            self._woken.wait()
            self._woken.clear()
            self._commit()

    def _commit(self) -> None:
        told = self._wanted
        if told.number <= self._kept.number or not told.topic_id:
            return
        failpoints.hit("metrics.before-keep")
        offsets = [TopicPartition(self._topic, p, offset, _TAG + told.topic_id) for p, offset in told.positions.items()]
        try:
            self._onlooker.commit(offsets=offsets, asynchronous=False)
            self._kept = told
            self._part.took()
        except KafkaException as error:
            self._part.failed(kafka_error(error, f"keeping positions in group {self._group!r}", **self._needed))
