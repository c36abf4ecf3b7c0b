"""Runs an agent over a window as a task: a pod, or a process beside the task, with one result either way."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import msgspec
from airflow.sdk import Asset
from airflow.sdk.definitions._internal.mixins import ResolveMixin
from airflow.sdk.exceptions import AirflowSkipException

from airflow_provider_factory.assets import event_extra, result_partition, stage_assets, topic_argument, topic_name
from airflow_provider_factory.codecs import topic_codec
from airflow_provider_factory.errors import airflow_errors
from airflow_provider_factory.lineage import result_lineage, topic_lineage
from airflow_provider_factory.links import AgentRunLink, InputTopicLink, OutputTopicLink, PodLink, push_links, run_info_url, topic_url
from airflow_provider_factory.operators.agent_pod import AgentPodOperator
from airflow_provider_factory.outside import from_outside, names_from_outside
from airflow_provider_factory.runners.base import Access, AgentRunner
from airflow_provider_factory.runners.kubernetes.runner import PodRunner
from airflow_provider_factory.runners.process import ProcessRunner
from airflow_provider_factory.runs import (
    as_bool,
    bundle_root,
    data_interval,
    instance,
    mapped,
    order,
    places,
    reprocess_wanted,
    traceparent,
)
from airflow_provider_factory.settings import Runner, option, runner
from factory_agents.errors import AgentCrashedError, ConfigurationError, DryRunError, FactoryError, WindowError
from factory_agents.protocol import AgentRef, AgentResult, AgentRun, Shard, plain
from factory_agents.runners.results import agent_error, check_result, shown_notes, shown_reasons
from factory_agents.stage_plan import StageInput, stage_input

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage
    from airflow.sdk import BaseOperatorLink, Context
    from airflow.sdk.definitions.mappedoperator import OperatorPartial


__all__ = ["BUILT_IN", "KafkaAgentOperator", "Rerun"]

Rerun = Literal["clear", "reuse", "redo", "ask_again"]

BUILT_IN = ("ingest", "replicate", "enrich", "infer", "validate", "publish")
"""Agents that come with factory_agents; they are given the default database connection where it exists."""

WAREHOUSE_CONNECTIONS = {"bigquery": "google_cloud_default", "snowflake": "snowflake_default", "iceberg": "iceberg_default"}
"""What ``publish`` with these sinks is given where it exists: the official provider's default."""

_RERUNS = ("clear", "reuse", "redo", "ask_again")


class KafkaAgentOperator(AgentPodOperator):
    """Runs an agent over a window, exactly once per fingerprint, and returns what it did: XCom is the ``AgentResult``, manifest included.

    It runs as a pod or as a process, as ``runner`` or, on the worker, ``[factory] runner`` says. A retry resumes; a clear runs the work
    again; an unchanged run over the same window returns the result in the ledger. It takes every argument of KubernetesPodOperator; as a
    process it uses ``env_vars`` and ignores the other pod arguments.

    :param agent: a built-in (ingest, enrich, infer, validate, publish), ``module:function``, or a name for an image with its own command.
        (templated)
    :param window: what to read: ``.output`` of a WindowOperator (whole, or one shard by ``expand``), or of the stage before, mapped or not.
        Without it the agent (``ingest``) reads no topic: its window is the data interval. (templated)
    :param shard: ``(index, of)`` or a planned shard: the part of ``window`` to run, for ``.partial(window=…).expand(shard=…)``. (templated)
    :param output_topic: where it writes: a name, or an asset ``kafka://<cluster>/<topic>``; reported as an asset of the task. (templated)
    :param input_codec: what reads the window's records: ``json``, ``avro``, ``avro?version=3``, your own as ``module:Class``, or a mapping
        with ``name`` and its options; by default what they were written with, or what the topics file declares.
    :param output_codec: what writes to ``output_topic``, likewise; by default what the topics file declares.
    :param dead_letter_topic: where rejected events go; by default ``<output_topic>.dead``. (templated)
    :param agent_params: the agent's parameters, JSON-able. (templated)
    :param agent_version: part of the fingerprint; by default the agent's own. (templated)
    :param agent_source: a function's source that travels with the run (``@task.kafka_agent`` sets it); ``agent`` is its name then.
    :param contract: path of a data contract, or the contract itself; becomes the agent's parameter ``contract``. (templated)
    :param runner: ``process`` or ``kubernetes``; by default ``[factory] runner``. (templated)
    :param rerun: ``clear``: finished work is done again when the task was cleared; ``reuse``: never; ``redo``: always;
        ``ask_again``: always, and a model's logged answers don't count.
    :param reprocess: do finished work again; by default the DAG's param ``reprocess``, if it has one. (templated)
    :param dry_run: write nothing; result and log say what would be written or rejected, and why. Stages after it are skipped. (templated)
    :param accept_loss: continue where records are gone, and record the loss. (templated)
    :param max_rejected: fail when more events than this are rejected: a number, or a share like ``5 %``. (templated)
    :param max_lag_downstream: ``ingest`` waits while a consumer group of ``output_topic`` is more records behind than this, until it is
        half of it; 0: never.
    :param downstream_group: the one group that ``max_lag_downstream`` looks at; by default all of the topic.
    :param deadline: fail if the window takes longer; what was committed stays, and a retry resumes. (templated)
    :param kafka_conn_id: Airflow connection of the cluster; by default ``[factory] kafka_conn_id``. (templated)
    :param database_conn_id: Airflow connection given as DATABASE_URL, or for those sinks of type google_cloud_platform, snowflake or
        iceberg. Without it built-in agents get ``[factory] database_conn_id`` if it exists, with ``sink: bigquery``, ``snowflake`` or
        ``iceberg`` ``google_cloud_default``, ``snowflake_default`` or ``iceberg_default``. (templated)
    :param model_conn_id: Airflow connection of a model (type pydanticai, or any with a key as its password): its key, address and model
        become the agent's FACTORY_MODEL_API_KEY, FACTORY_MODEL_ENDPOINT and FACTORY_MODEL. (templated)
    :param registry_conn_id: Airflow connection of a schema registry (type schema_registry), given as SCHEMA_REGISTRY_URL and
        SCHEMA_REGISTRY_CONFIG. Without it agents whose topics have a codec get ``[factory] registry_conn_id`` if it exists. (templated)
    :param agent_secret: and ``credentials``: see AgentPodOperator.

    Example::

        window = WindowOperator(task_id="window", topic="raw_events", shards=4)
        enrich = KafkaAgentOperator.partial(task_id="enrich", agent="enrich", output_topic="enriched_events")
        enrich.expand(window=window.output)
    """

    template_fields: Sequence[str] = (
        *AgentPodOperator.template_fields,
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
        "model_conn_id",
        "registry_conn_id",
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {
        **AgentPodOperator.template_fields_renderers,
        "agent_params": "json",
        "window": "json",
    }
    operator_extra_links: Collection[BaseOperatorLink] = (AgentRunLink(), InputTopicLink(), OutputTopicLink(), PodLink())
    ui_color = "#d9f0e3"

    def __init__(
        self,
        *,
        agent: str,
        window: Any = None,
        shard: Any = None,
        output_topic: str | Asset | None = None,
        input_codec: str | Mapping[str, Any] | None = None,
        output_codec: str | Mapping[str, Any] | None = None,
        dead_letter_topic: str | Asset | None = None,
        agent_params: Mapping[str, Any] | str | ResolveMixin | None = None,
        agent_version: str = "",
        agent_source: str = "",
        contract: str | Mapping[str, Any] | None = None,
        runner: Runner | str | None = None,
        rerun: Rerun = "clear",
        reprocess: bool | str | None = None,
        dry_run: bool | str = False,
        agent_dry_run: bool | str | None = None,
        accept_loss: bool | str = False,
        max_rejected: str | int = "50 %",
        max_lag_downstream: int = 0,
        downstream_group: str = "",
        deadline: timedelta | float | str | None = None,
        kafka_conn_id: str | None = None,
        database_conn_id: str | None = None,
        model_conn_id: str | None = None,
        registry_conn_id: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if rerun not in _RERUNS:
            raise ConfigurationError(f"rerun: expected one of {', '.join(_RERUNS)}, got {rerun!r}")
        written = topic_argument(output_topic)
        if written and isinstance(written, str) and written == topic_argument(dead_letter_topic):
            raise ConfigurationError(f"dead_letter_topic: {written!r} is the output topic too: rejected events would be read as good ones")
        self.agent = agent
        self.window = window
        self.shard = shard
        self.output_topic = topic_argument(output_topic)
        self.dead_letter_topic = topic_argument(dead_letter_topic)
        self.input_codec = input_codec
        self.output_codec = output_codec
        self.agent_params = dict(agent_params) if isinstance(agent_params, Mapping) else agent_params or {}
        self.agent_version = agent_version
        self.agent_source = agent_source
        self.contract = contract
        self._written = {"agent": agent, "agent_params": agent_params, "contract": contract}
        self.runner = runner
        self.rerun = rerun
        self.reprocess = reprocess
        self.agent_dry_run = dry_run if agent_dry_run is None else agent_dry_run  # ``dry_run`` is a method of every operator
        self.accept_loss = accept_loss
        self.max_rejected = max_rejected
        self.max_lag_downstream = max_lag_downstream
        self.downstream_group = downstream_group
        self.deadline = deadline.total_seconds() if isinstance(deadline, timedelta) else deadline
        self.kafka_conn_id = kafka_conn_id
        self.database_conn_id = database_conn_id
        self.model_conn_id = model_conn_id
        self.registry_conn_id = registry_conn_id
        own = stage_assets({"agent": agent, "agent_params": agent_params, "output_topic": output_topic})
        self.known_links: dict[str, str] = {}
        self.outlets = [*self.outlets, *(asset for asset in own if asset not in self.outlets)]
        self._runner: AgentRunner | None = None
        self._run: AgentRun | None = None
        self._result: AgentResult | None = None
        self._stopped = False

    @classmethod
    def partial(cls, **kwargs: Any) -> OperatorPartial:
        """As for every operator; mapped tasks are labelled by their shards, and report the output topic as an asset."""
        if own := stage_assets(kwargs):
            kwargs["outlets"] = [*(o for o in kwargs.get("outlets") or [] if o not in own), *own]
        kwargs.setdefault("map_index_template", "{{ shard_label }}")
        if "dry_run" in kwargs:  # Airflow looks for template fields by their own names here
            kwargs["agent_dry_run"] = kwargs.pop("dry_run")
        partial: OperatorPartial = super().partial(**kwargs)
        return partial

    # What to run

    def agent_run(self, context: Context) -> AgentRun:
        """What the agent is told, from the rendered arguments and the run; raises WindowError and ConfigurationError."""
        if ":" in self.agent and from_outside(self._written["agent"]):
            raise ConfigurationError(
                f"agent {self.agent!r}: it comes from a parameter of the run, so it may only be a built-in one; name others in the DAG"
            )
        given = self._input()
        interval = data_interval(context) if given is None else given.window.interval
        where = f"[{interval.start}, {interval.end})" if interval else "none (since the pipeline's last window)"
        self.log.info("Interval %s", where)
        if given is not None:
            self.log.info("Shard %s of %s", given.label, given.window.topic)
        root = bundle_root(context)
        window = given.window if given is not None else None
        if window is not None and (self.input_codec is not None or window.codec is None):
            window = msgspec.structs.replace(window, codec=topic_codec(self.input_codec, "input_codec", window.topic, root))
        return AgentRun(
            pipeline=self.dag_id,
            stage=self.task_id,
            agent=AgentRef(
                name=self.agent,
                version=str(self.agent_version or ""),
                source=self.agent_source,
                function=self.agent if self.agent_source else "",
            ),
            params=(params := self._params()),
            untrusted=self._untrusted(params),
            window=window,
            interval=None if given else interval,
            shard=given.shard if given else Shard(),
            plan=given.plan if given else "",
            origin=given.window.origin if given else "",
            instance=instance(context, given),
            mapped=mapped(context),
            output_topic=(output := topic_name(self.output_topic)),
            output_codec=topic_codec(self.output_codec, "output_codec", output, root),
            dead_letter_topic=topic_name(self.dead_letter_topic),
            run_id=str(context["run_id"]),
            rerun=self._rerun(context),
            order=order(context) if self.rerun == "clear" else None,
            accept_loss=as_bool(self.accept_loss, "accept_loss"),
            dry_run=as_bool(self.agent_dry_run, "dry_run"),
            max_rejected=str(self.max_rejected),
            max_lag_downstream=self.max_lag_downstream,
            downstream_group=self.downstream_group,
            deadline_seconds=_seconds(self.deadline),
            prefix=option("prefix"),
            keep_windows=option("keep_windows"),
            traceparent=traceparent(context),
        )

    def _rerun(self, context: Context) -> Literal["reuse", "redo", "ask_again"]:
        if self.rerun == "ask_again":
            return "ask_again"
        return "redo" if self.rerun == "redo" or reprocess_wanted(context, self.reprocess) else "reuse"

    def _check_arguments(self) -> None:
        """Refuse rendered arguments that would only be used after the work is done; raises ConfigurationError."""

    def _input(self) -> StageInput | None:
        if self.window is None and self.shard is None and self.agent in ("ingest", "replicate"):
            return None
        try:
            return stage_input(self.window, self.shard)
        except DryRunError as error:
            if as_bool(self.agent_dry_run, "dry_run"):
                raise AirflowSkipException("dry run: the stage before wrote nothing that this one could read") from None
            raise WindowError(f"task {self.task_id!r}: {error}") from None
        except WindowError as error:
            raise WindowError(f"task {self.task_id!r}: {error}") from None

    def _params(self) -> dict[str, Any]:
        params = _mapping(self.agent_params, "agent_params")
        if self.contract is not None:
            params["contract"] = self.contract if isinstance(self.contract, str) else _mapping(self.contract, "contract")
        return params

    def _untrusted(self, params: Mapping[str, Any]) -> tuple[str, ...]:
        """The parameters that whoever started the run decided."""
        names = names_from_outside(self._written["agent_params"], params)
        if self.contract is not None:
            names = names - {"contract"} | names_from_outside({"contract": self._written["contract"]}, params)
        return tuple(sorted(names))

    # Running it

    def execute(self, context: Context) -> Any:
        """Run the agent and return its result; raises AirflowFailException for what a retry cannot mend."""
        with airflow_errors(), self._word_of_failure():
            self._check_arguments()
            self._run = run = self.agent_run(context)
            where = runner(self.runner)
            self._push_run_info(context, run, where)
            if where == "kubernetes" or run.agent.name in BUILT_IN:
                self._run = run = self._portable(run, context)
            self._runner = self._agent_runner(context, run, where)
            return self._conclude(context, self._runner.run(context))

    def trigger_reentry(self, context: Context, event: dict[str, Any]) -> Any:
        """Take up again after deferral: logs, result and clean-up of the pod, then the same end as without deferral."""
        if self._run is not None:  # not deferred: the pod had ended before; ``execute`` concludes
            return super().trigger_reentry(context, event)
        with airflow_errors(), self._word_of_failure():
            self._run = run = self._portable(self.agent_run(context), context)
            context["shard_label"] = _label(run)  # type: ignore[typeddict-unknown-key]
            self._push_links(context, run)
            self._runner = pod = PodRunner(run, self._access, self)
            return self._conclude(context, pod.resume(context, event))

    @contextmanager
    def _word_of_failure(self) -> Iterator[None]:
        """Word in the ledger of a failure that the agent could not tell of itself: it was killed, or never started."""
        began = time.time()
        try:
            yield
        except AgentCrashedError as error:
            if (run := self._run) is not None and not run.dry_run:
                from factory_agents.kafka.failures import leave_failure

                with suppress(FactoryError):  # the connection itself may be what is wrong
                    name = run.agent.name.rpartition(":")[2]
                    config = self._access.ledger()
                    leave_failure(config, run.work, error=error, began=began, agent=name, run_id=run.run_id, prefix=run.prefix)
            raise

    def on_kill(self) -> None:
        """Stop the agent: its process (SIGTERM, then SIGKILL), or its pod."""
        self._stopped = True
        if self._runner is not None:
            self._runner.stop()
        else:
            super().on_kill()

    def _agent_runner(self, context: Context, run: AgentRun, where: Runner) -> AgentRunner:
        if where == "kubernetes":
            return PodRunner(run, self._access, self)
        if self.deferrable or self.pod_template_file or self.pod_template_dict or self.full_pod_spec or self.image:
            self.log.info("Running as a process: deferrable and the pod arguments are ignored")
        return ProcessRunner(run, self._access, _plain(self.env_vars))

    @property
    def _access(self) -> Access:
        default = "" if self.agent not in BUILT_IN else WAREHOUSE_CONNECTIONS.get(self._sink) or option("database_conn_id")
        return Access(
            self.kafka_conn_id or option("kafka_conn_id"),
            self.database_conn_id or "",
            default,
            self.model_conn_id or "",
            self.registry_conn_id or "",
            option("registry_conn_id") if self._has_codec else "",
        )

    @property
    def _has_codec(self) -> bool:
        """Whether a topic of the run has another codec than JSON."""
        run = self._run
        return run is not None and (run.output_codec is not None or (run.window is not None and run.window.codec is not None))

    @property
    def _sink(self) -> str:
        """Where ``publish`` writes to."""
        return str(self._params().get("sink") or "postgres") if self.agent == "publish" else ""

    def _portable(self, run: AgentRun, context: Context) -> AgentRun:
        """The run with the texts of its contract's, prompt's and schema's files put in: an image needn't hold them.

        A contract that is found nowhere here is left to the image by its name, unless that came from whoever started the run.
        """
        from factory_agents.contracts import is_text, load_contract, pack_contract, split_name, untrusted_contract

        if run.agent.name == "infer" and not run.agent.source:
            from factory_agents.inference.params import pack_files

            run = msgspec.structs.replace(run, params=pack_files(run.params, run.untrusted, places(bundle_root(context))))
        given = run.params.get("contract")
        if not given:
            return run
        folders = places(bundle_root(context))
        if "contract" in run.untrusted:
            contract = untrusted_contract(given, folders)
        elif isinstance(given, str) and not is_text(given):
            file, schema = split_name(given)
            path = next((place / file for place in folders if (place / file).is_file()), None)
            if path is None:
                return run
            contract = load_contract(f"{path}#{schema}" if schema else path, name=file)
        else:
            contract = load_contract(given, folder=folders[0] if folders else None)
        return msgspec.structs.replace(run, params={**run.params, "contract": pack_contract(contract)})

    # What came out

    def _conclude(self, context: Context, result: AgentResult) -> Any:
        """The one end of every way through: a result that fits the run, reported, and returned as XCom's data."""
        run = self._run
        if self._stopped:
            raise AgentCrashedError("the task was stopped; a retry resumes")
        if run is not None:
            check_result(result, run)
        for line in shown_reasons(result):
            self.log.info("rejected: %s", line)
        if result.status != "success":
            raise agent_error(result)
        if run is not None:  # an image with a program of its own need not know of these
            result = msgspec.structs.replace(result, origin=run.origin, instance=run.instance, mapped=run.mapped)
        self._result = result
        self.log.info("%s", summary(result))
        for note in shown_notes(result):
            self.log.warning("%s", note)
        self._report_assets(context, result)
        return self._verdict(context, result)

    def _verdict(self, context: Context, result: AgentResult) -> Any:
        """What the task returns for a successful result."""
        return plain(result)

    def _report_assets(self, context: Context, result: AgentResult) -> None:
        if result.dry_run:
            return
        extra, partition = event_extra(result), result_partition(result)
        for outlet in self.outlets:
            if isinstance(outlet, Asset):
                event = context["outlet_events"][outlet]
                event.extra = extra
                if partition is not None:
                    event.add_partitions(partition)

    def _push_run_info(self, context: Context, run: AgentRun, where: Runner) -> None:
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
            "origin": run.origin,
            "instance": run.instance,
            "rerun": run.rerun,
        }
        context["shard_label"] = _label(run)  # type: ignore[typeddict-unknown-key]
        ti.xcom_push(key="run_info", value=facts)
        self._push_links(context, run)

    def _push_links(self, context: Context, run: AgentRun) -> None:
        ti, topic = context["ti"], run.window.topic if run.window else ""
        links = {InputTopicLink.key: topic_url(topic), OutputTopicLink.key: topic_url(run.output_topic)}
        push_links(self, ti, {AgentRunLink.key: run_info_url(ti), **links})

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any] | None:
        """The topics and the table that the run read and wrote, with counts."""
        run = self._run
        topic = run.window.topic if run and run.window else ""
        if self._result is None:
            return topic_lineage(inputs=[topic], outputs=[self.output_topic])
        return result_lineage(self._result, input_topic=topic)


def summary(result: AgentResult) -> str:
    """One line on what a run did."""
    counts = ", ".join(f"{name} {value:,}" for name, value in plain(result.counts).items()) or "nothing to do"
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


def _label(run: AgentRun) -> str:
    """What a mapped task is called in the UI: its shard, partitions and records, or its interval."""
    return StageInput(run.window, run.shard, run.plan).label if run.window else run.key


def _mapping(value: Any, name: str) -> dict[str, Any]:
    """A rendered argument as the mapping that it has to be: an object, or JSON where a template made text of it."""
    if isinstance(value, str):
        with suppress(ValueError, RecursionError):
            value = json.loads(value)
    if not isinstance(value, Mapping):
        raise ConfigurationError(f"{name}: expected a mapping, or JSON of one, got {value!r:.80}")
    return dict(value)


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
