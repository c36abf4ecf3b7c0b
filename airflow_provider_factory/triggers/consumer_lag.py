"""Waits until a consumer group's (or a pipeline's) lag is below or above a threshold."""

from __future__ import annotations

from typing import ClassVar

import msgspec

from airflow_provider_factory.checks import Answer, LagQuestion, ask_lag
from airflow_provider_factory.triggers.base import KafkaTrigger
from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.topics import Cluster

__all__ = ["ConsumerLagTrigger"]


class ConsumerLagTrigger(KafkaTrigger):
    """Asks for the lag; ``question`` is a LagQuestion's data."""

    path: ClassVar[str] = "airflow_provider_factory.triggers.consumer_lag.ConsumerLagTrigger"

    def ask(self, config: KafkaConfig, cluster: Cluster) -> Answer:
        """See ``KafkaTrigger.ask``."""
        return ask_lag(config, msgspec.convert(self.question, LagQuestion), cluster=cluster)
