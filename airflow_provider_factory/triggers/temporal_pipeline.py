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
    A cleared task may find it before it has ended, or before it is cancelled: ``again`` in the event says that a workflow which the task
    had not started was cancelled.

    :param workflow_id: ``pipeline/window``.
    :param first_run: the first run's id of the workflow that the task started; empty where it found one.
    :param profile: of the file that ``TEMPORAL_CONFIG_FILE`` names, in the triggerer's environment; empty: the default one.
    """

    def __init__(self, *, workflow_id: str, first_run: str = "", profile: str = "") -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow's has no types
        self.workflow_id = workflow_id
        self.first_run = first_run
        self.profile = profile

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """See ``BaseTrigger.serialize``."""
        path = f"{type(self).__module__}.{type(self).__qualname__}"
        return path, {"workflow_id": self.workflow_id, "first_run": self.first_run, "profile": self.profile}

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
                again = not self.first_run and isinstance(error, PipelineFailedError) and error.cancelled
                return {"status": "failed", "reason": str(error), "retriable": error.retriable, "again": again}
            else:
                return {"status": "done", "result": msgspec.to_builtins(done)}

    async def _client(self) -> Client:
        from factory_agents.temporal.client import connect

        return await connect(self.profile)
