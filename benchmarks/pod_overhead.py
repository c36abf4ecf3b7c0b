"""What a pod costs: a task of KafkaAgentOperator beside KubernetesPodOperator's own with the same image, and throughput against shards.

Needs a cluster at KUBECONFIG with the image ``FACTORY_TEST_IMAGE`` in it (see tests/support/cluster.py for what else may be set).
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness import ROOT, arguments, filled_window, report, rounds

sys.path.insert(0, str(ROOT))
PARTITIONS = 12
SHARDS = (1, 2, 4)


def main() -> int:
    """Bring up what is needed, race, report; nothing where there is no cluster."""
    options = arguments(__doc__ or "", events=1_000_000)
    from tests.support.cluster import IMAGE, TestCluster, why_not

    if reason := why_not():
        print(f"skipped: {reason}")
        return 0
    cluster = TestCluster.make()
    try:
        with _sandbox(cluster.host) as info:
            cluster.put_secret("factory-agent", {"KAFKA_BOOTSTRAP": info.bootstrap})
            overhead(cluster, info.bootstrap, IMAGE, options.rounds)
            throughput(cluster, info.bootstrap, IMAGE, 60_000 if options.smoke else options.events)
    finally:
        cluster.close()
    return 0


@contextmanager
def _sandbox(host: str) -> Iterator[Any]:
    from factory_agents.sandbox import Sandbox

    sandbox = Sandbox(ROOT / ".factory" / "bench-pods", host=host)
    sandbox.up()
    try:
        yield sandbox.info()
    finally:
        sandbox.down(wipe=True)


class _TaskInstance:
    """As much of a task instance as the operators ask for outside Airflow."""

    def __init__(self, task_id: str) -> None:
        self.dag_id, self.task_id, self.run_id = "bench", task_id, f"run-{uuid.uuid4().hex[:8]}"
        self.map_index, self.try_number, self.max_tries = -1, 1, 0
        self.start_date = datetime.now(UTC)

    def xcom_push(self, key: str, value: Any) -> None:
        """Nobody reads it."""


def overhead(cluster: Any, bootstrap: str, image: str, count: int) -> None:
    """One pod task of each operator, over and over: creation, start, the agent or an import of it, log, result, deletion."""
    os.environ["AIRFLOW_CONN_KUBERNETES_DEFAULT"] = cluster.connection
    os.environ["AIRFLOW_CONN_KAFKA_DEFAULT"] = json.dumps({"conn_type": "kafka", "extra": {"bootstrap.servers": bootstrap}})
    from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator

    from airflow_provider_factory.operators.kafka_agent import KafkaAgentOperator
    from airflow_provider_factory.runners.kubernetes.manifest import pod_template
    from factory_agents.kafka.config import KafkaConfig
    from factory_agents.kafka.topics import Cluster
    from factory_agents.protocol import plain

    config = KafkaConfig(bootstrap)
    window = filled_window(config, "bench-in", 12, PARTITIONS)
    Cluster(config).create("bench-out", PARTITIONS, settings={})

    def run(operator: Any) -> float:
        ti = _TaskInstance(operator.task_id)
        context = {"ti": ti, "task": operator, "run_id": ti.run_id, "dag": None, "params": {}, "outlet_events": _Anything()}
        began = time.monotonic()
        operator.execute(context)
        return time.monotonic() - began

    def kpo(n: int) -> float:
        command = ["python", "-c", "import factory_agents.run; print('done')"]
        pod = {**pod_template(), "metadata": {"name": "kpo"}}
        return run(
            KubernetesPodOperator(
                task_id=f"kpo-{n}", image=image, cmds=command, pod_template_dict=pod, name="kpo", namespace=cluster.namespace,
                startup_check_interval_seconds=1, do_xcom_push=False,
            )
        )  # fmt: skip

    def ours(n: int) -> float:
        task = KafkaAgentOperator(
            task_id=f"ours-{n}", agent="enrich", image=image, namespace=cluster.namespace, runner="kubernetes",
            window=plain(window) | {"name": f"w{n}"}, output_topic="bench-out",
        )  # fmt: skip
        return run(task)

    kpo(-1)  # imports, caches
    seconds = rounds(count, {"ours": ours, "KubernetesPodOperator": kpo})
    ratio = statistics.median(seconds["ours"]) / statistics.median(seconds["KubernetesPodOperator"])
    report("pod task, fixed cost", seconds, "ours", 1, "tasks", {"seconds": seconds, "ours_over_kpo": round(ratio, 2)})


class _Anything(dict[Any, Any]):
    def __missing__(self, key: Any) -> Any:
        return self.setdefault(key, type("Event", (), {})())


def throughput(cluster: Any, bootstrap: str, image: str, events: int) -> None:
    """The same window in 1, 2 and 4 shards, each a pod of its own: from the first pod's creation to the last result."""
    from factory_agents.kafka.config import KafkaConfig
    from factory_agents.kafka.topics import Cluster

    config = KafkaConfig(bootstrap)
    window = filled_window(config, "bench-big", events, PARTITIONS)
    seconds = {}
    for shards in SHARDS:
        target = f"bench-big-{shards}"
        Cluster(config).create(target, PARTITIONS, settings={"retention.ms": "-1"})
        began = time.monotonic()
        with ThreadPoolExecutor(shards) as pool:
            done = list(pool.map(lambda i, n=shards, t=target: _shard(cluster, image, window, i, n, t), range(shards)))
        seconds[f"{shards} shard(s)"] = [time.monotonic() - began]
        slowest = max(seconds_of for seconds_of, _ in done)
        first = statistics.median(begun for _, begun in done)
        print(
            f"  {shards} shard(s): {seconds[f'{shards} shard(s)'][0]:.1f} s; slowest agent {slowest:.1f} s; a pod beside it {first:.1f} s"
        )
    report("pods, shards", seconds, "1 shard(s)", events, "events")


def _shard(cluster: Any, image: str, window: Any, index: int, of: int, target: str) -> tuple[float, float]:
    """Run one shard as a pod; the seconds that its agent took, and those that the pod took beside it."""
    from airflow_provider_factory.runners.kubernetes.failure import termination_message
    from airflow_provider_factory.runners.kubernetes.manifest import AgentPod, agent_pod, pod_template
    from factory_agents.protocol import AgentRef, AgentRun, Shard, decode_result, shard_window

    part = shard_window(window, of)[index]
    run = AgentRun(f"bench-{of}", "enrich", AgentRef("enrich"), window=part, shard=Shard(index, of), output_topic=target)
    pod = agent_pod(AgentPod(run=run, image=image, namespace=cluster.namespace, secret="factory-agent"), pod_template())
    pod["metadata"]["name"] = f"shard-{of}-{index}"
    began = time.monotonic()
    name = pod["metadata"]["name"]
    cluster.core.create_namespaced_pod(cluster.namespace, pod)
    while (seen := cluster.core.read_namespaced_pod(name, cluster.namespace)).status.phase not in ("Succeeded", "Failed"):
        time.sleep(0.1)
    whole = time.monotonic() - began
    result = decode_result(termination_message(seen, "base"))
    if result.status != "success":
        raise SystemExit(f"shard {index}: {result.error}")
    cluster.core.delete_namespaced_pod(name, cluster.namespace)
    return result.seconds, whole - result.seconds


if __name__ == "__main__":
    Path(os.environ.setdefault("AIRFLOW_HOME", str(ROOT / ".factory" / "bench-airflow"))).mkdir(parents=True, exist_ok=True)
    sys.exit(main())
