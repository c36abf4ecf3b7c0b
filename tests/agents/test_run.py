"""``python -m factory_agents.run``: exit statuses, the result, and one clear line for what is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from factory_agents import run as run_module
from factory_agents.protocol import (
    AgentRef,
    AgentResult,
    AgentRun,
    ErrorInfo,
    Example,
    Interval,
    Manifest,
    PartitionRange,
    Reason,
    decode_result,
    encode,
)
from factory_agents.run import failed_result, fit_result, write_result
from factory_agents.runtime.dependencies import Dependency, DependencyError
from tests.support.runs import ROOT, Runs, events

HOUR = msgspec.convert({"start": "2026-01-01T00:00:00Z", "end": "2026-01-01T01:00:00Z"}, Interval)


def started(*arguments: str, given: bytes = b"", **environment: str) -> subprocess.CompletedProcess[bytes]:
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("KAFKA_", "FACTORY_"))}
    command = [sys.executable, "-m", "factory_agents.run", *arguments]
    return subprocess.run(command, input=given, capture_output=True, env=plain | environment, cwd=ROOT, timeout=60, check=False)


def lines(done: subprocess.CompletedProcess[bytes]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stderr.splitlines() if line.startswith(b"{")]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (b"", "AgentRun"),
        (b"{}\n", "AgentRun"),
        (b"not json\n", "AgentRun"),
        (b'{"pipeline":"p","stage":"s","agent":{"name":"enrich"},"windw":1}\n', "windw"),
        (b'{"pipeline":"p","stage":"s","agent":{"name":"enrich"},"protocol":99}\n', "protocol version 99"),
        (encode(AgentRun("p", "s", AgentRef("enrich"))) + b"\n", "expected a window or an interval, got neither"),
        (encode(AgentRun("p", "s", AgentRef("nowhere:f"))) + b"\n", "expected a window or an interval, got neither"),
    ],
)
def test_what_cannot_be_run_fails_with_1_and_one_line(given: bytes, says: str) -> None:
    done = started(given=given, KAFKA_BOOTSTRAP="127.0.0.1:1")
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr
    (line,) = [line for line in lines(done) if line["level"] != "info"]
    assert (line["level"], says in line["message"]) == ("error", True), line
    result = decode_result(done.stdout)
    assert result.error is not None
    assert says in result.error.message
    assert not result.error.retriable


def test_a_missing_broker_setting_is_named() -> None:
    done = started(given=encode(AgentRun("p", "s", AgentRef("enrich"), interval=HOUR)) + b"\n", KAFKA_BOOTSTRAP="", KAFKA_CONFIG="")
    assert done.returncode == 1
    assert any("KAFKA_BOOTSTRAP" in line["message"] for line in lines(done))


def test_a_run_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = started("--run", str(tmp_path / "gone.json"), KAFKA_BOOTSTRAP="127.0.0.1:1")
    assert done.returncode == 1
    assert "gone.json: No such file or directory" in lines(done)[-1]["message"]


def test_a_run_is_read_from_a_file_too_and_the_result_written_to_one(runs: Runs, tmp_path: Path) -> None:
    run = runs.run(runs.filled(10), runs.topic("out"))
    (tmp_path / "run.json").write_bytes(encode(run))
    done = started("--run", str(tmp_path / "run.json"), "--result", str(tmp_path / "result.json"), KAFKA_BOOTSTRAP=runs.bootstrap)
    assert done.returncode == 0, done.stderr
    result = decode_result((tmp_path / "result.json").read_bytes())
    assert result.counts.consumed == 10
    assert done.stdout == b""
    assert [line["message"] for line in lines(done)][-1] == "done"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["result.json", "run.json"]


def test_a_result_on_standard_output_is_not_mixed_with_what_the_agent_prints(runs: Runs) -> None:
    source = "import os\nprint('at import')\ndef f(event):\n    print('in the agent')\n    os.write(1, b'low level')\n    return event\n"
    topic = runs.topic("in", partitions=1)
    runs.produce(topic, events(2))
    run = runs.run(runs.window(topic), runs.topic("out"), agent=AgentRef("f", source=source, function="f"))
    run_file = run_module.encode(run) + b"\n"
    with_stdin = [sys.executable, "-m", "factory_agents.run"]
    process = subprocess.Popen(
        with_stdin,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        env=os.environ | {"KAFKA_BOOTSTRAP": runs.bootstrap},
    )
    assert process.stdin is not None
    process.stdin.write(run_file)
    process.stdin.flush()
    assert process.stdout is not None
    out = process.stdout.read()  # standard input stays open until the result is there
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert decode_result(out).counts.forwarded == 2
    assert b"in the agent" in err


def test_a_result_that_cannot_be_written_is_said_in_one_line(runs: Runs) -> None:
    run = runs.run(runs.filled(1), runs.topic("out"))
    attempt = runs.attempt(run, command=(sys.executable, "-m", "factory_agents.run"))
    assert attempt.wait() == 0
    done = started("--result", "/nonexistent/result.json", given=b"{}\n", KAFKA_BOOTSTRAP=runs.bootstrap)
    assert done.returncode == 75
    assert b"Traceback" not in done.stderr
    assert lines(done)[-1]["message"] == "the result cannot be written"


def test_secrets_of_the_configuration_are_in_no_output() -> None:
    run = AgentRun("p", "s", AgentRef("enrich"), interval=HOUR)
    done = started(given=encode(run) + b"\n", KAFKA_BOOTSTRAP="127.0.0.1:1", KAFKA_CONFIG='{"sasl.password": "geheim", "nonsense": 1}')
    assert done.returncode == 1
    assert b"geheim" not in done.stderr + done.stdout


RANGES = tuple(PartitionRange(p, 10**12 + p, 10**12 + p + 10**6, 10**6) for p in range(1000))
LARGE = AgentResult(
    "pipeline",
    "stage",
    "key",
    input=Manifest("in", "id", "w", RANGES),
    manifest=Manifest("out", "id", "w", RANGES),
    dead_letters=Manifest("dead", "id", "w", RANGES[:3]),
    report={"rows": "x" * 5000},
    notes=("note",) * 100,
)


def test_a_result_that_fits_is_left_whole() -> None:
    small = msgspec.structs.replace(LARGE, input=None, manifest=None, report=None, notes=())
    assert decode_result(fit_result(small, 4096)) == small


def test_a_result_too_long_for_a_termination_message_says_so_and_stays_json() -> None:
    data = fit_result(LARGE, 4096)
    assert len(data) <= 4096
    cut = decode_result(data)
    assert (cut.truncated, cut.manifest, cut.counts, cut.key) == (True, None, LARGE.counts, "key")


def test_a_manifest_is_kept_where_only_the_report_was_too_long() -> None:
    middling = msgspec.structs.replace(
        LARGE, manifest=Manifest("out", "id", "w", RANGES[:50]), input=Manifest("in", "id", "w", RANGES[:50])
    )
    cut = decode_result(fit_result(middling, 4096))
    assert (cut.truncated, cut.manifest, cut.report) == (True, middling.manifest, None)


def test_reasons_are_kept_without_their_examples_and_at_last_go() -> None:
    examples = (Example("t-0@1", "k", "v" * 200),) * 5
    few = AgentResult("p", "s", "k", reasons=(Reason("r", "e" * 300, 7, "t-0@1", examples),) * 5, dry_run=True)
    cut = decode_result(fit_result(few, 4096))
    assert [(r.count, r.examples) for r in cut.reasons] == [(7, ())] * 5
    many = msgspec.structs.replace(few, reasons=few.reasons * 10)
    assert decode_result(fit_result(many, 4096)).reasons == ()


@pytest.mark.parametrize("message", ["x" * 10_000, "€" * 10_000, '"' * 10_000, "\x00" * 10_000])
def test_an_errors_endless_message_is_cut_at_its_end(message: str) -> None:
    result = AgentResult("p", "s", "k", status="failed", error=ErrorInfo("AgentError", message, retriable=True))
    data = fit_result(result, 4096)
    assert len(data) <= 4096
    cut = decode_result(data)
    assert cut.error is not None
    assert cut.error.retriable
    assert cut.error.message.endswith("…")
    assert message.startswith(cut.error.message[:-1])


def test_an_error_of_a_room_of_its_own_is_told_as_the_public_one_that_it_is() -> None:
    crm = Dependency("crm")
    info = failed_result(None, DependencyError("crm: refused", crm, called=True)).error
    assert info == ErrorInfo("UnavailableError", "crm: refused", retriable=True)


def test_a_termination_message_is_written_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a mount of its own: a file moved over it would be seen by nobody."""
    target = tmp_path / "termination-log"
    target.touch()
    inode = target.stat().st_ino
    monkeypatch.setattr(run_module, "_TERMINATION_LOG", target)
    write_result(target, LARGE)
    assert target.stat().st_ino == inode
    assert target.stat().st_size <= 4096


def test_the_process_starts_fast() -> None:
    """What an agent doesn't need is not imported: to run one of your own, no other part of the factory is."""
    code = (
        "import sys\nfrom factory_agents import run\nfrom factory_agents.protocol import AgentRef\n"
        "ref = AgentRef('tests.support.agents:mark')\nrun._runner(ref), run.build_transform(ref, {}, None)\nprint(*sys.modules)"
    )
    modules = set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout.split())
    others = {"airflow", "psycopg", "pyarrow", "fsspec", "requests", "httpx", "typer", "rich", "yaml", "jsonschema", "pandas", "numpy"}
    unneeded = others | {"email", "http", "importlib.metadata", "opentelemetry", "sqlite3", "temporalio", "zipfile"}
    rooms = ("contracts", "databases", "inference", "kafka.planning", "replication", "sinks", "sources", "runtime.live", "runtime.sink")
    assert modules.isdisjoint(unneeded | {f"factory_agents.{room}" for room in rooms})
