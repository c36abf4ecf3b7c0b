"""Every night: a small model learns from what a large one said of the day's changes, is judged, and goes live step by step.

| task | does |
|---|---|
| `ingest_day` | the day of the sample data into the topic `day_changes` |
| `label_day` | has the language model say what kind each change is; what is in its log is not asked again |
| `train` | fits a classifier (scikit-learn) to these answers |
| `judge` | compares it with `include/golden/kinds.jsonl`; a model that is not good enough ends here |
| `deploy` | on Kubernetes: a Deployment of the model's version; elsewhere: waits for members of it |
| `bring_in` | gives the version a quarter of the partitions, then all, `params.hold` seconds later |
| `verdict` | waits until it holds all partitions; fails, with the reason, when it was rolled back |
| `finish` | makes it the version that the next night's replaces |
| `end_replaced` | on Kubernetes: deletes the Deployment of the version that it replaced |
| `take_back` | takes it back where it was brought in and is not finished, as when the verdict doesn't come in time |

The live agent reads `changes` and writes `change_kinds`. A model's name is its live version; `deploy` logs how to start a member.
Models lie in the folder FACTORY_MODELS, which workers and agents share. Both need scikit-learn, and agents a copy of `dags/models`.
"""

from __future__ import annotations

import logging
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

from airflow.sdk import CronDataIntervalTimetable, Param, dag, task

from airflow_provider_factory.operators.deploy_agent import DeployAgentOperator
from airflow_provider_factory.operators.kafka_agent import KafkaAgentOperator
from airflow_provider_factory.operators.rollout import RolloutOperator
from airflow_provider_factory.sensors.rollout import RolloutSensor
from airflow_provider_factory.settings import retry_delay, runner

AGENT, GROUP = "models.kinds:classify", "factory.classify.changes"
GOLDEN, LEAST_ACCURACY = "golden/kinds.jsonl", 0.8

log = logging.getLogger(__name__)


@dag(
    schedule=CronDataIntervalTimetable("@daily", timezone="UTC"),
    start_date=datetime(2018, 5, 1, tzinfo=UTC),  # where the sample data begin
    catchup=False,
    max_active_runs=1,  # of two rollouts of one group, the second is refused
    tags=["factory"],
    doc_md=__doc__,
    default_args={"owner": "data-eng", "retries": 2, "retry_delay": retry_delay(), "pool": "software_factory"},
    params={
        "group": Param(GROUP, type="string", description="the live agent's consumer group"),
        "hold": Param(600, type="number", minimum=0, description="seconds that the first step lasts at least"),
        "reprocess": Param(False, type="boolean"),
    },
)
def nightly_model() -> None:
    """The pipeline; its docs are the module's."""
    ingest = KafkaAgentOperator(
        task_id="ingest_day",
        agent="ingest",
        agent_params={"source": "data/changes.jsonl", "time_field": "occurred_at"},
        output_topic="day_changes",
    )
    label = KafkaAgentOperator(
        task_id="label_day",
        agent="infer",
        window=ingest.output,
        output_topic="day_labelled",
        model_conn_id="model_default",
        agent_params={
            "prompt": "prompts/kind.md",
            "output": "contracts/kind.yaml",
            "parameters": {"temperature": 0, "max_tokens": 50},
            "concurrency": 4,
            "repair": True,
            "budget": {"day_tokens": 2_000_000},
        },
    )

    @task
    def train(labelled: dict[str, Any]) -> str:
        import msgspec
        from models import kinds

        from airflow_provider_factory.hooks.kafka import FactoryKafkaHook
        from factory_agents.protocol import decode_result, merge_results
        from factory_agents.trial import records_of

        window = merge_results([decode_result(labelled)])
        with closing(records_of(FactoryKafkaHook().config(), window)) as batches:
            return kinds.train(msgspec.json.decode(message.value() or b"{}") for batch in batches for message in batch)

    @task
    def judge(model: str) -> str:
        from airflow.sdk.exceptions import AirflowFailException

        from factory_agents.evaluation import Limits, evaluate, read_golden

        found = evaluate(AGENT, {"model": model}, read_golden(GOLDEN))
        if broken := Limits({"kind": LEAST_ACCURACY}, max_invalid=0.0).broken(found):
            raise AirflowFailException(f"model {model} is not good enough: {'; '.join(broken)}")
        return model

    @task.sensor(task_id="deploy", poke_interval=3, timeout=1800, mode="reschedule")
    def members_are_there(model: str, group: str) -> bool:
        from airflow_provider_factory.hooks.kafka import FactoryKafkaHook
        from factory_agents.kafka.routes import version_group
        from factory_agents.kafka.topics import Cluster

        with Cluster(FactoryKafkaHook().config()) as cluster:
            found = cluster.group(version_group(group, model))
        flags = f"--in-topic changes --out-topic change_kinds --group {group} --live-version {model} --param model={model}"
        log.info("waiting for members: factory agent run %s %s", AGENT, flags)
        return found is not None and bool(found.assigned)

    @task.short_circuit
    def has_replaced(finished: dict[str, Any]) -> bool:
        return bool(finished["replaced"])

    group, version = "{{ params.group }}", "{{ ti.xcom_pull('judge') }}"
    model = judge(train(label.output))
    deploy = (
        DeployAgentOperator(
            task_id="deploy",
            agent=AGENT,
            in_topic="changes",
            out_topic="change_kinds",
            group=group,
            live_version=version,
            args=["--param", f"model={version}"],
        )
        if runner() == "kubernetes"
        else members_are_there(model, group)
    )
    bring_in = RolloutOperator(task_id="bring_in", group=group, version=version, steps=["25%", "100%"], hold="{{ params.hold }}")
    verdict = RolloutSensor(task_id="verdict", group=group, version=version, deferrable=True, poke_interval=3, timeout=2 * 3600, retries=0)
    finish = RolloutOperator(task_id="finish", group=group, action="finish", version=version)
    take_back = RolloutOperator(task_id="take_back", group=group, action="rollback", version=version, reason="it was not finished")
    model >> deploy >> bring_in >> verdict >> finish >> take_back.as_teardown(setups=bring_in)
    if runner() == "kubernetes":
        replaced = "{{ ti.xcom_pull('finish')['replaced'] }}"
        has_replaced(finish.output) >> DeployAgentOperator(
            task_id="end_replaced", agent=AGENT, in_topic="changes", group=group, live_version=replaced, replicas=0
        )


nightly_model()
