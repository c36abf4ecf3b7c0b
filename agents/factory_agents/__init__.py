"""Agents over Kafka: written once, run over a window or live, exactly once.

``agent`` makes a function an agent; ``Reject`` sends an event to the dead letters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from factory_agents.runtime.agents import Reject, agent

__all__ = ["Reject", "__version__", "agent"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """``agent`` and ``Reject`` are loaded when asked for: importing this package costs nothing."""
    if name in ("agent", "Reject"):
        from factory_agents.runtime import agents

        return getattr(agents, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
