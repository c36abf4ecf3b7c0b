"""Traces through Temporal: its SDK's own interceptor, where traces are written, and the spans that runs are parts of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from temporalio.client import Client, Interceptor

if TYPE_CHECKING:
    from factory_agents.telemetry.spans import Traces

__all__ = ["interceptors", "traces_of", "within"]


def interceptors(traces: Traces | None) -> Sequence[Interceptor]:
    """What a client is connected with so that starts, workflows and activities are spans of one trace."""
    if traces is None:
        return []
    from temporalio.contrib.opentelemetry import TracingInterceptor

    interceptor = TracingInterceptor(traces.tracer)
    interceptor.traces = traces  # type: ignore[attr-defined]  # where ``traces_of`` finds it
    return [interceptor]


def traces_of(client: Client) -> Traces | None:
    """What writes the spans of a client, and of the worker that uses it."""
    found = (getattr(interceptor, "traces", None) for interceptor in client.config()["interceptors"])
    return next(filter(None, found), None)


@contextmanager
def within(client: Client, parent: str | bytes | None) -> Iterator[None]:
    """What is asked of the server within is a part of the span that ``parent`` (``traceparent``) names, if it names one."""
    traces = traces_of(client) if parent else None
    if traces is None:
        yield
        return
    with traces.within(parent):
        yield
