"""Tries an agent on a topic's newest records and writes nothing: a built-in one, or a stage of another DAG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk import Asset, BaseOperator
from airflow.sdk.definitions.mappedoperator import MappedOperator
from airflow.sdk.definitions.xcom_arg import XComArg
from airflow.sdk.exceptions import AirflowRuntimeError

from airflow_provider_factory.assets import topic_argument, topic_name
from airflow_provider_factory.errors import airflow_errors
from airflow_provider_factory.operators.kafka_agent import KafkaAgentOperator
from airflow_provider_factory.settings import option
from factory_agents.errors import ConfigurationError
from factory_agents.protocol import plain

if TYPE_CHECKING:
    from airflow.sdk import Context

__all__ = ["PreviewOperator"]

_SECONDS = 600.0
_MOST_RECORDS = 100_000
_GIVEN = {"window", "shard", "output_topic", "dead_letter_topic"}
"""What a stage may be mapped over and still be one agent."""


class PreviewOperator(KafkaAgentOperator):
    """Runs an agent over a topic's newest records as a dry run; XCom is its result, the log shows what would be written.

    With ``stage`` it runs what that task of another DAG runs, as its file has it now: its code, parameters, image, connections and codecs.
    Airflow says where that DAG's file is; whoever starts the run names only the DAG and the task. An agent's own effects, such as calls
    of a service, are as real as ever.

    :param topic: whose newest records are tried. (templated)
    :param count: how many records, at least; 100,000 at most. (templated)
    :param of_dag: the DAG that has the stage. (templated)
    :param stage: the task there whose agent is tried; empty: ``agent``. (templated)

    Example::

        PreviewOperator(task_id="preview", topic="raw_events", of_dag="clicks", stage="enrich", count=500)
    """

    template_fields: Sequence[str] = (*KafkaAgentOperator.template_fields, "topic", "count", "of_dag", "stage")
    ui_color = "#e3e0f3"

    def __init__(
        self,
        *,
        topic: str | Asset,
        count: int | str = 1000,
        of_dag: str = "",
        stage: str = "",
        agent: str = "validate",
        deadline: Any = _SECONDS,
        **kwargs: Any,
    ) -> None:
        super().__init__(agent=agent, deadline=deadline, dry_run=True, **kwargs)
        self.topic = topic_argument(topic)
        self.count = count
        self.of_dag = of_dag
        self.stage = stage

    def execute(self, context: Context) -> Any:
        """Try it; raises AirflowFailException for what a retry cannot mend, such as a DAG that has no such stage."""
        with airflow_errors():
            kept = {"deadline": self.deadline, "agent_dry_run": True, "max_rejected": "100 %", "shard": None, "deferrable": False}
            if self.stage:
                self.__dict__.update(_arguments(_stage(context, self.of_dag, self.stage)))
            self.__dict__.update(kept, window=self._newest())
        return super().execute(context)

    def _newest(self) -> dict[str, Any]:
        from airflow_provider_factory.hooks.kafka import FactoryKafkaHook
        from factory_agents.trial import last_records

        try:
            count = int(self.count)
        except ValueError:
            count = 0
        if not 1 <= count <= _MOST_RECORDS:
            raise ConfigurationError(f"count: expected 1 to {_MOST_RECORDS:,}, got {self.count!r}")
        topic = topic_name(self.topic)
        self.output_topic = self.output_topic or topic  # its settings count: a dry run writes nothing there
        found: dict[str, Any] = plain(last_records(FactoryKafkaHook(self.kafka_conn_id or option("kafka_conn_id")).config(), topic, count))
        return found


def _arguments(stage: KafkaAgentOperator) -> dict[str, Any]:
    """What makes a stage's agent and its pod; not what every task has, such as its name and its callbacks."""
    common = vars(BaseOperator(task_id="any")).keys()
    return {name: value for name, value in vars(stage).items() if name not in common and not hasattr(BaseOperator, name)}


def _stage(context: Context, dag_id: str, task_id: str) -> KafkaAgentOperator:
    """A stage of another DAG with its arguments rendered; raises ConfigurationError where it cannot run apart from its DAG."""
    dag = _dag(context, dag_id)
    found = dag.task_dict.get(task_id)
    kind = found.operator_class if isinstance(found, MappedOperator) else type(found)
    if not issubclass(kind, KafkaAgentOperator):
        raise ConfigurationError(f"DAG {dag_id!r} has no stage {task_id!r}: expected a task that is a KafkaAgentOperator")
    if isinstance(found, MappedOperator):
        mapped = getattr(found.expand_input, "value", None)
        if not isinstance(mapped, dict) or not mapped.keys() <= _GIVEN:
            over = ", ".join(sorted(mapped.keys() - _GIVEN)) if isinstance(mapped, dict) else "sets of arguments"
            raise ConfigurationError(f"stage {task_id!r} is mapped over {over}, so that it is several agents; a preview tries one")
        found = found.unmap(dict.fromkeys(mapped))
    stage: KafkaAgentOperator = found.prepare_for_execution()
    stage.window = stage.shard = None
    if stage.agent in ("ingest", "replicate"):
        raise ConfigurationError(f"stage {task_id!r} reads no topic, so there are no records to try it on")
    for name in stage.template_fields:
        if any(XComArg.iter_xcom_references(getattr(stage, name, None))):
            raise ConfigurationError(f"stage {task_id!r} takes {name} from another task of its DAG, which a preview doesn't run")
    stage.render_template_fields({**context, "dag": dag, "params": dag.params.dump()})
    return stage


def _dag(context: Context, dag_id: str) -> Any:
    """A DAG as its file has it now. The task looks for its files and modules where that DAG's are from here on."""
    from airflow.dag_processing.bundles.manager import DagBundlesManager
    from airflow.dag_processing.dagbag import BundleDagBag

    ti: Any = context["ti"]
    try:
        known = ti.get_dag(dag_id)
    except AirflowRuntimeError as error:
        raise ConfigurationError(f"Airflow knows no DAG {dag_id!r}: {error}") from None
    bundle = DagBundlesManager().get_bundle(name=known.bundle_name, version=known.bundle_version)
    bundle.initialize()
    file = Path(bundle.path, known.relative_fileloc)
    bag = BundleDagBag(dag_folder=file, safe_mode=False, load_op_links=False, bundle_path=bundle.path, bundle_name=known.bundle_name)
    if dag_id not in bag.dags:
        why = next((error.strip().splitlines()[-1] for error in bag.import_errors.values()), "it is not in that file")
        raise ConfigurationError(f"the DAG {dag_id!r} cannot be read from {known.relative_fileloc}: {why}")
    ti.bundle_instance = bundle
    return bag.dags[dag_id]
