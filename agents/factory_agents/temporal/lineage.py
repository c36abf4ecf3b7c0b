"""OpenLineage events of a workflow's stages: with the datasets that a DAG's have, where OpenLineage's own variables say where to."""

from __future__ import annotations

import logging
import os
import queue
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from temporalio import activity

from factory_agents.lineage import NamedDataset, run_facets, topic_dataset, written_datasets
from factory_agents.protocol import AgentResult, AgentRun, Counts
from factory_agents.reports import quality_facets

if TYPE_CHECKING:
    from openlineage.client.event_v2 import RunEvent

__all__ = ["CLUSTER", "Lineage", "telling_lineage"]

log = logging.getLogger(__name__)

CLUSTER = "FACTORY_CLUSTER"
"""Alias of the Kafka cluster in datasets' names, ``main`` by default, as Airflow's ``[factory] cluster`` is."""

_WHERE = ("OPENLINEAGE_URL", "OPENLINEAGE_CONFIG", "OPENLINEAGE__TRANSPORT__")
_PRODUCER = "https://pypi.org/project/factory-agents"
_THREAD = "lineage"
_WAITING = 1000
_EXIT_SECONDS = 1.5


@dataclass(frozen=True)
class _Told:
    """What became of a run, when, as a part of which workflow's run."""

    state: str
    at: datetime
    parent: str
    run: AgentRun
    inputs: Sequence[NamedDataset]
    outputs: Sequence[NamedDataset]
    report: Mapping[str, Any] | None = None
    counts: Counts = field(default_factory=Counts)


class Lineage:
    """Sends events in a thread of its own: whoever takes them holds no agent up, and where nobody does, one warning says so."""

    def __init__(self, send: Callable[[RunEvent], object], environ: Mapping[str, str]) -> None:
        self._send = send
        self._cluster = environ.get(CLUSTER) or "main"
        self._namespace = environ.get("OPENLINEAGE_NAMESPACE") or "default"
        self._events: queue.Queue[_Told | None] = queue.Queue(_WAITING)
        self._warned = False
        logging.getLogger("urllib3.connectionpool").addFilter(_not_ours)  # one warning, and not one for each try
        self._thread = threading.Thread(target=self._work, name=_THREAD, daemon=True)
        self._thread.start()

    def began(self, run: AgentRun) -> None:
        """A slice of a stage begins: of the same run as the slice before."""
        topic = run.window.topic if run.window is not None else ""
        inputs, outputs = ([topic_dataset(name, self._cluster)] if name else [] for name in (topic, run.output_topic))
        self._tell("START", run, inputs, outputs)

    def done(self, run: AgentRun, result: AgentResult) -> None:
        """A stage is finished."""
        topic = run.window.topic if run.window is not None else ""
        inputs = [topic_dataset(topic, self._cluster)] if topic else []
        self._tell("COMPLETE", run, inputs, written_datasets(result, self._cluster), result)

    def failed(self, run: AgentRun) -> None:
        """An attempt at a stage failed."""
        self._tell("FAIL", run, [], [])

    def close(self) -> None:
        """Send what is left, for a moment."""
        try:
            self._events.put_nowait(None)
        except queue.Full:
            return
        self._thread.join(_EXIT_SECONDS)

    def _tell(
        self,
        state: str,
        run: AgentRun,
        inputs: Sequence[NamedDataset],
        outputs: Sequence[NamedDataset],
        result: AgentResult | None = None,
    ) -> None:
        report, counts = (None, Counts()) if result is None else (result.report, result.counts)
        told = _Told(state, datetime.now(UTC), str(activity.info().workflow_run_id), run, inputs, outputs, report, counts)
        try:
            self._events.put_nowait(told)
        except queue.Full:
            self._warn("too many are waiting")

    def _work(self) -> None:
        while (told := self._events.get()) is not None:
            try:
                self._send(_event(told, self._namespace))
            except Exception as error:  # of any transport
                self._warn(type(error).__name__)

    def _warn(self, why: str) -> None:
        if not self._warned:
            self._warned = True
            log.warning("lineage is not sent (%s); the work goes on without it", why)


def _not_ours(record: logging.LogRecord) -> bool:
    return record.threadName != _THREAD


def _event(told: _Told, namespace: str) -> RunEvent:
    """A shard of a stage is a run of its own, and keeps its id over slices and attempts; the workflow's run is its parent."""
    from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run, RunEvent, RunState
    from openlineage.client.facet_v2 import output_statistics_output_dataset, parent_run

    run = told.run
    own = uuid.uuid5(uuid.UUID(told.parent), f"{run.stage} {run.shard.key}")
    parent = parent_run.ParentRunFacet(parent_run.Run(told.parent), parent_run.Job(namespace, run.pipeline))

    def written(one: NamedDataset) -> OutputDataset:
        rows = output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(rowCount=one.rows)
        return OutputDataset(one.namespace, one.name, outputFacets={} if one.rows is None else {"outputStatistics": rows})

    quality = quality_facets(told.report) if told.report is not None and "checks" in told.report else {}  # of a validate agent
    return RunEvent(
        eventTime=told.at.isoformat(),
        producer=_PRODUCER,
        run=Run(str(own), facets={"parent": parent, **run_facets(told.counts)}),
        job=Job(namespace, f"{run.pipeline}.{run.stage}"),
        eventType=RunState(told.state),
        inputs=[InputDataset(one.namespace, one.name, inputFacets=quality) for one in told.inputs],
        outputs=[written(one) for one in told.outputs],
    )


@contextmanager
def telling_lineage(environ: Mapping[str, str] | None = None) -> Iterator[Lineage | None]:
    """What tells of stages while a worker works; None where nobody is to be told, or openlineage-python isn't installed."""
    environ = os.environ if environ is None else environ
    lineage = _open(environ) if _wanted(environ) else None
    try:
        yield lineage
    finally:
        if lineage is not None:
            lineage.close()


def _wanted(environ: Mapping[str, str]) -> bool:
    disabled = environ.get("OPENLINEAGE_DISABLED", "").strip().lower() == "true"
    return not disabled and any(value and name.startswith(_WHERE) for name, value in environ.items())


def _open(environ: Mapping[str, str]) -> Lineage | None:
    try:
        from openlineage.client import OpenLineageClient
    except ImportError:
        log.warning("no lineage: openlineage-python is not installed: pip install openlineage-python")
        return None
    try:
        client: Any = OpenLineageClient()
    except Exception as error:  # a setting that the client doesn't take
        log.warning("no lineage: OpenLineage's settings (OPENLINEAGE_…) can't be used: %s", type(error).__name__)
        return None
    return Lineage(client.emit, environ)
