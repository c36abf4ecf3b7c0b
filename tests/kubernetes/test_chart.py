"""The chart on a real cluster with three brokers: one event in, one enriched event out, one workflow done; upgrades, rollbacks, evictions
and the loss of a broker lose and double nothing.
"""

from __future__ import annotations

import bisect
import functools
import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition
from kubernetes import client, dynamic
from lint_deploy import combinations, definition_documents, is_custom, render

from factory_agents.kafka.lag import group_lag
from factory_agents.sandbox import Sandbox
from tests.support.brokers import Brokers, three_brokers
from tests.support.cluster import FILL_TMP, IMAGE, RESTART_KUBELET, TestCluster
from tests.support.helm import HELM, Release
from tests.support.prometheus import PROGRAM, prometheus
from tests.support.proxy import Proxy
from tests.support.runs import Runs
from tests.support.temporal import Pipelines
from tests.support.topics import create_topic
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.timeout(900), pytest.mark.skipif(HELM is None, reason="Helm is not installed (FACTORY_HELM)")]

CHART = Path(__file__).resolve().parents[2] / "deploy" / "helm" / "factory"
CRDS = os.environ.get("FACTORY_CRDS", "")
PARTITIONS = 12
SMALL = {"requests": {"cpu": "20m", "memory": "64Mi"}, "limits": {"memory": "512Mi"}}
LIVE = {"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"memory": "512Mi"}}  # with less, a busy machine hardly lets it run
CHECK = """
def check(event):
    from factory_agents import Reject

    if not event.get("enriched"):
        raise Reject("it was not enriched", rule="enriched")
    return event
"""
FILL_MEMORY = """
import os

held = os.memfd_create("held")  # belongs to no process, so that the largest one goes: the agent
while True:
    os.write(held, bytes(2**20))
"""
RATE = int(os.environ.get("FACTORY_TEST_RATE", "2000"))
"""Events a second while versions change."""


class Site:
    """A namespace where pods must be restricted, with Kafka and Temporal in its reach."""

    def __init__(self, cluster: TestCluster, runs: Runs, pipelines: Pipelines, folder: Path) -> None:
        self.cluster, self.runs, self.pipelines, self.folder = cluster, runs, pipelines, folder

    def release(self, name: str) -> Release:
        """The chart under a name."""
        return Release(name, CHART, self.cluster.namespace, self.folder)

    def topic(self, name: str) -> str:
        """A topic that is stamped by the broker."""
        return self.runs.topic(name, PARTITIONS, message_timestamp_type="LogAppendTime")

    def values(self, raw: str, enriched: str) -> dict[str, Any]:
        """Four live agents from one topic to another, and nothing else."""
        repository, _, tag = IMAGE.partition(":")
        return {
            "image": {"repository": repository, "tag": tag},
            "prefix": self.runs.prefix,
            "agents": {"enrich": {"inTopic": raw, "outTopic": enriched, "resources": LIVE}},
            "metrics": {"enabled": False},
        }

    def pods(self, instance: str) -> dict[str, str]:
        """Names and addresses of a release's pods that are ready and not about to end."""
        found = self.cluster.core.list_namespaced_pod(self.cluster.namespace, label_selector=f"app.kubernetes.io/instance={instance}").items
        ready = (p for p in found if any(c.type == "Ready" and c.status == "True" for c in p.status.conditions or ()))
        return {p.metadata.name: p.status.pod_ip for p in ready if p.metadata.deletion_timestamp is None}

    def stamped(self, topic: str) -> list[tuple[int, int, int]]:
        """Id, the producer's time and the broker's, in milliseconds, of every committed record."""
        ends = self.runs.cluster.high_watermark(topic, range(PARTITIONS))
        reader = Consumer({**READER, "bootstrap.servers": self.runs.bootstrap})
        reader.assign([TopicPartition(topic, partition, 0) for partition in ends])
        found: list[tuple[int, int, int]] = []
        ended: set[int] = set()
        while len(ended) < PARTITIONS:
            for message in reader.consume(10_000, 10):
                error = message.error()
                if error is None:
                    event = json.loads(message.value() or b"")
                    found.append((event["event_id"], event["sent"], message.timestamp()[1]))
                else:
                    assert error.code() == KafkaError._PARTITION_EOF, error
                    ended.add(message.partition() or 0)
        reader.close()
        return found


READER = {
    "group.id": "test",
    "enable.auto.commit": False,
    "isolation.level": "read_committed",
    "enable.partition.eof": True,
    "auto.offset.reset": "earliest",
    "log_level": 0,
}


@pytest.fixture(scope="module")
def brokers(cluster: TestCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Brokers]:
    """Three of them, which pods reach."""
    with three_brokers(tmp_path_factory.mktemp("brokers"), cluster.host) as made:
        yield made


@pytest.fixture(scope="module")
def site(sandbox: Sandbox, brokers: Brokers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The site, which is gone when the module ends."""
    cluster = TestCluster.make()
    info = Sandbox(sandbox.home, host=cluster.host, with_temporal=True).up()
    restricted = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
    cluster.core.patch_namespace(cluster.namespace, restricted)
    cluster.put_secret("factory-agent", {"KAFKA_BOOTSTRAP": brokers.bootstrap, "DATABASE_URL": info.database_url})
    prefix, folder = cluster.namespace, tmp_path_factory.mktemp("chart")

    def topic(name: str, partitions: int, **config: object) -> str:
        create_topic(brokers.admin, f"{prefix}.{name}", partitions, **config)
        return f"{prefix}.{name}"

    runs = Runs(brokers.bootstrap, prefix, topic, brokers.admin)
    server, _, port = str(info.temporal_address).rpartition(":")
    temporal = Proxy(server, int(port), at=cluster.host)
    pipelines = Pipelines(f"{cluster.host}:{temporal.port}", brokers.bootstrap, prefix, folder)
    yield Site(cluster, runs, pipelines, folder)
    pipelines.close()
    temporal.close()
    runs.close()
    cluster.close()


class Walk:
    """The chart as the walkthrough installs it: a workflow begins for each enriched event."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self.raw, self.enriched, self.checked = (site.topic(name) for name in ("raw", "enriched", "checked"))
        self.pipeline = f"{site.runs.prefix}.smoke"
        stage = {"name": "check", "agent": "check", "source": CHECK, "output_topic": self.checked}
        pipeline = {"pipeline": self.pipeline, "topic": self.enriched, "prefix": site.runs.prefix, "stages": [stage]}
        temporal = {
            "address": site.pipelines.address,
            "workerDefaults": {"resources": SMALL, "replicas": 1},
            "workers": {"default": {}},
            "starters": {"smoke": {"topic": self.enriched, "pipeline": pipeline}},
        }
        self.values = site.values(self.raw, self.enriched) | {"metrics": {"resources": SMALL}, "temporal": temporal}

    def smoke(self, id_: str) -> None:
        """One event in; one enriched event, one finished workflow, and one event that it checked come out."""
        site, workflow = self._site, f"{self.pipeline}/{id_}"
        site.runs.produce(self.raw, [json.dumps({"event_id": id_, "payload": "sample"}).encode()], partition=0)
        wait_for(lambda: site.pipelines.exists(workflow) and site.pipelines.is_over(workflow), f"the workflow {workflow} to end", 120)
        enriched, checked = ([r.event for r in site.runs.everything(topic) if r.id == id_] for topic in (self.enriched, self.checked))
        assert enriched == checked == [{"event_id": id_, "payload": "sample", "enriched": True}]
        (stage,) = site.pipelines.done(workflow).stages
        assert (stage.stage, stage.counts.produced) == ("check", 1)


@pytest.mark.timeout(600)  # that long the walkthrough may take at most
def test_one_event_becomes_one_enriched_event_and_one_workflow_twice_over(site: Site) -> None:
    walk, release = Walk(site), site.release("walk")
    release.upgrade(walk.values)
    pods = site.pods("walk")
    assert sum("-enrich-" in name for name in pods) == 4
    walk.smoke("test-123")
    release.upgrade(walk.values)
    walk.smoke("test-124")
    assert site.pods("walk") == pods  # an upgrade to the same changes nothing
    assert sorted(record.id for record in site.runs.everything(walk.enriched)) == ["test-123", "test-124"]
    assert "ok" in release.test()
    if PROGRAM is not None:
        assert_scraped(site, walk, release)
    manifest = release.manifest()
    assert site.runs.bootstrap not in manifest
    assert "postgresql://" not in manifest
    release.uninstall()
    wait_for(lambda: not site.pods("walk"), "its pods to be gone", 120)


def assert_scraped(site: Site, walk: Walk, release: Release) -> None:
    """A Prometheus with the chart's rules sees each agent, and what scaling asks has an answer: nothing is left to do."""
    scaled = {"enrich": {**walk.values["agents"]["enrich"], "scaling": {"by": "keda"}}}
    documents = release.render(walk.values | {"agents": scaled, "monitoring": {"enabled": True}})
    rules, scaler = ({d["kind"]: d["spec"] for d in documents if "spec" in d}[kind] for kind in ("PrometheusRule", "ScaledObject"))
    ports = {"walk-enrich": 9109, "walk-metrics": 9108}
    targets = {name: f"{ip}:{port}" for name, ip in site.pods("walk").items() for of, port in ports.items() if name.startswith(of)}
    assert len(targets) == 5
    consumed = f'sum(factory_events_total{{pipeline="factory.enrich.{walk.raw}",outcome="consumed"}})'
    expected = {"sum(up)": 5.0, scaler["triggers"][0]["metadata"]["query"]: 0.0, consumed: 2.0}
    with prometheus(site.folder / "prometheus", targets, yaml.safe_dump(rules)) as seen:
        wait_for(
            lambda: [[value for _, value in seen.query(query)] for query in expected] == [[v] for v in expected.values()], str(expected)
        )
        assert seen.firing() == []


class Load:
    """Events at a steady rate from a thread, until it is left. What a broker didn't confirm is sent again, and nothing twice."""

    def __init__(self, runs: Runs, topic: str) -> None:
        settings = {"bootstrap.servers": runs.bootstrap, "enable.idempotence": True, "linger.ms": 5, "log_level": 0}
        self._producer, self._topic = Producer(settings | {"queue.buffering.max.messages": 2_000_000}), topic
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._send, daemon=True)
        self.sent = self.arrived = 0
        self.parts: dict[str, float] = {"began": time.time()}

    def _send(self) -> None:
        began, batch = time.monotonic(), RATE // 10
        while not self._stop.wait(max(0.0, began + self.sent / RATE - time.monotonic())):
            for id_ in range(self.sent, self.sent + batch):
                event = json.dumps({"event_id": id_, "sent": int(time.time() * 1000)})
                self._producer.produce(self._topic, event, partition=id_ % PARTITIONS, on_delivery=self._delivered)
            self.sent += batch
            self._producer.poll(0)

    def _delivered(self, error: KafkaError | None, _: Message) -> None:
        self.arrived += error is None

    def begin(self, part: str) -> None:
        """What comes now belongs to this part of the test."""
        self.parts[part] = time.time()

    def wait(self, seconds: float) -> None:
        """Until the events of so many seconds more were sent."""
        enough = self.sent + seconds * RATE
        wait_for(lambda: self.sent >= enough, f"{seconds} s of load", 60)

    def delays(self, went: list[tuple[int, int, int]]) -> dict[str, float]:
        """For each part, how many seconds the slowest of its events took from the producer to the output."""
        names, begins = list(self.parts), [at * 1000 for at in self.parts.values()]
        worst = dict.fromkeys(names, 0.0)
        for _, sent, at in went:
            name = names[max(0, bisect.bisect(begins, sent) - 1)]
            worst[name] = max(worst[name], (at - sent) / 1000)
        return worst

    def __enter__(self) -> Load:
        self._thread.start()
        self.wait(1)
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join(60)
        assert self._producer.flush(60) == 0


@pytest.fixture(scope="module")
def live(site: Site) -> Iterator[tuple[Release, dict[str, Any]]]:
    """Four live agents, and the values that made them."""
    release = site.release("live")
    values = site.values(site.topic("load"), site.topic("loaded"))
    release.upgrade(values)
    yield release, values
    release.uninstall()


def test_an_upgrade_a_rollback_and_a_lost_broker_under_load_lose_and_double_nothing(
    site: Site, brokers: Brokers, live: tuple[Release, dict[str, Any]]
) -> None:
    release, values = live
    raw, loaded = (values["agents"]["enrich"][name] for name in ("inTopic", "outTopic"))
    group = f"factory.enrich.{raw}"
    generations = [site.pods("live")]
    with Load(site.runs, raw) as load:
        load.begin("upgrade")
        release.upgrade(values | {"env": {"RELEASE": "two"}})
        generations.append(site.pods("live"))
        load.begin("rollback")
        release.rollback()
        generations.append(site.pods("live"))
        load.begin("a broker is killed")
        load.wait(2)  # what has just come waits with what is to come
        coordinator = brokers.admin.describe_consumer_groups([group])[group].result().coordinator.id
        brokers.kill(coordinator)  # with it, a third of the partitions lose their leader
        load.wait(15)
        load.begin("it is back")
        brokers.launch(coordinator)
        brokers.wait_ready()
        load.wait(5)
    assert [len(pods) for pods in generations] == [4, 4, 4]
    assert len({name for pods in generations for name in pods}) == 12
    assert site.pods("live") == generations[-1]
    assert_exact(site, raw, loaded, load)


def assert_exact(site: Site, raw: str, loaded: str, load: Load, *, but: str = "") -> None:
    """All that was sent came out, once, and within fifteen seconds, but for the part in which there was no agent."""
    wait_for(lambda: not any(p.lag for p in group_lag(site.runs.config, f"factory.enrich.{raw}")), "the agents to be done", 120)
    went = site.stamped(loaded)
    assert load.arrived == load.sent
    assert sorted(id_ for id_, _, _ in went) == list(range(load.sent))  # 0 lost, 0 doubled
    worst = load.delays(went)
    print(f"{load.sent} events at {RATE} a second; the slowest: {', '.join(f'{of} {delay:.1f} s' for of, delay in worst.items())}")
    assert max(delay for of, delay in worst.items() if of != but) < 15


@pytest.mark.soak
def test_versions_hand_over_to_each_other_under_load(site: Site) -> None:
    raw, loaded, release = site.topic("versions"), site.topic("versioned"), site.release("versions")
    values = site.values(raw, loaded)
    enrich = {**values["agents"]["enrich"], "agent": "enrich"}
    group, rollout = f"factory.enrich.{raw}", functools.partial(_rollout, site)
    release.upgrade(values | {"agents": {"old": {**enrich, "version": "v1"}}})
    with Load(site.runs, raw) as load:
        release.upgrade(values | {"agents": {"old": {**enrich, "version": "v1"}, "new": {**enrich, "version": "v2"}}})
        assert rollout("start", group, "v2", "--steps", "1,100%", "--hold", "1 h")["held"] == 1
        assert rollout("shift", group, "100%")["held"] == PARTITIONS
        assert rollout("rollback", group, "--reason", "a trial")["verdict"] == "rolled back"
        assert rollout("start", group, "v2", "--hold", "1 s")["held"] == PARTITIONS
        assert rollout("finish", group)["settled"]
        release.upgrade(values | {"agents": {"new": {**enrich, "version": "v2"}}})
        assert len(site.pods("versions")) == 4
    assert_exact(site, raw, loaded, load)
    release.uninstall()


@pytest.mark.soak  # it closes the node to whatever else runs on it
def test_a_node_under_pressure_costs_a_pause_and_nothing_else(site: Site) -> None:
    """A member out of memory, one that the kubelet evicts, a drained node, one that none may stay on, a kubelet that dies."""
    raw, loaded, release = site.topic("pressed"), site.topic("pressed-out"), site.release("pressed")
    release.upgrade(site.values(raw, loaded))
    cluster = site.cluster

    def pod(name: str) -> Any:
        return cluster.core.read_namespaced_pod(name, cluster.namespace)

    def four(besides: set[str]) -> set[str]:
        wait_for(lambda: len(site.pods("pressed").keys() - besides) == 4, f"four ready agents, none of {besides}", 180)
        return set(site.pods("pressed"))

    now = four(set())
    with Load(site.runs, raw) as load:
        load.begin("out of memory")
        first = min(now)
        cluster.execute(first, FILL_MEMORY)
        wait_for(lambda: pod(first).status.container_statuses[0].restart_count == 1, "the container to be started again", 120)
        assert pod(first).status.container_statuses[0].last_state.terminated.reason == "OOMKilled"
        assert four(set()) == now  # the same pods

        load.begin("evicted by the kubelet")
        cluster.execute(first, FILL_TMP)
        # Not by its reason: an agent that ends within its second of grace is Completed, and only an event says why.
        wait_for(lambda: "Evicted" in cluster.events(first), "the kubelet to evict the pod", 240)
        wait_for(lambda: pod(first).status.phase != "Running", "the evicted pod to end", 30)
        now = four({first})

        load.begin("drained")
        with cluster.tainted("NoSchedule"):
            first, second, *_ = sorted(now)
            cluster.evict(first)
            with pytest.raises(client.ApiException, match="disruption budget"):
                cluster.evict(second)
            load.wait(5)
            assert set(site.pods("pressed")) == now - {first}  # three go on with all of it
        now = four({first})

        load.begin("none may stay")
        load.wait(2)  # what has just come waits with what is to come
        with cluster.tainted("NoExecute"):
            wait_for(lambda: not site.pods("pressed"), "every agent to be evicted", 120)
        now = four(now)
        load.begin("back again")
        load.wait(2)

        if RESTART_KUBELET:
            load.begin("the kubelet dies")
            subprocess.run(RESTART_KUBELET, shell=True, check=True, capture_output=True, executable="/bin/bash")
            load.wait(5)
            assert four(set()) == now
    assert_exact(site, raw, loaded, load, but="none may stay")
    release.uninstall()


def _rollout(site: Site, *arguments: str) -> Any:
    return site.pipelines.factory.ok("rollout", *arguments, "--prefix", site.runs.prefix, "--json").data


def test_an_eviction_beyond_the_budget_is_refused(site: Site, live: tuple[Release, dict[str, Any]]) -> None:
    wait_for(lambda: len(site.pods("live")) == 4, "four ready agents", 120)
    first, second, *_ = sorted(site.pods("live"))

    site.cluster.evict(first)
    with pytest.raises(client.ApiException) as refused:
        site.cluster.evict(second)
    assert refused.value.status == 429
    assert "disruption budget" in str(refused.value.body)
    wait_for(lambda: len(site.pods("live")) == 4, "a pod in its place", 120)
    assert first not in site.pods("live")
    assert second in site.pods("live")


def test_scaling_takes_the_number_of_replicas_over_and_leaves_it(site: Site) -> None:
    """No upgrade sets it back, the one least of all that turns scaling on, for which Kubernetes would leave one replica."""
    release, raw = site.release("scaled"), site.topic("scaled")
    values = site.values(raw, site.topic("scaled-out"))
    enrich = {**values["agents"]["enrich"], "replicas": 2}
    scaled = [{**enrich, "scaling": {"by": "hpa", "minReplicas": least, "maxReplicas": most}} for least, most in ((1, 4), (3, 4), (3, 5))]

    def replicas() -> int:
        deployment = client.AppsV1Api(site.cluster.api).read_namespaced_deployment("scaled-enrich", site.cluster.namespace)
        return int(deployment.spec.replicas)

    for agent in (enrich, scaled[0]):
        release.upgrade({**values, "agents": {"enrich": agent}})
        assert replicas() == 2
    release.upgrade({**values, "agents": {"enrich": scaled[1]}})
    wait_for(lambda: replicas() == 3, "the scaler to go up to its least", 120)
    release.upgrade({**values, "agents": {"enrich": scaled[2]}})
    assert replicas() == 3
    with pytest.raises(AssertionError, match=r"conflict with .kube-controller-manager. with subresource .scale."):
        release.upgrade({**values, "agents": {"enrich": enrich}})
    release.upgrade({**values, "agents": {"enrich": enrich}}, "--force-conflicts")
    assert replicas() == 2
    release.uninstall()


@pytest.fixture(scope="module")
def rendered(site: Site) -> Iterator[list[dict[str, Any]]]:
    """All that the charts render; for as long as the module takes, the cluster has the operators' definitions of it."""
    documents = [document for combination in combinations() for document in render(combination)]
    wanted = {document["kind"] for document in documents if is_custom(document)}
    found = [d for d in definition_documents(CRDS) if d["spec"]["names"]["kind"] in wanted]
    server = client.ApiextensionsV1Api(site.cluster.api)
    names = [server.create_custom_resource_definition(body=d).metadata.name for d in found]
    wait_for(lambda: all(_established(server, name) for name in names), "the definitions to be established", 60)
    yield documents
    for name in names:
        server.delete_custom_resource_definition(name)


def _established(server: client.ApiextensionsV1Api, name: str) -> bool:
    conditions = server.read_custom_resource_definition(name).status.conditions or ()
    return any(c.type == "Established" and c.status == "True" for c in conditions)


@pytest.mark.skipif(not CRDS, reason="no custom resource definitions (FACTORY_CRDS)")
def test_the_api_server_takes_all_that_the_charts_render(site: Site, rendered: list[dict[str, Any]]) -> None:
    """With the operators' definitions, and their rules that no schema has. Nothing is created but what a bare pod wants first."""
    namespace = site.cluster.namespace
    site.cluster.core.create_namespaced_service_account(namespace, {"metadata": {"name": "release"}})
    server = dynamic.DynamicClient(site.cluster.api)
    strictly = [("dryRun", "All"), ("fieldValidation", "Strict")]
    for document in rendered:
        kind = server.resources.get(api_version=document["apiVersion"], kind=document["kind"])
        name, body = document["metadata"]["name"], {**document, "metadata": {**document["metadata"], "namespace": namespace}}
        kind.server_side_apply(body=body, name=name, namespace=namespace, field_manager="test", query_params=strictly)
