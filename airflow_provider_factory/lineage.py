"""Inputs and outputs for OpenLineage: topics as ``kafka://<cluster>`` and their name, tables by where they are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from airflow_provider_factory.settings import option
from factory_agents.lineage import topic_dataset, written_datasets
from factory_agents.protocol import AgentResult

if TYPE_CHECKING:
    from airflow.providers.common.compat.openlineage.facet import Dataset
    from airflow.providers.openlineage.extractors import OperatorLineage

__all__ = ["result_lineage", "topic_lineage"]


def topic_lineage(*, inputs: Iterable[str] = (), outputs: Iterable[str] = ()) -> OperatorLineage[Any, Any]:
    """Topics as datasets."""
    from airflow.providers.openlineage.extractors import OperatorLineage

    return OperatorLineage(inputs=_topics(inputs), outputs=_topics(outputs))


def result_lineage(result: AgentResult, *, input_topic: str = "") -> OperatorLineage[Any, Any]:
    """What one run read and wrote: topics and the table, with the number of records written."""
    from airflow.providers.common.compat.openlineage.facet import OutputDataset, OutputStatisticsOutputDatasetFacet
    from airflow.providers.openlineage.extractors import OperatorLineage

    outputs = [
        OutputDataset(of.namespace, of.name, outputFacets={"outputStatistics": OutputStatisticsOutputDatasetFacet(rowCount=of.rows)})
        for of in written_datasets(result, option("cluster"))
    ]
    return OperatorLineage(inputs=_topics([input_topic]), outputs=outputs)


def _topics(names: Iterable[str]) -> list[Dataset]:
    from airflow.providers.common.compat.openlineage.facet import Dataset

    found = (topic_dataset(name, option("cluster")) for name in names if name)
    return [Dataset(namespace=of.namespace, name=of.name) for of in found]
