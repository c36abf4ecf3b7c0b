"""What tests of agents over models share: a prompt, an output contract, and runs over them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any, TypeAlias

import pytest

from factory_agents.inference.params import read_asking
from factory_agents.inference.transform import InferTransform, Whose
from factory_agents.protocol import AgentRef, AgentRun, Counts, Window
from factory_agents.reject import Reject
from factory_agents.runtime.dependencies import InterruptedBatchError
from tests.support.model_server import ModelServer
from tests.support.runs import Runs, events

PROMPT = {"name": "kind@1.md", "text": "What kind is this? {{ text }}"}
SCHEMA = {
    "type": "object",
    "properties": {"label": {"enum": ["even", "odd"]}},
    "required": ["label"],
    "additionalProperties": False,
}

MakeRun: TypeAlias = Callable[..., AgentRun]


def infer_params(server: ModelServer, **more: Any) -> dict[str, Any]:
    """Parameters of ``infer`` against a stand-in."""
    return {"prompt": PROMPT, "model": "m", "endpoint": server.url, "output": SCHEMA, "timeout": 5, **more}


@pytest.fixture
def infer_run(runs: Runs) -> MakeRun:
    """A run of ``infer`` over a window; keywords are the agent's parameters, ``run`` changes the run itself."""

    def make(window: Window, to: str, server: ModelServer, run: dict[str, Any] | None = None, **more: Any) -> AgentRun:
        return runs.run(window, to, agent=AgentRef("infer"), params=infer_params(server, **more), **(run or {}))

    return make


class Event:
    """A record, as far as the agent looks at it."""

    def __init__(self, value: bytes) -> None:
        self._value = value

    def value(self) -> bytes:
        return self._value


@dataclass
class Asked:
    """What became of events, by their number, and what that took."""

    outputs: list[Any]
    counts: Counts

    @property
    def rejected(self) -> dict[int, Reject]:
        return {n: output for n, output in enumerate(self.outputs) if isinstance(output, Reject)}

    @property
    def forwarded(self) -> int:
        return sum(isinstance(output, bytes) for output in self.outputs)


def asked(server: ModelServer, n: int, *, live: bool = False, **more: Any) -> Asked:
    """What ``infer`` alone, without a window or a log, makes of so many events; live, it is called again when the model may be back."""
    messages: list[Any] = [Event(value) for value in events(n)]
    outputs: list[Any] = []
    counts = Counts()
    with closing(InferTransform(read_asking(infer_params(server, **more)), Whose(live=live))) as asks:
        while len(outputs) < n:
            try:
                outputs += asks.process(messages[len(outputs) :])
            except InterruptedBatchError as interrupted:
                outputs += interrupted.outputs
                threading.Event().wait(interrupted.seconds)
        asks.log.take(counts)
    return Asked(outputs, counts)
