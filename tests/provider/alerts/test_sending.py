"""Slack gets a message once by its official hooks, tried again where that helps."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from airflow_provider_factory.alerts.messages import Message
from airflow_provider_factory.alerts.sending import send_to_slack
from tests.support.webhooks import Webhooks, webhooks

MESSAGE = Message("page", "clicks failed", ("why",))


@pytest.fixture
def slack(monkeypatch: pytest.MonkeyPatch) -> Iterator[Webhooks]:
    with webhooks() as server:
        hook = {"conn_type": "slackwebhook", "host": server.url, "password": "/slack"}
        api = {"conn_type": "slack", "password": "xoxb-token", "extra": {"base_url": f"{server.url}/api/"}}
        monkeypatch.setenv("AIRFLOW_CONN_OUR_SLACK", json.dumps(hook))
        monkeypatch.setenv("AIRFLOW_CONN_OUR_API", json.dumps(api))
        yield server


def test_a_webhook_gets_text_and_blocks(slack: Webhooks) -> None:
    send_to_slack(MESSAGE, "our_slack")
    assert slack.posted == [("/slack", {**MESSAGE.slack(), "unfurl_links": False})]


def test_the_api_gets_them_for_a_channel(slack: Webhooks) -> None:
    send_to_slack(MESSAGE, "our_api", "#factory")
    assert slack.posted == [("/api/chat.postMessage", {"channel": "#factory", **MESSAGE.slack(), "unfurl_links": False})]


@pytest.mark.slow
@pytest.mark.parametrize("status", [500, 503, 429])
def test_it_is_tried_again_when_slack_cannot_take_it_now(slack: Webhooks, status: int) -> None:
    slack.answers = [status]
    send_to_slack(MESSAGE, "our_slack")
    assert (len(slack.posted), slack.refused) == (1, [status])


def test_what_slack_refuses_is_raised_at_once(slack: Webhooks) -> None:
    slack.answers = [403]
    with pytest.raises(Exception, match="403"):
        send_to_slack(MESSAGE, "our_slack")
    assert not slack.posted
    assert slack.refused == [403]
