"""What tests of agents over models share: a prompt, an output contract, and runs over them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
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


@contextmanager
def transform(server: ModelServer, *, live: bool = False, **more: Any) -> Iterator[InferTransform]:
    """The agent alone, without a window or a log."""
    with closing(InferTransform(read_asking(infer_params(server, **more)), Whose(live=live))) as made:
        yield made


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


def answered(asks: InferTransform, n: int) -> Asked:
    """What the agent makes of so many events; where it says that the model is away it is called again when that may be worth it."""
    messages: list[Any] = [Event(value) for value in events(n)]
    outputs: list[Any] = []
    while len(outputs) < n:
        try:
            outputs += asks.process(messages[len(outputs) :])
        except InterruptedBatchError as interrupted:
            outputs += interrupted.outputs
            threading.Event().wait(interrupted.seconds)
    counts = Counts()
    asks.log.take(counts)
    asks.log.settle(committed=True)
    return Asked(outputs, counts)


def asked(server: ModelServer, n: int, **more: Any) -> Asked:
    """What ``infer`` with these parameters makes of so many events."""
    with transform(server, **more) as asks:
        return answered(asks, n)
