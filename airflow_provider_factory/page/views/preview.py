"""What a contract or a stage makes of a topic's newest records: the last previews of a pipeline, as far as they are."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import msgspec

from airflow_provider_factory.page.runs import PreviewRun
from airflow_provider_factory.page.views.common import Part, parts_of
from factory_agents.protocol import AgentResult
from factory_agents.runners.results import shown_reasons

__all__ = ["PreviewRow", "previews"]

_STATES = {"success": "whole", "failed": "failed"}


@dataclass(frozen=True)
class PreviewRow:
    """One preview; ``parts`` add up to ``consumed``, and ``reasons`` say why records would be rejected."""

    run_id: str
    state: str
    chip: str
    topic: str
    tried: str
    known: bool
    consumed: int
    parts: tuple[Part, ...]
    reasons: tuple[str, ...]


def previews(runs: Iterable[PreviewRun], topics: Collection[str]) -> tuple[PreviewRow, ...]:
    """The previews of a pipeline's own topics, in the order of the runs: whoever starts one by hand may name any topic."""
    return tuple(row for row in map(_row, runs) if row.topic in topics)


def _row(run: PreviewRun) -> PreviewRow:
    result = _result(run.result)
    return PreviewRow(
        run_id=run.run_id,
        state=run.state,
        chip=_STATES.get(run.state, "running"),
        topic=str(run.conf.get("topic", "")),
        tried=str(run.conf.get("stage") or run.conf.get("contract") or run.conf.get("agent", "")),
        known=result is not None,
        consumed=result.counts.consumed if result is not None else 0,
        parts=parts_of(result.counts) if result is not None else (),
        reasons=tuple(shown_reasons(result)) if result is not None else (),
    )


def _result(value: Any) -> AgentResult | None:
    """What the agent returned, however Airflow keeps it; None for what is no result."""
    try:
        return msgspec.convert(json.loads(value) if isinstance(value, str) else value, AgentResult)
    except (ValueError, msgspec.ValidationError):
        return None
