"""What an alert says, in plain text and as Slack wants it. Data in, data out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from factory_agents.text import printable

__all__ = ["Level", "Link", "Message"]

Level = Literal["page", "warning", "over"]

_SIGNS: dict[str, str] = {"page": "🔴", "warning": "🟠", "over": "🟢"}
_LONGEST_LINE = 300
_MOST_LINES = 20
_LONGEST_TITLE = 150
_LONGEST_BODY = 2900
"""Slack takes 3,000 characters in a section."""


@dataclass(frozen=True)
class Link:
    """A name and where it leads to."""

    name: str
    url: str


@dataclass(frozen=True)
class Message:
    """One message: a title, lines, links. Whatever comes from records may stand in it: it is cut, and made harmless."""

    level: Level
    title: str
    lines: tuple[str, ...] = ()
    links: tuple[Link, ...] = ()

    @property
    def subject(self) -> str:
        """The title with its sign."""
        return f"{_SIGNS[self.level]} {_cut(self.title, _LONGEST_TITLE)}"

    @property
    def text(self) -> str:
        """All of it as plain text."""
        links = (printable(f"{link.name}: {link.url}") for link in self.links)
        return "\n".join((self.subject, *self._shown(), *links))

    def slack(self) -> dict[str, Any]:
        """What Slack's webhooks and its API take: blocks, and a text for notifications."""
        body = "\n".join(_escaped(line) for line in self._shown())
        blocks = [_section(f"*{_escaped(self.subject)}*"), *([_section(_whole(body))] if body else [])]
        links = " · ".join(f"<{_address(link.url)}|{_escaped(printable(link.name))}>" for link in self.links)
        if links:
            blocks.append({"type": "context", "elements": [{"type": "mrkdwn", "text": links}]})
        return {"text": _escaped(self.subject), "blocks": blocks}

    def _shown(self) -> list[str]:
        more = len(self.lines) - _MOST_LINES
        shown = [_cut(line, _LONGEST_LINE) for line in self.lines[:_MOST_LINES]]
        return [*shown, f"and {more:,} more"] if more > 0 else shown


def _cut(text: str, longest: int) -> str:
    line = printable(text)
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


def _escaped(text: str) -> str:
    """Slack's own three characters: without them nothing is a link or calls a channel."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _address(url: str) -> str:
    return _escaped(printable(url)).replace("|", "%7C")


def _whole(body: str) -> str:
    """As much as Slack takes, cut between lines."""
    return body if len(body) <= _LONGEST_BODY else body[:_LONGEST_BODY].rpartition("\n")[0] + "\n…"


def _section(text: str) -> dict[str, Any]:
    return {"type": "section", "text": {"type": "mrkdwn", "text": text}}
