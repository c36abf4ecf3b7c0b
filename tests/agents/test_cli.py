"""The factory command in a process of its own: what it prints, how it ends, and one line for whatever is wrong."""

from __future__ import annotations

import json
import logging
import os
import pty
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import psycopg
import pytest

from factory_agents import __version__
from factory_agents.cli import main
from factory_agents.kafka.cuts import plan_window
from factory_agents.protocol import AgentRef, AgentRun, Interval, plain
from factory_agents.run import execute
from factory_agents.runtime.session import RunContext
from factory_agents.stage_plan import plan_shards, stage_input
from tests.support.commands import IMPATIENT, PROGRAM, Command, Done, clean_environment
from tests.support.runs import Runs, events
from tests.support.waiting import wait_for

if TYPE_CHECKING:
    from factory_agents.sandbox import SandboxInfo
    from tests.conftest import TopicFactory

AGENT = """
def shout(event: dict, mark: str = '!') -> dict:
    if 'bad' in event:
        raise ValueError('bad event')
    return event | {'shout': event['text'].upper() + mark}
"""
SCRIPT = (str(Path(sys.executable).with_name("factory")),)


def last_hour() -> tuple[str, str, str, str]:
    """--since and --until around now; what was written before this call is in."""
    now = datetime.now(UTC)
    return ("--since", (now - timedelta(hours=1)).isoformat(), "--until", (now + timedelta(seconds=1)).isoformat())


def filled(runs: Runs, n: int = 10, bad: int = 0) -> tuple[str, str]:
    """An input topic with events, and an output topic."""
    source, target = runs.topic("in", partitions=2, message_timestamp_type="LogAppendTime"), runs.topic("out", partitions=2)
    runs.produce(source, [*events(n), *events(bad, start=n, bad=True)])
    return source, target


class Here(Protocol):
    """Runs the command in this process, where no broker is to be reached: for what it says before it asks one."""

    def __call__(self, *arguments: str) -> Done: ...


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Here:
    environment = clean_environment(KAFKA_BOOTSTRAP="127.0.0.1:1", FACTORY_HOME=str(tmp_path))
    for name in set(os.environ) - set(environment):
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["factory", *arguments])
        monkeypatch.setattr(logging.getLogger("factory_agents"), "handlers", [])  # a command logs to the stderr that it finds
        with pytest.raises(SystemExit) as ended:
            main()
        shown = capsys.readouterr()
        return Done(int(ended.value.code or 0), shown.out, shown.err)

    return run


def on_terminal(command: Command, *arguments: str, **variables: str) -> tuple[int, str]:
    """Run with a terminal as its outputs: the exit status and what was on it."""
    ours, theirs = pty.openpty()
    environment = command.environment | {"TERM": "xterm", "COLUMNS": "120", "LINES": "50"} | variables
    process = subprocess.Popen([*PROGRAM, *arguments], cwd=command.cwd, env=environment, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the terminal is gone with its last user
            break
        if not part:
            break
        shown += part
    os.close(ours)
    return process.wait(60), shown.decode()


# What it says of itself


def test_the_console_script_says_its_version(offline: Command) -> None:
    assert offline.ok("--version", program=SCRIPT).out == f"factory {__version__}\n"


COMMANDS = """
agent
agent run
topics
topics apply
lag
windows
dead-letters
dead-letters list
dead-letters show
dead-letters replay
sandbox
sandbox up
sandbox down
sandbox status
sandbox env
"""


@pytest.mark.parametrize("command", COMMANDS.split("\n")[:-1])
def test_every_command_has_help_and_those_that_do_something_have_examples(here: Here, command: str) -> None:
    shown = here(*command.split(), "--help").out
    assert shown.startswith("Usage: factory")
    assert "Commands:" in shown or "Example" in shown


@pytest.mark.parametrize("agent", ["ingest", "enrich", "validate", "publish"])
def test_every_built_in_agent_is_a_module_that_runs(offline: Command, agent: str) -> None:
    shown = offline.ok("--help", program=(sys.executable, "-m", f"factory_agents.{agent}")).out
    assert shown.startswith(f"Usage: python -m factory_agents.{agent} [OPTIONS]")
    assert "INPUT_TOPIC" in shown


def test_help_imports_neither_kafka_nor_anything_that_is_not_needed(offline: Command) -> None:
    script = (
        "import sys; sys.argv = ['factory', '--help']\nfrom factory_agents.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "unneeded = {'confluent_kafka', 'rich', 'jsonschema_rs', 'yaml', 'psycopg', 'pyarrow', 'temporalio'}\n"
        "print(sorted(unneeded & set(sys.modules)), file=sys.stderr)"
    )
    assert offline("-c", script, program=(sys.executable,)).err == "[]\n"


# Windows


def test_a_window_by_times_runs_to_its_end_and_a_second_time_without_work(factory: Command, runs: Runs) -> None:
    source, target = filled(runs, 10, bad=2)
    (factory.cwd / "mine.py").write_text(AGENT)
    command = ("agent", "run", "mine:shout", "--in-topic", source, "--out-topic", target, "-p", "mark=?", *last_hour())
    first = factory.ok(*command)
    assert first.data["counts"] == {"consumed": 12, "forwarded": 10, "rejected": 2, "produced": 10}
    assert first.data["pipeline"] == f"cli.shout.{source}"
    assert {r.event["shout"] for r in runs.everything(target)} == {f"EVENT {i}?" for i in range(10)}
    second = factory.ok(*command)
    assert second.data["reused"] is True
    assert second.data["manifest"] == first.data["manifest"]
    assert len(runs.everything(target)) == 10
    assert factory.ok(*command, "--rerun", "redo").data["generation"] > first.data["generation"]
    (window,) = factory.ok("windows").data
    assert (window["pipeline"], window["state"]) == (f"cli.shout.{source}", "finished")


def test_a_result_is_the_next_stages_window(factory: Command, runs: Runs) -> None:
    source, middle = filled(runs)
    target = runs.topic("end", partitions=2)
    first = factory.ok("agent", "run", "enrich", "--in-topic", source, "--out-topic", middle, *last_hour())
    (factory.cwd / "first.json").write_text(first.out)
    (factory.cwd / "mine.py").write_text(AGENT)
    second = factory.ok("agent", "run", "mine:shout", "--window", "first.json", "--out-topic", target)
    assert (second.data["pipeline"], second.data["counts"]["consumed"]) == (first.data["pipeline"], 10)
    piped = factory.ok("agent", "run", "mine:shout", "--window", "-", "--out-topic", target, stdin=first.out)
    assert piped.data["reused"] is True


@pytest.mark.parametrize("printed", ["print('words')", "os.write(1, b'words')", "subprocess.run(['echo', 'words'], check=True)"])
def test_a_result_is_alone_on_standard_output_whatever_an_agent_prints(factory: Command, runs: Runs, printed: str) -> None:
    (factory.cwd / "talks.py").write_text(f"import os, subprocess\n\ndef talk(event):\n    {printed}\n    return event\n")
    source, target = filled(runs)
    done = factory.ok("agent", "run", "talks:talk", "--in-topic", source, "--out-topic", target, *last_hour())
    assert done.data["counts"]["forwarded"] == 10
    assert "words" in done.err


def test_shards_together_are_the_window(factory: Command, runs: Runs) -> None:
    source, target = filled(runs)
    end = runs.topic("end", partitions=2)
    window = last_hour()
    results = [
        factory.ok("agent", "run", "enrich", "--in-topic", source, "--out-topic", target, "--shard", f"{i}/3", *window).data
        for i in (1, 2, 3)
    ]
    assert sum(r["counts"].get("consumed", 0) for r in results) == 10
    (factory.cwd / "all.json").write_text(json.dumps(results))
    (factory.cwd / "two.json").write_text(json.dumps(results[:2]))
    assert (
        factory.ok("agent", "run", "enrich", "--stage", "next", "--window", "all.json", "--out-topic", end).data["counts"]["consumed"] == 10
    )
    missing = factory("agent", "run", "enrich", "--stage", "next", "--window", "two.json", "--out-topic", end)
    assert (missing.code, missing.error) == (1, "stage 'enrich': shard 3 of 3 has no result; clear it so that it runs")


def test_a_dry_run_shows_what_would_be_written_and_writes_nothing(factory: Command, runs: Runs) -> None:
    source, target = filled(runs, 5, bad=1)
    (factory.cwd / "mine.py").write_text(AGENT)
    common = ("agent", "run", "mine:shout", "--in-topic", source, "--out-topic", target, "--dry-run", "--show", "2")
    for window in ((), last_hour()):
        shown = factory.ok(*common, *window)
        assert (shown.data["dry_run"], shown.data["counts"]["consumed"]) == (True, 6)
        assert shown.err.count("→ ") == 2
        assert f"→ {target}" in shown.err
    assert runs.everything(target) == []
    assert factory.ok("windows").data == []


def test_a_dry_run_says_why_events_are_rejected(factory: Command, runs: Runs) -> None:
    source, target = filled(runs, 20, bad=3)
    (factory.cwd / "mine.py").write_text(AGENT)
    common = ("agent", "run", "mine:shout", "--in-topic", source, "--out-topic", target, "--dry-run")
    (reason,) = factory.ok(*common, "--show", "2").data["reasons"]
    assert (reason["rule"], reason["error"], reason["count"]) == ("agent-error", "shout raised ValueError: bad event", 3)
    assert len(reason["examples"]) == 2
    assert reason["examples"][0]["at"].startswith(f"{source}-")
    assert json.loads(reason["examples"][0]["value"])["bad"] is True

    code, screen = on_terminal(factory, *common, "--show", "1")
    lines = [line.rstrip() for line in screen.splitlines()]
    at = lines.index("  3 × agent-error: shout raised ValueError: bad event")
    assert lines[at + 1].startswith(f"      {source}-")
    assert code == 0
    assert ".dead" not in screen


def test_a_dry_run_with_too_many_rejected_fails_and_names_the_commonest_cause(factory: Command, runs: Runs) -> None:
    source, target = filled(runs, 5, bad=15)
    (factory.cwd / "mine.py").write_text(AGENT)
    common = ("agent", "run", "mine:shout", "--in-topic", source, "--out-topic", target)
    failed = factory(*common, "--dry-run")
    (*_, said) = failed.err.splitlines()
    assert failed.code == 1
    said = json.loads(said)["message"]
    assert said.startswith("stage 'shout': 15 of 20 events rejected")
    assert "; most often (15×) agent-error: shout raised ValueError: bad event (first at " in said
    assert ".dead" not in failed.err
    assert (failed.data["status"], failed.data["reasons"][0]["count"]) == ("failed", 15)
    said = json.loads(factory(*common, *last_hour()).err.splitlines()[-1])["message"]
    assert "; most often (15×) agent-error: " in said
    assert said.endswith(f"; see them: factory dead-letters list {target}.dead")


@pytest.mark.parametrize("name", ["enrich", "validate", "publish"])
def test_a_dry_run_of_a_built_in_agent_says_why_too(factory: Command, runs: Runs, name: str) -> None:
    source, target = runs.topic("in", partitions=1), runs.topic("out", partitions=1)
    runs.produce(source, [*events(3), b"no event"])
    contract = "name: c\nid: event_id\nschema:\n  required: [event_id]\n  properties: {event_id: {type: integer}}\n"
    (factory.cwd / "c.yaml").write_text(contract)
    more = {"enrich": ("--out-topic", target), "validate": ("--out-topic", target, "--contract", "c.yaml"), "publish": ("--table", "t")}
    result = factory.ok(
        "agent", "run", name, "--in-topic", source, *more[name], "--dry-run", DATABASE_URL="postgresql://u@127.0.0.1:1/d"
    ).data
    assert [(r["rule"], r["count"], r["first"]) for r in result["reasons"]] == [("decode", 1, f"{source}-0@3")]
    assert runs.cluster.find(f"{target}.dead") is None
    assert runs.cluster.find(f"{source}.dead") is None


def test_ingest_reads_a_file_whole_and_by_interval(factory: Command, runs: Runs) -> None:
    target = runs.topic("raw", partitions=2)
    rows = [{"event_id": str(i), "at": f"2026-11-01T0{i}:30:00Z"} for i in range(4)]
    (factory.cwd / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    module = (sys.executable, "-m", "factory_agents.ingest")
    whole = factory.ok("--topic", target, "--source", "rows.jsonl", program=module)
    assert (whole.data["key"], whole.data["counts"]["consumed"]) == ("all", 4)
    assert factory.ok("--topic", target, program=module, FACTORY_SOURCE="rows.jsonl").data["reused"] is True
    hour = ("--since", "2026-11-01T02:00", "--until", "2026-11-01T03:00", "--time-field", "at")
    part = factory.ok("--topic", target, "--source", "rows.jsonl", "--pipeline", "hourly", *hour, program=module)
    assert part.data["counts"] == {"consumed": 1, "forwarded": 1, "produced": 1}


def test_ingest_of_one_source_between_those_of_another_is_done_once(factory: Command, runs: Runs) -> None:
    target = runs.topic("raw", partitions=1)
    for name in ("a", "b"):
        (factory.cwd / f"{name}.jsonl").write_text(f'{{"event_id": "{name}"}}\n')
    ingest = ("agent", "run", "ingest", "--topic", target)
    results = [factory.ok(*ingest, "--source", f"{name}.jsonl").data for name in ("a", "b", "a", "b")]
    assert [r.get("reused", False) for r in results] == [False, False, True, True]
    assert results[2]["manifest"] == results[0]["manifest"] != results[1]["manifest"]
    assert [r.id for r in runs.everything(target)] == ["a", "b"]
    (factory.cwd / "a.jsonl").write_text('{"event_id": "c"}\n')
    assert "reused" not in factory.ok(*ingest, "--source", "a.jsonl").data, "other rows under the same name"


def test_a_shard_mended_from_the_command_line_joins_those_that_an_orchestrator_ran(factory: Command, runs: Runs, prefix: str) -> None:
    source, target = filled(runs, 30)
    hour = last_hour()
    interval = Interval(datetime.fromisoformat(hour[1]), datetime.fromisoformat(hour[3]))
    window = plan_window(runs.config, pipeline="dag", topic=source, interval=interval, prefix=prefix)
    plan = plan_shards(window, 2)
    (factory.cwd / "plan.json").write_text(json.dumps(plan))
    (factory.cwd / "shard.json").write_text(json.dumps(plan[1]))
    given = stage_input(plan[0])
    first = execute(
        RunContext(runs.config),
        AgentRun(
            "dag",
            "hosts",
            AgentRef("enrich"),
            window=given.window,
            shard=given.shard,
            plan=given.plan,
            origin=given.window.origin,
            output_topic=target,
            prefix=prefix,
        ),
    )
    mend = ("agent", "run", "enrich", "--pipeline", "dag", "--stage", "hosts", "--out-topic", target, "--prefix", prefix)
    asked = factory.ok(*mend, "--in-topic", source, *hour, "--shard", "2/2").data
    for files in (("--window", "plan.json", "--shard", "2/2"), ("--window", "shard.json")):
        assert factory.ok(*mend, *files).data["reused"] is True
    assert factory.ok(*mend, "--window", "plan.json", "--shard", "1/2").data["manifest"] == plain(first)["manifest"]
    assert stage_input([plain(first), asked]).window.size == 30


def test_one_pipeline_over_two_topics_keeps_both(factory: Command, runs: Runs, database_url: str, prefix: str) -> None:
    topics = [runs.topic(name, partitions=2, message_timestamp_type="LogAppendTime") for name in ("one", "other")]
    for i, name in enumerate(topics):
        runs.produce(name, events(10, 10 * i))
    (factory.cwd / "c.yaml").write_text(
        "name: c\nid: event_id\nschema: {type: object, required: [event_id], properties: {event_id: {type: integer}}}\n"
    )
    table, hour = f"both_{prefix.replace('-', '_')}", last_hour()

    def publish(topic: str, *more: str) -> Any:
        publish = ("agent", "run", "publish", "--pipeline", "both", "--in-topic", topic, "--table", table, "--contract", "c.yaml")
        return factory.ok(*publish, *hour, *more, DATABASE_URL=database_url).data

    for topic in topics:
        assert publish(topic)["counts"] == {"consumed": 10, "forwarded": 10, "written": 10}
    for topic in topics:
        assert publish(topic)["reused"] is True
        assert publish(topic, "--rerun", "redo")["counts"] == {"consumed": 10, "forwarded": 10, "written": 10}
    with psycopg.connect(database_url) as connection:
        assert connection.execute(f"SELECT event_id FROM {table} ORDER BY 1").fetchall() == [(i,) for i in range(20)]


def test_validate_and_publish_follow_by_window(factory: Command, runs: Runs, database_url: str, prefix: str) -> None:
    raw, valid = filled(runs, 6)[0], runs.topic("valid", partitions=2)
    (factory.cwd / "c.yaml").write_text(
        "name: c\nid: event_id\nschema: {type: object, properties: {event_id: {type: integer, maximum: 3}}, required: [event_id]}\n"
    )
    validated = factory.ok(
        "agent", "run", "validate", "--in-topic", raw, "--out-topic", valid, "--contract", "c.yaml", "--max-rejected", "3", *last_hour()
    )
    assert (validated.data["counts"]["forwarded"], validated.data["counts"]["rejected"]) == (4, 2)
    shown = factory.ok("windows", "report", f"cli.validate.{raw}", "--html", "report.html")
    assert "rejected" in (factory.cwd / "report.html").read_text()
    assert shown.out == "pass: report.html\n"
    assert factory.ok("windows", "report", f"cli.validate.{raw}").data["rules"]["schema:event_id"] == 2
    (factory.cwd / "v.json").write_text(validated.out)
    table = f"t_{prefix.replace('-', '_')}"
    published = factory.ok(
        "agent", "run", "publish", "--window", "v.json", "--table", table, DATABASE_URL=database_url, FACTORY_CONTRACT="c.yaml"
    )
    assert (published.data["counts"]["written"], published.data["dataset"]["name"].rpartition(".")[2]) == (4, table)
    again = factory.ok(
        "agent", "run", "publish", "--window", "v.json", "--table", table, "--contract", "c.yaml", "--database-url", database_url
    )
    assert again.data["reused"] is True


def test_on_a_terminal_a_result_is_a_summary_and_progress_leaves_nothing_behind(factory: Command, runs: Runs) -> None:
    source, target = filled(runs, 1200, bad=1)
    (factory.cwd / "mine.py").write_text(AGENT)
    code, shown = on_terminal(factory, "agent", "run", "mine:shout", "--in-topic", source, "--out-topic", target, *last_hour())
    assert code == 0, shown
    assert "consumed" in shown
    assert "1,201" in shown
    assert f"factory dead-letters list {target}.dead" in shown
    code, shown = on_terminal(factory, "dead-letters", "list", f"{target}.dead")
    assert code == 0, shown
    assert "agent-error" in shown
    code, shown = on_terminal(factory, "lag", "--pipeline", f"cli.shout.{source}")
    assert code == 0, shown
    code, shown = on_terminal(factory, "windows")
    assert code == 0, shown
    assert "shout: done, 1,201 read" in " ".join(shown.split())


def test_sigterm_in_a_window_ends_with_75_and_the_same_command_goes_on(factory: Command, runs: Runs) -> None:
    source, target = filled(runs, 2000)
    slow = "import time\n\ndef slow(event: dict) -> dict:\n    time.sleep(0.005)\n    return event\n"
    (factory.cwd / "mine.py").write_text(slow)
    command = ("agent", "run", "mine:slow", "--in-topic", source, "--out-topic", target, "--chunk-records", "50", *last_hour())
    live = factory.start(*command)
    wait_for(lambda: len(runs.everything(target)) >= 50, "the first chunk")
    stopped = live.stop(signal.SIGTERM)
    assert stopped.code == 75, stopped.err
    last = json.loads(stopped.err.splitlines()[-1])
    assert (last["level"], last["error"], last["retriable"]) == ("error", "StoppedError", True)
    assert last["message"] == "stage 'slow': asked to stop; what is committed stays, a retry resumes"
    (factory.cwd / "mine.py").write_text(slow.replace("time.sleep(0.005)", "pass # as fast"))
    done = factory.ok(*command)
    assert done.data["counts"]["consumed"] == 2000


# Dead letters, lag


def test_rejected_events_are_listed_shown_and_replayed(factory: Command, runs: Runs) -> None:
    source, target = filled(runs, 3, bad=2)
    (factory.cwd / "mine.py").write_text(AGENT)
    factory.ok("agent", "run", "mine:shout", "--in-topic", source, "--out-topic", target, *last_hour())
    dead = f"{target}.dead"
    (group,) = factory.ok("dead-letters", "list", dead).data
    assert (group["rule"], group["count"], group["error"]) == ("agent-error", 2, "shout raised ValueError: bad event")
    shown = factory.ok("dead-letters", "show", dead, group["example"]).data
    assert shown["why"]["topic"] == source
    assert shown["value"]["bad"] is True
    assert factory.ok("dead-letters", "replay", dead, "--to", source, "--dry-run").data["replayed"] == 2
    assert factory.ok("dead-letters", "replay", dead, "--to", source).data["replayed"] == 2
    assert len(runs.everything(source)) == 7
    refused = factory("dead-letters", "replay", dead, "--to", source)
    assert (refused.code, refused.error) == (1, f"{dead}: all matching letters (2) were replayed before; --again replays them again")


def test_lag_without_a_reader_asks_whose(offline: Command) -> None:
    assert offline("lag").error.startswith("whose lag?")


# One line for whatever is wrong


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("agent", "run", "enrih", "--in-topic", "t"), 1, "unknown agent 'enrih'; did you mean 'enrich'?"),
        (("agent", "run", "none:such", "--in-topic", "t"), 1, "agent 'none:such': no module 'none'"),
        (("agent", "run", "enrich"), 1, "agent 'enrich': no topic to read; give --in-topic, or set INPUT_TOPIC"),
        (
            ("agent", "run", "enrich", "--in-topic", "t", "--since", "2026-11-01T05:00", "--until", "2026-11-01T04:00"),
            1,
            "interval: its end 2026-11-01T04:00:00+00:00 is not after its start 2026-11-01T05:00:00+00:00; give them the other way round",
        ),
        (("agent", "run", "enrich", "--in-topic", "t", "--since", "2026-11-01"), 1, "--since is given without --until"),
        (("agent", "run", "enrich", "--in-topic", "t", "--window", "w", "--since", "2026-11-01"), 1, "--window already says which"),
        (("agent", "run", "enrich", "--in-topic", "t", "--shard", "2"), 1, "--shard: expected i/n"),
        (("agent", "run", "enrich", "--in-topic", "t", "--shard", "1/2"), 1, "--shard needs a window"),
        (("agent", "run", "enrich", "--window", "none.json", "--out-topic", "t"), 1, "--window none.json: cannot be read: No such file"),
        (("agent", "run", "ingest", "--in-topic", "t"), 1, "agent 'ingest' reads a source, not a topic: leave out --in-topic"),
        (("agent", "run", "ingest"), 1, "agent 'ingest': no topic to write to; give --topic, or set OUTPUT_TOPIC"),
        (("agent", "run", "validate", "--in-topic", "t"), 1, "agent 'validate': no topic for valid events"),
        (
            ("agent", "run", "enrich", "--in-topic", "t", "-X", "linger.sm=5"),
            1,
            "-X: unknown librdkafka key 'linger.sm'; did you mean 'linger.ms'?",
        ),
        (("agent", "run", "enrich", "--in-topc", "t"), 2, "No such option: --in-topc"),
        (("agent", "run"), 2, "Missing argument 'NAME'"),
        (("agnet",), 2, "No such command 'agnet'"),
        (("sandbox", "env"), 75, "no sandbox is running in"),
        (("topics", "apply", "none.yaml"), 1, "topics file 'none.yaml': no such file in"),
    ],
)
def test_a_mistake_is_one_line_and_a_status(here: Here, arguments: tuple[str, ...], code: int, message: str) -> None:
    done = here(*arguments)
    assert done.error.startswith(message)
    assert (done.code, done.out) == (code, "")


@pytest.mark.parametrize("group", [(), ("agent",), ("topics",), ("dead-letters",), ("temporal",), ("rollout",), ("replicate",)])
def test_a_group_without_a_command_shows_its_help(here: Here, group: tuple[str, ...]) -> None:
    done = here(*group)
    lines = done.err.splitlines()
    assert lines[0] == " ".join(["Usage: factory", *group, "[OPTIONS] COMMAND [ARGS]..."])
    assert "Commands:" in lines
    assert (done.code, done.out) == (2, "")


def test_a_list_without_windows_says_so_and_names_the_pipeline_that_was_meant(factory: Command, runs: Runs) -> None:
    source, target = filled(runs, 1)
    assert "no windows are planned yet" in on_terminal(factory, "windows", "--pipeline", "clicks")[1]
    factory.ok("agent", "run", "enrich", "--in-topic", source, "--out-topic", target, "--pipeline", "clicks", *last_hour())
    code, shown = on_terminal(factory, "windows", "--pipeline", "clikcs")
    assert code == 0
    assert "no windows of pipeline 'clikcs'; did you mean 'clicks'?" in shown


def test_an_agent_named_with_a_dot_is_told_of_the_colon(here: Here) -> None:
    done = here("agent", "run", "my_agents.clicks.enrich", "--in-topic", "t")
    assert (done.code, done.error) == (1, "unknown agent 'my_agents.clicks.enrich'; did you mean 'my_agents.clicks:enrich'?")


def test_a_mistyped_choice_is_told_of_the_one_that_was_meant(factory: Command) -> None:
    assert "; did you mean 'registry'? (see factory sandbox up --help)" in factory("sandbox", "up", "--with", "regsitry").error
    assert "did you mean" not in factory("sandbox", "up", "--with", "zzz").error


def test_bytes_that_are_no_text_are_refused(here: Here) -> None:
    done = here("windows", "list", "--pipeline", "caf\udce9")
    assert (done.code, done.out) == (2, "")
    assert done.err == "error: argument 'caf\\udce9': expected text in UTF-8\n"


def test_a_mistyped_parameter_is_one_line_and_plans_nothing(factory: Command, runs: Runs) -> None:
    source, target = filled(runs, 1)
    done = factory("agent", "run", "enrich", "--in-topic", source, "--out-topic", target, "-p", "funktion=x", *last_hour())
    assert (done.code, done.error) == (1, "agent 'enrich': unknown parameter 'funktion'; did you mean 'function'?")
    assert factory.ok("windows").data == []


@pytest.mark.slow
def test_an_unreachable_broker_is_one_line_and_worth_a_retry(offline: Command) -> None:
    (offline.cwd / "t.yaml").write_text("topics: {}\n")
    agent = ("agent", "run", "enrich", "--in-topic", "t", "--out-topic", "u")
    commands = [
        ("lag", "g"),
        ("windows",),
        ("topics", "apply", "t.yaml"),
        ("dead-letters", "list", "t"),
        agent,
        (*agent, "--since", "2026-11-01", "--until", "2026-11-02"),
    ]
    for running in [offline.start(*command, program=IMPATIENT) for command in commands]:
        done = running.wait()
        assert "no broker answered at 127.0.0.1:1 within" in done.error
        assert done.code == 75
    offline.close()


@pytest.mark.parametrize("window", [(), ("--since", "2026-11-01", "--until", "2026-11-02")])
def test_an_unknown_topic_is_one_line(factory: Command, topic: TopicFactory, window: tuple[str, ...]) -> None:
    known = topic(partitions=1)
    for arguments in (("--in-topic", "no.such.topic", "--out-topic", known), ("--in-topic", known, "--out-topic", "no.such.topic")):
        done = factory("agent", "run", "enrich", *arguments, *window)
        assert done.code == 1
        assert done.error == "topic 'no.such.topic': unknown topic or partition; create it (factory topics apply) or correct its name"


def test_wrong_credentials_are_one_line_without_the_password(factory: Command, sandbox_info: SandboxInfo) -> None:
    assert sandbox_info.sasl_bootstrap
    settings: dict[str, Any] = {
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "PLAIN",
        "sasl.username": sandbox_info.sasl_username,
        "sasl.password": "wrong-password",
    }
    broker = {"KAFKA_BOOTSTRAP": sandbox_info.sasl_bootstrap, "KAFKA_CONFIG": json.dumps(settings)}
    for arguments in (("lag", "g"), ("agent", "run", "enrich", "--in-topic", "t", "--out-topic", "u")):
        done = factory(*arguments, **broker)
        assert done.code == 1
        assert "authentication failed" in done.error
        assert "wrong-password" not in done.err
    right = settings | {"sasl.password": sandbox_info.sasl_password}
    assert factory.ok("windows", **broker | {"KAFKA_CONFIG": json.dumps(right)}).data == []


def test_an_unexpected_error_is_one_line_too(offline: Command) -> None:
    (offline.cwd / "mine.py").write_text("def f(event): ...\n")
    script = (
        "import sys; sys.argv = ['factory', 'windows']\nimport factory_agents.kafka.windows as w\n"
        "def boom(*a, **k): raise KeyError('x')\nw.read_windows = boom\nfrom factory_agents.cli import main\nmain()"
    )
    done = offline("-c", script, program=(sys.executable,))
    assert done.code == 1
    assert done.error == "unexpected KeyError: 'x' (please report it; FACTORY_DEBUG=1 shows the traceback)"
    assert "Traceback" in offline("-c", script, program=(sys.executable,), FACTORY_DEBUG="1").err


# The sandbox


def test_the_sandboxs_variables_survive_eval(offline: Command, sandbox_info: SandboxInfo) -> None:
    script = f'eval "$({" ".join(PROGRAM)} sandbox env)" && exec {sys.executable} -c "import json, os; print(json.dumps(dict(os.environ)))"'
    done = offline("-c", script, program=("sh",), FACTORY_HOME=str(sandbox_info.home))
    assert done.code == 0, done.err
    shown = done.data
    assert {name: shown[name] for name in sandbox_info.env()} == sandbox_info.env()
    assert json.loads(shown["AIRFLOW_CONN_KAFKA_DEFAULT"])["extra"]["bootstrap.servers"] == sandbox_info.bootstrap


def test_the_sandboxs_status_is_its_exit_status(offline: Command, sandbox_info: SandboxInfo) -> None:
    running = offline("sandbox", "status", FACTORY_HOME=str(sandbox_info.home))
    assert (running.code, running.data["kafka"]["address"]) == (0, sandbox_info.bootstrap)
    assert offline("sandbox", "status", FACTORY_HOME=str(offline.cwd)).code == 1
