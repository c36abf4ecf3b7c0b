"""Who tells people what happened to a window, so that a broken window is one message however many processes notice it.

Everybody who notices something appends a record to the ledger, reads it back with all that was appended before, and works out the same
answer: the author of the first such record sends the message, and says so in another one. The ledger's order decides; nothing is locked.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from confluent_kafka import KafkaError, KafkaException

from factory_agents.errors import UnavailableError
from factory_agents.failpoints import hit
from factory_agents.kafka.config import KafkaConfig, kafka_error
from factory_agents.kafka.ledger import Ledger, LedgerView
from factory_agents.kafka.records import AlertRecord, encode_record
from factory_agents.kafka.topics import Cluster

__all__ = ["ALERTS_KEPT_MS", "AlertLog", "Happening", "Standing", "standing"]

Happening: TypeAlias = Literal["failed", "late", "warned", "whole"]

ALERTS_KEPT_MS = 30 * 24 * 3600 * 1000
"""For how long it is remembered what people were told of a window that nobody repairs."""

_SECONDS = 30.0
_LEASE_SECONDS = 60.0
_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Standing:
    """What people know of a window: since when it has been broken (milliseconds; 0: it is not), how often something was noticed since.

    ``told`` are the messages that went out, ``telling`` those that the authors of these records are to send.
    """

    since: int = 0
    times: int = 0
    told: frozenset[str] = frozenset()
    telling: Mapping[str, str] = field(default_factory=dict)


def standing(records: Iterable[AlertRecord]) -> Standing:
    """What one window's records come to, in the order of the ledger.

    The first failure, the first lateness (unless it is known to have failed) and the first warning are told. When the window is whole, and
    people were told that it was not, they are told that too, and everything begins again.
    """
    now = Standing()
    for record in records:
        now = _sent(now, record) if record.what == "sent" else _happened(now, record)
    return now


def _sent(now: Standing, record: AlertRecord) -> Standing:
    done = {what for what, of in now.telling.items() if of == record.of}
    telling = {what: of for what, of in now.telling.items() if what not in done}
    return Standing(now.since, now.times, now.told | done, telling)


def _happened(now: Standing, record: AlertRecord) -> Standing:
    what, sender = record.what, now.telling.get(record.what)
    telling = {**now.telling, what: record.id if sender in (None, record.of) else sender}
    if what == "whole":
        if now.since:  # broken, perhaps for the second time before the first end was told
            return Standing(telling={what: telling[what]})
        return now if sender is None else Standing(now.since, now.times, now.told, telling)
    times = now.times + (not record.of)
    since = now.since or (record.at if what in ("failed", "late") else 0)
    known = what in now.told or (what == "late" and ("failed" in now.told or "failed" in now.telling))
    return Standing(since, times, now.told, now.telling if known and sender is None else telling)


class AlertLog:
    """What people were told of one window. ``lease``: seconds after which whoever was to send a message is taken to have died."""

    def __init__(self, config: KafkaConfig, *, pipeline: str, window: str, prefix: str = "factory", lease: float = _LEASE_SECONDS) -> None:
        self._config, self._pipeline, self._window, self._prefix, self._lease = config, pipeline, window, prefix, lease

    def say(self, what: Happening, who: str, tell: Callable[[Standing], None]) -> bool:
        """Note what happened, and call ``tell`` if the message is this caller's to send: whether it was.

        ``tell`` is given what stood before. It waits while another one sends the same message, to send it should that one have died. An
        error of ``tell`` is raised, and the message is left to whoever comes next. Raises a FactoryError where the ledger cannot be used.
        """
        with Cluster(self._config, timeout=_SECONDS) as cluster:
            ledger = Ledger(self._config, cluster, prefix=self._prefix, pipeline=self._pipeline)
            ledger.ensure()
            seen = _Seen(ledger, self._window)
            if what == "whole" and not standing(seen.records()).since:
                return False
            record = self._append(ledger, self._record(what, who))
            before = seen.until(record)
            sender = self._sender(seen, record)
            if sender is not None and sender != record.id:  # it seems to have died
                record = self._append(ledger, self._record(what, who, of=sender))
                before = seen.until(record)
                sender = standing(seen.records()).telling.get(what)
            if sender != record.id:
                return False
            hit("alert.before-tell")
            tell(before)
            if what != "whole":
                self._append(ledger, self._record("sent", who, of=record.id))
            self._forget(ledger, seen, record)
            return True

    def _record(self, what: Happening | Literal["sent"], who: str, of: str = "") -> AlertRecord:
        return AlertRecord(
            pipeline=self._pipeline, window=self._window, id=uuid.uuid4().hex, what=what, at=int(time.time() * 1000), who=who, of=of
        )

    def _sender(self, seen: _Seen, record: AlertRecord) -> str | None:
        """Whose message it is; another one's that was not sent within the lease, which begins when it takes over from one that died."""
        waits_for, until = None, 0.0
        while (sender := standing(seen.records()).telling.get(record.what)) not in (None, record.id):
            if sender != waits_for:
                waits_for, until = sender, time.monotonic() + self._lease
            elif time.monotonic() > until:
                break
            time.sleep(_POLL_SECONDS)
            seen.more()
        return sender

    def _append(self, ledger: Ledger, record: AlertRecord) -> AlertRecord:
        self._write(ledger, {record.key(): encode_record(record)})
        return record

    def _forget(self, ledger: Ledger, seen: _Seen, record: AlertRecord) -> None:
        """Of a window that is whole everything up to that record, the oldest first; of others what lies there for very long."""
        old = seen.keys_before(record) if record.what == "whole" else seen.keys_older(record.at - ALERTS_KEPT_MS)
        if old:
            self._write(ledger, dict.fromkeys(old))

    def _write(self, ledger: Ledger, records: Mapping[str, bytes | None]) -> None:
        refused: list[KafkaError] = []

        def delivered(error: KafkaError | None, _: object) -> None:
            if error is not None:
                refused.append(error)

        producer = self._config.plain_producer(message_timeout_ms=int(_SECONDS * 1000))
        doing, needed = f"writing to the ledger {ledger.topic}", {"topic": f"WRITE on topic {ledger.topic!r}"}
        try:
            for key, value in records.items():
                producer.produce(ledger.topic, value, key.encode(), partition=ledger.partition, on_delivery=delivered)
            left = producer.flush(_SECONDS + 1)
        except KafkaException as error:
            raise kafka_error(error, doing, **needed) from error
        if refused:
            raise kafka_error(refused[0], doing, **needed)
        if left:
            raise UnavailableError(f"{doing}: the broker did not answer in {_SECONDS:g} s")


class _Seen:
    """What was read so far of the alerts of a pipeline."""

    def __init__(self, ledger: Ledger, window: str) -> None:
        self._ledger, self._window = ledger, window
        self._view = LedgerView(ledger.pipeline, (b"alert|",))
        self.more()

    def more(self) -> None:
        """Read on to the end, which waits for open transactions before it."""
        self._ledger.follow(self._view, deadline=time.monotonic() + _SECONDS * 3)

    def records(self) -> list[AlertRecord]:
        """Those of the window, the oldest first."""
        return [r for r in self._view.of(AlertRecord) if r.window == self._window]

    def until(self, record: AlertRecord) -> Standing:
        """What stood before a record that was written just now."""
        self.more()
        records = self.records()
        return standing(records[: next((i for i, r in enumerate(records) if r.id == record.id), len(records))])

    def keys_before(self, record: AlertRecord) -> list[str]:
        """The keys of the window's records up to this one."""
        last = self._view.offset(record.key())
        return [r.key() for r in self.records() if last is not None and (self._view.offset(r.key()) or 0) <= last]

    def keys_older(self, than: int) -> list[str]:
        """The keys of all records of before a time (milliseconds)."""
        return [r.key() for r in self._view.of(AlertRecord) if r.at < than]
