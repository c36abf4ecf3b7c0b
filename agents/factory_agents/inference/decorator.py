"""``@model_agent``: a user's own function of an event and of what a model answered about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from factory_agents.inference.params import InferParams, read_asking
from factory_agents.inference.transform import InferTransform, Whose
from factory_agents.kafka.messages import Message
from factory_agents.protocol import AgentRun
from factory_agents.runtime.agents import AgentFunction, FunctionTransform, Output, Transform, agent, bind_params
from factory_agents.runtime.dependencies import InterruptedBatchError

__all__ = ["ModelAgent", "model_agent"]


@dataclass(frozen=True)
class ModelAgent(AgentFunction):
    """See ``AgentFunction``; ``asking`` are parameters of ``infer``, which those of a run go over."""

    asking: Mapping[str, Any] = field(default_factory=dict)

    def bind(self, params: Mapping[str, Any], run: AgentRun | None = None) -> Transform:
        """See ``AgentFunction.bind``: a parameter of ``infer`` is the model's, all others are the function's."""
        of_infer = InferParams.__struct_fields__
        asked = {**self.asking, **{name: value for name, value in params.items() if name in of_infer}}
        own = {name: value for name, value in params.items() if name not in of_infer}
        bound = bind_params(self.function, own, f"agent {self.name!r}", skip=2)
        untrusted = frozenset(run.untrusted) if run is not None else frozenset()
        return FunctionOfAnswers(self, bound, InferTransform(read_asking(asked, untrusted), Whose.of(run)))


def model_agent(
    *, name: str = "", version: str = "", key: str | None = None, id_field: str = "event_id", **asking: Any
) -> Callable[[Callable[..., Any]], ModelAgent]:
    """Make a function of ``(event, answer, …)`` an agent over a model: ``answer`` is checked, and logged, before the function sees it.

    It returns what an ``@agent`` returns: an event, None or a list of events. ``asking`` are the parameters of the built-in agent ``infer``
    (``prompt``, ``output``, ``model``, ``budget`` …). A changed function asks nothing again: answers are logged by what was asked.
    """

    def make(function: Callable[..., Any]) -> ModelAgent:
        made = agent(name=name, version=version, key=key, id_field=id_field)(function)
        return ModelAgent(made.function, made.name, made.version, key=key, id_field=id_field, asking=asking)

    return make


class _Answered:
    """A record as it is after the answer was put into it."""

    def __init__(self, message: Message, value: bytes) -> None:
        self._message, self._value = message, value

    def value(self) -> bytes:
        return self._value

    def __getattr__(self, name: str) -> Any:
        return getattr(self._message, name)


class FunctionOfAnswers:
    """See ``Transform``: asks as ``infer`` does, then calls the function."""

    stateful = False

    def __init__(self, made: ModelAgent, params: dict[str, Any], asks: InferTransform) -> None:
        self.name, self.version = made.name, made.version
        self.identity: dict[str, Any] = {**asks.identity, "params": params}
        self.at_once, self.log, self.seconds = asks.at_once, asks.log, asks.seconds
        self._asks, into = asks, asks.into

        def call(event: dict[str, Any], **more: Any) -> Any:
            return made.function(event, event.pop(into), **more)

        self._function = FunctionTransform(AgentFunction(call, made.name, made.version, key=made.key, id_field=made.id_field), params)

    def process(self, messages: Sequence[Message]) -> list[Output]:
        """See ``Transform.process``."""
        try:
            return self._called(messages, self._asks.process(messages))
        except InterruptedBatchError as interrupted:
            interrupted.outputs = self._called(messages, interrupted.outputs)
            raise

    def _called(self, messages: Sequence[Message], outputs: Sequence[Output]) -> list[Output]:
        done = list(outputs)
        answered = [n for n, output in enumerate(outputs) if isinstance(output, bytes)]
        records: list[Any] = [_Answered(messages[n], value) for n in answered if isinstance(value := outputs[n], bytes)]
        for n, output in zip(answered, self._function.process(records), strict=True):
            done[n] = output
        return done

    def compare(self, earlier: Callable[[], Sequence[Mapping[str, Any]]]) -> None:
        """See ``Transform.compare``."""

    def finish(self, counts: Any) -> dict[str, Any] | None:
        """See ``Transform.finish``."""
        return self._asks.finish(counts)

    def close(self) -> None:
        """See ``Transform.close``."""
        self._function.close()
        self._asks.close()
