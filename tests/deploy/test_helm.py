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


@pytest.mark.parametrize(("kind", "part"), [("KafkaNodePool", ""), ("Kafka", "topicOperator"), ("Kafka", "userOperator")])
def test_what_an_operator_would_start_without_a_limit_is_found(kind: str, part: str) -> None:
    documents = rendered(KAFKA, "secured")
    spec = next(d["spec"] for d in documents if d["kind"] == kind)
    (spec["entityOperator"][part] if part else spec)["resources"]["limits"].pop("memory")
    assert [finding.rpartition(": ")[2] for finding in breaches(documents)] == ["has no limits.memory"]


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
    "temporal=null": "missing property 'temporal'",  # a heading whose lines are all comments
    "networkPolicy=null": "missing property 'networkPolicy'",  # and not: no policy
    "agentDefaults.replicas=null": "missing property 'replicas'",
    "agents.enrich.env=null": "env",
    "secret=My_Secret": "secret",
}


@pytest.mark.parametrize("given", REFUSED)
def test_a_wrong_value_is_refused_and_named(given: str) -> None:
    done = run_helm("template", "release", FACTORY, "--set", given)
    assert done.returncode != 0
    assert REFUSED[given] in complaint(done.stderr)
    assert "nil pointer" not in done.stderr


@pytest.mark.parametrize("key", ["agents", "env", "prefix", "imagePullSecrets", "agentDefaults.args", "metrics.args", "temporal.workers"])
def test_an_empty_heading_is_the_empty_default(key: str) -> None:
    done = run_helm("template", "release", FACTORY, "--set", f"agentDefaults.inTopic=a,agents.enrich.replicas=1,{key}=null")
    assert done.returncode == 0, done.stderr


def test_names_that_yaml_takes_for_something_else_stay_names(tmp_path: Path) -> None:
    """1e3, on and null are names of agents, Secrets and namespaces like any other."""
    written = tmp_path / "values.yaml"
    agents = {name: {"inTopic": name, "secret": name, "scaling": {"by": "keda"}} for name in ("123", "1e3", "on", "null", "007")}
    starters = {"0x1f": {"topic": "1e3", "pipeline": {"pipeline": "on", "stages": []}}}
    connected = {"namespace": "123", "workers": {"on": {"taskQueue": "1"}}, "starters": starters, "controller": {"connection": "123"}}
    values = {
        "agents": agents,
        "secret": "123",
        "imagePullSecrets": [{"name": "123"}],
        "temporal": {"address": "[::1]:7233", "secret": "456", **connected},
        "dagPods": {"enabled": True, "serviceAccounts": [{"name": "123", "namespace": "456"}]},
        "networkPolicy": {"monitoringNamespace": "789"},
        "monitoring": {"enabled": True},
    }
    written.write_text(json.dumps(values))
    documents = render(Combination(FACTORY, written))
    assert [what for document in documents for what in invalid(document, definitions(CRDS))] == []
    for release in ("on", "null", "y"):
        done = run_helm("template", release, FACTORY, "--values", written)
        found = [document for document in yaml.safe_load_all(done.stdout) if document]
        assert [what for document in found for what in invalid(document, definitions(CRDS))] == []

    user = {"acls": [{"resource": {"type": "topic", "name": "1e3"}, "operations": ["Read"]}]}
    brokers = {"rackLabel": "on", "storage": {"class": "123"}}
    written.write_text(json.dumps({"cluster": "123", "brokers": brokers, "users": {"enabled": True, "each": {"123": user}}}))
    assert [what for document in render(Combination(KAFKA, written)) for what in invalid(document, definitions(CRDS))] == []


def test_what_a_label_may_not_hold_is_replaced(tmp_path: Path) -> None:
    """The + of a build's version."""
    assert run_helm("package", FACTORY, "--version", "0.2.0+build.5", "--app-version", "0.2.0+5", "--destination", tmp_path).returncode == 0
    (package,) = tmp_path.glob("*.tgz")
    done = run_helm("template", "release", package, "--set", "agents.enrich.inTopic=a")
    documents = [document for document in yaml.safe_load_all(done.stdout) if document]
    assert not [value for d in documents for value in d["metadata"]["labels"].values() if not re.fullmatch(r"[\w.-]{0,63}", value)]
    assert container(one(documents, "Deployment", "release-enrich"))["image"] == "factory-agents:0.2.0_5"


def test_agents_that_would_share_a_group_by_accident_are_refused(tmp_path: Path) -> None:
    """Each would get a part of the events. Versions of an agent share a group on purpose, and so do pools of the same agent."""
    written = tmp_path / "values.yaml"

    def says(**agents: dict[str, object]) -> str:
        written.write_text(json.dumps({"agents": {name: {"inTopic": "raw", "outTopic": name, **agent} for name, agent in agents.items()}}))
        done = run_helm("template", "release", FACTORY, "--values", written)
        return complaint(done.stderr) if done.returncode else "taken"

    shared = "agents clicks and orders are members of the group factory.enrich.raw"
    assert shared in says(orders={"agent": "orders:enrich"}, clicks={"agent": "clicks:enrich"})
    assert shared in says(orders={"agent": "enrich", "version": "v1"}, clicks={"agent": "enrich", "version": "v1"})
    assert says(orders={"agent": "enrich", "version": "v1"}, clicks={"agent": "enrich", "version": "v2"}) == "taken"
    assert says(orders={"agent": "enrich", "group": "orders"}, clicks={"agent": "enrich"}) == "taken"
    same = {"agent": "enrich", "outTopic": "enriched"}
    assert says(near=same, far={**same, "nodeSelector": {"zone": "b"}}) == "taken"


def test_every_pod_may_be_told_where_to_run_with_what_and_gets_the_environment_of_all(tmp_path: Path) -> None:
    written = tmp_path / "values.yaml"
    where = {"nodeSelector": {"pool": "streams"}, "tolerations": [{"key": "streams", "operator": "Exists"}]}
    resources = {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"cpu": "1", "memory": "512Mi"}}  # as a quota may want them
    place = {**where, "resources": resources}
    starter = {"topic": "t", "pipeline": {"pipeline": "p", "stages": []}}
    temporal = {"address": "t:7233", "workers": {"default": {}}, "workerDefaults": place, "starters": {"s": starter}}
    values = {"agents": {"enrich": {"inTopic": "a"}}, "agentDefaults": place, "metrics": place, "temporal": temporal}
    written.write_text(json.dumps({**values, "env": {"KAFKA_BOOTSTRAP": "kafka:9092"}, "prefix": "mine"}))
    pods = [pod for document in render(Combination(FACTORY, written)) if (pod := lint_deploy.pod_of(document)) is not None]
    assert len(pods) == 5  # the agent, the metrics server, the worker, the starter, helm test
    for pod in pods:
        assert where.items() <= pod.items()
        assert [container["resources"] for container in pod["containers"]] == [resources] * len(pod["containers"])
        named = {variable["name"]: variable["value"] for variable in pod["containers"][0]["env"]}
        assert named.items() >= {"KAFKA_BOOTSTRAP": "kafka:9092", "FACTORY_PREFIX": "mine"}.items()


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


@pytest.mark.parametrize("release", ["123", "1factory", "a.b"])
def test_a_releases_name_that_no_service_may_have_is_refused(release: str) -> None:
    done = run_helm("template", release, FACTORY)
    assert f"the release's name {release}: expected a letter" in complaint(done.stderr)


def test_a_topic_of_any_name_has_a_resource(tmp_path: Path) -> None:
    written = tmp_path / "values.yaml"
    names = {"_schemas": "schemas", "Orders_": "orders", "a_.B": "a.b", "live_events": "live-events"}
    written.write_text(json.dumps({"topics": {"more": {name: {} for name in names}}}))
    found = {d["spec"]["topicName"]: d["metadata"]["name"] for d in render(Combination(KAFKA, written)) if d["kind"] == "KafkaTopic"}
    assert {name: found[name] for name in names} == names
    none = run_helm("template", "release", KAFKA, "--set", "topics.more.__.partitions=1")
    assert "topic __: its name has no letter and no digit" in complaint(none.stderr)


def test_settings_of_kafka_are_what_was_given_last(tmp_path: Path) -> None:
    """Nought and false among them, and a setting that the chart has a default for is there once."""
    written = tmp_path / "values.yaml"
    config = {"min.insync.replicas": 1, "group.initial.rebalance.delay.ms": 3000, "auto.create.topics.enable": True, "x": ""}
    topic = {"config": {"retention.ms": 0, "message.timestamp.type": ""}}
    written.write_text(json.dumps({"config": config, "topics": {"more": {"live_events": topic}}}))
    documents = render(Combination(KAFKA, written))
    assert config.items() <= one(documents, "Kafka")["spec"]["kafka"]["config"].items()
    assert topic["config"].items() <= one(documents, "KafkaTopic", "live-events")["spec"]["config"].items()


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
