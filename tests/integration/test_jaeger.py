"""A real Jaeger shows an event's way as one trace, as long as it took from its producer to the table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from factory_agents.protocol import AgentRef, AgentRun, Window, merge_results
from tests.support.jaeger import NO_PROGRAM, PROGRAM, Landing, four_stages, jaeger
from tests.support.runs import Runs


@pytest.mark.skipif(PROGRAM is None, reason=NO_PROGRAM)
def test_a_trace_is_as_long_as_from_the_producer_to_the_table_and_what_was_killed_left_nothing(
    runs: Runs, database_url: str, tmp_path: Path
) -> None:
    landing, logged = Landing(database_url, f"t_{runs.prefix.replace('-', '_')}"), dict[str, str]()
    stages = four_stages(runs, tmp_path / "events.jsonl", landing.table)
    with jaeger(tmp_path) as seen:
        secrets = {"OTEL_EXPORTER_OTLP_ENDPOINT": seen.otlp_url, "DATABASE_URL": database_url}
        window: Window | None = None
        for stage in stages:
            run = AgentRun(runs.prefix, stage.name, AgentRef(stage.agent), params=stage.params, prefix=runs.prefix)
            given: dict[str, Any] = {"window": window, "origin": window.origin} if window is not None else {"name": "all"}
            run = msgspec.structs.replace(run, output_topic=stage.output_topic, **given)
            if stage.name == "enrich":
                runs.killed(run, "chunk.before-commit=kill", secrets=secrets)
            attempt = runs.attempt(run, secrets=secrets)
            assert attempt.wait() == 0, attempt.log
            logged[stage.name] = next(line["trace_id"] for line in map(json.loads, attempt.lines) if line["message"] == "done")
            if stage.output_topic:
                window = merge_results([attempt.result])
        (produced,) = runs.everything(stages[0].output_topic)
        seen.check_the_way(produced.timestamp / 1000, landing.at())
        assert logged == {span.stage: span.trace for span in seen.spans("run") if not span.failed}, "a log leads to its trace"
