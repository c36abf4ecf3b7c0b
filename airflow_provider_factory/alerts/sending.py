"""Sends a message through Slack's official hooks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_provider_factory.alerts.messages import Message
from factory_agents.errors import ConfigurationError

if TYPE_CHECKING:
    from slack_sdk.http_retry import RetryHandler

__all__ = ["send_to_slack"]

_SECONDS = 10
_RETRIES = 3


def send_to_slack(message: Message, conn_id: str, channel: str = "") -> None:
    """Post it to the webhook of a ``slackwebhook`` connection, or with ``channel`` by the API of a ``slack`` connection.

    Tried again when Slack is unreachable, answers with a server error or asks to wait. Raises ConfigurationError without the extra
    ``slack``, and whatever the hook raises where Slack refuses the message.
    """
    try:
        from airflow.providers.slack.hooks.slack import SlackHook
        from airflow.providers.slack.hooks.slack_webhook import SlackWebhookHook
    except ImportError:
        raise ConfigurationError("messages to Slack need its provider: pip install 'airflow-provider-factory[slack]'") from None
    payload = message.slack()
    if channel:
        hook = SlackHook(slack_conn_id=conn_id, timeout=_SECONDS, retry_handlers=_retries())
        hook.call("chat.postMessage", json={"channel": channel, "unfurl_links": False, **payload})
    else:
        SlackWebhookHook(slack_webhook_conn_id=conn_id, timeout=_SECONDS, retry_handlers=_retries()).send(unfurl_links=False, **payload)


def _retries() -> list[RetryHandler]:
    from slack_sdk.http_retry.builtin_handlers import ConnectionErrorRetryHandler, RateLimitErrorRetryHandler, ServerErrorRetryHandler

    kinds = (ConnectionErrorRetryHandler, RateLimitErrorRetryHandler, ServerErrorRetryHandler)
    return [kind(max_retry_count=_RETRIES) for kind in kinds]
