"""What the Kafka sensors share: ask once, then wait in the triggerer or in the worker, and time out with a reason."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import msgspec
from airflow.sdk import BaseSensorOperator
from airflow.sdk.configuration import conf
from airflow.sdk.exceptions import AirflowFailException, AirflowSensorTimeout, AirflowSkipException, TaskDeferralTimeout

from airflow_provider_factory.errors import airflow_errors
from airflow_provider_factory.settings import option
from factory_agents.errors import FactoryError

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_provider_factory.conditions import Answer
    from airflow_provider_factory.triggers.base import KafkaTrigger
    from factory_agents.kafka.config import KafkaConfig

__all__ = ["KafkaSensor"]

_MARGIN = timedelta(minutes=10)
"""How long after its timeout a sensor waits for a triggerer that is down: the trigger knows its deadline, and what was seen last."""


class KafkaSensor(BaseSensorOperator):
    """Waits for a condition on Kafka; subclasses make the question, ask it, and name their trigger.

    It waits for a broker that doesn't answer until the timeout, whose message says what was seen last.

    :param kafka_conn_id: Airflow connection of the cluster; by default ``[factory] kafka_conn_id``. (templated)
    :param deferrable: wait in the triggerer; by default ``[operators] default_deferrable``.
    """

    template_fields: Sequence[str] = ("kafka_conn_id",)
    ui_color = "#f6ecd2"

    def __init__(
        self,
        *,
        kafka_conn_id: str | None = None,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        poke_interval: timedelta | float = 15,
        **kwargs: Any,
    ) -> None:
        super().__init__(poke_interval=poke_interval, **kwargs)
        self.kafka_conn_id = kafka_conn_id
        self.deferrable = deferrable

    @abstractmethod
    def question(self, context: Context) -> msgspec.Struct:
        """What is asked, from the rendered arguments; raises FactoryError."""

    @abstractmethod
    def ask(self, config: KafkaConfig | None, question: Any) -> Answer:
        """Answer it; with ``config`` None only from what is known without the cluster."""

    @abstractmethod
    def trigger(self, **arguments: Any) -> KafkaTrigger:
        """The trigger that asks the same question."""

    def execute(self, context: Context) -> Any:  # noqa: RET503  # defer never returns
        """Ask, and wait until it holds; returns the figures."""
        with airflow_errors():
            if not self.deferrable:
                return super().execute(context)
            question = self.question(context)
            answer = self._ask_once(question)
            if answer is not None and answer.met:
                self.log.info("%s", answer.reason)
                return dict(answer.facts) or None
            data = msgspec.to_builtins(question)
        self.defer(
            trigger=self.trigger(
                kafka_conn_id=self._conn_id(), question=data, poll_interval=self.poke_interval, deadline=time.time() + self.timeout
            ),
            method_name="execute_complete",
            timeout=timedelta(seconds=self.timeout) + _MARGIN,
        )

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """As for every sensor; where no triggerer took the wait up again in time, the error says so."""
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except AirflowSensorTimeout as error:
            if not isinstance(error.__cause__, TaskDeferralTimeout):
                raise
            late = self.timeout + _MARGIN.total_seconds()
            raise AirflowSensorTimeout(f"after {late:g} s: no triggerer answered; is one running?") from None

    def execute_complete(self, context: Context, event: Mapping[str, Any]) -> Any:
        """What the trigger saw: the figures, or a timeout or an error with its reason."""
        status, reason = event["status"], str(event["reason"])
        if status == "met":
            self.log.info("%s", reason)
            return dict(event.get("facts") or {}) or None
        if self.soft_fail or self.never_fail:
            raise AirflowSkipException(reason)
        if status == "timeout":
            raise AirflowSensorTimeout(f"after {self.timeout:g} s: {reason}")
        raise AirflowFailException(reason)

    def poke(self, context: Context) -> bool:
        """See ``BaseSensorOperator.poke``."""
        answer = self._ask_once(self.question(context))
        if answer is None:
            return False
        self.log.info("%s", answer.reason)
        return answer.met

    def _conn_id(self) -> str:
        return self.kafka_conn_id or option("kafka_conn_id")

    def _ask_once(self, question: Any) -> Answer | None:
        """An answer; None where the broker doesn't give one now. Raises FactoryError for what waiting cannot mend."""
        from airflow_provider_factory.hooks.kafka import FactoryKafkaHook

        answer = self.ask(None, question)
        if answer.met:
            return answer
        try:
            return self.ask(FactoryKafkaHook(self._conn_id()).config(), question)
        except FactoryError as error:
            if not error.retriable:
                raise
            self.log.warning("%s: %s", type(error).__name__, error)
            return None
