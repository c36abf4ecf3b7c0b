"""Regular expressions of rules and schemas: one dialect, whose time grows with the text and never explodes.

It also grows with the expression, and nothing else can run in the process until a match is over: neither a deadline nor a signal is
heard. So a large expression (``[ab]{5000}``) takes short texts only. Most have no such limit.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

__all__ = ["PatternError", "bounded", "check_pattern", "compile_plain", "compile_search", "engine"]

_TOKEN = re.compile(r"\\.|\[\^?(?:\\.|[^\]\\])*\]|[()|]|[^\\\[()|]+|.", re.DOTALL)


_SMALL, _LARGEST = 1 << 12, 10 << 20
"""Bytes of a compiled expression: up to the first it takes any text, past the second it is refused."""
_BUDGET = 10_000_000_000
"""Bytes of the expression times characters of the text: some seconds, at the worst."""


class PatternError(ValueError):
    """A regular expression cannot be used."""


def engine() -> Any:
    """What jsonschema-rs is told to match with: automata without backtracking."""
    import jsonschema_rs

    return jsonschema_rs.RegexOptions()


def check_pattern(pattern: str, *, whole: bool = True) -> None:
    """Raise PatternError for what is not a regular expression, or one whose time has no bound (unless it is ``whole``: any look-around)."""
    import jsonschema_rs

    try:
        jsonschema_rs.validator_for(bounded(pattern) if whole else {"pattern": pattern}, pattern_options=engine())
    except ValueError:
        raise PatternError(_why(pattern)) from None


def _why(pattern: str) -> str:
    import jsonschema_rs

    try:
        jsonschema_rs.validator_for({"pattern": pattern}, pattern_options=jsonschema_rs.FancyRegexOptions())
    except ValueError:
        return f"not a regular expression, or too large a regex: {pattern[:80]!r}"
    return (
        f"{pattern[:80]!r}: of look-around only (?=…) and (?!…) right after a leading ^ are taken, and no back references, since the time "
        "of all others has no bound; say it with two patterns, one of them under 'not'"
    )


def compile_search(pattern: str) -> Callable[[Any], bool]:
    """Whether a text holds a match, anywhere unless anchored; raises PatternError now, TypeError later for what is no text."""
    import jsonschema_rs

    check_pattern(pattern)
    is_valid = jsonschema_rs.validator_for(bounded(pattern), pattern_options=engine()).is_valid
    must, never = _split(pattern)
    limits = [limit for part in (*must, *never) if (limit := longest_text(part)) is not None]
    longest = min(limits) if limits else None

    def search(value: Any) -> bool:
        if type(value) is not str:
            raise TypeError(f"matches() takes a text, got {type(value).__name__}")
        if longest is not None and len(value) > longest:
            raise TypeError(f"matches() with so large an expression takes {longest:,} characters at most, got {len(value):,}")
        return is_valid(value)

    return search


def compile_plain(pattern: str) -> Callable[[str], bool]:
    """The same of texts alone, for an expression that ``bounded`` leaves as it is."""
    import jsonschema_rs

    is_valid: Callable[[str], bool] = jsonschema_rs.validator_for({"pattern": pattern}, pattern_options=engine()).is_valid
    return is_valid


def bounded(pattern: str) -> dict[str, Any]:
    """A schema of texts that match, without look-around where that stands right after a leading ``^``: there it is a test of its own.

    What a large expression is matched with is of bounded length; a longer text doesn't fit.
    """
    must, never = _split(pattern)
    tests: list[tuple[dict[str, Any], int | None]] = [({"pattern": p}, longest_text(p)) for p in must]
    tests += [({"not": {"type": "string", "pattern": p}}, longest_text(p)) for p in never]
    if len(tests) == 1 and tests[0][1] is None:
        return {"pattern": pattern}
    limited = [{"maxLength": min(limits)}] if (limits := [limit for _, limit in tests if limit is not None]) else []
    # A longer text fits the first of two alternatives, so that the second one isn't tried.
    whole = [test if limit is None else {"anyOf": [{"type": "string", "minLength": limit + 1}, test]} for test, limit in tests]
    return {"allOf": [*limited, *whole]}


@lru_cache(maxsize=1024)
def longest_text(pattern: str) -> int | None:
    """How many characters an expression (without look-around) may be matched with; None for any number."""
    import jsonschema_rs

    size = _SMALL
    while size < _LARGEST:
        try:
            jsonschema_rs.validator_for({"pattern": pattern}, pattern_options=jsonschema_rs.RegexOptions(size_limit=size))
            break
        except ValueError:
            size *= 2
    return None if size == _SMALL else _BUDGET // size


def _split(pattern: str) -> tuple[list[str], list[str]]:
    """What must be found, and what must not be."""
    tokens = _TOKEN.findall(pattern)
    closing = _closing(tokens)
    must: list[str] = []
    never: list[str] = []
    at = 1
    while tokens[:1] == ["^"] and at in closing and tokens[at + 1][:2] in ("?=", "?!"):
        end = closing[at]
        if "".join(tokens[end + 1 : end + 2])[:1] in ("*", "+", "?", "{"):
            break
        inner = "".join(tokens[at + 1 : end])
        (must if inner[1] == "=" else never).append(f"^(?:{inner[2:]})")
        at = end + 1
    return [*must, "^" + "".join(tokens[at:])] if at > 1 else [pattern], never


def _closing(tokens: list[str]) -> dict[int, int]:
    """Where each bracket closes; nothing where the whole is an alternative, of which a leading part is not all."""
    pairs: dict[int, int] = {}
    opened: list[int] = []
    for i, token in enumerate(tokens):
        if token == "(":
            opened.append(i)
        elif token == ")" and opened:
            pairs[opened.pop()] = i
        elif token == "|" and not opened:
            return {}
    return pairs
