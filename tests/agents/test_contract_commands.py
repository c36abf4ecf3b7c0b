"""``factory contracts`` as a person or CI runs it."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.support.commands import ROOT, Command
from tests.support.runs import Runs, events

CONTRACT = """
name: texts
id: event_id
schema:
  type: object
  required: [event_id, text]
  properties: {event_id: {type: integer}, text: {type: string}, at: {type: [string, "null"]}}
rules: {even: event_id % 2 == 0}
window: {fail_if: rejected > 60 %, warn_if: duplicates > 0}
"""


@pytest.fixture
def contract(tmp_path: Path) -> Path:
    path = tmp_path / "c.yaml"
    path.write_text(CONTRACT)
    return path


def test_lint_lists_all_and_fails_for_errors_only(offline: Command, contract: Path) -> None:
    done = offline.ok("contracts", "lint", "c.yaml")
    assert done.out == "1 file, 0 errors, 0 notes\n"
    contract.write_text(CONTRACT.replace("integer", "int").replace("% 2", "%% 2"))
    done = offline("contracts", "lint", "c.yaml", "missing.yaml")
    assert done.code == 1
    assert [line.split(": ")[0] for line in done.out.splitlines()[:-1]] == ["c.yaml:7:33", "c.yaml:8:25", "missing.yaml:1:1"]
    found = offline("contracts", "lint", "c.yaml", "--format", "json").data
    assert found[0] == {"file": "c.yaml", "line": 7, "column": 33, "level": "error", "message": found[0]["message"]}
    assert offline("contracts", "lint", "c.yaml", "--format", "sarif").data["version"] == "2.1.0"


def test_show_says_what_became_of_each_part(offline: Command, contract: Path) -> None:
    shown = offline.ok("contracts", "show", "c.yaml").data
    assert [c["name"] for c in shown["columns"]] == ["event_id", "text", "at"]
    assert shown["rules"] == {"even": "event_id % 2 == 0"}
    assert [c["condition"] for c in shown["conditions"]] == ["rejected > 60 %", "duplicates > 0"]


@pytest.mark.slow
def test_export_and_import_are_inverse(offline: Command, contract: Path) -> None:
    offline.ok("contracts", "export", "c.yaml", "-o", "c.odcs.yaml")
    assert offline.ok("contracts", "lint", "c.odcs.yaml").code == 0
    offline.ok("contracts", "import", "c.odcs.yaml", "-o", "again.yaml")
    done = offline.ok("contracts", "diff", "c.yaml", "again.yaml")
    assert done.data == {"changes": [], "breaks": False}
    assert "name: texts" in offline.ok("contracts", "import", "c.odcs.yaml").out


def test_diff_fails_for_what_breaks_those_who_are_asked_about(offline: Command, contract: Path, tmp_path: Path) -> None:
    (tmp_path / "new.yaml").write_text(
        CONTRACT.replace("rules: {even: event_id % 2 == 0}", "rules: {even: event_id % 4 == 0, long: len(text) > 3}")
    )
    assert offline("contracts", "diff", "c.yaml", "new.yaml").code == 1
    done = offline("contracts", "diff", "c.yaml", "new.yaml", "--only", "table")
    assert (done.code, done.data["breaks"]) == (0, False)
    assert {change["what"] for change in done.data["changes"]} == {"rule even", "rule long"}


def test_test_judges_a_file_and_writes_nothing(offline: Command, contract: Path, tmp_path: Path) -> None:
    lines = [*events(10), b"no json", b"", *events(1)]
    (tmp_path / "events.jsonl").write_bytes(b"\n".join(lines))
    report = offline.ok("contracts", "test", "c.yaml", "--file", "events.jsonl").data
    assert (report["rows"], report["rejected"], report["duplicates"], report["outcome"]) == (12, 6, 1, "warn")
    assert report["samples"][0]["offset"] == 2
    assert offline("contracts", "test", "c.yaml", "--file", "events.jsonl", "--fail-if", "rejected > 0").code == 1
    assert offline("contracts", "test", "c.yaml", "--file", "-", stdin="{}").data["rejected"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["test", "c.yaml"], "expected either --topic or --file"),
        (["test", "c.yaml", "--topic", "t", "--file", "f"], "expected either --topic or --file"),
        (
            ["test", "c.yaml", "--file", "f", "--since", "2026-01-01", "--until", "2026-01-02"],
            "--since and --until go together, with --topic",
        ),
        (["test", "c.yaml", "--topic", "t", "--since", "2026-01-01"], "--since and --until go together"),
        (["test", "c.yaml", "--file", "none.jsonl"], "no such file"),
        (["test", "c.yaml", "--file", "."], "cannot be read: Is a directory"),
        (["test", "c.yaml", "--file", "c.yaml", "--fail-if", "x > 1"], "unknown figure 'x'"),
        (["show", "none.yaml"], "no such file"),
        (["export", "c.yaml", "-o", "none/x.yaml"], "--output none/x.yaml: cannot be written: No such file"),
    ],
)
def test_what_cannot_be_done_is_one_line(offline: Command, contract: Path, arguments: list[str], message: str) -> None:
    done = offline("contracts", *arguments)
    assert done.code == 1
    assert message in done.error


def test_an_agent_takes_a_schema_of_the_standards_by_its_name(factory: Command, runs: Runs, tmp_path: Path) -> None:
    quality = "[{metric: rowCount, mustBeGreaterThan: 5}, {type: sql, query: x, mustBe: 1}]"
    (tmp_path / "shop.odcs.yaml").write_text(f"""
apiVersion: v3.2.0
kind: DataContract
id: shop
version: 1.0.0
schema:
- {{name: other, properties: [{{name: x, logicalType: string, required: true}}]}}
- name: texts
  properties:
  - {{name: event_id, logicalType: integer, primaryKey: true, logicalTypeOptions: {{maximum: 6}}}}
  - {{name: text, logicalType: string}}
  quality: {quality}
""")
    window = runs.filled(10)
    contract = "shop.odcs.yaml#texts"
    done = factory.ok(
        "agent",
        "run",
        "validate",
        "--in-topic",
        window.topic,
        "--out-topic",
        runs.topic("out"),
        "--contract",
        contract,
        "--dry-run",
        "--json",
    ).data
    assert (done["counts"]["consumed"], done["counts"]["rejected"]) == (10, 3)
    assert [check["rule"] for check in done["report"]["checks"]] == ["rows <= 5", "sql(sql) != 1"]
    assert "not run: query sql (expected one SELECT" in done["report"]["not_run"][0]


def test_test_reads_a_topic_by_its_codec(factory: Command, runs: Runs, contract: Path, tmp_path: Path) -> None:
    topic = runs.topic("pairs", partitions=1)
    runs.produce(topic, [b"event_id=2;text=a", b"no pairs"])
    codec = "tests.support.codecs:Pairs"
    report = factory.ok("contracts", "test", "c.yaml", "--topic", topic, "--input-codec", codec, PYTHONPATH=str(ROOT)).data
    assert (report["valid"], report["rejected"], report["rules"]["pairs"]) == (1, 1, 1)
    (tmp_path / "topics.yaml").write_text(f"topics:\n  {topic}: {{codec: {codec}}}\n")
    report = factory.ok("contracts", "test", "c.yaml", "--topic", topic, PYTHONPATH=str(ROOT), FACTORY_TOPICS="topics.yaml").data
    assert (report["valid"], report["rejected"]) == (1, 1)


def test_test_reads_the_last_records_of_a_topic_or_a_window_of_it(factory: Command, runs: Runs, contract: Path) -> None:
    window = runs.filled(400)
    before = runs.cluster.high_watermark(window.topic, range(4))
    assert factory.ok("contracts", "test", "c.yaml", "--topic", window.topic).data["rows"] == 400
    report = factory.ok("contracts", "test", "c.yaml", "--topic", window.topic, "--last", "40").data
    assert (report["rows"], report["window_end"]) == (40, None)
    now = datetime.now(UTC).replace(microsecond=0)
    since, until = (now - timedelta(hours=2)).isoformat(), (now - timedelta(hours=1)).isoformat()
    report = factory.ok("contracts", "test", "c.yaml", "--topic", window.topic, "--since", since, "--until", until).data
    assert (report["rows"], report["window_end"] is None) == (0, False)
    assert len(report["notes"]) == 1
    assert f"topic '{window.topic}' has no records from {since} to {until}: those that it holds are of " in report["notes"][0]
    assert runs.cluster.high_watermark(window.topic, range(4)) == before
    assert json.loads(factory("windows", "--json").out) == []
