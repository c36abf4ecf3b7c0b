"""What a retry can help is said by the error itself; all have one root."""

from __future__ import annotations

import inspect
import pickle

import pytest

from factory_agents import errors
from factory_agents.errors import FactoryError, SinkBackpressureError, UnreadableBatchError

ALL = [getattr(errors, name) for name in errors.__all__]
RETRIABLE = {"AgentCrashedError", "DeadlineError", "FencedError", "SinkBackpressureError", "StoppedError", "UnavailableError"}


def test_there_is_one_root() -> None:
    assert all(issubclass(error, FactoryError) for error in ALL)
    here = {name for name, found in inspect.getmembers(errors, inspect.isclass) if found.__module__ == errors.__name__}
    assert here == set(errors.__all__)


def test_only_what_passes_by_itself_is_worth_a_retry() -> None:
    assert {error.__name__ for error in ALL if error.retriable} == RETRIABLE


@pytest.mark.parametrize("error", ALL, ids=lambda error: error.__name__)
def test_an_error_passes_from_process_to_process(error: type[FactoryError]) -> None:
    again = pickle.loads(pickle.dumps(error("one line")))
    assert (type(again), str(again)) == (error, "one line")


def test_what_an_error_carries_beside_its_line() -> None:
    assert SinkBackpressureError(retry_after=3).retry_after == 3
    assert (UnreadableBatchError("no").start, UnreadableBatchError("no", start=4, end=9).end) == (-1, 9)
