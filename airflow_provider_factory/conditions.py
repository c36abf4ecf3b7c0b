"""The questions that sensors ask of Kafka and how they are answered: data in, data out, so that worker and triggerer do the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

import msgspec

if TYPE_CHECKING:
    from factory_agents.kafka.config import KafkaConfig
    from factory_agents.kafka.lag import Lags, PartitionLag
    from factory_agents.kafka.topics import Cluster

__all__ = ["Answer", "LagQuestion", "RolloutQuestion", "WindowClosedQuestion", "ask_lag", "ask_rollout", "ask_window_closed", "judge_lag"]


@dataclass(frozen=True)
class Answer:
    """Whether the condition holds, why or why not yet in one line, and figures for XCom."""

    met: bool
    reason: str
    facts: Mapping[str, Any] = field(default_factory=dict)


class LagQuestion(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Is the lag of a group on topics (or of a pipeline's windows, where ``group`` is empty) at most, or more than, a threshold?"""

    topics: tuple[str, ...]
    threshold: int
    group: str = ""
    pipeline: str = ""
    prefix: str = "factory"
    condition: Literal["below", "above"] = "below"
    measure: Literal["total", "worst"] = "total"


class RolloutQuestion(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Does a version (empty: the one that is being rolled out) of a live agent hold all partitions of its group?"""

    group: str
    version: str = ""
    prefix: str = "factory"


class WindowClosedQuestion(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Has every partition of a topic a record at or past ``end`` (aware), or is ``end + grace`` over?"""

    topic: str
    end: datetime
    grace: float


def judge_lag(question: LagQuestion, partitions: Sequence[PartitionLag]) -> Answer:
    """Compare lags with the threshold: ``below`` holds at the threshold and under it, ``above`` over it."""
    worst = max(partitions, key=lambda p: p.lag, default=None)
    value = sum(p.lag for p in partitions) if question.measure == "total" else worst.lag if worst else 0
    met = value <= question.threshold if question.condition == "below" else value > question.threshold
    who = f"group {question.group!r}" if question.group else f"pipeline {question.pipeline!r}"
    sign = "≤" if question.condition == "below" else ">"
    where = f", most on {worst.topic}[{worst.partition}] ({worst.lag:,})" if worst and worst.lag else ""
    reason = f"{who}: {question.measure} lag {value:,}{where}; wanted {sign} {question.threshold:,}"
    facts = {
        "lag": value,
        "total": sum(p.lag for p in partitions),
        "worst": worst.lag if worst else 0,
        "partitions": [[p.topic, p.partition, p.committed, p.end, p.lag] for p in partitions],
    }
    return Answer(met, reason, facts)


def ask_lag(lags: Lags, question: LagQuestion) -> Answer:
    """Ask the cluster, joining no group and committing nothing; raises FactoryError."""
    topics = list(question.topics)
    if question.group:
        return judge_lag(question, lags.of_group(question.group, topics))
    return judge_lag(question, lags.of_pipeline(question.pipeline, topics, prefix=question.prefix))


def ask_rollout(config: KafkaConfig, question: RolloutQuestion) -> Answer:
    """Ask who holds which partition. Raises RolledBackError for a version that was rolled back, and what ``Rollouts`` does."""
    from factory_agents.errors import RolledBackError
    from factory_agents.rollouts import Rollouts

    status = Rollouts(config, question.group, prefix=question.prefix).status()
    version = question.version or status.new or status.base
    if status.verdict == "rolled back" and status.new == version:
        raise RolledBackError(f"group {status.group!r}: version {version!r} was rolled back: {status.reason}")
    finished = status.verdict in ("steady", "rolled back") and status.base == version
    met = finished or (status.verdict == "rolled out" and status.new == version)
    held = sum(p.holder == version for p in status.partitions)
    facts = {"verdict": status.verdict, "version": version, "held": held, "partitions": len(status.partitions), "lag": status.lag}
    return Answer(met, f"{status.group}: version {version} holds {held} of {len(status.partitions)} partitions, {status.verdict}", facts)


def ask_window_closed(
    config: KafkaConfig | None, question: WindowClosedQuestion, now: datetime, *, cluster: Cluster | None = None
) -> Answer:
    """Answer from the clock where that is enough (``config`` may be None), else from the partitions; raises FactoryError."""
    waited = now.timestamp() - question.end.timestamp()
    if waited >= question.grace:
        return Answer(True, f"{question.topic}: {question.grace:g} s of grace after {question.end.isoformat()} are over", {"by": "grace"})
    if waited < 0:
        return Answer(False, f"{question.topic}: the window ends in {-waited:.0f} s")
    if config is None:
        return Answer(False, f"{question.topic}: not asked yet")
    from factory_agents.kafka.cuts import partition_passed

    passed = partition_passed(config, question.topic, question.end, cluster=cluster)
    still = sorted(p for p, done in passed.items() if not done)
    if not still:
        return Answer(True, f"{question.topic}: every partition has a record past {question.end.isoformat()}", {"by": "records"})
    shown = ", ".join(map(str, still[:10])) + (f" and {len(still) - 10} more" if len(still) > 10 else "")
    left = question.grace - waited
    return Answer(
        False, f"{question.topic}: no record past the window's end yet on partition(s) {shown}; grace ends in {left:.0f} s", {"open": still}
    )
