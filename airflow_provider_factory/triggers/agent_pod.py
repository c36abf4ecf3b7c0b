"""Waits for an agent's pod: its log while it runs, and its last word in the event, so that a pod may go before the task wakes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from functools import cached_property
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import TriggerEvent

from airflow_provider_factory.runners.kubernetes.failure import pod_failure, termination_message
from airflow_provider_factory.runners.kubernetes.logs import AsyncAgentPodManager, outlast
from airflow_provider_factory.runners.kubernetes.private import OpenPodTrigger

if TYPE_CHECKING:
    from kubernetes.client import models as k8s

__all__ = ["AgentPodTrigger"]


class AgentPodTrigger(OpenPodTrigger):
    """A KubernetesPodTrigger that waits out an unreachable API server; takes its arguments.

    Its event also has ``said``, the container's termination message, and ``trouble``, why the pod failed.
    """

    _last: k8s.V1Pod | None = None

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Class path and arguments."""
        return f"{type(self).__module__}.{type(self).__qualname__}", super().serialize()[1]

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """One event, when the pod has ended, could not start, or the time is over."""
        async for event in super().run():
            ended = event.payload["status"] in ("failed", "timeout") and self._last is not None
            trouble = pod_failure(self._last, self.base_container_name) if ended else None
            payload = {
                **event.payload,
                "said": termination_message(self._last, self.base_container_name),
                "trouble": trouble.text if trouble else "",
            }
            yield TriggerEvent(payload)

    async def on_kill(self) -> None:
        """Delete the pod of a task that was marked or cleared while it waited here (from Airflow 3.3 on)."""
        await _to_its_end(super().on_kill())

    async def cleanup(self) -> None:
        """The same on Airflow 3.2."""
        await _to_its_end(super().cleanup())

    @cached_property
    def pod_manager(self) -> AsyncAgentPodManager:
        """Reads the pod's log."""
        return AsyncAgentPodManager(async_hook=self.hook)

    async def look(self) -> k8s.V1Pod:
        """See ``OpenPodTrigger``; what was seen last is kept for the event."""
        self._last = await outlast(lambda: self.hook.get_pod(name=self.pod_name, namespace=self.pod_namespace), self.log)
        return self._last


_deletions: set[asyncio.Task[None]] = set()


async def _to_its_end(deletion: Coroutine[Any, Any, None]) -> None:
    """Wait for a deletion that goes on though the waiting is cancelled: a triggerer cancels a trigger again every second until it is gone,
    and the API server may take longer than that to answer.
    """
    task = asyncio.create_task(deletion)
    _deletions.add(task)  # the event loop alone would not keep it
    task.add_done_callback(_deletions.discard)
    await asyncio.shield(task)
