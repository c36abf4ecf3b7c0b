"""What the triggers of one triggerer share: for each cluster one client, and few threads in which its answers are waited for."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar
from weakref import WeakValueDictionary

from factory_agents.errors import FactoryError, UnavailableError
from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.lag import Lags
from factory_agents.kafka.topics import Cluster

__all__ = ["Client", "SharedCluster", "shared_cluster"]

log = logging.getLogger(__name__)

_Answer = TypeVar("_Answer")

_REST = 2.0
"""Seconds for which a cluster that didn't answer isn't asked again: hundreds of questions don't each wait for the same broker in vain."""
_PATIENCE = 5.0
"""Seconds that one request to a broker may take: what asks again in some seconds needn't wait longer."""
_ASKING, _READING = 8, 2
"""Threads for questions, and for those that read records."""


@dataclass(frozen=True)
class Client:
    """A cluster, and what was found out about lag on it."""

    config: KafkaConfig
    cluster: Cluster
    lags: Lags

    @classmethod
    def of(cls, config: KafkaConfig) -> Client:
        """A new one, which connects when it is asked first."""
        cluster = Cluster(config, timeout=_PATIENCE)
        return cls(config, cluster, Lags(config, cluster))


class SharedCluster:
    """One cluster's client, used in threads of its own: neither the event loop nor threads that other triggers use are held up.

    Questions about one subject (a topic) wait for each other, those about different ones don't; those that read many records have threads
    of their own. So what is slow about one topic, or for one trigger, is slow for that one.
    """

    def __init__(self, config: KafkaConfig, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.config = config
        self.users = 0
        self._client = Client.of(config)
        self._asking = ThreadPoolExecutor(_ASKING, thread_name_prefix="factory-kafka")
        self._reading = ThreadPoolExecutor(_READING, thread_name_prefix="factory-kafka-read")
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._clock = clock
        self._rests_until = float("-inf")
        self._trouble = ""

    async def ask(self, about: str, question: Callable[[Client], _Answer]) -> _Answer:
        """What ``question`` returns, called after those that came before it about the same subject; raises FactoryError."""
        turn = self._turns.setdefault(about, asyncio.Lock())
        async with turn:
            return await asyncio.get_running_loop().run_in_executor(self._asking, self._answer, question)

    async def read(self, question: Callable[[Client], _Answer]) -> _Answer:
        """The same for a question that reads records to be answered: it holds up no other but of this kind."""
        return await asyncio.get_running_loop().run_in_executor(self._reading, self._answer, question)

    def _answer(self, question: Callable[[Client], _Answer]) -> _Answer:
        if self._clock() < self._rests_until:
            raise UnavailableError(self._trouble)
        client = self._client
        try:
            return question(client)
        except UnavailableError as error:
            self._trouble = str(error)
            self._rests_until = self._clock() + _REST
            if client is self._client:  # librdkafka's admin client may stay deaf after an outage; those who ask it now keep it so long
                self._client = Client.of(self.config)
            raise
        except FactoryError:
            raise
        except Exception as error:  # a client's surprise is no reason to give up waiting
            log.exception("Asking %s failed", self.config.bootstrap)
            raise UnavailableError(f"asking {self.config.bootstrap}: {type(error).__name__}: {error}") from error

    def close(self) -> None:
        """Let the client and the threads go; what is being asked now is answered still."""
        self._asking.shutdown(wait=False)
        self._reading.shutdown(wait=False)
        self._client.cluster.close()


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
