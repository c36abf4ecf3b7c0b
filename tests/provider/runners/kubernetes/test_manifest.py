"""The agent's pod as a pure function, against golden files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_factory.runners.base import Access
from airflow_provider_factory.runners.kubernetes.manifest import (
    ANNOTATION,
    AgentPod,
    agent_pod,
    owned_secret,
    pod_labels,
    pod_template,
    safe_label,
)
from factory_agents.contracts import load_contract, pack_contract
from factory_agents.errors import ConfigurationError
from factory_agents.inference.params import pack_files, read_asking
from factory_agents.protocol import AgentRef, AgentRun, Order, Shard, decode_run
from tests.support.samples import window

GOLDEN = Path(__file__).parent / "golden"
ROOT = Path(__file__).parents[4]
RUN = AgentRun(
    "clicks",
    "enrich",
    AgentRef("enrich", version="v1"),
    window=window(2),
    shard=Shard(0, 2),
    plan="p1",
    output_topic="enriched",
    run_id="scheduled__2026-03-01T05:00:00+00:00",
)


def golden(name: str, value: Any) -> None:
    """Compare with a file that a person has read; ``FACTORY_GOLDEN=write`` writes it again."""
    import os

    path = GOLDEN / name
    text = json.dumps(value, indent=2, sort_keys=True) + "\n"
    if os.environ.get("FACTORY_GOLDEN") == "write":
        path.write_text(text)
    assert json.loads(path.read_text()) == value


def test_a_pod_of_the_default_template() -> None:
    spec = AgentPod(run=RUN, labels=pod_labels(RUN), image="agents:1", namespace="agents", secret="kafka")
    golden("pod_default.json", agent_pod(spec, pod_template()))


def test_a_pod_over_nothing_but_its_own_command() -> None:
    golden("pod_own_command.json", agent_pod(AgentPod(run=RUN, own_command=True, env={"MODE": "x"})))


def test_the_shipped_template_is_the_one_that_is_used() -> None:
    assert yaml.safe_load((ROOT / "include" / "pod_templates" / "agent.yaml").read_text()) == pod_template()


def test_a_contracts_references_travel_in_the_manifest_or_stay_behind_as_large_as_they_are(tmp_path: Path) -> None:
    """Kubernetes takes 256 KiB of annotations in all; what travels must leave room for the rest of the run."""
    shop = {"type": "string", "description": "a shop " * 10_000}
    contract = {"name": "orders", "id": None, "schema": {"properties": {"shop": shop}}, "references": {"shop": {"file": "shops.csv"}}}
    (tmp_path / "orders.yaml").write_text(json.dumps(contract))
    travelled = {}
    for values in (10, 15_000, 20_000, 30_000, 60_000):
        (tmp_path / "shops.csv").write_text("shop\n" + "".join(f"{hashlib.sha256(b'%d' % n).hexdigest()[:16]}\n" for n in range(values)))
        params = {"contract": pack_contract(load_contract(tmp_path / "orders.yaml"))}
        run = msgspec.structs.replace(RUN, agent=AgentRef("validate"), params=params)
        sent = decode_run(agent_pod(AgentPod(run=run))["metadata"]["annotations"][ANNOTATION])
        travelled[values] = "data" in sent.params["contract"]
        if travelled[values]:
            content = load_contract(sent.params["contract"]).foreign_keys[0].content or b""
            assert content == (tmp_path / "shops.csv").read_bytes()
    assert (travelled[10], travelled[60_000]) == (True, False)


def test_the_run_travels_whole_and_no_secret_with_it() -> None:
    pod = agent_pod(AgentPod(run=RUN, secret="kafka"))
    assert decode_run(pod["metadata"]["annotations"][ANNOTATION]) == RUN
    container = pod["spec"]["containers"][0]
    assert container["envFrom"] == [{"secretRef": {"name": "kafka"}}]
    assert not [e for e in container["env"] if e["name"].startswith(("KAFKA", "DATABASE"))]


def test_an_agent_over_a_model_is_told_everything_but_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The prompt travels as text, as no pod has the DAGs' files; address and key come from the connection, in the pod's own Secret."""
    monkeypatch.setenv("AIRFLOW_CONN_KAFKA_DEFAULT", json.dumps({"conn_type": "kafka", "extra": {"bootstrap.servers": "kafka:9092"}}))
    model = {"conn_type": "pydanticai", "password": "sk-secret-123", "host": "https://models.example/v1", "extra": {"model": "m"}}
    monkeypatch.setenv("AIRFLOW_CONN_MODEL", json.dumps(model))
    params = {"prompt": "prompts/kind.md", "output": "contracts/kind.yaml", "budget": {"window_tokens": 5}}
    packed = pack_files(params, (), [ROOT / "include"])
    run = msgspec.structs.replace(RUN, agent=AgentRef("infer"), params=packed)
    pod = agent_pod(AgentPod(run=run, labels=pod_labels(run), secret="factory-pod"), pod_template())
    assert "sk-secret" not in json.dumps(pod)
    told = decode_run(pod["metadata"]["annotations"][ANNOTATION])
    asking = read_asking({**told.params, "model": "m"})
    assert asking.prompt.fields
    assert asking.output.schema["type"] == "object"
    secret = owned_secret("factory-pod", "uid", Access("kafka_default", model="model").environment())
    assert secret["stringData"]["FACTORY_MODEL_API_KEY"] == "sk-secret-123"
    assert secret["stringData"]["FACTORY_MODEL_ENDPOINT"] == "https://models.example/v1"


def test_the_template_is_not_changed() -> None:
    base = pod_template()
    agent_pod(AgentPod(run=RUN, labels={"a": "b"}, image="x", secret="s"), base)
    assert base == pod_template()


def test_a_run_larger_than_annotations_may_be_is_one_clear_error() -> None:
    run = msgspec.structs.replace(RUN, agent=AgentRef("enrich", source="x" * 300_000, function="enrich"))
    with pytest.raises(
        ConfigurationError, match=r"annotations would take 30\d,\d{3} bytes, Kubernetes allows 262,144; the agent's source takes 300,000"
    ):
        agent_pod(AgentPod(run=run))


def test_a_thousand_partitions_fit() -> None:
    agent_pod(AgentPod(run=msgspec.structs.replace(RUN, window=window(1000))))


def test_labels_name_dag_run_task_agent_version_shard_and_fingerprint() -> None:
    labels = pod_labels(RUN)
    assert {k.removeprefix("factory-agents/"): v for k, v in labels.items() if k.startswith("factory-agents/")} == {
        "dag": "clicks",
        "run": "scheduled__2026-03-01T05-00-00-00-00-" + labels["factory-agents/run"][-8:],
        "task": "enrich",
        "agent": "enrich",
        "version": "v1",
        "shard": "0of2",
        "fingerprint": RUN.digest,
    }


def test_the_fingerprint_tells_other_code_but_not_another_place_in_the_ledger() -> None:
    moved = msgspec.structs.replace(RUN, window=window(2, ledger_offset=99))
    changed = msgspec.structs.replace(RUN, agent=AgentRef("enrich", version="v2"))
    assert moved.digest == RUN.digest != changed.digest
    first, cleared = (msgspec.structs.replace(RUN, order=Order("run 1", tries, clears)) for tries, clears in ((2, 0), (3, 1)))
    assert first.digest != cleared.digest, "a task that is cleared takes over no pod, and no word, from before the clear"


@given(st.text(max_size=100))
def test_any_name_becomes_a_label_that_kubernetes_takes(name: str) -> None:
    label = safe_label(name)
    assert len(label) <= 63
    assert label == "" or (
        label[0].isalnum() and label[-1].isalnum() and label.replace("-", "").replace("_", "").replace(".", "").isalnum()
    )
    assert label.isascii()


def test_different_names_stay_different() -> None:
    names = ["a" * 80, "a" * 81, "a b", "a/b", "a-b", "-a-b"]
    assert len({safe_label(n) for n in names}) == len(names)
