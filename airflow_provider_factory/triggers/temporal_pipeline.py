"""Waits for a workflow of Temporal to end; its result, or why it failed, is in the event."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
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

    :param workflow_id: ``pipeline/window``.
    :param profile: of the file that ``TEMPORAL_CONFIG_FILE`` names, in the triggerer's environment; empty: the default one.
    """

    def __init__(self, *, workflow_id: str, profile: str = "") -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow's has no types
        self.workflow_id = workflow_id
        self.profile = profile

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """See ``BaseTrigger.serialize``."""
        path = f"{type(self).__module__}.{type(self).__qualname__}"
        return path, {"workflow_id": self.workflow_id, "profile": self.profile}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """See ``BaseTrigger.run``; one event."""
        yield TriggerEvent(await self._ended())

    async def on_kill(self) -> None:
        """Cancel the workflow: its agents commit what they have in hand, and end."""
        from factory_agents.temporal.client import cancel

        await cancel(await self._client(), self.workflow_id, wait=False)

    async def _ended(self) -> dict[str, Any]:
        from factory_agents.temporal.client import handle_of, outcome

        while True:
            try:
                done = await outcome(handle_of(await self._client(), self.workflow_id))
            except UnavailableError as error:
                log.info("%s", error)
                await asyncio.sleep(_PATIENCE)
            except FactoryError as error:
                return {"status": "failed", "reason": str(error), "retriable": error.retriable}
            else:
                return {"status": "done", "result": msgspec.to_builtins(done)}

    async def _client(self) -> Client:
        from factory_agents.temporal.client import connect

        return await connect(self.profile)
