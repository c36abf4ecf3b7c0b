"""Workflows are found by pipeline, stage and window; a server that knows nothing of that runs them all the same."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from temporalio.client import Client
from temporalio.common import SearchAttributeKey, SearchAttributePair, TypedSearchAttributes
from temporalio.service import RPCError

from factory_agents.errors import ConfigurationError
from factory_agents.protocol import Interval
from factory_agents.temporal import client as clients
from factory_agents.temporal.protocol import BackfillDone, BackfillRequest, PipelineRequest
from tests.support.runs import Runs
from tests.support.temporal import Pipelines, own_server, stage
from tests.support.waiting import wait_for

START = datetime(2026, 11, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


def found(pipelines: Pipelines, query: str) -> list[str]:
    async def listed(client: Client) -> list[str]:
        try:
            return sorted([w.id async for w in client.list_workflows(query)])
        except RPCError:  # the server doesn't know the attributes yet
            return []

    return pipelines.ask(listed)


def known(pipelines: Pipelines) -> None:
    """Until the server takes the attributes, which it does some moments after it was told."""

    async def usable(client: Client) -> bool:
        await clients.register_attributes(client)
        await clients.register_attributes(client)  # as the next worker does
        attributes = await clients._known_attributes(client, pipelines.request("t", stage("s")).spec)
        try:
            await client.count_workflows("FactoryPipeline = 'x' AND FactoryStage = 'y' AND FactoryWindowStart > '2026-11-01T00:00:00Z'")
        except RPCError:
            return False
        return bool(attributes.search_attributes)

    wait_for(lambda: pipelines.ask(usable), "the server to know the attributes")


def test_windows_are_found_by_pipeline_stage_and_start(pipelines: Pipelines, runs: Runs) -> None:
    raw, marked, kept = (runs.topic(name) for name in ("raw", "marked", "kept"))
    known(pipelines)
    request = pipelines.request(raw, stage("mark", output=marked), stage("keep", output=kept))
    first = PipelineRequest(request.spec, Interval(START, START + HOUR))
    span = Interval(START, START + 2 * HOUR)

    async def backfilled(client: Client) -> BackfillDone:
        wanted = BackfillRequest(request.spec, span, 3600, BackfillDone(request.spec.pipeline))
        return await clients.outcome(await clients.start_backfill(client, wanted))

    with pipelines.served():
        pipelines.run(first)
        assert pipelines.ask(backfilled).windows == 2
    name = request.spec.pipeline
    second = f"{name}/{Interval(START + HOUR, START + 2 * HOUR).key}"
    ended = f"FactoryPipeline = '{name}' AND WorkflowType = 'FactoryPipeline' AND FactoryStage = 'keep'"
    wait_for(lambda: found(pipelines, ended) == [first.workflow_id, second], "both windows to be listed")
    assert found(pipelines, f"{ended} AND FactoryWindowStart >= '2026-11-01T01:00:00Z'") == [second]
    assert len(found(pipelines, f"FactoryPipeline = '{name}'")) == 3  # the backfill too


def test_a_server_that_does_not_know_them_runs_windows_all_the_same(
    pipelines: Pipelines, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw, marked = runs.topic("raw"), runs.topic("marked")
    unknown = TypedSearchAttributes([SearchAttributePair(SearchAttributeKey.for_keyword("FactoryUnheardOf"), "p")])
    monkeypatch.setattr(clients, "attributes_of", lambda *_: unknown)
    with pipelines.served():
        id_ = pipelines.start(pipelines.request(raw, stage("mark", output=marked)))
        assert pipelines.done(id_).stages[0].stage == "mark"
    assert not any(e.HasField("upsert_workflow_search_attributes_event_attributes") for e in pipelines.history(id_))


def test_a_server_that_knows_one_of_them_as_something_else_runs_windows_all_the_same(
    pipelines: Pipelines, runs: Runs, tmp_path: Path
) -> None:
    raw, marked = runs.topic("raw"), runs.topic("marked")
    theirs = ("FactoryPipeline=Keyword", "FactoryStage=Int", "FactoryWindowStart=Datetime")
    with own_server(tmp_path / "server", *(word for one in theirs for word in ("--search-attribute", one))) as server:
        own = Pipelines(server.address, pipelines.bootstrap, pipelines.prefix, tmp_path)
        request = own.request(raw, stage("mark", output=marked))
        with pytest.raises(ConfigurationError, match="search attributes of these names with other types: FactoryStage"):
            own.ask(clients.register_attributes)
        assert not own.ask(lambda client: clients._known_attributes(client, request.spec)).search_attributes
        with own.served():
            assert own.run(request).stages[0].stage == "mark"
