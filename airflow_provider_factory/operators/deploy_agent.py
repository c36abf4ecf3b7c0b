"""Deploys a live agent on Kubernetes, a version of it say, and waits until it is live."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from airflow.sdk import BaseOperator

from airflow_provider_factory.errors import airflow_errors
from airflow_provider_factory.runners.kubernetes.deployment import MANAGED_BY, LiveAgentSpec, deployment_name, live_budget, live_deployment
from airflow_provider_factory.runners.kubernetes.failure import pod_failure
from airflow_provider_factory.runners.kubernetes.manifest import CONTAINER
from airflow_provider_factory.settings import option
from factory_agents.errors import AgentCrashedError, ConfigurationError, DeadlineError, FactoryError, UnavailableError
from factory_agents.kafka.routes import check_version
from factory_agents.runtime.live import default_group

if TYPE_CHECKING:
    from airflow.providers.cncf.kubernetes.hooks.kubernetes import KubernetesHook
    from airflow.sdk import Context

__all__ = ["DeployAgentOperator"]

_MANAGER = "airflow-provider-factory"
_LOOK_SECONDS = 1.0
_T = TypeVar("_T")


class DeployAgentOperator(BaseOperator):
    """Applies a Deployment of a live agent, with a disruption budget, and waits until all its pods are in their consumer group.

    Where just this runs already, nothing changes, and the task succeeds at once. Pods run without privileges, as those of
    KafkaAgentOperator. ``replicas=0`` deletes the Deployment of a version that was replaced, and refuses to while that version handles
    partitions. XCom: ``deployment``, ``namespace``, ``group``, ``version``, ``image``, ``replicas`` and whether it was ``changed``. A retry
    goes on waiting.

    :param agent: a built-in agent, or ``module:function`` of the image. (templated)
    :param in_topic: what it reads. (templated)
    :param out_topic: what it writes. (templated)
    :param live_version: its version, for RolloutOperator; without one the Deployment's pods are updated in place. (templated)
    :param shadow: in place of ``live_version``: the version that this one is in the shadow of the official one. (templated)
    :param group: its consumer group; by default the agent's own, ``factory.<agent>.<in-topic>``. (templated)
    :param name: the Deployment's name; by default made of agent, input topic and version. (templated)
    :param image: by default ``[factory] image``. (templated)
    :param namespace: by default ``[factory] namespace``, else the connection's. (templated)
    :param replicas: how many pods; at most as many as the topic has partitions do something. 0: end it. (templated)
    :param args: more flags of ``factory agent run``, such as ``["--param", "model=v2"]``. (templated)
    :param env: more of the environment, in plain sight. (templated)
    :param agent_secret: an existing Secret whose keys become the environment (``KAFKA_BOOTSTRAP`` and whatever else the agent needs); by
        default ``[factory] agent_secret``. (templated)
    :param pod_resources: Kubernetes' requests and limits for a pod.
    :param wait: how long to wait until all pods are live; 0: don't.
    :param kafka_conn_id: Airflow connection of the Kafka cluster, which is asked before a version is ended; by default
        ``[factory] kafka_conn_id``. (templated)
    :param kubernetes_conn_id: Airflow connection of the cluster; without one, the worker's own (in_cluster).

    Example::

        DeployAgentOperator(
            task_id="deploy",
            agent="enrich",
            in_topic="raw_events",
            out_topic="enriched_events",
            live_version="v2",
        )
    """

    template_fields: Sequence[str] = (
        "agent",
        "in_topic",
        "out_topic",
        "live_version",
        "shadow",
        "group",
        "name",
        "image",
        "namespace",
        "replicas",
        "args",
        "env",
        "agent_secret",
        "kafka_conn_id",
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {"env": "json"}
    ui_color = "#d9f0e3"

    def __init__(
        self,
        *,
        agent: str,
        in_topic: str,
        out_topic: str = "",
        live_version: str = "",
        shadow: str = "",
        group: str = "",
        name: str = "",
        image: str | None = None,
        namespace: str | None = None,
        replicas: int | str = 4,
        args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        agent_secret: str | None = None,
        pod_resources: Mapping[str, Any] | None = None,
        wait: timedelta | float = 300.0,
        kafka_conn_id: str | None = None,
        kubernetes_conn_id: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.agent = agent
        self.in_topic = in_topic
        self.out_topic = out_topic
        self.live_version = live_version
        self.shadow = shadow
        self.group = group
        self.name = name
        self.image = image
        self.namespace = namespace
        self.replicas = replicas
        self.args = args
        self.env = env or {}
        self.agent_secret = agent_secret
        self.pod_resources = dict(pod_resources or {})
        self.wait = wait.total_seconds() if isinstance(wait, timedelta) else float(wait)
        self.kafka_conn_id = kafka_conn_id
        self.kubernetes_conn_id = kubernetes_conn_id

    def execute(self, context: Context) -> dict[str, Any]:
        """Apply and wait; raises AirflowFailException for what a retry cannot mend."""
        from airflow.providers.cncf.kubernetes.hooks.kubernetes import KubernetesHook

        with airflow_errors():
            hook = KubernetesHook(conn_id=self.kubernetes_conn_id)
            spec = self.spec()
            spec = replace(spec, namespace=spec.namespace or hook.get_namespace() or "default")
            changed = self._apply(hook, spec) if spec.replicas else self._delete(hook, spec)
            self.log.info("Deployment %s in %s: %s", spec.name, spec.namespace, "changed" if changed else "as it was")
            if self.wait > 0:
                self._wait(hook, spec)
        return {
            "deployment": spec.name,
            "namespace": spec.namespace,
            "group": spec.group,
            "version": spec.live_version,
            "image": spec.image,
            "replicas": spec.replicas,
            "changed": changed,
        }

    def spec(self) -> LiveAgentSpec:
        """What is to run. Raises ConfigurationError."""
        stage = self.agent.rpartition(":")[2]
        version, shadow = self.live_version and check_version(self.live_version), self.shadow and check_version(self.shadow)
        if version and shadow:
            raise ConfigurationError(f"live_version {version!r}, shadow {shadow!r}: expected one of them: leave the other one out")
        return LiveAgentSpec(
            name=deployment_name(self.name or "-".join(filter(None, (stage, self.in_topic, version, shadow and f"shadow-{shadow}")))),
            agent=self.agent,
            in_topic=self.in_topic,
            out_topic=self.out_topic,
            group=self.group or default_group(stage, self.in_topic),
            live_version=version,
            shadow=shadow,
            image=self.image or option("image"),
            namespace=self.namespace or option("namespace"),
            replicas=_count(self.replicas),
            args=tuple(self.args),
            env={"FACTORY_PREFIX": option("prefix"), **self.env},
            secret=option("agent_secret") if self.agent_secret is None else self.agent_secret,
            resources=self.pod_resources,
            labels={"app.kubernetes.io/part-of": "factory"},
        )

    def _apply(self, hook: KubernetesHook, spec: LiveAgentSpec) -> bool:
        """Have Kubernetes merge what is wanted into what there is, fields of others left alone; whether that changed the Deployment."""
        _asked(spec, "poddisruptionbudgets", lambda: _apply(hook, "policy", "poddisruptionbudgets", spec, live_budget(spec)))
        before = self._read(hook, spec)
        applied = _asked(spec, "deployments", lambda: _apply(hook, "apps", "deployments", spec, live_deployment(spec)))
        return before is None or bool(before.metadata.generation != applied["metadata"]["generation"])

    def _delete(self, hook: KubernetesHook, spec: LiveAgentSpec) -> bool:
        """Have Kubernetes delete the Deployment and its budget; whether there was one. Raises ConfigurationError where it is needed."""
        found = self._read(hook, spec)
        if found is None:
            return False
        manager = (found.metadata.labels or {}).get(MANAGED_BY, "nobody")
        if manager != "airflow":
            raise ConfigurationError(
                f"Deployment {spec.name!r} in {spec.namespace!r} is managed by {manager}, not by Airflow: end it there"
            )
        self._check_idle(spec)
        _asked(spec, "deployments", lambda: _delete(hook, "apps", "deployments", spec), missing=True)
        _asked(spec, "poddisruptionbudgets", lambda: _delete(hook, "policy", "poddisruptionbudgets", spec), missing=True)
        return True

    def _check_idle(self, spec: LiveAgentSpec) -> None:
        from airflow_provider_factory.hooks.kafka import FactoryKafkaHook
        from factory_agents.rollouts import Rollouts

        if not spec.live_version:
            return
        config = FactoryKafkaHook(self.kafka_conn_id or option("kafka_conn_id")).config()
        status = Rollouts(config, spec.group, prefix=option("prefix")).status()
        if kept := [p.partition for p in status.partitions if spec.live_version in (p.owner, p.holder)]:
            raise ConfigurationError(
                f"version {spec.live_version!r} handles partitions {kept} of group {spec.group!r}: nobody would if it ended; roll another "
                f"version out first, and finish that"
            )

    def _read(self, hook: KubernetesHook, spec: LiveAgentSpec) -> Any:
        return _asked(spec, "deployments", lambda: hook.apps_v1_client.read_namespaced_deployment(spec.name, spec.namespace), missing=True)

    def _wait(self, hook: KubernetesHook, spec: LiveAgentSpec) -> None:
        deadline = time.monotonic() + self.wait
        while True:
            found = self._read(hook, spec)
            if found is None and not spec.replicas:
                return
            if found is None:
                raise AgentCrashedError(f"Deployment {spec.name!r} in {spec.namespace!r} was deleted while it was waited for")
            if spec.replicas and _is_live(found, spec.replicas):
                return
            late = time.monotonic() > deadline
            if late or _is_stuck(found):
                raise self._failed(hook, spec, found, late=late)
            time.sleep(_LOOK_SECONDS)

    def _failed(self, hook: KubernetesHook, spec: LiveAgentSpec, found: Any, *, late: bool) -> FactoryError:
        selector = ",".join(f"{name}={value}" for name, value in spec.selector.items())
        pods = _asked(spec, "pods", lambda: hook.core_v1_client.list_namespaced_pod(spec.namespace, label_selector=selector)).items
        troubles = [(pod, trouble) for pod in pods if (trouble := pod_failure(pod, CONTAINER)) is not None]
        why = f"pod {troubles[0][0].metadata.name} {troubles[0][1].text}" if troubles else "no pod says why; are there nodes for them?"
        text = (
            f"Deployment {spec.name!r} in {spec.namespace!r}: {found.status.available_replicas or 0} of {spec.replicas} pods are live"
            f"{f' after {self.wait:.0f} s' if late else ''}: {why}"
        )
        if troubles and troubles[0][1].permanent:
            return ConfigurationError(text)
        return DeadlineError(text) if late else AgentCrashedError(text)


def _is_live(found: Any, replicas: int) -> bool:
    """Whether all pods are of the newest template, ready, and none is left of an older one."""
    status = found.status
    counts = (status.replicas or 0, status.updated_replicas or 0, status.available_replicas or 0)
    return (status.observed_generation or 0) >= found.metadata.generation and counts == (replicas, replicas, replicas)


def _is_stuck(found: Any) -> bool:
    """Whether Kubernetes says of just this template that it makes no progress."""
    if (found.status.observed_generation or 0) < found.metadata.generation:
        return False
    return any(c.type == "Progressing" and c.reason == "ProgressDeadlineExceeded" for c in found.status.conditions or ())


def _apply(hook: KubernetesHook, group: str, plural: str, spec: LiveAgentSpec, body: dict[str, Any]) -> dict[str, Any]:
    """Server-side apply; by hand, since the client's own methods took a content type only from version 36 on."""
    answer = hook.api_client.call_api(
        "/apis/{group}/v1/namespaces/{namespace}/{plural}/{name}",
        "PATCH",
        {"group": group, "namespace": spec.namespace, "plural": plural, "name": spec.name},
        [("fieldManager", _MANAGER), ("force", "true")],
        {"Accept": "application/json", "Content-Type": "application/apply-patch+yaml"},
        body=body,
        auth_settings=["BearerToken"],
        _preload_content=False,
        _return_http_data_only=True,
    )
    applied: dict[str, Any] = json.loads(answer.data)
    return applied


def _delete(hook: KubernetesHook, group: str, plural: str, spec: LiveAgentSpec) -> None:
    """In the foreground: what is deleted is there until its pods are gone."""
    hook.api_client.call_api(
        "/apis/{group}/v1/namespaces/{namespace}/{plural}/{name}",
        "DELETE",
        {"group": group, "namespace": spec.namespace, "plural": plural, "name": spec.name},
        [("propagationPolicy", "Foreground")],
        {"Accept": "application/json"},
        auth_settings=["BearerToken"],
        _preload_content=False,
        _return_http_data_only=True,
    )


def _asked(spec: LiveAgentSpec, resource: str, ask: Callable[[], _T], *, missing: bool = False) -> Any:
    """Ask the API server; its refusals as errors of ours. ``missing``: what isn't there is None."""
    from kubernetes.client.exceptions import ApiException
    from urllib3.exceptions import HTTPError

    try:
        return ask()
    except HTTPError as error:
        raise UnavailableError(f"the Kubernetes API server doesn't answer: {error}") from error
    except ApiException as error:
        if error.status == 404 and missing:
            return None
        what = f"Kubernetes answered {error.status} {error.reason} for {resource} in namespace {spec.namespace!r}: {_message(error)}"
        if error.status in (401, 403):
            raise ConfigurationError(f"{what}; allow it (role factory-agent-deployer in deploy/kubernetes/rbac.yaml)") from None
        if error.status is not None and 400 <= error.status < 500 and error.status not in (409, 429):
            raise ConfigurationError(what) from None
        raise UnavailableError(what) from None


def _message(error: Any) -> str:
    try:
        return str(json.loads(error.body)["message"])
    except (ValueError, TypeError, LookupError):
        return str(error.body or "")[:300]


def _count(value: int | str) -> int:
    try:
        count = int(value)
    except ValueError:
        count = -1
    if count < 0:
        raise ConfigurationError(f"replicas: expected a number of pods, got {value!r}")
    return count
