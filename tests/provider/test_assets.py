"""Topics and tables as assets, and what their events say."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from airflow.sdk import Asset

from airflow_provider_factory.assets import result_partition, stage_assets, table_asset, topic_asset
from airflow_provider_factory.version_compat import AIRFLOW_V_3_3_PLUS
from factory_agents.protocol import AgentResult, Interval

HOUR = Interval(datetime(2026, 3, 1, 4, tzinfo=UTC), datetime(2026, 3, 1, 5, tzinfo=UTC))


def test_a_table_is_an_asset_by_the_official_scheme() -> None:
    assert table_asset("events").uri == "postgres://main:5432/main/public/events"
    assert table_asset("sales.orders", database="warehouse").uri == "postgres://warehouse:5432/warehouse/sales/orders"
    assert table_asset("sales.orders").name == "sales.orders"
    mixed = table_asset('sales."Mixed Case.v2"')
    assert (mixed.name, mixed.uri) == ("sales.Mixed Case.v2", "postgres://main:5432/main/sales/Mixed%20Case.v2")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"agent": "enrich", "output_topic": "enriched"}, [topic_asset("enriched")]),
        ({"agent": "publish", "agent_params": {"table": "events"}}, [table_asset("events")]),
        ({"agent": "publish", "agent_params": {"table": "events"}, "output_topic": "done"}, [topic_asset("done"), table_asset("events")]),
        ({"agent": "publish", "agent_params": {"table": "{{ params.table }}"}, "output_topic": "{{ params.topic }}"}, []),
        ({"agent": "publish", "agent_params": {"table": "p.d.t", "sink": "bigquery"}}, [Asset(name="p.d.t", uri="bigquery://p/d/t")]),
        ({"agent": "publish", "agent_params": {"table": "d.t", "sink": "bigquery"}}, []),
        (
            {"agent": "publish", "agent_params": {"table": 'db."my schema".t', "sink": "snowflake"}},
            [Asset(name="DB.my schema.T", uri="snowflake://main/DB/my%20schema/T")],
        ),
        ({"agent": "publish", "agent_params": {"table": "t", "sink": "snowflake"}}, []),
        ({"agent": "my.module:agent", "agent_params": {"table": "events"}}, []),
        ({"agent": "publish"}, []),
    ],
)
def test_a_stage_reports_the_topic_and_the_table_that_it_writes(arguments: dict[str, Any], expected: list[Any]) -> None:
    assert stage_assets(arguments) == expected


def test_the_intervals_start_is_the_partition_key_where_keys_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    result = AgentResult("p", "s", HOUR.key, interval=HOUR)
    assert result_partition(result) is None
    monkeypatch.setenv("AIRFLOW__FACTORY__ASSET_PARTITIONS", "True")
    assert result_partition(result) == ("2026-03-01T04:00:00Z" if AIRFLOW_V_3_3_PLUS else None)
    assert result_partition(AgentResult("p", "s", "run_1")) is None
    half = Interval(HOUR.start + timedelta(minutes=30), HOUR.end)
    assert result_partition(AgentResult("p", "s", half.key, interval=half)) in (None, "2026-03-01T04:30:00Z")
