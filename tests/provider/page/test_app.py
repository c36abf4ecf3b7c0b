"""Every route asks Airflow who is there and what they may do, and is closed where Airflow cannot be asked."""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urljoin

import msgspec
import pytest
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient

from airflow_provider_factory.page import access
from airflow_provider_factory.page.app import create_app
from airflow_provider_factory.page.letters import LetterPage, Letters
from airflow_provider_factory.page.snapshot import Details, Figures, Live, Snapshots
from factory_agents.errors import UnavailableError
from factory_agents.kafka.windows import WindowStatus
from factory_agents.protocol import Counts
from tests.support.pages import HOUR, START, OfHand, PerDagManager, dead, figures, hour, letter, live, plan, report, stage
from tests.support.waiting import wait_for

Make = Callable[..., OfHand]


def whole(dag_id: str) -> Figures:
    return figures(
        plan(dag_id, 1), dead(dag_id, 1), stage(dag_id, 1, "validate", counts=Counts(consumed=4, forwarded=3, rejected=1), report=report())
    )


def requests(page: OfHand, dag_id: str) -> dict[tuple[str, str], tuple[str, Any]]:
    """A good request for each route that the app has now, by method and path; fails for a route without one."""
    key = hour(1).key.replace(":", "%3A").replace("/", "%2F")
    starts = [START.isoformat()]
    base = f"/pipelines/{dag_id}"
    good: dict[tuple[str, str], tuple[str, Any]] = {
        ("GET", "/"): ("/", None),
        ("GET", "/static/{name}"): ("/static/factory.css", None),
        ("GET", "/live"): ("/live", None),
        ("GET", "/live/group"): ("/live/group?name=factory.enrich.raw", None),
        ("GET", "/pipelines/{dag_id}"): (base, None),
        ("GET", "/pipelines/{dag_id}/window"): (f"{base}/window?key={key}", None),
        ("GET", "/pipelines/{dag_id}/runs/{run_id}"): (f"{base}/runs/some", None),
        ("GET", "/pipelines/{dag_id}/preview"): (f"{base}/preview", None),
        ("GET", "/pipelines/{dag_id}/report"): (f"{base}/report?key={key}&stage=validate", None),
        ("GET", "/pipelines/{dag_id}/letters"): (f"{base}/letters?topic=out.dead", None),
        ("GET", "/pipelines/{dag_id}/letters/{partition}/{offset}"): (f"{base}/letters/0/1?topic=out.dead", None),
        ("POST", "/pipelines/{dag_id}/backfill-plan"): (f"{base}/backfill-plan", {"starts": starts}),
        ("POST", "/pipelines/{dag_id}/backfill"): (f"{base}/backfill", {"starts": starts, "expected": starts}),
        ("POST", "/pipelines/{dag_id}/replay"): (f"{base}/replay", {"topic": "out.dead", "to": "raw", "positions": ["0@1"]}),
        ("POST", "/pipelines/{dag_id}/preview"): (f"{base}/preview", {"topic": "raw", "contract": "contracts/events.yaml"}),
    }
    routes = {(method, route.path) for route in all_routes(page.app) for method in route.methods}
    assert routes == set(good)
    return good


def all_routes(app: Any) -> list[APIRoute]:
    """Every route, those of included routers too; nothing else may be mounted."""
    found: list[APIRoute] = []
    for route in app.routes:
        if isinstance(route, APIRoute):
            found.append(route)
        else:
            inner = getattr(route, "effective_candidates", None) or getattr(route, "routes", None)
            assert inner is not None, route
            found += inner() if callable(inner) else inner
    return found


def test_every_route_lets_in_whom_it_should(page_of: Make, users: PerDagManager, hourly: str) -> None:
    page = page_of(replace(whole(hourly), live=Live((live(),))))
    tokens = {
        "none": "",
        "expired": users.token(f"editor-of-{hourly}", seconds=-100),
        "other": users.token("viewer-of-another"),
        "viewer": users.token(f"viewer-of-{hourly}"),
        "editor": users.token(f"editor-of-{hourly}"),
    }
    for (method, path), (url, body) in requests(page, hourly).items():
        found = {
            who: (page.get(url, token) if method == "GET" else page.post(url, body, token)).status_code for who, token in tokens.items()
        }
        shared = path in ("/", "/static/{name}", "/live", "/live/group")
        viewer = 200 if method == "GET" else 403
        assert found == {"none": 401, "expired": 401, "other": 200 if shared else 403, "viewer": viewer, "editor": 200}, path
    assert hourly not in page.get("/", tokens["other"]).text
    assert hourly in page.get("/", tokens["viewer"]).text
    for path in ("/openapi.json", "/docs", "/redoc"):
        assert page.get(path, tokens["editor"]).status_code == 404
    guest = users.token(f"guest-of-{hourly}")
    assert [page.get(path, guest).status_code for path in (f"/pipelines/{hourly}", "/live", "/live/group?name=x")] == [200, 403, 403]


def test_an_action_comes_from_the_page_itself(page_of: Make, users: PerDagManager, hourly: str) -> None:
    page = page_of(whole(hourly))
    editor = users.token(f"editor-of-{hourly}")
    url, body = f"/pipelines/{hourly}/backfill-plan", {"starts": [START.isoformat()]}
    assert page.post(url, body, editor).status_code == 200
    refused: list[dict[str, str]] = [
        {"X-Factory-Action": ""},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
        {"Sec-Fetch-Site": "cross-site", "Origin": "http://testserver"},
    ]
    for headers in refused:
        assert page.post(url, body, editor, **headers).status_code == 403, headers
    page.client.headers.pop("Sec-Fetch-Site")
    assert page.post(url, body, editor).status_code == 403
    assert page.post(url, body, editor, Origin="https://evil.example").status_code == 403
    assert page.post(url, body, editor, Origin="null").status_code == 403
    assert page.post(url, body, editor, Origin="http://testserver").status_code == 200
    page.client.cookies.set("_token", editor)  # as a browser sends it along
    assert page.client.post(url, json=body).status_code == 403


def test_an_editor_of_the_pipeline_who_may_not_start_the_replay_dag_replays_nothing(
    page_of: Make, users: PerDagManager, hourly: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = page_of(whole(hourly))
    allowed = users.is_authorized_dag

    def no_replay_dag(**asked: Any) -> bool:
        return getattr(asked["details"], "id", "") != access.REPLAY_DAG and allowed(**asked)

    monkeypatch.setattr(users, "is_authorized_dag", no_replay_dag)
    url, body = requests(page, hourly)["POST", "/pipelines/{dag_id}/replay"]
    assert page.post(url, body, users.token(f"editor-of-{hourly}")).status_code == 403


def test_nobody_is_let_in_where_airflows_security_does_not_load(
    hourly: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "airflow.api_fastapi.core_api.security", None)
    page = OfHand(whole(hourly))
    for (method, _), (url, body) in requests(page, hourly).items():
        answer = page.get(url) if method == "GET" else page.post(url, body)
        assert answer.status_code == 403, url
        assert hourly not in answer.text
    page.close()
    assert "ModuleNotFoundError" in caplog.text


def test_a_page_may_load_nothing_from_elsewhere_and_run_nothing_inline(page_of: Make, users: PerDagManager, hourly: str) -> None:
    page, token = page_of(whole(hourly)), users.token(f"editor-of-{hourly}")
    for (method, path), (url, body) in requests(page, hourly).items():
        answer = page.get(url, token) if method == "GET" else page.post(url, body, token)
        policy = answer.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src '")
        assert "unsafe" not in policy
        if "report" not in path:
            assert "<style" not in answer.text
        assert " style=" not in answer.text.replace("rel=stylesheet", "")
        assert "onclick" not in answer.text


HOSTILE = "<script>alert(1)</script>\x1b[31m\u202e<img src=x onerror=alert(2)>"


def test_hostile_records_are_text(page_of: Make, users: PerDagManager, hourly: str) -> None:
    many = [(f"h{i}<b>", b"\xff<script>") for i in range(1000)]
    seen = letter(HOSTILE.encode() + b"\xfe\xff", headers=many, error=HOSTILE, rule=HOSTILE, pipeline=hourly, window="<i>")
    page = page_of(whole(hourly), LetterPage("ready", (seen,), found=1, read=1, held=1, taken_at=START, error=HOSTILE))
    token = users.token(f"editor-of-{hourly}")
    for path in (f"/pipelines/{hourly}/letters?topic=out.dead&rule=%3Cscript%3E", f"/pipelines/{hourly}/letters/0/1?topic=out.dead"):
        text = page.ready(path, token)
        assert "&lt;script&gt;alert(1)" in text
        for bad in ("<script>alert", "<img", "<b>", "<i>", "\x1b", "\u202e"):
            assert bad not in text, bad


def test_a_letter_that_is_not_read_yet_says_so_and_comes_without_a_request_that_waits(
    page_of: Make, users: PerDagManager, hourly: str
) -> None:
    page, token = page_of(whole(hourly)), users.token(f"viewer-of-{hourly}")
    path = f"/pipelines/{hourly}/letters?topic=out.dead"
    assert "data-pending" in page.get(path, token).text or "price" in page.get(path, token).text
    assert "price &lt; 0" in page.ready(path, token)


@pytest.mark.parametrize("topic", ["__consumer_offsets", "raw", "another.dead"])
def test_only_the_pipelines_own_dead_letter_topics_are_looked_into(page_of: Make, users: PerDagManager, hourly: str, topic: str) -> None:
    page, token = page_of(whole(hourly)), users.token(f"editor-of-{hourly}")
    assert page.get(f"/pipelines/{hourly}/letters?topic={topic}", token).status_code == 404
    assert page.get(f"/pipelines/{hourly}/letters/0/1?topic={topic}", token).status_code == 404
    answer = page.post(f"/pipelines/{hourly}/replay", {"topic": topic, "to": "raw"}, token)
    assert (answer.status_code, "knows no such letters" in answer.text) == (409, True)


def test_letters_go_only_where_the_pipelines_windows_are_planned(page_of: Make, users: PerDagManager, hourly: str) -> None:
    page, token = page_of(whole(hourly)), users.token(f"editor-of-{hourly}")
    assert page.post(f"/pipelines/{hourly}/replay", {"topic": "out.dead", "to": "payments"}, token).status_code == 409


def audit(dag_id: str, event: str) -> list[tuple[str, dict[str, Any]]]:
    from airflow.models.log import Log
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        rows = session.execute(select(Log.owner, Log.extra).where(Log.dag_id == dag_id, Log.event == event).order_by(Log.id))
        return [(owner, json.loads(extra)) for owner, extra in rows]


def test_a_replay_is_a_run_of_the_replay_dag_and_stands_in_the_audit_log(page_of: Make, users: PerDagManager, hourly: str) -> None:
    page, token = page_of(whole(hourly)), users.token(f"editor-of-{hourly}")
    answer = page.post(f"/pipelines/{hourly}/replay", {"topic": "out.dead", "to": "raw", "positions": ["0@1", "0@2"]}, token)
    assert "Replay has begun" in answer.text
    conf = next(run.conf for run in runs("factory_replay") if run.conf["pipeline"] == hourly)
    assert conf["positions"] == ["0@1", "0@2"]
    assert len([run for run in runs("factory_replay") if run.conf["pipeline"] == hourly]) == 1
    assert (conf["topic"], conf["to"], conf["pipeline"], conf["dry_run"]) == ("out.dead", "raw", hourly, False)
    who, what = audit(hourly, "factory_replay")[-1]
    assert who == f"editor-of-{hourly}"
    assert what["positions"] == ["0@1", "0@2"]
    mistyped = page.post(f"/pipelines/{hourly}/replay", {"topic": "out.dead", "to": "raw", "positions": ["0@x"]}, token)
    assert (mistyped.status_code, "expected partition@offset" in mistyped.text) == (409, True)


def test_what_would_never_begin_is_refused_with_the_reason(page_of: Make, users: PerDagManager, hourly: str) -> None:
    from airflow.models.dag import DagModel
    from airflow.utils.session import create_session

    page, token = page_of(whole(hourly)), users.token(f"editor-of-{hourly}")
    ids = (hourly, access.REPLAY_DAG, access.PREVIEW_DAG)

    def mark(what: str, value: bool) -> None:
        with create_session() as session:
            for dag_id in ids:
                setattr(session.get(DagModel, dag_id), what, value)

    for what, why in (("is_paused", "it is paused"), ("is_stale", "its file is gone"), ("has_import_errors", "cannot be imported")):
        mark(what, True)
        answers = [page.post(url, body, token) for (method, _), (url, body) in requests(page, hourly).items() if method == "POST"]
        mark(what, False)
        assert [(a.status_code, why in a.text) for a in answers] == [(409, True)] * 4
    assert not [run for dag_id in ids for run in runs(dag_id) if hourly in (run.dag_id, (run.conf or {}).get("pipeline"))]


def test_of_two_tabs_that_ask_for_the_same_replay_one_starts_it_and_the_other_says_which_run_does(
    page_of: Make, users: PerDagManager, hourly: str
) -> None:
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session

    page, token = page_of(whole(hourly)), users.token(f"editor-of-{hourly}")
    url, body = requests(page, hourly)["POST", "/pipelines/{dag_id}/replay"]
    assert page.post(url, body, token).status_code == 200
    (begun,) = (run for run in runs("factory_replay") if run.conf["pipeline"] == hourly)
    second = page.post(url, body, token)
    assert (second.status_code, f"is under way already, as run &#39;{begun.run_id}&#39;" in second.text) == (409, True)
    assert page.post(url, {**body, "positions": ["0@2"]}, token).status_code == 200  # another letter
    with create_session() as session:
        session.get(DagRun, begun.id).state = "success"
    assert page.post(url, body, token).status_code == 200


def test_a_window_names_the_pods_of_its_tasks(page_of: Make, users: PerDagManager, hourly: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.models.dagrun import DagRun
    from airflow.models.taskinstance import TaskInstance
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session
    from sqlalchemy import select

    page, token = page_of(figures(plan(hourly, 1), dead(hourly, 1))), users.token(f"viewer-of-{hourly}")
    chosen = [hour(1).start.isoformat()]
    page.post(f"/pipelines/{hourly}/backfill", {"starts": chosen, "expected": chosen}, users.token(f"editor-of-{hourly}"))
    with create_session() as session:
        (run,) = session.scalars(select(DagRun).where(DagRun.dag_id == hourly))
        assert session.scalars(select(TaskInstance.task_id).where(TaskInstance.run_id == run.run_id, TaskInstance.dag_id == hourly)).all()
        for key, value in (("pod_namespace", "factory"), ("pod_name", "enrich-x1")):
            XComModel.set(key=key, value=value, dag_id=hourly, task_id="enrich", run_id=run.run_id, session=session)
    url = requests(page, hourly)["GET", "/pipelines/{dag_id}/window"][0]
    text = page.get(url, token).text
    assert "<code>kubectl logs -n factory enrich-x1</code>" in text
    monkeypatch.setenv("AIRFLOW__FACTORY__POD_URL", "https://console/{namespace}/{pod}")
    assert 'href="https://console/factory/enrich-x1"' in page.get(url, token).text
    with create_session() as session:
        XComModel.set(key="pod_name", value="x; curl evil", dag_id=hourly, task_id="enrich", run_id=run.run_id, session=session)
    assert "kubectl" not in page.get(url, token).text


def test_a_preview_is_a_run_of_the_preview_dag_over_a_topic_of_the_pipeline(page_of: Make, users: PerDagManager, hourly: str) -> None:
    page, token = page_of(whole(hourly)), users.token(f"editor-of-{hourly}")
    url, body = f"/pipelines/{hourly}/preview", {"topic": "raw", "contract": "contracts/<b>events.yaml", "count": 50}
    assert "Preview has begun" in page.post(url, body, token).text
    conf = next(run.conf for run in runs("factory_preview") if run.conf["pipeline"] == hourly)
    assert conf == {"pipeline": hourly, "topic": "raw", "agent": "validate", "contract": "contracts/<b>events.yaml", "count": 50}
    refused = page.post(url, {**body, "topic": "payments"}, token)
    assert (refused.status_code, "no such topic" in refused.text) == (409, True)
    text = page.get(url, token).text
    assert "contracts/&lt;b&gt;events.yaml on raw" in text
    assert "needs the right to edit" in page.get(url, users.token(f"viewer-of-{hourly}")).text
    assert page.post(url, {**body, "stage": "enrich"}, token).status_code == 422  # either


def test_a_preview_of_a_stage_is_a_run_over_the_topic_that_it_reads_and_of_no_other_stage(
    page_of: Make, users: PerDagManager, hourly: str
) -> None:
    page, token = (
        page_of(figures(plan(hourly, 1), dead(hourly, 1), plan("another", 1), dead("another", 1))),
        users.token(f"editor-of-{hourly}"),
    )
    url = f"/pipelines/{hourly}/preview"
    assert "enrich on raw" in page.get(url, token).text
    assert "Preview has begun" in page.post(url, {"topic": "raw", "stage": "enrich", "count": 50}, token).text
    conf = next(run.conf for run in runs("factory_preview") if run.conf["pipeline"] == hourly)
    assert conf == {"pipeline": hourly, "topic": "raw", "stage": "enrich", "count": 50}
    for what in ({"topic": "raw", "stage": "<b>os:system"}, {"topic": "out", "stage": "enrich"}):
        assert page.post(url, what, token).status_code == 409, what
    assert audit(hourly, "factory_preview")[0][1]["stage"] == "enrich"


def runs(dag_id: str) -> list[Any]:
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        return list(session.scalars(select(DagRun).where(DagRun.dag_id == dag_id).order_by(DagRun.logical_date)))


def test_a_backfill_runs_exactly_what_was_shown(page_of: Make, users: PerDagManager, hourly: str) -> None:
    page, token = page_of(whole(hourly)), users.token(f"editor-of-{hourly}")
    chosen = [(START + n * HOUR).isoformat() for n in (3, 5)]
    shown = page.post(f"/pipelines/{hourly}/backfill-plan", {"starts": chosen}, token).text
    assert "would run 3 intervals" in shown
    assert shown.count("(between those you chose)") == 1
    expected = [(START + n * HOUR).isoformat() for n in (3, 4, 5)]
    changed = page.post(f"/pipelines/{hourly}/backfill", {"starts": chosen, "expected": chosen}, token)
    assert (changed.status_code, "has changed since it was shown" in changed.text) == (409, True)
    assert runs(hourly) == []
    begun = page.post(f"/pipelines/{hourly}/backfill", {"starts": chosen, "expected": expected}, token)
    assert "3 runs" in begun.text
    assert [(run.data_interval_start - START) // HOUR for run in runs(hourly)] == [3, 4, 5]
    again = page.post(f"/pipelines/{hourly}/backfill-plan", {"starts": chosen}, token)
    assert "Nothing would run" in again.text
    more = page.post(
        f"/pipelines/{hourly}/backfill", {"starts": [(START + 7 * HOUR).isoformat()], "expected": [(START + 7 * HOUR).isoformat()]}, token
    )
    assert (more.status_code, "Another backfill is running" in more.text) == (409, True)
    assert len(audit(hourly, "factory_backfill")) == 3


def test_a_backfill_over_all_of_time_is_refused_before_anybody_counts_its_intervals(
    page_of: Make, users: PerDagManager, hourly: str
) -> None:
    page, token = page_of(whole(hourly)), users.token(f"editor-of-{hourly}")
    answer = page.post(f"/pipelines/{hourly}/backfill-plan", {"starts": ["0001-01-01T00:00:00Z", "9999-12-31T00:00:00Z"]}, token)
    assert (answer.status_code, "more than 336 intervals" in answer.text) == (409, True)


def test_a_dag_that_is_gone_says_so(page_of: Make, users: PerDagManager, airflow_home: Any) -> None:
    page, token = page_of(whole("gone-dag")), users.token("editor-of-gone-dag")
    answer = page.post("/pipelines/gone-dag/backfill-plan", {"starts": [START.isoformat()]}, token)
    assert (answer.status_code, "Airflow refuses" in answer.text) == (409, True)
    assert "no schedule of intervals" in page.get("/pipelines/gone-dag", token).text


def test_a_report_is_a_page_whose_own_styles_alone_are_allowed(page_of: Make, users: PerDagManager, hourly: str) -> None:
    page, token = page_of(whole(hourly)), users.token(f"viewer-of-{hourly}")
    url, _ = requests(page, hourly)["GET", "/pipelines/{dag_id}/report"]
    answer = page.get(url, token)
    assert "price &lt; 0" in answer.text
    assert "style-src 'sha256-" in answer.headers["Content-Security-Policy"]
    assert page.get(url.replace("validate", "enrich"), token).status_code == 404


@contextmanager
def counted_statements() -> Iterator[list[str]]:
    from airflow import settings
    from sqlalchemy import event

    seen: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if not statement.startswith(("PRAGMA", "BEGIN")):
            seen.append(statement)

    event.listen(settings.engine, "before_cursor_execute", note)
    yield seen
    event.remove(settings.engine, "before_cursor_execute", note)


def test_pages_of_a_thousand_runs_are_fast_small_and_ask_neither_kafka_nor_much_of_the_database(
    page_of: Make, users: PerDagManager, hourly: str
) -> None:
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session

    end = (datetime.now(UTC) - START) // HOUR
    hours = range(end - 1000, end)
    records = [r for n in hours for r in (plan(hourly, n), dead(hourly, n), stage(hourly, n, "validate"), stage(hourly, n, "publish"))]
    with create_session() as session:
        for n in hours:
            run = DagRun(
                dag_id=hourly, run_id=f"r{n}", run_type="scheduled", state="success", logical_date=hour(n).start, run_after=hour(n).end
            )
            run.data_interval_start, run.data_interval_end = hour(n).start, hour(n).end
            session.add(run)
    many = LetterPage(
        "ready",
        tuple(letter(b'{"a": "%s"}' % (b"x" * 900), n) for n in range(200)),
        found=1_000_000,
        held=1_000_000,
        read=20_000,
        taken_at=START,
    )
    page, token = page_of(figures(*records), many), users.token(f"editor-of-{hourly}")
    key = hour(end - 5).key.replace("/", "%2F")
    base = f"/pipelines/{hourly}"
    paths = (
        "/",
        base,
        f"{base}?page=3",
        f"{base}?until={hour(end - 400).start:%FT%H:%M:%SZ}",
        f"{base}/window?key={key}",
        f"{base}/letters",
    )
    for path in paths:
        text = page.ready(path, token)
        page.snapshots.close()
        calls = page.calls
        times = []
        with counted_statements() as statements:
            for _ in range(3):
                began = time.process_time()  # the machine may be busy with other things
                text = page.get(path, token).text
                times.append(time.process_time() - began)
        assert len(statements) / 3 <= 8, statements
        assert len(text) < 200 * 1024, (path, len(text))
        assert min(times) < 0.3, (path, times)
        assert page.calls == calls


def test_with_kafka_down_a_page_answers_at_once_and_says_how_old_it_is(users: PerDagManager, airflow_home: Any) -> None:
    answers: list[Figures | Exception] = [figures(plan("p", 1), dead("p", 1))]
    waiting, answer = threading.Event(), threading.Event()

    def read() -> Figures:
        if isinstance(answers[-1], Exception):
            raise answers[-1]
        if len(answers) > 1:
            waiting.set()
            answer.wait(60)
        return answers[-1]

    snapshots = Snapshots(read, every=0.01)
    client = TestClient(create_app(snapshots, Letters(lambda q, s: LetterPage("pending"))))
    client.headers["Authorization"] = f"Bearer {users.token('viewer-of-p')}"
    wait_for(lambda: snapshots.current().taken_at, "figures")
    answers.append(UnavailableError("no broker answered at nowhere:9"))
    wait_for(lambda: snapshots.current().error, "the outage")
    answers.append(Figures())
    wait_for(waiting.is_set, "a question that nobody answers: what waited for it would not end")
    for path in ("/", "/pipelines/p", f"/pipelines/p/window?key={hour(1).key}", "/pipelines/p/letters"):
        times = []
        for _ in range(5):
            began = time.process_time()  # the machine may be busy with other things
            text = client.get(path).text
            times.append(time.process_time() - began)
        assert min(times) < 0.05, (path, times)
        assert "Kafka cannot be read since" in text
        assert "pipelines/p" in text
    answer.set()
    wait_for(lambda: "Kafka cannot" not in client.get("/").text, "the end of the outage")
    snapshots.close()


def test_where_kafka_was_never_heard_of_nothing_is_made_up(users: PerDagManager, hourly: str) -> None:
    page = OfHand(whole(hourly))
    asked = requests(page, hourly)
    page.close()
    answers: list[Exception] = []

    def read() -> Figures:
        if not answers:
            go.wait(30)
        raise answers[-1]

    go = threading.Event()
    snapshots = Snapshots(read, every=0.01)
    client = TestClient(create_app(snapshots, Letters(lambda q, s: LetterPage("pending"))), headers={"Sec-Fetch-Site": "same-origin"})
    client.headers.update({"Authorization": f"Bearer {users.token(f'editor-of-{hourly}')}", "X-Factory-Action": "1"})
    seen = [(url, path, body) for (method, path), (url, body) in asked.items() if "static" not in path and "backfill" not in path]
    for error in ("", "no broker answered at nowhere:9"):
        if error:
            answers.append(UnavailableError(error))
            go.set()
            wait_for(lambda: snapshots.current().error, "the outage")
        for url, path, body in seen:
            answer = client.get(url) if body is None else client.post(url, json=body)
            assert answer.status_code == (200 if body is None else 503), path
            assert "has not been read since" in answer.text if error or body else "for the first time" in answer.text, path
            assert error in answer.text
            if body is None:
                assert ("data-pending" in answer.text) == (not error)
                root = re.search(r'data-root="([^"]*)"', answer.text)
                assert root is not None
                assert (
                    urljoin(f"http://x/factory{url.partition('?')[0]}", f"{root[1]}/static/factory.js")
                    == "http://x/factory/static/factory.js"
                )
    snapshots.close()


def test_an_old_link_leads_to_a_page_that_leads_on(page_of: Make, users: PerDagManager, hourly: str) -> None:
    page, token = page_of(whole(hourly)), users.token(f"viewer-of-{hourly}")
    headers = {"Authorization": f"Bearer {token}", "Accept": "text/html,*/*"}
    for path in (f"/pipelines/{hourly}/letters?topic=gone.dead", f"/pipelines/{hourly}/report?key=x&stage=y", "/nothing"):
        answer = page.client.get(path, headers=headers)
        assert (answer.status_code, "Not found" in answer.text, ">Factory</a>" in answer.text) == (404, True, True), path
    assert page.client.get("/nothing").json() == {"detail": "Not Found"}


@pytest.mark.parametrize(
    ("shown", "said"), [(Live((live(),)), "factory.enrich.raw"), (Live((), "expected READ on topic 'x'"), "expected READ")]
)
def test_live_agents_are_linked_where_there_is_something_to_say(page_of: Make, users: PerDagManager, shown: Live, said: str) -> None:
    page, token = page_of(Figures(live=shown)), users.token("viewer-of-x")
    assert 'href="./live"' in page.get("/", token).text
    assert said in page.get("/live", token).text
    assert 'href="./live"' not in page_of(Figures()).get("/", token).text
    unknown = page.get("/live/group?name=<b>x", token)
    assert (unknown.status_code, "<b>x" in unknown.text) == (404, False)


def test_names_of_pipelines_are_text(users: PerDagManager, airflow_home: Any) -> None:
    name = "<script>alert(1)</script>"
    snapshots = Snapshots(lambda: Figures((WindowStatus(name, "<b>", "planned"),), {(name, "<b>"): Details()}), every=0.01)
    wait_for(lambda: snapshots.current().taken_at, "figures")
    answer = TestClient(create_app(snapshots)).get("/", headers={"Authorization": f"Bearer {users.token('viewer-of-' + name)}"})
    assert "&lt;script&gt;alert(1)" in answer.text
    assert "<script>alert" not in answer.text
    assert "<b>&" not in answer.text
    snapshots.close()


def test_the_guard_is_airflows_own() -> None:
    assert "airflow.api_fastapi" in access.guard().__module__


@pytest.mark.parametrize(
    "key", ["0001-01-01T00:00:00+05:00/x", "9999-12-31T23:59:59.999999Z/9999-12-31", "/", "x/y", "\u202e", "", "n" * 500]
)
def test_a_window_that_cannot_be_is_not_found(page_of: Make, users: PerDagManager, hourly: str, key: str) -> None:
    page, token = page_of(whole(hourly)), users.token(f"viewer-of-{hourly}")
    answer = page.client.get(f"/pipelines/{hourly}/window", params={"key": key}, headers={"Authorization": f"Bearer {token}"})
    assert (answer.status_code, "knows no window" in answer.text) == (404, True)


@pytest.mark.parametrize("until", ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "0001-01-01T00:00:00%2B23:00"])
def test_a_calendar_of_any_time_is_shown_or_refused(page_of: Make, users: PerDagManager, hourly: str, until: str) -> None:
    page, token = page_of(whole(hourly)), users.token(f"viewer-of-{hourly}")
    assert page.get(f"/pipelines/{hourly}?until={until}", token).status_code in (200, 422)


def test_a_tasks_tab_shows_its_stage_only(page_of: Make, users: PerDagManager, hourly: str) -> None:
    records = [stage(hourly, 1, "validate", counts=Counts(consumed=4, forwarded=4)), stage(hourly, 1, "publish", counts=Counts(consumed=4))]
    page = page_of(figures(*(msgspec.structs.replace(r, window="by_hand") for r in (plan(hourly, 1), *records))))
    viewer = users.token(f"viewer-of-{hourly}")

    def shown(task: str) -> str:
        return page.get(f"/pipelines/{hourly}/runs/by_hand?task={task}", viewer).text

    assert '<section class="stage"' in shown("publish")
    assert "validate" not in shown("publish")
    assert "no stage of this window" in shown("<b>other")
    assert "<b>other" not in shown("<b>other")
    assert all(name in shown("") for name in ("validate", "publish"))
