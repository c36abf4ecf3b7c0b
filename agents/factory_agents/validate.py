"""The built-in validate agent: passes on the events that keep a data contract, rejects the others, reports on the window."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Annotated, Any

import msgspec

from factory_agents.contracts import Contract, Violation, WindowStatistics, load_contract
from factory_agents.contracts.documents import show
from factory_agents.contracts.doubled_keys import doubled_key
from factory_agents.contracts.fast import FastPath, NotFast
from factory_agents.contracts.sql import SQL_MEMORY_MB
from factory_agents.errors import AccountingError
from factory_agents.kafka.messages import Message
from factory_agents.params import read_params
from factory_agents.protocol import AgentRun, Counts
from factory_agents.runtime.agents import Output, Reject, decode_event
from factory_agents.runtime.numbers import Digits, hold_long_numbers
from factory_agents.sources.members import read_members

__all__ = ["ValidateParams", "ValidateTransform", "build"]

log = logging.getLogger(__name__)

_REASONS = 10
_ENOUGH = 1_000
"""Events after which it shows whether the fast path is worth trying: the first batch may be a single odd one."""

_AT_ONCE = 1_000
"""Events that are decoded before they are checked: more don't fit a processor's cache, which costs a fifth of the speed."""

_REQUIRED = {"contract": "the contract's file, such as contracts/events.yaml"}


class ValidateParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What ``validate`` takes. ``contract``: a file (found as ``resolve_path`` does), YAML text or a mapping.

    ``sql_memory_mb``: what the contract's SQL may take; what doesn't fit is spilled to a temporary folder.
    """

    contract: str | dict[str, Any]
    sql_memory_mb: Annotated[int, msgspec.Meta(ge=16)] = SQL_MEMORY_MB


def build(params: Mapping[str, Any], run: AgentRun | None = None) -> ValidateTransform:
    """The validate agent for a run over a window; without a run it is for live events, of which each is checked for itself.

    Raises ConfigurationError for parameters it doesn't take and ContractError for a contract that can't be read.
    """
    settings = read_params("validate", params, ValidateParams, required=_REQUIRED)
    contract = load_contract(settings.contract, untrusted=run is not None and "contract" in run.untrusted)
    for note in (*contract.notes, *contract.not_run):
        log.info("%s", note)
    return ValidateTransform(contract, run, sql_memory_mb=settings.sql_memory_mb)


class ValidateTransform:
    """Checks events against a contract (see ``Transform``); over a window it is stateful, since the report needs every event.

    What the contract's references name is read when this is made. Raises ConfigurationError or UnavailableError where that can't be done.
    ``only_windows`` says why events can't be checked live (empty: they can).
    """

    name = "validate"
    version = "1"
    at_once = 1

    def __init__(
        self,
        contract: Contract,
        run: AgentRun | None,
        statistics: WindowStatistics | None = None,
        *,
        sql_memory_mb: int = SQL_MEMORY_MB,
    ) -> None:
        interval = None if run is None else run.interval or (run.window.interval if run.window else None)
        members = {key.field: read_members(key) for key in contract.foreign_keys}
        self._references = {
            key.field: {"source": key.source, "values": len(members[key.field]), "digest": members[key.field].digest}
            for key in contract.foreign_keys
        }
        self._members = {name: known.tester() for name, known in members.items()}
        self.identity: dict[str, Any] = {"contract": contract.digest}
        if members:
            self.identity["references"] = {name: known.digest for name, known in members.items()}
        self.stateful = run is not None
        self.contract = contract
        self._keyed = run is not None and run.shard.of > 1
        self._statistics = statistics or WindowStatistics(
            contract, interval, count_duplicates=run is not None, keyed=self._keyed, sql_memory_mb=sql_memory_mb
        )
        self._may_miss = run is not None and run.accept_loss  # what was consumed may be gone when a resumed run reads it again
        self._decode = msgspec.json.Decoder().decode
        self._digits = Digits()
        self._check = contract.checker(self._members)
        self._read_time = contract.time_reader()
        self._refuses_doubled_keys = contract.duplicate_keys == "refuse"
        self._seen = self._passed_over = 0  # valid events that the fast path did not take
        try:
            self._fast: FastPath | None = contract.fast_path(self._statistics.fields, self._members)
        except NotFast as reason:
            self._fast = None
            log.debug("contract %s: no fast path: %s", contract.name, reason)

    @property
    def only_windows(self) -> str:
        """See the class."""
        keys = [key for key in self.contract.foreign_keys if key.table]
        if not keys:
            return ""
        return (
            f"contract {self.contract.source}: references.{keys[0].field}: a table's values are read once, so they are checked in windows "
            "only: in a live agent use enrich with a lookup, on_missing: reject"
        )

    def process(self, messages: Sequence[Message]) -> list[Output]:
        """See ``Transform.process``."""
        outputs: list[Output] = []
        for start in range(0, len(messages), _AT_ONCE):
            outputs += self._process(messages[start : start + _AT_ONCE])
        return outputs

    def _process(self, messages: Sequence[Message]) -> list[Output]:
        outputs: list[Output] = [message.value() for message in messages]  # None, a tombstone, is rejected below
        if self._refuses_doubled_keys:
            outputs = [None if isinstance(v, bytes) and doubled_key(v) is not None else v for v in outputs]
        times: list[int | None] = []
        slow = range(len(outputs)) if self._fast is None else self._take_fast(self._fast, messages, outputs, times)
        self._take_plain(slow, messages, outputs, times)
        self._statistics.add_times(times)
        return outputs

    def _keys(self, messages: Sequence[Message], others: Sequence[int]) -> list[bytes | None] | None:
        """The keys of the records but those at the ``others``, where they matter."""
        if not self._keyed:
            return None
        passed = set(others)
        return [m.key() for i, m in enumerate(messages) if i not in passed]

    def _take_fast(self, fast: FastPath, messages: Sequence[Message], values: Sequence[Any], times: list[int | None]) -> Sequence[int]:
        """Count what the fast path knows to be valid; where the others are."""
        events, others = _decoded(fast.decode, values)
        if failing := fast.failing(events, times):
            passed = set(others)
            places = [i for i in range(len(values)) if i not in passed]
            others = sorted([*others, *(places[i] for i in failing)])
            for i in reversed(failing):
                del events[i]
        self._statistics.add_valid(events, lambda name: attrgetter(fast.names[name]), self._keys(messages, others))
        return others

    def _take_plain(self, places: Sequence[int], messages: Sequence[Message], outputs: list[Output], times: list[int | None]) -> None:
        decode, check, read_time, time = self._decode, self._check, self._read_time, self.contract.time
        may_be_long = self.contract.weighs_numbers and hold_long_numbers([messages[i].value() for i in places])
        explain, members = self.contract.violations, self._members
        passed_over = self._fast is not None  # what the fast path didn't take is most likely bad
        events: list[dict[str, Any]] = []
        valid_at: list[int] = []
        for i in places:
            event: Any = None
            broken: Sequence[Violation] = ()
            try:
                event = decode(outputs[i])  # type: ignore[arg-type]
                exact = self._digits.exact(outputs[i], event) if may_be_long else None  # type: ignore[arg-type]
                if passed_over or exact is not None:
                    valid = type(event) is dict and not (broken := explain(event, members, exact))
                else:
                    valid = type(event) is dict and check(event)
                if valid and time is not None:
                    times.append(read_time(event.get(time)))
            except MemoryError:  # the attempt's, not the event's
                raise
            except Exception:
                valid = False
            if valid:
                events.append(event)
                valid_at.append(i)
            else:
                outputs[i] = self._reject(messages[i], event, broken)
        self._statistics.add_valid(events, keys=self._keys([messages[i] for i in valid_at], ()))
        self._seen += len(outputs)
        self._passed_over += len(events)
        if self._seen >= _ENOUGH and 2 * self._passed_over > self._seen:  # most have, say, fields that aren't declared
            self._fast = None

    def _reject(self, message: Message, event: Any, broken: Sequence[Violation]) -> Reject:
        """Say why; slower, for the few. ``event`` is None where it couldn't be decoded, ``broken`` empty where it isn't known yet."""
        try:
            if not broken:
                if type(event) is not dict:
                    event = decode_event(message.value())
                if self._refuses_doubled_keys and (name := doubled_key(message.value() or b"")) is not None:
                    raise Reject(f"the key {show(name)} stands twice in one object", rule="decode")
                broken = self.contract.violations(event, self._members)
            rules, reason = _worded(broken)
            reject = Reject(reason, rule=rules[0] if len(rules) == 1 else ",".join(rules))
        except Reject as undecodable:
            rules, reject = [undecodable.rule], undecodable
        except (ValueError, TypeError, RecursionError) as error:
            rules, reject = ["schema"], Reject(f"the event cannot be checked: {error}", rule="schema")
        self._statistics.add_rejected(rules, reject.reason, (message.topic(), message.partition(), message.offset()))
        return reject

    def compare(self, earlier: Callable[[], Sequence[Mapping[str, Any]]]) -> None:
        """See ``Transform.compare``: only contracts with drift look at earlier windows."""
        contract = self.contract
        if any(c.figure == "drift" for c in (*contract.fail_if, *contract.warn_if)):
            self._statistics.compare([report for report in earlier() if report["contract"]["name"] == contract.name])

    def finish(self, counts: Counts) -> dict[str, Any]:
        """The report (see ``WindowStatistics.report``); raises AccountingError unless every consumed event was seen here just once."""
        if counts.consumed != self._statistics.rows and not self._may_miss:
            raise AccountingError(f"validate saw {self._statistics.rows} events of {counts.consumed} consumed: a bug, please report it")
        return self.report()

    def report(self) -> dict[str, Any]:
        """The report on the events so far."""
        report = self._statistics.report()
        return report | ({"references": self._references} if self._references else {})

    def close(self) -> None:
        """See ``Transform.close``."""
        self._statistics.close()


def _decoded(decode: Callable[[Any], Any], values: Sequence[Any]) -> tuple[list[Any], list[int]]:
    """The values that can be decoded, and the places of the others, whatever is wrong with them."""
    events: list[Any] = []
    others: list[int] = []
    rest = iter(values)
    while True:
        try:
            events.extend(map(decode, rest))  # those before one that raises are kept
        except Exception:
            others.append(len(events) + len(others))
        else:
            return events, others


def _worded(violations: Sequence[Violation]) -> tuple[list[str], str]:
    """The rules that are broken, and the reason in one line."""
    if len(violations) == 1:
        return [violations[0].rule], violations[0].reason
    rules = list(dict.fromkeys(v.rule for v in violations)) or ["schema"]
    reasons = [v.reason for v in violations[:_REASONS]] or ["the event cannot be checked"]
    more = len(violations) - len(reasons)
    return rules, "; ".join(reasons) + (f"; and {more} more" if more > 0 else "")


if __name__ == "__main__":
    from factory_agents.commands import run_built_in

    run_built_in("validate")
