"""Agents over Kafka: written once, run over a window or live, exactly once.

``agent`` makes a function an agent; ``Reject`` sends an event to the dead letters; ``Dependency`` is a service that an agent calls; a
source of your own gives ``SourceRecord``, a sink of your own is a ``LedgerSink``, a codec of your own a ``Codec``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from factory_agents.codecs import Codec, Deleted
    from factory_agents.errors import SinkBackpressureError
    from factory_agents.reject import Reject
    from factory_agents.runtime.agents import SourceRecord, agent
    from factory_agents.runtime.dependencies import Dependency
    from factory_agents.runtime.ledger_sink import Landing, LedgerSink, Part, Rows
    from factory_agents.runtime.sink_ledger import Figures
    from factory_agents.runtime.split import split

__all__ = [
    "Codec",
    "Deleted",
    "Dependency",
    "Figures",
    "Landing",
    "LedgerSink",
    "Part",
    "Reject",
    "Rows",
    "SinkBackpressureError",
    "SourceRecord",
    "__version__",
    "agent",
    "split",
]

__version__ = "0.1.0"


_MODULES = {
    "Codec": "codecs",
    "Deleted": "codecs",
    "Dependency": "runtime.dependencies",
    "Reject": "reject",
    "SinkBackpressureError": "errors",
    **dict.fromkeys(("SourceRecord", "agent"), "runtime.agents"),
    **dict.fromkeys(("Landing", "LedgerSink", "Part", "Rows"), "runtime.ledger_sink"),
    "Figures": "runtime.sink_ledger",
    "split": "runtime.split",
}


def __getattr__(name: str) -> Any:
    """They are loaded when asked for: importing this package costs nothing."""
    if name in _MODULES:
        from importlib import import_module

        return getattr(import_module(f"factory_agents.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
