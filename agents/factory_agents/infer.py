"""The built-in infer agent: asks a model about each event, and puts its answer, checked, into one field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from factory_agents.inference.params import read_asking
from factory_agents.inference.transform import InferTransform, Whose
from factory_agents.protocol import AgentRun

__all__ = ["build"]


def build(params: Mapping[str, Any], run: AgentRun | None = None) -> InferTransform:
    """The infer agent for a run, or for a live one (see ``InferParams``). Raises ConfigurationError and ContractError."""
    return InferTransform(read_asking(params, frozenset(run.untrusted) if run is not None else frozenset()), Whose.of(run))


if __name__ == "__main__":
    from factory_agents.commands import run_built_in

    run_built_in("infer")
