"""Which metrics there are: their names, types, labels and meaning, for live agents and the metrics server alike; and their text."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from factory_agents.errors import ConfigurationError

if TYPE_CHECKING:
    from prometheus_client import Metric

__all__ = ["FAMILIES", "Example", "Examples", "Family", "Series", "Snapshot", "Totals", "Values", "encoder", "family", "require_encoder"]


@dataclass(frozen=True)
class Family:
    """One metric. ``buckets`` are a histogram's upper bounds, without the last one."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    help: str
    buckets: tuple[float, ...] = ()

    @property
    def width(self) -> int:
        """How many figures a series of it has: of a histogram its buckets (each for itself), those beyond, and the sum."""
        return len(self.buckets) + 2 if self.buckets else 1


_MINUTE, _HOUR = 60.0, 3600.0
_SECONDS = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0, _MINUTE, 2 * _MINUTE, 5 * _MINUTE, 10 * _MINUTE, 30 * _MINUTE, _HOUR)
_LANDING = (30.0, *(m * _MINUTE for m in (1, 2, 5, 10, 15, 30)), *(h * _HOUR for h in (1, 2, 4, 12, 24)))

_AGES = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, _MINUTE, 5 * _MINUTE, 30 * _MINUTE, _HOUR, 24 * _HOUR)
_RECORDS = (1.0, 10.0, 100.0, 1000.0, 10000.0)

_OF_MODELS: Mapping[str, tuple[str, tuple[str, ...], float]] = {
    "asked": ("agent_calls_total", (), 1.0),
    "prompt_tokens": ("agent_tokens_total", ("prompt",), 1.0),
    "cached_tokens": ("agent_tokens_total", ("cached",), 1.0),
    "completion_tokens": ("agent_tokens_total", ("completion",), 1.0),
    "nanocost": ("agent_cost_total", (), 1e-9),
}
"""Counts that are not of events: their metric, its last label, and what one of them is in its unit."""

_STAGE = ("pipeline", "stage")
_AGENT = ("agent", *_STAGE)

FAMILIES: Mapping[str, Family] = {
    of.name: of
    for of in (
        Family("agent_success_total", "counter", _AGENT, "Runs of agents that finished: a shard of a stage over a window each."),
        Family("agent_failure_total", "counter", (*_AGENT, "error"), "Attempts that failed, by the error's class."),
        Family(
            "factory_events_total",
            "counter",
            (*_AGENT, "outcome"),
            "Events of finished runs by what became of them; consumed are all that were read.",
        ),
        Family("agent_calls_total", "counter", _AGENT, "Calls of a model by agents over one; answers that are logged take none."),
        Family(
            "agent_tokens_total",
            "counter",
            (*_AGENT, "kind"),
            "Tokens that they took: prompt, completion, and cached, which prompt has, too.",
        ),
        Family("agent_cost_total", "counter", _AGENT, "What they cost by the agent's price table, in its currency."),
        Family("factory_run_seconds", "histogram", _AGENT, "How long the attempts lasted that finished.", _SECONDS),
        Family("factory_windows_finished_total", "counter", _STAGE, "Windows of which a stage finished the last shard."),
        Family(
            "factory_window_landing_seconds",
            "histogram",
            _STAGE,
            "From the end of a window's interval until a stage first finished all of it.",
            _LANDING,
        ),
        Family(
            "factory_windows_open",
            "gauge",
            _STAGE,
            "Windows that a stage has begun and not finished; with an empty stage: planned ones that none has.",
        ),
        Family(
            "factory_window_open_updated_timestamp_seconds",
            "gauge",
            _STAGE,
            "When something was last committed on the open window that rests longest.",
        ),
        Family("factory_window_end_timestamp_seconds", "gauge", _STAGE, "End of the latest interval that a stage has finished."),
        Family("factory_window_length_seconds", "gauge", _STAGE, "Length of that interval."),
        Family(
            "factory_replication_behind_bytes",
            "gauge",
            _STAGE,
            "How much log of PostgreSQL lay behind the place up to which its changes were in the topic, when that was read last.",
        ),
        Family("factory_replication_read_timestamp_seconds", "gauge", _STAGE, "When PostgreSQL's log was read last."),
        Family("factory_replication_changed_timestamp_seconds", "gauge", _STAGE, "When the newest change that was read was committed."),
        Family(
            "factory_agent_info", "gauge", (*_AGENT, "version"), "1, with the version of the latest run that finished, or of a live agent."
        ),
        Family("factory_batch_records", "histogram", _AGENT, "Records that a live agent was given at once.", _RECORDS),
        Family("factory_batch_seconds", "histogram", _AGENT, "How long it took for them.", _SECONDS),
        Family(
            "factory_commit_seconds", "histogram", _AGENT, "How long a live agent's transactions took from their last record on.", _SECONDS
        ),
        Family(
            "factory_event_seconds",
            "histogram",
            _AGENT,
            "From a sampled event's timestamp until a live agent committed what became of it; exemplars name its trace.",
            _AGES,
        ),
        Family("factory_aborts_total", "counter", _AGENT, "Transactions of a live agent that were dropped, and their records read again."),
        Family("factory_rebalances_total", "counter", _AGENT, "How often a live agent was given other partitions."),
        Family("factory_partitions_held", "gauge", _AGENT, "Partitions that a live agent has now."),
        Family("factory_transaction_age_seconds", "gauge", _AGENT, "Age of a live agent's open transaction; 0 without one."),
        Family("factory_busy_seconds", "gauge", _AGENT, "For how long a live agent has been at one call."),
        Family("factory_held_lag", "gauge", _AGENT, "Offsets that a live agent has still to read on the partitions that it has."),
        Family(
            "factory_scalable_lag",
            "gauge",
            _AGENT,
            "As factory_held_lag, but 0 while a breaker is not closed: what to scale by.",
        ),
        Family(
            "factory_breaker_open",
            "gauge",
            (*_AGENT, "dependency"),
            "State of a service's breaker: 1 is open (it isn't called), 0.5 half-open.",
        ),
        Family(
            "kafka_consumer_lag",
            "gauge",
            ("topic", "group", "partition"),
            "Offsets that a group has still to read, up to the last record that a committed reader sees.",
        ),
        Family("kafka_consumer_lag_seconds", "gauge", ("topic", "group", "partition"), "Age of the first of these records; 0 without one."),
        Family("factory_pipeline_lag", "gauge", ("pipeline", "topic"), "Offsets that have arrived since a pipeline's last cut of a topic."),
        Family(
            "factory_metrics_up",
            "gauge",
            ("part",),
            "Whether a part of the metrics server did its work the last time: ledger, lag or positions.",
        ),
        Family("factory_metrics_age_seconds", "gauge", ("part",), "How long ago a part last did its work."),
        Family(
            "factory_ledger_unreadable_records",
            "gauge",
            (),
            "Ledger records that this release can't read, so that they are missing in all figures.",
        ),
    )
}

Series: TypeAlias = tuple[str, tuple[str, ...]]
"""A metric's name and its labels' values."""

Values: TypeAlias = Mapping[Series, tuple[float, ...]]
"""Figures by series; as many as ``Family.width`` says."""


def family(name: str) -> Family:
    """A metric by its name."""
    return FAMILIES[name]


@dataclass(frozen=True)
class Example:
    """The trace of one value that a histogram was given, and when that was."""

    trace_id: str
    value: float
    at: float


Examples: TypeAlias = Mapping[Series, Mapping[int, Example]]
"""The newest example of a histogram's buckets, by their places."""


class Totals:
    """Counters and histograms by series; they only grow. A series begins with zeros."""

    def __init__(self) -> None:
        self._figures: dict[Series, list[float]] = {}
        self._examples: dict[Series, dict[int, Example]] = {}

    def _of(self, name: str, labels: tuple[str, ...]) -> list[float]:
        figures = self._figures.get((name, labels))
        if figures is None:
            figures = self._figures[name, labels] = [0.0] * family(name).width
        return figures

    def add(self, name: str, labels: tuple[str, ...], amount: float) -> None:
        """Raise a counter; by 0: from now on there is one."""
        self._of(name, labels)[0] += amount

    def count(self, agent: tuple[str, ...], name: str, amount: float) -> None:
        """Raise the counter that one of an agent's ``Counts`` goes into."""
        metric, kind, unit = _OF_MODELS.get(name) or ("factory_events_total", (name,), 1.0)
        self.add(metric, (*agent, *kind), amount * unit)

    def observe(self, name: str, labels: tuple[str, ...], value: float, times: int = 1, *, trace_id: str = "") -> None:
        """Put a value into a histogram, as its bucket's example where it has a trace; 0 times: from now on there is one."""
        figures, bucket = self._of(name, labels), bisect_left(family(name).buckets, value)
        figures[bucket] += times
        figures[-1] += value * times
        if trace_id:
            self._examples.setdefault((name, labels), {})[bucket] = Example(trace_id, value, time.time())

    def frozen(self) -> Values:
        """As they are now."""
        return {series: tuple(figures) for series, figures in self._figures.items()}

    def examples(self) -> Examples:
        """Those of the histograms, as they are now."""
        return {series: dict(found) for series, found in self._examples.items()}


@dataclass(frozen=True)
class Snapshot:
    """All figures at one moment; ``number`` grows from one snapshot to the next."""

    number: int = 0
    totals: Values = field(default_factory=dict)
    gauges: Values = field(default_factory=dict)


def require_encoder() -> None:
    """Raises ConfigurationError where prometheus-client isn't installed. It is imported at the first scrape: it is a third of a start."""
    if find_spec("prometheus_client") is None:
        raise ConfigurationError("metrics need prometheus-client, which is not installed: pip install 'factory-agents[metrics]'")


def encoder(accept: str, examples: Examples | None = None) -> tuple[Callable[[Values], bytes], str]:
    """What makes a text of values, in the format that a scraper accepts, and that text's content type. Only OpenMetrics shows examples."""
    from prometheus_client import exposition

    try:
        encode, content_type = exposition.choose_encoder(accept)
    except (TypeError, ValueError):  # a version that is none
        encode, content_type = exposition.choose_encoder("")
    return lambda values: encode(_Collected(values, examples or {})), content_type


class _Collected:
    """Values as prometheus-client collects them."""

    def __init__(self, values: Values, examples: Examples) -> None:
        self._values = values
        self._examples = examples

    def collect(self) -> Iterator[Metric]:
        """All metrics that have series, in the order in which they are declared."""
        by_name: dict[str, list[tuple[tuple[str, ...], tuple[float, ...]]]] = {}
        for (name, labels), figures in self._values.items():
            by_name.setdefault(name, []).append((labels, figures))
        for name, of in FAMILIES.items():
            if name in by_name:
                yield _metric(of, sorted(by_name[name]), self._examples)


def _metric(of: Family, rows: Iterable[tuple[tuple[str, ...], tuple[float, ...]]], examples: Examples) -> Metric:
    from prometheus_client import core

    made: Any = getattr(core, f"{of.kind.capitalize()}MetricFamily")(of.name.removesuffix("_total"), of.help, labels=of.labels)
    for labels, figures in rows:
        if of.kind == "histogram":
            made.add_metric(labels, _cumulated(of.buckets, figures, examples.get((of.name, labels), {})), figures[-1])
        else:
            made.add_metric(labels, figures[0])
    metric: Metric = made
    return metric


def _cumulated(buckets: tuple[float, ...], figures: tuple[float, ...], examples: Mapping[int, Example]) -> list[tuple[Any, ...]]:
    from prometheus_client.samples import Exemplar

    found, total = list[tuple[Any, ...]](), 0.0
    for place, (bound, count) in enumerate(zip((*map(str, buckets), "+Inf"), figures, strict=False)):
        total += count
        of = examples.get(place) if count else None  # a series that is shown as zeros at first has none yet
        found.append((bound, total) if of is None else (bound, total, Exemplar({"trace_id": of.trace_id}, of.value, of.at)))
    return found
