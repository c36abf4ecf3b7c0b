"""What the ledger knows about a window that somebody is told of: what failed, how many events wait, why events were rejected."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.ledger import Ledger, LedgerView
from factory_agents.kafka.topics import Cluster
from factory_agents.kafka.windows import WindowStatus, windows_of
from factory_agents.reports import WindowReport, reports_of
from factory_agents.text import count

__all__ = ["Facts", "facts_of", "read_facts"]

_SECONDS = 60.0
_MOST = 3


@dataclass(frozen=True)
class Facts:
    """Lines about a window, as far as the ledger knows it: what ``failed``, how many events wait, why some were ``rejected``.

    ``rejects`` counts those.
    """

    failed: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()
    rejected: tuple[str, ...] = ()
    rejects: int = 0


def read_facts(config: KafkaConfig, *, pipeline: str, window: str, prefix: str) -> Facts:
    """Ask the ledger; raises a FactoryError."""
    with Cluster(config) as cluster:
        ledger = Ledger(config, cluster, prefix=prefix, pipeline=pipeline)
        if cluster.find(ledger.topic) is None:
            return Facts()
        return facts_of(ledger.read(deadline=time.monotonic() + _SECONDS), window)


def facts_of(view: LedgerView, window: str) -> Facts:
    """From what was read of a pipeline's ledger."""
    windows = windows_of(view)
    this = next((w for w in windows if w.window == window), None)
    if this is None:
        return Facts(waiting=_others(windows))
    reports = [report for report in reports_of(view) if report.window == window]
    here = f"{'' if this.exact else '≤ '}{count(this.records, 'event', 'waits', 'wait')} in this window"
    return Facts(
        failed=tuple(s.summary for s in this.stages if s.state in ("failed", "stalled")),
        waiting=(*((here,) if this.state != "finished" else ()), *_others(windows, this)),
        rejected=tuple(_rejected(this, reports)),
        rejects=sum(s.counts.rejected for s in this.stages),
    )


def _others(windows: Sequence[WindowStatus], this: WindowStatus | None = None) -> tuple[str, ...]:
    left = [w for w in windows if w is not this and w.state not in ("finished", "uncovered")]
    if not left:
        return ()
    oldest = min(left, key=lambda w: w.window)
    they = count(len(left), "other window" if this else "window", "is", "are")
    return (f"{they} not whole since {oldest.since}: {count(sum(w.records for w in left), 'event', 'waits', 'wait')} there",)


def _rejected(this: WindowStatus, reports: Iterable[WindowReport]) -> Iterable[str]:
    """What each stage rejected and why, with its first rejected events where it wrote a report."""
    of = {report.stage: report for report in reports}
    for stage in this.stages:
        if not stage.counts.rejected:
            continue
        report = of.get(stage.stage)
        rules = sorted(((n, rule) for rule, n in report.report["rules"].items() if n), reverse=True) if report else []
        why = ", ".join(f"{rule} ({n:,})" for n, rule in rules[:_MOST])
        yield f"{stage.stage} rejected {stage.counts.rejected:,} of {count(stage.counts.consumed, 'event')}{why and f': {why}'}"
        for sample in report.report["samples"][:_MOST] if report else ():
            yield f"  {sample['topic']}-{sample['partition']}@{sample['offset']}: {sample['reason']}"
