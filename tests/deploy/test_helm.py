"""The charts: what they render is valid and safe for every values file, a typo is refused, and nothing is copied that could drift."""

from __future__ import annotations

import copy
import functools
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lint_deploy
import pytest
import yaml
from lint_deploy import CHARTS, Combination, breaches, combinations, complaint, definitions, invalid, is_custom, render, run_helm

from factory_agents.topics_file import own_topics, read_topics

ROOT = Path(__file__).resolve().parents[2]
FACTORY, KAFKA = CHARTS / "factory", CHARTS / "kafka"
HELM = os.environ.get("FACTORY_HELM") or shutil.which("helm")
CRDS = os.environ.get("FACTORY_CRDS", "")

pytestmark = pytest.mark.skipif(HELM is None, reason="Helm is not installed (FACTORY_HELM)")


@functools.cache
def _once(combination: Combination) -> list[dict[str, Any]]:
    return render(combination)


def rendered(chart: Path, values: str) -> list[dict[str, Any]]:
    return copy.deepcopy(_once(Combination(chart, chart / "ci" / f"{values}-values.yaml")))


def one(documents: list[dict[str, Any]], kind: str, name: str = "") -> dict[str, Any]:
    (found,) = [d for d in documents if d["kind"] == kind and name in ("", d["metadata"]["name"])]
    return found


def container(deployment: dict[str, Any]) -> dict[str, Any]:
    (only,) = deployment["spec"]["template"]["spec"]["containers"]
    assert isinstance(only, dict)
    return only


@pytest.mark.parametrize("combination", combinations(), ids=str)
def test_every_combination_is_valid_and_within_the_policies(combination: Combination) -> None:
    documents = _once(combination)
    assert list(breaches(documents)) == []
    known = definitions(CRDS)
    assert [what for document in documents for what in invalid(document, known)] == []


@pytest.mark.skipif(not CRDS, reason="no custom resource definitions (FACTORY_CRDS)")
def test_every_custom_resource_is_checked_against_its_definition() -> None:
    kinds = {(d["apiVersion"], d["kind"]) for combination in combinations() for d in _once(combination) if is_custom(d)}
    assert len(kinds) >= 8
    assert kinds <= definitions(CRDS).keys()
    wrong = {"apiVersion": "kafka.strimzi.io/v1", "kind": "KafkaTopic", "metadata": {"name": "t"}, "spec": {"partition": 1}}
    assert len(list(invalid(wrong, definitions(CRDS)))) == 1


def test_a_misspelt_field_is_found() -> None:
    deployment = one(rendered(FACTORY, "enrich"), "Deployment", "release-enrich")
    deployment["spec"]["replica"] = 4
    assert len(list(invalid(deployment, {}))) == len(lint_deploy.RELEASES)


def _spec(d: dict[str, Any]) -> dict[str, Any]:
    found = d["spec"]["template"]["spec"]
    assert isinstance(found, dict)
    return found


PLANTED: dict[str, Callable[[dict[str, Any]], object]] = {
    "hostNetwork is set": lambda d: _spec(d).update(hostNetwork=True),
    "gets a service account's token": lambda d: _spec(d).pop("automountServiceAccountToken"),
    "may run as root": lambda d: _spec(d)["securityContext"].pop("runAsNonRoot"),
    "has no seccomp profile": lambda d: _spec(d)["securityContext"].pop("seccompProfile"),
    "that restricted pods may not have": lambda d: _spec(d)["volumes"].append({"name": "x", "hostPath": {"path": "/"}}),
    "may fill the node's disk": lambda d: _spec(d)["volumes"][0].update(emptyDir={}),
    "names no version": lambda d: container(d).update(image="factory-agents:latest"),
    "has no limits.memory": lambda d: container(d)["resources"]["limits"].pop("memory"),
    "may gain rights": lambda d: container(d)["securityContext"].update(allowPrivilegeEscalation=True),
    "may write to its image": lambda d: container(d)["securityContext"].pop("readOnlyRootFilesystem"),
    "keeps capabilities": lambda d: container(d)["securityContext"].pop("capabilities"),
    "has a port of the node": lambda d: container(d)["ports"][0].update(hostPort=9109),
    "nobody probes it": lambda d: container(d).pop("livenessProbe"),
    "stands in the open": lambda d: container(d)["env"].append({"name": "DB_PASSWORD", "value": "x"}),
    "a URL holds a password": lambda d: container(d)["env"].append({"name": "DATABASE_URL", "value": "postgresql://me:secret@db/x"}),
    "s to end": lambda d: _spec(d).update(terminationGracePeriodSeconds=1),
    "surplus pods": lambda d: d["spec"]["strategy"]["rollingUpdate"].update(maxSurge=1),
    "disruption budgets": lambda d: d["spec"]["template"]["metadata"]["labels"].pop("factory-agents/part"),
    "selects no pod": lambda d: d["spec"]["selector"]["matchLabels"].update(app="other"),
}


@pytest.mark.parametrize("what", PLANTED)
def test_each_policy_finds_what_it_is_for(what: str) -> None:
    documents = rendered(FACTORY, "enrich")
    PLANTED[what](one(documents, "Deployment", "release-enrich"))
    assert [finding for finding in breaches(documents) if what in finding]


def test_a_secret_and_a_second_document_of_a_name_are_found() -> None:
    documents = rendered(FACTORY, "enrich")
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {}}
    assert list(breaches([*documents, secret, secret])) == ["Secret s: the chart holds a secret"] * 2 + ["Secret s: is there twice"]


REFUSED = {
    "agent.enrich.inTopic=a": "agent",
    "agents.enrich.replica=4": "replica",
    "agents.enrich.replicas=-1": "minimum",
    "agents.enrich.scaling.by=kafka": "by",
    "agents.metrics.inTopic=a": "metrics",
    "agents.worker-a.inTopic=a": "worker-a",
    "fullnameOverride=x": "fullnameOverride",
    "agents.Enrich_1.inTopic=a": "invalid propertyName 'Enrich_1'",
    "image.tag=latest": "tag",
    "agents.enrich.image=mine:latest": "image",
    "agents.enrich.args[0]=--group": "args",
    "metrics.enable=true": "enable",
    "temporal.address=temporal": "address",
    "temporal.controller.rollout.strategy=Slow": "strategy",
    "agents.enrich.replicas=4": "agents.enrich.inTopic: which topic to read",
    "temporal.workers.default.replicas=1": "temporal.address: host:port of the server's frontend",
}


@pytest.mark.parametrize("given", REFUSED)
def test_a_wrong_value_is_refused_and_named(given: str) -> None:
    done = run_helm("template", "release", FACTORY, "--set", given)
    assert done.returncode != 0
    assert REFUSED[given] in complaint(done.stderr)
    assert "nil pointer" not in done.stderr


def test_a_worker_of_temporals_controller_is_told_by_it_where_the_server_is() -> None:
    documents = rendered(FACTORY, "temporal-controller")
    worker = one(documents, "WorkerDeployment", "release-worker-default")
    assert worker["spec"]["workerOptions"] == {"connectionRef": {"name": "temporal"}, "temporalNamespace": "default"}
    assert worker["spec"]["rollout"]["steps"] == [{"rampPercentage": 10, "pauseDuration": "10m"}]
    assert "env" not in container(worker)
    assert [d for d in documents if d["kind"] == "Deployment" and "worker" in d["metadata"]["name"]] == []


@pytest.mark.parametrize("given", ["broker.replicas=3", "brokers.replicas=0", "topics.more.a.partition=3", "version=latest"])
def test_kafkas_chart_refuses_likewise(given: str) -> None:
    assert run_helm("template", "release", KAFKA, "--set", given).returncode != 0


def test_names_that_kubernetes_would_not_take_or_confuse_are_refused() -> None:
    long = run_helm("template", "r" * 50, FACTORY, "--set", "agents.enrich-orders-once.inTopic=a")
    assert "has 69 characters, of 63 that Kubernetes takes" in complaint(long.stderr)
    twins = run_helm("template", "release", KAFKA, "--set", "topics.more.raw-events.partitions=3")
    assert "topics raw-events and raw_events are both called raw-events as resources" in complaint(twins.stderr)


def test_bounds_of_scaling_that_cross_are_refused() -> None:
    bounds = "agents.enrich.scaling.by=keda,agents.enrich.scaling.minReplicas=5,agents.enrich.scaling.maxReplicas=2,agents.enrich.inTopic=a"
    done = run_helm("template", "release", FACTORY, "--set", bounds)
    assert "minReplicas 5 is more than maxReplicas 2" in complaint(done.stderr)


def test_values_arrive_as_they_were_written(tmp_path: Path) -> None:
    """Helm reads whole numbers as fractions (1e+06), and YAML takes a bare Y, on or 1e3 for something else."""
    written = tmp_path / "values.yaml"
    scaling = {"by": "keda", "lagPerReplica": 5_000_000}
    environment = {"LIMIT": 1_000_000, "BYTES": 123_456_789_012, "RATIO": 0.5, "ON": True, "Y": "on", "TEMPLATE": "{{ .Values }}\n: x"}
    agent = {"inTopic": "1e3", "env": environment, "scaling": scaling, "terminationGracePeriodSeconds": 1_000_000}
    written.write_text(json.dumps({"agents": {"enrich": agent}}))
    documents = render(Combination(FACTORY, written))
    deployment = one(documents, "Deployment", "release-enrich")
    found = {variable["name"]: variable["value"] for variable in container(deployment)["env"]}
    expected = {name: str(value).lower() if value is True else str(value) for name, value in environment.items()}
    assert found == {**expected, "FACTORY_METRICS_LISTEN": "0.0.0.0:9109"}
    assert deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 1_000_000
    assert one(documents, "ScaledObject")["spec"]["triggers"][0]["metadata"]["threshold"] == "5000000"
    assert "1e3" in container(deployment)["args"]

    written.write_text(json.dumps({"topics": {"more": {"1e3": {"config": {"retention.bytes": 1_000_000_000_000}}}}}))
    topic = one(render(Combination(KAFKA, written)), "KafkaTopic", "1e3")
    assert topic["spec"]["config"]["retention.bytes"] == 1_000_000_000_000


def test_live_agents_are_as_the_design_has_them() -> None:
    deployment = one(rendered(FACTORY, "enrich"), "Deployment", "release-enrich")
    assert deployment["spec"]["replicas"] == 4
    assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
    assert deployment["spec"]["minReadySeconds"] == 3
    run = "agent run enrich --in-topic raw_events --group factory.enrich.raw_events --out-topic enriched_events"
    assert container(deployment)["args"] == run.split()
    assert container(deployment)["envFrom"] == [{"secretRef": {"name": "factory-agent"}}]


def test_versions_of_an_agent_share_its_group() -> None:
    deployments = {d["metadata"]["name"]: d for d in rendered(FACTORY, "versions") if d["kind"] == "Deployment"}
    for version in ("v1", "v2"):
        arguments = container(deployments[f"release-enrich-{version}"])["args"]
        assert arguments[arguments.index("--group") + 1] == "factory.enrich.raw_events"
        assert arguments[-2:] == ["--live-version", version]


def test_an_agent_may_be_paused() -> None:
    assert one(rendered(FACTORY, "paused"), "Deployment", "release-enrich")["spec"]["replicas"] == 0


@pytest.mark.parametrize(("values", "group"), [("keda", "factory.enrich.raw_events"), ("hpa", "live-enrich")])
def test_scaling_looks_at_the_lag_of_the_group_that_the_agent_joins(values: str, group: str) -> None:
    documents = rendered(FACTORY, values)
    deployment = one(documents, "Deployment", "release-enrich")
    arguments = container(deployment)["args"]
    assert arguments[arguments.index("--group") + 1] == group
    scaler = one(documents, "ScaledObject" if values == "keda" else "HorizontalPodAutoscaler")
    assert group in json.dumps(scaler)
    assert "kafka_consumer_lag" in json.dumps(scaler)
    assert "replicas" not in deployment["spec"]  # an upgrade leaves the number as it is


def test_what_the_charts_share_with_the_repository_are_links() -> None:
    files = sorted(path for chart in (FACTORY, KAFKA) for path in (chart / "files").iterdir())
    assert [path for path in files if not path.is_symlink()] == []
    assert {str(path.resolve().relative_to(ROOT)) for path in files} == {
        "deploy/grafana/factory-live.json",
        "deploy/grafana/factory-pipelines.json",
        "deploy/kubernetes/networkpolicy.yaml",
        "deploy/kubernetes/rbac.yaml",
        "deploy/prometheus/rules.yaml",
        "include/topics.yaml",
    }
    assert {path.name for path in (ROOT / "deploy/grafana").glob("*.json")} == {path.name for path in files if path.suffix == ".json"}


def test_rules_and_dashboards_are_those_of_the_repository() -> None:
    documents = rendered(FACTORY, "monitoring")
    assert one(documents, "PrometheusRule")["spec"] == yaml.safe_load((ROOT / "deploy/prometheus/rules.yaml").read_text())
    shown = {name: text for d in documents if d["kind"] == "ConfigMap" for name, text in d["data"].items()}
    for path in (ROOT / "deploy/grafana").glob("*.json"):
        assert json.loads(shown.pop(path.name)) == json.loads(path.read_text())
    assert shown == {}


def test_the_rights_of_dags_pods_are_those_of_the_plain_manifests() -> None:
    plain = [d for d in yaml.safe_load_all((ROOT / "deploy/kubernetes/rbac.yaml").read_text()) if d["kind"] == "Role"]
    shipped = {d["metadata"]["name"]: d["rules"] for d in rendered(FACTORY, "dag-pods") if d["kind"] == "Role"}
    assert shipped == {d["metadata"]["name"]: d["rules"] for d in plain}
    assert "factory-agent-secrets" not in {d["metadata"]["name"] for d in rendered(FACTORY, "everything") if d["kind"] == "Role"}


def test_topics_are_those_that_topics_apply_and_agents_make() -> None:
    made = {d["spec"]["topicName"]: d["spec"] for d in rendered(KAFKA, "defaults") if d["kind"] == "KafkaTopic"}
    own = [one.topic for one in own_topics("factory", 3).values()]
    wanted = [*read_topics(str(ROOT / "include/topics.yaml")), *own]
    assert made.keys() == {topic.name for topic in wanted}
    for topic in wanted:
        spec = made[topic.name]
        assert (spec["partitions"], spec["replicas"]) == (topic.partitions, topic.replication)
        assert {key: str(value) for key, value in spec["config"].items()} == dict(topic.settings)


def test_kafka_keeps_what_two_of_three_brokers_have() -> None:
    config = one(rendered(KAFKA, "defaults"), "Kafka")["spec"]["kafka"]["config"]
    assert config["min.insync.replicas"] == config["transaction.state.log.min.isr"] == 2
    assert {config[f"{of}.replication.factor"] for of in ("default", "offsets.topic", "transaction.state.log")} == {3}
    assert {d["spec"]["roles"][0]: d["spec"]["replicas"] for d in rendered(KAFKA, "defaults") if d["kind"] == "KafkaNodePool"} == {
        "controller": 3,
        "broker": 3,
    }
    small = one(rendered(KAFKA, "one-node"), "Kafka")["spec"]["kafka"]["config"]
    assert {small["min.insync.replicas"], small["default.replication.factor"]} == {1}


def test_charts_and_distributions_have_one_version() -> None:
    from factory_agents import __version__

    for chart in (FACTORY, KAFKA):
        described = yaml.safe_load((chart / "Chart.yaml").read_text())
        assert described["version"] == described["appVersion"] == __version__


def test_a_packaged_chart_renders_the_same(tmp_path: Path) -> None:
    for chart in (FACTORY, KAFKA):
        assert run_helm("package", chart, "--destination", tmp_path).returncode == 0
        (package,) = tmp_path.glob(f"{chart.name}-*.tgz")
        values = next((chart / "ci").glob("*.yaml"))
        ours, packed = (run_helm("template", "release", of, "--values", values).stdout for of in (chart, package))
        assert packed == ours
        assert re.search(r"^kind: ", packed, re.MULTILINE)
