"""Waits until a run's window can be read in full: every partition has passed its end, or a grace is over."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import Asset

from airflow_provider_factory.assets import topic_argument, topic_name
from airflow_provider_factory.conditions import Answer, WindowClosedQuestion, ask_window_closed
from airflow_provider_factory.runs import data_interval
from airflow_provider_factory.sensors.base import KafkaSensor

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_provider_factory.triggers.window_closed import WindowClosedTrigger
    from factory_agents.kafka.config import KafkaConfig

__all__ = ["WindowClosedSensor"]


class WindowClosedSensor(KafkaSensor):
    """Waits until each partition of a topic has a record at or past the data interval's end, or ``grace`` after that end.

    Records that arrive even later are not lost: they are in the window of the time at which they arrive.

    :param topic: the topic's name, or an asset ``kafka://<cluster>/<topic>``. (templated)
    :param grace: how long after the interval's end to wait for quiet partitions.

    Example::

        WindowClosedSensor(task_id="closed", topic="raw_events", grace=timedelta(minutes=5), deferrable=True)
    """

    template_fields: Sequence[str] = (*KafkaSensor.template_fields, "topic")

    def __init__(self, *, topic: str | Asset, grace: timedelta | float = timedelta(minutes=2), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.topic = topic_argument(topic)
        self.grace = grace.total_seconds() if isinstance(grace, timedelta) else float(grace)

    def question(self, context: Context) -> WindowClosedQuestion:
        """See ``KafkaSensor.question``."""
        return WindowClosedQuestion(topic=topic_name(self.topic), end=data_interval(context).end, grace=self.grace)

    def ask(self, config: KafkaConfig | None, question: WindowClosedQuestion) -> Answer:
        """See ``KafkaSensor.ask``."""
        return ask_window_closed(config, question, datetime.now(UTC))

    def trigger(self, **arguments: Any) -> WindowClosedTrigger:
        """See ``KafkaSensor.trigger``."""
        from airflow_provider_factory.triggers.window_closed import WindowClosedTrigger

        return WindowClosedTrigger(**arguments)
