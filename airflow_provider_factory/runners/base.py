"""What a runner is to the operator, and what it is given to reach Kafka and the database."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from factory_agents.protocol import AgentResult

if TYPE_CHECKING:
    from airflow.sdk import Context

    from factory_agents.kafka.config import KafkaConfig

__all__ = ["Access", "AgentRunner"]


class AgentRunner(Protocol):
    """Runs one ``AgentRun`` somewhere; another place to run agents is another class with these two methods."""

    def run(self, context: Context) -> AgentResult:
        """Run the agent to its end and return what it answers, be it a success or a failure. It may defer the task instead.

        Raises AgentCrashedError where the agent left no answer, and any other FactoryError where it could not be started.
        """

    def stop(self) -> None:
        """End the agent. It is called in a signal handler: at any moment, also before ``run`` and in the middle of it."""


@dataclass(frozen=True)
class Access:
    """Airflow's connections for an agent, looked up on the worker each time that they are asked for.

    ``database``, ``model`` and ``registry`` have to exist where they are named; ``default_database`` and ``default_registry`` are used
    where they exist and the others aren't named.
    """

    kafka: str
    database: str = ""
    default_database: str = ""
    model: str = ""
    registry: str = ""
    default_registry: str = ""

    def environment(self) -> dict[str, str]:
        """The variables that the agent reads its connections from; they hold secrets."""
        from airflow_provider_factory.hooks.database import database_environment
        from airflow_provider_factory.hooks.kafka import FactoryKafkaHook

        environment = FactoryKafkaHook(self.kafka).environment()
        if self.database:
            environment |= database_environment(self.database, required=True)
        elif self.default_database:
            environment |= database_environment(self.default_database, required=False)
        if self.model:
            from airflow_provider_factory.hooks.model import model_environment

            environment |= model_environment(self.model)
        if registry := self.registry or self.default_registry:
            from airflow_provider_factory.hooks.schema_registry import registry_environment

            environment |= registry_environment(registry, required=bool(self.registry))
        return environment

    def ledger(self) -> KafkaConfig:
        """How the worker itself reaches the cluster whose ledger holds the results."""
        from airflow_provider_factory.hooks.kafka import FactoryKafkaHook

        return FactoryKafkaHook(self.kafka).config()
