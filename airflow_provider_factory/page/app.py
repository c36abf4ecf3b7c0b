"""The page's web app, mounted by Airflow below ``/factory``: server-rendered, from the snapshot alone, closed to whoever may not read."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import FileResponse, HTMLResponse
from jinja2 import Environment, FileSystemLoader

from airflow_provider_factory.page import access, views
from airflow_provider_factory.page.snapshot import Snapshots

__all__ = ["create_app"]

_HERE = Path(__file__).parent
_STATIC = {"factory.css": "text/css", "factory.js": "text/javascript"}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'self'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def create_app(snapshots: Snapshots | None = None) -> FastAPI:
    """The app. Reading the ledger begins with the first request, not when a process imports this."""
    figures = snapshots if snapshots is not None else Snapshots()
    pages = Environment(loader=FileSystemLoader(_HERE / "templates"), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    readable: Any = Depends(access.readable_dags())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        figures.close()

    app = FastAPI(
        title="Factory", dependencies=[Depends(access.guard())], docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan
    )

    @app.middleware("http")
    async def harden(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await call_next(request)
        response.headers.update(_HEADERS)
        return response

    def render(name: str, **values: Any) -> HTMLResponse:
        return HTMLResponse(pages.get_template(name).render(**values))

    @app.get("/")
    def overview(dags: set[str] = readable) -> HTMLResponse:
        now = figures.current()
        return render("overview.html.jinja", root=".", pipelines=views.overview(now, dags), fresh=views.freshness(now, views.now()))

    @app.get("/pipelines/{dag_id}")
    def pipeline(dag_id: str, dags: set[str] = readable) -> HTMLResponse:
        if dag_id not in dags:
            raise HTTPException(403, "you may not read this DAG, or there is none of this name")
        now = figures.current()
        return render("pipeline.html.jinja", root="..", pipeline=views.pipeline(now, dag_id), fresh=views.freshness(now, views.now()))

    @app.get("/static/{name}")
    def static(name: str) -> FileResponse:
        if name not in _STATIC:
            raise HTTPException(404, "no such file")
        return FileResponse(_HERE / "static" / name, media_type=_STATIC[name])

    return app
