"""What the triggers of one triggerer share: for each cluster one client, and one thread in which its answers are waited for."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from factory_agents.errors import FactoryError, UnavailableError
from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.topics import Cluster

__all__ = ["SharedCluster", "shared_cluster"]

log = logging.getLogger(__name__)

_Answer = TypeVar("_Answer")

_REST = 5.0
"""Seconds for which a cluster that didn't answer isn't asked again: hundreds of questions don't each wait for the same broker in vain."""


class SharedCluster:
    """One cluster's client, used in one thread of its own: neither the event loop nor threads that other triggers use are held up."""

    def __init__(self, config: KafkaConfig, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.config = config
        self.users = 0
        self._cluster = Cluster(config)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="factory-kafka")
        self._clock = clock
        self._rests_until = float("-inf")
        self._trouble = ""

    async def ask(self, question: Callable[[KafkaConfig, Cluster], _Answer]) -> _Answer:
        """What ``question`` returns, called with this cluster's client after those that came before it; raises FactoryError."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._answer, question)

    def _answer(self, question: Callable[[KafkaConfig, Cluster], _Answer]) -> _Answer:
        if self._clock() < self._rests_until:
            raise UnavailableError(self._trouble)
        try:
            return question(self.config, self._cluster)
        except UnavailableError as error:
            self._trouble = str(error)
            self._rests_until = self._clock() + _REST
            self._cluster.close()  # librdkafka's admin client may stay deaf after an outage: the next question makes a new one
            raise
        except FactoryError:
            raise
        except Exception as error:  # a client's surprise is no reason to give up waiting
            log.exception("Asking %s failed", self.config.bootstrap)
            raise UnavailableError(f"asking {self.config.bootstrap}: {type(error).__name__}: {error}") from error

    def close(self) -> None:
        """Let the client and the thread go; what is being asked now is answered still."""
        self._thread.shutdown(wait=False)
        self._cluster.close()


_shared: dict[tuple[tuple[str, str], ...], SharedCluster] = {}


@contextmanager
def shared_cluster(config: KafkaConfig) -> Iterator[SharedCluster]:
    """The one that everybody uses who has this configuration, closed when the last of them leaves. For use in one event loop."""
    key = tuple(sorted(config.to_env().items()))
    shared = _shared.get(key)
    if shared is None:
        shared = _shared[key] = SharedCluster(config)
    shared.users += 1
    try:
        yield shared
    finally:
        shared.users -= 1
        if not shared.users:
            del _shared[key]
            shared.close()
