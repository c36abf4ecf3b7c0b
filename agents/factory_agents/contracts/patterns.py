"""Regular expressions of rules and schemas: one dialect, whose time grows with the text and never explodes."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

__all__ = ["PatternError", "bounded", "check_pattern", "compile_search", "engine"]

_TOKEN = re.compile(r"\\.|\[\^?(?:\\.|[^\]\\])*\]|[()|]|[^\\\[()|]+|.", re.DOTALL)


class PatternError(ValueError):
    """A regular expression cannot be used."""


def engine() -> Any:
    """What jsonschema-rs is told to match with: automata without backtracking."""
    import jsonschema_rs

    return jsonschema_rs.RegexOptions()


def check_pattern(pattern: str, *, whole: bool = True) -> None:
    """Raise PatternError for what is no regular expression, or one whose time has no bound (unless it is ``whole``: any look-around)."""
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

    def search(value: Any) -> bool:
        if type(value) is not str:
            raise TypeError(f"matches() takes a text, got {type(value).__name__}")
        return is_valid(value)

    return search


def bounded(pattern: str) -> dict[str, Any]:
    """A schema of texts that match, without look-around where that stands right after a leading ``^``: there it is a test of its own."""
    must, never = _split(pattern)
    if len(must) + len(never) == 1:
        return {"pattern": pattern}
    return {"allOf": [*({"pattern": p} for p in must), *({"not": {"type": "string", "pattern": p}} for p in never)]}


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
