"""No secret leaves by a side door: a password is planted in the Kafka settings and the database's URL, and looked for everywhere else."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.ledger import ledger_topic
from factory_agents.protocol import AgentRun, encode
from tests.support.commands import Command, clean_environment
from tests.support.runs import Attempt, Runs, events
from tests.support.waiting import wait_for

if TYPE_CHECKING:
    from factory_agents.sandbox import Sandbox, SandboxInfo

WRONG = "Geheim-?&/1 2%"
"""A password that is wrong, and that needs quoting in a URL."""


def forms(password: str) -> list[bytes]:
    """How a password may be written."""
    return [password.encode(), quote(password, safe="").encode(), json.dumps(password)[1:-1].encode()]


class Leaks:
    """Attempts with secrets, and all that they left behind."""

    def __init__(self, runs: Runs, info: SandboxInfo) -> None:
        self.runs, self.info = runs, info

    def secrets(self, password: str = "", database_url: str = "") -> dict[str, str]:
        sasl = {
            "security.protocol": "SASL_PLAINTEXT",
            "sasl.mechanism": "PLAIN",
            "sasl.username": str(self.info.sasl_username),
            "sasl.password": password or str(self.info.sasl_password),
        }
        values = KafkaConfig(str(self.info.sasl_bootstrap), sasl).to_env()
        return values | {"FACTORY_LOG_LEVEL": "DEBUG"} | ({"DATABASE_URL": database_url} if database_url else {})

    def attempt(self, run: AgentRun, **more: str) -> Attempt:
        return self.runs.attempt(run, secrets=self.secrets(**more))

    def check(self, attempt: Attempt, *passwords: str) -> None:
        """None of these passwords is in what an attempt wrote, nor in any record of the pipeline's topics."""
        seen = [attempt.log.encode(), encode(attempt.result)]
        assert attempt.process.stdout is not None
        seen.append(attempt.process.stdout.read())
        run, runs = attempt.run, self.runs
        topics = {ledger_topic(run.prefix), run.output_topic, f"{run.output_topic}.dead", f"{run.window.topic}.dead" if run.window else ""}
        for topic in sorted(t for t in topics if t and runs.cluster.find(t) is not None):
            for record in runs.everything(topic):
                seen += [record.key or b"", record.value or b"", *((k.encode() + (v or b"")) for k, v in record.headers.items())]
        for password in passwords:
            for form in forms(password):
                assert not any(form in text for text in seen)


@pytest.fixture
def leaks(runs: Runs, sandbox_info: SandboxInfo) -> Leaks:
    return Leaks(runs, sandbox_info)


@pytest.fixture
def password(sandbox_info: SandboxInfo) -> str:
    """The right one, of Kafka and the database alike."""
    return str(sandbox_info.sasl_password)


def test_a_run_that_succeeds_leaves_none(leaks: Leaks, password: str, database_url: str) -> None:
    runs = leaks.runs
    topic = runs.topic("in")
    runs.produce(topic, [*events(20), b"poison"])
    enriched = leaks.attempt(runs.run(runs.window(topic), runs.topic("out"), max_rejected="100 %"))
    assert enriched.wait() == 0, enriched.log
    leaks.check(enriched, password)
    contract = {
        "name": "e",
        "id": "event_id",
        "schema": {"required": ["event_id"], "properties": {"event_id": {"type": "integer"}, "text": {"type": "string"}}},
    }
    params: dict[str, Any] = {"table": f"t_{runs.prefix.replace('-', '_')}", "contract": contract}
    run = runs.run(runs.window(topic), name="publish", stage="publish", params=params, max_rejected="100 %")
    published = leaks.attempt(run, database_url=database_url)
    assert published.wait() == 0, published.log
    leaks.check(published, password)
    assert published.result.counts.written == 20


def test_none_is_in_the_list_of_processes(leaks: Leaks, sandbox: Sandbox, password: str, database_url: str) -> None:
    """What ``ps`` shows of an agent, of the broker and of the database to every user of the machine."""
    runs = leaks.runs
    run = runs.run(runs.filled(3), runs.topic("out"), name="enrich", stage="enrich")
    attempt = runs.attempt(run, "chunk.after-commit=stop@1", secrets=leaks.secrets(database_url=database_url))
    attempt.wait_stopped()
    shown = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in (attempt.process.pid, sandbox.kafka_pid, sandbox.postgres_pid)}
    attempt.signal(signal.SIGCONT)
    assert attempt.wait() == 0, attempt.log
    assert all(shown.values())
    assert not any(form in line for line in shown.values() for form in forms(password))


def test_a_wrong_kafka_password_is_not_repeated(leaks: Leaks, password: str) -> None:
    runs = leaks.runs
    attempt = leaks.attempt(runs.run(runs.filled(3), runs.topic("out")), password=WRONG)
    assert attempt.wait() == 1, attempt.log
    assert "authentication failed" in attempt.log
    leaks.check(attempt, WRONG, password)


def _elsewhere(url: str) -> str:
    """The same URL with the wrong password."""
    head, _, tail = url.rpartition("@")
    return f"{head.rpartition(':')[0]}:{quote(WRONG, safe='')}@{tail}"


DATABASES: dict[str, Callable[[str], str]] = {
    "a wrong password": _elsewhere,
    "nobody listens": lambda url: f"postgresql://factory:{quote(WRONG, safe='')}@127.0.0.1:1/factory",
    "no such database": lambda url: url + "_not_there",
    "an unknown option": lambda url: f"postgresql://factory:{quote(WRONG, safe='')}@127.0.0.1:1/factory?nonsense=1",
    "not a URL": lambda url: f"postgresql//factory:{WRONG}@127.0.0.1",
    "a port that is none": lambda url: f"postgresql://factory:{quote(WRONG, safe='')}@127.0.0.1:port/factory",
    "words": lambda url: f"host=127.0.0.1 port=1 password='{WRONG}'",
    "words of which one is unknown": lambda url: f"host=127.0.0.1 pasword='{WRONG}'",
}


@pytest.mark.parametrize("what", DATABASES)
def test_a_database_that_cannot_be_reached_is_named_without_its_password(leaks: Leaks, password: str, database_url: str, what: str) -> None:
    runs = leaks.runs
    run = runs.run(runs.filled(3), name="publish", stage="publish", params={"table": "nowhere"})
    attempt = leaks.attempt(run, database_url=DATABASES[what](database_url))
    assert attempt.wait() in (1, 75), attempt.log
    assert "Traceback" not in attempt.log
    leaks.check(attempt, WRONG, password)


def test_an_agent_that_fails_with_everything_it_knows_is_the_only_one_that_tells(leaks: Leaks, password: str) -> None:
    """The runtime adds no environment and no settings to the error of an agent's code."""
    runs = leaks.runs
    attempt = leaks.attempt(runs.run(runs.filled(3), runs.topic("out"), name="tests.support.agents:missing"))
    assert attempt.wait() == 1, attempt.log
    leaks.check(attempt, password)


def test_process_arguments_hold_none(leaks: Leaks, password: str, database_url: str) -> None:
    runs = leaks.runs
    secrets = leaks.secrets(database_url=database_url) | {"PYTHONHASHSEED": "0"}  # for a start of its own, not a fork
    attempt = runs.attempt(runs.run(runs.filled(3), runs.topic("out")), "chunk.before-commit=stop", secrets=secrets)
    attempt.wait_stopped()
    shown = Path(f"/proc/{attempt.process.pid}/cmdline").read_bytes()
    assert b"factory_agents.run" in shown
    assert not any(form in shown for form in forms(password))


@pytest.fixture
def command(leaks: Leaks, tmp_path: Path) -> Iterator[Command]:
    """The command with the wrong password in its environment."""
    url = f"postgresql://factory:{quote(WRONG, safe='')}@127.0.0.1:1/factory"
    own = Command(tmp_path, clean_environment(**leaks.secrets(password=WRONG, database_url=url)))
    yield own
    own.close()


FACTORY = (sys.executable, "-m", "factory_agents.cli")
MODULE = (sys.executable, "-m", "factory_agents.publish")
HOUR = ("--since", "2026-01-01T00:00Z", "--until", "2026-01-01T01:00Z")


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        (FACTORY, ("--help",)),
        (FACTORY, ("agent", "run", "--help")),
        (FACTORY, ("lag",)),
        (FACTORY, ("windows",)),
        (FACTORY, ("topics", "apply", "nowhere.yaml")),
        (FACTORY, ("agent", "run", "publish", "--in-topic", "t", *HOUR)),
        (FACTORY, ("agent", "run", "enrich", "-X", f"sasl.pasword={WRONG}", "--in-topic", "t", "--out-topic", "o")),
        (MODULE, ("--help",)),
        (MODULE, ("--in-topic", "t", "--nonsense")),
        (MODULE, ("--in-topic", "t", *HOUR)),
    ],
)
def test_the_command_and_its_help_show_none(command: Command, program: tuple[str, ...], arguments: tuple[str, ...]) -> None:
    done = command(*arguments, program=program)
    assert done.out or done.err
    for form in forms(WRONG):
        assert form.decode() not in done.out + done.err


def test_a_live_agent_tells_none(leaks: Leaks, command: Command) -> None:
    live = command.start("agent", "run", "enrich", "--in-topic", leaks.runs.topic("in"), "--out-topic", leaks.runs.topic("out"))
    wait_for(lambda: live.process.poll() is not None or live.lines, "a word of the agent")
    done = live.stop() if live.process.poll() is None else live.wait()
    for form in forms(WRONG):
        assert form.decode() not in done.out + done.err


def test_settings_show_themselves_masked() -> None:
    shown = repr(KafkaConfig("127.0.0.1:1", {"sasl.password": WRONG, "ssl.key.pem": WRONG, "sasl.jaas.config": WRONG, "client.id": os.sep}))
    assert WRONG not in shown
    assert shown.count("***") == 3
