"""What makes work the same, how much may be rejected, and a session's start and end."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from factory_agents.errors import AccountingError, ConfigurationError, TooManyRejectedError
from factory_agents.kafka.config import KafkaConfig
from factory_agents.protocol import AgentRef, AgentRun, Counts, Interval, Order, PartitionRange, Shard, Window
from factory_agents.runtime.session import RunContext, Session, fingerprint, parse_limit
from tests.support.runs import Runs

HOUR = Interval(datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, 1, tzinfo=UTC))
WINDOW = Window("p", "in", "id", (PartitionRange(0, 0, 10), PartitionRange(1, 5, 9)), interval=HOUR)
RUN = AgentRun("p", "s", AgentRef("enrich"), window=WINDOW, output_topic="out")


def of(run: AgentRun = RUN, version: str = "1", identity: dict[str, Any] | None = None, output_id: str = "o") -> str:
    return fingerprint(run, "enrich", version, identity or {}, output_id)


def changed(**changes: Any) -> AgentRun:
    return msgspec.structs.replace(RUN, **changes)


def window(**changes: Any) -> AgentRun:
    return changed(window=msgspec.structs.replace(WINDOW, **changes))


@pytest.mark.parametrize(
    "other",
    [
        of(version="2"),
        of(identity={"params": {"a": 1}}),
        of(output_id="recreated"),
        of(changed(output_topic="elsewhere")),
        of(changed(stage="t")),
        of(changed(pipeline="q")),
        of(changed(shard=Shard(0, 2))),
        of(changed(origin="raw")),
        of(changed(instance=1)),
        of(window(topic_id="recreated")),
        of(window(ranges=(PartitionRange(0, 0, 11), PartitionRange(1, 5, 9)))),
        of(window(writers=("s/f/1",))),
        of(window(name="w", interval=None)),
    ],
)
def test_other_work_has_another_fingerprint(other: str) -> None:
    assert other != of()


@pytest.mark.parametrize(
    "same",
    [
        of(changed(run_id="r", rerun="redo", order=Order("r", 7), plan="p2")),
        of(changed(accept_loss=True, max_rejected="1", deadline_seconds=5.0, chunk_records=1, dry_run=True)),
        of(window(generation=9, ledger_offset=5, carried=3)),
        of(window(ranges=(PartitionRange(0, 0, 10, 7), PartitionRange(1, 5, 9, 4)))),
        fingerprint(RUN, "enrich", "1", {}, "o"),
    ],
)
def test_the_same_work_has_the_same_fingerprint_whoever_asks(same: str) -> None:
    assert same == of()


def test_the_order_of_parameters_does_not_matter() -> None:
    assert of(identity={"a": 1, "b": {"c": 2, "d": 3}}) == of(identity={"b": {"d": 3, "c": 2}, "a": 1})


@pytest.mark.parametrize(("text", "limit"), [("5 %", (5.0, True)), ("0.5%", (0.5, True)), (" 1000 ", (1000.0, False)), ("0", (0.0, False))])
def test_a_limit_is_a_number_or_a_percentage(text: str, limit: tuple[float, bool]) -> None:
    assert parse_limit(text) == limit


@pytest.mark.parametrize("text", ["", "many", "-1", "5 percent", "1e3"])
def test_a_mistyped_limit_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="max_rejected: expected a number or a percentage"):
        parse_limit(text)


@pytest.fixture
def session(runs: Runs) -> Session:
    return Session(RunContext(runs.config), runs.run(runs.filled(1), max_rejected="10 %"), "a", "1", {})


@pytest.mark.parametrize(
    ("rejected", "consumed", "final", "broken"),
    [
        (9, 9, True, False),  # few are no share
        (10, 20, True, True),
        (10, 20, False, False),  # too early to tell
        (1001, 10_000, False, True),
        (1000, 10_000, True, False),
    ],
)
def test_a_share_of_rejected_events_is_judged_when_there_are_enough(
    session: Session, rejected: int, consumed: int, final: bool, broken: bool
) -> None:
    session.counts = Counts(consumed=consumed, rejected=rejected)
    if broken:
        with pytest.raises(TooManyRejectedError):
            session.check_rejected(final=final)
    else:
        session.check_rejected(final=final)


def test_counts_that_do_not_add_up_are_an_error(session: Session) -> None:
    session.counts = Counts(consumed=3, forwarded=1, filtered=1)
    with pytest.raises(AccountingError, match="consumed 3 != forwarded 1"):
        session.check_counts()


@pytest.mark.parametrize("name", ["", "a|b", "a\nb"])
def test_names_that_cannot_stand_in_the_ledger_are_refused(name: str) -> None:
    with pytest.raises(ConfigurationError):
        Session(RunContext(KafkaConfig("nowhere:1")), changed(pipeline=name, window=None, interval=HOUR), "a", "1", {})


def test_a_ledger_that_refuses_the_record_is_named_with_what_to_do(runs: Runs) -> None:
    runs.topic("ledger", partitions=12, cleanup_policy="compact", max_message_bytes=500)
    with pytest.raises(ConfigurationError, match=r"ledger.* refuses a record of \d+ bytes .*raise its max.message.bytes"):
        runs.transform(runs.run(runs.filled(3), runs.topic("out")))


def test_an_unreachable_broker_is_one_line(runs: Runs) -> None:
    from factory_agents.errors import UnavailableError

    run = runs.run(None, "out", "ingest", interval=HOUR)
    session = Session(RunContext(KafkaConfig("127.0.0.1:1")), run, "a", "1", {})
    session.cluster._timeout = 0.5
    with pytest.raises(UnavailableError, match=r"no broker answered at 127\.0\.0\.1:1"):
        session.start()
