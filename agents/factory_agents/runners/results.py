"""What an agent's answer may say: of its own run and of no other, in bounded size.

An agent's code runs in the process that writes the answer, so it may write whatever it likes there. It can't be kept from lying about its
own work; what the answer can reach is the task that launched it, and what names the work comes from there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from factory_agents import errors
from factory_agents.errors import AgentCrashedError, FactoryError, ForeignResultError
from factory_agents.protocol import AgentResult, AgentRun, Manifest, decode_result, plain
from factory_agents.runtime.reasons import reason_lines
from factory_agents.text import printable

__all__ = ["LARGEST_RESULT", "agent_error", "check_result", "read_result_file", "shown_notes", "shown_reasons"]

LARGEST_RESULT = 4 << 20
"""Bytes of an answer: Airflow's XCom holds it. The ledger's record of it has to fit into a message of Kafka's, which is less."""

_LARGEST_NUMBER = (1 << 63) - 1
_NOTES, _NOTE, _REASONS = 20, 1000, 100
_DEEPEST = 32
_LONGEST_ERROR = 4000


def read_result_file(path: Path) -> AgentResult | None:
    """The answer that a process left, or None where it left nothing; raises ForeignResultError where it is too large.

    Raises ConfigurationError where it is none.
    """
    if not path.is_file():  # a pipe, or a device
        return None
    with path.open("rb") as file:
        text = file.read(LARGEST_RESULT + 1)
    if len(text) > LARGEST_RESULT:
        raise ForeignResultError(
            f"the agent left a result of more than {LARGEST_RESULT >> 20} MiB, the most that is taken; let its report and notes be shorter"
        )
    return decode_result(text) if text else None


def check_result(result: AgentResult, run: AgentRun) -> None:
    """Refuse a result that is another run's, or of a form that no run leaves; raises ForeignResultError."""
    for what, theirs, ours in _names(result, run):
        if theirs != ours:
            raise ForeignResultError(
                f"the agent's result is of {what} {printable(str(theirs)[:200])!r}, expected {ours!r}: it is another run's, and is not used"
            )
    _check_numbers(result)
    _check_form(result)


def agent_error(result: AgentResult) -> FactoryError:
    """The error that a failed result tells of, as the class it was in the agent where that is one of ours, its message cut and escaped."""
    info = result.error
    if info is None:
        return AgentCrashedError(f"agent {result.agent or result.stage!r} failed without saying why; see its log above")
    kind: type[FactoryError] = getattr(errors, info.type) if info.type in errors.__all__ else AgentCrashedError
    message = printable(info.message if len(info.message) <= _LONGEST_ERROR else f"{info.message[:_LONGEST_ERROR]}…")
    error = kind(message)
    error.retriable = info.retriable
    return error


def shown_notes(result: AgentResult) -> Iterator[str]:
    """A result's notes as a log may show them."""
    for note in result.notes[:_NOTES]:
        yield printable(note[:_NOTE])
    if len(result.notes) > _NOTES:
        yield f"and {len(result.notes) - _NOTES:,} more notes: they are in the result"


def shown_reasons(result: AgentResult) -> Iterator[str]:
    """Why a dry run rejected events, as a log may show it."""
    for line in reason_lines(result.reasons)[:_REASONS]:
        yield printable(line[:_NOTE])


def _names(result: AgentResult, run: AgentRun) -> Iterable[tuple[str, object, object]]:
    """What says whose a result is: as it says, and as it was launched. What an image's own program needn't know of may be missing."""
    unread = result.status == "failed" and not result.key  # the run itself could not be read
    if not (unread and not result.pipeline):
        yield "pipeline", result.pipeline, run.pipeline
        yield "stage", result.stage, run.stage
    if not unread:
        yield "window", result.key, run.key
        yield "shard", result.shard.key, run.shard.key
    if result.run:
        yield "run", result.run, run.digest
    interval = run.window.interval if run.window is not None else run.interval
    if result.interval is not None and interval is not None:
        yield "interval", result.interval.key, interval.key
    if result.manifest is not None:
        yield "output topic", result.manifest.topic, run.output_topic
    if result.input is not None and run.window is not None:
        yield "input topic", result.input.topic, run.window.topic


def _check_numbers(result: AgentResult) -> None:
    for name, number in _numbers(result):
        if not 0 <= number <= _LARGEST_NUMBER:
            said = f"{name} = {str(number)[:40]}"
            raise ForeignResultError(f"the agent's result has {said}: no run can have that (negative, or too large); it is not used")


def _numbers(result: AgentResult) -> Iterator[tuple[str, float]]:
    for name in ("seconds", "generation", "input_generation", "epoch", "instance", "mapped", "ledger_offset"):
        yield name, getattr(result, name)
    for name, count in msgspec.structs.asdict(result.counts).items():
        yield f"counts.{name}", count
    for of in ("input", "manifest", "dead_letters"):
        manifest: Manifest | None = getattr(result, of)
        for n, r in enumerate(manifest.ranges if manifest is not None else ()):
            where = f"{of}.ranges[{n}]"
            yield f"{where}.partition", r.partition
            yield f"{where}.start", r.start
            yield f"{where}.end", r.end
            yield f"{where}.end - start", r.end - r.start
            yield f"{where}.count + 1", r.count + 1


def _check_form(result: AgentResult) -> None:
    """What an orchestrator's database can't hold: a NUL in a text, or values that are nested deeply."""
    todo: list[tuple[Any, int]] = [(plain(result), 0)]
    while todo:
        value, depth = todo.pop()
        if depth > _DEEPEST or (isinstance(value, str) and "\0" in value):
            what = "values nested too deeply" if depth > _DEEPEST else "a NUL character"
            raise ForeignResultError(f"the agent's result holds {what}, which an orchestrator's database can't; let its agent leave it out")
        if isinstance(value, dict):
            todo += [(part, depth + 1) for pair in value.items() for part in pair]
        elif isinstance(value, list):
            todo += [(part, depth + 1) for part in value]
