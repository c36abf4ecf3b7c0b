"""What an agent loads once a process, and events as columns: for models that are asked without an API."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from factory_agents.errors import AgentError, ConfigurationError, FactoryError

__all__ = ["loaded", "with_columns"]

_loaded: dict[Callable[[], Any], Any] = {}
_lock = threading.Lock()


def loaded(load: Callable[[], Any]) -> Any:
    """What ``load`` gives, called once in this process however many agents ask. Raises AgentError with what it raised."""
    try:
        return _loaded[load]
    except KeyError:
        pass
    with _lock:
        if load not in _loaded:
            try:
                _loaded[load] = load()
            except (FactoryError, MemoryError):
                raise
            except Exception as error:
                name = getattr(load, "__qualname__", repr(load))
                raise AgentError(f"{name}, which loads what the agent needs, raised {type(error).__name__}: {error}") from error
    return _loaded[load]


def with_columns(function: Callable[..., Any], form: str, name: str) -> Callable[..., Any]:
    """A function of columns as one of events: it gets each field of theirs, None where an event has none, and gives fields to add."""
    as_columns = {"numpy": _numpy, "arrow": _arrow}[form]

    def call(events: list[dict[str, Any]], *more: Any, **params: Any) -> list[dict[str, Any]]:
        columns = function(as_columns(events, name), *more, **params)
        if not isinstance(columns, Mapping):
            raise AgentError(f"agent {name!r}: batch={form!r}: expected a mapping of columns to add, got {type(columns).__name__}")
        for field, column in columns.items():
            values = column.to_pylist() if hasattr(column, "to_pylist") else column.tolist() if hasattr(column, "tolist") else list(column)
            if len(values) != len(events):
                raise AgentError(f"agent {name!r}: a batch of {len(events)} events must give {len(events)} of {field!r}, got {len(values)}")
            for event, value in zip(events, values, strict=True):
                before = event.get(field)
                if type(value) is not float or type(before) is bool or before != value:  # one that was left alone keeps its digits
                    event[field] = value
        return events

    return call


def _fields(events: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(field for event in events for field in event))


def _numpy(events: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """A NumPy array for each field."""
    try:
        import numpy as np
    except ImportError as error:
        raise ConfigurationError(f"agent {name!r}: batch='numpy' needs NumPy ({error}): pip install numpy") from None
    columns: dict[str, Any] = {}
    for field in _fields(events):
        values = [event.get(field) for event in events]
        columns[field] = np.array(values, dtype=None if _fit(values) else object)
    return columns


def _fit(values: list[Any]) -> bool:
    """Whether all are numbers of which an array of one type holds every digit."""
    kinds = set(map(type, values))
    most = 2**53 if float in kinds else 2**63 - 1
    return kinds <= {int, float} and all(type(value) is float or -most <= value <= most for value in values)


def _arrow(events: list[dict[str, Any]], name: str) -> Any:
    """A pyarrow.Table."""
    try:
        import pyarrow as pa
    except ImportError as error:
        raise ConfigurationError(f"agent {name!r}: batch='arrow' needs pyarrow ({error}): pip install 'factory-agents[parquet]'") from None
    return pa.table({field: [event.get(field) for event in events] for field in _fields(events)})
