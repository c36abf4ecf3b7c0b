"""Takes what Alertmanager posts and sends it on as messages of ours: a web app with a token of its own, apart from the UI's sessions."""

from __future__ import annotations

import asyncio
import hmac
import logging
import threading
import time
from collections.abc import Callable
from typing import Annotated, Any, Literal

import msgspec
from fastapi import FastAPI, Header, HTTPException, Request

from airflow_provider_factory.alerts.messages import Level, Link, Message
from airflow_provider_factory.settings import option

__all__ = ["Notice", "Rate", "create_receiver", "message_of"]

log = logging.getLogger(__name__)

LARGEST = 512 * 1024
"""Bytes of a request: some hundreds of alerts."""
_BURST, _PER_SECOND = 30, 0.5
_AT_ONCE = 4
_BUSY = {"Retry-After": "10"}


class Alert(msgspec.Struct, frozen=True, rename="camel"):
    """One alert, as far as it is read."""

    status: Literal["firing", "resolved"]
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    generator_url: str = msgspec.field(default="", name="generatorURL")


class Notice(msgspec.Struct, frozen=True, rename="camel"):
    """What Alertmanager posts: alerts that it groups by some labels (version 4 of its format)."""

    status: Literal["firing", "resolved"]
    alerts: tuple[Alert, ...]
    group_labels: dict[str, str] = {}
    common_labels: dict[str, str] = {}
    external_url: str = msgspec.field(default="", name="externalURL")
    truncated_alerts: int = 0


class Rate:
    """How many requests are taken: so many at once, then so many a second."""

    def __init__(self, burst: float = _BURST, per_second: float = _PER_SECOND, clock: Callable[[], float] = time.monotonic) -> None:
        self._left, self._burst, self._per_second, self._clock = burst, burst, per_second, clock
        self._at, self._lock = clock(), threading.Lock()

    def takes(self) -> bool:
        """Whether one more may come now."""
        with self._lock:
            now = self._clock()
            self._left = min(self._burst, self._left + (now - self._at) * self._per_second)
            self._at = now
            if self._left < 1:
                return False
            self._left -= 1
            return True


def message_of(notice: Notice, runbooks: str = "") -> Message:
    """A group of alerts as one message; ``runbooks`` is the address of the page whose sections the rules name."""
    firing = [alert for alert in notice.alerts if alert.status == "firing"]
    over = [alert for alert in notice.alerts if alert.status == "resolved"]
    name = notice.common_labels.get("alertname") or notice.group_labels.get("alertname") or "alerts"
    about = ", ".join(value for key, value in notice.group_labels.items() if key != "alertname" and value)
    state = "is over" if notice.status == "resolved" else "fires"
    level: Level = "over" if notice.status == "resolved" else "page" if _worst(firing) == "page" else "warning"
    lines = [*(_said(alert) for alert in firing), *(f"over: {_said(alert)}" for alert in over)]
    if notice.truncated_alerts:
        lines.append(f"and {notice.truncated_alerts:,} more that Alertmanager left out")
    return Message(level, f"{name} {state}{about and f': {about}'}", tuple(dict.fromkeys(lines)), tuple(_links(notice, runbooks)))


def _worst(alerts: list[Alert]) -> str:
    return "page" if any(alert.labels.get("severity") == "page" for alert in alerts) else ""


def _said(alert: Alert) -> str:
    labels = ", ".join(f"{key}={value}" for key, value in sorted(alert.labels.items()) if key != "alertname")
    return alert.annotations.get("summary") or alert.annotations.get("description") or labels


def _links(notice: Notice, runbooks: str) -> list[Link]:
    first = notice.alerts[0] if notice.alerts else Alert("firing")
    book = first.annotations.get("runbook_url") or first.annotations.get("runbook") or ""
    if runbooks and not _is_address(book):
        book = f"{runbooks}#{book.partition('#')[2]}"
    found = (("Runbook", book), ("Prometheus", first.generator_url), ("Alertmanager", notice.external_url))
    return [Link(name, url) for name, url in found if _is_address(url)]


def _is_address(url: str) -> bool:
    return url.startswith(("http://", "https://"))


def _send(message: Message) -> None:
    from airflow_provider_factory.notifications import FactoryNotifier

    FactoryNotifier(option("alerts_slack"), channel=option("alerts_channel")).send(message)


def create_receiver(send: Callable[[Message], None] = _send, rate: Rate | None = None) -> FastAPI:
    """The app: ``POST /`` with ``Authorization: Bearer <[factory] alerts_token>``. Without a token it is closed.

    200 says that the message was sent. Alertmanager tries again after 502 (it could not be) and 503 (too many).
    """
    allowed, at_once = rate or Rate(), threading.BoundedSemaphore(_AT_ONCE)
    app = FastAPI(title="Factory alerts", docs_url=None, redoc_url=None, openapi_url=None)

    @app.post("/")
    async def receive(request: Request, authorization: Annotated[str, Header()] = "") -> dict[str, Any]:
        _check_token(authorization)
        if not allowed.takes() or not at_once.acquire(blocking=False):
            raise HTTPException(503, "too many alerts at once; try again", headers=_BUSY)
        try:
            notice = _decoded(await _body(request))
            await asyncio.to_thread(send, message_of(notice, option("runbooks_url")))
        except HTTPException:
            raise
        except Exception as error:
            log.exception("an alert could not be sent")
            raise HTTPException(502, f"the message could not be sent ({type(error).__name__}); see the API server's log") from None
        finally:
            at_once.release()
        return {"sent": len(notice.alerts)}

    return app


def _check_token(authorization: str) -> None:
    wanted, (scheme, _, given) = option("alerts_token"), authorization.partition(" ")
    if not wanted:
        raise HTTPException(403, "set [factory] alerts_token to receive alerts")
    if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), wanted.encode()):
        raise HTTPException(401, "expected Authorization: Bearer and the token of [factory] alerts_token")


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > LARGEST:
            raise HTTPException(413, f"expected at most {LARGEST:,} bytes")
    return bytes(body)


def _decoded(body: bytes) -> Notice:
    try:
        return msgspec.json.decode(body, type=Notice)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise HTTPException(400, f"expected what Alertmanager posts to webhooks: {error}") from None
