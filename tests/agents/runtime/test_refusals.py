"""What is known of refused records: by where their events came from, whatever bytes come the next time."""

from __future__ import annotations

import os

from factory_agents.errors import UnavailableError
from factory_agents.kafka.writer import ChunkAbortedError, RefusedRecord
from factory_agents.runtime.refusals import Refusals

LIMITS = {"t": 1000}


def aborted(*values: bytes, alone: bool = True, too_large: bool = False) -> ChunkAbortedError:
    records = [RefusedRecord("t", None, value, "no good", alone, too_large) for value in values]
    return ChunkAbortedError(UnavailableError("no good"), refused=True, records=records)


def careful() -> Refusals:
    made = Refusals()
    made.careful = True
    for row in range(3):
        made.sent("t", None, b"%d" % row, (0, row))
    return made


def test_nothing_is_looked_up_before_the_first_refusal() -> None:
    assert not Refusals().active


def test_without_a_note_of_what_was_sent_nobody_knows_whose_it_was() -> None:
    assert not Refusals().learn(aborted(b"1"), alone=True, limits={})


def test_the_event_is_known_whatever_bytes_come_of_it() -> None:
    refusals = careful()
    assert refusals.learn(aborted(b"1"), alone=False, limits={})
    assert refusals.known("t", b"k", b"other bytes", (0, 1)) == "refused by the broker: no good"
    assert not refusals.known("t", None, b"1", (0, 0))
    assert not refusals.known("dead letters", None, b"1", (0, 1))
    assert not refusals.learn(aborted(b"unknown"), alone=False, limits={})


def test_of_several_in_a_batch_nobody_knows_which_unless_the_chunk_holds_one() -> None:
    refusals = careful()
    assert not refusals.learn(aborted(b"0", b"1", alone=False), alone=False, limits={})
    assert refusals.learn(aborted(b"1", alone=False), alone=True, limits={})


def test_what_was_rejected_in_a_committed_chunk_is_forgotten_and_nothing_else() -> None:
    refusals = careful()
    refusals.learn(aborted(b"1", b"2"), alone=False, limits={})
    refusals.known("t", None, b"1", (0, 1))
    refusals.forget(committed=False)
    assert refusals.known("t", None, b"1", (0, 1))
    refusals.forget(committed=True)
    assert not refusals.known("t", None, b"1", (0, 1))
    assert refusals.known("t", None, b"2", (0, 2))
    refusals.careful = False
    refusals.forget(committed=True)
    assert not refusals.active


def test_after_one_was_too_large_those_that_are_so_beyond_doubt_are_not_even_sent() -> None:
    refusals = Refusals()
    random, repeated = os.urandom(2000), b"x" * 2000
    assert not refusals.known("t", None, random, (0, 1))
    refusals.learn(aborted(b"1", too_large=True), alone=False, limits=LIMITS)
    assert "too large (2,001 bytes, max.message.bytes is 1,000)" in refusals.known("t", b"k", random, (0, 1))
    assert not refusals.known("t", None, repeated, (0, 2))  # it may be small enough once it is compressed
    assert not refusals.known("other", None, random, (0, 3))
