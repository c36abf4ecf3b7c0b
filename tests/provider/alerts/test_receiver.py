"""Alertmanager's webhook: only with the token, bounded, and what it posts becomes one message."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fastapi.testclient import TestClient

from airflow_provider_factory.alerts.messages import Link, Message
from airflow_provider_factory.alerts.receiver import LARGEST, Notice, Rate, create_receiver, message_of

TOKEN = {"Authorization": "Bearer s3cret"}


def alert(summary: str, status: str = "firing", severity: str = "page", **labels: str) -> dict[str, Any]:
    annotations = {"summary": summary, "runbook": "docs/runbooks.md#kafkaconsumerlaghigh"}
    named = {"alertname": "KafkaConsumerLagHigh", "severity": severity, **labels}
    return {"status": status, "labels": named, "annotations": annotations, "generatorURL": "http://prometheus/graph", "fingerprint": "f"}


def notice(*alerts: dict[str, Any], status: str = "firing", **more: Any) -> dict[str, Any]:
    """As Alertmanager 0.25 posts it."""
    labels = {"alertname": "KafkaConsumerLagHigh", "topic": "raw_events", "group": "g"}
    return {
        "version": "4",
        "groupKey": "{}",
        "receiver": "factory",
        "status": status,
        "alerts": list(alerts),
        "groupLabels": labels,
        "commonLabels": labels,
        "commonAnnotations": {},
        "externalURL": "http://alertmanager",
        "truncatedAlerts": 0,
        **more,
    }


@pytest.fixture
def sent() -> list[Message]:
    return []


@pytest.fixture
def client(sent: list[Message], monkeypatch: pytest.MonkeyPatch) -> TestClient:
    monkeypatch.setenv("AIRFLOW__FACTORY__ALERTS_TOKEN", "s3cret")
    return TestClient(create_receiver(sent.append))


def read(data: dict[str, Any], runbooks: str = "") -> Message:
    import msgspec

    return message_of(msgspec.convert(data, Notice), runbooks)


def test_a_group_is_one_message(client: TestClient, sent: list[Message]) -> None:
    answer = client.post("/", json=notice(alert("g is 2M records behind"), alert("h is 3M records behind")), headers=TOKEN)
    assert (answer.status_code, answer.json()) == (200, {"sent": 2})
    links = (Link("Prometheus", "http://prometheus/graph"), Link("Alertmanager", "http://alertmanager"))
    lines = ("g is 2M records behind", "h is 3M records behind")
    assert sent == [Message("page", "KafkaConsumerLagHigh fires: raw_events, g", lines, links)]


def test_what_is_over_says_so_and_a_ticket_is_no_page() -> None:
    over = read(notice(alert("behind", "resolved"), status="resolved"))
    assert (over.level, over.title, over.lines) == ("over", "KafkaConsumerLagHigh is over: raw_events, g", ("over: behind",))
    partly = read(notice(alert("a", "resolved"), alert("b", severity="ticket")))
    assert (partly.level, partly.lines) == ("warning", ("b", "over: a"))


def test_the_runbook_is_linked_where_it_is_known_to_be() -> None:
    assert read(notice(alert("a")), "https://wiki/runbooks").links[0] == Link("Runbook", "https://wiki/runbooks#kafkaconsumerlaghigh")
    hostile = alert("a")
    hostile["annotations"]["runbook_url"] = hostile["generatorURL"] = "javascript:alert(1)"
    assert read(notice(hostile, externalURL="file:///etc/passwd")).links == ()


@pytest.mark.parametrize(
    "headers",
    [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic s3cret"}, {"Authorization": ""}, {"Cookie": "_token=x"}],
)
def test_without_the_token_nothing_is_read(client: TestClient, sent: list[Message], headers: dict[str, str]) -> None:
    assert client.post("/", content=b"x" * (LARGEST + 1), headers=headers).status_code == 401
    assert not sent


def test_without_a_configured_token_it_is_closed(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__FACTORY__ALERTS_TOKEN", "")
    for headers in (TOKEN, {}, {"Authorization": "Bearer "}):
        assert client.post("/", json=notice(alert("a")), headers=headers).status_code == 403


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"no json", 400),
        (b"[" * 100_000, 400),
        (b'{"status": "firing"}', 400),
        (b'{"status": "firing", "alerts": [{"status": "firing", "labels": {"a": {}}}]}', 400),
        (b"\xff", 400),
        (b" " * (LARGEST + 1), 413),
    ],
)
def test_anything_else_is_refused_and_sends_nothing(client: TestClient, sent: list[Message], body: bytes, status: int) -> None:
    assert client.post("/", content=body, headers=TOKEN).status_code == status
    assert not sent


def test_alerts_without_any_words_are_told_by_their_labels(client: TestClient, sent: list[Message]) -> None:
    bare = {"status": "firing", "alerts": [{"status": "firing", "labels": {"alertname": "Watchdog", "pod": "p"}}]}
    assert client.post("/", json=bare, headers=TOKEN).status_code == 200
    assert (sent[0].title, sent[0].lines) == ("alerts fires", ("pod=p",))
    assert client.post("/", json=notice(), headers=TOKEN).status_code == 200


def test_too_many_are_sent_away_and_may_come_again(sent: list[Message], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__FACTORY__ALERTS_TOKEN", "s3cret")
    now = [0.0]
    client = TestClient(create_receiver(sent.append, Rate(3, 0.5, lambda: now[0])))
    answers = [client.post("/", json=notice(alert("a")), headers=TOKEN) for _ in range(5)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 503, 503]
    assert answers[-1].headers["Retry-After"]
    now[0] = 2.0
    assert client.post("/", json=notice(alert("a")), headers=TOKEN).status_code == 200
    assert len(sent) == 4


def test_what_could_not_be_sent_is_asked_for_again_and_no_secret_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__FACTORY__ALERTS_TOKEN", "s3cret")

    def refused(_: Message) -> None:
        raise ConnectionError("https://hooks.slack.com/services/secret")

    client = TestClient(create_receiver(refused))
    for _ in range(10):  # whoever fails makes room for the next
        answer = client.post("/", json=notice(alert("a")), headers=TOKEN)
        assert (answer.status_code, "secret" in answer.text) == (502, False)


def test_there_is_nothing_else(client: TestClient) -> None:
    for method, path in (("GET", "/"), ("GET", "/docs"), ("GET", "/openapi.json"), ("PUT", "/"), ("POST", "/x")):
        assert client.request(method, path, headers=TOKEN).status_code in (404, 405)


def test_a_payload_is_taken_with_fields_that_are_not_known(client: TestClient, sent: list[Message]) -> None:
    later = json.loads(json.dumps(notice(alert("a"), notificationReason="x")))
    assert client.post("/", json=later, headers=TOKEN).status_code == 200
