"""The metrics server is killed, agents are killed, work is done again: the increments that were scraped are what the ledger holds.

The bound: where only agents die, exactly. Where the server is killed before it has kept that a scrape was answered, its next life counts
what that scrape brought a second time, and nothing else.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import signal
import threading
import time
from collections import Counter
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor

import msgspec
import pytest
from confluent_kafka.admin import AdminClient

from factory_agents.errors import FactoryError
from factory_agents.kafka.ledger import LEDGER_PARTITIONS, ledger_topic
from factory_agents.run import execute
from factory_agents.runtime.session import RunContext
from tests.support.commands import Command, Live
from tests.support.runs import Runs, events
from tests.support.scrapes import Increments, scrape
from tests.support.waiting import wait_for


class Scraped:
    """A metrics server that dies and comes back, and a scraper that never stops."""

    def __init__(self, factory: Command) -> None:
        self.factory = factory
        self.seen = Increments()
        self.doubled = 0.0
        """The most that kills may have had counted twice: what the last scrape before each brought."""
        self._gained = 0.0
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self.server, self.address = self.start()
        self._thread = threading.Thread(target=self._scrape, daemon=True)
        self._thread.start()

    def start(self, failpoints: str = "") -> tuple[Live, str]:
        flags = ("--listen", "127.0.0.1:0", "--groups", "none", "--topics", "none")
        server = self.factory.start("metrics", "serve", *flags, FACTORY_FAILPOINTS=failpoints)
        server.wait_logged("serving metrics")
        (line,) = [line for line in server.lines if "serving metrics" in line]
        return server, json.loads(line)["address"]

    def _scrape(self) -> None:
        while not self._ended.wait(0.05):
            with self._lock, contextlib.suppress(OSError):
                before = self.seen.of("agent_success_total")
                self.seen.take(scrape(self.address))
                self._gained = self.seen.of("agent_success_total") - before

    def kill(self, failpoints: str = "") -> None:
        """At whatever moment, but not in the middle of a scrape; the next one may be told where to die."""
        with self._lock:
            self.server.process.kill()
            self._replace(failpoints)

    def wait_dead(self, failpoints: str = "") -> float:
        """Until the server has died by itself, of a failpoint; another one is started then. What the last scrape brought."""
        assert self.server.wait().code == -signal.SIGKILL, self.server.lines
        with self._lock:
            gained = self._gained
            self._replace(failpoints)
        return gained

    def _replace(self, failpoints: str = "") -> None:
        self.server.process.wait()
        self.doubled += self._gained
        self._gained = 0.0
        self.server, self.address = self.start(failpoints)

    def close(self) -> None:
        self._ended.set()
        self._thread.join()

    def close_after_a_second(self) -> None:
        """In which nothing more may come."""
        until = time.monotonic() + 1
        wait_for(lambda: time.monotonic() > until, "another second")
        self.close()


def truth(runs: Runs) -> tuple[Counter[str], int]:
    """What the ledger holds of finished runs, all records that were ever written counted: events by outcome, and how many runs."""
    counts: Counter[str] = Counter()
    finished = 0
    for record in runs.everything(ledger_topic(runs.prefix)):
        if record.key is not None and record.key.startswith(b"stage|") and record.value is not None:
            result = json.loads(record.value).get("result")
            if result is not None:
                finished += 1
                counts.update(result["counts"])
    return counts, finished


def some_windows(runs: Runs, source: str, out: str, count: int) -> None:
    """Windows one after the other; some are killed first, some fail first, some are done again."""
    for i in range(count):
        window = msgspec.structs.replace(runs.window(source), name=f"{out}-{i}")
        run = runs.run(window, out, max_rejected="100 %")
        if i % 10 == 3:
            runs.killed(run, "chunk.before-ledger")
        if i % 10 == 5:
            with pytest.raises(FactoryError):
                execute(RunContext(runs.config), msgspec.structs.replace(run, params={"no": "such"}))
        execute(RunContext(runs.config), run)
        execute(RunContext(runs.config), run)  # it is finished: nothing new
        if i % 10 == 7:  # as after a clear in Airflow
            execute(RunContext(runs.config), msgspec.structs.replace(run, rerun="redo", run_id=f"r{i}"))


def windows_of_a_process(bootstrap: str, prefix: str, source: str, out: str, count: int) -> None:
    """The same in a process of its own."""
    runs = Runs(bootstrap, prefix, None, None)  # type: ignore[arg-type]  # it makes no topics
    some_windows(runs, source, out, count)


def keep_going(runs: Runs, factory: Command, pool: Executor, *, workers: int, windows: int, kills: int) -> Scraped:
    """Run windows with some workers at once while the metrics server is killed several times."""
    source = runs.topic("in", partitions=1)
    runs.produce(source, [*events(9), b"no json"])
    outs = [runs.topic(f"out{i}", partitions=1) for i in range(workers)]
    scraped = Scraped(factory)
    with pool:
        works = [pool.submit(windows_of_a_process, runs.bootstrap, runs.prefix, source, out, windows // workers) for out in outs]
        for i in range(kills):
            wanted = windows * (i + 1) // (kills + 2)
            wait_for(lambda wanted=wanted: scraped.seen.of("agent_success_total") >= wanted, f"{wanted} windows", 300)  # type: ignore[misc]
            scraped.kill()
        for work in works:
            work.result()
    return scraped


def judge(runs: Runs, scraped: Scraped) -> None:
    counts, finished = truth(runs)
    wait_for(lambda: scraped.seen.of("agent_success_total") >= finished, "all runs to be counted")
    scraped.close_after_a_second()
    found = scraped.seen.of("agent_success_total")
    assert finished <= found <= finished + scraped.doubled
    if found == finished:
        for outcome in ("consumed", "forwarded", "filtered", "rejected"):
            assert scraped.seen.of("factory_events_total", outcome=outcome) == counts[outcome]
    assert len([name for name, _ in scraped.seen.last if name == "agent_success_total"]) == 1, "a series for an agent, not for each process"
    failed = sum(r.key is not None and r.key.startswith(b"attempt|") for r in runs.everything(ledger_topic(runs.prefix)))
    assert scraped.seen.of("agent_failure_total") >= failed > 0
    print(f"{finished} runs of {counts['consumed']} events in the ledger, {found:g} counted; kills may double {scraped.doubled:g}")


def test_increments_over_kills_are_what_the_ledger_holds(runs: Runs, factory: Command) -> None:
    judge(runs, keep_going(runs, factory, ThreadPoolExecutor(2), workers=2, windows=24, kills=2))


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_a_thousand_windows_of_eight_processes_and_five_kills(runs: Runs, factory: Command) -> None:
    pool = ProcessPoolExecutor(8, multiprocessing.get_context("spawn"))
    judge(runs, keep_going(runs, factory, pool, workers=8, windows=1000, kills=5))


def test_killed_between_a_scrape_and_its_commit_that_scrape_is_counted_twice_and_nothing_else(runs: Runs, factory: Command) -> None:
    source, out = runs.topic("in", partitions=1), runs.topic("out", partitions=1)
    runs.produce(source, events(3))
    scraped, dies = Scraped(factory), "metrics.before-keep=kill@1"
    doubled = []
    scraped.kill(dies)
    for life in range(3):
        for i in range(3):
            window = msgspec.structs.replace(runs.window(source), name=f"{life}-{i}")
            execute(RunContext(runs.config), runs.run(window, out))
        doubled.append(scraped.wait_dead(dies if life < 2 else ""))
    finished = 9
    wait_for(lambda: scraped.seen.of("agent_success_total") >= finished + sum(doubled), "the windows to be counted")
    scraped.close_after_a_second()
    assert scraped.seen.of("agent_success_total") == finished + sum(doubled)
    assert any(doubled)


def test_killed_after_its_positions_are_kept_nothing_is_counted_twice_or_missed(runs: Runs, factory: Command, admin: AdminClient) -> None:
    source, out = runs.topic("in", partitions=1), runs.topic("out", partitions=1)
    runs.produce(source, events(3))
    scraped = Scraped(factory)
    for round_ in range(3):
        for i in range(4):
            window = msgspec.structs.replace(runs.window(source), name=f"{round_}-{i}")
            execute(RunContext(runs.config), runs.run(window, out))
        wait_for(lambda: scraped.seen.of("agent_success_total") >= 4 * (round_ + 1), "the windows to be counted")  # noqa: B023
        topic = ledger_topic(runs.prefix)
        ends = runs.cluster.stable_offset(topic, range(LEDGER_PARTITIONS))
        kept = {(topic, p): end for p, end in ends.items()}
        group = f"{runs.prefix}.metrics"
        wait_for(lambda: runs.cluster.positions(group, {topic: LEDGER_PARTITIONS}) == kept, "the positions to be kept")  # noqa: B023
        scraped.kill()
    scraped.close()
    assert scraped.seen.of("agent_success_total") == 12
    assert scraped.seen.of("factory_events_total", outcome="consumed") == 36
