"""The project's errors in Airflow's terms: what a retry cannot mend fails the task at once, the rest is retried."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from airflow.sdk.exceptions import AirflowFailException

from factory_agents.errors import FactoryError

__all__ = ["airflow_errors"]


@contextmanager
def airflow_errors() -> Iterator[None]:
    """Raise ``AirflowFailException`` (no retries) with the error's one line instead of a FactoryError that a retry cannot mend."""
    try:
        yield
    except FactoryError as error:
        if error.retriable:
            raise
        raise AirflowFailException(f"{type(error).__name__}: {error}") from None
