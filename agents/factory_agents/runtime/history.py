"""Validation reports of earlier windows, as the ledger keeps them: the shards of each merged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any

from factory_agents.errors import ConfigurationError
from factory_agents.kafka.ledger import LedgerView, StageRecord
from factory_agents.protocol import AgentRun

__all__ = ["earlier_reports", "merged_reports"]


def merged_reports(view: LedgerView, stage: str = "") -> Iterator[tuple[StageRecord, int, dict[str, Any]]]:
    """Each complete report of a stage (of all stages) over a window: its newest record, when it was updated, and the report.

    Of a window that was planned with several numbers of shards the newest counts. One some of whose shards have no report yet, or reports
    by another contract, has none.
    """
    from factory_agents.contracts import merge_reports  # not where every agent begins: it loads YAML

    parts: dict[tuple[str, str, str, str, int], list[StageRecord]] = {}
    for record in view.of(StageRecord):
        if (not stage or record.stage == stage) and record.result is not None and "checks" in (record.result.report or {}):
            key = (record.pipeline, record.stage, record.window, record.scope, record.shard.of)
            parts.setdefault(key, []).append(record)
    newest: dict[tuple[str, ...], tuple[int, list[StageRecord]]] = {}
    for (*work, of), records in parts.items():
        if len(records) >= of:
            at = max(r.updated_at for r in records)
            newest[tuple(work)] = max(newest.get(tuple(work), (at, records)), (at, records), key=lambda found: found[0])
    for at, records in newest.values():
        with suppress(ConfigurationError):  # some shards were done again by a contract that was changed
            newest_of = max(records, key=lambda r: r.generation)
            yield newest_of, at, merge_reports([r.result.report or {} for r in records if r.result is not None])


def earlier_reports(view: LedgerView, run: AgentRun) -> list[Mapping[str, Any]]:
    """The reports of a run's stage over the windows before its own, the newest last.

    Windows with an interval are in the order of their intervals, others in that of their work.
    """
    interval = run.interval or (run.window.interval if run.window is not None else None)
    found = []
    for record, at, report in merged_reports(view, run.stage):
        start = report["window_start"]
        if record.window == run.key or record.scope != run.work.scope or (interval is None) != (start is None):
            continue
        begins = 0.0 if start is None else datetime.fromisoformat(start).timestamp()
        if interval is None or begins < interval.start.timestamp():
            found.append((begins, at, report))
    return [report for *_, report in sorted(found, key=lambda one: one[:2])]
