"""What a run tells of itself: logs for people, and calls to an observer for progress, heartbeats and metrics."""

from factory_agents.telemetry.logs import CONTEXT, bound, configure_logging, fields, logs_json
from factory_agents.telemetry.observer import Age, Batch, Commit, Done, Observer, Observers, Subject
from factory_agents.telemetry.trace_context import TraceContext, parse_traceparent
from factory_agents.telemetry.tracing import tracing

__all__ = [
    "CONTEXT",
    "Age",
    "Batch",
    "Commit",
    "Done",
    "Observer",
    "Observers",
    "Subject",
    "TraceContext",
    "bound",
    "configure_logging",
    "fields",
    "logs_json",
    "parse_traceparent",
    "tracing",
]
