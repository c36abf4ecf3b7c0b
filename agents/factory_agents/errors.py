"""The errors users meet: one clear line each, and whether trying again can help."""

from __future__ import annotations

from typing import Any

__all__ = [
    "AccountingError",
    "AgentCrashedError",
    "AgentError",
    "ConfigurationError",
    "ContractError",
    "DataLossError",
    "DeadlineError",
    "DryRunError",
    "FactoryError",
    "FencedError",
    "ForeignResultError",
    "ForgedRecordError",
    "RolledBackError",
    "SinkBackpressureError",
    "SinkError",
    "StoppedError",
    "TooManyRejectedError",
    "UnavailableError",
    "UnreadableBatchError",
    "ValidationFailedError",
    "WindowError",
]


class FactoryError(Exception):
    """Root of every error this project raises on purpose.

    The message says what was expected, what came, where, and what to do. ``retriable`` tells an orchestrator whether the
    same attempt may succeed later without anybody changing anything.
    """

    retriable = False


class ConfigurationError(FactoryError, ValueError):
    """A flag, an environment variable, a file or a connection says something that cannot be used."""


class ContractError(FactoryError, ValueError):
    """A data contract cannot be read; the message begins with ``file:line:column``."""


class WindowError(FactoryError, ValueError):
    """A window or a plan cannot be made or used: backwards, without an interval, overlapping, incomplete."""


class DryRunError(WindowError):
    """What a stage should read is the result of a dry run, which wrote nothing."""


class DataLossError(FactoryError):
    """Records that a window or a manifest promises are gone: truncated, recreated, fewer than counted."""


class ForgedRecordError(FactoryError):
    """There are more records under a writer's name than its manifest counts."""


class UnreadableBatchError(DataLossError):
    """A batch in a topic that no consumer can read: it expands past every limit, or is damaged. Its offsets are [``start``, ``end``).

    They are -1 where another process tells of it.
    """

    def __init__(self, message: str, *, start: int = -1, end: int = -1) -> None:
        super().__init__(message)
        self.start = start
        self.end = end


class AgentError(FactoryError):
    """An agent cannot be loaded, or broke outside the handling of one event."""


class AgentCrashedError(FactoryError, RuntimeError):
    """An agent ended without a result: killed, out of memory, or never started properly. A retry resumes."""

    retriable = True


class ForeignResultError(AgentCrashedError):
    """What an agent left as its result is another run's, or none that a run leaves: its code is at fault, and a retry runs the same."""

    retriable = False


class TooManyRejectedError(FactoryError):
    """More events were rejected than the stage tolerates. ``reasons``: why, of a dry run (see ``AgentResult``)."""

    reasons: tuple[Any, ...] = ()


class ValidationFailedError(FactoryError):
    """A validation report breaks a threshold: the data is bad, a retry reads the same data."""


class AccountingError(FactoryError):
    """consumed = forwarded + filtered + rejected does not hold: a bug, never to be passed over."""


class RolledBackError(FactoryError):
    """A version of a live agent did worse than the one before it, and was taken back."""


class SinkError(FactoryError):
    """A sink refuses what it was given: a table that does not fit, an older generation."""


class UnavailableError(FactoryError, ConnectionError):
    """A broker or a database did not answer, or answered that it cannot now."""

    retriable = True


class SinkBackpressureError(UnavailableError):
    """A sink can take no more for now, and has kept nothing of what it was given: it is given that again after ``retry_after`` seconds.

    :param message: one line for a person.
    :param retry_after: seconds.

    Example::

        def stage(self, part, rows):  # of a LedgerSink
            answer = self.client.post(f"/staged/{part.name}", rows.rows)
            if answer.status == 429:
                raise SinkBackpressureError(retry_after=float(answer.headers["Retry-After"]))
    """

    def __init__(self, message: str = "the sink can take no more for now", *, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DeadlineError(FactoryError, TimeoutError):
    """Time ran out before the whole window was done; what is committed stays and a retry resumes."""

    retriable = True


class FencedError(FactoryError):
    """A newer attempt at the same work took over; this one stopped without committing."""

    retriable = True


class StoppedError(FactoryError):
    """The process was asked to stop (SIGTERM, a closed standard input); a retry resumes."""

    retriable = True
