"""Waits for a consumer group, or for a pipeline's windows, to catch up, or to fall behind."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from airflow.sdk import Asset

from airflow_provider_factory.assets import topic_argument, topic_name
from airflow_provider_factory.conditions import Answer, LagQuestion, ask_lag
from airflow_provider_factory.sensors.base import KafkaSensor
from airflow_provider_factory.settings import option
from factory_agents.errors import ConfigurationError

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_provider_factory.triggers.consumer_lag import ConsumerLagTrigger
    from factory_agents.kafka.config import KafkaConfig

__all__ = ["ConsumerLagSensor"]


class ConsumerLagSensor(KafkaSensor):
    """Waits until the lag on topics is at most a threshold (``below``), or more than it (``above``). It joins no group and commits nothing.

    :param topics: one topic or several: names or assets. (templated)
    :param group: the consumer group; without it the lag is that of this DAG's own windows: what has arrived since the last one
        planned. (templated)
    :param threshold: records. (templated)
    :param condition: ``below`` (at most the threshold) or ``above``.
    :param measure: ``total`` over all partitions, or the ``worst`` one.
    :param pipeline: whose windows, where no group is given; by default this DAG. (templated)

    Example::

        ConsumerLagSensor(task_id="caught_up", topics="enriched_events", group="reports", threshold=1000, deferrable=True)
    """

    template_fields: Sequence[str] = (*KafkaSensor.template_fields, "topics", "group", "threshold", "pipeline")

    def __init__(
        self,
        *,
        topics: str | Asset | Sequence[str | Asset],
        threshold: int | str = 0,
        group: str | None = None,
        condition: Literal["below", "above"] = "below",
        measure: Literal["total", "worst"] = "total",
        pipeline: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.topics = [topic_argument(topic) for topic in _each(topics)]
        self.threshold = threshold
        self.group = group
        self.condition = condition
        self.measure = measure
        self.pipeline = pipeline

    def question(self, context: Context) -> LagQuestion:
        """See ``KafkaSensor.question``; raises ConfigurationError naming the argument."""
        data = {
            "topics": [topic_name(topic) for given in self.topics for topic in _each(given)],
            "threshold": self.threshold,
            "group": self.group or "",
            "pipeline": "" if self.group else self.pipeline or self.dag_id,
            "prefix": option("prefix"),
            "condition": self.condition,
            "measure": self.measure,
        }
        try:
            return msgspec.convert(data, LagQuestion, strict=False)
        except msgspec.ValidationError as error:
            raise ConfigurationError(f"ConsumerLagSensor {self.task_id!r}: {error}") from None

    def ask(self, config: KafkaConfig | None, question: LagQuestion) -> Answer:
        """See ``KafkaSensor.ask``."""
        if config is None:
            return Answer(False, "not asked yet")
        from factory_agents.kafka.lag import Lags
        from factory_agents.kafka.topics import Cluster

        with Cluster(config) as cluster:
            return ask_lag(Lags(config, cluster), question)

    def trigger(self, **arguments: Any) -> ConsumerLagTrigger:
        """See ``KafkaSensor.trigger``."""
        from airflow_provider_factory.triggers.consumer_lag import ConsumerLagTrigger

        return ConsumerLagTrigger(**arguments)


def _each(topics: Any) -> list[Any]:
    """One topic or several, as a list; what will be either when it is rendered counts as one."""
    return list(topics) if isinstance(topics, Sequence | Set) and not isinstance(topics, str) else [topics]
