"""Runs an agent over a window as a task: a pod, or a process beside the task, with one result either way."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import msgspec
from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator  # noqa: TID253  # the base class; see plugins/preload.py
from airflow.sdk import Asset

from airflow_provider_factory.assets import asset_topic, event_extra, topic_name
from airflow_provider_factory.errors import AgentCrashedError, agent_error, airflow_errors
from airflow_provider_factory.inputs import StageInput, plain, stage_input
from airflow_provider_factory.lineage import result_lineage, topic_lineage
from airflow_provider_factory.links import AgentFactsLink, InputTopicLink, OutputTopicLink, PodLink, facts_url, pod_url, topic_url
from airflow_provider_factory.pods import AgentPod, agent_pod, pod_labels, pod_template
from airflow_provider_factory.processes import AgentProcess, child_environment
from airflow_provider_factory.runs import as_bool, bundle_root, data_interval, epoch, reprocess_wanted
from airflow_provider_factory.settings import Runner, option, option_seconds, runner
from factory_agents.errors import ConfigurationError, FactoryError, WindowError
from factory_agents.protocol import AgentRef, AgentResult, AgentRun, Shard, decode_result, to_data

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage
    from airflow.sdk import Context
    from airflow.sdk.definitions.mappedoperator import OperatorPartial
    from kubernetes.client import models as k8s

__all__ = ["BUILT_IN", "KafkaAgentOperator", "Rerun"]

Rerun = Literal["clear", "reuse", "redo"]

BUILT_IN = ("ingest", "enrich", "validate", "publish")
"""Agents that come with factory_agents; they are given the default database connection where it exists."""

_RERUNS = ("clear", "reuse", "redo")


class KafkaAgentOperator(KubernetesPodOperator):
    """Runs an agent over a window, exactly once per fingerprint, and returns what it did: XCom is the ``AgentResult``, manifest included.

    Whether as a pod or as a process is asked of ``[factory] runner`` on the worker, unless ``runner`` says so. A retry resumes; a clear does the work
    again; an unchanged run over the same window returns the result that stands in the ledger. Everything KubernetesPodOperator takes
    is taken; as a process, ``env_vars`` are honoured and the rest of the pod's arguments is passed over.

    :param agent: a built-in (ingest, enrich, validate, publish), ``module:function``, or a name for an image with its own command. (templated)
    :param window: what to read: ``.output`` of a WindowOperator (whole, or one shard by ``expand``), or of the stage before, mapped or not.
        Without it the agent (``ingest``) reads no topic: its window is the data interval. (templated)
    :param shard: ``(index, of)`` or a planned shard: the part of ``window`` to run, for ``.partial(window=…).expand(shard=…)``. (templated)
    :param output_topic: where it writes: a name, or an asset ``kafka://<cluster>/<topic>``; reported as an asset of the task. (templated)
    :param dead_letter_topic: where rejected events go; by default ``<output_topic>.dead``. (templated)
    :param agent_params: the agent's parameters, JSON-able. (templated)
    :param agent_version: part of the fingerprint; by default the agent's own. (templated)
    :param agent_source: a function's source that travels with the run (``@task.kafka_agent`` sets it); ``agent`` is its name then.
    :param contract: path of a data contract, or the contract itself; becomes the agent's parameter ``contract``. (templated)
    :param runner: ``process`` or ``kubernetes``; by default ``[factory] runner``. (templated)
    :param rerun: ``clear``: finished work is done again when the task was cleared; ``reuse``: never; ``redo``: always.
    :param reprocess: do finished work again; by default the DAG's param ``reprocess``, if it has one. (templated)
    :param dry_run: read and handle, write nothing; the result says what would have been. (templated)
    :param accept_loss: go on where records are gone, and record the loss. (templated)
    :param max_rejected: fail when more events than this are rejected: a number, or a share like ``5 %``. (templated)
    :param deadline: fail, keeping what is committed, when the window is not done in this time; a retry resumes. (templated)
    :param kafka_conn_id: Airflow connection of the cluster; by default ``[factory] kafka_conn_id``. (templated)
    :param database_conn_id: Airflow connection given as DATABASE_URL. Without it built-in agents get ``[factory] database_conn_id`` if it exists. (templated)
    :param agent_secret: existing Kubernetes Secret whose keys become the pod's environment; by default ``[factory] agent_secret``. (templated)
    """

    template_fields: Sequence[str] = (
        *KubernetesPodOperator.template_fields,
        "agent",
        "window",
        "shard",
        "output_topic",
        "dead_letter_topic",
        "agent_params",
        "agent_version",
        "contract",
        "runner",
        "reprocess",
        "agent_dry_run",
        "accept_loss",
        "max_rejected",
        "deadline",
        "kafka_conn_id",
        "database_conn_id",
        "agent_secret",
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {
        **KubernetesPodOperator.template_fields_renderers,
        "agent_params": "json",
        "window": "json",
    }
    operator_extra_links = (AgentFactsLink(), InputTopicLink(), OutputTopicLink(), PodLink())
    ui_color: ClassVar[str] = "#d9f0e3"

    def __init__(
        self,
        *,
        agent: str,
        window: Any = None,
        shard: Any = None,
        output_topic: str | Asset | None = None,
        dead_letter_topic: str | Asset | None = None,
        agent_params: Mapping[str, Any] | None = None,
        agent_version: str = "",
        agent_source: str = "",
        contract: str | Mapping[str, Any] | None = None,
        runner: Runner | str | None = None,
        rerun: Rerun = "clear",
        reprocess: bool | str | None = None,
        dry_run: bool | str = False,
        accept_loss: bool | str = False,
        max_rejected: str | int = "50 %",
        deadline: timedelta | float | str | None = None,
        kafka_conn_id: str | None = None,
        database_conn_id: str | None = None,
        agent_secret: str | None = None,
        do_xcom_push: bool = True,
        log_pod_spec_on_failure: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(do_xcom_push=do_xcom_push, log_pod_spec_on_failure=log_pod_spec_on_failure, **kwargs)
        if rerun not in _RERUNS:
            raise ConfigurationError(f"rerun: expected one of {', '.join(_RERUNS)}, got {rerun!r}")
        self.agent = agent
        self.window = window
        self.shard = shard
        self.output_topic = topic_name(output_topic)
        self.dead_letter_topic = topic_name(dead_letter_topic)
        self.agent_params = dict(agent_params or {})
        self.agent_version = agent_version
        self.agent_source = agent_source
        self.contract = contract
        self.runner = runner
        self.rerun = rerun
        self.reprocess = reprocess
        self.agent_dry_run = dry_run
        self.accept_loss = accept_loss
        self.max_rejected = max_rejected
        self.deadline = deadline.total_seconds() if isinstance(deadline, timedelta) else deadline
        self.kafka_conn_id = kafka_conn_id
        self.database_conn_id = database_conn_id
        self.agent_secret = agent_secret
        asset = asset_topic(output_topic)
        if asset is not None and asset not in self.outlets:
            self.outlets = [*self.outlets, asset]
        self._process: AgentProcess | None = None
        self._run: AgentRun | None = None
        self._result: AgentResult | None = None
        self._message = ""
        self._stopped = False

    @classmethod
    def partial(cls, **kwargs: Any) -> OperatorPartial:
        """As for every operator; the output topic is added to what mapped tasks report as assets."""
        asset = asset_topic(kwargs.get("output_topic"))
        if asset is not None:
            kwargs["outlets"] = [*(o for o in kwargs.get("outlets") or [] if o != asset), asset]
        partial: OperatorPartial = super().partial(**kwargs)
        return partial

    # What to run

    def agent_run(self, context: Context) -> AgentRun:
        """What the agent is told, from the rendered arguments and the run; raises WindowError and ConfigurationError."""
        given = self._input()
        interval = data_interval(context) if given is None else given.window.interval
        where = f"[{interval.start}, {interval.end})" if interval else "none (since the pipeline's last window)"
        self.log.info("Interval %s", where)
        if given is not None:
            self.log.info("Shard %s of %s", given.label, given.window.topic)
        return AgentRun(
            pipeline=self.dag_id,
            stage=self.task_id,
            agent=AgentRef(
                name=self.agent,
                version=str(self.agent_version or ""),
                source=self.agent_source,
                function=self.agent if self.agent_source else "",
            ),
            params=self._params(),
            window=given.window if given else None,
            interval=None if given else interval,
            shard=given.shard if given else Shard(),
            plan=given.plan if given else "",
            output_topic=self.output_topic,
            dead_letter_topic=self.dead_letter_topic,
            run_id=str(context["run_id"]),
            rerun="redo" if self.rerun == "redo" or reprocess_wanted(context, self.reprocess) else "reuse",
            epoch=epoch(context) if self.rerun == "clear" else 0,
            accept_loss=as_bool(self.accept_loss, "accept_loss"),
            dry_run=as_bool(self.agent_dry_run, "dry_run"),
            max_rejected=str(self.max_rejected),
            deadline_seconds=_seconds(self.deadline),
            prefix=option("prefix"),
        )

    def _check_arguments(self) -> None:
        """Refuse rendered arguments that would only be used after the work is done; raises ConfigurationError."""

    def _input(self) -> StageInput | None:
        if self.window is None and self.shard is None and self.agent == "ingest":
            return None
        try:
            return stage_input(self.window, self.shard)
        except WindowError as error:
            raise WindowError(f"task {self.task_id!r}: {error}") from None

    def _params(self) -> dict[str, Any]:
        params = dict(self.agent_params)
        if self.contract is not None:
            params["contract"] = self.contract if isinstance(self.contract, str) else dict(self.contract)
        return params

    # Running it

    def execute(self, context: Context) -> Any:
        """Run the agent and return its result; raises AirflowFailException for what a retry cannot mend."""
        with airflow_errors():
            self._check_arguments()
            self._run = run = self.agent_run(context)
            where = runner(self.runner)
            self._push_facts(context, run, where)
            if where == "process":
                return self._conclude(context, self._run_process(context, run))
            self._prepare_pod(run, context)
            with self._as_pod():
                super().execute(context)
            return self._conclude(context, self._pod_result(run))

    def trigger_reentry(self, context: Context, event: dict[str, Any]) -> Any:
        """Take up again after deferral: logs, result and clean-up of the pod, then the same end as without deferral."""
        with airflow_errors():
            self._run = run = self.agent_run(context)
            self._prepare_pod(run, context)
            with self._as_pod():
                super().trigger_reentry(context, event)
            return self._conclude(context, self._pod_result(run))

    def on_kill(self) -> None:
        """Stop the agent: its process (SIGTERM, then SIGKILL), or its pod."""
        self._stopped = True
        if self._process is not None:
            self._process.stop()
        else:
            super().on_kill()

    def _run_process(self, context: Context, run: AgentRun) -> AgentResult:
        if self.deferrable or self.pod_template_file or self.pod_template_dict or self.full_pod_spec or self.image:
            self.log.info("Running as a process: the task's deferrable and pod arguments are passed over")
        root = bundle_root(context)
        environment = child_environment(
            os.environ, secrets=self._secrets(), extra=_plain(self.env_vars), python_path=[root] if root else []
        )
        if include := _include(root):
            environment.setdefault("FACTORY_INCLUDE", str(include))
        self._process = AgentProcess(run, environment, grace=option_seconds("stop_grace"))
        try:
            return self._process.run()
        finally:
            self._process.stop()
            self._process = None

    def _secrets(self) -> dict[str, str]:
        from airflow_provider_factory.hooks.database import database_environment
        from airflow_provider_factory.hooks.kafka import FactoryKafkaHook

        environment = FactoryKafkaHook(self.kafka_conn_id or option("kafka_conn_id")).environment()
        if self.database_conn_id:
            environment |= database_environment(self.database_conn_id, required=True)
        elif self.agent in BUILT_IN and (default := option("database_conn_id")):
            environment |= database_environment(default, required=False)
        return environment

    # As a pod

    def _prepare_pod(self, run: AgentRun, context: Context) -> None:
        """Give KubernetesPodOperator the agent's pod: its own arguments and the user's template stay on top of the hardened one."""
        from airflow.providers.cncf.kubernetes.pod_generator import PodGenerator

        templated = bool(self.pod_template_file or self.pod_template_dict or self.full_pod_spec)
        self.labels = {**self.labels, **pod_labels(run)}
        self.name = self.name or f"{self.dag_id}-{self.task_id}".replace("_", "-").replace(".", "-").lower()[:200]
        spec = AgentPod(
            run=self._portable(run, context),
            labels=self.labels,
            image="" if self.image or templated else option("image"),
            namespace="" if self.namespace or templated else option("namespace"),
            secret=self.agent_secret if self.agent_secret is not None else option("agent_secret"),
            container=self.base_container_name,
            own_command=bool(self.cmds or self.arguments),
        )
        pod = PodGenerator.deserialize_model_dict(agent_pod(spec, None if templated else pod_template()))
        self.full_pod_spec = PodGenerator.reconcile_pods(self.full_pod_spec, pod) if self.full_pod_spec else pod

    def _portable(self, run: AgentRun, context: Context) -> AgentRun:
        """The run with files of the DAG repository (the contract) put in, since the image doesn't hold them."""
        contract = run.params.get("contract")
        path = _find(contract, bundle_root(context)) if isinstance(contract, str) else None
        if path is None:
            return run
        import yaml

        return msgspec.structs.replace(run, params={**run.params, "contract": yaml.safe_load(path.read_text(encoding="utf-8"))})

    @contextmanager
    def _as_pod(self) -> Iterator[None]:
        """Without KubernetesPodOperator's XCom sidecar, and with the agent's own error in place of the pod's."""
        try:
            with self._without_sidecar():
                yield
        except FactoryError:
            raise
        except Exception as error:
            failed = self._said()
            if failed is not None and failed.status == "failed":
                raise agent_error(failed) from error
            raise

    @contextmanager
    def _without_sidecar(self) -> Iterator[None]:
        wanted, self.do_xcom_push = self.do_xcom_push, False
        try:
            yield
        finally:
            self.do_xcom_push = wanted

    def build_pod_request_obj(self, context: Context | None = None, **kwargs: Any) -> k8s.V1Pod:
        """See ``KubernetesPodOperator``; results travel in the termination message, so there is no XCom sidecar."""
        with self._without_sidecar():
            return super().build_pod_request_obj(context, **kwargs)

    def get_or_create_pod(self, pod_request_obj: k8s.V1Pod, context: Context) -> k8s.V1Pod:
        """The pod, with its link pushed as soon as it exists."""
        pod = super().get_or_create_pod(pod_request_obj, context)
        context["ti"].xcom_push(key=PodLink.key, value=pod_url(pod.metadata.namespace or "", pod.metadata.name or ""))
        return pod

    def _get_pod_from_task_state_store(self, context: Context) -> k8s.V1Pod | None:
        """Only a pod that does just this run is taken up again (the search by labels sees to it by the fingerprint among them)."""
        pod = super()._get_pod_from_task_state_store(context)
        if pod is None or self._run is None:
            return pod
        wanted = pod_labels(self._run)
        return pod if wanted.items() <= (pod.metadata.labels or {}).items() else None

    def cleanup(self, pod: k8s.V1Pod, remote_pod: k8s.V1Pod, *args: Any, **kwargs: Any) -> None:
        """Read the container's termination message before the pod goes: the one point that both modes pass."""
        self._message = _termination_message(remote_pod, self.base_container_name) or self._message
        super().cleanup(pod, remote_pod, *args, **kwargs)

    def _said(self) -> AgentResult | None:
        try:
            return decode_result(self._message) if self._message.lstrip().startswith("{") else None
        except FactoryError:
            return None

    def _pod_result(self, run: AgentRun) -> AgentResult:
        """What the container said at its end, else what stands in the ledger; raises AgentCrashedError for neither."""
        said = self._said()
        if said is not None and not said.truncated:
            return said
        from airflow_provider_factory.hooks.kafka import FactoryKafkaHook
        from factory_agents.kafka.ledger import read_result

        config = FactoryKafkaHook(self.kafka_conn_id or option("kafka_conn_id")).config()
        result = read_result(config, run.pipeline, run.stage, run.key, run.shard, prefix=run.prefix)
        if result is None or (said is not None and result.fingerprint != said.fingerprint):
            raise AgentCrashedError(
                f"the pod of agent {run.agent.name!r} is gone and left no result, nor does the ledger hold one; a retry resumes"
            )
        return result

    # What came out

    def _conclude(self, context: Context, result: AgentResult) -> Any:
        """The one end of every way through: a result that fits the run, reported, and returned as XCom's data."""
        run = self._run
        if self._stopped:
            raise AgentCrashedError("the task was stopped; a retry resumes")
        if result.status != "success":
            raise agent_error(result)
        if run is not None and (result.stage, result.key, result.shard) != (run.stage, run.key, run.shard):
            raise AgentCrashedError(
                f"the agent's result is of {result.stage!r} {result.key} {result.shard.key}, expected {run.stage!r} {run.key} {run.shard.key}"
            )
        self._result = result
        self.log.info("%s", summary(result))
        for note in result.notes:
            self.log.warning("%s", note)
        self._report_assets(context, result)
        return self._verdict(context, result)

    def _verdict(self, context: Context, result: AgentResult) -> Any:
        """What the task returns for a successful result."""
        return plain(result)

    def _report_assets(self, context: Context, result: AgentResult) -> None:
        if result.dry_run:
            return
        extra = event_extra(result)
        for outlet in self.outlets:
            if isinstance(outlet, Asset):
                context["outlet_events"][outlet].extra = extra

    def _push_facts(self, context: Context, run: AgentRun, where: Runner) -> None:
        ti = context["ti"]
        topic = run.window.topic if run.window else ""
        facts = {
            "agent": run.agent.name,
            "runner": where,
            "window": run.key,
            "shard": [run.shard.index, run.shard.of],
            "records": run.window.size if run.window else None,
            "input_topic": topic,
            "output_topic": run.output_topic,
            "transactional_id": run.transactional_id,
            "epoch": run.epoch,
            "rerun": run.rerun,
        }
        given = StageInput(run.window, run.shard, run.plan) if run.window else None
        context["shard_label"] = given.label if given else run.key  # type: ignore[typeddict-unknown-key]
        ti.xcom_push(key="factory_facts", value=facts)
        ti.xcom_push(key=AgentFactsLink.key, value=facts_url(ti))
        ti.xcom_push(key=InputTopicLink.key, value=topic_url(topic))
        ti.xcom_push(key=OutputTopicLink.key, value=topic_url(run.output_topic))
        ti.xcom_push(key=PodLink.key, value="")

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage:
        """The topics and the table that the run read and wrote, with counts."""
        run = self._run
        topic = run.window.topic if run and run.window else ""
        if self._result is None:
            return topic_lineage(inputs=[topic], outputs=[self.output_topic])
        url = self._secrets().get("DATABASE_URL", "") if self._result.table else ""
        return result_lineage(self._result, input_topic=topic, database_url=url)


def summary(result: AgentResult) -> str:
    """One line on what a run did."""
    counts = ", ".join(f"{name} {value:,}" for name, value in to_data(result.counts).items()) or "nothing to do"
    how = (
        " (already done: the result in the ledger stands)"
        if result.reused
        else " (resumed)"
        if result.resumed
        else " (dry run)"
        if result.dry_run
        else ""
    )
    return f"{result.stage} over {result.key}, shard {result.shard.index + 1} of {result.shard.of}: {counts} in {result.seconds:.1f} s{how}"


def _seconds(deadline: float | str | None) -> float:
    if deadline is None or deadline == "":
        return 0.0
    try:
        return float(deadline)
    except ValueError:
        raise ConfigurationError(f"deadline: expected a timedelta or seconds, got {deadline!r}") from None


def _plain(env_vars: Any) -> dict[str, str]:
    """A task's ``env_vars`` that have a value of their own (not those taken from a Secret or the pod)."""
    if isinstance(env_vars, Mapping):
        return {str(k): str(v) for k, v in env_vars.items()}
    return {v.name: v.value for v in env_vars or () if v.value is not None}


def _include(root: Path | None) -> Path | None:
    """The repository's ``include`` folder: in the bundle's root, or beside it where the bundle is the ``dags`` folder alone."""
    return next((p for p in (root / "include", root.parent / "include") if p.is_dir()), None) if root else None


def _find(path: str, root: Path | None) -> Path | None:
    include = os.environ.get("FACTORY_INCLUDE")
    places = [Path(include) if include else None, _include(root), root]
    return next((p / path for p in places if p and (p / path).is_file()), None)


def _termination_message(pod: k8s.V1Pod | None, container: str) -> str:
    statuses = (pod.status.container_statuses if pod is not None and pod.status else None) or []
    for status in statuses:
        if status.name == container and status.state and status.state.terminated:
            return status.state.terminated.message or ""
    return ""
