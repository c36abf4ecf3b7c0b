"""Why a run rejected events: how many for each reason, with examples."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from factory_agents.protocol import Example, Reason
from factory_agents.text import printable, shortened

__all__ = ["MOST_EXAMPLES", "Reasons", "error_kind", "reason_lines"]

MOST_EXAMPLES = 5
"""Examples of one reason that a dry run keeps, at most."""

_MOST_REASONS = 50
_OTHERS = ("", "other reasons")
_ERROR, _KEY, _VALUE = 300, 60, 200


def error_kind(error: str) -> str:
    """An error without what differs from event to event: quoted values and figures."""
    return re.sub(r"(?<![\w.])-?\d[\d.,]*", "#", re.sub(r"'[^']*'|\"[^\"]*\"", "…", error))


@dataclass(slots=True)
class _Group:
    rule: str
    error: str
    first: str
    tolerated: bool
    count: int = 0
    examples: list[Example] = field(default_factory=list)


class Reasons:
    """Counts rejected events by rule and kind of error, and keeps the first few of each as ``examples``."""

    def __init__(self, examples: int = 0) -> None:
        self._most = min(examples, MOST_EXAMPLES)
        self._groups: dict[tuple[str, str], _Group] = {}
        self._kept: dict[tuple[str, str], tuple[int, int]] = {}

    def add(self, rule: str, error: str, at: str, key: bytes | None, value: bytes | None, *, tolerated: bool = False) -> None:
        """Count one event; ``at`` is where it was read. ``tolerated``: it is no bad one, and no cause of a failure."""
        rule, error = shortened(printable(rule), _ERROR), shortened(printable(error), _ERROR)
        kind = rule, error_kind(error)
        group = self._groups.get(kind)
        if group is None:
            if len(self._groups) >= _MOST_REASONS:
                kind, (rule, error) = _OTHERS, _OTHERS
            group = self._groups.setdefault(kind, _Group(rule, error, at, tolerated))
        group.count += 1
        if len(group.examples) < self._most:
            group.examples.append(Example(at, _text(key, _KEY), _text(value, _VALUE)))

    def end_chunk(self, *, committed: bool) -> None:
        """A chunk has ended; the events of one that is not committed come again."""
        if committed:
            self._kept = {kind: (group.count, len(group.examples)) for kind, group in self._groups.items()}
            return
        self._groups = {kind: group for kind, group in self._groups.items() if kind in self._kept}
        for kind, (count, examples) in self._kept.items():
            self._groups[kind].count = count
            del self._groups[kind].examples[examples:]

    def told(self) -> tuple[Reason, ...]:
        """Every reason, the commonest first."""
        groups = sorted(self._groups.values(), key=lambda group: -group.count)
        return tuple(Reason(g.rule, g.error, g.count, g.first, tuple(g.examples)) for g in groups)

    def commonest(self) -> str:
        """What an error says of the commonest one; nothing where there is none."""
        group = max((g for g in self._groups.values() if not g.tolerated), key=lambda g: g.count, default=None)
        return f"; most often ({group.count:,}×) {group.rule}: {group.error} (first at {group.first})" if group is not None else ""


def reason_lines(reasons: Iterable[Reason]) -> list[str]:
    """What a person reads of them: one line each, then one for each example."""
    lines = []
    for reason in reasons:
        lines.append(f"{reason.count:,} × {reason.rule}: {reason.error}" + ("" if reason.examples else f" (first at {reason.first})"))
        lines += [f"    {'  '.join(filter(None, (e.at, e.key, '(no value)' if e.value is None else e.value)))}" for e in reason.examples]
    return lines


def _text(data: bytes | None, length: int) -> str | None:
    """The beginning of a key or a value, as it may be shown."""
    return None if data is None else shortened(printable(data[: 4 * length + 4].decode(errors="replace")), length)
