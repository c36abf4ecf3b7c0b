"""An agent or contract that was mended, made ready for events that were rejected: what ``dead-letters replay --through`` names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from functools import cache
from math import inf
from typing import Any

from factory_agents.errors import ConfigurationError
from factory_agents.protocol import AgentRef, CodecRef
from factory_agents.run import BUILT_IN, TRANSFORM, build_transform
from factory_agents.runtime.codecs import OpenCodec, open_codec
from factory_agents.runtime.replays import Through

__all__ = ["through_agent"]


@contextmanager
def through_agent(
    agent: str,
    params: Mapping[str, Any],
    input_codec: Callable[[str], CodecRef | None],
    output_codec: CodecRef | None,
    to: str,
    *,
    stop_above: float | None = None,
) -> Iterator[Through]:
    """The way through an agent (a built-in one's name, or ``module:function``) into a topic.

    ``input_codec`` tells what reads the events that came from a topic; ``output_codec`` writes the agent's outputs.

    Raises ConfigurationError for a share that is none, for an agent that can't be one on the way and for parameters that it doesn't take.
    """
    if stop_above is not None and not 0 <= stop_above <= 100:
        raise ConfigurationError(f"stop above {stop_above} %: expected a share from 0 to 100")
    if BUILT_IN.get(agent, TRANSFORM) != TRANSFORM:
        raise ConfigurationError(f"through {agent!r}: it makes no events of events; name enrich, validate, or your own module:function")
    with ExitStack() as opened:
        transform = opened.enter_context(closing(build_transform(AgentRef(agent), dict(params), None)))
        if getattr(transform, "log", None) is not None:
            raise ConfigurationError(
                f"through {agent!r}: it keeps a log of its answers, which belongs to its stage; replay into the topic that the stage reads"
            )

        def kept(codec: OpenCodec | None) -> OpenCodec | None:
            return codec if codec is None else opened.enter_context(closing(codec))

        @cache
        def reading(topic: str) -> OpenCodec | None:
            return kept(open_codec(input_codec(topic), topic, writing=False))

        writing = kept(open_codec(output_codec, to, writing=True))
        yield Through(transform, reading, writing, inf if stop_above is None else stop_above)
