"""Which codec a topic has: as an operator says, else as the repository's topics file declares."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from airflow_provider_factory.runs import places
from factory_agents.codecs import codec_ref
from factory_agents.protocol import CodecRef
from factory_agents.topics_file import declared_codec

__all__ = ["topic_codec"]


def topic_codec(given: str | Mapping[str, Any] | None, argument: str, topic: str, root: Path | None) -> CodecRef | None:
    """The codec that ``given`` names; without it the one that ``FACTORY_TOPICS``, or ``topics.yaml`` of the DAG's bundle at ``root``,
    declares for the topic. None for JSON.

    Raises ConfigurationError for what names none.
    """
    if given is not None:
        return codec_ref(given, argument)
    files = (str(place / "topics.yaml") for place in places(root) if (place / "topics.yaml").is_file())
    file = os.environ.get("FACTORY_TOPICS") or next(files, "")
    return declared_codec(topic, file) if file else None
