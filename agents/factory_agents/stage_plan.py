"""What a stage is given to read (a window, a plan, a planned shard, results), turned into one window and one shard of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from factory_agents.errors import WindowError
from factory_agents.protocol import (
    AgentResult,
    Shard,
    Window,
    decode_result,
    decode_window,
    digest,
    merge_results,
    plain,
    shard_output,
    shard_window,
)

__all__ = ["StageInput", "auto_shards", "merged", "plan_id", "plan_shards", "stage_input"]


@dataclass(frozen=True)
class StageInput:
    """One shard of a plan over a window, as a stage runs it."""

    window: Window
    shard: Shard
    plan: str
    sharded: bool = False
    """Whether the shard was named: others beside it are the same work."""

    @property
    def label(self) -> str:
        """For a person: which shard, its partitions, and how many records at most."""
        partitions = [str(r.partition) for r in self.window.ranges if r.end > r.start]
        shown = ", ".join(partitions[:8]) + (f" and {len(partitions) - 8} more" if len(partitions) > 8 else "")
        what = f"partitions {shown}" if len(partitions) > 1 else f"partition {shown}" if partitions else "nothing"
        return f"{self.shard.index + 1} of {self.shard.of}: {what}, up to {self.window.size:,} records"


def plan_id(window: Window, shards: int) -> str:
    """Names a window cut into that many shards: the same records cut in the same way give the same id, whoever plans."""
    return digest(
        [window.key, window.topic, window.topic_id, [(r.partition, r.start, r.end) for r in window.ranges], window.writers, shards]
    )


def auto_shards(window: Window, records_per_shard: int) -> int:
    """How many shards a window is worth: one for every so many records, no more than partitions that hold any, at least one.

    The same window always gives the same number: a retry or a later run finds its shards' results in the ledger.
    """
    filled = sum(1 for r in window.ranges if r.count > 0 or (r.count < 0 and r.end > r.start))
    return max(1, min(filled, -(-window.size // max(1, records_per_shard))))


def plan_shards(window: Window, shards: int) -> list[dict[str, Any]]:
    """A plan as JSON data: for each shard its window, its place, and the plan's id. There is always at least one."""
    parts = shard_window(window, shards)
    plan = plan_id(window, len(parts))
    return [{"window": plain(part), "shard": [i, len(parts)], "plan": plan} for i, part in enumerate(parts)]


def stage_input(value: Any, shard: Any = None) -> StageInput:
    """Turn what a stage was given into what it runs over.

    ``value`` may be a Window, a planned shard, a whole plan, an AgentResult, or results: those of a mapped stage (a lazy sequence, too),
    of several stages that wrote to one topic, or a list of these; as objects, as JSON data, or as JSON text. ``shard`` is a pair
    ``(index, of)`` or a planned shard. The result of one shard alone is read by the same shard of the next stage. Raises WindowError for
    nothing, an incomplete set, or anything else.
    """
    value = _parsed(value)
    alone = _alone(value)
    if alone is not None and shard is not None:
        raise WindowError(
            "shard: the window given is one shard already; give the whole, window=….output (without expand, outside of a mapped group), "
            "or no shard"
        )
    if alone is not None:
        return alone
    window = _whole(value)
    place = _place(shard)
    parts = shard_window(window, place.of)
    mine = parts[place.index] if place.index < len(parts) else msgspec.structs.replace(window, ranges=(), lost=())
    return StageInput(mine, place, plan_id(window, place.of), sharded=shard is not None)


def merged(value: Any) -> tuple[list[AgentResult], Window]:
    """A stage's result, the results of a mapped stage, or those of several stages in lists, decoded; and what they wrote, as one window.

    Raises WindowError unless they are complete: every shard of every stage, every task of a mapped one, and nothing missing in a list.
    """
    sets = list(_sets(value))
    results = [result for of_one in sets for result in of_one]
    window = merge_results(results)
    for of_one in sets:
        _check_complete(of_one)
    return results, window


def _sets(value: Any) -> Iterator[list[AgentResult]]:
    """The results of each stage: all of a mapped stage, which come in a sequence of their own, or one that was given by itself."""
    if isinstance(value, (Mapping, AgentResult)):
        yield [msgspec.structs.replace(_result(value), mapped=0)]
    elif value is None:
        yield []
    elif not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise WindowError(f"window: expected a window, a result or the results of a mapped stage, got {type(value).__name__}")
    else:
        items = list(value[:])  # a lazy sequence is fetched at once
        results = [_result(item) for item in items if isinstance(item, (Mapping, AgentResult))]
        if len(results) == len(items) and len({r.stage for r in results}) == 1:
            yield results
        else:
            yield from (of_one for item in items for of_one in _sets(item))


def _result(value: Mapping[str, Any] | AgentResult) -> AgentResult:
    return value if isinstance(value, AgentResult) else decode_result(dict(value))


def _check_complete(results: Sequence[AgentResult]) -> None:
    """Refuse what a skipped task, or one that was marked as a success by hand, left out; a stage's shards tell of each other before."""
    of = max((r.mapped for r in results), default=1)
    if len(results) < of:
        which = f"stage {results[0].stage!r}" if results else "one of the stages before"
        raise WindowError(
            f"{which}: {len(results)} of {of} tasks have a result; was one skipped, or marked as a success by hand? clear it to run it"
        )


def _parsed(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise WindowError(
            f"window: expected an operator's .output, or JSON, got the text {value[:80]!r}; in a template write {{{{ … | tojson }}}}"
        ) from None


def _alone(value: Any) -> StageInput | None:
    """A planned shard, or one shard's result, which its stage's other shards are not needed for."""
    if isinstance(value, Mapping) and "window" in value:
        return StageInput(decode_window(dict(value["window"])), Shard(*value["shard"]), str(value["plan"]), sharded=True)
    if not isinstance(value, AgentResult) and not _is_result(value):
        return None
    result = _result(value)
    if result.shard.of == 1:
        return None
    return StageInput(shard_output(result), result.shard, digest([result.plan, result.stage]), sharded=True)


def _is_result(value: Any) -> bool:
    return isinstance(value, Mapping) and "ranges" not in value and "topic_id" not in value


def _is_planned(value: Any) -> bool:
    return isinstance(value, Mapping) and "window" in value


def _whole(value: Any) -> Window:
    if isinstance(value, Window):
        return value
    if isinstance(value, Mapping) and not _is_result(value):
        return decode_window(dict(value))
    items = list(value[:]) if isinstance(value, Sequence) else [value]
    plans = [item for item in items if _is_planned(item)]
    if plans and len(plans) == len(items):
        return _whole_plan(plans)
    if any(isinstance(item, Sequence) and any(_is_planned(part) for part in item) for item in items):
        raise WindowError(
            "window: expected one window, got several (a WindowOperator mapped over topics, or a list of them); a stage reads one topic: "
            "map it over them, expand(window=…)"
        )
    return merged(value)[1]


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
    if shard is None or isinstance(shard, Shard):
        return shard or Shard()
    shard = _parsed(shard) if isinstance(shard, str) else shard
    pair = shard.get("shard") if isinstance(shard, Mapping) else shard
    if not isinstance(pair, Sequence) or len(pair) != 2:
        raise WindowError(f"shard: expected a pair (index from 0, how many), or a planned shard, got {shard!r}")
    index, of = (int(n) for n in pair)
    if not 0 <= index < of:
        raise WindowError(f"shard: expected an index from 0 to {of - 1}, got {index}")
    return Shard(index, of)
