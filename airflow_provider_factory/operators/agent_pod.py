"""A KubernetesPodOperator whose pod leaves an AgentResult: taken up again only if it fits, and never a success without a result."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from airflow.providers.cncf.kubernetes.operators.pod import (  # noqa: TID253  # see plugins/preload.py
    FoundMoreThanOnePodFailure,
    KubernetesPodOperator,
)
from airflow.providers.cncf.kubernetes.triggers.pod import KubernetesPodTrigger
from airflow.providers.cncf.kubernetes.utils.pod_manager import OnFinishAction, PodPhase

from airflow_provider_factory.links import PodLink, pod_url, push_links
from airflow_provider_factory.runners.base import Access
from airflow_provider_factory.runners.kubernetes.failure import fresh_lines
from airflow_provider_factory.runners.kubernetes.logs import AgentPodManager, since_seconds
from airflow_provider_factory.runners.kubernetes.manifest import owned_secret, with_environment, with_secret
from airflow_provider_factory.runners.kubernetes.private import OpenPodOperator
from airflow_provider_factory.runners.kubernetes.runner import PodRunner
from airflow_provider_factory.settings import credentials
from airflow_provider_factory.triggers.agent_pod import AgentPodTrigger
from factory_agents.errors import AgentCrashedError, ConfigurationError, FactoryError
from factory_agents.telemetry.tracing import handed_on

if TYPE_CHECKING:
    from airflow.sdk import Context
    from kubernetes.client import models as k8s

__all__ = ["AgentPodOperator"]

_LOGGING_INTERVAL = 10
_STARTUP_CHECK_INTERVAL = 1  # KubernetesPodOperator's 5 would be most of a small window's time


class AgentPodOperator(OpenPodOperator):
    """Runs one ``AgentRun`` in a pod. It takes the arguments of KubernetesPodOperator, with these differences:

    * The result comes from the container's termination message, else from the ledger; else the task fails. There is no XCom sidecar.
    * A running pod is taken over only if its fingerprint matches; other pods of the same task instance are deleted.
    * The task's error is the agent's own; if it left none, Kubernetes' reason (image, memory, eviction, no node).
    * Log lines keep their level and appear once; those of a deferred task come every ``logging_interval`` seconds (10 by default).

    :param agent_secret: existing Kubernetes Secret whose keys become the pod's environment; by default ``[factory] agent_secret``.
        (templated)
    :param credentials: ``secret`` (the one named), ``connections`` (Airflow's, in a Secret that is deleted with the pod) or
        ``none`` (the pod template or KubernetesPodOperator's own arguments provide them); by default ``[factory] credentials``. (templated)
    """

    template_fields: Sequence[str] = (*KubernetesPodOperator.template_fields, "agent_secret", "credentials")

    def __init__(
        self,
        *,
        agent_secret: str | None = None,
        credentials: str | None = None,
        do_xcom_push: bool = True,
        log_pod_spec_on_failure: bool = False,
        logging_interval: int | None = _LOGGING_INTERVAL,
        startup_check_interval_seconds: int = _STARTUP_CHECK_INTERVAL,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            do_xcom_push=do_xcom_push,
            log_pod_spec_on_failure=log_pod_spec_on_failure,
            logging_interval=logging_interval,
            startup_check_interval_seconds=startup_check_interval_seconds,
            **kwargs,
        )
        self.agent_secret = agent_secret
        self.credentials = credentials
        self.pod_runner: PodRunner | None = None
        """The execution that is under way."""

    def build_pod_request_obj(self, context: Context | None = None, **kwargs: Any) -> k8s.V1Pod:
        """See ``KubernetesPodOperator``; there is no XCom sidecar, since results travel in the termination message."""
        with self.without_sidecar():
            pod = super().build_pod_request_obj(context, **kwargs)
        if self.pod_runner is not None:
            with_environment(pod, self.base_container_name, self.pod_runner.tracing)
            if credentials(self.credentials) == "connections":
                with_secret(pod, self.base_container_name, pod.metadata.name)
        return pod

    # Which pod

    def get_or_create_pod(self, pod_request_obj: k8s.V1Pod, context: Context) -> k8s.V1Pod:
        """The pod: a live one that does just this run, else a new one. Live pods of other runs of the task instance are deleted."""
        self._end_others(pod_request_obj.metadata.namespace, context)
        self.pod = pod = super().get_or_create_pod(pod_request_obj, context)  # from here on ``on_kill`` knows it
        if self.was_killed:
            self._delete(pod, "the task was stopped while it was created")
            raise AgentCrashedError("the task was stopped; a retry resumes")
        if self.pod_runner is not None and credentials(self.credentials) == "connections":
            self._give_secret(pod, self.pod_runner.access)
        push_links(self, context["ti"], {PodLink.key: pod_url(pod.metadata.namespace or "", pod.metadata.name or "")})
        return pod

    def find_pod(self, namespace: str, context: Context, *, exclude_checked: bool = True) -> k8s.V1Pod | None:
        """See ``KubernetesPodOperator``; of several that do just this run the newest is taken, whose agent has fenced the others."""
        try:
            return super().find_pod(namespace, context, exclude_checked=exclude_checked)
        except FoundMoreThanOnePodFailure:
            selector = self.run_selector(context, exclude_checked=exclude_checked)
            pods = self.client.list_namespaced_pod(namespace=namespace, label_selector=selector).items
            newest = max(pods, key=lambda pod: (pod.metadata.creation_timestamp, pod.metadata.name), default=None)
            for pod in pods:
                if pod is not newest:
                    self._delete(pod, "another attempt's, fenced by the newer one")
            return newest

    def may_take_up(self, pod: k8s.V1Pod) -> bool:
        """Only a pod that does just this run (the search by labels sees to it by the fingerprint among them)."""
        return self.pod_runner is None or self.pod_runner.is_of_this_run(pod)

    def _end_others(self, namespace: str, context: Context) -> None:
        """Pods of this task instance that do another run (older code, other parameters, before a clear) have no watcher any more."""
        if self.pod_runner is None:
            return
        selector = self.task_instance_selector(context)
        for pod in self.client.list_namespaced_pod(namespace=namespace, label_selector=selector).items:
            if self.pod_runner.is_of_this_run(pod):
                continue
            ended = pod.status is not None and pod.status.phase in PodPhase.terminal_states
            if not ended or self.on_finish_action == OnFinishAction.DELETE_POD:
                self._delete(pod, "of an older run of this task")

    def _delete(self, pod: k8s.V1Pod, why: str) -> None:
        self.log.info("Deleting pod %s: %s", pod.metadata.name, why)
        self.pod_manager.delete_pod(pod)

    def _give_secret(self, pod: k8s.V1Pod, access: Access) -> None:
        """Airflow's connections as a Secret that belongs to the pod and is deleted with it. Without it there is no pod either."""
        from kubernetes.client.exceptions import ApiException

        namespace = pod.metadata.namespace
        try:
            live = self.client.read_namespaced_pod(pod.metadata.name, namespace)
            _, of_tracing = handed_on(os.environ)
            secret = owned_secret(live.metadata.name, live.metadata.uid, of_tracing | access.environment())
            self.client.create_namespaced_secret(namespace, secret)
        except ApiException as error:
            if error.status == 409:  # a pod taken up again has it
                return
            self._delete(pod, "its credentials cannot be given to it")
            raise ConfigurationError(
                f"cannot create the Secret {pod.metadata.name!r} in namespace {namespace!r} ({error.status} {error.reason}): allow it (see "
                "deploy/kubernetes/rbac.yaml), or name an existing one and set credentials to 'secret'"
            ) from None
        except FactoryError:
            self._delete(pod, "its credentials cannot be given to it")
            raise

    # What it says

    @cached_property
    def pod_manager(self) -> AgentPodManager:
        """Follows the pod and its log."""
        return AgentPodManager(kube_client=self.client, callbacks=self.callbacks)

    def defer(self, *, trigger: Any, **kwargs: Any) -> Any:
        """See ``BaseOperator``; the pod is waited for by our trigger, which brings its last word."""
        ours = AgentPodTrigger(**trigger.serialize()[1]) if type(trigger) is KubernetesPodTrigger else trigger
        return super().defer(trigger=ours, **kwargs)

    def show_log(self, pod: k8s.V1Pod, *, follow: bool, since: str) -> None:
        """After deferral: what the trigger has not shown yet."""
        raw = self.client.read_namespaced_pod_log(
            name=pod.metadata.name,
            namespace=pod.metadata.namespace,
            container=self.base_container_name,
            follow=follow,
            timestamps=True,
            _preload_content=False,
            **({"since_seconds": since_seconds(since)} if since else {}),
        )
        for _, line in fresh_lines((part.decode("utf-8", errors="backslashreplace") for part in raw), since):
            self.pod_manager.tell(line)

    def cleanup(self, pod: k8s.V1Pod, remote_pod: k8s.V1Pod, *args: Any, **kwargs: Any) -> None:
        """Read what the pod says before it goes: the one point that both modes pass."""
        if self.was_killed or self.pod_runner is None or not remote_pod:
            return super().cleanup(pod, remote_pod, *args, **kwargs)
        seen = self.pod_runner.look(remote_pod)
        if seen is None:
            raise self.pod_runner.error()
        return super().cleanup(pod, seen, *args, **kwargs)

    @contextmanager
    def without_sidecar(self) -> Iterator[None]:
        """While KubernetesPodOperator works it is to think that nothing goes to XCom, so that it adds no sidecar for that."""
        wanted, self.do_xcom_push = self.do_xcom_push, False
        try:
            yield
        finally:
            self.do_xcom_push = wanted
