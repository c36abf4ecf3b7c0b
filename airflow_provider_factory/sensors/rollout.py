"""Waits for the verdict on a version that is being rolled out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow_provider_factory.conditions import Answer, RolloutQuestion, ask_rollout
from airflow_provider_factory.sensors.base import KafkaSensor
from airflow_provider_factory.settings import option

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_provider_factory.triggers.rollout import RolloutTrigger
    from factory_agents.kafka.config import KafkaConfig

__all__ = ["RolloutSensor"]


class RolloutSensor(KafkaSensor):
    """Waits until the new version holds all partitions and no step is left; fails, with the reason, when it is rolled back.

    :param group: the agent's consumer group. (templated)
    :param version: the version that is meant; by default the one that is being rolled out. (templated)

    Example::

        RolloutSensor(task_id="rolled_out", group="factory.enrich.raw_events", version="v2", deferrable=True)
    """

    template_fields: Sequence[str] = (*KafkaSensor.template_fields, "group", "version")

    def __init__(self, *, group: str, version: str = "", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.group = group
        self.version = version

    def question(self, context: Context) -> RolloutQuestion:
        """See ``KafkaSensor.question``."""
        return RolloutQuestion(self.group, self.version, option("prefix"))

    def ask(self, config: KafkaConfig | None, question: RolloutQuestion) -> Answer:
        """See ``KafkaSensor.ask``."""
        return Answer(False, "not asked yet") if config is None else ask_rollout(config, question)

    def trigger(self, **arguments: Any) -> RolloutTrigger:
        """See ``KafkaSensor.trigger``."""
        from airflow_provider_factory.triggers.rollout import RolloutTrigger

        return RolloutTrigger(**arguments)
