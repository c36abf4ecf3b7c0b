"""Inputs and outputs for OpenLineage: topics as ``kafka://<cluster>`` and their name, tables by where they are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from airflow_provider_factory.settings import option
from factory_agents.protocol import AgentResult, Dataset

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage

__all__ = ["result_lineage", "topic_lineage"]


def topic_lineage(*, inputs: Iterable[str] = (), outputs: Iterable[str] = ()) -> OperatorLineage[Any, Any]:
    """Topics as datasets."""
    from airflow.providers.common.compat.openlineage.facet import Dataset
    from airflow.providers.openlineage.extractors import OperatorLineage

    namespace = f"kafka://{option('cluster')}"
    return OperatorLineage(
        inputs=[Dataset(namespace=namespace, name=topic) for topic in inputs if topic],
        outputs=[Dataset(namespace=namespace, name=topic) for topic in outputs if topic],
    )


def result_lineage(result: AgentResult, *, input_topic: str = "") -> OperatorLineage[Any, Any]:
    """What one run read and wrote: topics and the table, with the number of records written."""
    from airflow.providers.common.compat.openlineage.facet import Dataset, OutputDataset, OutputStatisticsOutputDatasetFacet
    from airflow.providers.openlineage.extractors import OperatorLineage

    kafka = f"kafka://{option('cluster')}"
    outputs: list[Dataset] = []
    for manifest in (result.manifest, result.dead_letters):
        if manifest is not None and (manifest.count > 0 or manifest is result.manifest):
            statistics = OutputStatisticsOutputDatasetFacet(rowCount=manifest.count)
            outputs.append(OutputDataset(namespace=kafka, name=manifest.topic, outputFacets={"outputStatistics": statistics}))
    if result.dataset is not None:
        namespace, name = _named(result.dataset)
        statistics = OutputStatisticsOutputDatasetFacet(rowCount=result.counts.written)
        outputs.append(OutputDataset(namespace=namespace, name=name, outputFacets={"outputStatistics": statistics}))
    return OperatorLineage(inputs=[Dataset(namespace=kafka, name=input_topic)] if input_topic else [], outputs=outputs)


def _named(dataset: Dataset) -> tuple[str, str]:
    """Namespace and name as OpenLineage has them: ``postgres://host:port`` and ``database.schema.table``, ``bigquery`` and
    ``project.dataset.table``, ``snowflake://account`` and ``database.schema.table``; for other systems their address and name as they are.
    """
    if dataset.system != "postgres":
        return f"{dataset.system}://{dataset.address}" if dataset.address else dataset.system, dataset.name
    table = dataset.name if "." in dataset.name else f"public.{dataset.name}"
    hosts, _, database = dataset.address.rpartition("/")  # of several hosts the first names them all
    return f"postgres://{hosts.partition(',')[0]}", f"{database}.{table}"
