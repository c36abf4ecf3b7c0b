"""What a run tells of itself: logs for people, and calls to an observer for progress, heartbeats and metrics."""

from factory_agents.telemetry.logs import CONTEXT, bound, configure_logging, fields
from factory_agents.telemetry.observer import Batch, Commit, Done, Observer, Observers, Subject

__all__ = ["CONTEXT", "Batch", "Commit", "Done", "Observer", "Observers", "Subject", "bound", "configure_logging", "fields"]
