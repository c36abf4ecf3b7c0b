"""A workflow that gathers word of new events and starts a window when there are many, or when they have waited long: for busy topics."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from temporalio import workflow
from temporalio.exceptions import ChildWorkflowError

with workflow.unsafe.imports_passed_through():
    import msgspec

    from factory_agents.temporal.protocol import Arrived, Collected, CollectRequest, PipelineRequest
    from factory_agents.temporal.windows import run_window
    from factory_agents.temporal.workflow import FAILURES, heed_cancellation

__all__ = ["FactoryCollector"]

_MOST_FAILED = 20


@workflow.defn(name="FactoryCollector", failure_exception_types=FAILURES)
class FactoryCollector:
    """Counts events by their positions, so that word of them may come twice, and starts one window after the other.

    A window reads all that came since the last one; whatever of it was announced later is counted again, for an empty window at worst.
    """

    @workflow.init
    def __init__(self, request: CollectRequest) -> None:
        self._state = request

    @workflow.query
    def progress(self) -> Collected:
        """How far it is."""
        return self._state.done

    @workflow.signal
    def arrived(self, word: Arrived) -> None:
        """Events have come; those that are counted already count for nothing."""
        self._state = self._state.with_word(word, workflow.now())

    @workflow.run
    async def run(self, request: CollectRequest) -> None:
        """Until it is cancelled."""
        heed_length = workflow.patched("gathers-in-many-workflows")
        while True:
            if not await self._gathered(heed_length):
                workflow.continue_as_new(self._state)
            done = self._state.done
            self._tell(waiting=0, windows=done.windows + 1)  # before the window is planned: what comes from here on may need another
            await self._window()
            heed_cancellation()
            if self._is_long or self._state.done.windows % request.per_workflow == 0:
                workflow.continue_as_new(self._state)

    async def _gathered(self, heed_length: bool) -> bool:
        """Until there are enough events, or the first of them has waited long enough; False where the history grows long before that."""
        await workflow.wait_condition(lambda: self._state.done.waiting > 0)
        now = workflow.now()
        left = (self._state.since or now) + timedelta(seconds=self._state.age) - now
        try:
            await workflow.wait_condition(lambda: self._are_enough or (heed_length and self._is_long), timeout=max(left, timedelta(0)))
        except TimeoutError:
            return True
        return self._are_enough

    @property
    def _are_enough(self) -> bool:
        return self._state.done.waiting >= self._state.count

    @property
    def _is_long(self) -> bool:
        return workflow.info().is_continue_as_new_suggested()

    async def _window(self) -> None:
        spec = self._state.spec
        wanted = PipelineRequest(spec, key=f"collected-{workflow.now():%Y%m%dT%H%M%S.%fZ}")
        try:
            await run_window(wanted)
        except ChildWorkflowError:
            self._tell(failed=(*self._state.done.failed, wanted.key)[-_MOST_FAILED:])

    def _tell(self, **changes: Any) -> None:
        self._state = msgspec.structs.replace(self._state, done=msgspec.structs.replace(self._state.done, **changes))
