"""``make docs``: follows the documents line by line in a fresh clone with an empty HOME, and compares what they print with what came.

Fenced blocks say what they are: ``console`` holds commands after ``$`` and what they print (``…`` stands for anything), ``sh`` commands
alone, a block with ``file=NAME`` is that file. ``background until="TEXT"`` starts a command that stays, and waits until it has printed
the text; ``soon``: its commands are repeated until they print what the page says. A block that needs more than this machine says so:
``cluster`` (Kubernetes), ``deployment`` (a scheduler, real brokers), ``long`` (many minutes).

With ``arrived`` the reader's own DAG has run in the scheduler: how many commands and minutes that took from the clone is printed.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

__all__ = ["MARKS", "MOST_COMMANDS", "PAGES", "Block", "blocks", "differs", "documents", "steps", "under_guard", "walk"]

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("docs/getting-started.md", "docs/parameters.md", "docs/operations.md", "docs/your-data.md")
"""Followed in this order, in one shell."""

MARKS = ("cluster", "deployment", "long")
MOST_COMMANDS, MOST_MINUTES = 15, 10
"""From the clone to the reader's own DAG in the scheduler, on an idle machine."""

_PATIENCE = 1800.0  # for one command, on a busy machine
_PROGRESS = 20.0
_SOON = 300.0
_FAREWELL = 40.0  # for what the pages started to end by itself
_LINES, _COLUMNS = 40, 140
_SET_CHILD_SUBREAPER = 36  # of prctl
_FENCE = re.compile(r"^```(\w+) ?(.*)$")
_OURS = re.compile(r"^(AIRFLOW|FACTORY_|KAFKA_|DATABASE_URL|VIRTUAL_ENV|PYTHONPATH|XDG_|MAKE|MFLAGS|ARGS|PYTEST)")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the words after it, its text, and the line where it begins."""

    language: str
    words: str
    text: str
    line: int

    @property
    def commands(self) -> bool:
        """Whether it holds commands for a shell."""
        return self.language in ("sh", "console")

    @property
    def marked(self) -> bool:
        """Whether it needs more than this machine."""
        return any(word in MARKS for word in self.words.split())

    def has(self, word: str) -> bool:
        """Whether it says a word after the language."""
        return word in self.words.split()

    def word(self, name: str) -> str:
        """The value of ``name=value`` after the language."""
        found = re.search(rf'\b{name}=(?:"([^"]*)"|(\S+))', self.words)
        return (found[1] or found[2]) if found else ""


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found: list[Block] = []
    opened: tuple[str, str, int] | None = None
    lines: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        if opened is None:
            if match := _FENCE.match(line):
                opened, lines = (match[1], match[2], number), []
        elif line == "```":
            found.append(Block(opened[0], opened[1], "\n".join(lines) + "\n", opened[2]))
            opened = None
        else:
            lines.append(line)
    return found


def documents(root: Path = ROOT) -> list[Path]:
    """Every page that a user reads."""
    return [root / "README.md", root / "CONTRIBUTING.md", *sorted((root / "docs").glob("*.md"))]


def steps(block: Block) -> list[tuple[str, list[str]]]:
    """Commands of a block, each with the lines that it is said to print."""
    if block.language == "sh":
        return [(command, ["…"]) for command in block.text.replace("\\\n", " ").splitlines() if command.strip()]
    found: list[tuple[str, list[str]]] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        else:
            found[-1][1].append(line)
    return found


def walk(text: str) -> list[str]:
    """The commands of a page up to where its reader has arrived."""
    found: list[str] = []
    for block in blocks(text):
        if block.commands and not block.marked:
            found += [command for command, _ in steps(block)]
        if block.has("arrived"):
            return found
    return []


def differs(expected: Sequence[str], printed: str) -> str:
    """The first line that a page has and the output has not, where it should be; empty where they agree. ``…`` stands for anything."""
    came = [line.rstrip() for line in printed.splitlines()]
    at, anywhere = 0, False
    for line in expected:
        if line == "…":
            anywhere = True
            continue
        pattern = re.compile(".*".join(re.escape(part) for part in line.rstrip().split("…")))
        places = range(at, len(came)) if anywhere else range(at, min(at + 1, len(came)))
        hit = next((i for i in places if pattern.fullmatch(came[i])), None)
        if hit is None:
            return line
        at, anywhere = hit + 1, False
    return "" if anywhere or not any(came[at:]) else f"(nothing more, but there came: {next(line for line in came[at:] if line)})"


class Shell:
    """One bash on a terminal of its own, as a reader has it."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._terminal, child = pty.openpty()
        termios.tcsetwinsize(child, (_LINES, _COLUMNS))
        settings = termios.tcgetattr(child)
        settings[3] &= ~termios.ECHO  # what is typed is not what is printed
        termios.tcsetattr(child, termios.TCSANOW, settings)
        command = ["bash", "--noprofile", "--norc", "--noediting"]
        self._process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=child, stdout=child, stderr=child, start_new_session=True
        )
        os.close(child)
        self._count = 0
        self.run("PS1= PS2=; set +m")

    def run(self, command: str) -> tuple[int, str]:
        """A command's exit status and what it printed."""
        self._count += 1
        mark = f"=={self._count}=="
        os.write(self._terminal, f"{{ {command}\n}} < /dev/null\nprintf '\\n{mark[:3]}'\"{mark[3:]}%s\\n\" $?\n".encode())
        output = ""
        until, told = time.monotonic() + _PATIENCE, time.monotonic() + _PROGRESS
        while time.monotonic() < until:
            if time.monotonic() > told:
                print(" …", end="", flush=True)
                told += _PROGRESS
            if select.select([self._terminal], [], [], 1.0)[0]:
                output += os.read(self._terminal, 65536).decode(errors="replace").replace("\r\n", "\n")
            if found := re.search(rf"\n{mark}(\d+)\n", output):
                return int(found[1]), output[: found.start()]
        raise SystemExit(f"{command!r} did not end in {_PATIENCE:.0f} s:\n{output[-3000:]}")

    def close(self) -> None:
        """End it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGHUP)
        self._process.kill()
        self._process.wait()
        os.close(self._terminal)


@contextlib.contextmanager
def background(command: str, until: str, folder: Path, environment: dict[str, str]) -> Iterator[None]:
    """A command that stays while what follows is done, once it has printed a text."""
    log = folder / ".background.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            ["bash", "-c", command], cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
    try:
        end = time.monotonic() + _PATIENCE
        while until not in log.read_text(errors="replace"):
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"{command.strip()!r} did not print {until!r}:\n{log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.5)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
        process.wait(120)


class Reader:
    """Who does what pages say, in one shell; ends with an error at the first command that fails or prints something else."""

    def __init__(self, shell: Shell, clone: Path, environment: dict[str, str], stay: contextlib.ExitStack) -> None:
        self._shell, self._clone, self._environment, self._stay = shell, clone, environment, stay
        self._began = time.monotonic()
        self.done = 1  # the clone

    @property
    def minutes(self) -> float:
        """Since the clone."""
        return (time.monotonic() - self._began) / 60

    def follow(self, page: str) -> None:
        """Do what a page says."""
        for block in blocks((self._clone / page).read_text()):
            if name := block.word("file"):
                (self._clone / name).write_text(block.text)
            if not block.commands or block.marked:
                continue
            for command, expected in steps(block):
                began = time.monotonic()
                print(f"{page}:{block.line} $ {command.strip()}", end="", flush=True)
                self.done += 1
                wrong = self._do(block, command, expected)
                print(f"   ({time.monotonic() - began:.1f} s)", flush=True)
                if wrong:
                    raise SystemExit(f"{page}:{block.line}: {command.strip()!r} {wrong}")
            if block.has("arrived"):
                print(f"{page}: the reader's own DAG runs in the scheduler after {self.done} commands and {self.minutes:.1f} minutes")
                if self.done > MOST_COMMANDS or self.minutes > MOST_MINUTES:
                    raise SystemExit(f"{page}: wanted: at most {MOST_COMMANDS} commands and {MOST_MINUTES} minutes")

    def _do(self, block: Block, command: str, expected: Sequence[str]) -> str:
        """What went wrong."""
        if block.has("background"):
            self._stay.enter_context(background(command, block.word("until"), self._clone, self._environment))
            return ""
        until = time.monotonic() + (_SOON if block.has("soon") else 0)
        while True:
            code, printed = self._shell.run(command)
            wrong = f"ended with {code}" if code else differs(expected, printed)
            if not wrong or time.monotonic() > until:
                return wrong and f"{wrong if code else f'should have printed: {wrong}'}\n{printed[-4000:]}"


def follow(folder: Path, *, changed: bool) -> None:
    """Clone into a folder, follow the pages there, and end what they started."""
    began = time.monotonic()
    clone = folder / "clone"
    (folder / "home").mkdir()
    settings = folder / "gitconfig"
    settings.write_text("[safe]\n\tdirectory = *\n")  # a checkout of continuous integration may be another user's
    git = {**os.environ, "GIT_CONFIG_GLOBAL": str(settings)}
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True, env=git)
    if changed:
        for path in subprocess.check_output(["git", "ls-files", "-mo", "--exclude-standard"], cwd=ROOT, env=git, text=True).splitlines():
            (clone / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, clone / path)
    kept = {k: v for k, v in os.environ.items() if not _OURS.match(k)}
    kept["PATH"] = os.pathsep.join(p for p in kept["PATH"].split(os.pathsep) if not p.startswith(str(ROOT)))
    terminal = {"TERM": "dumb", "NO_COLOR": "1", "COLUMNS": str(_COLUMNS), "LINES": str(_LINES), "VIRTUAL_ENV_DISABLE_PROMPT": "1"}
    environment = {**kept, **terminal, "HOME": str(folder / "home")}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    with contextlib.ExitStack() as stay:
        shell = Shell(clone, environment)
        stay.callback(lambda: subprocess.run(["make", "clean"], cwd=clone, env=environment, check=False, capture_output=True))
        stay.callback(shell.close)
        reader = Reader(shell, clone, environment, stay)
        for page in PAGES:
            reader.follow(page)
        beyond = Counter(mark for page in documents(clone) for block in blocks(page.read_text()) for mark in MARKS if block.has(mark))
        print(
            f"{reader.done} commands of {len(PAGES)} pages did and printed what the pages say, in {time.monotonic() - began:.0f} s; "
            f"not followed: {', '.join(f'{count} {mark}' for mark, count in beyond.items())} blocks",
            flush=True,
        )


def under_guard(command: Sequence[str]) -> int:
    """Run a command on a folder of its own, its last argument; returns its exit code, or 1 if it left processes running.

    They are ended, and the folder is removed, by a guard in a session of its own: even after this process was killed.
    """
    held, alive = os.pipe()
    if (guard := os.fork()) == 0:
        os.close(alive)
        os._exit(_guard(command, held))
    pipe = os.fdopen(alive, "wb")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: pipe.close())
    return os.waitstatus_to_exitcode(os.waitpid(guard, 0)[1])


def _guard(command: Sequence[str], held: int) -> int:
    """What the command starts and leaves alone becomes a child of this process, so that all of it is found at the end."""
    os.setsid()
    ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    with tempfile.TemporaryDirectory(prefix="factory-docs-", ignore_cleanup_errors=True) as folder:
        child = os.spawnvp(os.P_NOWAIT, command[0], [*command, folder])
        code = _wait(child, held, float("inf"))
        if code is None:
            os.kill(child, signal.SIGTERM)
            code = _wait(child, None, time.monotonic() + _FAREWELL) or 1
        left = _end_all()
    for line in left:
        print(f"was left running: {line}", file=sys.stderr)
    return code or bool(left)


def _wait(child: int, pipe: int | None, until: float) -> int | None:
    """The exit code of a child, or None where a pipe closes or the time is up before; whatever else ends is forgotten."""
    while time.monotonic() < until:
        if select.select([pipe] if pipe is not None else [], [], [], 0.2)[0]:
            return None
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == child:
                return os.waitstatus_to_exitcode(ended[1])
    return None


def _end_all() -> list[str]:
    """End all processes under this one; what they were."""
    left: dict[int, str] = {}
    for number in (signal.SIGTERM, signal.SIGKILL):
        until = time.monotonic() + 10
        while (living := psutil.Process().children(recursive=True)) and time.monotonic() < until:
            for process in living:
                with contextlib.suppress(psutil.Error):
                    left.setdefault(process.pid, " ".join(process.cmdline())[:200])
                    process.send_signal(number)
            psutil.wait_procs(living, timeout=1)
    return list(left.values())


def main() -> int:
    """Follow the pages under a guard."""
    parser = argparse.ArgumentParser(prog="make docs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--changed", action="store_true", help="with what isn't committed yet")
    parser.add_argument("--in", type=Path, dest="folder", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if not given.folder:
        return under_guard([sys.executable, __file__, *sys.argv[1:], "--in"])
    follow(given.folder, changed=given.changed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
