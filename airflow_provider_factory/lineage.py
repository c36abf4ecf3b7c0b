"""Inputs and outputs for OpenLineage: topics as ``kafka://<cluster>`` and their name, tables by where they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from airflow_provider_factory.settings import option
from factory_agents.lineage import run_facets, topic_dataset, written_datasets
from factory_agents.protocol import AgentResult
from factory_agents.reports import quality_facets

if TYPE_CHECKING:
    from airflow.providers.common.compat.openlineage.facet import Dataset
    from airflow.providers.openlineage.extractors import OperatorLineage

__all__ = ["judged_lineage", "result_lineage", "topic_lineage"]


def topic_lineage(*, inputs: Iterable[str] = (), outputs: Iterable[str] = ()) -> OperatorLineage[Any, Any]:
    """Topics as datasets."""
    from airflow.providers.openlineage.extractors import OperatorLineage

    return OperatorLineage(inputs=_topics(inputs), outputs=_topics(outputs))


def result_lineage(result: AgentResult, *, input_topic: str = "") -> OperatorLineage[Any, Any]:
    """What one run read and wrote: topics and the table, with the number of records written; and what its calls of a model took."""
    from airflow.providers.common.compat.openlineage.facet import OutputDataset, OutputStatisticsOutputDatasetFacet
    from airflow.providers.openlineage.extractors import OperatorLineage

    outputs = [
        OutputDataset(of.namespace, of.name, outputFacets={"outputStatistics": OutputStatisticsOutputDatasetFacet(rowCount=of.rows)})
        for of in written_datasets(result, option("cluster"))
    ]
    return OperatorLineage(inputs=_topics([input_topic]), outputs=outputs, run_facets=run_facets(result.counts))


def judged_lineage(result: AgentResult, report: Mapping[str, Any], *, input_topic: str, writes: bool) -> OperatorLineage[Any, Any]:
    """What was read, with a judged validation report as OpenLineage's data-quality facets; and what the run wrote, if it ``writes``."""
    from airflow.providers.common.compat.openlineage.facet import InputDataset
    from airflow.providers.openlineage.extractors import OperatorLineage

    read = topic_dataset(input_topic, option("cluster"))
    outputs = result_lineage(result).outputs if writes else []
    return OperatorLineage(inputs=[InputDataset(read.namespace, read.name, inputFacets=quality_facets(report))], outputs=outputs)


def _topics(names: Iterable[str]) -> list[Dataset]:
    from airflow.providers.common.compat.openlineage.facet import Dataset

    found = (topic_dataset(name, option("cluster")) for name in names if name)
    return [Dataset(namespace=of.namespace, name=of.name) for of in found]
