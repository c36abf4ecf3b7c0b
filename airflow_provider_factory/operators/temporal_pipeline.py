"""Runs a pipeline on Temporal over the run's interval, and waits for its end: for those who have both orchestrators."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from airflow.sdk import Asset, BaseOperator
from airflow.sdk.configuration import conf

from airflow_provider_factory.errors import airflow_errors
from airflow_provider_factory.lineage import topic_lineage
from airflow_provider_factory.runs import as_bool, bundle_root, data_interval, optional_interval, places, traceparent
from factory_agents.errors import ConfigurationError

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage
    from airflow.sdk import Context

    from factory_agents.temporal.protocol import PipelineDone, PipelineRequest

__all__ = ["TemporalPipelineOperator"]


_CANCEL_SECONDS = 10.0


class TemporalPipelineOperator(BaseOperator):
    """Starts the workflow of the run's interval, or finds the one that runs or has run, and returns what its stages did.

    Where the server is, Temporal's own variables say (``TEMPORAL_ADDRESS`` and its like), in the environment of workers and triggerers. A
    workflow that failed is started again by a retry or a clear, and goes on where it ended; so is one that was found running, and is
    cancelled then. With ``redo``, one that is found running is waited for, and then the window is done again. Assets in ``outlets`` get an
    event at its end, with the workflow's id, the window and the counts. Where Airflow writes traces, the workflow is a part of the task's
    span. It needs the extra ``temporal``.

    :param pipeline: the pipeline's file, YAML or JSON: under ``FACTORY_INCLUDE``, in the repository's ``include`` folder, or in it.
    :param no_interval: what a run without a data interval does: ``error``, or ``since_last``, which reads from the pipeline's last window
        to the end, under the run's id.
    :param redo: do the window again, though it was done. (templated)
    :param profile: of the file that ``TEMPORAL_CONFIG_FILE`` names; by default its default one. (templated)
    :param deferrable: wait in the triggerer; by default ``[operators] default_deferrable``.

    Example::

        TemporalPipelineOperator(task_id="clicks", pipeline="pipelines/clicks.yaml", deferrable=True)
    """

    template_fields: Sequence[str] = ("redo", "profile")
    ui_color = "#e0e7ff"

    def __init__(
        self,
        *,
        pipeline: str,
        no_interval: Literal["error", "since_last"] = "error",
        redo: bool | str = False,
        profile: str = "",
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if no_interval not in ("error", "since_last"):
            raise ConfigurationError(f"no_interval: expected error or since_last, got {no_interval!r}")
        self.pipeline = pipeline
        self.no_interval = no_interval
        self.redo = redo
        self.profile = profile
        self.deferrable = deferrable
        self._workflow_id = ""
        self._first_run = ""
        self._before = False
        self._done: PipelineDone | None = None

    def execute(self, context: Context) -> Any:  # noqa: RET503  # defer never returns
        """Start the workflow and wait; raises AirflowFailException for what a retry cannot mend."""
        from airflow_provider_factory.triggers.temporal_pipeline import TemporalPipelineTrigger

        with airflow_errors():
            _require()
            request = self._request(context)
            done = asyncio.run(self._started(request, traceparent(context)))
            self._tell(context, request)
        if done is not None:
            return self._finish(context, done)
        self.defer(
            trigger=TemporalPipelineTrigger(
                workflow_id=self._workflow_id, first_run=self._first_run, before=self._before, profile=self.profile
            ),
            method_name="execute_complete",
            timeout=self.execution_timeout,
        )

    def execute_complete(self, context: Context, event: Mapping[str, Any]) -> Any:
        """What the trigger saw: the result, or an error with its reason."""
        if event.get("again"):  # the workflow that this task found has ended: cancelled by a clear, or before the window is redone
            self.log.info("%s; it is started again", event["reason"])
            return self.execute(context)
        from factory_agents.temporal.client import PipelineFailedError
        from factory_agents.temporal.protocol import PipelineDone

        with airflow_errors():
            if event["status"] != "done":
                raise PipelineFailedError(str(event["reason"]), retriable=bool(event.get("retriable")))
            return self._finish(context, msgspec.convert(event["result"], PipelineDone))

    def on_kill(self) -> None:
        """Cancel the workflow that this task waits for in its worker."""
        from factory_agents.temporal.client import cancel, connect

        async def cancelled() -> None:
            await cancel(await connect(self.profile), self._workflow_id, first_run=self._first_run, wait=False)

        if self._workflow_id:  # in a thread: this one may be in an event loop, from which a signal called us
            thread = threading.Thread(target=asyncio.run, args=(cancelled(),), daemon=True)
            thread.start()
            thread.join(_CANCEL_SECONDS)

    def _request(self, context: Context) -> PipelineRequest:
        from factory_agents.temporal.pipelines import read_pipeline
        from factory_agents.temporal.protocol import PipelineRequest

        found = next((place / self.pipeline for place in places(bundle_root(context)) if (place / self.pipeline).is_file()), self.pipeline)
        spec = read_pipeline(str(found))
        interval = optional_interval(context) if self.no_interval == "since_last" else data_interval(context)
        key = "" if interval is not None else str(context["run_id"])
        return PipelineRequest(spec, interval, key, "redo" if as_bool(self.redo, "redo") else "reuse")

    async def _started(self, request: PipelineRequest, parent: str = "") -> PipelineDone | None:
        from factory_agents.telemetry import tracing
        from factory_agents.temporal.client import PipelineFailedError, RunningError, connect, handle_of, outcome, start
        from factory_agents.temporal.traces import within

        with tracing("airflow", None if parent else {}) as traces:
            client = await connect(self.profile, traces=traces)
            with within(client, parent):
                try:
                    handle, self._before = await start(client, request, again=True), False
                except RunningError:
                    handle, self._before = handle_of(client, request.workflow_id), True
                    self.log.info("Workflow %s is running; the window is done again after its end", handle.id)
        self._workflow_id, self._first_run = handle.id, handle.first_execution_run_id or ""
        if self.deferrable:
            return None
        try:
            done = await outcome(handle)
            if not self._before:
                return done
        except PipelineFailedError as error:
            if not self._before and (self._first_run or not error.cancelled):
                raise
            self.log.info("%s; it is started again", error)
        return await self._started(request, parent)

    def _tell(self, context: Context, request: PipelineRequest) -> None:
        self.log.info("Workflow %s", self._workflow_id)
        context["ti"].xcom_push(key="run_info", value={"workflow": self._workflow_id, "window": request.window})

    def _finish(self, context: Context, done: PipelineDone) -> dict[str, Any]:
        self._done = done
        counts = {stage.stage: msgspec.to_builtins(stage.counts) for stage in done.stages}
        for stage in done.stages:
            self.log.info("%s: %s", stage.stage, counts[stage.stage])
        for outlet in self.outlets:
            if isinstance(outlet, Asset):
                context["outlet_events"][outlet].extra = {
                    "workflow": f"{done.pipeline}/{done.window}",
                    "window": done.window,
                    "stages": counts,
                }
        result: dict[str, Any] = msgspec.to_builtins(done)
        return result

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any]:
        """The topics that its stages wrote, as outputs."""
        return topic_lineage(outputs=[stage.topic for stage in self._done.stages if stage.topic] if self._done is not None else [])


def _require() -> None:
    try:
        import temporalio  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigurationError("a Temporal pipeline needs Temporal's SDK: pip install 'airflow-provider-factory[temporal]'") from error
