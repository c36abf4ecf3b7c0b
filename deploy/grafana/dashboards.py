"""Makes the Grafana dashboards beside it out of what each panel asks: ``python deploy/grafana/dashboards.py``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).parent
_WIDTH, _HEIGHT, _COLUMNS = 8, 8, 3


class Panel(NamedTuple):
    """One chart: its title, what it asks Prometheus, what each line is called, and its unit in Grafana's words."""

    title: str
    expression: str
    legend: str
    unit: str = "short"
    kind: str = "timeseries"
    exemplars: bool = False


class Mark(NamedTuple):
    """Moments that are marked in all charts of a page: when ``metric``, the greatest by ``labels``, is new or has another value."""

    title: str
    metric: str
    labels: tuple[str, ...]
    legend: str
    color: str

    @property
    def expression(self) -> str:
        """What Prometheus is asked at each minute."""
        now = f"max by ({', '.join(self.labels)}) ({self.metric})"
        return f"{now} unless ({now} == max by ({', '.join(self.labels)}) ({self.metric} offset 1m))"


class Dashboard(NamedTuple):
    """A page of panels; ``variable`` is a label that a reader chooses, of those that ``metric`` has."""

    uid: str
    title: str
    variable: str
    metric: str
    panels: tuple[Panel, ...]
    marks: tuple[Mark, ...]


def _rollouts(chosen: str) -> Mark:
    return Mark("Rollouts", f"factory_agent_info{chosen}", ("agent", "pipeline", "version"), "{{agent}} {{version}}", "blue")


_BY_STAGE, _BY_GROUP = "{{pipeline}} {{stage}}", "{{group}} {{topic}}"
_P, _G, _LIVE = '{pipeline=~"$pipeline"}', '{group=~"$group"}', '{pipeline=~"$group"}'

_NOTHING = f"0 * max by (pipeline) (factory_windows_open{_P})"
"""Zero for each pipeline: where all is well, a panel says so and is not empty."""

DASHBOARDS = (
    Dashboard(
        "factory-pipelines",
        "Factory: pipelines",
        "pipeline",
        "factory_windows_open",
        (
            Panel(
                "Behind: age of the newest interval that is finished",
                f"pipeline_stage:factory_window_behind_seconds:max{_P}",
                _BY_STAGE,
                "s",
                "stat",
            ),
            Panel("Open windows", f"sum by (pipeline, stage) (factory_windows_open{_P})", _BY_STAGE, kind="stat"),
            Panel(
                "Arrived since the last cut",
                f"sum by (pipeline, topic) (factory_pipeline_lag{_P}) or on (pipeline) {_NOTHING}",
                "{{pipeline}} {{topic}}",
            ),
            Panel("Runs that finished", f"sum by (agent) (increase(agent_success_total{_P}[$__rate_interval]))", "{{agent}}"),
            Panel(
                "Attempts that failed",
                f"sum by (agent, error) (increase(agent_failure_total{_P}[$__rate_interval]))"
                f" or on (agent) 0 * sum by (agent) (agent_success_total{_P})",
                "{{agent}} {{error}}",
            ),
            Panel(
                "Windows that a stage finished",
                f"sum by (pipeline, stage) (increase(factory_windows_finished_total{_P}[$__rate_interval]))",
                _BY_STAGE,
            ),
            Panel("Events by outcome", f"sum by (outcome) (increase(factory_events_total{_P}[$__rate_interval]))", "{{outcome}}"),
            Panel("Share that was rejected, of an hour", f"pipeline_stage:factory_events_rejected:ratio1h{_P}", _BY_STAGE, "percentunit"),
            Panel(
                "Landing: 95 % of a day's windows within",
                f"histogram_quantile(0.95, sum by (pipeline, stage, le) (increase(factory_window_landing_seconds_bucket{_P}[1d])))",
                _BY_STAGE,
                "s",
            ),
            Panel(
                "Runs: 95 % of an hour's within",
                f"histogram_quantile(0.95, sum by (pipeline, stage, le) (increase(factory_run_seconds_bucket{_P}[1h])))",
                _BY_STAGE,
                "s",
            ),
            Panel(
                "Open window that rests longest",
                f"time() - factory_window_open_updated_timestamp_seconds{_P} or on (pipeline) {_NOTHING}",
                _BY_STAGE,
                "s",
            ),
        ),
        (_rollouts(_P), Mark("Windows", f"factory_window_end_timestamp_seconds{_P}", ("pipeline", "stage"), _BY_STAGE, "green")),
    ),
    Dashboard(
        "factory-live",
        "Factory: consumer groups and live agents",
        "group",
        "kafka_consumer_lag",
        (
            Panel("Lag in records", f"topic_group:kafka_consumer_lag:sum{_G}", _BY_GROUP),
            Panel("Lag in time", f"topic_group:kafka_consumer_lag_seconds:max{_G}", _BY_GROUP, "s"),
            Panel(
                "Events by outcome, a second",
                f'sum by (agent, outcome) (rate(factory_events_total{{stage="live",{_LIVE[1:]}[$__rate_interval]))',
                "{{agent}} {{outcome}}",
            ),
            Panel("Commits, a second", f"sum by (agent) (rate(factory_commit_seconds_count{_LIVE}[$__rate_interval]))", "{{agent}}"),
            Panel(
                "Commits: 95 % within",
                f"histogram_quantile(0.95, sum by (agent, le) (rate(factory_commit_seconds_bucket{_LIVE}[$__rate_interval])))",
                "{{agent}}",
                "s",
            ),
            Panel(
                "Age of events when committed: 95 % within",
                f"histogram_quantile(0.95, sum by (agent, le) (rate(factory_event_seconds_bucket{_LIVE}[$__rate_interval])))",
                "{{agent}}",
                "s",
                exemplars=True,
            ),
            Panel(
                "Records given at once, on average",
                f"sum by (agent) (rate(factory_batch_records_sum{_LIVE}[$__rate_interval]))"
                f" / sum by (agent) (rate(factory_batch_records_count{_LIVE}[$__rate_interval]))",
                "{{agent}}",
            ),
            Panel(
                "Age of the oldest open transaction",
                f"max by (agent, pipeline) (factory_transaction_age_seconds{_LIVE})",
                "{{agent}} {{pipeline}}",
                "s",
            ),
            Panel(
                "Transactions that were dropped", f"sum by (agent) (increase(factory_aborts_total{_LIVE}[$__rate_interval]))", "{{agent}}"
            ),
            Panel("Partitions held", f"sum by (pipeline) (factory_partitions_held{_LIVE})", "{{pipeline}}"),
            Panel("Rebalances", f"sum by (pipeline) (increase(factory_rebalances_total{_LIVE}[$__rate_interval]))", "{{pipeline}}"),
            Panel(
                "Breakers: 1 is open",
                f"max by (agent, dependency) (factory_breaker_open{_LIVE})"
                f" or on (agent) 0 * max by (agent) (factory_partitions_held{_LIVE})",
                "{{agent}} {{dependency}}",
            ),
            Panel("Metrics server: age of its figures", "factory_metrics_age_seconds", "{{part}}", "s"),
        ),
        (_rollouts(_LIVE),),
    ),
)


def _target(panel: Panel, source: dict[str, str]) -> dict[str, Any]:
    target: dict[str, Any] = {"refId": "A", "datasource": source, "expr": panel.expression, "legendFormat": panel.legend}
    return target | {"exemplar": True} if panel.exemplars else target


def rendered(dashboard: Dashboard) -> str:
    """A dashboard as Grafana imports it."""
    source = {"type": "prometheus", "uid": "${datasource}"}
    variables: list[dict[str, Any]] = [
        {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"},
        {
            "name": dashboard.variable,
            "type": "query",
            "datasource": source,
            "query": f"label_values({dashboard.metric}, {dashboard.variable})",
            "refresh": 2,
            "multi": True,
            "includeAll": True,
            "allValue": ".*",
            "current": {"text": "All", "value": "$__all"},
        },
    ]
    panels = [
        {
            "id": number + 1,
            "title": panel.title,
            "type": panel.kind,
            "datasource": source,
            "gridPos": {"x": number % _COLUMNS * _WIDTH, "y": number // _COLUMNS * _HEIGHT, "w": _WIDTH, "h": _HEIGHT},
            "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
            "targets": [_target(panel, source)],
        }
        for number, panel in enumerate(dashboard.panels)
    ]
    marks = [
        {
            "name": mark.title,
            "datasource": source,
            "enable": True,
            "iconColor": mark.color,
            "expr": mark.expression,
            "step": "60s",
            "titleFormat": mark.legend,
        }
        for mark in dashboard.marks
    ]
    page = {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "tags": ["factory"],
        "schemaVersion": 39,
        "time": {"from": "now-6h", "to": "now"},
        "refresh": "1m",
        "annotations": {"list": marks},
        "templating": {"list": variables},
        "panels": panels,
    }
    return json.dumps(page, indent=2) + "\n"


def main() -> int:
    """Write them; with ``--check`` only say whether they are as they should be."""
    stale = []
    for dashboard in DASHBOARDS:
        path = FOLDER / f"{dashboard.uid}.json"
        if "--check" not in sys.argv:
            path.write_text(rendered(dashboard))
        elif not path.exists() or path.read_text() != rendered(dashboard):
            stale.append(path.name)
    if stale:
        print(f"not up to date: {', '.join(stale)}; run python deploy/grafana/dashboards.py")
    return bool(stale)


if __name__ == "__main__":
    sys.exit(main())
