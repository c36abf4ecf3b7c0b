"""A KubernetesPodOperator whose pod leaves an AgentResult: taken up again only if it fits, and never a success without a result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any

import msgspec
from airflow.providers.cncf.kubernetes.operators.pod import (  # noqa: TID253  # the base class; see plugins/preload.py
    FoundMoreThanOnePodFailure,
    KubernetesPodOperator,
)
from airflow.providers.cncf.kubernetes.triggers.pod import KubernetesPodTrigger
from airflow.providers.cncf.kubernetes.utils.pod_manager import OnFinishAction, PodPhase
from airflow.sdk.exceptions import AirflowSkipException

from airflow_provider_factory.links import PodLink, pod_url, push_links
from airflow_provider_factory.pod_failure import Trouble, event_lines, fresh_lines, pod_failure, termination_message
from airflow_provider_factory.pod_logs import AgentPodManager, is_outage, short, since_seconds
from airflow_provider_factory.pods import AgentPod, agent_pod, owned_secret, pod_labels, pod_template, with_secret
from airflow_provider_factory.settings import credentials, option
from airflow_provider_factory.triggers.agent_pod import AgentPodTrigger
from factory_agents.errors import AgentCrashedError, ConfigurationError, FactoryError, StoppedError
from factory_agents.protocol import AgentResult, AgentRun, decode_result
from factory_agents.runners.results import agent_error, check_result

if TYPE_CHECKING:
    from airflow.sdk import Context
    from kubernetes.client import models as k8s

    from factory_agents.kafka.config import KafkaConfig

__all__ = ["AgentPodOperator"]

_LOGGING_INTERVAL = 10
_STARTUP_CHECK_INTERVAL = 1  # KubernetesPodOperator's 5 would be most of a small window's time


class AgentPodOperator(KubernetesPodOperator):
    """Runs one ``AgentRun`` in a pod. It takes the arguments of KubernetesPodOperator, and differs from it:

    * The result comes from the container's termination message, else from the ledger, else the task fails: no XCom sidecar.
    * A running pod is used again only if its fingerprint fits; other pods of the same task instance are deleted.
    * The task's error is the agent's own; if it left none, it is what Kubernetes says (image, memory, eviction, no node).
    * Log lines keep their level and come once; those of a deferred task come every ``logging_interval`` seconds (10 by default).

    :param agent_secret: existing Kubernetes Secret whose keys become the pod's environment; by default ``[factory] agent_secret``.
        (templated)
    :param credentials: ``secret`` (the one named), ``connections`` (Airflow's, in a Secret that belongs to the pod and goes with it) or
        ``none`` (the pod template or KubernetesPodOperator's own arguments bring them); by default ``[factory] credentials``. (templated)
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
        self._sent: AgentRun | None = None
        self._message = ""
        self._trouble: Trouble | None = None

    def secret_environment(self) -> dict[str, str]:
        """The secrets that the agent's environment needs, from Airflow's connections."""
        raise NotImplementedError

    def ledger_config(self) -> KafkaConfig:
        """How this side reaches the cluster whose ledger holds the results."""
        raise NotImplementedError

    # Running it

    def run_pod(self, context: Context, run: AgentRun) -> AgentResult:
        """Run the agent to its end, or defer; raises FactoryError for a pod that left no result."""
        self._prepare_pod(run)
        with self._agent_errors(run):
            super().execute(context)
        return self._pod_result(run)

    def resume_pod(self, context: Context, run: AgentRun, event: Mapping[str, Any]) -> AgentResult:
        """Take up again after deferral: the log's rest, the clean-up, and the same end as ``run_pod``."""
        self._prepare_pod(run)
        push_links(self, context["ti"], {PodLink.key: pod_url(str(event.get("namespace") or ""), str(event.get("name") or ""))})
        self._message = str(event.get("said") or "")
        self._trouble = Trouble(str(event["trouble"])) if event.get("trouble") else None
        with self._agent_errors(run):
            super().trigger_reentry(context, dict(event))
        return self._pod_result(run)

    def trigger_reentry(self, context: Context, event: dict[str, Any]) -> Any:
        """See ``KubernetesPodOperator``, which comes here from ``execute`` too, where the pod has ended before it would defer."""
        return super().trigger_reentry(context, event)

    def _prepare_pod(self, run: AgentRun) -> None:
        """Give KubernetesPodOperator the agent's pod: its own arguments and the user's template stay on top of the hardened one."""
        from airflow.providers.cncf.kubernetes.pod_generator import PodGenerator

        self._sent = run
        templated = bool(self.pod_template_file or self.pod_template_dict or self.full_pod_spec)
        self.labels = {**self.labels, **pod_labels(run)}
        self.name = self.name or f"{self.dag_id}-{self.task_id}".replace("_", "-").replace(".", "-").lower()[:200]
        existing = self.agent_secret if self.agent_secret is not None else option("agent_secret")
        spec = AgentPod(
            run=run,
            labels=self.labels,
            image="" if self.image or templated else option("image"),
            namespace="" if self.namespace or templated else option("namespace"),
            secret=existing if credentials(self.credentials) == "secret" else "",
            container=self.base_container_name,
            own_command=bool(self.cmds or self.arguments),
        )
        pod = PodGenerator.deserialize_model_dict(agent_pod(spec, None if templated else pod_template()))
        self.full_pod_spec = PodGenerator.reconcile_pods(self.full_pod_spec, pod) if self.full_pod_spec else pod

    def build_pod_request_obj(self, context: Context | None = None, **kwargs: Any) -> k8s.V1Pod:
        """See ``KubernetesPodOperator``; there is no XCom sidecar, since results travel in the termination message."""
        with self._without_sidecar():
            pod = super().build_pod_request_obj(context, **kwargs)
        if self._sent is not None and credentials(self.credentials) == "connections":
            with_secret(pod, self.base_container_name, pod.metadata.name)
        return pod

    @contextmanager
    def _without_sidecar(self) -> Iterator[None]:
        wanted, self.do_xcom_push = self.do_xcom_push, False
        try:
            yield
        finally:
            self.do_xcom_push = wanted

    # Which pod

    def get_or_create_pod(self, pod_request_obj: k8s.V1Pod, context: Context) -> k8s.V1Pod:
        """The pod: a live one that does just this run, else a new one. Live pods of other runs of the task instance are deleted."""
        self._end_others(pod_request_obj.metadata.namespace, context)
        self.pod = pod = super().get_or_create_pod(pod_request_obj, context)  # from here on ``on_kill`` knows it
        if self._killed:
            self._delete(pod, "the task was stopped while it was created")
            raise AgentCrashedError("the task was stopped; a retry resumes")
        if credentials(self.credentials) == "connections":
            self._give_secret(pod)
        push_links(self, context["ti"], {PodLink.key: pod_url(pod.metadata.namespace or "", pod.metadata.name or "")})
        return pod

    def find_pod(self, namespace: str, context: Context, *, exclude_checked: bool = True) -> k8s.V1Pod | None:
        """See ``KubernetesPodOperator``; of several that do just this run the newest is taken, whose agent has fenced the others."""
        try:
            return super().find_pod(namespace, context, exclude_checked=exclude_checked)
        except FoundMoreThanOnePodFailure:
            selector = self._build_find_pod_label_selector(context, exclude_checked=exclude_checked)
            pods = self.client.list_namespaced_pod(namespace=namespace, label_selector=selector).items
            newest = max(pods, key=lambda pod: (pod.metadata.creation_timestamp, pod.metadata.name), default=None)
            for pod in pods:
                if pod is not newest:
                    self._delete(pod, "another attempt's, fenced by the newer one")
            return newest

    def _get_pod_from_task_state_store(self, context: Context) -> k8s.V1Pod | None:
        """Only a pod that does just this run is taken up again (the search by labels sees to it by the fingerprint among them)."""
        pod = super()._get_pod_from_task_state_store(context)
        if pod is None or self._sent is None:
            return pod
        return pod if pod_labels(self._sent).items() <= (pod.metadata.labels or {}).items() else None

    def _end_others(self, namespace: str, context: Context) -> None:
        """Pods of this task instance that do another run (older code, other parameters, before a clear) have no watcher any more."""
        if self._sent is None:
            return
        mine = pod_labels(self._sent)
        selector = ",".join(f"{k}={v}" for k, v in sorted(self._get_ti_pod_labels(context, include_try_number=False).items()))
        for pod in self.client.list_namespaced_pod(namespace=namespace, label_selector=selector).items:
            if mine.items() <= (pod.metadata.labels or {}).items():
                continue
            ended = pod.status is not None and pod.status.phase in PodPhase.terminal_states
            if not ended or self.on_finish_action == OnFinishAction.DELETE_POD:
                self._delete(pod, "of an older run of this task")

    def _delete(self, pod: k8s.V1Pod, why: str) -> None:
        self.log.info("Deleting pod %s: %s", pod.metadata.name, why)
        self.pod_manager.delete_pod(pod)

    def _give_secret(self, pod: k8s.V1Pod) -> None:
        """Airflow's connections as a Secret that belongs to the pod and is deleted with it. Without it there is no pod either."""
        from kubernetes.client.exceptions import ApiException

        namespace = pod.metadata.namespace
        try:
            live = self.client.read_namespaced_pod(pod.metadata.name, namespace)
            self.client.create_namespaced_secret(namespace, owned_secret(live.metadata.name, live.metadata.uid, self.secret_environment()))
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

    def _write_logs(  # type: ignore[override]
        self, pod: k8s.V1Pod, follow: bool = False, since_time: Any = None
    ) -> None:
        """After deferral: what the trigger has not shown yet."""
        since = since_time if isinstance(since_time, str) else ""
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
        if self._killed or not remote_pod:
            return super().cleanup(pod, remote_pod, *args, **kwargs)
        seen = self._look(remote_pod)
        if seen is None:
            raise self._error()
        return super().cleanup(pod, seen, *args, **kwargs)

    def _look(self, known: k8s.V1Pod) -> k8s.V1Pod | None:
        """The pod as it is now, or None where it is gone; keeps its message and, where it did not succeed, its trouble."""
        pod = known if known.status and known.status.phase in PodPhase.terminal_states else self._read(known)
        self._message = termination_message(pod, self.base_container_name) or self._message
        if pod is None or pod.status is None or pod.status.phase != PodPhase.SUCCEEDED:
            events = self._events(known)
            self._trouble = pod_failure(pod, self.base_container_name, events) or self._trouble
            for line in event_lines(events):
                self.log.error("Kubernetes says: %s", line)
        return pod

    def _read(self, pod: k8s.V1Pod) -> k8s.V1Pod | None:
        from kubernetes.client.exceptions import ApiException

        try:
            return self.pod_manager.read_pod(pod)
        except ApiException as error:
            if error.status == 404:
                return None
            raise

    def _events(self, pod: k8s.V1Pod) -> list[k8s.CoreV1Event]:
        with suppress(Exception):  # what they would add is not worth another error
            return list(self.pod_manager.read_pod_events(pod).items)
        return []

    # What it comes to

    @contextmanager
    def _agent_errors(self, run: AgentRun) -> Iterator[None]:
        """The agent's own error in place of the pod's; nothing where the agent succeeded and only what came after it failed."""
        try:
            with self._without_sidecar():
                yield
        except (FactoryError, AirflowSkipException):
            raise
        except Exception as error:
            said = self._said()
            if said is not None and said.status == "success":
                self.log.warning("The agent succeeded; what failed after it: %s", error)
                return
            self.log.debug("KubernetesPodOperator failed", exc_info=True)
            raise self._error(error) from None

    def _error(self, error: Exception | None = None) -> Exception:
        """What a person is told: the agent's word, else Kubernetes', else what KubernetesPodOperator or the API server answered."""
        from kubernetes.client.exceptions import ApiException

        said = self._said()
        if said is not None and self._sent is not None:
            try:
                check_result(said, self._sent)
            except FactoryError as foreign:
                return foreign
        if said is not None and said.status == "failed":
            return _disturbed(agent_error(said), self._trouble)
        gone = (isinstance(error, ApiException) and error.status == 404) or type(error).__name__ == "PodNotFoundException"
        trouble = self._trouble or (pod_failure(None, self.base_container_name) if gone else None)
        if trouble is not None:
            return self._crash(trouble)
        if isinstance(error, ApiException):
            return AgentCrashedError(f"Kubernetes answered {error.status} {error.reason}: {_api_message(error)}")
        if error is not None and is_outage(error):
            return AgentCrashedError(f"the Kubernetes API server doesn't answer: {short(error)}; a retry takes the pod up again")
        return error if error is not None else AgentCrashedError("the agent's pod ended for an unknown reason")

    def _crash(self, trouble: Trouble) -> FactoryError:
        agent = self._sent.agent.name if self._sent else self.task_id
        name = f" {self.pod.metadata.name}" if self.pod is not None and self.pod.metadata else ""
        words = self.pod_manager.last_lines
        last = f"; its last words: {words[-1]}" if words else ""
        if trouble.permanent:
            return ConfigurationError(f"the pod{name} of agent {agent!r} {trouble.text}")
        return AgentCrashedError(f"the pod{name} of agent {agent!r} {trouble.text}{last}; a retry resumes")

    def _said(self) -> AgentResult | None:
        try:
            return decode_result(self._message) if self._message.lstrip().startswith("{") else None
        except FactoryError:
            return None

    def _pod_result(self, run: AgentRun) -> AgentResult:
        """What the container said at its end, else what stands in the ledger for just this run; raises AgentCrashedError for neither."""
        said = self._said()
        if said is not None and (not said.truncated or said.dry_run or said.status != "success"):  # the ledger has no more of these
            return said
        from factory_agents.kafka.ledger import read_result

        result = read_result(self.ledger_config(), run.work, prefix=run.prefix)
        if result is not None and (result.run == run.digest or (said is not None and said.fingerprint == result.fingerprint)):
            return msgspec.structs.replace(result, run=run.digest)
        if self._trouble is not None:
            raise self._crash(self._trouble)
        raise AgentCrashedError(
            f"the pod of agent {run.agent.name!r} is gone and left no result, nor does the ledger hold one; a retry resumes"
        )


def _disturbed(error: FactoryError, trouble: Trouble | None) -> FactoryError:
    """An agent that was told to stop, with who told it to."""
    if not isinstance(error, StoppedError) or trouble is None:
        return error
    told = StoppedError(f"{error}; the pod {trouble.text}")
    told.retriable = error.retriable
    return told


def _api_message(error: Any) -> str:
    import json

    with suppress(ValueError, TypeError, AttributeError, LookupError, RecursionError):
        return str(json.loads(error.body)["message"])
    return str(error.body or "")[:300]
