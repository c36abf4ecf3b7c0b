"""A live agent's Deployment as data: a pure function from what is to run to Kubernetes' objects, read in tests without a cluster."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from airflow_provider_factory.runners.kubernetes.manifest import LABEL, pod_template, safe_label
from factory_agents.errors import ConfigurationError

__all__ = ["MANAGED_BY", "LiveAgentSpec", "deployment_name", "live_budget", "live_deployment"]

_PORT = 9109
MANAGED_BY = "app.kubernetes.io/managed-by"
_NAME_LIMIT = 52  # a pod's name ends in eleven characters more
_GRACE_SECONDS = 60
_PROGRESS_SECONDS = 300
_SETTLE_SECONDS = 3
"""A client joins its group once a second at most: the next pod goes when the group has formed again."""


@dataclass(frozen=True)
class LiveAgentSpec:
    """What runs: ``args`` are further flags of ``factory agent run``, ``env`` is plain, ``secret`` names a Secret of the environment."""

    name: str
    agent: str
    in_topic: str
    group: str
    out_topic: str = ""
    live_version: str = ""
    shadow: str = ""
    image: str = ""
    namespace: str = ""
    replicas: int = 4
    args: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    secret: str = ""
    resources: Mapping[str, Any] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def selector(self) -> dict[str, str]:
        """The labels by which the pods are found."""
        return {"app.kubernetes.io/name": "factory-live-agent", f"{LABEL}/part": self.name}


def deployment_name(text: str) -> str:
    """A name that Kubernetes takes for a Deployment. Raises ConfigurationError where nothing is left of the text, or it is too long."""
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    if not name or len(name) > _NAME_LIMIT:
        raise ConfigurationError(f"name {text!r}: expected 1 to {_NAME_LIMIT} letters, digits and '-', for a Deployment")
    return name


def live_deployment(spec: LiveAgentSpec) -> dict[str, Any]:
    """The Deployment: the hardened pod, probes on the agent's own health server, and updates that add no surplus pod.

    A surplus pod would take partitions of one that is still to go.
    """
    pod = pod_template()["spec"]
    pod["restartPolicy"] = "Always"
    pod["terminationGracePeriodSeconds"] = _GRACE_SECONDS
    for constraint in pod["topologySpreadConstraints"]:
        constraint["labelSelector"] = {"matchLabels": spec.selector}
    (container,) = pod["containers"]
    container |= {
        "args": _command(spec),
        "env": [{"name": name, "value": value} for name, value in sorted(spec.env.items())],
        "ports": [{"name": "metrics", "containerPort": _PORT}],
        "startupProbe": _probe("/livez", periodSeconds=2, failureThreshold=60),
        "livenessProbe": _probe("/livez", periodSeconds=10, timeoutSeconds=5, failureThreshold=3),
        "readinessProbe": _probe("/readyz", periodSeconds=2, timeoutSeconds=5),
    }
    container["env"].append({"name": "FACTORY_METRICS_LISTEN", "value": f"0.0.0.0:{_PORT}"})
    if spec.image:
        container["image"] = spec.image
    if spec.secret:
        container["envFrom"] = [{"secretRef": {"name": spec.secret}}]
    if spec.resources:
        container["resources"] = dict(spec.resources)
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _metadata(spec),
        "spec": {
            "replicas": spec.replicas,
            "progressDeadlineSeconds": _PROGRESS_SECONDS,
            "minReadySeconds": _SETTLE_SECONDS,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}},
            "selector": {"matchLabels": spec.selector},
            "template": {"metadata": {"labels": _labels(spec)}, "spec": pod},
        },
    }


def live_budget(spec: LiveAgentSpec) -> dict[str, Any]:
    """The disruption budget: one pod at a time, and broken ones are in nobody's way."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": _metadata(spec),
        "spec": {"maxUnavailable": 1, "unhealthyPodEvictionPolicy": "AlwaysAllow", "selector": {"matchLabels": spec.selector}},
    }


def _command(spec: LiveAgentSpec) -> list[str]:
    command = ["agent", "run", spec.agent, "--in-topic", spec.in_topic, "--group", spec.group]
    for flag, value in (("--out-topic", spec.out_topic), ("--live-version", spec.live_version), ("--shadow", spec.shadow)):
        command += [flag, value] if value else []
    return [*command, *spec.args]


def _labels(spec: LiveAgentSpec) -> dict[str, str]:
    known = {"agent": spec.agent, "group": spec.group, "version": spec.live_version or spec.shadow}
    own = {f"{LABEL}/{name}": safe_label(value) for name, value in known.items() if value}
    return {**spec.labels, **own, **spec.selector, MANAGED_BY: "airflow"}


def _metadata(spec: LiveAgentSpec) -> dict[str, Any]:
    return {"name": spec.name, "labels": _labels(spec)} | ({"namespace": spec.namespace} if spec.namespace else {})


def _probe(path: str, **more: int) -> dict[str, Any]:
    return {"httpGet": {"path": path, "port": "metrics"}, **more}
