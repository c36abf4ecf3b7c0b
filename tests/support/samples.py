"""Values that tests of the provider share."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

from factory_agents.protocol import AgentResult, Counts, Interval, Manifest, PartitionRange, Shard, Window

INTERVAL = Interval(datetime(2026, 3, 1, 4, tzinfo=UTC), datetime(2026, 3, 1, 5, tzinfo=UTC))


def window(partitions: int = 4, size: int = 10, **changes: Any) -> Window:
    """A window of the hour on ``raw``: each partition has as many records as its number says, in tens."""
    ranges = tuple(PartitionRange(p, 100, 100 + size * (p + 1)) for p in range(partitions))
    fields: dict[str, Any] = {"pipeline": "clicks", "topic": "raw", "topic_id": "T1", "ranges": ranges, "interval": INTERVAL}
    return Window(**{**fields, **changes})


def result(index: int = 0, of: int = 1, **changes: Any) -> AgentResult:
    """A successful result of one shard of ``enrich``."""
    fields: dict[str, Any] = {
        "pipeline": "clicks",
        "stage": "enrich",
        "key": INTERVAL.key,
        "interval": INTERVAL,
        "shard": Shard(index, of),
        "plan": "p1",
        "fingerprint": f"f{index}",
        "manifest": Manifest("enriched", "T2", f"enrich/f{index}", (PartitionRange(index, 0, 12, 10),)),
        "counts": Counts(consumed=10, forwarded=10, produced=10),
    }
    return AgentResult(**{**fields, **changes})


def context(**changes: Any) -> dict[str, Any]:
    """A task's context of a manual run over the hour."""
    fields: dict[str, Any] = {
        "run_id": "manual__1",
        "data_interval_start": INTERVAL.start,
        "data_interval_end": INTERVAL.end,
        "dag_run": SimpleNamespace(run_type="manual"),
        "dag": SimpleNamespace(catchup=False, fileloc=""),
        "ti": SimpleNamespace(max_tries=2),
        "task": SimpleNamespace(retries=2),
        "params": {},
    }
    return {**fields, **changes}
