"""A live agent on Kubernetes from a DAG: applied once, waited for, and told of in one line where it doesn't run."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException

from airflow_provider_factory.operators.deploy_agent import DeployAgentOperator
from airflow_provider_factory.runners.kubernetes.deployment import live_budget, live_deployment
from factory_agents.errors import AgentCrashedError, ConfigurationError, DeadlineError, UnavailableError
from tests.agents.runtime.test_versions import rollouts, version, wait_members
from tests.support.runs import Runs

ROOT = Path(__file__).resolve().parents[3]
IMAGE = "registry.example/agents:1.2.3"
DEPLOYMENT, BUDGET = "deployments/enrich-raw-events-v2", "poddisruptionbudgets/enrich-raw-events-v2"


def rights(role: str) -> set[tuple[str, str]]:
    documents = yaml.safe_load_all((ROOT / "deploy" / "kubernetes" / "rbac.yaml").read_text())
    (found,) = [d for d in documents if d["kind"] == "Role" and d["metadata"]["name"] == role]
    return {(resource, verb) for rule in found["rules"] for resource in rule["resources"] for verb in rule["verbs"]}


class Api:
    """As much of an API server as Deployments need: what is applied is kept, and runs as a test says."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.pods: list[dict[str, Any]] = []
        self.allowed = rights("factory-agent-deployer")
        self.refuse = 0
        self.status: Callable[[dict[str, Any]], dict[str, Any]] = all_live
        self.looked = 0

    def apply(self, name: str, wanted: dict[str, Any]) -> dict[str, Any]:
        found = self.objects.get(name)
        if found is None or found["spec"] != wanted["spec"]:
            generation = found["metadata"]["generation"] + 1 if found is not None else 1
            self.objects[name] = wanted | {"metadata": wanted["metadata"] | {"generation": generation}}
        return self.shown(name)

    def shown(self, name: str) -> dict[str, Any]:
        found = self.objects[name]
        return found | {"status": self.status(found)} if name.startswith("deployments/") else found

    def answer(self, method: str, path: str, query: str, body: bytes) -> tuple[int, dict[str, Any]]:
        name = "/".join(path.split("/")[-2:]) if not path.endswith("/pods") else "pods"
        resource = name.partition("/")[0]
        needed = {"PATCH": ["patch", "create"], "DELETE": ["delete"], "GET": ["get" if resource != "pods" else "list"]}[method]
        if self.refuse or not {(resource, verb) for verb in needed} <= self.allowed:
            return self.refuse or 403, {"kind": "Status", "message": f"{resource} is forbidden"}
        if resource == "pods":
            return 200, {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": self.pods}
        if method == "PATCH":
            assert "fieldManager=airflow-provider-factory" in query
            return 200, self.apply(name, json.loads(body))
        if method == "DELETE" and name in self.objects:
            assert "propagationPolicy=Foreground" in query
            del self.objects[name]
            return 200, {"kind": "Status", "status": "Success"}
        self.looked += 1
        return (200, self.shown(name)) if name in self.objects else (404, {"kind": "Status", "message": "not found"})


def all_live(found: dict[str, Any]) -> dict[str, Any]:
    n = found["spec"]["replicas"]
    return {"observedGeneration": found["metadata"]["generation"], "replicas": n, "updatedReplicas": n, "availableReplicas": n}


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    own = Api()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            path, _, query = self.path.partition("?")
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.command == "PATCH":
                assert self.headers["Content-Type"] == "application/apply-patch+yaml"
            status, answer = own.answer(self.command, path, query, body)
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_PATCH = do_DELETE = handle_any  # noqa: N815  # the library's names

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_address[1]}"}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
    }
    connection = {"conn_type": "kubernetes", "extra": {"kube_config": json.dumps(config)}}
    monkeypatch.setenv("AIRFLOW_CONN_CLUSTER", json.dumps(connection))
    monkeypatch.setenv("AIRFLOW__FACTORY__NAMESPACE", "agents")
    monkeypatch.setenv("AIRFLOW__FACTORY__AGENT_SECRET", "kafka")
    try:
        yield own
    finally:
        server.shutdown()
        server.server_close()


def task(**more: Any) -> DeployAgentOperator:
    given: dict[str, Any] = {
        "agent": "agents_v2:enrich",
        "in_topic": "raw_events",
        "out_topic": "enriched_events",
        "live_version": "v2",
        "image": IMAGE,
        "kubernetes_conn_id": "cluster",
    }
    with DAG("deploy", schedule=None):
        return DeployAgentOperator(task_id="t", **given | more)


def run(**more: Any) -> dict[str, Any]:
    return task(**more).execute({})


def test_what_it_applies_is_valid_and_within_the_policies_of_the_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from lint_deploy import breaches, invalid

    spec = task(env={"MODEL": "v2"}, args=["--max-lag-downstream", "1000"], agent_secret="kafka", namespace="agents").spec()
    documents = [live_deployment(spec), live_budget(spec)]
    assert list(breaches(documents)) == []
    assert [what for document in documents for what in invalid(document, {})] == []
    (container,) = documents[0]["spec"]["template"]["spec"]["containers"]
    assert container["args"] == [
        *("agent", "run", "agents_v2:enrich", "--in-topic", "raw_events", "--group", "factory.enrich.raw_events"),
        *("--out-topic", "enriched_events", "--live-version", "v2", "--max-lag-downstream", "1000"),
    ]
    assert {"name": "MODEL", "value": "v2"} in container["env"]
    assert documents[0]["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
    assert documents[0]["spec"]["minReadySeconds"] == 3


@pytest.mark.slow
def test_it_is_applied_once_and_changed_only_by_what_changes(api: Api) -> None:
    first = run()
    assert (first["changed"], first["deployment"], first["group"]) == (True, "enrich-raw-events-v2", "factory.enrich.raw_events")
    assert set(api.objects) == {DEPLOYMENT, BUDGET}
    container = api.objects[DEPLOYMENT]["spec"]["template"]["spec"]["containers"][0]
    assert container["envFrom"] == [{"secretRef": {"name": "kafka"}}]
    assert run()["changed"] is False
    assert run(replicas="2")["changed"] is True
    assert run(live_version="v3")["deployment"] == "enrich-raw-events-v3"


def test_a_shadow_is_a_deployment_of_its_own(api: Api) -> None:
    done = run(live_version="", shadow="v3")
    assert (done["deployment"], done["group"]) == ("enrich-raw-events-shadow-v3", "factory.enrich.raw_events")
    (container,) = api.objects["deployments/enrich-raw-events-shadow-v3"]["spec"]["template"]["spec"]["containers"]
    assert container["args"][-2:] == ["--shadow", "v3"]
    assert run(live_version="", shadow="v3", replicas=0)["changed"] is True  # nobody waits for what it makes
    assert api.objects == {}


def test_a_version_is_ended_once_it_handles_nothing_any_more(
    api: Api, runs: Runs, monkeypatch: pytest.MonkeyPatch, bootstrap: str, prefix: str
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_KAFKA_DEFAULT", json.dumps({"conn_type": "kafka", "extra": {"bootstrap.servers": bootstrap}}))
    monkeypatch.setenv("AIRFLOW__FACTORY__PREFIX", prefix)
    source, out, group = runs.topic("in"), runs.topic("out"), f"{runs.prefix}.group"
    assert run(live_version="v1", group=group, replicas=0)["changed"] is False  # there is none
    for name in ("v1", "v2"):
        run(live_version=name, group=group)
    with version(runs, source, out, "v1"):
        wait_members(runs, "v1")
        with version(runs, source, out, "v2"):
            wait_members(runs, "v2")
            rollouts(runs).start("v2", steps=["50%"])
            rollouts(runs).wait(30)
            for name, held in (("v1", "[2, 3]"), ("v2", "[0, 1]")):
                with pytest.raises(AirflowFailException, match=re.escape(f"version {name!r} handles partitions {held}")):
                    run(live_version=name, group=group, replicas=0)
            rollouts(runs).shift("100%")
            rollouts(runs).wait(30)
            done = rollouts(runs).finish()
            assert (done.base, done.replaced) == ("v2", "v1")
            assert run(live_version=done.replaced, group=group, replicas="0")["changed"] is True
    assert set(api.objects) == {DEPLOYMENT, BUDGET}
    assert run(live_version="v1", group=group, replicas=0)["changed"] is False  # a retry
    api.objects[DEPLOYMENT]["metadata"]["labels"]["app.kubernetes.io/managed-by"] = "Helm"
    with pytest.raises(AirflowFailException, match="is managed by Helm, not by Airflow: end it there"):
        run(group=group, replicas=0)


@pytest.mark.slow
def test_it_waits_until_all_pods_are_of_the_newest_template_and_live(api: Api) -> None:
    def in_steps(found: dict[str, Any]) -> dict[str, Any]:
        whole = all_live(found)
        steps = [
            whole | {"observedGeneration": 0},
            whole | {"updatedReplicas": 3},
            whole | {"availableReplicas": 3},
            whole | {"replicas": 5},
            whole,
        ]
        return steps[min(max(0, api.looked - 2), len(steps) - 1)]

    api.status = in_steps
    run()
    assert api.looked == 6


def pod(reason: str, message: str = "") -> dict[str, Any]:
    waiting = {"reason": reason, "message": message}
    status = {"name": "base", "image": IMAGE, "imageID": "", "ready": False, "restartCount": 3, "state": {"waiting": waiting}}
    return {
        "kind": "Pod",
        "apiVersion": "v1",
        "metadata": {"name": "enrich-raw-events-v2-x", "namespace": "agents"},
        "spec": {"containers": [{"name": "base", "image": IMAGE}]},
        "status": {"phase": "Pending", "containerStatuses": [status]},
    }


@pytest.mark.slow
def test_an_image_that_is_not_there_fails_without_a_retry_and_says_so(api: Api) -> None:
    api.status = lambda found: all_live(found) | {"availableReplicas": 0}
    api.pods = [pod("InvalidImageName", "couldn't parse image reference")]
    with pytest.raises(AirflowFailException, match=r"0 of 4 pods are live after .* pod enrich-raw-events-v2-x .*image"):
        run(wait=0.1)


@pytest.mark.slow
def test_pods_that_never_become_live_are_an_error_that_a_retry_may_mend(api: Api) -> None:
    stuck = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}
    api.status = lambda found: all_live(found) | {"availableReplicas": 3}
    with pytest.raises(DeadlineError, match=r"3 of 4 pods are live after 0 s: no pod says why"):
        run(wait=0.1)
    api.status = lambda found: all_live(found) | {"availableReplicas": 3, "conditions": [stuck]}
    with pytest.raises(AgentCrashedError, match="3 of 4 pods are live: no pod says why"):
        run()


def test_what_the_api_server_refuses_is_one_line(api: Api) -> None:
    api.allowed -= {("deployments", "patch")}
    with pytest.raises(AirflowFailException, match=r"403 Forbidden for deployments in namespace 'agents'.*factory-agent-deployer"):
        run()
    for status, kind in ((422, AirflowFailException), (500, UnavailableError), (429, UnavailableError)):
        api.refuse = status
        with pytest.raises(kind, match=f"Kubernetes answered {status}"):
            run()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"live_version": "v 2"}, "version 'v 2'"),
        ({"shadow": "v3"}, "live_version 'v2', shadow 'v3': expected one of them"),
        ({"replicas": "many"}, "replicas: expected a number of pods"),
        ({"replicas": -1}, "replicas: expected a number of pods"),
        ({"name": "x" * 60}, "expected 1 to 52 letters"),
        ({"name": "---"}, "expected 1 to 52 letters"),
    ],
)
def test_what_cannot_be_deployed_is_refused(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        task(**arguments).spec()
