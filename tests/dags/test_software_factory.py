"""The shipped pipeline, run as its users run it in CI (``airflow dags test``), on real parts."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from factory_agents.kafka.ledger import read_result, read_stage
from factory_agents.protocol import Counts, Interval, Work
from factory_agents.sandbox.state import bigquery_env
from factory_agents.temporal.pipelines import read_pipeline
from factory_agents.temporal.protocol import PipelineRequest
from tests.support.bigquery import Emulator
from tests.support.iceberg import Bench
from tests.support.otlp import Collector
from tests.support.repository import HOUR, PIPELINE, ROOT, Repository
from tests.support.runs import read_manifest
from tests.support.snowflake import SnowflakeSchema
from tests.support.temporal import Pipelines, own_server
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.airflow, pytest.mark.slow, pytest.mark.timeout(900)]

STAGES = ["ingest_events", "enrich_events", "validate_events", "publish_results"]
ONCE_AND_AGAIN = pytest.mark.parametrize("again", [False, pytest.param(True, marks=pytest.mark.soak)], ids=["once", "again"])
"""That what is done again replaces what it left is shown of the DAG by PostgreSQL's table, and of each sink by its own tests."""


def test_an_hour_lands_once_however_often_it_runs(repository: Repository, collector: Collector) -> None:
    """First by the literal command, in a worker that is told of a collector: it traces its stages, and events through them."""
    quiet = repository.environment | {"AIRFLOW__LOGGING__LOGGING_LEVEL": "WARNING"}  # as make try has it
    quiet |= {"PYTHONWARNINGS": "ignore"}  # what libraries say of each other, and of the Python that runs them
    traced = {"AIRFLOW__TRACES__OTEL_ON": "True", "OTEL_TRACES_EXPORTER": "otlp_proto_http", "OTEL_SERVICE_NAME": "airflow"}
    status, printed = replace(repository, environment=quiet | traced | collector.environment).dags_test()
    assert status == 0, printed
    assert {span.service for span in collector.spans} == {"airflow", "factory-agent"}
    runs = [collector.one(stage) for stage in STAGES]
    assert [run.links for run in runs[1:]] == [((before.trace_id, before.span_id),) for before in runs[:-1]]
    (event, *_) = collector.named("ingest_events event")
    assert [s.attributes["factory.stage"] for s in sorted(collector.spans, key=lambda s: s.end) if s.trace_id == event.trace_id] == STAGES

    said = [line for line in printed.splitlines() if "[opentelemetry.attributes]" not in line]  # of Airflow 3.2's own spans
    assert not [line for line in said if re.search("warning|error", line, re.IGNORECASE)], "all went well"
    for stage in STAGES:
        assert re.search(rf"{stage} over .*: consumed \d+, forwarded \d+", printed), "one line says what a stage did"
    rows = repository.rows("events")
    assert len(rows) == 137, printed
    assert Counter(row[0] for row in repository.rows("events", "size_class"))["binary"] >= 0
    unchanged = repository.rows("events", "event_id, xmin, ctid")

    state, printed = repository.run()
    assert state == "success", printed
    assert repository.rows("events", "event_id, xmin, ctid") == unchanged, "the finished hour was published again"

    state, printed = repository.run({"reprocess": True})
    assert state == "success", printed
    strip = "event_id, repo, path, added, deleted, language, size_class, occurred_at"
    assert len(repository.rows("events")) == 137
    assert {row[0] for row in repository.rows("events", strip)} == {row[0] for row in unchanged}
    assert repository.rows("events", "event_id, xmin, ctid") != unchanged, "reprocess did nothing"


@ONCE_AND_AGAIN
def test_a_param_lands_the_hour_in_bigquery(repository: Repository, emulator: Emulator, again: bool) -> None:
    repository.environment.update(bigquery_env(emulator.url))
    table = f"{emulator.dataset}.events"
    for conf in ({}, {"reprocess": True})[: 1 + again]:
        state, printed = repository.run({"sink": "bigquery", "table": table} | conf)
        assert state == "success", printed
        assert emulator.query("SELECT COUNT(*), COUNT(DISTINCT event_id) FROM {d}.events") == [(137, 137)], printed
    assert repository.rows("events") == []


@ONCE_AND_AGAIN
def test_a_param_lands_the_hour_in_snowflake(repository: Repository, snowflake: SnowflakeSchema, again: bool) -> None:
    repository.environment.update(snowflake.environment)
    table = f"local.{snowflake.name}.events"
    for conf in ({}, {"reprocess": True})[: 1 + again]:
        state, printed = repository.run({"sink": "snowflake", "table": table} | conf)
        assert state == "success", printed
        assert snowflake.query("SELECT COUNT(*), COUNT(DISTINCT EVENT_ID) FROM EVENTS") == [(137, 137)], printed
    assert repository.rows("events") == []


@ONCE_AND_AGAIN
def test_a_param_lands_the_hour_in_iceberg(repository: Repository, tmp_path: Path, again: bool) -> None:
    bench = Bench({"type": "sql", "uri": f"sqlite:///{tmp_path}/catalog.db", "warehouse": f"file://{tmp_path}/warehouse"})
    repository.environment["AIRFLOW_CONN_ICEBERG_DEFAULT"] = json.dumps({"conn_type": "iceberg", "extra": bench.properties})
    for conf in ({}, {"reprocess": True})[: 1 + again]:
        state, printed = repository.run({"sink": "iceberg", "table": bench.table} | conf)
        assert state == "success", printed
        ids = bench.rows("event_id")
        assert (len(ids), len(set(ids))) == (137, 137), printed
    assert repository.rows("events") == []


def test_a_dry_run_writes_nothing_and_skips_what_has_nothing_to_read(repository: Repository) -> None:
    state, printed = repository.run({"dry_run": True})
    assert state == "success", printed
    assert "dry run: the stage before wrote nothing" in printed
    assert repository.rows("events") == []


def test_what_is_wrong_is_one_clear_line_and_no_ten_minutes_wait(repository: Repository) -> None:
    state, printed = repository.run({"source": "data/no-such-file.jsonl"})
    assert state == "failed"
    said = [line for line in printed.splitlines() if "no-such-file.jsonl" in line and "Error" in line]
    assert said, printed
    assert repository.rows("events") == []


@pytest.mark.parametrize(
    ("conf", "says"),
    [
        ({"source": "/etc/passwd"}, "it comes from a parameter of the run, so it may only name a file under FACTORY_INCLUDE"),
        ({"source": "reference://a.csv::http://127.0.0.1:9/"}, "a chain of URLs is never taken"),
    ],
)
def test_whoever_triggers_a_run_reaches_no_other_file_or_host(repository: Repository, conf: dict[str, Any], says: str) -> None:
    state, printed = repository.run(conf)
    assert state == "failed"
    assert says in " ".join(printed.split()), printed
    assert "root:x:0" not in printed
    assert repository.rows("events") == []


@pytest.mark.parametrize("contract", ["name: open\nid: null\n", "/etc/passwd"])
def test_nor_another_gate(repository: Repository, contract: str) -> None:
    with pytest.raises(Exception, match="Invalid input for param contract"):  # Airflow's, which has moved between its releases
        repository.run({"contract": contract})


@pytest.fixture
def workflows(repository: Repository, bootstrap: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipelines]:
    """The same pipeline as a workflow, on a Temporal server of the test's own (workflows are named for the pipeline), with a worker."""
    monkeypatch.setenv("FACTORY_INCLUDE", str(ROOT / "include"))
    with own_server(tmp_path / "temporal") as server:
        own = Pipelines(server.address, bootstrap, repository.prefix, tmp_path)
        own.worker(DATABASE_URL=repository.database_url, FACTORY_INCLUDE=str(ROOT / "include"))
        yield own
        own.close()


def hour_of(hour: str, workflows: Pipelines) -> PipelineRequest:
    """The shipped pipeline over the hour that ends then."""
    end = datetime.fromisoformat(f"{hour}+00:00")
    spec = read_pipeline("pipelines/software_factory.yaml")
    own = msgspec.structs.replace(spec, task_queue=workflows.prefix, prefix=workflows.prefix)
    return PipelineRequest(own, Interval(end - timedelta(hours=1), end))


def left_by(workflows: Pipelines, request: PipelineRequest, stage: str, prefix: str) -> tuple[Counts, list[bytes], list[bytes]]:
    """What a stage counted, and the values of its events and of its dead letters, in order."""
    result = read_result(workflows.config, Work(PIPELINE, stage, request.window), prefix=prefix)
    assert result is not None
    written, rejected = (
        sorted(r.value or b"" for r in read_manifest(workflows.bootstrap, manifest)) if manifest is not None else []
        for manifest in (result.manifest, result.dead_letters)
    )
    counts = msgspec.structs.replace(result.counts, skipped=0)  # a chunk that was tried again leaves records that readers skip
    return counts, written, rejected


def test_a_workflow_leaves_what_the_dag_leaves(repository: Repository, workflows: Pipelines) -> None:
    """Rows, events and dead letters of the same hour, of which the DAG knows nothing: it has another ledger and another table."""
    request = hour_of(HOUR, workflows)
    assert [stage.stage for stage in workflows.run(request).stages] == STAGES
    dag = repository.environment["AIRFLOW__FACTORY__PREFIX"] = f"{repository.prefix}.dag"
    state, printed = repository.run({"table": "events_of_the_dag"})
    assert state == "success", printed
    columns = "event_id, repo, path, added, deleted, language, size_class, occurred_at"
    assert len(repository.rows("events", columns)) == 137
    assert repository.rows("events", columns) == repository.rows("events_of_the_dag", columns)
    for stage in STAGES:
        assert left_by(workflows, request, stage, workflows.prefix) == left_by(workflows, request, stage, dag)


def events_by_hour() -> Counter[str]:
    """How many events of the sample lie in each hour, by its end; lines without a readable time are left out."""
    hours: Counter[str] = Counter()
    for line in (ROOT / "include/data/changes.jsonl").read_bytes().splitlines():
        with suppress(ValueError):
            told = json.loads(line, strict=False)["occurred_at"]
            at = datetime.fromisoformat(told).astimezone(UTC) if isinstance(told, str) else datetime.fromtimestamp(told, UTC)
            hours[(at.replace(minute=0, second=0, microsecond=0) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M")] += 1
    return hours


@pytest.mark.parametrize("hours", [2, pytest.param(20, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])])
def test_what_the_dag_has_done_a_workflow_returns_and_the_other_way_round(repository: Repository, workflows: Pipelines, hours: int) -> None:
    landed: list[tuple[Any, ...]] = []
    for nth, (hour, _) in enumerate(events_by_hour().most_common(hours)):
        request, by_dag_first = hour_of(hour, workflows), nth % 2 == 0
        if not by_dag_first:
            assert [stage.reused for stage in workflows.run(request).stages] == [0] * 4
        between = repository.rows("events", "event_id, xmin, ctid")
        state, printed = repository.run(hour=hour)
        assert state == "success", printed
        before, landed = landed, repository.rows("events", "event_id, xmin, ctid")
        assert len(landed) > len(before)
        assert by_dag_first or landed == between, "the finished hour was published again"
        assert printed.count("already done: the result in the ledger stands") == (0 if by_dag_first else 4), printed
        if by_dag_first:
            assert [stage.reused for stage in workflows.run(request).stages] == [1] * 4
            assert repository.rows("events", "event_id, xmin, ctid") == landed, "the finished hour was published again"


def ids(values: list[bytes]) -> Counter[str]:
    return Counter(json.loads(value).get("event_id") for value in values)


@pytest.mark.parametrize("rounds", [1, pytest.param(20, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])])
def test_the_dag_and_a_workflow_over_the_same_hour_at_once_do_it_once(repository: Repository, workflows: Pipelines, rounds: int) -> None:
    """They fence each other; whoever loses returns the other's result at its retry."""
    events = events_by_hour()
    reused, tried, valid = 0, 0, set[str]()
    for nth, (hour, count) in enumerate(events.most_common(rounds)):
        request = hour_of(hour, workflows)
        ingest = Work(PIPELINE, "ingest_events", request.window)

        def started(request: PipelineRequest = request, ingest: Work = ingest, later: int = nth % 2) -> str:
            if later:
                wait_for(lambda: read_stage(workflows.config, ingest, prefix=workflows.prefix), "the DAG's first stage to begin", 120)
            return workflows.start(request)

        with ThreadPoolExecutor(1) as pool:
            start = pool.submit(started)
            state, printed = repository.run(hour=hour)
            assert state == "success", printed
            done = workflows.done(start.result())
        tried += sum(attempt > 1 for attempt in workflows.attempts(request.workflow_id)) + printed.count("FencedError")
        reused += sum(stage.reused for stage in done.stages)
        assert done.stages[0].counts.forwarded == count, "the events of the hour"
        before: list[bytes] = []
        for stage in STAGES[:-1]:
            counts, written, rejected = left_by(workflows, request, stage, workflows.prefix)
            assert len(written) == counts.produced
            assert stage == STAGES[0] or ids(before) == ids([*written, *rejected]), "each event of the stage before, once"
            before = written
        valid |= set(ids(before))
        assert [row[0] for row in repository.rows("events", "event_id")] == sorted(valid)
    print(f"{rounds} hours: {reused} of {4 * rounds} stages were the DAG's; {tried} attempts were fenced and tried again")
