"""A run with its trace: a span about it where traces are written, and their ids in its log lines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from factory_agents.protocol import AgentRun
from factory_agents.runtime.session import RunContext
from factory_agents.telemetry import Observers, Subject, TraceContext, bound, parse_traceparent

__all__ = ["traced"]


@contextmanager
def traced(context: RunContext, run: AgentRun) -> Iterator[RunContext]:
    """What surrounds a run, with its trace; log lines have the ids of its span, or else of the span that it is a part of."""
    window = run.window
    if context.traces is None:
        _name_in_log(parse_traceparent(run.traceparent))
        yield context
        return
    key = run.key if window is not None or run.interval is not None else run.name
    subject = Subject(run.pipeline, run.stage, run.agent.name.rpartition(":")[2], run.agent.version, key, run.shard.key)
    spans, topic = (window.spans, window.topic) if window is not None else ((), run.output_topic)
    with context.traces.run(subject, parent=run.traceparent, links=spans, topic=topic) as trace:
        _name_in_log(trace.context)
        yield replace(context, observer=Observers(context.observer, trace), trace=trace)


def _name_in_log(span: TraceContext | None) -> None:
    if span is not None:
        with bound() as own:  # the run's, where there is one
            own.update(trace_id=span.trace_id, span_id=span.span_id)
