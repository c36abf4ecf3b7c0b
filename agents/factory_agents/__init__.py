"""Agents over Kafka: written once, run over a window or live, exactly once."""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.1.0"
