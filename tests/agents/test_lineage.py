"""What a run wrote has the names that OpenLineage gives to topics and tables."""

from __future__ import annotations

import pytest

from factory_agents.lineage import NamedDataset, topic_dataset, written_datasets
from factory_agents.protocol import AgentResult, Counts, Dataset, Manifest, PartitionRange


def manifest(topic: str, records: int) -> Manifest:
    return Manifest(topic, "id", "stage/print/1", (PartitionRange(0, 0, records, records),) if records else ())


def result(**more: object) -> AgentResult:
    return AgentResult("p", "publish", "w", agent="a", version="1", fingerprint="f", **more)  # type: ignore[arg-type]


def test_an_empty_output_is_named_and_empty_dead_letters_are_not() -> None:
    found = written_datasets(result(manifest=manifest("out", 0), dead_letters=manifest("dead", 0)), "main")
    assert found == [NamedDataset("kafka://main", "out", 0)]


def test_dead_letters_are_named_where_there_are_some() -> None:
    found = written_datasets(result(manifest=manifest("out", 5), dead_letters=manifest("dead", 2)), "main")
    assert found == [topic_dataset("out", "main", 5), topic_dataset("dead", "main", 2)]


@pytest.mark.parametrize(
    ("dataset", "namespace", "name"),
    [
        (Dataset("postgres", name="events", address="db:5432/shop"), "postgres://db:5432", "shop.public.events"),
        (Dataset("postgres", name="sales.events", address="a:5432,b:5433/shop"), "postgres://a:5432", "shop.sales.events"),
        (Dataset("snowflake", name="DB.PUBLIC.EVENTS", address="acme"), "snowflake://acme", "DB.PUBLIC.EVENTS"),
        (Dataset("bigquery", name="project.set.events", address=""), "bigquery", "project.set.events"),
    ],
)
def test_a_table_is_named_as_its_system_does(dataset: Dataset, namespace: str, name: str) -> None:
    found = written_datasets(result(dataset=dataset, counts=Counts(written=7)), "main")
    assert found == [NamedDataset(namespace, name, 7)]
