"""What commands print: results as tables for a person or as JSON for a program, progress, and errors in one line."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from factory_agents.errors import FactoryError
from factory_agents.telemetry import Batch, Commit, Observer, Subject, fields, logs_json
from factory_agents.text import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

__all__ = [
    "EXIT_INTERRUPTED",
    "EXIT_USAGE",
    "counting",
    "error_line",
    "guarded",
    "note",
    "nothing_printed",
    "print_json",
    "print_table",
    "progress",
    "say",
    "wants_json",
]

log = logging.getLogger(__name__)

_GAP = 3  # between two columns of a table
EXIT_FAILED, EXIT_USAGE, EXIT_RETRY, EXIT_INTERRUPTED = 1, 2, 75, 130


def wants_json(flag: bool) -> bool:
    """Whether standard output takes JSON: asked for, or not a terminal."""
    return flag or not sys.stdout.isatty()


def console(*, stderr: bool = False) -> Console:
    """A console for one of the two outputs; colours where that is a terminal that wants them."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, soft_wrap=True)


@contextmanager
def nothing_printed() -> Iterator[None]:
    """Standard output is kept for a result: what is printed within, by a child or a library too, goes to standard error."""
    sys.stdout.flush()
    own = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(own, 1)
        os.close(own)


def print_json(value: Any) -> None:
    """One JSON document, or line, on standard output: indented on a terminal."""
    import msgspec

    data = msgspec.json.encode(value, enc_hook=str)
    text = printable((msgspec.json.format(data, indent=2) if sys.stdout.isatty() else data).decode(), lines=True)
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def say(text: str, style: str = "") -> None:
    """A line for a person on standard output."""
    from rich.text import Text

    console().print(Text(printable(text), style=style))


def note(text: str) -> None:
    """A line for a person on standard error, beside a result."""
    from rich.text import Text

    console(stderr=True).print(Text(printable(text), style="yellow"))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, title: str = "", right: Sequence[str] = ()) -> None:
    """A table on standard output; columns named in ``right`` are aligned right and their whole numbers get separators.

    A cell is one line, or a list of lines. Where a word would be broken, because the terminal is narrow, each row is a block of lines.
    """
    from rich import box
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, title=title or None, title_justify="left", title_style="bold", pad_edge=False, show_edge=False)
    cells = [[_cell(cell, separated=name in right) for name, cell in zip(columns, row, strict=True)] for row in rows]
    needed = _GAP * (len(columns) - 1)
    for n, name in enumerate(columns):
        texts = [name, *(row[n] for row in cells)]
        whole = name in right or not any(" " in text for text in texts[1:])
        needed += max(map(cell_len, "\n".join(texts).split("\n" if whole else None)), default=0)
        table.add_column(name, justify="right" if name in right else "left", overflow="fold", no_wrap=whole)
    for row in cells:
        table.add_row(*map(Text, row))
    out = console()
    if not sys.stdout.isatty() and "COLUMNS" not in os.environ:
        out.width = 200
    if needed > out.width:
        _print_blocks(columns, cells, title)
    else:
        out.print(table)


def _print_blocks(columns: Sequence[str], rows: list[list[str]], title: str) -> None:
    if title:
        say(title, "bold")
    indent = max(map(len, columns)) + _GAP
    for n, row in enumerate(rows):
        if n:
            say("")
        for name, cell in zip(columns, row, strict=True):
            for at, line in enumerate(filter(None, cell.split("\n"))):
                say(f"{'' if at else name:<{indent}}{line}")


def _cell(cell: Any, *, separated: bool) -> str:
    if isinstance(cell, int) and separated:
        return f"{cell:,}"
    return "\n".join(printable(str(line)) for line in (cell if isinstance(cell, list) else [cell]))


def error_line(text: str) -> None:
    """One line on standard error, red where that is a terminal."""
    text = "error: " + printable(" ".join(text.split("\n"))).strip()
    red = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    sys.stderr.write(f"\x1b[31m{text}\x1b[0m\n" if red else text + "\n")
    sys.stderr.flush()


def _tell(text: str, error: Exception) -> None:
    """The error that ends a command: in its log where that is JSON for a collector, else for a person."""
    if logs_json():
        log.error(text, extra=fields(error=type(error).__name__, retriable=getattr(error, "retriable", False)))
    else:
        error_line(text)


def guarded(command: Callable[[], object]) -> int:
    """Run a command and turn what it raises into an exit status, with one line on standard error and never a traceback.

    0; 1 for an error; 2 for a mistyped command line; 75 for an error that a later try may not meet; 130 for Ctrl-C. ``FACTORY_DEBUG`` lets
    unexpected exceptions through.
    """
    try:
        code = command()
    except FactoryError as error:
        _tell(str(error), error)
        return EXIT_RETRY if error.retriable else EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing is flushed into the closed pipe at exit
        return EXIT_FAILED
    except Exception as error:
        if os.environ.get("FACTORY_DEBUG"):
            raise
        _tell(f"unexpected {type(error).__name__}: {error} (please report it; FACTORY_DEBUG=1 shows the traceback)", error)
        return EXIT_FAILED
    return code if isinstance(code, int) else 0


@contextmanager
def progress(label: str, *, shown: bool) -> Iterator[Observer]:
    """An observer for a run: a bar on standard error with records, rate and rejected events, or nothing."""
    if not shown:
        yield Observer()
        return
    from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn

    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeElapsedColumn(),
        console=console(stderr=True),
        transient=True,
    )
    with bar:
        yield _Bar(bar, bar.add_task(label, total=None, figures=""))


@contextmanager
def counting(label: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error that is told how many of how many are done, where that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda done, of: None
        return
    from rich.progress import Progress

    with Progress(console=console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, of: bar.update(task, completed=done, total=of)


class _Bar(Observer):
    """Shows what was read, and of that what was rejected in what is committed."""

    def __init__(self, bar: Progress, task: TaskID) -> None:
        self._bar, self._task = bar, task
        self._read = self._rejected = self._in_chunk = 0

    def batch(self, subject: Subject, batch: Batch) -> None:
        """See ``Observer``."""
        self._read += batch.records
        self._in_chunk += batch.records
        self._show(subject)

    def committed(self, subject: Subject, commit: Commit) -> None:
        """See ``Observer``."""
        self._rejected += sum(commit.rejected.values())
        self._in_chunk = 0
        self._show(subject)

    def aborted(self, subject: Subject, records: int, reason: str) -> None:
        """See ``Observer``: what was dropped comes again."""
        self._read -= self._in_chunk
        self._in_chunk = 0
        self._show(subject)

    def _show(self, subject: Subject) -> None:
        figures = f"{self._read:,} read, {self._rejected:,} rejected"
        total = max(subject.total, self._read) if subject.total >= 0 else None
        self._bar.update(self._task, completed=self._read, total=total, figures=figures)
