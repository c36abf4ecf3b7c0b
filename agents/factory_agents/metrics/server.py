"""Serves metrics out of snapshots that threads of its own take: no request waits for Kafka."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from factory_agents.errors import FactoryError
from factory_agents.kafka.ages import FirstUnread
from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.lag import Lags
from factory_agents.kafka.ledger import Ledger, ledger_topic
from factory_agents.kafka.topics import Cluster
from factory_agents.metrics.lags import LagChoice
from factory_agents.metrics.part import Part
from factory_agents.metrics.positions import Positions
from factory_agents.metrics.tally import LedgerTally, Told
from factory_agents.telemetry import fields
from factory_agents.telemetry.metrics import Values, encoder, require_encoder
from factory_agents.telemetry.serving import Answer, Asked, SmallServer, text
from factory_agents.telemetry.shown import Shown

__all__ = ["MetricsServer", "default_group"]

log = logging.getLogger(__name__)

_LEDGER_SECONDS = 1.0
_ASK_SECONDS = 5.0
_READ_SECONDS = 60.0
_ENDING_SECONDS = 2.0


def default_group(prefix: str) -> str:
    """The group that keeps a ledger's positions: ``factory.metrics`` for the ledger ``factory.ledger``."""
    return f"{prefix}.metrics"


class MetricsServer:
    """One server: counts the ledger, asks for lag every ``every`` seconds, and answers at ``/metrics``.

    Raises ConfigurationError where it cannot listen. One replica: two of one group would count what the other has counted.
    """

    def __init__(
        self,
        config: KafkaConfig,
        *,
        listen: str,
        prefix: str = "factory",
        group: str = "",
        every: float = 15.0,
        lag: LagChoice | None = None,
    ) -> None:
        require_encoder()
        self._config, self._prefix, self._every, self._choice = config, prefix, every, lag or LagChoice()
        self._told = Told()
        self._shown = Shown(self._told)
        self._lags: Values = {}
        self._ledger, self._lag, kept = self._parts = (Part("ledger"), Part("lag"), Part("positions"))
        self._positions = Positions(config, ledger_topic(prefix), group or default_group(prefix), kept)
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=work, daemon=True, name=work.__name__) for work in (self._follow, self._measure)]
        self._http = SmallServer(listen, {"/metrics": self._metrics, "/livez": self._livez, "/readyz": self._readyz}, where="--listen")

    @property
    def address(self) -> str:
        """Where it listens."""
        return self._http.address

    def start(self) -> None:
        """Begin to look."""
        log.info("serving metrics", extra=fields(address=self.address))
        self._positions.start()
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End it; what was shown is kept."""
        self._stop.set()
        self._http.close()
        self._positions.close()
        until = time.monotonic() + _ENDING_SECONDS
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, until - time.monotonic()))

    def _metrics(self, asked: Asked) -> Answer:
        values, sent = self._shown.to(asked.client)
        encode, content_type = encoder(asked.accept)
        parts = {series: figures for part in self._parts for series, figures in part.values().items()}
        body = encode({**values, **self._lags, **parts})

        def had() -> None:
            sent()
            self._positions.keep(self._shown.whole)

        return Answer(body, content_type, sent=had)

    def _livez(self, asked: Asked) -> Answer:
        dead = [thread.name for thread in self._threads if not thread.is_alive()]
        return text("ok") if not dead else text(f"ended: {', '.join(dead)}", 503)

    def _readyz(self, asked: Asked) -> Answer:
        waiting = [part.name for part in (self._ledger, self._lag) if not part.taken_at]
        return text("ok") if not waiting else text(f"not read yet: {', '.join(waiting)}", 503)

    def _repeat(self, part: Part, every: float, work: Callable[[], None]) -> None:
        while not self._stop.is_set():
            try:
                work()
                part.took()
            except FactoryError as error:
                part.failed(error)
            except Exception as error:
                part.failed(error)
                log.exception("unexpected error; please report it")
            self._stop.wait(every)

    def _follow(self) -> None:
        tally: LedgerTally | None = None
        cluster = Cluster(self._config, timeout=_ASK_SECONDS)
        ledger = Ledger(self._config, cluster, prefix=self._prefix, pipeline="")

        def look() -> None:
            nonlocal tally
            if tally is None:
                topic_id, counted = self._positions.load()
                tally = LedgerTally(counted, topic_id)
            if cluster.find(ledger.topic) is None:
                return
            before = dict(tally.positions)
            try:
                ledger.follow(tally, deadline=time.monotonic() + _READ_SECONDS, stable=True)
            finally:
                if tally.positions != before:
                    self._told = tally.told()
            if self._told.number:
                self._shown.tell(self._told)

        self._repeat(self._ledger, _LEDGER_SECONDS, look)
        cluster.close()

    def _measure(self) -> None:
        cluster = Cluster(self._config, timeout=_ASK_SECONDS)
        lags, unread = Lags(self._config, cluster), FirstUnread(self._config)

        def look() -> None:
            failed: list[FactoryError] = []
            self._lags = self._choice.values(lags, unread, self._told.cuts, failed)
            if failed:
                self._lag.taken_at = time.monotonic()  # of all other groups and topics it is known
                raise failed[0]

        self._repeat(self._lag, self._every, look)
        cluster.close()
