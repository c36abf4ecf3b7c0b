"""Waits until a consumer group's (or a pipeline's) lag is below or above a threshold."""

from __future__ import annotations

from typing import ClassVar

import msgspec

from airflow_provider_factory.clusters import Client
from airflow_provider_factory.conditions import Answer, LagQuestion, ask_lag
from airflow_provider_factory.triggers.base import KafkaTrigger

__all__ = ["ConsumerLagTrigger"]


class ConsumerLagTrigger(KafkaTrigger):
    """Asks for the lag; ``question`` is a LagQuestion's data."""

    path: ClassVar[str] = "airflow_provider_factory.triggers.consumer_lag.ConsumerLagTrigger"

    @property
    def about(self) -> str:
        """See ``KafkaTrigger.about``: the topics."""
        return " ".join(self.question["topics"])

    def ask(self, client: Client) -> Answer:
        """See ``KafkaTrigger.ask``."""
        return ask_lag(client.lags, msgspec.convert(self.question, LagQuestion))
