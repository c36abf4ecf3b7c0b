"""All that a pipeline consists of, while brokers of three are killed, frozen, restarted one by one, or all gone: exact, and no command that
cannot go on leaves without one clear line.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from factory_agents.errors import FactoryError
from factory_agents.kafka.control import Control
from tests.chaos.test_groups import Watch
from tests.chaos.test_rollouts import PARTITIONS, Fleet, check_exact, flip
from tests.support.brokers import NODES, Brokers, three_brokers
from tests.support.runs import ROOT, Runs, own_runs
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.soak]

_CONTRACT = {"name": "e", "id": "event_id", "columns": {"event_id": "bigint"}}
_RETRY = 75


class Commands:
    """Commands that are run one after the other until the end, each again and again: what they answered."""

    def __init__(self, runs: Runs, commands: Sequence[Callable[[], Sequence[str]]]) -> None:
        self.answers: list[tuple[str, int, str, float]] = []
        self._runs, self._ended = runs, threading.Event()
        self._threads = [threading.Thread(target=self._repeat, args=(make,)) for make in commands]
        for thread in self._threads:
            thread.start()

    def _repeat(self, make: Callable[[], Sequence[str]]) -> None:
        while not self._ended.is_set():
            command, began = make(), time.monotonic()
            done = subprocess.run(
                [sys.executable, "-m", "factory_agents.cli", *command],
                env=environment(self._runs),
                cwd=ROOT,
                capture_output=True,
                text=True,
            )
            self.answers.append((" ".join(command[:2]), done.returncode, done.stderr, time.monotonic() - began))
            self._ended.wait(10)

    def end(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()


def environment(runs: Runs, **more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("KAFKA_", "FACTORY_"))}
    return kept | runs.config.to_env() | {"FACTORY_PREFIX": runs.prefix, **more}


def killed(brokers: Brokers) -> None:
    for node in NODES:
        brokers.kill(node)
        pause(14)
        brokers.launch(node)
        brokers.wait_ready()
        pause(4)


def frozen(brokers: Brokers) -> None:
    for node in NODES:
        os.kill(brokers.processes[node].pid, signal.SIGSTOP)
        pause(18)
        os.kill(brokers.processes[node].pid, signal.SIGCONT)
        brokers.wait_ready()
        pause(4)


def restarted(brokers: Brokers) -> None:
    for node in NODES:
        brokers.stop(node)
        brokers.launch(node)
        brokers.wait_ready()


def all_gone(brokers: Brokers) -> None:
    for node in NODES:
        brokers.kill(node)
    pause(10)
    for node in NODES:
        brokers.launch(node)
        pause(3)
    brokers.wait_ready()


def pause(seconds: float) -> None:
    until = time.monotonic() + seconds
    wait_for(lambda: time.monotonic() > until, "a while", seconds + 30)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("happens", [killed, frozen, restarted, all_gone])
def test_a_pipeline_is_exact_and_its_commands_say_what_is_wrong_whatever_brokers_do(
    happens: Callable[[Brokers], None], tmp_path: Path, database_url: str
) -> None:
    rnd = random.Random(happens.__name__)
    with three_brokers(tmp_path / "brokers", "127.0.0.1") as brokers, own_runs(brokers.bootstrap, "three") as runs, ExitStack() as opened:
        table = f"brokers_{happens.__name__}"
        connection = opened.enter_context(psycopg.connect(database_url, autocommit=True))
        connection.execute(f"DROP TABLE IF EXISTS {table}, {table}_w".encode())
        contract = tmp_path / "contract.json"
        contract.write_text(json.dumps(_CONTRACT))
        fleet = Fleet(runs, runs.topic("in", partitions=PARTITIONS), runs.topic("out", partitions=PARTITIONS), log=tmp_path / "log")
        fleet.transaction_ms = 60_000
        opened.callback(fleet.end)
        for _ in range(2):
            fleet.start("v1")
            fleet.start("v2")
        publishers = {}
        for live, name in (("records", table), ("windows", f"{table}_w")):
            command = [
                sys.executable,
                "-m",
                "factory_agents.cli",
                "agent",
                "run",
                "publish",
                "--in-topic",
                fleet.out,
                "--prefix",
                runs.prefix,
            ]
            command += ["--group", f"p{live}", "--table", name, "--contract", str(contract), "--param", f"live={live}"]
            log = opened.enter_context((tmp_path / f"{live}.log").open("ab"))
            publishers[live] = subprocess.Popen(command, env=environment(runs, DATABASE_URL=database_url), cwd=ROOT, stdout=log, stderr=log)
            opened.callback(end, publishers[live])
        windowed = runs.topic("w", partitions=PARTITIONS)
        topics = tmp_path / "topics.yaml"
        topics.write_text(f"topics:\n  {fleet.source}:\n    partitions: {PARTITIONS}\n")
        control = Control(runs.config, runs.cluster, prefix=runs.prefix, group=fleet.group)
        opened.callback(control.close)
        flips, refused = 0, Counter[str]()
        with fleet.feeding(0.05):
            wait_for(lambda: fleet.count() > 0, "the first record", 60)
            wait_for(lambda: rows(connection, table) > 0 and rows(connection, f"{table}_w") > 0, "the first rows", 60)
            watch, since = Watch(fleet), time.monotonic()
            opened.callback(watch.end)
            commands = Commands(
                runs,
                [
                    lambda: ["windows", "--pipeline", "pwindows"],
                    lambda: ["windows", "prune"],
                    lambda: ["lag", fleet.group],
                    lambda: ["live", "status"],
                    lambda: ["rollout", "status", fleet.group],
                    lambda: ["topics", "apply", str(topics)],
                    lambda: window_of(fleet, windowed),
                ],
            )
            opened.callback(commands.end)
            disturbing = threading.Thread(target=happens, args=(brokers,))
            disturbing.start()
            while disturbing.is_alive():
                try:
                    flip(control, rnd)
                    flips += 1
                except FactoryError as error:
                    refused[str(error)] += 1
                disturbing.join(2)
            brokers.wait_ready()
            fleet.wait_for_more(800)
        commands.end()
        wait_for(lambda: len(watch.seen) == fleet.sent, "all to be read", 120)
        worst, at = watch.worst(since)
        print(f"{happens.__name__}: {worst:.1f} s at {at:.1f} s; {fleet.sent} events, {flips} flips, {refused}")
        for (name, code), count in sorted(Counter((a[0], a[1]) for a in commands.answers).items()):
            slowest = max(a[3] for a in commands.answers if a[:2] == (name, code))
            print(f"  {name}: exit {code} {count} times, {slowest:.1f} s at most")
        said = Counter(a[2].strip() for a in commands.answers if a[1])
        for text, count in said.items():
            print(f"  {count} x {text[:400]}")
        ended = [(v, p.pid, p.poll()) for v, p in fleet.members if p.poll() is not None]
        ended += [(live, p.pid, p.poll()) for live, p in publishers.items() if p.poll() is not None]
        print("ended", ended)
        check_exact(fleet)
        numbers = Counter(r.id for r in runs.everything(windowed))
        assert numbers
        assert max(numbers.values()) == 1
        for name in (table, f"{table}_w"):
            wait_for(lambda name=name: rows(connection, name) == fleet.sent, f"all rows in {name}", 120)  # type: ignore[misc]
        assert {code for *_, code in ended} <= ({_RETRY} if happens is all_gone else set())  # which may take longer than anybody waits
        assert {a[1] for a in commands.answers} <= {0, _RETRY}
        assert not [text for text in said if len(text.splitlines()) != 1]


def window_of(fleet: Fleet, output: str) -> list[str]:
    """A command that runs an agent over the last two seconds: no two overlap."""
    until = datetime.now(UTC) - timedelta(seconds=1)
    interval = ["--since", (until - timedelta(seconds=2)).isoformat(), "--until", until.isoformat()]
    return ["agent", "run", "enrich", "--in-topic", fleet.source, "--out-topic", output, *interval]


def rows(connection: psycopg.Connection[tuple[object, ...]], table: str) -> int:
    [there] = connection.execute("SELECT to_regclass(%s) IS NOT NULL", [table]).fetchone() or (False,)
    found = connection.execute(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(table))).fetchone() if there else (0,)
    return int(str(found[0])) if found else 0


def end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait(30)
