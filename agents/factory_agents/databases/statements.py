"""Names and queries as people write them in PostgreSQL, so that they can stand within a statement of ours."""

from __future__ import annotations

import re

from factory_agents.errors import ConfigurationError

__all__ = ["one_statement", "table_name"]

_TOKEN = re.compile(
    r"""(?P<skip>\s+|--[^\n\r]*|/\*|;)
    |(?P<text>[eE]'(?:[^'\\]|\\.|'')*'|'(?:[^']|'')*'|"(?:[^"]|"")*"|(?P<tag>\$(?:[^\W\d]\w*)?\$).*?(?P=tag)|\w[\w$]*|.)""",
    re.DOTALL | re.VERBOSE,
)
_MARK = re.compile(r"/\*|\*/")
_NAME = re.compile(r'(?:"(?P<quoted>(?:[^"]|"")+)"|(?P<plain>[^."]+))(?:\.|$)')


def one_statement(query: str) -> str:
    """The query without what follows it (comments, semicolons); raises ConfigurationError for none, or more than one."""
    end, closed = 0, False
    at = 0
    while (token := _TOKEN.match(query, at)) is not None:
        at = _after_comment(query, token.start()) if token["skip"] == "/*" else token.end()
        if token["skip"] == ";":
            closed = end > 0
        elif token["text"] and closed:
            raise ConfigurationError(
                f"query: expected one SELECT, got another statement after a semicolon: {query[token.start() :][:40]!r}"
            )
        elif token["text"]:
            end = token.end()
    if not end:
        raise ConfigurationError(f"query: expected a SELECT, got {query[:40]!r}")
    return query[:end]


def _after_comment(query: str, start: int) -> int:
    """Where a comment ends, in which others may lie; raises ConfigurationError where it doesn't."""
    depth = 0
    for mark in _MARK.finditer(query, start):
        depth += 1 if mark[0] == "/*" else -1
        if not depth:
            return mark.end()
    raise ConfigurationError(f"query: a comment has no end: {query[start:][:40]!r}")


def table_name(text: str) -> tuple[str, ...]:
    """``table`` or ``schema.table``, taken literally (case and all), either part in double quotes or not; ConfigurationError for anything
    else.
    """
    parts, at = list[str](), 0
    while at < len(text) and (match := _NAME.match(text, at)):
        parts.append(match["plain"] or match["quoted"].replace('""', '"'))
        at = match.end()
    if at < len(text) or not 1 <= len(parts) <= 2 or text.endswith("."):
        raise ConfigurationError(f'table {text!r}: expected table or schema.table (a part with a dot or a quote in it in "double quotes")')
    return tuple(parts)
