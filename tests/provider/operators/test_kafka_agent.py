"""KafkaAgentOperator: what the agent is told, the pod it becomes, and how a result or an error comes back."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, Asset, BaseOperator
from airflow.sdk.exceptions import AirflowFailException
from kubernetes.client import ApiClient, CoreV1Api
from kubernetes.client import models as k8s
from kubernetes.config import new_client_from_config_dict

from airflow_provider_factory.errors import airflow_errors
from airflow_provider_factory.lineage import result_lineage
from airflow_provider_factory.operators.deploy_agent import DeployAgentOperator
from airflow_provider_factory.operators.kafka_agent import KafkaAgentOperator
from airflow_provider_factory.operators.replay import ReplayOperator
from airflow_provider_factory.operators.rollout import RolloutOperator
from airflow_provider_factory.operators.temporal_pipeline import TemporalPipelineOperator
from airflow_provider_factory.operators.validation import ValidationOperator
from airflow_provider_factory.operators.window import WindowOperator
from airflow_provider_factory.runners.base import Access
from airflow_provider_factory.runners.kubernetes.manifest import ANNOTATION, AgentPod, agent_pod
from airflow_provider_factory.runners.kubernetes.runner import PodRunner
from airflow_provider_factory.sensors.consumer_lag import ConsumerLagSensor
from airflow_provider_factory.sensors.rollout import RolloutSensor
from airflow_provider_factory.sensors.window_closed import WindowClosedSensor
from factory_agents.contracts import load_contract
from factory_agents.databases.postgres import database_from_url
from factory_agents.errors import AgentCrashedError, ConfigurationError, UnavailableError, WindowError
from factory_agents.protocol import AgentRun, CodecRef, Dataset, ErrorInfo, Order, Shard, decode_run, encode, plain
from tests.support.kube_api import kube_api
from tests.support.samples import INTERVAL, context, result, window


class TaskInstance(SimpleNamespace):
    """As much of a task instance as the operator uses; ``pushed`` is what went to XCom."""

    def xcom_push(self, key: str, value: Any) -> None:
        self.pushed[key] = value


def operator(**arguments: Any) -> KafkaAgentOperator:
    with DAG("clicks", schedule=None):
        return KafkaAgentOperator(**{"task_id": "enrich", "agent": "enrich", "output_topic": "enriched", "window": window(), **arguments})


def task_context(task: KafkaAgentOperator, **changes: Any) -> dict[str, Any]:
    ti = TaskInstance(dag_id="clicks", task_id="enrich", run_id="manual__1", map_index=-1, try_number=1, max_tries=2, pushed={})
    events = {asset: SimpleNamespace(extra={}) for asset in task.outlets}
    return context(**{"ti": ti, "task": task, "dag": task.dag, "outlet_events": events, **changes})


def told(**arguments: Any) -> AgentRun:
    task = operator(**arguments)
    return task.agent_run(task_context(task))  # type: ignore[arg-type]


def test_the_agent_is_told_who_what_where_and_over_what() -> None:
    run = told(agent_params={"n": 1}, agent_version="v2", dead_letter_topic="dead", deadline=timedelta(minutes=5), max_rejected="1 %")
    assert (run.pipeline, run.stage, run.run_id) == ("clicks", "enrich", "manual__1")
    assert (run.agent.name, run.agent.version, run.params) == ("enrich", "v2", {"n": 1})
    assert (run.window, run.interval, run.shard) == (window(), None, Shard())
    assert (run.output_topic, run.dead_letter_topic, run.deadline_seconds, run.max_rejected) == ("enriched", "dead", 300.0, "1 %")


def test_a_topics_codec_is_the_arguments_else_the_one_it_was_written_with_else_the_topics_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def codecs(**arguments: Any) -> tuple[CodecRef | None, CodecRef | None]:
        run = told(**arguments)
        assert run.window is not None
        return run.window.codec, run.output_codec

    written = window(codec=CodecRef("avro", {}, {"id": 7}))
    assert codecs() == (None, None)
    assert codecs(input_codec="avro?version=3", output_codec={"name": "a:B"}) == (CodecRef("avro", {"version": "3"}), CodecRef("a:B"))
    monkeypatch.setenv("FACTORY_INCLUDE", str(tmp_path))
    (tmp_path / "topics.yaml").write_text("topics: {raw: {codec: avro}, enriched: {codec: avro}}")
    assert codecs() == (CodecRef("avro"), CodecRef("avro"))
    assert codecs(window=written) == (written.codec, CodecRef("avro"))
    assert codecs(window=written, input_codec="json", output_codec="json") == (None, None)


NEEDED: dict[type[BaseOperator], dict[str, Any]] = {
    KafkaAgentOperator: {"agent": "enrich"},
    ValidationOperator: {},
    WindowOperator: {"topic": "raw"},
    ConsumerLagSensor: {"topics": "raw"},
    WindowClosedSensor: {"topic": "raw"},
    DeployAgentOperator: {"agent": "enrich", "in_topic": "raw"},
    ReplayOperator: {"topic": "raw.dead", "to": "raw"},
    RolloutOperator: {"group": "live"},
    RolloutSensor: {"group": "live"},
    TemporalPipelineOperator: {"pipeline": "clicks"},
}
MAPPED = {
    KafkaAgentOperator: {"labels": [{}]},
    ValidationOperator: {"labels": [{}]},
    WindowOperator: {"after_pause": ["leave"]},
    ConsumerLagSensor: {"condition": ["above"]},
    WindowClosedSensor: {"grace": [1]},
    DeployAgentOperator: {"pod_resources": [{}]},
    ReplayOperator: {"input_codec": ["json"]},
    RolloutOperator: {"action": ["rollback"]},
    RolloutSensor: {"timeout": [1]},
    TemporalPipelineOperator: {"no_interval": ["since_last"]},
}


@pytest.mark.parametrize(
    ("kind", "field"),
    [(kind, field) for kind in NEEDED for field in kind.template_fields if field not in KubernetesPodOperator.template_fields],
)
@pytest.mark.parametrize("partial", [False, True])
def test_every_templated_argument_may_be_another_tasks_output_or_a_param(kind: type[BaseOperator], field: str, partial: bool) -> None:
    argument = "dry_run" if field == "agent_dry_run" else field
    with DAG("clicks", schedule=None) as dag:
        before = EmptyOperator(task_id="before")
        for number, value in enumerate((before.output, before.output["key"], dag.param("given", "x"))):
            arguments = {**NEEDED[kind], "task_id": f"t{number}", argument: value}
            if partial:
                mapped = kind.partial(**arguments).expand(**MAPPED[kind])
                assert mapped.upstream_task_ids == ({"before"} if number < 2 else set())
            else:
                task = kind(**arguments)
                assert task.upstream_task_ids == ({"before"} if number < 2 else set())


@pytest.mark.parametrize("given", [{"n": 1}, '{"n": 1}'])
def test_rendered_parameters_are_a_mapping_or_json_of_one(given: Any) -> None:
    task = operator()
    task.agent_params, task.output_topic, task.deadline = given, "made", "90"
    run = task.agent_run(task_context(task))  # type: ignore[arg-type]
    assert (run.params, run.output_topic, run.deadline_seconds) == ({"n": 1}, "made", 90.0)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("agent_params", "n=1", "agent_params: expected a mapping, or JSON of one, got 'n=1'"),
        ("agent_params", [1], r"agent_params: expected a mapping, or JSON of one, got \[1\]"),
        ("output_topic", {"a": 1}, "topic: expected a name or an asset kafka://<cluster>/<topic>, got {'a': 1}"),
        ("contract", 7, "contract: expected a mapping, or JSON of one, got 7"),
    ],
)
def test_what_was_rendered_to_something_else_is_named(field: str, value: Any, says: str) -> None:
    task = operator()
    setattr(task, field, value)
    with pytest.raises(ConfigurationError, match=says):
        task.agent_run(task_context(task))  # type: ignore[arg-type]


@pytest.mark.parametrize("sink", ["acme-lines", "my_sinks:Lines"])
def test_a_sink_of_your_own_is_loaded_where_the_agent_runs(sink: str) -> None:
    """The pod is told its name and parameters as a process is; nothing of it is imported on the worker."""
    task = operator(agent="publish", agent_params={"sink": sink, "path": "/data/x"}, output_topic=None)
    pod = agent_pod(AgentPod(run=task.agent_run(task_context(task))))  # type: ignore[arg-type]
    run = decode_run(pod["metadata"]["annotations"][ANNOTATION])
    assert (run.params, run.untrusted) == ({"sink": sink, "path": "/data/x"}, ())
    task = operator(agent="publish", agent_params={"sink": "{{ params.sink }}"}, output_topic=None)
    task.agent_params = {"sink": sink}
    pod = agent_pod(AgentPod(run=task.agent_run(task_context(task))))  # type: ignore[arg-type]
    assert decode_run(pod["metadata"]["annotations"][ANNOTATION]).untrusted == ("sink",)


def test_ingest_runs_over_the_data_interval() -> None:
    run = told(agent="ingest", window=None)
    assert (run.window, run.interval) == (None, INTERVAL)


def test_any_other_agent_without_a_window_fails_and_says_why() -> None:
    with pytest.raises(WindowError, match="task 'enrich': expected the results of the stage before, got none"):
        told(window=None)


def test_a_clear_runs_again_a_retry_does_not() -> None:
    task = operator(retries=2)
    assert task.agent_run(task_context(task)).order == Order("manual__1", 2, 0)  # type: ignore[arg-type]
    cleared = task_context(task)
    cleared["ti"].max_tries = 3
    assert task.agent_run(cleared).order == Order("manual__1", 3, 0, again=True)  # type: ignore[arg-type]


def test_dead_letters_never_go_to_the_output_topic() -> None:
    for topic in ("rich", Asset("kafka://main/rich")):
        with pytest.raises(ConfigurationError, match="dead_letter_topic: 'rich' is the output topic too"):
            operator(output_topic="rich", dead_letter_topic=topic)
    operator(output_topic="")


def test_rerun_and_reprocess_decide_otherwise() -> None:
    assert told(rerun="redo").rerun == "redo"
    assert told(reprocess="True").rerun == "redo"
    assert told(rerun="ask_again", reprocess="True").rerun == "ask_again"
    task = operator(rerun="reuse", retries=0)
    assert task.agent_run(task_context(task)).order is None  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="rerun: expected one of clear, reuse, redo, ask_again, got 'maybe'"):
        operator(rerun="maybe")


def test_a_topic_may_be_an_asset_and_is_reported_as_one() -> None:
    asset = Asset(name="e", uri="kafka://main/enriched")
    assert operator(output_topic=asset).outlets == [asset]
    assert operator(output_topic=asset).output_topic == "enriched"
    assert [o.uri for o in operator().outlets] == ["kafka://main/enriched"]
    assert operator(output_topic="{{ params.topic }}").outlets == []
    with pytest.raises(ConfigurationError, match="expected an asset with a URI kafka://"):
        operator(output_topic=Asset(name="t", uri="s3://bucket/x"))


def test_template_fields_are_the_parents_and_its_own() -> None:
    own = set(KafkaAgentOperator.template_fields) - set(KubernetesPodOperator.template_fields)
    assert set(KubernetesPodOperator.template_fields) < set(KafkaAgentOperator.template_fields)
    assert {"window", "agent_params", "output_topic", "reprocess"} <= own
    task = operator()
    assert all(hasattr(task, name) for name in own)


def pod(task: KafkaAgentOperator, of: dict[str, Any] | None = None) -> dict[str, Any]:
    """The pod that KubernetesPodOperator would create, on any cluster."""
    task.hook = SimpleNamespace(is_in_cluster=False, get_namespace=lambda: "ns")  # type: ignore[assignment]
    run_context = of or task_context(task)
    PodRunner(task._portable(task.agent_run(run_context), run_context), task._access, task)  # type: ignore[arg-type]
    made = task.build_pod_request_obj(run_context)  # type: ignore[arg-type]
    data: dict[str, Any] = ApiClient().sanitize_for_serialization(made)
    return data


def test_the_pod_is_the_hardened_one_with_the_run_in_it() -> None:
    made = pod(operator())
    container = made["spec"]["containers"][0]
    assert decode_run(made["metadata"]["annotations"][ANNOTATION]).stage == "enrich"
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["image"] == "factory-agents:0.1.0"
    assert container["command"] == ["python", "-m", "factory_agents.run"]
    assert container["envFrom"] == [{"secretRef": {"name": "factory-agent"}}]
    assert [c["name"] for c in made["spec"]["containers"]] == ["base"]
    assert made["spec"]["automountServiceAccountToken"] is False
    assert made["metadata"]["labels"]["factory-agents/task"] == "enrich"
    assert made["metadata"]["labels"]["dag_id"] == "clicks"


def test_the_users_pod_arguments_stay_on_top() -> None:
    made = pod(
        operator(
            image="mine:2",
            env_vars={"MODE": "fast"},
            node_selector={"disk": "ssd"},
            labels={"team": "a"},
            container_resources=k8s.V1ResourceRequirements(limits={"memory": "4Gi"}),
            agent_secret="team-a",
        )
    )
    container = made["spec"]["containers"][0]
    assert container["image"] == "mine:2"
    assert {"name": "MODE", "value": "fast"} in container["env"]
    assert container["resources"] == {"limits": {"memory": "4Gi"}}
    assert made["spec"]["nodeSelector"] == {"disk": "ssd"}
    assert made["metadata"]["labels"]["team"] == "a"
    assert container["envFrom"] == [{"secretRef": {"name": "team-a"}}]


def test_a_users_template_takes_the_place_of_the_hardened_one() -> None:
    template = {
        "spec": {"serviceAccountName": "sa", "containers": [{"name": "base", "image": "theirs:1", "env": [{"name": "A", "value": "b"}]}]}
    }
    made = pod(operator(pod_template_dict=template))
    container = made["spec"]["containers"][0]
    assert (container["image"], made["spec"]["serviceAccountName"]) == ("theirs:1", "sa")
    assert {"name": "A", "value": "b"} in container["env"]
    assert ANNOTATION in made["metadata"]["annotations"]
    assert [m["mountPath"] for m in container["volumeMounts"]] == ["/etc/factory"]


TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def traced_context(task: KafkaAgentOperator) -> dict[str, Any]:
    """A task's context in an Airflow that writes traces."""
    context = task_context(task)
    context["ti"].context_carrier = {"traceparent": TRACEPARENT}
    return context


def test_a_pod_is_told_where_traces_go_and_whose_part_it_is_and_no_secret_in_plain_sight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__TRACES__OTEL_ON", "true")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "api-key=hunter2")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_on")
    task = operator(env_vars={"OTEL_TRACES_SAMPLER": "always_off"}, credentials="connections")
    made = pod(task, traced_context(task))
    variables = [(v["name"], v.get("value")) for v in made["spec"]["containers"][0]["env"]]
    assert len({name for name, _ in variables}) == len(variables)
    told = dict(variables)
    assert told["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://collector:4318"
    assert told["OTEL_TRACES_SAMPLER"] == "always_off", "the task's own"
    assert told["TRACEPARENT"] == decode_run(made["metadata"]["annotations"][ANNOTATION]).traceparent == TRACEPARENT
    assert "hunter2" not in json.dumps(made)


def test_what_is_secret_of_where_traces_go_is_in_the_pods_own_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "api-key=hunter2")
    with kube_api() as api:
        task = operator(runner="kubernetes", config_file=None, in_cluster=False, credentials="connections")
        monkeypatch.setattr(KafkaAgentOperator, "client", CoreV1Api(new_client_from_config_dict(api.config)))
        monkeypatch.setattr(Access, "environment", lambda self: {"KAFKA_BOOTSTRAP": "broker:9092"})
        run_context = task_context(task)
        PodRunner(task.agent_run(run_context), task._access, task)  # type: ignore[arg-type]
        request = k8s.V1Pod(metadata=k8s.V1ObjectMeta(name="pod", namespace="ns", labels={}), spec=k8s.V1PodSpec(containers=[]))
        task.get_or_create_pod(request, run_context)  # type: ignore[arg-type]
        made = dict(zip(api.asked, api.told, strict=True))
    secret = json.loads(made["POST", "/api/v1/namespaces/ns/secrets"])
    assert secret["stringData"] == {"KAFKA_BOOTSTRAP": "broker:9092", "OTEL_EXPORTER_OTLP_HEADERS": "api-key=hunter2"}
    assert b"hunter2" not in made["POST", "/api/v1/namespaces/ns/pods"]


def test_a_span_does_not_make_it_another_pod() -> None:
    task = operator()
    labels = pod(task)["metadata"]["labels"]
    again = operator()
    assert pod(again, traced_context(again))["metadata"]["labels"] == labels


def test_an_image_with_its_own_command_keeps_it() -> None:
    container = pod(operator(cmds=["/agent"], arguments=["go"]))["spec"]["containers"][0]
    assert (container["command"], container["args"]) == (["/agent"], ["go"])
    assert {"name": "FACTORY_RUN", "value": "/etc/factory/run.json"} in container["env"]


def test_a_live_pod_is_looked_for_by_the_fingerprint_of_just_this_run() -> None:
    task = operator()
    pod(task)
    assert "factory-agents/fingerprint=" in task._build_find_pod_label_selector({**task_context(task)})  # type: ignore[typeddict-item]


def test_a_result_is_xcoms_data_and_every_outlets_event() -> None:
    task = operator()
    run_context = task_context(task)
    task._run = task.agent_run(run_context)  # type: ignore[arg-type]
    done = result(pipeline="clicks")
    assert task._conclude(run_context, done) == plain(done)  # type: ignore[arg-type]
    extra = run_context["outlet_events"][task.outlets[0]].extra
    assert extra["counts"] == {"consumed": 10, "forwarded": 10, "produced": 10}
    assert extra["window"] == INTERVAL.key
    assert extra["manifest"]["ranges"] == [[0, 0, 12, 10]]
    json.dumps(extra)


@pytest.mark.parametrize(
    ("info", "raised", "says"),
    [
        (ErrorInfo("WindowError", "backwards"), WindowError, "backwards"),
        (ErrorInfo("UnavailableError", "no broker", retriable=True), UnavailableError, "no broker"),
        (ErrorInfo("KeyError", "KeyError: 'x'"), AgentCrashedError, "KeyError: 'x'"),
    ],
)
def test_a_failed_result_is_its_own_error(info: ErrorInfo, raised: type[Exception], says: str) -> None:
    task = operator()
    with pytest.raises(raised, match=says) as error:
        task._conclude(task_context(task), result(status="failed", error=info))  # type: ignore[arg-type]
    assert error.value.retriable is info.retriable  # type: ignore[attr-defined]


def test_another_pipelines_result_fails_the_task_for_good() -> None:
    task = operator()
    context = task_context(task)
    task._run = task.agent_run(context)  # type: ignore[arg-type]
    with (
        pytest.raises(AirflowFailException, match="is of pipeline 'payments', expected 'clicks': it is another run's"),
        airflow_errors(),
    ):
        task._conclude(context, result(pipeline="payments"))  # type: ignore[arg-type]


def test_another_shards_result_is_never_taken() -> None:
    task = operator()
    run_context = task_context(task)
    task._run = task.agent_run(run_context)  # type: ignore[arg-type]
    with pytest.raises(AgentCrashedError, match="expected 'enrich'"):
        task._conclude(run_context, result(stage="other"))  # type: ignore[arg-type]


def ended(message: str, phase: str = "Succeeded") -> k8s.V1Pod:
    terminated = k8s.V1ContainerStateTerminated(message=message, exit_code=0 if phase == "Succeeded" else 1)
    status = k8s.V1ContainerStatus(
        name="base", image="i", image_id="i", ready=False, restart_count=0, state=k8s.V1ContainerState(terminated=terminated)
    )
    return k8s.V1Pod(
        metadata=k8s.V1ObjectMeta(name="pod", namespace="ns", labels={}),
        spec=k8s.V1PodSpec(containers=[k8s.V1Container(name="base")]),
        status=k8s.V1PodStatus(phase=phase, container_statuses=[status]),
    )


def pod_task(monkeypatch: pytest.MonkeyPatch, message: str, phase: str = "Succeeded") -> tuple[KafkaAgentOperator, dict[str, Any]]:
    """A task whose pod ended with this termination message: KubernetesPodOperator's part is replaced by its call of ``cleanup``."""

    def run_pod(self: KafkaAgentOperator, run_context: Any) -> None:
        assert not self.do_xcom_push, "no XCom sidecar"
        self.cleanup(ended(message, phase), ended(message, phase))

    monkeypatch.setattr(KubernetesPodOperator, "execute_sync", run_pod)
    monkeypatch.setattr(PodRunner, "_events", lambda *a: [])
    monkeypatch.setattr(KubernetesPodOperator, "is_istio_enabled", lambda *a: False)
    monkeypatch.setattr(KubernetesPodOperator, "process_pod_deletion", lambda *a, **k: True)
    monkeypatch.setattr(KubernetesPodOperator, "patch_already_checked", lambda *a, **k: None)
    task = operator(runner="kubernetes")
    return task, task_context(task)


def test_a_pods_result_is_its_termination_message(monkeypatch: pytest.MonkeyPatch) -> None:
    task, run_context = pod_task(monkeypatch, encode(result()).decode())
    assert task.execute(run_context)["counts"]["consumed"] == 10  # type: ignore[arg-type]
    assert task.do_xcom_push
    assert run_context["ti"].pushed["run_info"]["runner"] == "kubernetes"


def test_without_a_way_to_kubernetes_it_is_no_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", "/nowhere")
    task = operator(runner="kubernetes")
    with pytest.raises(AirflowFailException, match="no way to a Kubernetes API server is configured"):
        task.execute(task_context(task))  # type: ignore[arg-type]


def test_a_failed_pods_error_is_the_agents_own(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = result(status="failed", error=ErrorInfo("WindowError", "backwards"))
    task, run_context = pod_task(monkeypatch, encode(failed).decode(), "Failed")
    with pytest.raises(AirflowFailException, match="WindowError: backwards"):
        task.execute(run_context)  # type: ignore[arg-type]
    retriable = result(status="failed", error=ErrorInfo("UnavailableError", "no broker", retriable=True))
    task, run_context = pod_task(monkeypatch, encode(retriable).decode(), "Failed")
    with pytest.raises(UnavailableError, match="no broker"):
        task.execute(run_context)  # type: ignore[arg-type]


@pytest.fixture
def word(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was left in the ledger of failures: names and error, since the broker of these tests is nowhere."""
    import factory_agents.kafka.failures

    left: list[Any] = []
    monkeypatch.setattr(factory_agents.kafka.failures, "leave_failure", lambda config, *names, error, **_: left.append((names, str(error))))
    return left


@pytest.mark.parametrize("message", ["", "garbage", "{", encode(result(truncated=True)).decode()])
def test_without_a_whole_message_the_ledger_is_asked_and_else_it_fails(
    monkeypatch: pytest.MonkeyPatch, word: list[Any], message: str
) -> None:
    import factory_agents.kafka.ledger

    monkeypatch.setenv("AIRFLOW_CONN_KAFKA_DEFAULT", '{"conn_type": "kafka", "extra": {"bootstrap.servers": "b:1"}}')
    task, run_context = pod_task(monkeypatch, message)
    digest = task.agent_run(run_context).digest  # type: ignore[arg-type]
    asked: list[Any] = []
    monkeypatch.setattr(factory_agents.kafka.ledger, "read_result", lambda *a, **k: asked.append((a, k)) or result(run=digest))
    assert task.execute(run_context)["manifest"]  # type: ignore[arg-type]
    assert asked[0][0][1] == task.agent_run(run_context).work  # type: ignore[arg-type]
    monkeypatch.setattr(factory_agents.kafka.ledger, "read_result", lambda *a, **k: None)
    task, run_context = pod_task(monkeypatch, message)
    with pytest.raises(AgentCrashedError, match="left no result") as error:
        task.execute(run_context)  # type: ignore[arg-type]
    assert word == [((task.agent_run(run_context).work,), str(error.value))]  # type: ignore[arg-type]


def test_a_result_of_another_run_in_the_ledger_is_not_taken_for_this_ones(monkeypatch: pytest.MonkeyPatch, word: list[Any]) -> None:
    import factory_agents.kafka.ledger

    monkeypatch.setenv("AIRFLOW_CONN_KAFKA_DEFAULT", '{"conn_type": "kafka", "extra": {"bootstrap.servers": "b:1"}}')
    monkeypatch.setattr(factory_agents.kafka.ledger, "read_result", lambda *a, **k: result(run="of older code"))
    task, run_context = pod_task(monkeypatch, "")
    with pytest.raises(AgentCrashedError, match="left no result"):
        task.execute(run_context)  # type: ignore[arg-type]


@pytest.mark.parametrize("told", ["before the pod is asked for", "while it is created", "once it is there"])
def test_a_task_that_is_stopped_leaves_no_pod(told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop is a signal: it comes in the middle of anything, also of the call that creates the pod."""
    with kube_api() as api:
        task = operator(runner="kubernetes", config_file=None, in_cluster=False)
        client = CoreV1Api(new_client_from_config_dict(api.config))
        monkeypatch.setattr(KafkaAgentOperator, "client", client)
        run_context = task_context(task)
        PodRunner(task.agent_run(run_context), task._access, task)  # type: ignore[arg-type]
        request = k8s.V1Pod(metadata=k8s.V1ObjectMeta(name="pod", namespace="ns", labels={}), spec=k8s.V1PodSpec(containers=[]))
        moment = {"before the pod is asked for": "GET", "while it is created": "POST"}.get(told)

        def stop(method: str, path: str) -> None:
            if method == moment and not task.was_killed:
                task.on_kill()

        api.answer = stop
        if moment:
            with pytest.raises(AgentCrashedError, match="the task was stopped"):
                task.get_or_create_pod(request, run_context)  # type: ignore[arg-type]
        else:
            task.get_or_create_pod(request, run_context)  # type: ignore[arg-type]
            task.on_kill()
        assert api.deleted() == ["/api/v1/namespaces/ns/pods/pod"]


def test_lineage_names_topics_and_counts() -> None:
    task = operator()
    run_context = task_context(task)
    task._run = task.agent_run(run_context)  # type: ignore[arg-type]
    task._conclude(run_context, result())  # type: ignore[arg-type]
    lineage = task.get_openlineage_facets_on_complete(None)
    assert [(d.namespace, d.name) for d in lineage.inputs] == [("kafka://main", "raw")]
    assert [(d.namespace, d.name) for d in lineage.outputs] == [("kafka://main", "enriched")]
    assert lineage.outputs[0].outputFacets["outputStatistics"].rowCount == 10


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:s3cr3t@db.example:5433/shop?password=s3cr3t&sslpassword=s3cr3t",
        "postgresql://user:s3%20cr3t@[::1]/shop",
        "postgresql:///shop?host=db.example&user=u&password=s3cr3t",
    ],
)
def test_lineage_names_the_database_without_what_is_secret(url: str) -> None:
    address = database_from_url(url, "DATABASE_URL").address
    lineage = result_lineage(result(dataset=Dataset("postgres", "events", address)), input_topic="raw")
    said = json.dumps([[d.namespace, d.name] for d in (*lineage.inputs, *lineage.outputs)])
    assert "shop.public.events" in said
    assert not any(word in said for word in ("cr3t", "user", "password"))


@pytest.mark.parametrize(
    ("sink", "variable", "connection"),
    [
        ("snowflake", "SNOWFLAKE_PASSWORD", {"conn_type": "snowflake", "login": "u", "password": "s3cr3t", "extra": {"account": "acme"}}),
        (
            "bigquery",
            "BIGQUERY_CREDENTIALS",
            {"conn_type": "google_cloud_platform", "extra": {"keyfile_dict": {"private_key": "s3cr3t"}}},
        ),
        ("iceberg", "ICEBERG_CATALOG", {"conn_type": "iceberg", "host": "https://lake", "login": "u", "password": "s3cr3t"}),
    ],
)
def test_publish_to_a_warehouse_has_its_default_connection_beside_the_run(
    monkeypatch: pytest.MonkeyPatch, sink: str, variable: str, connection: dict[str, Any]
) -> None:
    conn_id = {"snowflake": "snowflake_default", "bigquery": "google_cloud_default", "iceberg": "iceberg_default"}[sink]
    monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(connection))
    monkeypatch.setenv("AIRFLOW_CONN_KAFKA_DEFAULT", '{"conn_type": "kafka", "extra": {"bootstrap.servers": "b:1"}}')
    task = operator(agent="publish", agent_params={"table": "a.b.t", "sink": sink}, output_topic=None)
    assert "s3cr3t" in task._access.environment()[variable]
    assert b"s3cr3t" not in encode(task.agent_run(task_context(task)))  # type: ignore[arg-type]


class TestWhatComesFromWhoeverStartedTheRun:
    CONTRACT = "name: e\nid: null\nschema: {properties: {country: {enum: [DK, NO]}, order: {$ref: schemas/order.json}}}\n"

    @pytest.fixture
    def repository(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A DAG bundle with a contract in its ``include``, and a secret beside it."""
        (tmp_path / "bundle" / "include" / "contracts" / "schemas").mkdir(parents=True)
        (tmp_path / "bundle" / "include" / "contracts" / "e.yaml").write_text(self.CONTRACT)
        (tmp_path / "bundle" / "include" / "contracts" / "schemas" / "order.json").write_text('{"type": "object"}')
        (tmp_path / ".pgpass").write_text("db:5432:events:alice:s3cr3t\n")
        monkeypatch.delenv("FACTORY_INCLUDE", raising=False)
        return tmp_path / "bundle"

    def portable(self, task: KafkaAgentOperator, repository: Path, **rendered: Any) -> AgentRun:
        """The run as it is sent, once Airflow has rendered the templates."""
        for name, value in rendered.items():
            setattr(task, name, value)
        told = task_context(task)
        told["ti"].bundle_instance = SimpleNamespace(path=repository)
        return task._portable(task.agent_run(told), told)  # type: ignore[arg-type]

    def test_the_agent_is_told_which_parameters_do(self) -> None:
        task = operator(agent_params={"source": "{{ params.source }}", "time_field": "t"}, contract="contracts/e.yaml")
        task.agent_params = {"source": "data/a.jsonl", "time_field": "t"}
        run = task.agent_run(task_context(task))  # type: ignore[arg-type]
        assert run.untrusted == ("source",)
        assert told(agent_params={"source": "/data/{{ ds }}.jsonl"}, contract="/data/c.yaml").untrusted == ()
        assert told(contract="{{ params.contract }}").untrusted == ("contract",)

    def test_no_function_may_be_named(self) -> None:
        task = operator(agent="{{ params.agent }}")
        task.agent = "enrich"
        assert task.agent_run(task_context(task)).agent.name == "enrich"  # type: ignore[arg-type]
        task.agent = "os:system"
        with pytest.raises(ConfigurationError, match="'os:system': it comes from a parameter of the run, so it may only be a built-in"):
            task.agent_run(task_context(task))  # type: ignore[arg-type]
        assert told(agent="os.path:join").agent.name == "os.path:join"

    @pytest.mark.parametrize("written", ["contracts/e.yaml", "{{ params.contract }}"])
    def test_a_contract_travels_with_the_files_it_refers_to(self, repository: Path, written: str) -> None:
        run = self.portable(operator(agent="validate", contract=written), repository, contract="contracts/e.yaml")
        elsewhere = load_contract(run.params["contract"], untrusted=True)
        here = load_contract(repository / "include" / "contracts" / "e.yaml")
        assert elsewhere.digest == here.digest
        assert [v.rule for v in elsewhere.violations({"country": "NO", "order": 1})] == ["schema:order"]

    @pytest.mark.parametrize("by", ["author", "run"])
    def test_a_schema_of_a_contract_of_the_standard_travels_by_its_name(self, repository: Path, by: str) -> None:
        head = "apiVersion: v3.2.0\nkind: DataContract\nid: shop\nversion: 1.0.0\nschema:\n"
        schemas = "".join(
            f"- {{name: {n}, properties: [{{name: {n}_id, logicalType: string, required: true}}]}}\n" for n in ("orders", "lines")
        )
        (repository / "include" / "contracts" / "shop.odcs.yaml").write_text(head + schemas)
        named = "contracts/shop.odcs.yaml#lines"
        if by == "author":
            run = self.portable(operator(agent="validate", contract=named), repository)
        else:
            run = self.portable(operator(agent="validate", contract="{{ params.contract }}"), repository, contract=named)
        elsewhere = load_contract(run.params["contract"])
        assert (elsewhere.name, [c.name for c in elsewhere.columns()]) == ("lines", ["lines_id"])

    def test_a_contract_in_the_dag_file_travels_too(self, repository: Path) -> None:
        written = {"name": "e", "id": None, "schema": "contracts/schemas/order.json"}
        run = self.portable(operator(agent="validate", contract=written), repository)
        assert [v.rule for v in load_contract(run.params["contract"]).violations([])] == ["schema"]

    @pytest.mark.parametrize(
        "contract",
        [
            "{}/.pgpass",
            "../.pgpass",
            "../../.pgpass",
            "contracts/../../../.pgpass",
            "/etc/passwd",
            "no-such.yaml",
            "name: e\nid: null\n",
            "{{name: e}}",
        ],
    )
    def test_no_other_file_and_no_text_may_be_given(self, repository: Path, contract: str) -> None:
        task = operator(agent="validate", contract="{{ params.contract }}")
        with pytest.raises(ConfigurationError) as caught:
            self.portable(task, repository, contract=contract.format(repository.parent))
        assert "s3cr3t" not in str(caught.value)

    def test_nor_a_mapping_that_a_template_made(self, repository: Path) -> None:
        for given in ({"name": "e", "id": None}, {"name": "e", "text": "name: e\nid: null\n", "files": {}}):
            with pytest.raises(ConfigurationError, match="expected the name of a file"):
                self.portable(operator(agent="validate", contract="{{ params.contract }}"), repository, contract=given)
        task = operator(agent="validate", agent_params="{{ params.everything | tojson }}")
        with pytest.raises(ConfigurationError, match="expected the name of a file"):
            self.portable(task, repository, agent_params={"contract": {"name": "e", "id": None}})

    def test_the_author_may_name_any_file(self, repository: Path, tmp_path: Path) -> None:
        (tmp_path / "own.yaml").write_text("name: own\nid: null\n")
        run = self.portable(operator(agent="validate", contract=str(tmp_path / "own.yaml")), repository)
        assert load_contract(run.params["contract"]).name == "own"

    def test_what_the_author_names_and_only_the_image_holds_is_left_to_it(self, repository: Path) -> None:
        run = self.portable(operator(agent="validate", contract="contracts/of-the-image.yaml"), repository)
        assert run.params["contract"] == "contracts/of-the-image.yaml"
