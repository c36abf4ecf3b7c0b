"""Waits until a version is rolled out, or rolled back."""

from __future__ import annotations

from typing import ClassVar

import msgspec

from airflow_provider_factory.clusters import Client
from airflow_provider_factory.conditions import Answer, RolloutQuestion, ask_rollout
from airflow_provider_factory.triggers.base import KafkaTrigger

__all__ = ["RolloutTrigger"]


class RolloutTrigger(KafkaTrigger):
    """Asks for the verdict; ``question`` is a RolloutQuestion's data."""

    path: ClassVar[str] = "airflow_provider_factory.triggers.rollout.RolloutTrigger"

    @property
    def about(self) -> str:
        """See ``KafkaTrigger.about``: the group."""
        return str(self.question["group"])

    def ask(self, client: Client) -> Answer:
        """See ``KafkaTrigger.ask``."""
        return ask_rollout(client.config, msgspec.convert(self.question, RolloutQuestion))
