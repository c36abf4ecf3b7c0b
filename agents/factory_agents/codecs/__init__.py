"""How a topic's records become events, and events records: JSON unless something else is named."""

from __future__ import annotations

from factory_agents.codecs.base import Codec, Deleted, codec_ref

__all__ = ["Codec", "Deleted", "codec_ref"]
