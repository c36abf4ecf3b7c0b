"""``Reject``: why an event is no good, from wherever that is found out: an agent, a contract, a codec, a sink."""

from __future__ import annotations

__all__ = ["Reject"]


class Reject(Exception):  # noqa: N818  # what a user raises reads as an order
    """Raise (or, in a batch agent, return) this to send the event to the dead-letter topic with a reason.

    ``rule`` names what was broken, for counting; ``reason`` is one line for a person.

    :param reason: one line for a person.
    :param rule: what was broken, in a word.

    Example::

        @agent
        def priced(event: dict) -> dict:
            if event["price"] < 0:
                raise Reject(f"price {event['price']} is below zero", rule="price")
            return event
    """

    def __init__(self, reason: str, *, rule: str = "rejected") -> None:
        Exception.__init__(self, reason)  # super() takes as long as all the rest, and these may be many
        self.reason = reason
        self.rule = rule

    def forget_frames(self) -> None:
        """Let go of the frames that it was raised through: they hold the event, in a cycle that only the garbage collector would find."""
        self.__traceback__ = self.__cause__ = self.__context__ = None
