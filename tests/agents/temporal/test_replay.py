"""Histories of workflows that ran with a release are replayed by this one: a change that breaks running workflows fails here.

A new shape of a workflow gets a new history beside the old ones; to write one down:
``python -m tests.agents.temporal.test_replay NAME ID [RUN]``.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from temporalio import workflow
from temporalio.client import WorkflowHistory
from temporalio.worker import Replayer, UnsandboxedWorkflowRunner
from temporalio.workflow import NondeterminismError

from factory_agents.temporal.client import connect
from factory_agents.temporal.collector import FactoryCollector
from factory_agents.temporal.converter import data_converter
from factory_agents.temporal.protocol import PipelineDone, PipelineRequest
from factory_agents.temporal.windows import FactoryBackfill, FactorySchedule
from factory_agents.temporal.workflow import FactoryPipeline

WORKFLOWS = [FactoryPipeline, FactoryBackfill, FactorySchedule, FactoryCollector]
HISTORIES = sorted((Path(__file__).parent / "histories").glob("*.json"))


def read(path: Path) -> WorkflowHistory:
    return WorkflowHistory.from_json(path.stem, path.read_text())


@pytest.mark.parametrize("path", HISTORIES, ids=lambda path: path.stem)
def test_what_ran_before_goes_on(path: Path) -> None:
    replayer = Replayer(workflows=WORKFLOWS, data_converter=data_converter)
    asyncio.run(replayer.replay_workflow(read(path)))


def test_there_is_one_of_each_workflow() -> None:
    kinds = {read(path).events[0].workflow_execution_started_event_attributes.workflow_type.name for path in HISTORIES}
    assert kinds == {kind.__name__ for kind in WORKFLOWS}


@workflow.defn(name="FactoryPipeline")
class Changed(FactoryPipeline):
    """A workflow that somebody changed and gave no version."""

    @workflow.init
    def __init__(self, request: PipelineRequest) -> None:
        super().__init__(request)

    @workflow.run
    async def run(self, request: PipelineRequest) -> PipelineDone:
        await workflow.sleep(1)
        return await super().run(request)


def test_a_workflow_that_was_changed_is_found() -> None:
    changed = Replayer(workflows=[Changed], data_converter=data_converter, workflow_runner=UnsandboxedWorkflowRunner())
    path = next(path for path in HISTORIES if path.stem.startswith("pipeline"))
    with pytest.raises(NondeterminismError):
        asyncio.run(changed.replay_workflow(read(path)))


async def _record(name: str, id_: str, run_id: str | None = None) -> None:
    client = await connect()
    history = json.loads((await client.get_workflow_handle(id_, run_id=run_id).fetch_history()).to_json())
    (Path(__file__).parent / "histories" / f"{name}.json").write_text(json.dumps(_of_anywhere(history), indent=1) + "\n")


def _of_anywhere(value: Any) -> Any:
    """Without what tells of the machine that it ran on."""
    if isinstance(value, list):
        return [_of_anywhere(each) for each in value]
    if isinstance(value, dict):
        kept = {name: _of_anywhere(each) for name, each in value.items() if name != "stackTrace"}
        return kept | ({"identity": "worker"} if "identity" in kept else {})
    return value


if __name__ == "__main__":
    asyncio.run(_record(*sys.argv[1:4]))
