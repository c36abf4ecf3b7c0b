"""Waits for a workflow of Temporal to end; its result, or why it failed, is in the event."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec
from airflow.triggers.base import BaseTrigger, TriggerEvent

from factory_agents.errors import FactoryError, UnavailableError

if TYPE_CHECKING:
    from temporalio.client import Client

__all__ = ["TemporalPipelineTrigger"]

log = logging.getLogger(__name__)

_PATIENCE = 5.0


class TemporalPipelineTrigger(BaseTrigger):
    """Fires one event: ``done`` with the pipeline's result, or ``failed`` with the reason and whether a retry may help.

    It waits for a server that doesn't answer. From Airflow 3.3 on, the workflow of a task that is marked or cleared meanwhile is cancelled.
    A cleared task may find it before it has ended, or before it is cancelled: ``again`` in the event says that the task is to start its
    own, as a workflow which it had not started was cancelled, or (``before``) has ended in whatever way.

    :param workflow_id: ``pipeline/window``.
    :param first_run: the first run's id of the workflow that the task started; empty where it found one.
    :param before: whether the task only waits for it before it does the window again.
    :param profile: of the file that ``TEMPORAL_CONFIG_FILE`` names, in the triggerer's environment; empty: the default one.
    """

    def __init__(self, *, workflow_id: str, first_run: str = "", before: bool = False, profile: str = "") -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow's has no types
        self.workflow_id = workflow_id
        self.first_run = first_run
        self.before = before
        self.profile = profile

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """See ``BaseTrigger.serialize``."""
        path = f"{type(self).__module__}.{type(self).__qualname__}"
        return path, {"workflow_id": self.workflow_id, "first_run": self.first_run, "before": self.before, "profile": self.profile}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """See ``BaseTrigger.run``; one event."""
        yield TriggerEvent(await self._ended())

    async def on_kill(self) -> None:
        """Cancel the workflow: its agents commit what they have in hand, and end."""
        from factory_agents.temporal.client import NotFoundError, cancel

        with suppress(NotFoundError):  # it has ended, and another may run
            await cancel(await self._client(), self.workflow_id, first_run=self.first_run, wait=False)

    async def _ended(self) -> dict[str, Any]:
        from factory_agents.temporal.client import PipelineFailedError, handle_of, outcome

        while True:
            try:
                done = await outcome(handle_of(await self._client(), self.workflow_id))
            except UnavailableError as error:
                log.info("%s", error)
                await asyncio.sleep(_PATIENCE)
            except FactoryError as error:
                again = isinstance(error, PipelineFailedError) and (self.before or (not self.first_run and error.cancelled))
                return {"status": "failed", "reason": str(error), "retriable": error.retriable, "again": again}
            else:
                if self.before:
                    return {"status": "done", "reason": f"workflow {self.workflow_id} has ended", "again": True}
                return {"status": "done", "result": msgspec.to_builtins(done)}

    async def _client(self) -> Client:
        from factory_agents.temporal.client import connect

        return await connect(self.profile)
