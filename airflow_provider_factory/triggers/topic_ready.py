"""Starts runs of a ``since_last`` pipeline when enough has arrived on its topic, or has waited long enough: for an ``AssetWatcher``."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping
from datetime import timedelta
from functools import partial
from typing import Any

from airflow.triggers.base import BaseEventTrigger, TriggerEvent

from airflow_provider_factory.backlog import Enough, Sizes, Waiting, look, reason_to_start
from airflow_provider_factory.clusters import Client, shared_cluster
from airflow_provider_factory.hooks.kafka import FactoryKafkaHook
from airflow_provider_factory.settings import option
from factory_agents.errors import ConfigurationError, FactoryError

__all__ = ["TopicReadyTrigger"]

log = logging.getLogger(__name__)


class TopicReadyTrigger(BaseEventTrigger):
    """Fires, again and again, when ``records`` or ``bytes`` wait beyond the pipeline's last window, or the oldest has waited for ``age``.

    It only has to start runs often enough: the pipeline's ledger decides which records a run takes, when its
    ``WindowOperator(no_interval="since_last")`` plans. So a start too many finds an empty window, and what arrives between a start and
    the planning is in that run; nothing is lost or doubled whatever dies in between. It reads positions, not records (unless asked for
    ``bytes``), joins no group and commits nothing, and runs on every supported Airflow. The official ``KafkaSharedStreamTrigger``
    (Airflow 3.3) makes one event, and so a run, of every record, passes them all through the triggerer, and keeps its place in a
    consumer group that knows nothing of the windows.

    :param topic: the topic's name.
    :param pipeline: the DAG's id: whose windows count as taken.
    :param records: start when so many are waiting (counted in offsets).
    :param size: start when so many bytes of keys and values are waiting; each is read once to count them.
    :param age: start when the oldest record has waited this long (seconds, or a timedelta): by its own time, or since it was seen.
    :param again: start again if records waiting at the last start are in no window after this time (seconds, or a timedelta).
    :param poll_interval: seconds between two checks.
    :param kafka_conn_id: by default ``[factory] kafka_conn_id``.

    Example::

        ready = TopicReadyTrigger(topic="raw_events", pipeline="clicks", records=10_000, age=timedelta(minutes=10))
        arrived = Asset("raw_events_ready", watchers=[AssetWatcher(name="raw_events_ready", trigger=ready)])
    """

    def __init__(
        self,
        *,
        topic: str,
        pipeline: str,
        records: int | None = None,
        size: int | None = None,
        age: timedelta | float | None = None,
        again: timedelta | float = 600.0,
        poll_interval: float = 5.0,
        kafka_conn_id: str | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow's has no types
        if records is None and size is None and age is None:
            raise ConfigurationError("TopicReadyTrigger: expected records, size or age, got none of them")
        self.topic = topic
        self.pipeline = pipeline
        self.records = records
        self.size = size
        self.age = None if age is None else _seconds(age)
        self.again = _seconds(again)
        self.poll_interval = poll_interval
        self.kafka_conn_id = kafka_conn_id
        self._enough = Enough(records, size, self.age)

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """See ``BaseTrigger.serialize``."""
        names = ("topic", "pipeline", "records", "size", "age", "again", "poll_interval", "kafka_conn_id")
        return f"{type(self).__module__}.{type(self).__qualname__}", {name: getattr(self, name) for name in names}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """See ``BaseTrigger.run``; an event each time that a run should start. Never ends: trouble is logged and waited out."""
        begun: dict[int, int] = {}
        begun_at, since = float("-inf"), time.monotonic()
        sizes = Sizes(self.topic)
        while True:
            try:
                with shared_cluster(await FactoryKafkaHook(self.kafka_conn_id or option("kafka_conn_id")).aconfig()) as cluster:
                    while True:
                        begun = begun if time.monotonic() < begun_at + self.again else {}
                        waiting = await cluster.read(partial(self._look, begun=begun, sizes=sizes))
                        now = time.monotonic()
                        since = now if not waiting.beyond(begun) else since
                        reason = reason_to_start(self._enough, waiting, begun, now - since)
                        if reason:
                            begun, begun_at, since = dict(waiting.ends), now, now
                            yield TriggerEvent({"topic": self.topic, "reason": reason})
                        await asyncio.sleep(self.poll_interval)
            except FactoryError as error:
                log.warning("%s: %s", type(error).__name__, error)
            await asyncio.sleep(self.poll_interval)

    def _look(self, client: Client, *, begun: Mapping[int, int], sizes: Sizes) -> Waiting:
        return look(
            client.config,
            client.cluster,
            client.lags,
            topic=self.topic,
            pipeline=self.pipeline,
            prefix=option("prefix"),
            enough=self._enough,
            begun=begun,
            sizes=sizes,
        )


def _seconds(value: timedelta | float) -> float:
    return value.total_seconds() if isinstance(value, timedelta) else float(value)
