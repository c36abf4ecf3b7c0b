"""Dead letters as text that does nothing: whatever bytes they hold."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec

from airflow_provider_factory.page.letters import LetterPage, LetterQuery, SeenLetter
from airflow_provider_factory.page.views.common import link
from factory_agents.runtime.dead_letters import LetterGroup
from factory_agents.runtime.letter_values import Shown, plain
from factory_agents.text import count, printable, shortened

__all__ = ["LetterList", "LetterRow", "LetterShown", "letter", "letter_list"]

_LONGEST, _LONGEST_HEADER = 300, 2000


@dataclass(frozen=True)
class LetterRow:
    """One letter of a list."""

    position: str
    path: str
    written: str
    stage: str
    rule: str
    error: str
    attempt: str
    value: str


@dataclass(frozen=True)
class LetterList:
    """Letters by reason and one by one, and what was left out."""

    state: str
    said: str
    error: str
    groups: tuple[tuple[str, str, str, str, str], ...]
    rows: tuple[LetterRow, ...]


@dataclass(frozen=True)
class LetterShown:
    """One letter, whole or as much as a page holds; ``facts`` and ``headers`` are names with values."""

    position: str
    rule: str
    error: str
    facts: tuple[tuple[str, str], ...]
    headers: tuple[tuple[str, str], ...]
    key: str
    value: str
    note: str
    window: str


def letter_list(query: LetterQuery, page: LetterPage) -> LetterList:
    """What a list shows."""
    return LetterList(
        state=page.state,
        said=_said(page),
        error=printable(page.error),
        groups=tuple(_group(query, group) for group in page.groups),
        rows=tuple(_row(seen) for seen in page.letters),
    )


def _said(page: LetterPage) -> str:
    if page.taken_at is None:
        return ""
    newest = f", the newest {len(page.letters):,} shown" if page.found > len(page.letters) else ""
    left = "" if page.read >= page.held else f" among the {page.read:,} that were read; the topic holds at most {page.held:,}"
    return f"{count(page.found, 'letter')}{newest}{left}. As of {page.taken_at:%H:%M:%S} UTC."


def _group(query: LetterQuery, group: LetterGroup) -> tuple[str, str, str, str, str]:
    path = link("letters", topic=query.topic, window=group.window, stage=group.stage, rule=group.rule.partition(",")[0])
    return (f"{group.count:,}", _short(group.stage), _short(group.rule), _short(group.error), path)


def _short(text: str) -> str:
    return shortened(printable(text), _LONGEST)


def _row(seen: SeenLetter) -> LetterRow:
    x = seen.letter
    return LetterRow(
        position=x.position,
        path=f"letters/{x.partition}/{x.offset}",
        written=f"{x.written:%F %H:%M:%S}",
        stage=_short(x.why.stage),
        rule=_short(x.why.rule),
        error=_short(x.why.error),
        attempt=x.attempt,
        value=_short(seen.value.text if seen.value is not None else "(no value)"),
    )


def letter(seen: SeenLetter) -> LetterShown:
    """One letter, with its value as JSON is read best, or as text."""
    x = seen.letter
    told = {name: value for name, value in msgspec.to_builtins(x.why).items() if value not in ("", -1) and name not in _OWN}
    why = [(name, _moment(value) if name == "timestamp" else str(value)) for name, value in told.items()]
    facts = [("letter", x.position), ("written", f"{x.written:%F %H:%M:%S} UTC"), ("attempt", x.attempt), *why]
    return LetterShown(
        position=x.position,
        rule=printable(x.why.rule),
        error=printable(x.why.error, lines=True),
        facts=tuple((name, shortened(printable(value), _LONGEST_HEADER)) for name, value in facts),
        headers=tuple((_name(name), _text(None if data is None else plain(data, whole=False))) for name, data in x.headers),
        key=_text(seen.key),
        value=_pretty(seen),
        note=_note(seen),
        window=x.why.window,
    )


def _moment(milliseconds: int) -> str:
    """A record's time for a person; as it is where no calendar has it."""
    with suppress(ValueError, OverflowError, OSError):
        return f"{datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(' ', 'milliseconds').removesuffix('+00:00')} UTC"
    return str(milliseconds)


_OWN = ("error", "rule", "prefix")


def _name(text: str) -> str:
    return shortened(printable(text), _LONGEST_HEADER) or "(empty)"


def _text(shown: Shown | None) -> str:
    if shown is None:
        return "(none)"
    return _name(shown.text) + (f" ({printable(shown.said)})" if shown.said else "")


def _pretty(seen: SeenLetter) -> str:
    x = seen.letter
    if x.is_pointer:
        return printable(plain(x.why.prefix, whole=False).text, lines=True)
    if seen.value is None:
        return ""
    text = seen.value.text
    if not seen.cut:
        with suppress(msgspec.DecodeError, UnicodeError, RecursionError):
            text = msgspec.json.format(text, indent=2)  # numbers and names that come twice stay as they stand there
    return printable(text, lines=True)


def _note(seen: SeenLetter) -> str:
    x = seen.letter
    if x.is_pointer:
        where = x.why.where or "its place in the input topic"
        return f"The event ({x.why.size:,} bytes) didn't fit a letter and stayed at {where}; this is how it begins."
    if seen.value is None:
        return "The event has no value."
    if not seen.value.text:
        return "The event's value is empty."
    cut = f"Only its beginning, of {seen.size:,} bytes. All of it: factory dead-letters show <topic> {x.position}" if seen.cut else ""
    how = "Not decoded, so it is shown as " if seen.value.why else "Read as "
    return " ".join(filter(None, (printable(f"{how}{seen.value.said}.") if seen.value.said else "", cut)))
