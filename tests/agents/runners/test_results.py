"""An agent's code speaks for its own run and for no other, whatever it writes, and in bounded size."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from factory_agents import errors
from factory_agents.errors import AgentCrashedError, ConfigurationError, FactoryError, ForeignResultError
from factory_agents.protocol import (
    AgentRef,
    AgentResult,
    AgentRun,
    Counts,
    Dataset,
    ErrorInfo,
    Example,
    Manifest,
    PartitionRange,
    Reason,
    Shard,
    encode,
)
from factory_agents.runners.process import AgentProcess, log_line
from factory_agents.runners.results import LARGEST_RESULT, agent_error, check_result, shown_notes, shown_reasons
from tests.support.samples import INTERVAL, result, window

RUN = AgentRun("clicks", "enrich", AgentRef("enrich"), window=window(), output_topic="enriched", run_id="manual__1")
HOSTILE = "\x1b]0;owned\x07\x9b2J\nERROR forged\u202e"


def refused(answer: AgentResult, run: AgentRun = RUN) -> str:
    with pytest.raises(ForeignResultError) as caught:
        check_result(answer, run)
    assert not caught.value.retriable
    return str(caught.value)


class TestWhose:
    def test_a_result_of_the_run_itself_is_taken(self) -> None:
        check_result(result(), RUN)
        check_result(result(run=RUN.digest), RUN)
        check_result(result(interval=None, manifest=None), RUN)

    @pytest.mark.parametrize(
        "changes",
        [
            {"pipeline": "payments"},
            {"stage": "publish"},
            {"key": "2026-03-01T05:00:00.000Z/2026-03-01T06:00:00.000Z"},
            {"shard": Shard(1, 2)},
            {"run": "0123456789abcdef"},
            {"interval": msgspec.structs.replace(INTERVAL, start=INTERVAL.start.replace(hour=3))},
            {"manifest": Manifest("payments", "T3", "publish/f0", (PartitionRange(0, 0, 12, 10),))},
            {"input": Manifest("payments", "T3", "", (PartitionRange(0, 0, 12, 10),))},
        ],
    )
    def test_one_that_names_another_in_any_part_is_not(self, changes: dict[str, Any]) -> None:
        assert "it is another run's" in refused(result(**changes))
        failed = result(**changes, status="failed", error=ErrorInfo("UnavailableError", "again", retriable=True))
        assert "it is another run's" in refused(failed)

    def test_what_an_earlier_attempt_of_other_parameters_left_is_not(self) -> None:
        earlier = msgspec.structs.replace(RUN, params={"x": 1})
        assert "of run" in refused(result(run=earlier.digest))

    def test_a_failure_to_read_the_run_names_none(self) -> None:
        check_result(AgentResult("", "", "", status="failed", error=ErrorInfo("ConfigurationError", "not JSON")), RUN)

    def test_names_are_shown_not_done(self) -> None:
        said = refused(result(stage=HOSTILE * 1000))
        assert said.isprintable()
        assert len(said) < 3000

    @pytest.mark.parametrize(
        "changes",
        [
            {"report": {"a": {"b\0": 1}}},
            {"notes": ("fine", "\0")},
            {"dataset": Dataset("postgres", "a\0")},
            {"report": json.loads('{"a":' * 100 + "1" + "}" * 100)},
            {"report": json.loads('{"a":' + "[" * 600 + "]" * 600 + "}")},
        ],
    )
    def test_what_a_database_cannot_hold_is_refused(self, changes: dict[str, Any]) -> None:
        assert "which an orchestrator's database can't" in refused(result(**changes))
        check_result(result(report={"said": "\\u0000", "deep": [[[{"a": [1]}]]]}), RUN)

    @pytest.mark.parametrize(
        ("changes", "named"),
        [
            ({"counts": Counts(consumed=-1)}, "counts.consumed = -1"),
            ({"counts": Counts(written=1 << 70)}, "counts.written = 1180591620717411303424"),
            ({"manifest": Manifest("enriched", "T2", "w", (PartitionRange(0, 5, 2, 1),))}, "manifest.ranges[0].end - start = -3"),
            ({"manifest": Manifest("enriched", "T2", "w", (PartitionRange(-1, 0, 2, 1),))}, "manifest.ranges[0].partition = -1"),
            ({"dead_letters": Manifest("enriched.dead", "T2", "w", (PartitionRange(0, 0, 1 << 64, 1),))}, "dead_letters.ranges[0].end = "),
            ({"ledger_offset": -5}, "ledger_offset = -5"),
            ({"seconds": -1.0}, "seconds = -1.0"),
        ],
    )
    def test_figures_that_no_run_has_are_refused_and_named(self, changes: dict[str, Any], named: str) -> None:
        assert f"the agent's result has {named}" in refused(result(**changes))


def leaving(tmp_path: Path, script: str) -> AgentProcess:
    """An agent that is this script: ``result`` is its result file, ``line`` the run that it was given."""
    file = tmp_path / "agent.py"
    head = "import json, os, sys, time\nresult = sys.argv[sys.argv.index('--result') + 1]\nline = sys.stdin.readline()\n"
    file.write_text(head + script)
    return AgentProcess(RUN, dict(os.environ), grace=5, command=(sys.executable, str(file)))


class TestAProcess:
    def test_says_nothing_by_its_output(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        forged = encode(result()).decode()
        with caplog.at_level(logging.INFO), pytest.raises(AgentCrashedError, match="left no result"):
            leaving(tmp_path, f"print({forged!r}); print({forged!r}, file=sys.stderr)").run()
        assert forged in caplog.messages

    @pytest.mark.parametrize(
        "script",
        [
            f"open(result, 'wb').write(b'{{' + b' ' * {LARGEST_RESULT})",
            f"f = open(result, 'wb'); f.truncate({10 << 40}); f.close()",
        ],
    )
    def test_leaves_no_more_than_is_read(self, tmp_path: Path, script: str) -> None:
        before = psutil.Process().memory_info().rss
        with pytest.raises(ForeignResultError, match="more than 4 MiB"):
            leaving(tmp_path, script).run()
        assert psutil.Process().memory_info().rss - before < 64 << 20

    @pytest.mark.parametrize("script", ["os.mkfifo(result)", "os.symlink('/dev/zero', result)", "os.mkdir(result)"])
    def test_leaves_a_file_or_nothing(self, tmp_path: Path, script: str) -> None:
        began = time.monotonic()
        with pytest.raises(AgentCrashedError, match="left no result"):
            leaving(tmp_path, script).run()
        assert time.monotonic() - began < 20

    @pytest.mark.parametrize(
        "answer",
        [b"[" * 100_000, b'{"report": ' + b'{"a":' * 50_000, b"\xff\xfe", b"\x00", b'{"pipeline": "\\ud800"}'],
        ids=["deep list", "deep report", "no text", "nul", "surrogate"],  # pytest puts a test's name into the environment
    )
    def test_leaves_a_result_or_one_clear_error(self, tmp_path: Path, answer: bytes) -> None:
        with pytest.raises(ConfigurationError, match="AgentResult: not what this version"):
            leaving(tmp_path, f"open(result, 'wb').write({answer!r})").run()

    @pytest.mark.slow
    def test_that_talks_without_end_or_without_a_line_is_heard_in_bounded_memory(self, tmp_path: Path) -> None:
        before = psutil.Process().memory_info().rss
        script = f"sys.stdout.write('x' * (300 << 20)); sys.stdout.flush(); open(result, 'wb').write({encode(result())!r})"
        logging.disable(logging.CRITICAL)
        try:
            assert leaving(tmp_path, script).run() == result()
        finally:
            logging.disable(logging.NOTSET)
        assert psutil.Process().memory_info().rss - before < 150 << 20

    @pytest.mark.parametrize("line", ["[" * 200_000, '{"a":' * 100_000, '{"level": "info", "message": ' + "9" * 50_000 + "}"])
    def test_whose_lines_are_hostile_json_is_heard_too(self, line: str) -> None:
        level, text = log_line(line)
        assert level == logging.INFO
        assert len(text) < 70_000

    def test_forges_no_line_and_moves_no_cursor(self) -> None:
        for line in (HOSTILE.replace("\n", ""), json.dumps({"level": "info", "message": HOSTILE, "more": HOSTILE})):
            assert log_line(line)[1].isprintable()
        shown = log_line(json.dumps({"level": "info", "message": "m", "exception": f"Traceback\n{HOSTILE}"}))[1]
        assert all(part.isprintable() for part in shown.split("\n"))


class TestWhatIsShown:
    def test_of_many_notes_some_are(self) -> None:
        shown = list(shown_notes(result(notes=(HOSTILE * 1000,) * 5000)))
        assert len(shown) == 21
        assert all(note.isprintable() and len(note) < 10_000 for note in shown)
        assert shown[-1] == "and 4,980 more notes: they are in the result"

    @pytest.mark.slow
    def test_of_many_reasons_some_are(self) -> None:
        examples = (Example(HOSTILE, HOSTILE, HOSTILE * 1000),) * 7
        shown = list(shown_reasons(result(reasons=(Reason(HOSTILE, HOSTILE, 7, HOSTILE, examples),) * 5000, dry_run=True)))
        assert len(shown) == 100
        assert all(line.isprintable() and len(line) < 10_000 for line in shown)

    @pytest.mark.parametrize("name", errors.__all__)
    def test_every_error_of_ours_comes_back_as_itself(self, name: str) -> None:
        failed = result(status="failed", error=ErrorInfo(name, "why", retriable=True))
        error = agent_error(failed)
        assert (type(error).__name__, str(error), error.retriable) == (name, "why", True)

    @pytest.mark.parametrize("name", ["annotations", "__all__", "SystemExit", "", "__builtins__", "\ud800"])
    def test_any_other_name_is_a_failure_of_the_agent(self, name: str) -> None:
        assert type(agent_error(result(status="failed", error=ErrorInfo(name, "why")))) is AgentCrashedError

    def test_an_errors_message_is_bounded_and_escaped(self) -> None:
        error = agent_error(result(status="failed", error=ErrorInfo("WindowError", HOSTILE * 10_000)))
        assert isinstance(error, FactoryError)
        assert str(error).isprintable()
        assert len(str(error)) < 50_000
