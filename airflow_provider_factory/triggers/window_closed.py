"""Waits until every partition has passed a window's end, or a grace is over."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import ClassVar

import msgspec

from airflow_provider_factory.clusters import Client
from airflow_provider_factory.conditions import Answer, WindowClosedQuestion, ask_window_closed
from airflow_provider_factory.triggers.base import KafkaTrigger

__all__ = ["WindowClosedTrigger"]


class WindowClosedTrigger(KafkaTrigger):
    """Asks the partitions; ``question`` is a WindowClosedQuestion's data."""

    path: ClassVar[str] = "airflow_provider_factory.triggers.window_closed.WindowClosedTrigger"

    def known(self) -> Answer:
        """See ``KafkaTrigger.known``: before the window's end, and after the grace, the clock is enough."""
        return ask_window_closed(None, self._question(), datetime.now(UTC))

    @property
    def about(self) -> str:
        """See ``KafkaTrigger.about``: the topic."""
        return self._question().topic

    def ask(self, client: Client) -> Answer:
        """See ``KafkaTrigger.ask``."""
        return ask_window_closed(client.config, self._question(), datetime.now(UTC), cluster=client.cluster)

    def pause(self, now: float) -> float:
        """See ``KafkaTrigger.pause``: no longer than to the end of the grace, nor before the window's end is there."""
        question = self._question()
        end = question.end.timestamp()
        wait = max(self.poll_interval, end - now) if now < end else min(self.poll_interval, end + question.grace - now)
        return max(0.0, min(wait, self.deadline - now))

    def _question(self) -> WindowClosedQuestion:
        return msgspec.convert(self.question, WindowClosedQuestion)
