"""What tests of agents over models share: a prompt, an output contract, and runs over them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import pytest

from factory_agents.protocol import AgentRef, AgentRun, Window
from tests.support.model_server import ModelServer
from tests.support.runs import Runs

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
