"""The documents: commands run or say what they need, links lead somewhere, and what follows them compares rightly."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import demo
import psutil
import pytest
from follow_docs import MARKS, MOST_COMMANDS, PAGES, Block, blocks, differs, documents, steps, walk

from tests.support.waiting import wait_for

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = documents()
LONGEST = 120
AIRFLOWS = ("Database migration required", "no such table", "could not be found")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_is_followed_or_says_what_it_needs(path: Path) -> None:
    page = str(path.relative_to(ROOT))
    loose = [b.line for b in blocks(path.read_text()) if b.commands and not b.marked and page not in PAGES]
    assert not loose, f"{page}: mark the blocks at lines {loose} with one of {', '.join(MARKS)}, or let make docs follow the page"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_a_line_fits_a_window(path: Path) -> None:
    """Of text: code, tables and addresses of links have the lines that they have, and a test's name has no spaces."""
    text = re.sub(r"^ *```.*?^ *```$", lambda code: "\n" * code[0].count("\n"), path.read_text(), flags=re.MULTILINE | re.DOTALL)
    lines = enumerate(text.splitlines(), 1)
    long = [n for n, line in lines if len(line) > LONGEST and not line.startswith(("|", "[")) and len(line.split()) > 2]
    assert not long, f"{path.name}: lines {long} have more than {LONGEST} characters"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_to_a_file_and_a_heading(path: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", path.read_text()):
        name, _, heading = target.partition("#")
        page = (path.parent / name).resolve() if name else path
        assert page.exists(), f"{path.name}: {target}"
        if heading:
            headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
            assert heading in {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}, f"{path.name}: {target}"


def test_a_message_that_troubleshooting_explains_is_one_that_is_said() -> None:
    code = "\n".join(p.read_text() for room in ("agents", "airflow_provider_factory") for p in (ROOT / room).rglob("*.py"))
    rows = re.findall(r"^\| (`.*?) \|", (ROOT / "docs/troubleshooting.md").read_text(), re.MULTILINE)
    said = [part for row in rows for message in re.findall("`(.*?)`", row) for part in re.split("…|[0-9]+|'x'|[:;] ", message)]
    parts = [part.strip(" ';:,") for part in said if len(part) > 8]
    assert len(parts) > 20
    assert not [part for part in parts if part not in code and part not in AIRFLOWS]


def test_a_reader_gets_from_the_clone_to_a_dag_of_theirs_in_few_commands() -> None:
    page = (ROOT / "docs/getting-started.md").read_text()
    commands = ["git clone", *walk(page)]
    assert 1 < len(commands) <= MOST_COMMANDS
    assert f"in {len(commands)} commands" in page
    assert "make ui" in commands
    assert any("backfill create" in command for command in commands)


def test_what_the_demo_says_to_do_next_is_followed() -> None:
    followed = [
        command for block in blocks((ROOT / "docs/getting-started.md").read_text()) if block.commands for command, _ in steps(block)
    ]
    assert set(demo.NEXT) <= set(followed)


def test_a_page_is_read_as_its_blocks() -> None:
    (first, second) = blocks('text\n```console\n$ one\nout\n$ two\n```\n```sh background until="a b"\nthree\n```\n')
    assert steps(first) == [("one", ["out"]), ("two", [])]
    assert (second.word("until"), second.commands, second.marked) == ("a b", True, False)
    assert Block("sh", "cluster", "", 1).marked


@pytest.mark.parametrize(
    ("expected", "printed", "wrong"),
    [
        (["a", "b"], "a\nb\n", ""),
        (["a"], "a\nb\n", "(nothing more, but there came: b)"),
        (["a", "…"], "a\nb\nc\n", ""),
        (["…", "c", "…"], "a\nb\nc\nd\n", ""),
        (["…", "x"], "a\nb\n", "x"),
        (["in … s"], "in 12 s\n", ""),
        ([], "\n", ""),
        (["b"], "a\nb\n", "b"),
    ],
)
def test_what_is_printed_is_compared_line_by_line(expected: list[str], printed: str, wrong: str) -> None:
    assert differs(expected, printed) == wrong


class TestTheGuard:
    """What runs under it leaves nothing behind."""

    STARTS = "setsid sleep 1000 & echo $! > $0; echo $1 >> $0; "

    def run(self, script: str, noted: Path) -> subprocess.Popen[bytes]:
        program = f"import follow_docs, sys; sys.exit(follow_docs.under_guard(['bash', '-c', {script!r}, {str(noted)!r}]))"
        return subprocess.Popen(
            [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(ROOT / "scripts")}, stderr=subprocess.PIPE
        )

    @staticmethod
    def gone(noted: Path) -> bool:
        process, folder = noted.read_text().splitlines()
        return not psutil.pid_exists(int(process)) and not Path(folder).exists()

    def test_ends_what_was_left_running_and_says_so(self, tmp_path: Path) -> None:
        guarded = self.run(self.STARTS, tmp_path / "noted")
        _, errors = guarded.communicate(timeout=30)
        assert (guarded.returncode, errors.decode()) == (1, "was left running: sleep 1000\n")
        assert self.gone(tmp_path / "noted")

    def test_passes_on_how_it_ended(self, tmp_path: Path) -> None:
        guarded = self.run("exit 3", tmp_path / "noted")
        guarded.communicate(timeout=30)
        assert guarded.returncode == 3

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
    def test_outlives_whoever_is_killed(self, tmp_path: Path, number: signal.Signals) -> None:
        noted = tmp_path / "noted"
        guarded = self.run(self.STARTS + "wait", noted)
        wait_for(lambda: noted.exists() and len(noted.read_text().splitlines()) == 2, "the command runs")
        guarded.send_signal(number)
        wait_for(lambda: self.gone(noted), "process and folder are gone")
        guarded.communicate(timeout=30)
