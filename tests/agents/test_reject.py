"""A rejection says why in one line, and doesn't keep the event alive."""

from __future__ import annotations

import gc
import weakref

import pytest

from factory_agents.reject import Reject


class Event:
    """Something that a frame holds."""


def test_it_says_why_and_by_which_rule() -> None:
    rejected = Reject("no id")
    assert (str(rejected), rejected.reason, rejected.rule) == ("no id", "no id", "rejected")
    assert Reject("no id", rule="schema").rule == "schema"


def test_the_event_is_freed_at_once_when_its_frames_are_forgotten() -> None:
    kept: list[Reject] = []

    def handle() -> weakref.ref[Event]:
        event = Event()
        try:
            try:
                raise ValueError
            except ValueError as error:
                raise Reject("no good") from error
        except Reject as rejected:
            rejected.forget_frames()
            kept.append(rejected)
        return weakref.ref(event)

    gc.disable()
    try:
        assert handle()() is None
    finally:
        gc.enable()
    with pytest.raises(Reject, match="no good"):
        raise kept[0]
