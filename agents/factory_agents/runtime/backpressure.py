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
_UNKNOWN = 1_000_000_000
_LIST_SECONDS = 15.0
"""How often all of the cluster's groups are asked whether they read the topic; in between, only those that do."""


def too_far(lag: int, most: int, was: bool) -> bool:
    """Whether a lag is too much: more than ``most``, or than half of that where it ``was`` too much before."""
    return lag > (most // 2 if was else most)


class Downstream:
    """Asks once a second, in a thread of its own, how far a topic's consumer groups (or one of them) are behind; but shadows.

    Between two looks the writer counts: it may write as much (``room``) as the furthest group was short of ``most`` at the last one. When
    that is used up, it waits until that group is at half of ``most``: a writer that went on at once would switch all the time. While the
    lag cannot be asked, the last answer holds.
    """

    def __init__(self, config: KafkaConfig, topic: str, most: int, *, group: str = "", every: float = _EVERY_SECONDS) -> None:
        self._config = config
        self._topic, self._group = topic, group
        self._most = most
        self._every = every
        self._ended = False
        self._turn = threading.Condition()
        self._looks = 0
        self._is_asked = False
        self._readers: list[str] = []
        self._list_at = 0.0
        self._written = self._written_then = 0
        self._room, self._is_used_up = 0, False
        self.is_behind = False
        self._thread = threading.Thread(target=self._ask, name="back-pressure", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ask no more; a question under way is left to end by itself."""
        with self._turn:
            self._ended = True
            self._turn.notify_all()

    def wrote(self, records: int) -> None:
        """So many more records are committed."""
        self._written += records

    def room(self, uncommitted: int = 0, share: float = 1.0) -> int:
        """How many more records may be written beside those that are not committed; 0: ``look`` again.

        ``share`` is this writer's of all that write to the topic.
        """
        room = int(self._room * share) - (self._written - self._written_then) - uncommitted
        self._is_used_up = self._looks > 0 and room <= 0
        return 0 if self.is_behind else max(0, room)

    def look(self, seconds: float) -> None:
        """Have the lag looked at now, and wait for it, at most so long."""
        with self._turn:
            seen = self._looks
            self._is_asked = True
            self._turn.notify_all()
            self._turn.wait_for(lambda: self._looks > seen, seconds)

    def _ask(self) -> None:
        with Cluster(self._config) as cluster:
            lags = Lags(self._config, cluster)
            while not self._ended:
                written = self._written  # what is committed while it looks counts twice: rather too much than too little
                try:
                    self._judge(*self._furthest(lags), written)
                except FactoryError as error:
                    self._list_at = 0.0  # one of them may be gone
                    self._written_then, self._room = written, _UNKNOWN
                    log.info("the readers' lag cannot be read now", extra=fields(topic=self._topic, reason=str(error)))
                with self._turn:
                    self._looks += 1
                    self._is_asked = False
                    self._turn.notify_all()
                    self._turn.wait_for(lambda: self._ended or self._is_asked, self._every)

    def _furthest(self, lags: Lags) -> tuple[str, int]:
        if self._group:
            of: Mapping[str, Sequence[PartitionLag]] = {self._group: lags.of_group(self._group, [self._topic])}
        elif time.monotonic() >= self._list_at:
            of = {group: found for group, found in lags.of_topics([self._topic]).items() if not is_shadow(group)}
            self._readers, self._list_at = list(of), time.monotonic() + _LIST_SECONDS
        else:
            of = {group: lags.of_group(group, [self._topic]) for group in self._readers}
        return max(((name, sum(p.lag for p in found)) for name, found in of.items()), key=lambda pair: pair[1], default=("", 0))

    def _judge(self, group: str, lag: int, written: int) -> None:
        behind = too_far(lag, self._most, self.is_behind or self._is_used_up)
        self._written_then, self._room = written, max(0, self._most - lag)
        if behind != self.is_behind:
            what = "waiting for the readers of the output topic" if behind else "the readers of the output topic have caught up"
            log.warning(what, extra=fields(topic=self._topic, group=group, lag=lag, most=self._most))
            self.is_behind = behind
