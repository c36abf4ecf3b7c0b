"""W3C trace context: the text ``traceparent``, which names a span to whoever goes on from there."""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["TRACEPARENT", "TraceContext", "parse_traceparent"]

TRACEPARENT = "traceparent"
"""The header of a record, and in capitals the environment variable."""

_LONGEST = 256
_FORM = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_NO_TRACE, _NO_SPAN = "0" * 32, "0" * 16


class TraceContext(NamedTuple):
    """A span: its trace's id and its own, as hexadecimal digits; ``sampled``: it is recorded, and so are those that go on from it."""

    trace_id: str
    span_id: str
    sampled: bool = True

    @property
    def text(self) -> str:
        """As ``traceparent``."""
        return f"00-{self.trace_id}-{self.span_id}-{int(self.sampled):02x}"


def parse_traceparent(value: bytes | str | None) -> TraceContext | None:
    """The span that a ``traceparent`` names, or None where it is none: whoever wrote it, it is never an error."""
    if not value or len(value) > _LONGEST:
        return None
    text = value.decode("ascii", errors="replace") if isinstance(value, bytes) else value
    found = _FORM.fullmatch(text)
    if found is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    if version == "ff" or (version == "00" and more) or trace_id == _NO_TRACE or span_id == _NO_SPAN:
        return None
    return TraceContext(trace_id, span_id, bool(int(flags, 16) & 1))
