"""What a stage was given to read (a window, a plan, a planned shard, results), turned into one window and one shard of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from factory_agents.errors import WindowError
from factory_agents.protocol import AgentResult, Shard, Window, decode_result, decode_window, digest, encode, merge_results, shard_window

__all__ = ["StageInput", "auto_shards", "plain", "plan_id", "planned", "results_of", "stage_input"]


@dataclass(frozen=True)
class StageInput:
    """One shard of a plan over a window, as a stage runs it."""

    window: Window
    shard: Shard
    plan: str

    @property
    def label(self) -> str:
        """For a person: which shard, its partitions, and how many records at most."""
        partitions = [str(r.partition) for r in self.window.ranges if r.end > r.start]
        shown = ", ".join(partitions[:8]) + (f" and {len(partitions) - 8} more" if len(partitions) > 8 else "")
        what = f"partitions {shown}" if len(partitions) > 1 else f"partition {shown}" if partitions else "nothing"
        return f"{self.shard.index + 1} of {self.shard.of}: {what}, up to {self.window.size:,} records"


def plain(value: msgspec.Struct) -> dict[str, Any]:
    """A value of the protocol as XCom and asset events hold it: nothing but JSON's types."""
    data: dict[str, Any] = msgspec.json.decode(encode(value))
    return data


def plan_id(window: Window, shards: int) -> str:
    """Names a window cut into that many shards: the same records cut in the same way give the same id."""
    return digest(
        [window.key, window.topic, window.topic_id, [(r.partition, r.start, r.end) for r in window.ranges], window.writers, shards]
    )


def auto_shards(window: Window, records_per_shard: int) -> int:
    """How many shards a window is worth: one for every so many records, no more than partitions that hold any, at least one.

    The same window always gives the same number: a retry or a later run finds its shards' results in the ledger.
    """
    filled = sum(1 for r in window.ranges if r.count > 0 or (r.count < 0 and r.end > r.start))
    return max(1, min(filled, -(-window.size // max(1, records_per_shard))))


def planned(window: Window, shards: int) -> list[dict[str, Any]]:
    """A plan as XCom holds it: for each shard its window, its place, and the plan's id. There is always at least one."""
    parts = shard_window(window, shards)
    plan = plan_id(window, len(parts))
    return [{"window": plain(part), "shard": [i, len(parts)], "plan": plan} for i, part in enumerate(parts)]


def results_of(value: Any) -> list[AgentResult]:
    """A stage's result, or the results of a mapped stage, decoded; those missing (None) are left out, for the merge to name."""
    items = [value] if isinstance(value, (Mapping, AgentResult)) else list(value[:]) if value is not None else []
    return [item if isinstance(item, AgentResult) else decode_result(dict(item)) for item in items if item is not None]


def stage_input(value: Any, shard: Any = None) -> StageInput:
    """Turn the ``window`` and ``shard`` arguments of an operator into what it runs over.

    ``value`` may be a Window, a shard planned by WindowOperator, its whole plan, an AgentResult or a sequence of these (also a lazy
    one), as objects, as XCom's plain data, or as JSON. ``shard`` is a pair ``(index, of)`` or a planned shard. Raises WindowError for
    nothing, an incomplete set, or anything else.
    """
    value = _parsed(value)
    if isinstance(value, Mapping) and "window" in value:
        if shard is not None:
            raise WindowError(
                "shard: the window given is a planned shard already; give the whole plan (window.output without expand), or no shard"
            )
        return StageInput(decode_window(dict(value["window"])), Shard(*value["shard"]), str(value["plan"]))
    window = _whole(value)
    place = _place(shard)
    parts = shard_window(window, place.of)
    mine = parts[place.index] if place.index < len(parts) else msgspec.structs.replace(window, ranges=(), lost=())
    return StageInput(mine, place, plan_id(window, place.of))


def _parsed(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        raise WindowError(
            f"window: expected an operator's .output, or JSON, got the text {value[:80]!r}; in a template write {{{{ … | tojson }}}}"
        ) from None


def _whole(value: Any) -> Window:
    if isinstance(value, Window):
        return value
    if isinstance(value, Mapping):
        return decode_window(dict(value)) if "ranges" in value or "topic_id" in value else merge_results(results_of(value))
    if value is None or isinstance(value, AgentResult):
        return merge_results(results_of(value))
    if not isinstance(value, Sequence):
        raise WindowError(f"window: expected a window, a result or the results of a mapped stage, got {type(value).__name__}")
    items = list(value[:])  # a lazy sequence is fetched at once
    if items and all(isinstance(item, Mapping) and "window" in item for item in items):
        return _whole_plan(items)
    return merge_results(results_of(items))


def _whole_plan(items: Sequence[Mapping[str, Any]]) -> Window:
    of, plans = int(items[0]["shard"][1]), {str(item["plan"]) for item in items}
    if len(plans) != 1 or sorted(int(item["shard"][0]) for item in items) != list(range(of)):
        raise WindowError(
            f"window: expected the {of} shards of one plan, got {len(items)} of {len(plans)} plan(s); clear the task that plans them"
        )
    windows = [decode_window(dict(item["window"])) for item in items]
    ranges = sorted((r for w in windows for r in w.ranges), key=lambda r: r.partition)
    return msgspec.structs.replace(windows[0], ranges=tuple(ranges), lost=tuple(r for w in windows for r in w.lost))


def _place(shard: Any) -> Shard:
    if shard is None:
        return Shard()
    shard = _parsed(shard) if isinstance(shard, str) else shard
    pair = shard.get("shard") if isinstance(shard, Mapping) else shard
    if not isinstance(pair, Sequence) or len(pair) != 2:
        raise WindowError(f"shard: expected a pair (index from 0, how many), or a planned shard, got {shard!r}")
    index, of = (int(n) for n in pair)
    if not 0 <= index < of:
        raise WindowError(f"shard: expected an index from 0 to {of - 1}, got {index}")
    return Shard(index, of)
