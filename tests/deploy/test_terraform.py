"""The Terraform modules: read by a parser everywhere; where OpenTofu or Terraform is installed, applied to the sandbox's broker."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hcl2
import pytest
import yaml
from follow_docs import blocks

from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.ledger import LEDGER_PARTITIONS, LEDGER_SETTINGS
from factory_agents.kafka.topics import Cluster
from factory_agents.sandbox import SandboxInfo
from factory_agents.topics_file import own_topics, read_topics
from tests.support.guarded_broker import Acl, parse_acls
from tests.support.tools import find_tool

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy/terraform"
FILES = sorted(FOLDER.rglob("*.tf"))
TOFU = find_tool("tofu", "terraform")
KEEPS = {"kafka_topic", "aws_msk_cluster"}
"""Kinds of resources with which data would go."""

PASSWORD = "planted-secret"

needs_tofu = pytest.mark.skipif(TOFU is None, reason="neither OpenTofu nor Terraform is installed")


def read(file: Path) -> dict[str, Any]:
    """A file's blocks, with names free of quotes."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k.strip('"'): plain(v) for k, v in value.items() if not k.startswith("__")}
        return [plain(v) for v in value] if isinstance(value, list) else value

    parsed: dict[str, Any] = plain(hcl2.loads(file.read_text()))
    return parsed


def named(kind: str, file: Path) -> dict[str, dict[str, Any]]:
    """The blocks of a kind by their name."""
    return {name: block for of in read(file).get(kind, []) for name, block in of.items()}


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(FOLDER)))
def test_data_is_never_destroyed_unasked(file: Path) -> None:
    for kind, of in named("resource", file).items():
        for name, block in of.items():
            if kind in KEEPS or (kind, name) == ("helm_release", "kafka"):
                assert block["lifecycle"] == [{"prevent_destroy": True}], f"{kind}.{name}"


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(FOLDER)))
def test_no_secret_has_a_default_and_all_are_marked(file: Path) -> None:
    for name, variable in named("variable", file).items():
        assert variable.get("description"), name
        if re.search("password|secret$|token", name):
            assert variable.get("sensitive") is True, name
            assert "default" not in variable, name


def test_every_provider_has_a_lowest_version_and_modules_are_where_they_are_named() -> None:
    providers: dict[str, set[str]] = {}
    for file in FILES:
        for settings in read(file).get("terraform", []):
            for of in settings.get("required_providers", []):
                for provider, wanted in of.items():
                    providers.setdefault(provider, set()).add(f"{wanted['source']} {wanted['version']}")
        for module in named("module", file).values():
            assert (file.parent / module["source"].strip('"') / "main.tf").exists()
    assert {len(wanted) for wanted in providers.values()} == {1}


def test_the_platform_installs_what_the_installer_installs() -> None:
    listed = {release["name"] for release in yaml.safe_load((ROOT / "deploy/helm/values/releases.yaml").read_text())["releases"]}
    charts = {path.parent.name for path in ROOT.glob("deploy/helm/*/Chart.yaml")}
    text = (FOLDER / "modules/platform/main.tf").read_text()
    ours = json.loads(re.findall(r"ours\s*= (\[.*\])", text)[0])
    assert set(ours) == charts
    assert set(ours) < listed
    for example in FOLDER.glob("examples/*/main.tf"):
        for name in re.findall(r"without = (\[.*\])", example.read_text()):
            assert set(json.loads(name)) < listed


@dataclass(frozen=True)
class Tofu:
    """A root module of a test's own, over the modules as they are here."""

    folder: Path
    environment: dict[str, str] = field(repr=False)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(TOFU), *arguments, "-no-color"]
        return subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False)

    def ok(self, *arguments: str) -> str:
        done = self.run(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def write(self, topics_file: Path, **settings: Any) -> None:
        given = {"source": str(FOLDER / "modules/topics"), "topics_file": str(topics_file), **settings}
        root = {
            "terraform": {"required_providers": {"kafka": {"source": "mongey/kafka"}}},
            "variable": {"password": {"type": "string", "sensitive": True}},
            "provider": {"kafka": {"bootstrap_servers": [self.environment["BOOTSTRAP"]], "sasl_password": "${var.password}"}},
            "module": {"topics": given},
        }
        (self.folder / "main.tf.json").write_text(json.dumps(root))
        self.ok("get")

    def planned(self, kind: str) -> list[dict[str, Any]]:
        self.ok("plan", "-out", "plan", "-input=false")
        plan = json.loads(self.ok("show", "-json", "plan"))
        return [change["change"]["after"] for change in plan["resource_changes"] if change["type"] == kind]


@pytest.fixture
def tofu(tmp_path: Path, sandbox_info: SandboxInfo) -> Tofu:
    if TOFU is None:
        pytest.skip("neither OpenTofu nor Terraform is installed")
    provider = tmp_path / "provider/terraform-provider-kafka"
    provider.parent.mkdir()
    provider.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{ROOT}/tests/support/kafka_provider.py" "$@"\n')
    provider.chmod(0o755)
    settings = tmp_path / "settings.tfrc"
    settings.write_text(f'provider_installation {{\n  dev_overrides {{\n    "mongey/kafka" = "{provider.parent}"\n  }}\n}}\n')
    root = tmp_path / "root"
    root.mkdir()
    return Tofu(
        root,
        {
            "PATH": "/usr/bin:/bin",
            "HOME": str(tmp_path),
            "TF_CLI_CONFIG_FILE": str(settings),
            "CHECKPOINT_DISABLE": "1",
            "BOOTSTRAP": sandbox_info.bootstrap,
            "TF_VAR_password": PASSWORD,
        },
    )


@needs_tofu
def test_everything_is_in_the_canonical_format() -> None:
    done = subprocess.run([str(TOFU), "fmt", "-check", "-recursive", str(FOLDER)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def topics_file(folder: Path, prefix: str, partitions: int = 3) -> Path:
    """Every form that a declaration has."""
    path = folder / "topics.yaml"
    defaults = {"partitions": partitions, "config": {"retention.ms": 604800000, "message.timestamp.type": "LogAppendTime"}}
    topics: dict[str, Any] = {
        f"{prefix}.plain": None,
        f"{prefix}.empty": {},
        f"{prefix}.own": {"partitions": 5, "config": {"cleanup.policy": "compact,delete", "min.compaction.lag.ms": 604800000}},
        f"{prefix}.none": {"config": None, "codec": "json"},
    }
    path.write_text(yaml.safe_dump({"defaults": defaults, "topics": topics}))
    return path


def test_it_makes_the_topics_that_the_command_line_makes(tofu: Tofu, prefix: str, tmp_path: Path, sandbox_info: SandboxInfo) -> None:
    path = topics_file(tmp_path, prefix)
    tofu.write(path, prefix=prefix, dead_letters=[f"{prefix}.own"])
    said = tofu.ok("apply", "-auto-approve", "-input=false")
    assert PASSWORD not in said + tofu.ok("show") + (tofu.folder / "terraform.tfstate").read_text()
    command = [str(Path(sys.executable).with_name("factory")), "topics", "apply", str(path), "--check", "--prefix", prefix]
    checked = subprocess.run([*command, "-b", sandbox_info.bootstrap], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    with Cluster(KafkaConfig(sandbox_info.bootstrap)) as cluster:
        assert cluster.topic(f"{prefix}.ledger").partitions == LEDGER_PARTITIONS
        assert LEDGER_SETTINGS.items() <= cluster.settings(f"{prefix}.ledger").items()
        assert cluster.topic(f"{prefix}.own.dead").partitions == 5
        assert cluster.settings(f"{prefix}.own.dead")["cleanup.policy"] == "delete"
    assert tofu.run("plan", "-detailed-exitcode", "-input=false").returncode == 0, "a second plan changes something"
    refused = tofu.run("destroy", "-auto-approve", "-input=false")
    assert refused.returncode != 0
    assert "prevent_destroy" in refused.stdout + refused.stderr
    topics_file(tmp_path, prefix, partitions=6)
    tofu.ok("apply", "-auto-approve", "-input=false")
    with Cluster(KafkaConfig(sandbox_info.bootstrap)) as cluster:
        assert cluster.topic(f"{prefix}.plain").partitions == 6


def test_it_plans_this_repositorys_topics(tofu: Tofu) -> None:
    tofu.write(ROOT / "include/topics.yaml")
    planned = {topic["name"]: topic for topic in tofu.planned("kafka_topic")}
    for wanted in read_topics(str(ROOT / "include/topics.yaml")):
        topic = planned.pop(wanted.name)
        assert (topic["partitions"], topic["replication_factor"], topic["config"]) == (
            wanted.partitions,
            wanted.replication,
            dict(wanted.settings),
        )
    assert planned.keys() == own_topics("factory", 3).keys()
    for name, own in own_topics("factory", 3).items():
        topic = planned[name]
        assert (topic["partitions"], topic["replication_factor"], topic["config"]) == (own.topic.partitions, 3, dict(own.topic.settings))


def test_a_file_without_topics_makes_the_factorys_own_alone(tofu: Tofu, tmp_path: Path) -> None:
    path = tmp_path / "topics.yaml"
    path.write_text("topics: {}\n")
    tofu.write(path)
    made = {topic["name"]: topic["replication_factor"] for topic in tofu.planned("kafka_topic")}
    assert made == {"factory.ledger": 1, "factory.answers": 1, "factory.control": 1}


_KINDS = {"Topic": "topic", "Group": "group", "TransactionalID": "transactional-id"}
_PARTS = [
    ("plan", {"inputs": ["raw_events"]}, ["ledger", "plan"]),
    ("agent", {"inputs": ["raw_events"], "outputs": ["enriched_events"]}, ["ledger", "agent"]),
    ("publish", {"inputs": ["enriched_events"]}, ["ledger", "publish"]),
    ("live", {"inputs": ["raw_events"], "outputs": ["enriched_events"], "group": "live-enrich"}, ["live"]),
    ("infer", {"inputs": ["raw_events"], "outputs": ["enriched_events"]}, ["ledger", "agent", "infer"]),
    ("live-version", {"inputs": ["raw_events"], "outputs": ["enriched_events"], "group": "factory.enrich.raw_events"}, ["live-version"]),
    ("rollout", {"inputs": ["raw_events"], "group": "factory.enrich.raw_events"}, ["rollout"]),
    ("live-publish", {"inputs": ["enriched_events"], "group": "orders.members"}, ["ledger", "live-publish"]),
    ("metrics", {}, ["metrics"]),
]


def test_a_part_gets_the_rights_that_the_page_gives_it(tofu: Tofu) -> None:
    said = {b.words: parse_acls(b.text) for b in blocks((ROOT / "docs/least-rights.md").read_text()) if b.language == "acls"}
    parts = [{"principal": f"User:{kind}", "kind": kind, **settings} for kind, settings, _ in _PARTS]
    tofu.write(ROOT / "include/topics.yaml", parts=parts)
    planned = tofu.planned("kafka_acl")
    assert {(acl["acl_host"], acl["acl_permission_type"]) for acl in planned} == {("*", "Allow")}
    given = [
        (
            acl["acl_principal"],
            Acl(
                acl["acl_operation"],
                _KINDS[acl["resource_type"]],
                acl["resource_name"],
                prefixed=acl["resource_pattern_type_filter"] == "Prefixed",
            ),
        )
        for acl in planned
    ]
    assert set(given) == {
        (f"User:{kind}", right) for kind, _, paragraphs in _PARTS for paragraph in paragraphs for right in said[paragraph]
    }
    assert len(given) == len(set(given))


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({"kind": "reader"}, "expected plan, agent, infer, publish, live, live-version, rollout, live-publish or metrics"),
        ({"kind": "live"}, "expected one for live, live-version, rollout and live-publish"),
        ({"kind": "agent", "group": "g"}, "none for other kinds"),
    ],
)
def test_a_part_that_cannot_be_is_refused(tofu: Tofu, part: dict[str, str], said: str) -> None:
    tofu.write(ROOT / "include/topics.yaml", parts=[{"principal": "User:factory", **part}])
    refused = tofu.run("plan", "-input=false")
    assert refused.returncode != 0
    assert said in " ".join((refused.stdout + refused.stderr).replace("│", " ").split())
