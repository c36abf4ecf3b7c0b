"""Agents over Kafka: written once, run over a window or live, exactly once.

``agent`` makes a function an agent; ``Reject`` sends an event to the dead letters; a source of your own gives ``SourceRecord``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from factory_agents.runtime.agents import Reject, SourceRecord, agent

__all__ = ["Reject", "SourceRecord", "__version__", "agent"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """They are loaded when asked for: importing this package costs nothing."""
    if name in __all__:
        from factory_agents.runtime import agents

        return getattr(agents, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
