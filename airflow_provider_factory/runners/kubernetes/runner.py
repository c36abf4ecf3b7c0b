"""Runs an agent in a pod by KubernetesPodOperator, and says what came of it: the agent's word, the ledger's, or why there is none."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import msgspec
from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator  # noqa: TID253  # see plugins/preload.py
from airflow.providers.cncf.kubernetes.utils.pod_manager import PodNotFoundException, PodPhase
from airflow.sdk.exceptions import AirflowSkipException

from airflow_provider_factory.links import PodLink, pod_url, push_links
from airflow_provider_factory.runners.base import Access
from airflow_provider_factory.runners.kubernetes.failure import Trouble, event_lines, pod_failure, termination_message
from airflow_provider_factory.runners.kubernetes.logs import is_outage, short
from airflow_provider_factory.runners.kubernetes.manifest import AgentPod, agent_pod, pod_labels, pod_template
from airflow_provider_factory.settings import credentials, option
from factory_agents.errors import AgentCrashedError, ConfigurationError, FactoryError, StoppedError
from factory_agents.protocol import AgentResult, AgentRun, decode_result
from factory_agents.runners.results import agent_error, check_result
from factory_agents.telemetry.tracing import handed_on

if TYPE_CHECKING:
    from airflow.sdk import Context
    from kubernetes.client import models as k8s

    from airflow_provider_factory.operators.agent_pod import AgentPodOperator

__all__ = ["PodRunner"]


class PodRunner:
    """An ``AgentRunner`` over the operator that is given; one for each execution of a task.

    KubernetesPodOperator does the work, and asks the operator at each step; the operator asks this for what is of this run.
    """

    def __init__(self, run: AgentRun, access: Access, operator: AgentPodOperator) -> None:
        self.access = access
        self.labels = pod_labels(run)
        self._run = run
        self._operator = operator
        self._message = ""
        self._trouble: Trouble | None = None
        self._prepare()

    def run(self, context: Context) -> AgentResult:
        """See ``AgentRunner``; it defers where the operator is deferrable."""
        with self._agent_errors():
            KubernetesPodOperator.execute(self._operator, context)
        return self._result()

    def resume(self, context: Context, event: Mapping[str, Any]) -> AgentResult:
        """Take up again after deferral: the log's rest, the clean-up, and the same end as ``run``."""
        operator = self._operator
        push_links(operator, context["ti"], {PodLink.key: pod_url(str(event.get("namespace") or ""), str(event.get("name") or ""))})
        self._message = str(event.get("said") or "")
        self._trouble = Trouble(str(event["trouble"])) if event.get("trouble") else None
        with self._agent_errors():
            KubernetesPodOperator.trigger_reentry(operator, context, dict(event))
        return self._result()

    def stop(self) -> None:
        """See ``AgentRunner``: the pod is deleted, unless ``on_kill_action`` keeps it."""
        KubernetesPodOperator.on_kill(self._operator)

    def _prepare(self) -> None:
        """Give KubernetesPodOperator the agent's pod: its own arguments and the user's template stay on top of the hardened one."""
        from airflow.providers.cncf.kubernetes.pod_generator import PodGenerator

        task = self._operator
        templated = bool(task.pod_template_file or task.pod_template_dict or task.full_pod_spec)
        task.labels = {**task.labels, **self.labels}
        task.name = task.name or f"{task.dag_id}-{task.task_id}".replace("_", "-").replace(".", "-").lower()[:200]
        existing = task.agent_secret if task.agent_secret is not None else option("agent_secret")
        spec = AgentPod(
            run=self._run,
            labels=task.labels,
            image="" if task.image or templated else option("image"),
            namespace="" if task.namespace or templated else option("namespace"),
            secret=existing if credentials(task.credentials) == "secret" else "",
            container=task.base_container_name,
            own_command=bool(task.cmds or task.arguments),
        )
        pod = PodGenerator.deserialize_model_dict(agent_pod(spec, None if templated else pod_template()))
        task.full_pod_spec = PodGenerator.reconcile_pods(task.full_pod_spec, pod) if task.full_pod_spec else pod
        task.pod_runner = self

    @property
    def tracing(self) -> dict[str, str]:
        """What the pod is told of traces in plain sight: the worker's own settings without secrets, and the span that it is a part of."""
        plain, _ = handed_on(os.environ)
        return plain | ({"TRACEPARENT": self._run.traceparent} if self._run.traceparent else {})

    def is_of_this_run(self, pod: k8s.V1Pod) -> bool:
        """Whether a pod does just this run, by its labels: the fingerprint is among them."""
        return self.labels.items() <= (pod.metadata.labels or {}).items()

    # What it says

    def look(self, known: k8s.V1Pod) -> k8s.V1Pod | None:
        """The pod as it is now, or None where it is gone; keeps its message and, where it did not succeed, its trouble."""
        pod = known if known.status and known.status.phase in PodPhase.terminal_states else self._read(known)
        self._message = termination_message(pod, self._operator.base_container_name) or self._message
        if pod is None or pod.status is None or pod.status.phase != PodPhase.SUCCEEDED:
            events = self._events(known)
            self._trouble = pod_failure(pod, self._operator.base_container_name, events) or self._trouble
            for line in event_lines(events):
                self._operator.log.error("Kubernetes says: %s", line)
        return pod

    def _read(self, pod: k8s.V1Pod) -> k8s.V1Pod | None:
        from kubernetes.client.exceptions import ApiException

        try:
            return self._operator.pod_manager.read_pod(pod)
        except ApiException as error:
            if error.status == 404:
                return None
            raise

    def _events(self, pod: k8s.V1Pod) -> list[k8s.CoreV1Event]:
        with suppress(Exception):  # what they would add is not worth another error
            return list(self._operator.pod_manager.read_pod_events(pod).items)
        return []

    # What it comes to

    @contextmanager
    def _agent_errors(self) -> Iterator[None]:
        """The agent's own error in place of the pod's; nothing where the agent succeeded and only what came after it failed."""
        try:
            with self._operator.without_sidecar():
                yield
        except (FactoryError, AirflowSkipException):
            raise
        except Exception as error:
            said = self._said()
            if said is not None and said.status == "success":
                self._operator.log.warning("The agent succeeded; what failed after it: %s", error)
                return
            self._operator.log.debug("KubernetesPodOperator failed", exc_info=True)
            raise self.error(error) from None

    def error(self, error: Exception | None = None) -> Exception:
        """What a person is told: the agent's word, else Kubernetes', else what KubernetesPodOperator or the API server answered."""
        from kubernetes.client.exceptions import ApiException
        from kubernetes.config import ConfigException

        said = self._said()
        if said is not None:
            try:
                check_result(said, self._run)
            except FactoryError as foreign:
                return foreign
        if said is not None and said.status == "failed":
            return _disturbed(agent_error(said), self._trouble)
        gone = (isinstance(error, ApiException) and error.status == 404) or isinstance(error, PodNotFoundException)
        trouble = self._trouble or (pod_failure(None, self._operator.base_container_name) if gone else None)
        if trouble is not None:
            return self._crash(trouble)
        if isinstance(error, ConfigException):
            return ConfigurationError(
                f"no way to a Kubernetes API server is configured ({short(error)}): give kubernetes_conn_id, or [factory] runner = process"
            )
        if isinstance(error, ApiException):
            return AgentCrashedError(f"Kubernetes answered {error.status} {error.reason}: {_api_message(error)}")
        if error is not None and is_outage(error):
            return AgentCrashedError(f"the Kubernetes API server doesn't answer: {short(error)}; a retry takes the pod up again")
        return error if error is not None else AgentCrashedError("the agent's pod ended for an unknown reason")

    def _crash(self, trouble: Trouble) -> FactoryError:
        agent, pod = self._run.agent.name, self._operator.pod
        name = f" {pod.metadata.name}" if pod is not None and pod.metadata else ""
        words = self._operator.pod_manager.last_lines
        last = f"; its last words: {words[-1]}" if words else ""
        if trouble.permanent:
            return ConfigurationError(f"the pod{name} of agent {agent!r} {trouble.text}")
        return AgentCrashedError(f"the pod{name} of agent {agent!r} {trouble.text}{last}; a retry resumes")

    def _said(self) -> AgentResult | None:
        try:
            return decode_result(self._message) if self._message.lstrip().startswith("{") else None
        except FactoryError:
            return None

    def _result(self) -> AgentResult:
        """What the container said at its end, else what is in the ledger for just this run; raises AgentCrashedError for neither."""
        said = self._said()
        if said is not None and (not said.truncated or said.dry_run or said.status != "success"):  # the ledger has no more of these
            return said
        from factory_agents.kafka.ledger import read_result

        run = self._run
        result = read_result(self.access.ledger(), run.work, prefix=run.prefix)
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
    with suppress(ValueError, TypeError, AttributeError, LookupError, RecursionError):
        return str(json.loads(error.body)["message"])
    return str(error.body or "")[:300]
