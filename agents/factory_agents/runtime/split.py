"""``split``: several agents as one, each for a share of the keys: an A/B test over a window, live, or in a DAG."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from factory_agents.errors import ConfigurationError
from factory_agents.kafka.messages import Message
from factory_agents.protocol import AgentRun, Counts, digest
from factory_agents.runtime.agents import AgentFunction, FunctionTransform, Output, as_agent
from factory_agents.runtime.dependencies import InterruptedBatchError

__all__ = ["Part", "SplitAgent", "split"]

_POINTS = 10_000


@dataclass(frozen=True)
class Part:
    """An agent and the share of keys that it handles: hundredths of a percent, up to ``until`` of all."""

    name: str
    agent: AgentFunction
    until: int


@dataclass(frozen=True)
class SplitAgent(AgentFunction):
    """What ``split`` makes: an agent as any other, named by ``module:name``."""

    parts: tuple[Part, ...] = ()
    field: str = ""

    def part_of(self, key: bytes | None) -> str:
        """Which part handles the events of a key; with it, an outcome that is known elsewhere is told to its part."""
        return self.parts[self.number_of(key or b"")].name

    def number_of(self, key: bytes) -> int:
        """The part's number. It depends on the key and the split's name alone, and changes for no more keys than the shares do."""
        point = zlib.crc32(self.name.encode() + b"|" + key) % _POINTS
        return next(n for n, part in enumerate(self.parts) if point < part.until)

    def bind(self, params: Mapping[str, Any], run: AgentRun | None = None) -> SplitTransform:
        """See ``AgentFunction.bind``: every part takes the parameters."""
        return SplitTransform(self, params)


def split(name: str, parts: Mapping[str, tuple[Callable[..., Any], float]], *, field: str = "") -> SplitAgent:
    """Agents side by side, each for a share of the keys in percent.

    The same key always goes to the same part, in every process, as long as ``name`` and shares stay; records without a key are divided by
    their offsets. Outputs keep the order of the inputs, and there is one position. ``field`` names the field in which outputs say which
    part made them. Where a share grows at the cost of its neighbour, only those keys change. Raises ConfigurationError for shares that
    don't add up to 100.

    :param name: what the split is called; another name divides the keys in another way.
    :param parts: by name, each part's agent and its share.
    :param field: the field of outputs that says which part made them; empty: none.

    Example::

        def old(event: dict) -> dict:
            return {**event, "price": 1}


        def new(event: dict) -> dict:
            return {**event, "price": 2}


        prices = split("prices", {"a": (old, 80), "b": (new, 20)}, field="variant")
    """
    total, made = 0.0, []
    for part, (function, share) in parts.items():
        total += share
        if share < 0:
            raise ConfigurationError(f"split {name!r}: part {part!r} has {share} % of the keys, expected 0 to 100")
        made.append(Part(part, as_agent(function, f"split {name!r}: part {part!r}"), round(total * _POINTS / 100)))
    if not made or made[-1].until != _POINTS:
        raise ConfigurationError(f"split {name!r}: the shares add up to {total:g} %, expected 100")
    version = digest([field, *([p.name, p.agent.name, p.agent.version, p.until] for p in made)])[:12]
    return SplitAgent(_call_a_part, name, version, parts=tuple(made), field=field)


def _call_a_part(*_: Any, **__: Any) -> Any:
    raise TypeError("a split agent chooses by a record's key: call its parts")


def _bound(agent: SplitAgent, part: Part, params: Mapping[str, Any]) -> FunctionTransform:
    transform = part.agent.bind(params)
    if not isinstance(transform, FunctionTransform):
        raise ConfigurationError(f"split {agent.name!r}: part {part.name!r}: expected a function or an @agent, not one that asks a model")
    return transform


class SplitTransform:
    """Gives each record to its part, and puts the outputs back into the order of the records."""

    stateful = False

    def __init__(self, agent: SplitAgent, params: Mapping[str, Any]) -> None:
        self.name, self.version = agent.name, agent.version
        self._agent = agent
        self._transforms: list[FunctionTransform] = [_bound(agent, part, params) for part in agent.parts]
        if agent.field:
            for part, transform in zip(agent.parts, self._transforms, strict=True):
                transform.mark = {agent.field: part.name}
        self.identity: dict[str, Any] = {"params": self._transforms[0].identity["params"]}
        self.at_once = max(transform.at_once for transform in self._transforms)

    def compare(self, earlier: Callable[[], Sequence[Mapping[str, Any]]]) -> None:
        """See ``Transform.compare``."""

    def load(self) -> None:
        """See ``FunctionTransform.load``."""
        for transform in self._transforms:
            transform.load()

    def share(self, of: float) -> None:
        """See ``FunctionTransform.share``."""
        for transform in self._transforms:
            transform.share(of)

    def process(self, messages: Sequence[Message]) -> list[Output]:
        """See ``Transform.process``. In an outage of one part, what stands before its first event is kept."""
        places: list[list[int]] = [[] for _ in self._transforms]
        for n, message in enumerate(messages):
            key = message.key()
            places[self._agent.number_of(b"%d-%d" % (message.partition(), message.offset()) if key is None else key)].append(n)
        outputs: list[Output] = [None] * len(messages)
        first, interrupted = len(messages), None
        for transform, mine in zip(self._transforms, places, strict=True):
            if not mine:
                continue
            try:
                found: Sequence[Output] = transform.process([messages[n] for n in mine])
            except InterruptedBatchError as error:
                found = error.outputs
                if mine[len(found)] < first:
                    first, interrupted = mine[len(found)], error
            for n, output in zip(mine, found, strict=False):
                outputs[n] = output
        if interrupted is not None:
            raise InterruptedBatchError(str(interrupted), outputs[:first], interrupted.seconds, interrupted.events) from interrupted
        return outputs

    def finish(self, counts: Counts) -> dict[str, Any] | None:
        """See ``Transform.finish``."""
        return None

    def close(self) -> None:
        """See ``Transform.close``."""
        for transform in self._transforms:
            transform.close()
