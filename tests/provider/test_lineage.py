"""Datasets are named as OpenLineage names them, and never hold a password."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_factory.lineage import result_lineage, topic_lineage
from factory_agents.protocol import Counts, Dataset, Manifest, PartitionRange
from tests.support.samples import result


def outputs(**arguments: Any) -> list[tuple[str, str, int | None]]:
    lineage = result_lineage(**arguments)
    return [(d.namespace, d.name, d.outputFacets["outputStatistics"].rowCount) for d in lineage.outputs]


def test_topics_are_datasets_of_their_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__FACTORY__CLUSTER", "east")
    lineage = topic_lineage(inputs=["raw", ""], outputs=["enriched"])
    assert [(d.namespace, d.name) for d in lineage.inputs] == [("kafka://east", "raw")]
    assert [(d.namespace, d.name) for d in lineage.outputs] == [("kafka://east", "enriched")]


def test_dead_letters_are_an_output_only_where_there_are_some() -> None:
    letters = Manifest("enriched.dead", "T3", "w", (PartitionRange(0, 0, 5, 3),))
    none = Manifest("enriched.dead", "T3", "w")
    assert outputs(result=result(dead_letters=letters)) == [("kafka://main", "enriched", 10), ("kafka://main", "enriched.dead", 3)]
    assert outputs(result=result(dead_letters=none)) == [("kafka://main", "enriched", 10)]


@pytest.mark.parametrize(
    ("dataset", "namespace", "name"),
    [
        (Dataset("postgres", "events", "db:5433/shop"), "postgres://db:5433", "shop.public.events"),
        (Dataset("postgres", "mart.events", "db:5432/shop"), "postgres://db:5432", "shop.mart.events"),
        (Dataset("postgres", "events", "[::1]:5432/shop"), "postgres://[::1]:5432", "shop.public.events"),
        (Dataset("postgres", "events", "/run/pg:6000/shop"), "postgres:///run/pg:6000", "shop.public.events"),
        (Dataset("postgres", "events", "a:1,b:2/shop"), "postgres://a:1", "shop.public.events"),
        (Dataset("bigquery", "p.d.events"), "bigquery", "p.d.events"),
        (Dataset("snowflake", "DB.PUBLIC.EVENTS", "org-acme"), "snowflake://org-acme", "DB.PUBLIC.EVENTS"),
        (Dataset("my_sinks:Sqlite", "events"), "my_sinks:Sqlite", "events"),
    ],
)
def test_a_table_is_named_by_where_it_is(dataset: Dataset, namespace: str, name: str) -> None:
    assert outputs(result=result(manifest=None, dataset=dataset, counts=Counts(written=4))) == [(namespace, name, 4)]


def test_what_calls_of_a_model_took_is_a_facet_of_the_run() -> None:
    counts = Counts(consumed=3, forwarded=3, asked=2, prompt_tokens=90, cached_tokens=10, completion_tokens=5, nanocost=1_500_000)
    facets = result_lineage(result(counts=counts)).run_facets
    usage = facets["factory_modelUsage"]
    assert (usage.calls, usage.promptTokens, usage.cachedTokens, usage.completionTokens, usage.cost) == (2, 90, 10, 5, 0.0015)
    assert result_lineage(result()).run_facets == {}
