"""A pipeline's file: what it may say, and one line for whatever is wrong in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from factory_agents.contracts import load_contract
from factory_agents.errors import ConfigurationError
from factory_agents.protocol import CodecRef
from factory_agents.temporal.pipelines import read_pipeline
from factory_agents.temporal.protocol import PipelineSpec, StageSpec

ROOT = Path(__file__).resolve().parents[3]


def read(folder: Path, text: str) -> PipelineSpec:
    (folder / "pipeline.yaml").write_text(text)
    return read_pipeline(str(folder / "pipeline.yaml"))


def test_the_shipped_pipeline_is_read_with_its_contracts_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACTORY_INCLUDE", str(ROOT / "include"))
    spec = read_pipeline("pipelines/software_factory.yaml")
    assert [stage.name for stage in spec.stages] == ["ingest_events", "enrich_events", "validate_events", "publish_results"]
    packed = spec.stages[2].params["contract"]
    assert load_contract(packed).digest == load_contract("contracts/events.yaml").digest
    assert packed == spec.stages[3].params["contract"]


def test_defaults_are_few_and_json_is_a_codec_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "topics.yaml").write_text("topics: {clicks: {codec: avro}, marked: {codec: avro}}")
    monkeypatch.setenv("FACTORY_TOPICS", str(tmp_path / "topics.yaml"))
    stages = "stages: [{name: mark, agent: 'a:b', output_topic: marked}, {name: keep, agent: 'a:b', output_topic: kept}]"
    spec = read(tmp_path, f"pipeline: p\ntopic: clicks\n{stages}")
    mark = StageSpec(name="mark", agent="a:b", output_topic="marked", output_codec=CodecRef("avro"))
    keep = StageSpec(name="keep", agent="a:b", output_topic="kept")
    assert spec == PipelineSpec(pipeline="p", topic="clicks", codec=CodecRef("avro"), stages=(mark, keep))
    assert read(tmp_path, f"pipeline: p\ntopic: clicks\ncodec: json\n{stages}").codec is None


def test_more_than_a_server_takes_at_once_is_refused_before_it_is_sent(tmp_path: Path) -> None:
    text = '{"pipeline": "p", "topic": "t", "stages": [{"name": "a", "agent": "x:y", "params": {"text": "PUT"}}]}'
    read(tmp_path, text.replace("PUT", "x" * 1_800_000))
    with pytest.raises(ConfigurationError, match=r"pipeline.yaml: expected at most 1,900,000 bytes .*, got 2,000,\d+; a Temporal server"):
        read(tmp_path, text.replace("PUT", "x" * 2_000_000))


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", "expected"),
        ("[]", "pipeline.yaml:1:1: expected a mapping"),
        ("pipeline: p\nstagse: []", "pipeline.yaml:2:1: stagse: unknown key; did you mean 'stages'?"),
        (
            "pipeline: p\nstages: [{name: a, agent: ingest, paramz: {}}]",
            "pipeline.yaml:2:35: stages.0.paramz: unknown key; did you mean 'params'?",
        ),
        (
            "pipeline: p\ntopic: t\nstages: [{name: a, agent: x:y, compensate: {agnt: x:z}}]",
            "pipeline.yaml:3:45: stages.0.compensate.agnt: unknown key; did you mean 'agent'?",
        ),
        ("pipeline: p\ntopic: t\nhold: -1\nstages: [{name: a, agent: x:y}]", "hold: expected 0 s to a year, got -1 s"),
        ("pipeline: p\nstages: [mark]", "pipeline.yaml:2:10: stages.0: expected a mapping"),
        ("pipeline: p\nstages: []", "pipeline 'p': expected at least one stage"),
        ("pipeline: p/q\nstages: [{name: a, agent: ingest}]", "pipeline 'p/q': expected a name without"),
        ("pipeline: p\nstages: [{name: a}]", "missing required field `agent`"),
        ("pipeline: p\nstages: [{name: a, agent: enrich}]", "expected a topic that the first stage reads, or ingest"),
        ("pipeline: p\ntopic: t\nstages: [{name: a, agent: ingest}]", "expected a topic that the first stage reads, or ingest"),
        (
            "pipeline: p\ntopic: t\nstages: [{name: a, agent: x:y, output_topic: o}, {name: a, agent: x:y}]",
            "each stage needs a name of its own, got a, a",
        ),
        ("pipeline: p\ntopic: t\nstages: [{name: a, agent: x:y}, {name: b, agent: x:y}]", "stage 'a' needs an output_topic"),
        ("pipeline: p\ntopic: t\nstages: [{name: a, agent: x:y, shards: 0}]", "stage 'a': shards: expected at least 1, got 0"),
        ("pipeline: p\ntopic: t\nstages: [{name: a, agent: x:y, shards: many}]", "Expected `int`, got `str` - at `$.stages[0].shards`"),
        ("pipeline: p\ntopic: t\nstages: [{name: a, agent: x:y, fail_if: [rejected > 1]}]", "fail_if and warn_if judge the report"),
        (
            "pipeline: p\ntopic: t\nstages: [{name: a, agent: validate, fail_if: [rejectd > 1]}]",
            "pipeline.yaml: stage 'a': fail_if",
        ),
        ("pipeline: p\ntopic: t\ncodec: 7\nstages: [{name: a, agent: x:y}]", "pipeline.yaml:3:8: codec: expected a codec's name"),
        ("pipeline: p\ntopic: t\ntimeout: 0.1\nstages: [{name: a, agent: x:y}]", "timeout: expected 1 s to a year, got 0.1 s"),
        ("pipeline: p\ntopic: t\nheartbeat_timeout: 1e300\nstages: [{name: a, agent: x:y}]", "heartbeat_timeout: expected 1 s to a year"),
        ("pipeline: p\ntopic: t\nretry_interval: 0\nstages: [{name: a, agent: x:y}]", "retry_interval: expected 0.001 s to a year"),
        ("pipeline: p\ntopic: t\ntask_queue: ''\nstages: [{name: a, agent: x:y}]", "task_queue: expected at most 255 bytes"),
        (
            "pipeline: p\ntopic: t\nstages: [{name: a, agent: x:y, task_queue: /_sys/q}]",
            "stage 'a': task_queue: expected at most 255 bytes",
        ),
    ],
)
def test_what_is_wrong_is_one_line_that_says_where(tmp_path: Path, text: str, wrong: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        read(tmp_path, text)
    assert wrong in str(raised.value)
    assert "\n" not in str(raised.value)
