"""Topics as Airflow assets: ``kafka://<cluster alias>/<topic>``, the official provider's scheme."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from airflow.sdk import Asset

from airflow_provider_factory.inputs import plain
from airflow_provider_factory.settings import option
from factory_agents.errors import ConfigurationError
from factory_agents.protocol import AgentResult

__all__ = ["asset_topic", "event_extra", "topic_asset", "topic_name"]


def topic_name(topic: str | Asset | None) -> str:
    """The name of a topic given as a name or as an asset with a ``kafka://`` URI; raises ConfigurationError for another asset."""
    if topic is None:
        return ""
    if isinstance(topic, Asset):
        parts = urlsplit(topic.uri)
        name = parts.path.strip("/")
        if parts.scheme != "kafka" or not name:
            raise ConfigurationError(f"topic: expected an asset with a URI kafka://<cluster>/<topic>, got {topic.uri!r}")
        return name
    return topic


def topic_asset(topic: str, *, cluster: str | None = None) -> Asset:
    """The asset of a topic, named as the topic; ``cluster`` is the alias in its URI, by default ``[factory] cluster``."""
    return Asset(name=topic, uri=f"kafka://{cluster or option('cluster')}/{topic}")


def asset_topic(topic: str | Asset | None) -> Asset | None:
    """The asset to report for a topic argument; None where there is none, or where its name is only known when templates are rendered."""
    if isinstance(topic, Asset):
        return topic
    if not topic or "{" in topic:
        return None
    return topic_asset(topic)


def event_extra(result: AgentResult) -> dict[str, Any]:
    """What an asset event says of a result: whose it is, which window, the counts, and the ranges written."""
    extra: dict[str, Any] = {
        "pipeline": result.pipeline,
        "stage": result.stage,
        "window": result.key,
        "shard": [result.shard.index, result.shard.of],
        "counts": plain(result.counts),
        "fingerprint": result.fingerprint,
        "generation": result.generation,
    }
    if result.manifest is not None:
        extra["manifest"] = plain(result.manifest)
    if result.table:
        extra["table"] = result.table
    return extra
