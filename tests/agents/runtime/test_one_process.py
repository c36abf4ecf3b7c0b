"""Several runs share a process, as a worker's threads do: none of them changes what is the process's, and one's end is no other's."""

from __future__ import annotations

import csv
import gc
import io
import linecache
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from factory_agents.errors import StoppedError
from factory_agents.protocol import AgentRef, AgentResult, AgentRun
from factory_agents.run import Stop, execute, quiet_collector
from factory_agents.runtime.agent_thread import AgentThread
from factory_agents.runtime.agents import source_version
from factory_agents.runtime.loading import load_function, load_source, working_directory_first
from factory_agents.runtime.session import RunContext
from factory_agents.sources.delimited import delimited_blocks
from factory_agents.sources.rows import ReadOptions
from factory_agents.telemetry import Commit, Observer, Subject
from tests.support.runs import Runs, events
from tests.support.waiting import wait_for

SOURCE = "import threading\n\ndef mark(event, n):\n    return event | {'by': n, 'thread': threading.current_thread().name}\n"


def process_state() -> dict[str, Any]:
    """What the whole process shares, and a run might be tempted to set."""
    return {
        "signals": {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM)},
        "environment": dict(os.environ),
        "path": list(sys.path),
        "gc": (gc.isenabled(), gc.get_threshold(), gc.get_freeze_count()),
        "stack": threading.stack_size(),
        "csv": csv.field_size_limit(),
        "folder": str(Path.cwd()),
        "recursion": sys.getrecursionlimit(),
        "switch": sys.getswitchinterval(),
        "hooks": (sys.excepthook, threading.excepthook, sys.displayhook),
        "streams": (sys.stdout, sys.stderr),
    }


class Run(threading.Thread):
    """A run in a thread of its own, and what it came to."""

    def __init__(self, context: RunContext, run: AgentRun) -> None:
        super().__init__(name=f"run {run.stage}")
        self.asked = run
        self.result: AgentResult | None = None
        self.error: BaseException | None = None
        self._context = context

    def run(self) -> None:
        try:
            self.result = execute(self._context, self.asked)
        except BaseException as error:
            self.error = error


class AtCommit(Observer):
    """Does something when a chunk is committed."""

    def __init__(self, do: Callable[[], object]) -> None:
        self._do = do

    def committed(self, subject: Subject, commit: Commit) -> None:
        self._do()


def finished(*all_of: Run) -> None:
    for each in all_of:
        each.start()
    for each in all_of:
        each.join(60)
        assert not each.is_alive()


def test_of_two_agents_in_one_process_one_is_stopped_and_the_other_goes_on(runs: Runs) -> None:
    source = runs.topic("in", partitions=2)
    runs.produce(source, events(400))
    window = runs.window(source)
    asked = [
        runs.run(
            window,
            runs.topic(f"out{n}", partitions=2),
            stage=f"stage{n}",
            agent=AgentRef("mark", source=SOURCE, function="mark"),
            params={"n": n},
            chunk_records=20,
        )
        for n in (1, 2)
    ]
    before = process_state()
    stopped = threading.Event()
    first = Run(RunContext(runs.config, stop=stopped.is_set, observer=AtCommit(stopped.set)), asked[0])
    second = Run(RunContext(runs.config, observer=AtCommit(lambda: stopped.wait(30))), asked[1])
    finished(first, second)
    assert isinstance(first.error, StoppedError)
    assert second.error is None
    assert second.result is not None
    assert [r.event["by"] for r in runs.manifest(second.result.manifest)] == [2] * 400
    again = Run(RunContext(runs.config), asked[0])
    finished(again)
    assert again.result is not None
    assert again.result.resumed
    assert [r.event["by"] for r in runs.manifest(again.result.manifest)] == [1] * 400
    assert process_state() == before


def test_the_collector_and_the_signals_are_as_before_once_a_program_has_run() -> None:
    before = process_state()
    stop = Stop()
    with stop.watching_signals(), quiet_collector():
        assert process_state() != before
        os.kill(os.getpid(), signal.SIGTERM)
        wait_for(stop, "the signal")
    assert process_state() == before


def test_a_program_searches_the_working_directory_and_a_run_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    (tmp_path / "only_here.py").write_text("def f(event):\n    return event\n")
    before = process_state()
    with pytest.raises(Exception, match="no module 'only_here'"):
        load_function("only_here:f")
    assert process_state() == before
    with working_directory_first():
        assert load_function("only_here:f")({"a": 1}) == {"a": 1}
    assert process_state() == before


def test_many_agents_that_start_at_once_leave_the_stack_size_as_it_was() -> None:
    before = threading.stack_size()
    started = threading.Barrier(16)

    def start(n: int) -> None:
        started.wait(20)
        for _ in range(20):
            AgentThread(f"a{n}").close()

    threads = [threading.Thread(target=start, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert threading.stack_size() == before


def test_files_with_long_fields_are_read_and_leave_the_csv_modules_limit() -> None:
    before = csv.field_size_limit()
    sizes = (before * 2, before * 4)
    head = b"t,text\n" + b"1,a\n" * 50_000  # more than a block
    reading = [
        delimited_blocks(io.BytesIO(head + b"2," + b"x" * size + b"\n"), "f", ReadOptions(max_line_bytes=size + 100), ",") for size in sizes
    ]
    for blocks in reading:
        next(blocks)
    assert csv.field_size_limit() > sizes[1]
    for blocks, size in zip(reversed(reading), reversed(sizes), strict=True):
        last = list(blocks)[-1]
        assert len(last.records([len(last.times) - 1])[0].value) > size
    assert csv.field_size_limit() == before


def test_of_many_sources_the_last_ones_are_kept() -> None:
    def kept() -> tuple[int, int]:
        return (
            sum(name.startswith("factory_agent_") for name in sys.modules),
            sum(file.startswith("<agent many") for file in linecache.cache),
        )

    for n in range(200):
        assert load_source(f"def f(event):\n    return {n}\n", "f", name="many")({}) == n
    modules, texts = kept()
    assert modules <= 64
    assert texts <= 64
    with pytest.raises(Exception, match="its source raised ZeroDivisionError"):
        load_source("1 / 0\n", "f", name="many")
    assert kept() <= (64, 64)


def test_a_file_that_changes_under_a_process_is_not_the_code_that_runs_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    (tmp_path / "changing.py").write_text("def f(event):\n    return 1\n")
    first = load_function("changing:f")
    (tmp_path / "changing.py").write_text("def f(event):\n    return 22222\n")
    os.utime(tmp_path / "changing.py", (1, 1))
    second = load_function("changing:f")
    assert (second.version, second({})) == (first.version, 1)
    del sys.modules["changing"]
    third = load_function("changing:f")
    assert third({}) == 22222
    assert third.version != first.version
    assert source_version(third.function) == third.version
