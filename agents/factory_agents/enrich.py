"""The built-in enrich agent: adds reference data to each event, then calls the user's function."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from factory_agents.errors import ConfigurationError
from factory_agents.params import read_params
from factory_agents.protocol import AgentRun, Counts
from factory_agents.runtime.agents import AgentFunction, FunctionTransform
from factory_agents.runtime.loading import load_function
from factory_agents.runtime.split import SplitAgent

if TYPE_CHECKING:
    from factory_agents.sources.lookups import LookupJoin

__all__ = ["EnrichParams", "EnrichTransform", "build"]


class EnrichParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What ``enrich`` takes.

    ``function``: ``module:function``, called with ``args`` as keywords; without one each event gets ``"enriched": true``. ``lookups`` are
    done before it, in their order: see ``factory_agents.sources.lookups.Lookup``.
    """

    function: str = ""
    args: dict[str, Any] = {}
    lookups: list[dict[str, Any]] = []


def build(params: Mapping[str, Any], run: AgentRun | None = None) -> EnrichTransform:
    """The enrich agent for a run, or for a live one.

    Raises AgentError for a function that cannot be loaded, ConfigurationError for parameters or lookups that don't fit.
    """
    settings = read_params("enrich", params, EnrichParams)
    if settings.function and run is not None and "function" in run.untrusted:
        raise ConfigurationError("agent 'enrich': function: it comes from a parameter of the run; name the function in the DAG")
    if settings.args and not settings.function:
        raise ConfigurationError("agent 'enrich': args are given but no function that takes them; set function to module:function")
    function = load_function(settings.function) if settings.function else _MARK
    if isinstance(function, SplitAgent):
        raise ConfigurationError(f"agent 'enrich': function: {settings.function!r} is a split: run it as the agent itself, not as enrich's")
    bound = function.bind(settings.args)
    if not isinstance(bound, FunctionTransform):
        raise ConfigurationError(f"agent 'enrich': function {settings.function!r} asks a model: name it as the stage's agent itself")
    join = None
    if settings.lookups:
        from factory_agents.sources.lookups import Lookup, LookupJoin

        confined = run is not None and "lookups" in run.untrusted
        join = LookupJoin([read_params("enrich", lookup, Lookup) for lookup in settings.lookups], confined=confined)
    return EnrichTransform(function, bound.identity["params"], join)


def _mark(event: dict[str, Any]) -> dict[str, Any]:
    event["enriched"] = True
    return event


_MARK = AgentFunction(_mark, "enrich", "1")


class EnrichTransform(FunctionTransform):
    """A user's function over records, after the lookups; the fingerprint knows both."""

    def __init__(self, function: AgentFunction, args: dict[str, Any], lookups: LookupJoin | None) -> None:
        super().__init__(function, args, prepare=lookups.join if lookups else None)
        self.identity = {"function": [function.name, function.version], "args": args} | (lookups.identity if lookups else {})
        self.name, self.version = "enrich", "1"
        self._lookups = lookups
        if lookups is not None:
            lookups.kept = self._digits.kept

    def finish(self, counts: Counts) -> None:
        """See ``Transform.finish``: no report."""

    def close(self) -> None:
        """See ``Transform.close``."""
        if self._lookups is not None:
            self._lookups.close()


if __name__ == "__main__":
    from factory_agents.commands import run_built_in

    run_built_in("enrich")
