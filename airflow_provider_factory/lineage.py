"""Inputs and outputs for OpenLineage, named as the assets are: ``kafka://<cluster>`` and the topic."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from airflow_provider_factory.settings import option
from factory_agents.protocol import AgentResult

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


def result_lineage(result: AgentResult, *, input_topic: str = "", database_url: str = "") -> OperatorLineage[Any, Any]:
    """What one run read and wrote: topics and the table, with the number of records written."""
    from airflow.providers.common.compat.openlineage.facet import Dataset, OutputDataset, OutputStatisticsOutputDatasetFacet
    from airflow.providers.openlineage.extractors import OperatorLineage

    kafka = f"kafka://{option('cluster')}"
    outputs: list[Dataset] = []
    for manifest in (result.manifest, result.dead_letters):
        if manifest is not None and (manifest.count > 0 or manifest is result.manifest):
            statistics = OutputStatisticsOutputDatasetFacet(rowCount=manifest.count)
            outputs.append(OutputDataset(namespace=kafka, name=manifest.topic, outputFacets={"outputStatistics": statistics}))
    if result.table:
        namespace, name = _table(result.table, database_url)
        statistics = OutputStatisticsOutputDatasetFacet(rowCount=result.counts.written)
        outputs.append(OutputDataset(namespace=namespace, name=name, outputFacets={"outputStatistics": statistics}))
    return OperatorLineage(inputs=[Dataset(namespace=kafka, name=input_topic)] if input_topic else [], outputs=outputs)


def _table(table: str, database_url: str) -> tuple[str, str]:
    """Namespace ``postgres://host:port`` and name ``database.schema.table``, as OpenLineage names Postgres.

    A sink's name and a colon in the URL's place gives another sink's.
    """
    if database_url.endswith(":"):
        return database_url[:-1], table
    schema = table if "." in table else f"public.{table}"
    if not database_url:
        return "postgres", schema
    parts = urlsplit(database_url)
    query = dict(parse_qsl(parts.query))  # where several hosts stand, or a socket's folder: the first one names them all
    host = parts.hostname or query.get("host", "localhost").partition(",")[0]
    port = parts.port or query.get("port", "5432").partition(",")[0]
    return f"postgres://{f'[{host}]' if ':' in host else host}:{port}", f"{parts.path.strip('/')}.{schema}"
