"""A Kubernetes cluster as tests use it: a namespace of their own, what is in it, and where its pods reach this machine."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from kubernetes import client, config, stream

from tests.support.waiting import wait_for

KUBECONFIG = os.environ.setdefault("FACTORY_TEST_KUBECONFIG", os.environ.pop("KUBECONFIG", ""))
"""Where the cluster is. Not left under its own name: a trigger refuses it beside a connection that names a file."""

IMAGE = os.environ.get("FACTORY_TEST_IMAGE", "factory-agents:test")
"""The Dockerfile's target ``project``, already in the cluster."""

RESTART_KUBELET = os.environ.get("FACTORY_TEST_RESTART_KUBELET", "")
"""A command that kills the node's kubelet and starts it again; only whoever runs the cluster can say it."""

FILL_TMP = """
with open("/tmp/fill", "wb") as file:
    for _ in range(1100):
        file.write(bytes(2**20))
"""
"""A program that fills an agent's volume beyond its limit, for ``TestCluster.execute``.

The kubelet measures a new pod's volumes after a minute, the next time after one or two more, and looks every ten seconds.
"""

LIVE = ("Pending", "Running")
TAINT = "factory-test"


def _api() -> client.ApiClient:
    """The administrator's own client: the operators load theirs into the library's default."""
    return config.new_client_from_config(KUBECONFIG)


def why_not() -> str:
    """Why there is no cluster to test with; empty where there is one."""
    if not KUBECONFIG:
        return "no cluster: KUBECONFIG is not set"
    try:
        client.VersionApi(_api()).get_code(_request_timeout=5)
    except Exception as error:
        return f"no cluster answers at KUBECONFIG={KUBECONFIG}: {str(error).splitlines()[0][:200]}"
    if not pods_reach_us_at():
        return "no address at which pods reach this machine: set FACTORY_TEST_HOST (for kind, the address of its Docker network's gateway)"
    return ""


def pods_reach_us_at() -> str:
    """``FACTORY_TEST_HOST``, else this machine's address on the way to the API server; empty where that is loopback."""
    if host := os.environ.get("FACTORY_TEST_HOST"):
        return host
    server = urlsplit(_api().configuration.host)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((server.hostname or "", server.port or 443))
        address = str(probe.getsockname()[0])
    return "" if address.startswith("127.") else address


@dataclass
class TestCluster:
    """One namespace of a cluster, made for a session and deleted with all that is in it."""

    __test__ = False

    namespace: str
    host: str
    api: client.ApiClient

    @classmethod
    def make(cls) -> TestCluster:
        """A fresh namespace, with the default service account that pods need."""
        made = cls(f"factory-test-{secrets.token_hex(4)}", pods_reach_us_at(), _api())
        made.core.create_namespace(client.V1Namespace(metadata=client.V1ObjectMeta(name=made.namespace)))
        wait_for(lambda: made.core.list_namespaced_service_account(made.namespace).items, "the namespace's service account")
        return made

    def close(self) -> None:
        """Delete the namespace."""
        self.core.delete_namespace(self.namespace)

    @property
    def core(self) -> client.CoreV1Api:
        return client.CoreV1Api(self.api)

    @property
    def connection(self) -> str:
        """The Airflow connection of the cluster, as JSON."""
        extra = {"kube_config_path": KUBECONFIG, "namespace": self.namespace}
        return json.dumps({"conn_type": "kubernetes", "extra": extra})

    def put_secret(self, name: str, values: dict[str, str]) -> None:
        """A Secret, whatever was there under its name before."""
        self.delete_secret(name)
        self.core.create_namespaced_secret(self.namespace, client.V1Secret(metadata=client.V1ObjectMeta(name=name), string_data=values))

    def delete_secret(self, name: str) -> None:
        try:
            self.core.delete_namespaced_secret(name, self.namespace)
        except client.ApiException as error:
            if error.status != 404:
                raise

    def secrets(self) -> list[str]:
        """The names of all Secrets."""
        return sorted(s.metadata.name for s in self.core.list_namespaced_secret(self.namespace).items)

    def pods(self, dag: str = "", task: str = "", phase: tuple[str, ...] = ()) -> list[Any]:
        """The agents' pods, oldest first."""
        labels = {"factory-agents/dag": dag, "factory-agents/task": task}
        selector = ",".join(["app.kubernetes.io/name=factory-agent", *(f"{k}={v}" for k, v in labels.items() if v)])
        found = self.core.list_namespaced_pod(self.namespace, label_selector=selector).items
        return sorted(
            (p for p in found if not phase or p.status.phase in phase), key=lambda p: (p.metadata.creation_timestamp, p.metadata.name)
        )

    def log(self, pod: Any) -> str:
        """What a pod's agent wrote so far; empty before it started and after it went."""
        try:
            return str(self.core.read_namespaced_pod_log(pod.metadata.name, self.namespace))
        except client.ApiException:
            return ""

    def wait_pod(self, dag: str, task: str = "", *, says: str = "", unlike: str = "", patience: float = 300) -> Any:
        """A running pod of a DAG, once its log says something; ``unlike`` is the name of one that is not meant."""

        def found() -> Any:
            pods = [p for p in self.pods(dag, task, ("Running",)) if p.metadata.name != unlike and p.metadata.deletion_timestamp is None]
            return next((p for p in reversed(pods) if says in self.log(p)), None)

        wait_for(found, f"a running pod of {dag} {task} that says {says!r}", patience)
        return found()

    def wait_gone(self, dag: str = "", task: str = "", patience: float = 60) -> None:
        """Until no pod is left."""
        wait_for(lambda: not self.pods(dag, task), f"the pods of {dag} {task} to be gone", patience)

    def delete(self, pod: Any, grace: int | None = None) -> None:
        self.core.delete_namespaced_pod(pod.metadata.name, self.namespace, grace_period_seconds=grace)

    def evict(self, name: str) -> None:
        """Ask for an eviction, as a drain does."""
        body = client.V1Eviction(metadata=client.V1ObjectMeta(name=name, namespace=self.namespace))
        self.core.create_namespaced_pod_eviction(name, self.namespace, body)

    def events(self, name: str) -> list[str]:
        """The reasons of a pod's events."""
        found = self.core.list_namespaced_event(self.namespace, field_selector=f"involvedObject.name={name}")
        return [event.reason for event in found.items]

    def execute(self, name: str, program: str) -> str:
        """What a Python program says that runs in a pod's container; cut short where the container ends."""
        command = ["python", "-c", program]
        core = client.CoreV1Api(_api())  # one that a stream may take over
        run = core.connect_get_namespaced_pod_exec
        return str(stream.stream(run, name, self.namespace, command=command, stdout=True, stderr=True, stdin=False, tty=False))

    @contextlib.contextmanager
    def tainted(self, effect: str) -> Iterator[None]:
        """Every node is closed to pods for as long as this lasts; what runs there goes (``NoExecute``) or stays (``NoSchedule``)."""
        self._taint({"key": TAINT, "effect": effect})
        try:
            yield
        finally:
            self._taint()

    def _taint(self, *ours: dict[str, str]) -> None:
        for node in self.core.list_node().items:
            others = [{"key": t.key, "value": t.value, "effect": t.effect} for t in node.spec.taints or () if t.key != TAINT]
            self.core.patch_node(node.metadata.name, {"spec": {"taints": [*others, *ours] or None}})
