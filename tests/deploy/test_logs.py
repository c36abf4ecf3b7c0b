"""Logs into Loki: few labels, of what is in each line, and queries that can be read. Loki itself cannot run here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from factory_agents.telemetry import CONTEXT
from tests.support.logql import errors_in

ROOT = Path(__file__).resolve().parents[2]
COLLECTOR = ROOT / "deploy/logs/collector.yaml"
ALLOY = (ROOT / "deploy/compose/config.alloy").read_text()
ALWAYS = {"time", "level", "logger", "message"}
LATER = {"trace_id", "span_id"}
QUERIES = re.findall(r"^sum by .*\{service=.*$", (ROOT / "docs/telemetry.md").read_text(), re.MULTILINE)


def operators() -> list[dict[str, Any]]:
    return list(yaml.safe_load(COLLECTOR.read_text())["receivers"]["filelog"]["operators"])


def test_the_collector_reads_what_stands_in_each_line() -> None:
    used = set(re.findall(r"attributes\.(\w+)", yaml.safe_dump(operators())))
    assert used <= ALWAYS | LATER | set(CONTEXT)
    assert {"time", "level", "service", "agent"} <= used


def test_each_part_of_the_collector_is_used() -> None:
    settings = yaml.safe_load(COLLECTOR.read_text())
    (pipeline,) = settings["service"]["pipelines"].values()
    for kind in ("receivers", "processors", "exporters"):
        assert pipeline[kind] == list(settings[kind])


def test_labels_are_few() -> None:
    """A label more is a stream more for each of its values: no window, no shard, no trace."""
    moved = {o["to"] for o in operators() if o["type"] == "move"}
    assert moved == {'resource["service"]', 'resource["agent"]'}
    (wanted,) = re.findall(r"index_label, attributes: \[(.*)\]", COLLECTOR.read_text())
    assert wanted.split(", ") == ["service", "agent", "k8s.namespace.name"]
    (values,) = re.findall(r"stage\.labels \{\s*values = \{(.*)\}", ALLOY)
    assert set(re.findall(r"(\w+) =", values)) == {"service", "agent", "level"}


def test_queries_use_labels_and_fields_that_there_are() -> None:
    assert len(QUERIES) == 2
    for query in QUERIES:
        assert set(re.findall(r"sum by \((\w+)\)", query)) == {"agent"}
        (selector,) = re.findall(r"\{(.*?)\}", query)
        assert selector == 'service="factory-agent"'


def test_queries_are_logql() -> None:
    assert errors_in([*QUERIES, "sum by (agent) (count_over_time({a=}[5m]))"]) == [0, 0, 1]
