"""A source, a sink and a codec from a wheel, in pods: the image knows nothing of them."""

from __future__ import annotations

from pathlib import Path

from kubernetes import client

from tests.kubernetes.conftest import OneAgent
from tests.support.plugin_wheel import install_plugins

CONTRACT = {"name": "events", "id": "event_id", "columns": {"event_id": "text", "text": "text"}}
"""A line of values holds texts only."""

BODY = """
from datetime import datetime
from airflow.sdk import CronDataIntervalTimetable, dag
from airflow_provider_factory.operators.kafka_agent import KafkaAgentOperator
from kubernetes.client import V1ConfigMapVolumeSource, V1KeyToPath, V1Volume, V1VolumeMount

MOUNTED = {
    "volumes": [V1Volume(name="acme", config_map=V1ConfigMapVolumeSource(
        name="acme-factory", items=[V1KeyToPath(key=k, path=p) for k, p in <paths>.items()]))],
    "volume_mounts": [V1VolumeMount(name="acme", mount_path="/opt/acme", read_only=True)],
    "env_vars": {"PYTHONPATH": "/opt/agents:/opt/acme"},
}

@dag(dag_id="DAG_ID", schedule=CronDataIntervalTimetable("@hourly", "UTC"), start_date=datetime(2026, 1, 1), catchup=False)
def pipeline():
    numbers = KafkaAgentOperator(
        task_id="ingest", agent="ingest", output_topic="<raw>", output_codec="acme-csv",
        agent_params={"source": "acme-numbers", "upto": 20}, **MOUNTED,
    )
    KafkaAgentOperator(
        task_id="publish", agent="publish", window=numbers.output, contract=<contract>, input_codec="acme-csv",
        agent_params={"sink": "acme-lines", "path": "/tmp/db"}, **MOUNTED,
    )

pipeline()
"""


def test_an_installed_source_sink_and_codec(one: OneAgent, tmp_path: Path) -> None:
    site = install_plugins(tmp_path)
    files = [path for path in sorted(site.rglob("*")) if path.is_file() and path.suffix != ".pyc" and path.parent != site]
    paths = {f"file-{n}": str(path.relative_to(site)) for n, path in enumerate(files)}
    data = {key: (site / path).read_text() for key, path in paths.items()}
    one.cluster.core.create_namespaced_config_map(
        one.cluster.namespace, client.V1ConfigMap(metadata=client.V1ObjectMeta(name="acme-factory"), data=data)
    )
    raw = one.runs.topic("raw", 2)
    body = BODY
    for name, value in {"paths": repr(paths), "raw": raw, "contract": repr(CONTRACT)}.items():
        body = body.replace(f"<{name}>", value)
    ran = one.runner.run(body)
    assert ran.state == "success", ran.states
    assert sorted(r.value or b"" for r in one.runs.everything(raw)) == sorted(f"{n},event {n}".encode() for n in range(20))
    (published,) = ran.results["publish"] if isinstance(ran.results["publish"], list) else [ran.results["publish"]]
    assert (published["counts"]["written"], published["dataset"]["name"]) == (20, "events")
