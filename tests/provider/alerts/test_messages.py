"""A message says all that it was given, in text and in Slack's blocks, whatever a record's reason holds, and within Slack's limits."""

from __future__ import annotations

import pytest

from airflow_provider_factory.alerts.messages import Link, Message
from tests.support.webhooks import text_of

PLAIN = Message("page", "clicks failed: 04:00", ("enrich[3]: no broker", "10 events wait"), (Link("Run", "http://a/dags/clicks?x=1&y=2"),))


def test_it_says_the_same_in_text_and_in_slack() -> None:
    assert PLAIN.text == "🔴 clicks failed: 04:00\nenrich[3]: no broker\n10 events wait\nRun: http://a/dags/clicks?x=1&y=2"
    assert PLAIN.slack() == {
        "text": "🔴 clicks failed: 04:00",
        "blocks": [
            {"type": "section", "text": {"type": "mrkdwn", "text": "*🔴 clicks failed: 04:00*"}},
            {"type": "section", "text": {"type": "mrkdwn", "text": "enrich[3]: no broker\n10 events wait"}},
            {"type": "context", "elements": [{"type": "mrkdwn", "text": "<http://a/dags/clicks?x=1&amp;y=2|Run>"}]},
        ],
    }


@pytest.mark.parametrize("hostile", ["<!channel> <http://evil|click>", "\x1b[31mred\nsecond line", "a|b>c<d&e", "\u202eright to left"])
def test_what_a_record_holds_is_inert(hostile: str) -> None:
    message = Message("warning", f"t {hostile}", (hostile,), (Link(hostile, f"http://a/{hostile}"),))
    shown = text_of(message.slack())
    assert "<!" not in shown
    assert "<http://evil" not in shown
    assert len(message.slack()["blocks"]) == 3
    for text in (shown, message.text):
        assert not {"\x1b", "\u202e"} & set(text)
        assert "second line" not in [line.strip() for line in text.splitlines()], "a line stays one line"


def test_a_long_one_is_cut_within_slack_s_limits() -> None:
    message = Message("page", "t" * 10_000, tuple(f"{i} " + "&" * 10_000 for i in range(1_000)))
    payload = message.slack()
    assert all(len(block["text"]["text"]) <= 3000 for block in payload["blocks"])
    assert "and 980 more" in message.text
    assert len(message.text) < 7_000


def test_without_lines_and_links_it_is_its_title() -> None:
    assert len(Message("over", "t").slack()["blocks"]) == 1
    assert Message("over", "t").text == "🟢 t"
