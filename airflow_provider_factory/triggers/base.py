"""A trigger that asks Kafka again and again in threads of its own, and tells what it saw last in its event."""

from __future__ import annotations

import asyncio
import logging
import time
from abc import abstractmethod
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_factory.checks import Answer
from airflow_provider_factory.hooks.kafka import FactoryKafkaHook
from factory_agents.errors import FactoryError
from factory_agents.kafka.config import KafkaConfig

__all__ = ["KafkaTrigger"]

log = logging.getLogger(__name__)

_THREADS = ThreadPoolExecutor(max_workers=4, thread_name_prefix="factory-trigger")
"""Kafka's blocking calls wait here: neither the event loop nor the threads that other triggers share are held up."""


class KafkaTrigger(BaseTrigger):
    """Fires one event: ``met`` with figures, ``timeout`` with what was seen last, or ``error`` for what trying again cannot mend.

    A broker that doesn't answer is waited for. :param deadline: seconds since 1970 UTC, so that it holds over a restart of the triggerer.
    """

    path: ClassVar[str]

    def __init__(self, *, kafka_conn_id: str, question: Mapping[str, Any], poll_interval: float, deadline: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow's has no types
        self.kafka_conn_id = kafka_conn_id
        self.question = dict(question)
        self.poll_interval = poll_interval
        self.deadline = deadline

    @abstractmethod
    def ask(self, config: KafkaConfig) -> Answer:
        """One question to the cluster; blocks, and closes what it opens; raises FactoryError."""

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
        loop = asyncio.get_running_loop()
        config: KafkaConfig | None = None
        seen = Answer(False, "nothing was asked yet")
        while True:
            try:
                config = config or await FactoryKafkaHook(self.kafka_conn_id).aconfig()
                seen = await loop.run_in_executor(_THREADS, self.ask, config)
            except FactoryError as error:
                if not error.retriable:
                    return {"status": "error", "reason": f"{type(error).__name__}: {error}", "facts": dict(seen.facts)}
                seen = Answer(False, f"{type(error).__name__}: {error}", seen.facts)
            if seen.met:
                return {"status": "met", "reason": seen.reason, "facts": dict(seen.facts)}
            now = time.time()
            if now >= self.deadline:
                return {"status": "timeout", "reason": seen.reason, "facts": dict(seen.facts)}
            log.info("%s", seen.reason)
            await asyncio.sleep(self.pause(now))
