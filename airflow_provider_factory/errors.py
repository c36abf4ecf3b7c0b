"""The project's errors in Airflow's terms: what a retry cannot mend fails the task at once, the rest is retried."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from airflow.sdk.exceptions import AirflowFailException

from factory_agents import errors
from factory_agents.errors import FactoryError
from factory_agents.protocol import AgentResult
from factory_agents.text import printable

__all__ = ["AgentCrashedError", "ForeignResultError", "agent_error", "airflow_errors"]

_LONGEST = 4000


class AgentCrashedError(FactoryError, RuntimeError):
    """An agent ended without a result: killed, out of memory, or never started properly. A retry resumes."""

    retriable = True


class ForeignResultError(AgentCrashedError):
    """What an agent left as its result is another run's, or none that a run leaves: its code is at fault, and a retry runs the same."""

    retriable = False


def agent_error(result: AgentResult) -> FactoryError:
    """The error that a failed result tells of, as the class it was in the agent where that is one of ours, its message cut and escaped."""
    info = result.error
    if info is None:
        return AgentCrashedError(f"agent {result.agent or result.stage!r} failed without saying why; see its log above")
    kind: type[FactoryError] = getattr(errors, info.type) if info.type in errors.__all__ else AgentCrashedError
    message = printable(info.message if len(info.message) <= _LONGEST else f"{info.message[:_LONGEST]}…")
    error = kind(message)
    error.retriable = info.retriable
    return error


@contextmanager
def airflow_errors() -> Iterator[None]:
    """Raise ``AirflowFailException`` (no retries) with the error's one line instead of a FactoryError that a retry cannot mend."""
    try:
        yield
    except FactoryError as error:
        if error.retriable:
            raise
        raise AirflowFailException(f"{type(error).__name__}: {error}") from None
