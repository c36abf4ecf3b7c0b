"""OpenLineage events of a workflow: the datasets that the DAG of the same stages has."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from airflow_provider_factory.lineage import result_lineage
from factory_agents.temporal.protocol import StageSpec
from tests.support.runs import Runs, events
from tests.support.temporal import Pipelines, stage
from tests.support.waiting import wait_for

Events = list[dict[str, Any]]


@pytest.fixture
def told() -> Iterator[tuple[str, Events]]:
    """Where events are taken, and those that came."""
    found: Events = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            found.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", found
    server.shutdown()
    server.server_close()
    thread.join()


def datasets(event: dict[str, Any], side: str) -> list[tuple[str, str]]:
    return [(one["namespace"], one["name"]) for one in event[side]]


def test_a_workflow_tells_of_the_datasets_that_the_dag_of_the_same_stages_does(
    pipelines: Pipelines, runs: Runs, told: tuple[str, Events], database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, found = told
    monkeypatch.setenv("AIRFLOW__FACTORY__CLUSTER", "east")
    raw, marked = runs.topic("raw"), runs.topic("marked")
    runs.produce(raw, events(100))
    contract = {"name": "events", "id": "event_id", "columns": {"event_id": "bigint", "text": "text"}}
    table = f"t_{pipelines.prefix.replace('-', '_')}"
    publish = StageSpec(name="publish", agent="publish", params={"contract": contract, "table": table})
    request = pipelines.request(raw, stage("mark", output=marked), publish)
    pipelines.worker(
        runner="thread", OPENLINEAGE_URL=url, OPENLINEAGE_NAMESPACE="clicks", FACTORY_CLUSTER="east", DATABASE_URL=database_url
    )
    pipelines.run(request)
    wait_for(lambda: sum(event["eventType"] == "COMPLETE" for event in found) == 2, "the events")
    assert [event["eventType"] for event in found] == ["START", "COMPLETE"] * 2
    assert len({event["run"]["runId"] for event in found}) == 2
    assert {event["job"]["name"] for event in found} == {f"{pipelines.prefix}.mark", f"{pipelines.prefix}.publish"}
    assert {event["job"]["namespace"] for event in found} == {"clicks"}
    (parent,) = {json.dumps(event["run"]["facets"]["parent"]["run"]) for event in found}
    assert len(json.loads(parent)["runId"]) == 36
    for name, topic in (("mark", raw), ("publish", marked)):
        (done,) = [e for e in found if e["eventType"] == "COMPLETE" and e["job"]["name"].endswith(name)]
        dag = result_lineage(pipelines.result(request, name), input_topic=topic)
        assert datasets(done, "inputs") == [(one.namespace, one.name) for one in dag.inputs]
        assert datasets(done, "outputs") == [(one.namespace, one.name) for one in dag.outputs]
        rows = [one["outputFacets"]["outputStatistics"]["rowCount"] for one in done["outputs"]]
        assert rows == [one.outputFacets["outputStatistics"].rowCount for one in dag.outputs]
    (first, *_) = found
    assert (datasets(first, "inputs"), datasets(first, "outputs")) == ([("kafka://east", raw)], [("kafka://east", marked)])


def test_lineage_that_nobody_takes_holds_no_agent_up_and_is_one_warning(pipelines: Pipelines, runs: Runs) -> None:
    raw, marked = runs.topic("raw"), runs.topic("marked")
    runs.produce(raw, events(100))
    worker = pipelines.worker(runner="thread", OPENLINEAGE_URL="http://127.0.0.1:1")
    assert pipelines.run(pipelines.request(raw, stage("mark", output=marked))).stages[0].counts.forwarded == 100
    wait_for(lambda: any("lineage is not sent" in line for line in worker.lines), "the warning")
    warnings = [line for line in worker.lines if '"warning"' in line or '"error"' in line]
    assert len(warnings) == 1, warnings
