"""An agent's log: JSON lines that say whose they are, and end with what was done; nothing secret is in them."""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path
from typing import Any

import msgspec
import pytest

from factory_agents.protocol import AgentRef
from factory_agents.telemetry import CONTEXT
from tests.support.commands import Command
from tests.support.runs import Attempt, Runs, events
from tests.support.waiting import wait_for


def lines(attempt: Attempt) -> list[dict[str, Any]]:
    """All that it wrote: JSON, each line."""
    return [json.loads(line) for line in attempt.lines]


@pytest.fixture
def talkative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AgentRef:
    """An agent that logs by itself, warns, and uses a library that logs."""
    (tmp_path / "talkative_agent.py").write_text(
        textwrap.dedent("""
        import logging, warnings
        from factory_agents import agent

        logging.getLogger("talkative").setLevel("INFO")

        @agent(name="talks", version="7")
        def talk(event):
            logging.getLogger("talkative").info("event %s", event["event_id"])
            logging.getLogger("some.library").warning("two\\nlines")
            logging.getLogger("some.library").info("not asked for")
            warnings.warn("old", DeprecationWarning, stacklevel=1)
            return event
        """)
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONWARNINGS", "default")
    return AgentRef("talkative_agent:talk")


def test_every_line_of_a_run_is_json_and_says_whose_it_is(runs: Runs, talkative: AgentRef) -> None:
    trace, span = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    run = msgspec.structs.replace(runs.run(runs.filled(2), runs.topic("out")), agent=talkative, traceparent=f"00-{trace}-{span}-01")
    attempt = runs.attempt(run, secrets={"FACTORY_LOG_LEVEL": "DEBUG"})
    assert attempt.wait() == 0, attempt.log
    told = lines(attempt)
    messages = [line["message"] for line in told]
    assert {"event 0", "event 1", "two\\nlines"} <= set(messages)
    assert any("DeprecationWarning: old" in message for message in messages)
    assert "not asked for" not in messages
    of_agent = [line for line in told if line["logger"] in ("talkative", "some.library", "factory_agents.run")]
    for line in of_agent:
        assert set(CONTEXT) <= line.keys(), line
        assert (line["service"], line["pipeline"], line["stage"], line["agent"]) == ("factory-agent", runs.prefix, "stage", "talks")
        assert (line["version"], line["window"], line["shard"]) == ("7", "w", "0of1")
        assert (line["trace_id"], line["span_id"]) == (trace, span)
    assert len({line["attempt"] for line in of_agent}) == 1
    (done,) = [line for line in told if line["message"] == "done"]
    assert done["counts"] == {"consumed": 2, "forwarded": 2, "filtered": 0, "rejected": 0, "produced": 2}
    assert (done["reused"], done["resumed"]) == (False, False)


def test_what_goes_wrong_outside_of_an_agents_calls_is_json_too(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "careless_agent.py").write_text(
        textwrap.dedent("""
        import logging, threading

        def fail():
            raise RuntimeError("beside it")

        class Left:
            def __del__(self):
                raise RuntimeError("behind it")

        def careless(event):
            logging.getLogger("careless").warning("%d of %s", "many", "them")
            thread = threading.Thread(target=fail, name="beside")
            thread.start()
            thread.join()
            Left()
            return event
        """)
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    run = msgspec.structs.replace(runs.run(runs.filled(1), runs.topic("out")), agent=AgentRef("careless_agent:careless"))
    attempt = runs.attempt(run)
    assert attempt.wait() == 0, attempt.log
    told = {line["message"].partition(" at 0x")[0]: line for line in lines(attempt)}
    assert told["%d of %s ('many', 'them')"]["stage"] == "stage"
    assert told["thread 'beside' failed"]["exception"].endswith("RuntimeError: beside it")
    assert told["Exception ignored in: <function Left.__del__"]["exception"].endswith("RuntimeError: behind it")


def test_a_failure_says_whose_it_is_too(runs: Runs) -> None:
    attempt = runs.attempt(msgspec.structs.replace(runs.run(runs.filled(2), runs.topic("out")), params={"no": "such"}))
    assert attempt.wait() == 1
    failed = lines(attempt)[-1]
    assert (failed["level"], failed["error"], failed["agent"], failed["window"]) == ("error", "ConfigurationError", "mark", "w")


def test_nothing_secret_is_logged(runs: Runs) -> None:
    secrets = {"DATABASE_URL": "postgresql://user:hunter2@nowhere/db", "FACTORY_LOG_LEVEL": "DEBUG"}
    run = runs.run(runs.filled(2), runs.topic("out"))
    attempt = runs.attempt(run, secrets=secrets, **{"sasl.password": "hunter2"})
    assert attempt.wait() == 0, attempt.log
    assert lines(attempt)
    assert "hunter2" not in attempt.log


def test_a_live_agents_lines_say_whose_they_are_and_end_with_the_counts(factory: Command, runs: Runs) -> None:
    source, out = runs.topic("in"), runs.topic("out")
    runs.produce(source, events(3))
    live = factory.start("agent", "run", "enrich", "--in-topic", source, "--out-topic", out, "--group", f"{runs.prefix}.g")
    wait_for(lambda: len(runs.everything(out)) == 3, "the events")
    assert live.stop().code == 0
    told = [json.loads(line) for line in live.lines]
    assert {(line["pipeline"], line["stage"], line["agent"]) for line in told if "pipeline" in line} == {
        (f"{runs.prefix}.g", "live", "enrich")
    }
    assert told[-1]["message"] == "done"
    assert told[-1]["counts"]["consumed"] == 3


def test_two_runs_of_one_process_are_told_apart(runs: Runs, tmp_path: Path) -> None:
    """As in a worker whose activities run in threads."""
    program = textwrap.dedent("""
        import sys, threading
        from factory_agents.kafka.config import KafkaConfig
        from factory_agents.protocol import decode_run
        from factory_agents.run import execute
        from factory_agents.runtime.session import RunContext
        from factory_agents.telemetry import configure_logging

        configure_logging(json=True)
        runs = [decode_run(line) for line in sys.stdin.buffer]
        threads = [threading.Thread(target=execute, args=(RunContext(KafkaConfig.from_env()), run)) for run in runs]
        [t.start() for t in threads]
        [t.join() for t in threads]
    """)
    window = runs.filled(2)
    both = [msgspec.structs.replace(runs.run(window, runs.topic(name)), stage=name) for name in ("one", "two")]
    command = Command(tmp_path, runs.config.to_env())
    done = command(program=(sys.executable, "-c", program), stdin="\n".join(msgspec.json.encode(run).decode() for run in both))
    ends = [line for line in map(json.loads, done.err.splitlines()) if line["message"] == "done"]
    assert sorted(line["stage"] for line in ends) == ["one", "two"]
