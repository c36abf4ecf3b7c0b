"""Topics as the file says: missing ones are made, what differs is told and mended on request, a mistyped file names its line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from factory_agents.errors import ConfigurationError
from factory_agents.inference.answers import ANSWER_SETTINGS
from factory_agents.kafka.ledger import LEDGER_SETTINGS
from factory_agents.kafka.topics import Cluster, TopicInfo
from factory_agents.protocol import CodecRef
from factory_agents.runtime.outputs import DEAD_SETTINGS
from factory_agents.topics_file import WantedTopic, apply_topics, compare, declared_codec, read_topics
from tests.support.commands import ROOT, Command
from tests.support.runs import Runs

if TYPE_CHECKING:
    from tests.conftest import TopicFactory

WEEK = str(168 * 3600 * 1000)


def write(folder: Path, text: str) -> str:
    path = folder / "topics.yaml"
    path.write_text(text)
    return str(path)


def test_the_pipelines_topics_are_as_the_seed_design_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    topics = {t.name: t for t in read_topics("include/topics.yaml")}
    live = {"live_events", "live_enriched_events"}
    assert {"raw_events", "enriched_events", "validated_events"} | live <= set(topics)
    assert all((t.partitions, t.replication) == (12, 3) for t in topics.values())
    assert all(t.settings["retention.ms"] == WEEK and t.settings["message.timestamp.type"] == "LogAppendTime" for t in topics.values())
    inputs = {"raw_events", "live_events"}
    for name in set(topics) - inputs:
        assert topics[name].settings["cleanup.policy"] == "compact,delete"
        assert topics[name].settings["min.compaction.lag.ms"] == WEEK
    assert all(topics[name].settings["cleanup.policy"] == "delete" for name in inputs)


def test_the_file_is_also_found_under_factory_include(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FACTORY_INCLUDE", str(ROOT / "include"))
    assert "raw_events" in {t.name for t in read_topics("include/topics.yaml")}


def test_a_topics_own_settings_go_over_the_defaults(tmp_path: Path) -> None:
    path = write(
        tmp_path, "defaults: {partitions: 3, config: {retention.ms: 1, segment.ms: 2}}\ntopics:\n  a: {config: {retention.ms: 5}}\n  b:\n"
    )
    assert read_topics(path, replication=2) == [
        WantedTopic("a", 3, 2, {"retention.ms": "5", "segment.ms": "2"}),
        WantedTopic("b", 3, 2, {"retention.ms": "1", "segment.ms": "2"}),
    ]


def test_dead_letters_have_a_retention_of_their_own_and_are_never_compacted(tmp_path: Path) -> None:
    file = tmp_path / "topics.yaml"
    defaults = "defaults: {partitions: 3, config: {retention.ms: 1, cleanup.policy: 'compact,delete', min.compaction.lag.ms: 1}}\n"
    file.write_text(defaults + "topics: {a.dead: {}, b.dead: {config: {retention.ms: 7}}}")
    usual, longer = read_topics(str(file))
    assert (usual.partitions, usual.settings) == (3, {**DEAD_SETTINGS, "cleanup.policy": "delete"})
    assert longer.settings == usual.settings | {"retention.ms": "7"}
    file.write_text("topics:\n  a.dead:\n    config: {cleanup.policy: compact}")
    with pytest.raises(
        ConfigurationError,
        match=r"topics.yaml:3:30: topics.a.dead.config.cleanup.policy: compaction would take dead letters away: expected delete",
    ):
        read_topics(str(file))


def test_a_topic_has_a_codec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "defaults: {codec: avro}\ntopics:\n  a: {codec: json}\n  b:\n  c: {codec: {name: avro, version: 3}}\n")
    declared = [None, CodecRef("avro"), CodecRef("avro", {"version": 3})]
    assert [wanted.codec for wanted in read_topics(path)] == declared
    monkeypatch.setenv("FACTORY_TOPICS", path)
    assert [declared_codec(name) for name in ("a", "b", "c", "d", "")] == [*declared, None, None]
    monkeypatch.delenv("FACTORY_TOPICS")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert declared_codec("b") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("topics:\n  a: {partition: 3}\n", "topics.yaml:2:7: topics.a.partition: unknown key; did you mean 'partitions'?"),
        (
            "topics:\n  a: {codec: [avro]}\n",
            "topics.yaml:2:14: expected a codec's name, such as avro, or a mapping with name and options, got ['avro']",
        ),
        ("topic: {}\n", "topics.yaml:1:1: topic: unknown key; did you mean 'topics'?"),
        ("topics:\n  a: {partitions: none}\n", "topics.yaml:2:19: topics.a.partitions: expected a whole number from 1, got 'none'"),
        (
            "topics:\n  a:\n    config:\n      retention.sm: 1\n",
            "topics.yaml:4:7: topics.a.config.retention.sm: unknown topic setting; did you mean 'retention.ms'?",
        ),
        ("defaults: {}\n", "topics.yaml:1:1: topics: expected a mapping of topic names, got null"),
    ],
)
def test_a_mistyped_file_names_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        read_topics(write(tmp_path, text))
    assert str(raised.value).removeprefix(f"{tmp_path}/") == message


def test_drift_is_told_setting_by_setting_with_what_mends_it() -> None:
    wanted = WantedTopic("t", 12, 3, {"retention.ms": "5", "cleanup.policy": "compact,delete", "no.such": "1"})
    found = compare(wanted, TopicInfo("t", "id", 4, 1), {"retention.ms": "6", "cleanup.policy": "delete, compact"})
    assert [(d.setting, d.wanted, d.found) for d in found] == [
        ("partitions", "12", "4"),
        ("replication", "3", "1"),
        ("retention.ms", "5", "6"),
        ("no.such", "1", "(this broker has no such setting)"),
    ]
    fewer = compare(WantedTopic("t", 2, 1, {}), TopicInfo("t", "id", 4, 1), {})
    assert [d.hint for d in fewer] == ["Kafka cannot take partitions away"]


def test_missing_topics_are_created_the_factorys_own_too_and_fewer_brokers_are_a_warning(runs: Runs) -> None:
    wanted = [WantedTopic(f"{runs.prefix}.new", 12, 3, {"cleanup.policy": "compact,delete", "retention.ms": WEEK})]
    report = apply_topics(runs.config, wanted, prefix=runs.prefix, change=True, fix=False)
    made = [f"{runs.prefix}.{name}" for name in ("new", "ledger", "answers", "control")]
    assert [(t.name, t.state) for t in report.topics] == [(name, "created") for name in made]
    assert report.warnings[0].startswith("3 replicas are wanted and there is 1 broker")
    facts = Cluster(runs.config).topic(f"{runs.prefix}.new")
    assert (facts.partitions, facts.replication) == (12, 1)
    settings = Cluster(runs.config).settings(f"{runs.prefix}.new")
    assert (settings["cleanup.policy"], settings["retention.ms"]) == ("compact,delete", WEEK)
    again = apply_topics(runs.config, wanted, prefix=runs.prefix, change=True, fix=False)
    assert [t.state for t in again.topics] == ["as declared"] * 4
    assert not again.differs
    for name, settings in (("ledger", LEDGER_SETTINGS), ("control", LEDGER_SETTINGS), ("answers", ANSWER_SETTINGS)):
        assert settings.items() <= Cluster(runs.config).settings(f"{runs.prefix}.{name}").items()
    runs.admin.delete_topics([f"{runs.prefix}.new"])[f"{runs.prefix}.new"].result()


def test_check_changes_nothing_and_fix_mends(factory: Command, topic: TopicFactory, prefix: str, tmp_path: Path) -> None:
    name = topic(partitions=2, retention_ms=1000)
    path = write(tmp_path, f"topics:\n  {name}: {{partitions: 3, config: {{retention.ms: 2000}}}}\n  {prefix}.missing: {{}}\n")
    looked = factory("topics", "apply", path, "--check")
    assert looked.code == 2
    assert [(t["name"], t["state"]) for t in looked.data["topics"]] == [
        (name, "differs"),
        (f"{prefix}.missing", "missing"),
        (f"{prefix}.ledger", "missing"),
    ]
    told = factory.ok("topics", "apply", path)
    assert [(d["setting"], d["found"], d["fixed"]) for d in told.data["drift"]] == [
        ("partitions", "2", False),
        ("retention.ms", "1000", False),
    ]
    assert factory("topics", "apply", path, "--check").code == 2
    mended = factory.ok("topics", "apply", path, "--fix")
    assert all(d["fixed"] for d in mended.data["drift"])
    assert factory("topics", "apply", path, "--check").code == 0


@pytest.mark.parametrize("name", ["ledger", "answers", "control"])
def test_a_topic_of_the_factorys_own_that_would_lose_records_is_drift(
    factory: Command, topic: TopicFactory, prefix: str, tmp_path: Path, name: str
) -> None:
    if name != "ledger":
        topic("ledger", partitions=12, cleanup_policy="compact")
    assert topic(name, partitions=12, cleanup_policy="delete") == f"{prefix}.{name}"
    path = write(tmp_path, "topics: {}\n")
    found = factory("topics", "apply", path, "--check")
    assert found.code == 2
    assert [(d["topic"], d["setting"], d["wanted"], d["found"]) for d in found.data["drift"]] == [
        (f"{prefix}.{name}", "cleanup.policy", "compact", "delete")
    ]
    factory.ok("topics", "apply", path, "--fix")
    assert factory("topics", "apply", path, "--check").code == 0


def test_answers_may_be_forgotten_after_a_time(factory: Command, topic: TopicFactory, tmp_path: Path) -> None:
    topic("ledger", partitions=12, cleanup_policy="compact")
    topic("answers", partitions=12, cleanup_policy="compact,delete")
    assert factory("topics", "apply", write(tmp_path, "topics: {}\n"), "--check").code == 0


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        ("ledger: {partitions: 12}", "would lose what it must keep with cleanup.policy=delete"),
        ("control: {partitions: 12, config: {cleanup.policy: 'compact,delete'}}", "cleanup.policy=compact,delete; leave it out"),
        ("answers: {partitions: 12, config: {cleanup.policy: delete}}", "or write cleanup.policy: compact or compact,delete"),
        ("control: {partitions: 3, config: {cleanup.policy: compact}}", "needs 12 partitions and codec json"),
        ("ledger: {partitions: 12, codec: avro, config: {cleanup.policy: compact}}", "needs 12 partitions and codec json"),
    ],
)
def test_a_file_may_not_make_the_factorys_own_topics_lose_records(runs: Runs, tmp_path: Path, declared: str, said: str) -> None:
    wanted = read_topics(write(tmp_path, f"topics:\n  {runs.prefix}.{declared}\n"))
    with pytest.raises(ConfigurationError, match=f"'{runs.prefix}.{declared.partition(':')[0]}' is the factory's own.*{said}"):
        apply_topics(runs.config, wanted, prefix=runs.prefix, change=True, fix=True)
    assert Cluster(runs.config).find(wanted[0].name) is None


def test_a_file_may_give_answers_a_retention(runs: Runs, tmp_path: Path) -> None:
    text = f"topics:\n  {runs.prefix}.answers: {{partitions: 12, config: {{cleanup.policy: 'compact,delete', retention.ms: {WEEK}}}}}\n"
    report = apply_topics(runs.config, read_topics(write(tmp_path, text)), prefix=runs.prefix, change=True, fix=False)
    assert [t.name for t in report.topics] == [f"{runs.prefix}.{name}" for name in ("answers", "ledger", "control")]
    assert Cluster(runs.config).settings(f"{runs.prefix}.answers")["retention.ms"] == WEEK


def test_a_setting_that_the_broker_refuses_is_one_line(factory: Command, prefix: str, tmp_path: Path) -> None:
    path = write(tmp_path, f"topics:\n  {prefix}.new: {{config: {{retention.ms: weekly}}}}\n")
    refused = factory("topics", "apply", path)
    assert refused.code == 1
    assert f"topic '{prefix}.new'" in refused.error
    assert "retention.ms" in refused.error
