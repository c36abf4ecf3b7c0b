"""Whatever a request holds, the page answers it, with its policy and without an error of the server's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import schemathesis
from airflow.models.log import Log
from airflow.utils.session import create_session
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from sqlalchemy import select

from airflow_provider_factory.page.snapshot import Live
from factory_agents.protocol import Counts
from tests.support.pages import OfHand, PerDagManager, dead, figures, hour, live, plan, report, stage

_TRIES = 3
_KNOWN = {"topic": "out.dead", "to": "raw", "key": hour(1).key, "stage": "validate", "name": "factory.enrich.raw"}
"""With values as a generator makes them nothing is found, so each route is also asked for what is there."""


@pytest.fixture
def asking(page_of: Callable[..., OfHand], users: PerDagManager, hourly: str) -> tuple[OfHand, Callable[..., Any]]:
    validated = stage(hourly, 1, "validate", counts=Counts(consumed=4, forwarded=3, rejected=1), report=report())
    page = page_of(replace(figures(plan(hourly, 1), dead(hourly, 1), validated), live=Live((live(),))))
    client = TestClient(page.app, raise_server_exceptions=False)
    ours = {"Authorization": f"Bearer {users.token(f'editor-of-{hourly}')}", "X-Factory-Action": "1", "Sec-Fetch-Site": "same-origin"}

    def ask(headers: Any = None, **request: Any) -> int:
        plain = {name: value for name, value in (headers or {}).items() if value.isascii() and value.isprintable()}
        answer = client.request(headers=plain | ours, **request)
        assert answer.status_code in (200, 400, 404, 409, 422), (request, answer.text[-2000:])
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        return int(answer.status_code)

    return page, ask


def test_hostile_requests_are_answered(asking: tuple[OfHand, Callable[..., Any]], hourly: str) -> None:
    page, ask = asking
    schema = schemathesis.openapi.from_dict(page.app.openapi())
    answered: dict[str, set[int]] = {}

    def checked(operation: Any, mode: GenerationMode, known: dict[str, str]) -> None:
        fixed = {"dag_id": hourly} if "{dag_id}" in operation.path else None

        @settings(max_examples=_TRIES, phases=[Phase.generate], deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy(mode, path_parameters=fixed))
        def once(case: Any) -> None:
            for part in (case.query, case.body):
                if isinstance(part, dict):
                    part.update({name: value for name, value in known.items() if name in part})
            request = case.as_transport_kwargs(base_url="http://testserver")
            request.pop("cookies", None)
            if isinstance(request.get("data"), bytes):
                request["content"] = request.pop("data")
            answered.setdefault(operation.label, set()).add(ask(**request))

        once()

    operations: list[Any] = [found.ok() for found in schema.get_all_operations()]  # type: ignore[union-attr]  # ours has no faults
    for operation in operations:
        checked(operation, GenerationMode.POSITIVE, {})
        checked(operation, GenerationMode.POSITIVE, _KNOWN)
        try:
            checked(operation, GenerationMode.NEGATIVE, {})
        except (schemathesis.errors.SchemathesisError, Unsatisfiable):  # nothing can be wrong in a request that takes nothing but texts
            assert not list(operation.body), operation.label
            kinds = [taken.definition["schema"]["type"] for taken in (*operation.query, *operation.path_parameters)]
            assert set(kinds) <= {"string"}, operation.label
    assert set(answered) == {operation.label for operation in operations}
    shown = {label for label, codes in answered.items() if 200 in codes}
    assert shown >= {label for label in answered if label.startswith("GET ") and "static" not in label}


@pytest.mark.parametrize(
    "more",
    [
        b'"rule": "\\ud800"',
        b'"rule": "\\u0000"',
        b'"rule": "\xff"',
        b'"rule": NaN',
        b'"positions": [["0@1"]]',
        b'"positions": ' + b"[" * 100_000,
        b'"dag_id": "another"',
        b'"task_id": [1]',
        b'"\\ud800": 1',
    ],
)
def test_a_body_that_holds_anything_else_is_refused_and_not_logged(
    asking: tuple[OfHand, Callable[..., Any]], hourly: str, more: bytes
) -> None:
    _, ask = asking
    for path, body in (("replay", b'{"topic": "out.dead", "to": "raw", '), ("backfill", b'{"starts": ["2026-11-02"], ')):
        url, plain = f"/pipelines/{hourly}/{path}", {"Content-Type": "application/json"}
        assert ask(method="POST", url=url, content=body + more + b"}", headers=plain) in (400, 422)
    logged = f"/pipelines/{hourly}/replay?run_id=x%00"
    assert ask(method="POST", url=logged, json={"topic": "out.dead", "to": "raw"}) == 422
    with create_session() as session:
        assert session.scalars(select(Log.event).where(Log.dag_id.in_([hourly, "another"]), Log.event.like("factory%"))).all() == []
