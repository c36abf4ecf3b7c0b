"""What Temporal can list workflows by: their pipeline, the stage that runs, the window's start.

A server refuses attributes that it doesn't know, or knows with another type. So a start that is refused for them is made without, and a
workflow sets its stage only where its starter could set all that it will.
"""

from __future__ import annotations

from typing import Any

from temporalio.common import SearchAttributeKey, SearchAttributePair, TypedSearchAttributes

from factory_agents.protocol import Interval
from factory_agents.temporal.protocol import PipelineSpec

__all__ = ["ATTRIBUTES", "PIPELINE", "STAGE", "WINDOW_START", "are_known", "attributes_of"]

PIPELINE = SearchAttributeKey.for_keyword("FactoryPipeline")
STAGE = SearchAttributeKey.for_keyword("FactoryStage")
WINDOW_START = SearchAttributeKey.for_datetime("FactoryWindowStart")
ATTRIBUTES = (PIPELINE, STAGE, WINDOW_START)


def attributes_of(spec: PipelineSpec, interval: Interval | None = None) -> TypedSearchAttributes:
    """What a workflow is found by: its pipeline, and where its window starts; its stage is empty until it has begun one."""
    pairs: list[SearchAttributePair[Any]] = [SearchAttributePair(PIPELINE, spec.pipeline), SearchAttributePair(STAGE, "")]
    if interval is not None:
        pairs.append(SearchAttributePair(WINDOW_START, interval.start))
    return TypedSearchAttributes(pairs)


def are_known(own: TypedSearchAttributes) -> bool:
    """Whether a workflow with these attributes may set others: the server knows them."""
    return own.get(PIPELINE) is not None
