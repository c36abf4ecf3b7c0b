"""Back-pressure: whether those who read what an agent writes are so far behind that it should wait for them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence

from factory_agents.errors import FactoryError
from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.lag import Lags, PartitionLag
from factory_agents.kafka.routes import is_shadow
from factory_agents.kafka.topics import Cluster
from factory_agents.telemetry import fields

__all__ = ["Downstream"]

log = logging.getLogger(__name__)

_EVERY_SECONDS = 1.0
_LIST_SECONDS = 15.0
"""How often all of the cluster's groups are asked whether they read the topic; in between, only those that do."""


def too_far(lag: int, most: int, was: bool) -> bool:
    """Whether a lag is too much: more than ``most``, or than half of that where it ``was`` too much before."""
    return lag > (most // 2 if was else most)


class Downstream:
    """Asks once a second, in a thread of its own, how far a topic's consumer groups (or one of them) are behind; but shadows.

    ``is_behind`` from more than ``most`` records on, until they are half of that: an agent that switched at one limit would do so all the
    time. While that cannot be asked, the last answer holds.
    """

    def __init__(self, config: KafkaConfig, topic: str, most: int, *, group: str = "", every: float = _EVERY_SECONDS) -> None:
        self._config = config
        self._topic, self._group = topic, group
        self._most = most
        self._every = every
        self._ended, self._has_looked = threading.Event(), threading.Event()
        self._readers: list[str] = []
        self._list_at = 0.0
        self.is_behind = False
        self._thread = threading.Thread(target=self._ask, name="back-pressure", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ask no more; a question under way is left to end by itself."""
        self._ended.set()

    def wait_for_a_look(self, seconds: float) -> None:
        """Wait until the lag was asked for once, at most so long."""
        self._has_looked.wait(seconds)

    def _ask(self) -> None:
        with Cluster(self._config) as cluster:
            lags = Lags(self._config, cluster)
            while not self._ended.is_set():
                try:
                    self._judge(*self._furthest(lags))
                except FactoryError as error:
                    self._list_at = 0.0  # one of them may be gone
                    log.info("the readers' lag cannot be read now", extra=fields(topic=self._topic, reason=str(error)))
                self._has_looked.set()
                self._ended.wait(self._every)

    def _furthest(self, lags: Lags) -> tuple[str, int]:
        if self._group:
            of: Mapping[str, Sequence[PartitionLag]] = {self._group: lags.of_group(self._group, [self._topic])}
        elif time.monotonic() >= self._list_at:
            of = {group: found for group, found in lags.of_topics([self._topic]).items() if not is_shadow(group)}
            self._readers, self._list_at = list(of), time.monotonic() + _LIST_SECONDS
        else:
            of = {group: lags.of_group(group, [self._topic]) for group in self._readers}
        return max(((name, sum(p.lag for p in found)) for name, found in of.items()), key=lambda pair: pair[1], default=("", 0))

    def _judge(self, group: str, lag: int) -> None:
        behind = too_far(lag, self._most, self.is_behind)
        if behind != self.is_behind:
            what = "waiting for the readers of the output topic" if behind else "the readers of the output topic have caught up"
            log.warning(what, extra=fields(topic=self._topic, group=group, lag=lag, most=self._most))
            self.is_behind = behind
