"""The page's web app, mounted by Airflow below ``/factory``: server-rendered, from what was read before, closed to whoever may not read."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Self

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse
from jinja2 import Environment, FileSystemLoader
from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.exceptions import HTTPException as AnyHTTPException

from airflow_provider_factory.links import pod_url, topic_url
from airflow_provider_factory.page import access, actions, runs
from airflow_provider_factory.page.letters import LetterQuery, Letters
from airflow_provider_factory.page.snapshot import Live, Snapshot, Snapshots
from airflow_provider_factory.page.views import calendar, letters, live, overview, preview, run
from airflow_provider_factory.page.views.common import freshness, now
from airflow_provider_factory.version_compat import ADDRESS_FOLLOWS_FRAMES
from factory_agents.errors import ConfigurationError
from factory_agents.reports import html_page
from factory_agents.text import count, printable

__all__ = ["create_app"]

_HERE = Path(__file__).parent
_STATIC = {"factory.css": "text/css", "factory.js": "text/javascript"}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src {style}; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'self'; base-uri 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY.format(style="'self'"),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}

_NO_NUL = r"^[^\x00]*$"  # PostgreSQL takes none in a text
_Dag = Annotated[str, InPath(max_length=250, pattern=_NO_NUL)]
_Text = Annotated[str, Query(max_length=500, pattern=_NO_NUL)]
_Number = Annotated[int, InPath(ge=0, lt=2**63)]


_MOST_FAULTS = 20


def _text(most: int) -> Any:
    return Field(max_length=most, pattern=_NO_NUL)


class BackfillBody(BaseModel):
    """The starts of the chosen intervals; ``expected``: of those that were shown as what would run."""

    model_config = ConfigDict(extra="forbid")

    starts: list[datetime] = Field(min_length=1, max_length=actions.MOST_RUNS)
    expected: list[datetime] = Field(default=[], max_length=actions.MOST_RUNS * 4)


class ReplayBody(BaseModel):
    """Which letters: those at ``positions``, or all that fit the rest."""

    model_config = ConfigDict(extra="forbid")

    topic: Annotated[str, _text(249)]
    to: Annotated[str, _text(249)]
    positions: list[Annotated[str, _text(100)]] = Field(default=[], max_length=200)
    window: Annotated[str, _text(500)] = ""
    stage: Annotated[str, _text(250)] = ""
    rule: Annotated[str, _text(500)] = ""
    dry_run: bool = False


class PreviewBody(BaseModel):
    """A contract or a stage, and on how many of a topic's newest records it is tried."""

    model_config = ConfigDict(extra="forbid")

    topic: Annotated[str, _text(249)]
    contract: Annotated[str, _text(500)] = ""
    stage: Annotated[str, _text(250)] = ""
    count: int = Field(default=1000, ge=1, le=100_000)

    @model_validator(mode="after")
    def one_of_both(self) -> Self:
        """Either is tried, not both."""
        if bool(self.contract) == bool(self.stage):
            raise ValueError("expected a contract or a stage")
        return self


def create_app(snapshots: Snapshots | None = None, letters_read: Letters | None = None) -> FastAPI:
    """The app. Reading the ledger begins with the first request, not when a process imports this."""
    page = _Page(snapshots or Snapshots(), letters_read or Letters())
    readable: Any = Depends(access.readable_dags())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        page.close()

    app = FastAPI(
        title="Factory", dependencies=[Depends(access.guard())], docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan
    )

    @app.middleware("http")
    async def harden(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await call_next(request)
        for name, value in _HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    _answer_errors(app, page)

    @app.get("/")
    def first(dags: set[str] = readable) -> HTMLResponse:
        shot = page.shot()
        return page.render("overview", ".", shot, pipelines=overview.overview(shot, dags), live=shot.figures.live != Live())

    @app.get("/static/{name}")
    def static(name: str) -> FileResponse:
        if name not in _STATIC:
            raise HTTPException(404, "no such file")
        return FileResponse(_HERE / "static" / name, media_type=_STATIC[name])

    app.include_router(_live(page), prefix="/live", dependencies=[Depends(access.cluster_reader())])
    for views in (_windows(page), _letters(page)):
        app.include_router(views, prefix="/pipelines/{dag_id}", dependencies=[Depends(access.reader())])
    for does in (_actions(page), _preview(page)):
        app.include_router(does, prefix="/pipelines/{dag_id}")
    return app


def _answer_errors(app: FastAPI, page: _Page) -> None:
    @app.exception_handler(RequestValidationError)
    async def refuse(_: Request, error: RequestValidationError) -> Response:
        """What is wrong and where, without what came: not every text of a request can be sent back."""
        faults = [{"loc": fault["loc"], "msg": fault["msg"]} for fault in error.errors()[:_MOST_FAULTS]]
        return Response(json.dumps({"detail": faults}), 422, media_type="application/json")

    @app.exception_handler(_NotReadYetError)
    def wait(request: Request, error: _NotReadYetError) -> Response:
        """The ledger is read with the first look: what is asked for before is shown as soon as it is known, and nothing is made up."""
        if request.method == "GET":
            return page.render("waiting", _root(request), error.shot)
        return page.answer(503, refused=f"the ledger has not been read since this API server began: {error.shot.error or 'ask again'}")

    @app.exception_handler(AnyHTTPException)
    def tell(request: Request, error: AnyHTTPException) -> Response:
        """A person who follows an old link gets a page that leads on; programs get JSON."""
        if error.status_code != 404 or "text/html" not in request.headers.get("Accept", ""):
            return Response(json.dumps({"detail": error.detail}), error.status_code, headers=error.headers, media_type="application/json")
        return page.render("gone", _root(request), None, 404, said=error.detail)


class _NotReadYetError(Exception):
    """No figures have been read since the process began, so nothing can be said of what there is and what there isn't."""

    def __init__(self, shot: Snapshot) -> None:
        super().__init__(shot.error)
        self.shot = shot


def _root(request: Request) -> str:
    """The way from a page's address to the app's own."""
    inner = request.url.path.removeprefix(request.scope.get("root_path", ""))
    return "/".join([".."] * (inner.count("/") - 1)) or "."


class _Page:
    """What the routes share: the figures, the letters, the templates."""

    def __init__(self, snapshots: Snapshots, letters_read: Letters) -> None:
        self.snapshots, self.letters = snapshots, letters_read
        self._templates = Environment(
            loader=FileSystemLoader(_HERE / "templates"),
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
            finalize=_shown,
        )
        self._templates.globals |= {"mirrored": ADDRESS_FOLLOWS_FRAMES, "count": count}

    def close(self) -> None:
        self.snapshots.close()
        self.letters.close()

    def shot(self) -> Snapshot:
        """The newest figures; raises _NotReadYetError where there are none at all."""
        shot = self.snapshots.current()
        if shot.taken_at is None:
            raise _NotReadYetError(shot)
        return shot

    def render(self, template: str, root: str, shot: Snapshot | None, status: int = 200, **values: Any) -> HTMLResponse:
        fresh = freshness(shot, now()) if shot is not None else None
        text = self._templates.get_template(f"{template}.html.jinja").render(root=root, fresh=fresh, **values)
        return HTMLResponse(text, status)

    def answer(self, status: int = 200, **values: Any) -> HTMLResponse:
        return HTMLResponse(self._templates.get_template("answer.html.jinja").render(**values), status)


def _shown(value: Any) -> Any:
    """Texts without what moves a cursor or turns the direction of writing: whatever a record holds is inert."""
    return printable(value, lines=True) if type(value) is str else value


def _windows(page: _Page) -> APIRouter:
    router = APIRouter()
    may_act: Any = Depends(access.may_act())

    @router.get("")
    def pipeline(
        dag_id: _Dag,
        until: Annotated[datetime | None, Query()] = None,
        number: Annotated[int, Query(alias="page", ge=0, le=10_000)] = 0,
        editor: bool = may_act,
    ) -> HTMLResponse:
        shot, at = page.shot(), now()
        if not shot.of(dag_id):
            return page.render("unknown", "..", shot, name=dag_id)
        first, last = calendar.span_of(shot, dag_id, _utc(until), at)
        with runs.session() as opened:
            found = runs.runs_between(opened, dag_id, first, last)
            schedule = runs.schedule_in(opened, dag_id, calendar.gaps(shot, dag_id, first, last, found, at))
        days = calendar.calendar(shot, dag_id, first, last, found, schedule, at)
        shown = overview.pipeline(shot, dag_id, number)
        topics = shot.letter_topics(dag_id)
        return page.render("pipeline", "..", shot, pipeline=shown, calendar=days, editor=editor, letter_topics=topics, page=number)

    @router.get("/window")
    def window(dag_id: _Dag, key: _Text) -> HTMLResponse:
        return _window(page, dag_id, key, "../..")

    @router.get("/runs/{run_id}")
    def of_run(dag_id: _Dag, run_id: Annotated[str, InPath(max_length=250, pattern=_NO_NUL)], task: _Text = "") -> HTMLResponse:
        shot = page.shot()
        with runs.session() as opened:
            found = runs.run_of(opened, dag_id, run_id)
        keys = [w.window for w in shot.of(dag_id) if _is_of(w.window, found, run_id)]
        return _window(page, dag_id, keys[0] if keys else run_id, "../../..", run_id, task)

    @router.get("/report")
    def report(dag_id: _Dag, key: _Text, stage: _Text) -> HTMLResponse:
        reports = run.report_of(page.shot(), dag_id, stage)
        shown = next((r for r in reports if r.window == key), None)
        if shown is None:
            raise HTTPException(404, "the ledger holds no validation report of this stage over this window")
        text = html_page(shown, reports)
        return HTMLResponse(text, headers={"Content-Security-Policy": _POLICY.format(style=_style_hashes(text))})

    return router


def _letters(page: _Page) -> APIRouter:
    router = APIRouter()
    may_act: Any = Depends(access.may_act())

    @router.get("/letters")
    def letter_list(
        dag_id: _Dag,
        topic: _Text = "",
        window: _Text = "",
        stage: _Text = "",
        rule: _Text = "",
        text: _Text = "",
        editor: bool = may_act,
    ) -> HTMLResponse:
        shot = page.shot()
        topics = shot.letter_topics(dag_id)
        query = LetterQuery(topic or next(iter(topics), ""), dag_id, window, stage, rule, text)
        if query.topic and query.topic not in topics:
            raise HTTPException(404, "this pipeline has written no dead letters to such a topic")
        shown = letters.letter_list(query, page.letters.page(query, shot)) if query.topic else None
        targets = actions.replay_targets(shot, dag_id, query.topic)
        return page.render("letters", "../..", shot, name=dag_id, query=query, topics=topics, letters=shown, editor=editor, targets=targets)

    @router.get("/letters/{partition}/{offset}")
    def letter(dag_id: _Dag, partition: _Number, offset: _Number, topic: _Text, editor: bool = may_act) -> HTMLResponse:
        shot = page.shot()
        if topic not in shot.letter_topics(dag_id):
            raise HTTPException(404, "this pipeline has written no dead letters to such a topic")
        found = page.letters.page(LetterQuery(topic, dag_id, position=f"{partition}@{offset}"), shot)
        shown = letters.letter(found.letters[0]) if found.letters else None
        targets = actions.replay_targets(shot, dag_id, topic)
        values: dict[str, Any] = {
            "name": dag_id,
            "topic": topic,
            "position": f"{partition}@{offset}",
            "found": found,
            "letter": shown,
            "targets": targets,
        }
        return page.render("letter", "../../../..", shot, editor=editor, **values)

    return router


def _live(page: _Page) -> APIRouter:
    router = APIRouter()

    @router.get("")
    def groups() -> HTMLResponse:
        shot = page.shot()
        shown, more = live.live_groups(shot)
        return page.render("live", ".", shot, live=shot.figures.live, groups=shown, more=more)

    @router.get("/group")
    def group(name: _Text) -> HTMLResponse:
        shot = page.shot()
        shown = live.live_group(shot, name, now())
        href = topic_url(shown.row.topic) if shown else ""
        return page.render("live_group", "..", shot, 200 if shown else 404, name=name, group=shown, topic_href=href)

    return router


def _window(page: _Page, dag_id: str, key: str, root: str, run_id: str = "", task: str = "") -> HTMLResponse:
    shot = page.shot()
    start = run.interval_start(key)
    with runs.session() as opened:
        found: Sequence[runs.Run] = []
        if run_id or start is None:
            found = [of for of in [runs.run_of(opened, dag_id, run_id or key)] if of is not None]
        else:
            found = runs.runs_at(opened, dag_id, start)
        tasks = runs.tasks_of(opened, dag_id, found[0].run_id) if found else []
        pods = runs.pods_of(opened, dag_id, found[0].run_id) if found else {}
    topics = (
        {t for w in shot.of(dag_id) for t in w.topic.split(", ")}
        | {m.topic for r in shot.figures.details[dag_id, key].stages if r.result and (m := r.result.manifest)}
        if (dag_id, key) in shot.figures.details
        else set()
    )
    links, shown_pods = {t: topic_url(t) for t in topics}, {task: run.Pod(*pod, pod_url(*pod)) for task, pod in pods.items()}
    shown = run.window(shot, dag_id, key, found[0] if found else None, tasks, links, shown_pods)
    return page.render("window", root, shot, 200 if shown or run_id else 404, window=shown, name=dag_id, key=key, task=task)


def _is_of(key: str, found: runs.Run | None, run_id: str) -> bool:
    return key == run_id or (found is not None and found.start is not None and run.interval_start(key) == _utc(found.start))


def _utc(moment: datetime | None) -> datetime | None:
    if moment is None:
        return None
    try:
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except OverflowError:
        raise HTTPException(422, "expected a time from year 1 to 9999 in UTC") from None


def _style_hashes(text: str) -> str:
    """A document's own styles, as a policy allows them: by their content."""
    styles = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()}'" for style in styles) or "'none'"


def _actions(page: _Page) -> APIRouter:
    router = APIRouter()
    user_name: Any = Depends(access.user_name())

    @router.post("/backfill-plan", dependencies=access.action("factory_backfill_plan", BackfillBody))
    def backfill_plan(dag_id: _Dag, body: BackfillBody) -> HTMLResponse:
        try:
            planned = actions.planned_runs(dag_id, _all_utc(body.starts))
        except ConfigurationError as error:
            return page.answer(409, refused=str(error))
        return page.answer(planned=planned, chosen=[_iso(start) for start in body.starts], iso=_iso)

    @router.post("/backfill", dependencies=access.action("factory_backfill", BackfillBody))
    def backfill(dag_id: _Dag, body: BackfillBody, user: str = user_name) -> HTMLResponse:
        try:
            number = actions.backfill(dag_id, _all_utc(body.starts), _all_utc(body.expected), user)
        except ConfigurationError as error:
            return page.answer(409, refused=str(error))
        return page.answer(backfill=number, name=dag_id, runs=len(body.expected))

    @router.post("/replay", dependencies=access.action("factory_replay", ReplayBody, (access.REPLAY_DAG, "POST")))
    def replay(dag_id: _Dag, body: ReplayBody, user: str = user_name) -> HTMLResponse:
        if body.to not in actions.replay_targets(page.shot(), dag_id, body.topic):
            return page.answer(409, refused="the ledger knows no such letters of this pipeline, or no such topic that its windows read")
        try:
            conf = actions.replay_conf(
                dag_id,
                body.topic,
                body.to,
                positions=body.positions,
                window=body.window,
                stage=body.stage,
                rule=body.rule,
                dry_run=body.dry_run,
            )
            started = actions.replay(conf, user)
        except ConfigurationError as error:
            return page.answer(409, refused=str(error))
        return page.answer(replay=started, replay_dag=access.REPLAY_DAG, dry_run=body.dry_run)

    return router


def _preview(page: _Page) -> APIRouter:
    router = APIRouter()
    may_act: Any = Depends(access.may_act())
    user_name: Any = Depends(access.user_name())

    @router.get("/preview", dependencies=[Depends(access.reader())])
    def previews(dag_id: _Dag, editor: bool = may_act) -> HTMLResponse:
        shot = page.shot()
        topics = actions.preview_topics(shot, dag_id)
        with runs.session() as opened:
            found = preview.previews(runs.preview_runs(opened, access.PREVIEW_DAG, dag_id), topics)
        stages = actions.preview_stages(shot, dag_id)
        values: dict[str, Any] = {"name": dag_id, "previews": found, "topics": topics, "stages": stages, "dag": access.PREVIEW_DAG}
        return page.render("preview", "../..", shot, editor=editor, **values)

    @router.post("/preview", dependencies=access.action("factory_preview", PreviewBody, (access.PREVIEW_DAG, "POST")))
    def start_preview(dag_id: _Dag, body: PreviewBody, user: str = user_name) -> HTMLResponse:
        if body.topic not in actions.preview_topics(shot := page.shot(), dag_id):
            return page.answer(409, refused="the ledger knows no such topic that this pipeline reads or writes")
        if body.stage and (body.stage, body.topic) not in actions.preview_stages(shot, dag_id):
            return page.answer(409, refused="the ledger knows no such stage of this pipeline that reads this topic")
        try:
            started = actions.preview(dag_id, body.topic, body.count, user, contract=body.contract, stage=body.stage)
        except ConfigurationError as error:
            return page.answer(409, refused=str(error))
        return page.answer(preview=started, preview_dag=access.PREVIEW_DAG)

    return router


def _all_utc(moments: Sequence[datetime]) -> list[datetime]:
    return [moment for given in moments if (moment := _utc(given)) is not None]


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
