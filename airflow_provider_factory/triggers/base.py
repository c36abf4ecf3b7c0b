"""A trigger that asks Kafka again and again, and tells what it saw last in its event."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from abc import abstractmethod
from collections.abc import AsyncIterator, Mapping
from typing import Any, ClassVar

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_factory.clusters import Client, SharedCluster, shared_cluster
from airflow_provider_factory.conditions import Answer
from airflow_provider_factory.hooks.kafka import FactoryKafkaHook
from factory_agents.errors import FactoryError

__all__ = ["KafkaTrigger"]

log = logging.getLogger(__name__)

_SPREAD = 0.1
"""The share of the interval by which questions are moved at random, so that triggers that began together don't ask together for ever."""


class KafkaTrigger(BaseTrigger):
    """Fires one event: ``met`` with figures, ``timeout`` with what was seen last, or ``error`` for an error that no retry can fix.

    It waits for a broker that doesn't answer. All triggers of a cluster share one client and few threads (``clusters``).

    :param kafka_conn_id: the cluster's connection.
    :param question: what is asked, as plain data.
    :param poll_interval: seconds between two questions.
    :param deadline: seconds since 1970 UTC, so that it holds over a restart of the triggerer.
    """

    path: ClassVar[str]

    def __init__(self, *, kafka_conn_id: str, question: Mapping[str, Any], poll_interval: float, deadline: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow's has no types
        self.kafka_conn_id = kafka_conn_id
        self.question = dict(question)
        self.poll_interval = poll_interval
        self.deadline = deadline

    @property
    @abstractmethod
    def about(self) -> str:
        """The subject of the question: those about one and the same wait for each other."""

    @abstractmethod
    def ask(self, client: Client) -> Answer:
        """One question to the cluster; blocks; raises FactoryError."""

    def known(self) -> Answer:
        """What is known without asking the cluster."""
        return Answer(False, "nothing was asked yet")

    def pause(self, now: float) -> float:
        """Seconds until the next question, at the time ``now`` (since 1970)."""
        return max(0.0, min(self.poll_interval, self.deadline - now))

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """See ``BaseTrigger.serialize``."""
        return self.path, {
            "kafka_conn_id": self.kafka_conn_id,
            "question": self.question,
            "poll_interval": self.poll_interval,
            "deadline": self.deadline,
        }

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """See ``BaseTrigger.run``; one event."""
        yield TriggerEvent(await self._watch())

    async def _watch(self) -> dict[str, Any]:
        seen = self.known()
        try:
            with shared_cluster(await FactoryKafkaHook(self.kafka_conn_id).aconfig()) as cluster:
                while not seen.met:
                    seen = await self._look(cluster, seen)
                    now = time.time()
                    if not seen.met and now >= self.deadline:
                        return {"status": "timeout", "reason": seen.reason, "facts": dict(seen.facts)}
                    if not seen.met:
                        log.info("%s", seen.reason)
                        await asyncio.sleep(self._spread(self.pause(now)))
        except FactoryError as error:
            return {"status": "error", "reason": f"{type(error).__name__}: {error}", "facts": dict(seen.facts)}
        return {"status": "met", "reason": seen.reason, "facts": dict(seen.facts)}

    def _spread(self, pause: float) -> float:
        return pause * random.uniform(1 - _SPREAD, 1) if pause >= self.poll_interval else pause

    async def _look(self, cluster: SharedCluster, before: Answer) -> Answer:
        """What is known, else what the cluster says; a cluster that doesn't answer now leaves the figures as they were."""
        known = self.known()
        if known.met:
            return known
        try:
            return await cluster.ask(self.about, self.ask)
        except FactoryError as error:
            if not error.retriable:
                raise
            return Answer(False, f"{type(error).__name__}: {error}", before.facts)
