"""A session whose progress is a place in a log: it outlives windows, and whoever reads the log fences all who read it before."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from factory_agents.kafka.ledger import LedgerRecord, LedgerView, StageRecord, StreamRecord
from factory_agents.kafka.records import stream_key
from factory_agents.protocol import AgentResult, AgentRun, CodecRef, transactional_id
from factory_agents.runtime.session import RunContext, Session

__all__ = ["StreamSession"]


class StreamSession(Session):
    """One attempt at reading a log.

    ``stream`` is how far the log is in the topic; it is committed with each chunk, and after ``recover`` it is what was committed. A log
    is read once: a window that is finished is returned whatever is asked, one that was begun is gone on with.
    """

    default_codec = CodecRef("debezium", {"add": "lsn"})

    def __init__(self, context: RunContext, run: AgentRun, name: str, version: str, identity: dict[str, Any]) -> None:
        work = run.work
        super().__init__(
            context,
            run,
            name,
            version,
            identity,
            transactional_id=transactional_id(run.prefix, "stream", work.pipeline, work.stage, work.scope),
        )
        self.stream: StreamRecord | None = None

    def result_so_far(self) -> AgentResult:
        """What was done, of work that has no end."""
        return self._result(self.progress, None)

    @property
    def _stream_key(self) -> str:
        work = self.run.work
        return stream_key(work.pipeline, work.stage, work.scope)

    def _also_wanted(self) -> Iterable[bytes]:
        return [self._stream_key.encode()]

    def _found(self, view: LedgerView) -> None:
        found = view.get(self._stream_key)
        self.stream = found if isinstance(found, StreamRecord) else None

    def _beside(self) -> Sequence[LedgerRecord]:
        if self.stream is None:
            return ()
        self.stream = msgspec.structs.replace(self.stream, at=int(time.time() * 1000))
        return [self.stream]

    @property
    def _reuses(self) -> bool:
        return True

    def _told_again(self, record: StageRecord | None) -> bool:
        return False

    def _may_resume(self, record: StageRecord) -> bool:
        return True

    def _decide(self, record: StageRecord | None) -> AgentResult | None:
        if record is not None:
            self.fingerprint = record.fingerprint  # what was read stays read, whatever the parameters are now
        return super()._decide(record)
