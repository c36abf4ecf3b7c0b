"""One transaction's worth of records: put in, then committed with what tells of them, or dropped and tried again."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from factory_agents.errors import ConfigurationError
from factory_agents.kafka.messages import Message
from factory_agents.kafka.writer import ChunkAbortedError, TransactionalWriter
from factory_agents.protocol import Counts
from factory_agents.runtime.agents import Output, SideLog, SideRecord
from factory_agents.runtime.outputs import Outputs
from factory_agents.telemetry import Age, Commit, Observer, Subject, fields

__all__ = ["Chunk"]

log = logging.getLogger(__name__)

_MOST_ABORTS = 5
_CAREFUL = 1_000
_AGE_OF_ONE_IN = 1_000


class Chunk:
    """The chunk that a run is at; the next one begins where it ends, by ``commit`` or ``abort``.

    ``size`` is how many events it may hold: ``largest``, fewer after a refusal, and twice as many after each commit. ``records`` are in it
    now. ``name`` is in errors and logs; ``observer`` is told of commits and aborts.
    """

    def __init__(
        self,
        writer: TransactionalWriter,
        outputs: Outputs,
        *,
        largest: int,
        name: str,
        observer: Observer,
        subject: Subject,
        most_aborts: int = _MOST_ABORTS,
    ) -> None:
        self._writer = writer
        self._outputs = outputs
        self._name = name
        self._observer, self._subject = observer, subject
        self._most_aborts = most_aborts
        self._largest = max(1, largest)
        self.size = self._largest
        self.records = 0
        self._aborts = 0
        self._began = 0.0
        self.side: SideLog | None = None
        self._beside: Sequence[SideRecord] = ()
        self._written: list[int] = []

    @property
    def room(self) -> int:
        """How many more events fit, at least one."""
        return max(1, self.size - self.records)

    @property
    def is_full(self) -> bool:
        """Whether it is time to commit, by the number of events."""
        return self.records >= self.size

    @property
    def age(self) -> float:
        """Seconds since its first event was put; 0 while there is none."""
        return time.monotonic() - self._began if self.records else 0.0

    @property
    def is_begun(self) -> bool:
        """Whether there is anything to commit."""
        return self.records > 0 or self.side_age > 0

    @property
    def side_age(self) -> float:
        """For how many seconds something beside the outputs has been waiting; 0: nothing is."""
        return self.side.age if self.side is not None else 0.0

    def take_side(self, counts: Counts) -> None:
        """Have what is to be committed beside the outputs in this chunk; before ``commit``. What it cost is added to ``counts``."""
        if self.side is not None:
            self._beside = [*self._beside, *self.side.take(counts)]

    def add(self, events: int) -> None:
        """Count events whose records are put by the caller."""
        if not self.records:
            self._began = time.monotonic()
        self.records += events

    def put(
        self, messages: Sequence[Message], outputs: Sequence[Output], counts: Counts, *, carriers: Sequence[Message] | None = None
    ) -> None:
        """Put what became of a batch of events: see ``Outputs.put``."""
        self.add(len(messages))
        self._written += [message.timestamp()[1] for message in messages[::_AGE_OF_ONE_IN]]
        self._outputs.put(messages, outputs, counts, carriers=carriers)

    def commit(self, deadline: float, seal: Callable[[], None], counts: Counts) -> None:
        """Commit all that was put. ``seal`` comes last, when everything is in the log: it adds what tells of the chunk.

        ``counts`` are of the whole work with this chunk. Raises ChunkAbortedError where it may be tried again (``retry``), and what
        ``TransactionalWriter`` and ``seal`` do.
        """
        began = time.monotonic()
        self._writer.begin()
        self._put_side()
        self._writer.flush(deadline)
        seal()
        self._writer.commit(deadline)
        figures, took = self._outputs.figures(), time.monotonic() - began
        commit = Commit(
            self.records,
            figures.written,
            figures.bytes,
            took,
            figures.rejected,
            counts.consumed,
            counts.rejected,
            counts.told(),
            _ages(self._written, self._outputs.followed),
        )
        self._outputs.forget(committed=True)
        self._settle_side(committed=True)
        self.records = self._aborts = 0
        self._written = []
        self.size = min(self._largest, self.size * 2)
        if self.size >= min(self._largest, 2 * _CAREFUL):
            self._outputs.refusals.careful = False
        self._observer.committed(self._subject, commit)

    def abort(self, reason: str) -> None:
        """End the transaction without its outputs. Raises FencedError where a newer producer has taken over."""
        if self.records:
            self._observer.aborted(self._subject, self.records, reason)
        self.forget()
        self._writer.abort()

    def forget(self, *, committed: bool = False) -> None:
        """Begin the next one: of this one nothing will be written. ``committed``: nor does it come again (a dry run)."""
        self.records = 0
        self._written = []
        self._outputs.forget(committed=committed)
        self._settle_side(committed=committed)

    def _put_side(self) -> None:
        for topic, partition, key, value in self._beside:
            error = self._writer.send(topic, value, key, partition, [])
            if error is not None:
                raise ConfigurationError(f"{self._name}: topic {topic!r} takes no record of {len(value)} bytes: {error.str()}")

    def _settle_side(self, *, committed: bool) -> None:
        self._beside = ()
        if self.side is not None:
            self.side.settle(committed=committed)

    def retry(self, aborted: ChunkAbortedError) -> None:
        """Decide how the chunk is tried again, which the caller does after ``abort``.

        Without the events that are known to be refused; where it isn't known which those are, in halves until the culprit is alone. Raises
        what was the cause once that has happened several times in a row and nothing was refused, ConfigurationError where a single event is
        refused for no reason that can be found.
        """
        refusals = self._outputs.refusals
        if not aborted.refused:
            self._aborts += 1
            if self._aborts >= self._most_aborts:
                raise aborted.cause
        elif not self._outputs.mark_refused(aborted, alone=self.records <= 1):
            if refusals.careful:
                if self.records <= 1:
                    raise ConfigurationError(f"{self._name}: a record is refused: {aborted.cause}") from aborted
                self.size = max(1, min(self.size, self.records) // 2)
            else:
                refusals.careful = True
                self.size = max(1, min(self.size, self.records, _CAREFUL))
        log.warning("chunk aborted, trying it again", extra=fields(at=self._name, records=self.size, reason=str(aborted.cause)))


def _ages(written: Sequence[int], followed: Sequence[tuple[int, str]]) -> Sequence[Age]:
    """Of events by when they were written, in milliseconds since 1970; those without a timestamp (-1) have none."""
    now = time.time()
    return [Age(max(0.0, now - at / 1e3), trace_id) for at, trace_id in (*((at, "") for at in written), *followed) if at >= 0]
