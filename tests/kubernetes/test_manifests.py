"""What the repository ships for a cluster is accepted by one, and its rights are enough: no more, no less."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client, utils

from tests.kubernetes.conftest import OneAgent
from tests.support.cluster import IMAGE, KUBECONFIG, TestCluster

pytestmark = pytest.mark.timeout(600)

ROOT = Path(__file__).resolve().parents[2]
FILES = [*(ROOT / "include" / "pod_templates").glob("*.yaml"), *(ROOT / "deploy" / "kubernetes").glob("*.yaml")]


def documents(path: Path, namespace: str) -> list[dict[str, Any]]:
    """A file's objects, put into the test's namespace; a pod without an image gets one."""
    made = []
    for data in yaml.safe_load_all(path.read_text()):
        if data["kind"] != "Namespace":
            data["metadata"]["namespace"] = namespace
        for container in data.get("spec", {}).get("containers", []):
            container.setdefault("image", IMAGE)
        made.append(data)
    return made


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_the_api_server_accepts_every_manifest(cluster: TestCluster, path: Path) -> None:
    for data in documents(path, "default"):
        utils.create_from_dict(cluster.api, data, dry_run="All", field_validation="Strict")


@pytest.fixture
def launcher(cluster: TestCluster, tmp_path: Path) -> Iterator[str]:
    """A kubeconfig of a service account with the shipped roles' rights and no others."""
    rights = client.RbacAuthorizationV1Api(cluster.api)
    account = client.V1ServiceAccount(metadata=client.V1ObjectMeta(name="airflow"))
    cluster.core.create_namespaced_service_account(cluster.namespace, account)
    shipped = documents(ROOT / "deploy" / "kubernetes" / "rbac.yaml", cluster.namespace)
    roles = {data["metadata"]["name"]: data for data in shipped if data["kind"] == "Role"}
    for name, data in roles.items():
        rights.create_namespaced_role(cluster.namespace, data)
        binding = {
            "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": "airflow", "namespace": cluster.namespace}],
        }
        rights.create_namespaced_role_binding(cluster.namespace, binding)
    request = client.AuthenticationV1TokenRequest(spec=client.V1TokenRequestSpec(audiences=[], expiration_seconds=3600))
    token = cluster.core.create_namespaced_service_account_token("airflow", cluster.namespace, request).status.token
    data = yaml.safe_load(Path(KUBECONFIG).read_text())
    context = next(c for c in data["contexts"] if c["name"] == data["current-context"])
    data["users"] = [{"name": context["context"]["user"], "user": {"token": token}}]
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(data))
    yield str(path)
    for name in roles:
        rights.delete_namespaced_role(name, cluster.namespace)
        with contextlib.suppress(client.ApiException):  # a test took it away
            rights.delete_namespaced_role_binding(name, cluster.namespace)
    cluster.core.delete_namespaced_service_account("airflow", cluster.namespace)


def test_the_shipped_rights_are_enough(one: OneAgent, launcher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", one.cluster.connection.replace(KUBECONFIG, launcher))
    one.assert_exact(one.run(events=20, arguments='credentials="connections", deferrable=True, poll_interval=1'))
    assert not re.search(r"[Ff]orbidden|cannot (list|watch|get|create|patch|delete) resource", one.log)
    one.assert_exact(one.run(events=20))
    assert not re.search(r"[Ff]orbidden|cannot (list|watch|get|create|patch|delete) resource", one.log)


def test_a_right_that_is_missing_is_named(one: OneAgent, launcher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    client.RbacAuthorizationV1Api(one.cluster.api).delete_namespaced_role_binding("factory-agent-secrets", one.cluster.namespace)
    monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", one.cluster.connection.replace(KUBECONFIG, launcher))
    outcome = one.run(events=1, arguments='credentials="connections"', retries=0)
    assert outcome.states["work"] == ["failed"]
    assert "cannot create the Secret" in one.log
    assert "allow it (see deploy/kubernetes/rbac.yaml), or name an existing one" in one.log
    one.cluster.wait_gone(one.dag_id)


def test_the_shipped_template_runs_where_pod_security_is_restricted(one: OneAgent) -> None:
    patch = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
    one.cluster.core.patch_namespace(one.cluster.namespace, patch)
    try:
        one.assert_exact(one.run(events=20))
        template = ROOT / "include" / "pod_templates" / "agent.yaml"
        one.assert_exact(one.run(events=20, arguments=f'pod_template_file="{template}", image="{IMAGE}"'))
    finally:
        patch["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] = None  # type: ignore[assignment]
        one.cluster.core.patch_namespace(one.cluster.namespace, patch)
