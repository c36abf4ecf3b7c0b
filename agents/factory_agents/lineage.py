"""What a run read and wrote, as datasets with the names that OpenLineage has for them: the same whoever orchestrates."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from factory_agents.protocol import AgentResult, Counts, Dataset

__all__ = ["NamedDataset", "run_facets", "topic_dataset", "written_datasets"]


@dataclass(frozen=True)
class NamedDataset:
    """A topic or a table; ``rows`` is how many records a run wrote there, None if that is not known."""

    namespace: str
    name: str
    rows: int | None = None


def topic_dataset(topic: str, cluster: str, rows: int | None = None) -> NamedDataset:
    """A topic of the cluster with this alias."""
    return NamedDataset(f"kafka://{cluster}", topic, rows)


def written_datasets(result: AgentResult, cluster: str) -> list[NamedDataset]:
    """The topics and the table that a run wrote to; dead letters where there are some."""
    manifests = [m for m in (result.manifest, result.dead_letters) if m is not None and (m.count > 0 or m is result.manifest)]
    found = [topic_dataset(manifest.topic, cluster, manifest.count) for manifest in manifests]
    if result.dataset is not None:
        namespace, name = _named(result.dataset)
        found.append(NamedDataset(namespace, name, result.counts.written))
    return found


def run_facets(counts: Counts) -> dict[str, Any]:
    """What a run paid for calls of a model, as a facet of OpenLineage's: ``factory_modelUsage``; none where it made no calls. Needs its
    client.
    """
    if not counts.asked:
        return {}
    usage = _usage_facet()(
        calls=counts.asked,
        promptTokens=counts.prompt_tokens,
        cachedTokens=counts.cached_tokens,
        completionTokens=counts.completion_tokens,
        cost=counts.cost,
    )
    return {"factory_modelUsage": usage}


@functools.cache
def _usage_facet() -> type[Any]:
    import attr
    from openlineage.client.facet_v2 import RunFacet

    whole = {name: attr.ib(type=int) for name in ("calls", "promptTokens", "cachedTokens", "completionTokens")}
    return attr.make_class("ModelUsageRunFacet", {**whole, "cost": attr.ib(type=float)}, bases=(RunFacet,))


def _named(dataset: Dataset) -> tuple[str, str]:
    """Namespace and name as OpenLineage has them: ``postgres://host:port`` and ``database.schema.table``, ``bigquery`` and
    ``project.dataset.table``, ``snowflake://account`` and ``database.schema.table``; for other systems their address and name as they are.
    """
    if dataset.system != "postgres":
        return f"{dataset.system}://{dataset.address}" if dataset.address else dataset.system, dataset.name
    table = dataset.name if "." in dataset.name else f"public.{dataset.name}"
    hosts, _, database = dataset.address.rpartition("/")  # of several hosts the first names them all
    return f"postgres://{hosts.partition(',')[0]}", f"{database}.{table}"
