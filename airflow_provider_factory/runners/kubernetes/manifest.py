"""The agent's pod as data: pure functions from what is to be run to a Kubernetes manifest, read in tests without a cluster."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from factory_agents.errors import ConfigurationError
from factory_agents.protocol import AgentRun, encode

if TYPE_CHECKING:
    from kubernetes.client import models as k8s

__all__ = [
    "ANNOTATION",
    "CONTAINER",
    "LABEL",
    "RUN_FILE",
    "AgentPod",
    "agent_pod",
    "owned_secret",
    "pod_labels",
    "pod_template",
    "safe_label",
    "with_environment",
    "with_secret",
]

CONTAINER = "base"
LABEL = "factory-agents"
ANNOTATION = f"{LABEL}/run"
RUN_FOLDER = "/etc/factory"
RUN_FILE = f"{RUN_FOLDER}/run.json"
TERMINATION_MESSAGE = "/dev/termination-log"
COMMAND = ("python", "-m", "factory_agents.run")

_ANNOTATIONS_LIMIT = 256 * 1024  # Kubernetes' own, over all annotations of an object
_LABEL_LIMIT = 63


@dataclass(frozen=True)
class AgentPod:
    """What makes a pod an agent's: its run, where its secrets are, and what it is called. ``own_command``: the image knows what to do."""

    run: AgentRun
    labels: Mapping[str, str] = field(default_factory=dict)
    image: str = ""
    namespace: str = ""
    secret: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    container: str = CONTAINER
    own_command: bool = False


def safe_label(value: str) -> str:
    """A label value that Kubernetes takes: unchanged where it may be, else shortened and told apart by a hash."""
    cleaned = re.sub(r"[^A-Za-z0-9_.-]", "-", value)
    trimmed = cleaned.strip("-_.")
    if trimmed == value and len(value) <= _LABEL_LIMIT:
        return value
    if not trimmed:
        return hashlib.sha256(value.encode()).hexdigest()[:8] if value else ""
    return f"{trimmed[: _LABEL_LIMIT - 9].rstrip('-_.')}-{hashlib.sha256(value.encode()).hexdigest()[:8]}"


def pod_labels(run: AgentRun) -> dict[str, str]:
    """Labels that name the DAG, run, task, agent, version, shard and fingerprint of a pod."""
    names = {
        "dag": run.pipeline,
        "run": run.run_id,
        "task": run.stage,
        "agent": run.agent.name,
        "version": run.agent.version,
        "shard": run.shard.key,
        "fingerprint": run.digest,
    }
    return {
        "app.kubernetes.io/name": "factory-agent",
        "app.kubernetes.io/managed-by": "airflow",
        **{f"{LABEL}/{name}": safe_label(value) for name, value in names.items() if value},
    }


def pod_template() -> dict[str, Any]:
    """The hardened pod that agents get when a task names no template: no privileges, no token, a read-only root with a ``/tmp``.

    ``include/pod_templates/agent.yaml`` is this, written out.
    """
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "factory-agent", "labels": {"app.kubernetes.io/name": "factory-agent"}},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": 30,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 65532,
                "runAsGroup": 65532,
                "fsGroup": 65532,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "topologySpreadConstraints": [
                {
                    "maxSkew": 1,
                    "topologyKey": "kubernetes.io/hostname",
                    "whenUnsatisfiable": "ScheduleAnyway",
                    "labelSelector": {"matchLabels": {"app.kubernetes.io/name": "factory-agent"}},
                }
            ],
            "containers": [
                {
                    "name": CONTAINER,
                    "imagePullPolicy": "IfNotPresent",
                    "resources": {"requests": {"cpu": "250m", "memory": "256Mi"}, "limits": {"memory": "1Gi"}},
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                    },
                    "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
                }
            ],
            "volumes": [{"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}}],
        },
    }


def agent_pod(spec: AgentPod, base: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """``base`` (by default an empty pod) with what an agent needs: its run as an annotation that is mounted as a file, labels, plain
    environment, the Secret's keys as environment, command, and where its result goes.

    Raises ConfigurationError where the run is larger than annotations may be (256 KiB).
    """
    pod: dict[str, Any] = deepcopy(dict(base or {}))
    metadata: dict[str, Any] = pod.setdefault("metadata", {})
    pod.update(apiVersion="v1", kind="Pod")
    metadata["labels"] = {**metadata.get("labels", {}), **spec.labels}
    metadata["annotations"] = {**metadata.get("annotations", {}), ANNOTATION: encode(spec.run).decode()}
    _check_annotations(metadata["annotations"], spec.run)
    if spec.namespace:
        metadata["namespace"] = spec.namespace
    body: dict[str, Any] = pod.setdefault("spec", {})
    volume = {
        "name": "factory-run",
        "downwardAPI": {"items": [{"path": "run.json", "fieldRef": {"fieldPath": f"metadata.annotations['{ANNOTATION}']"}}]},
    }
    body["volumes"] = [*body.get("volumes", []), volume]
    containers: list[dict[str, Any]] = body.setdefault("containers", [{}])
    containers[0] = _container(spec, containers[0])
    return pod


def owned_secret(pod: str, uid: str, values: Mapping[str, str]) -> dict[str, Any]:
    """A Secret named as the pod that owns it: Kubernetes deletes it when the pod goes."""
    owner = {"apiVersion": "v1", "kind": "Pod", "name": pod, "uid": uid, "blockOwnerDeletion": False}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": pod, "labels": {"app.kubernetes.io/managed-by": "airflow"}, "ownerReferences": [owner]},
        "immutable": True,
        "stringData": dict(values),
    }


def with_secret(pod: k8s.V1Pod, container: str, secret: str) -> None:
    """Add a Secret's keys to the container's environment."""
    from kubernetes.client import models as k8s

    source = k8s.V1EnvFromSource(secret_ref=k8s.V1SecretEnvSource(name=secret))
    for each in pod.spec.containers:
        if each.name == container:
            each.env_from = [*(each.env_from or []), source]


def with_environment(pod: k8s.V1Pod, container: str, values: Mapping[str, str]) -> None:
    """Add variables to the container's environment that it doesn't have yet: whoever set one for it meant it."""
    from kubernetes.client import models as k8s

    for each in pod.spec.containers:
        if each.name == container:
            own = {variable.name for variable in each.env or []}
            each.env = [*(each.env or []), *(k8s.V1EnvVar(name, value) for name, value in values.items() if name not in own)]


def _container(spec: AgentPod, base: Mapping[str, Any]) -> dict[str, Any]:
    container = {**base, "name": spec.container, "terminationMessagePath": TERMINATION_MESSAGE}
    if spec.image:
        container["image"] = spec.image
    if not spec.own_command:
        container["command"] = list(COMMAND)
        container["args"] = ["--run", RUN_FILE]
    plain = {"FACTORY_RUN": RUN_FILE, **_topics(spec.run), **spec.env}
    container["env"] = [*base.get("env", []), *({"name": name, "value": value} for name, value in plain.items())]
    if spec.secret:
        container["envFrom"] = [*base.get("envFrom", []), {"secretRef": {"name": spec.secret}}]
    container["volumeMounts"] = [*base.get("volumeMounts", []), {"name": "factory-run", "mountPath": RUN_FOLDER, "readOnly": True}]
    return container


def _topics(run: AgentRun) -> dict[str, str]:
    topics = {"INPUT_TOPIC": run.window.topic if run.window else "", "OUTPUT_TOPIC": run.output_topic}
    return {name: topic for name, topic in topics.items() if topic}


def _check_annotations(annotations: Mapping[str, str], run: AgentRun) -> None:
    size = sum(len(key.encode()) + len(str(value).encode()) for key, value in annotations.items())
    if size > _ANNOTATIONS_LIMIT:
        source = len(run.agent.source.encode())
        hint = (
            f"the agent's source takes {source:,} bytes: put it into an image"
            if source > size // 2
            else "use more shards, or shorter agent_params"
        )
        raise ConfigurationError(
            f"stage {run.stage!r}: a pod's annotations would take {size:,} bytes, Kubernetes allows {_ANNOTATIONS_LIMIT:,}; {hint}"
        )
