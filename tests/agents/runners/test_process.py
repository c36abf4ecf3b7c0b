"""The process runner: what the agent is given, what comes back, and that nothing is left behind."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from factory_agents.errors import AgentCrashedError
from factory_agents.protocol import AgentRef, AgentRun
from factory_agents.runners.process import AgentProcess, child_environment, log_line
from factory_agents.sandbox.processes import wait_until
from tests.support.samples import window

DONE = """open(result, 'w').write('{"pipeline": "p", "stage": "s", "key": "k"}')\n"""
RUN = AgentRun("clicks", "enrich", AgentRef("enrich"), window=window())


def process(tmp_path: Path, script: str, grace: float = 5, environment: dict[str, str] | None = None) -> AgentProcess:
    """An agent that is this script: ``result`` is its result file, ``line`` the run that it was given."""
    file = tmp_path / "agent.py"
    head = "import json, os, sys, time, signal\nresult = sys.argv[sys.argv.index('--result') + 1]\nline = sys.stdin.readline()\n"
    file.write_text(head + script)
    return AgentProcess(RUN, environment or dict(os.environ), grace=grace, command=(sys.executable, str(file)))


def test_the_run_goes_in_by_standard_input_and_the_result_comes_out_of_a_file(tmp_path: Path) -> None:
    agent = process(
        tmp_path, "r = json.loads(line); open(result, 'w').write(json.dumps({k: r[k] for k in ('pipeline', 'stage')} | {'key': 'k'}))"
    )
    assert agent.run().stage == "enrich"


def test_log_lines_keep_their_level(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    script = (
        "print(json.dumps({'level': 'warning', 'message': 'slow', 'time': 't', 'logger': 'l', 'lag': 3}), file=sys.stderr)\n"
        "print('plain')\n" + DONE
    )
    with caplog.at_level(logging.INFO):
        process(tmp_path, script).run()
    assert ("WARNING", "slow lag=3") in [(r.levelname, r.getMessage()) for r in caplog.records]
    assert ("INFO", "plain") in [(r.levelname, r.getMessage()) for r in caplog.records]


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("print('Traceback: no memory'); sys.exit(3)", "ended with exit code 3 and left no result; its last words: Traceback: no memory"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "was killed by SIGKILL and left no result; is the worker out of memory"),
    ],
)
def test_an_agent_without_a_result_fails_retriably_and_says_how_it_ended(tmp_path: Path, script: str, says: str) -> None:
    with pytest.raises(AgentCrashedError, match=says) as error:
        process(tmp_path, script).run()
    assert error.value.retriable


@pytest.mark.slow
def test_a_result_of_megabytes_of_log_is_read_without_a_jam(tmp_path: Path) -> None:
    assert process(tmp_path, "[print('y' * 200) for _ in range(20000)]\n" + DONE).run().stage == "s"


def stopped_by_another_thread(agent: AgentProcess, ready: Path) -> None:
    def stop() -> None:
        assert wait_until(ready.exists, 20)
        agent.stop()

    thread = threading.Thread(target=stop)
    thread.start()
    try:
        agent.run()
    finally:
        thread.join()


def test_stop_asks_first_and_takes_the_result_of_a_clean_stop(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    script = (
        'def end(*a):\n    open(result, \'w\').write(\'{"pipeline": "p", "stage": "stopped", "key": "k"}\'); sys.exit(75)\n'
        f"signal.signal(signal.SIGTERM, end)\nopen({str(ready)!r}, 'w').close()\ntime.sleep(60)"
    )
    agent = process(tmp_path, script)
    stopped_by_another_thread(agent, ready)


def test_what_is_stopped_before_it_starts_never_does(tmp_path: Path) -> None:
    agent = process(tmp_path, f"open({str(tmp_path / 'ran')!r}, 'w').close()\n" + DONE)
    agent.stop()
    with pytest.raises(AgentCrashedError, match="stopped before it started"):
        agent.run()
    assert not (tmp_path / "ran").exists()


def test_a_stop_that_comes_while_the_child_is_made_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = process(tmp_path, "time.sleep(60)")
    made: list[int] = []

    class Popen(subprocess.Popen[str]):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            made.append(self.pid)
            agent.stop()

    monkeypatch.setattr(subprocess, "Popen", Popen)
    with pytest.raises(AgentCrashedError, match="SIGTERM"):
        agent.run()
    assert gone(made[0])


def test_a_deaf_agent_and_its_children_are_killed_after_the_grace(tmp_path: Path) -> None:
    ready, child = tmp_path / "ready", tmp_path / "child"
    script = (
        "import subprocess\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\nopen({str(child)!r}, 'w').write(str(p.pid))\n"
        f"open({str(ready)!r}, 'w').close()\nwhile True: time.sleep(1)"
    )
    agent = process(tmp_path, script, grace=0.3)
    with pytest.raises(AgentCrashedError, match="SIGKILL"):
        stopped_by_another_thread(agent, ready)
    assert wait_until(lambda: gone(int(child.read_text())), 10)


def test_a_child_that_holds_the_output_open_does_not_hold_the_task(tmp_path: Path) -> None:
    script = "import subprocess\nsubprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n" + DONE
    assert process(tmp_path, script).run().stage == "s"


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] in "ZX"
    except FileNotFoundError:
        return True


def test_the_environment_holds_the_agents_secrets_and_none_of_the_orchestrators() -> None:
    base = {
        "PATH": "/bin",
        "AIRFLOW_CONN_KAFKA_DEFAULT": "secret",
        "AIRFLOW__CORE__FERNET_KEY": "secret",
        "AIRFLOW_VAR_X": "secret",
        "KAFKA_CONFIG_FILE": "/old",
        "DATABASE_URL": "old",
        "PYTHONPATH": "/there",
    }
    environment = child_environment(
        base,
        private=("AIRFLOW__", "AIRFLOW_CONN_", "AIRFLOW_VAR_"),
        secrets={"KAFKA_BOOTSTRAP": "b:1"},
        extra={"MODE": "x"},
        python_path=[Path("/bundle"), "/there"],
    )
    assert environment == {
        "PATH": "/bin",
        "KAFKA_BOOTSTRAP": "b:1",
        "MODE": "x",
        "PYTHONPATH": f"/bundle{os.pathsep}/there",
        "PYTHONUNBUFFERED": "1",
    }


def test_a_line_that_is_no_structured_log_is_shown_as_it_is() -> None:
    for line in ("hello", "{", "[1]", '{"level": 5}', "null"):
        assert log_line(line) == (logging.INFO, line)


def test_an_exception_in_a_log_line_is_shown_in_full() -> None:
    assert log_line('{"level": "error", "message": "no", "exception": "Traceback\\n x"}') == (logging.ERROR, "no\nTraceback\n x")
