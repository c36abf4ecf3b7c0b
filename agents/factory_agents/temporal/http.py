"""Runs over HTTP: ``POST /runs`` starts a pipeline over a window, ``GET /runs/{id}`` says how far it is; an ASGI app."""

from __future__ import annotations

import asyncio
import hmac
import logging
import signal
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import quote

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from temporalio.client import Client

from factory_agents.errors import ConfigurationError, FactoryError, UnavailableError
from factory_agents.protocol import Interval
from factory_agents.telemetry import fields
from factory_agents.telemetry.serving import parse_listen
from factory_agents.telemetry.trace_context import TRACEPARENT
from factory_agents.temporal.client import NotFoundError, RefusedError, look, start
from factory_agents.temporal.protocol import PipelineRequest, PipelineSpec
from factory_agents.temporal.traces import within
from factory_agents.text import one_of

__all__ = ["RunRequest", "make_app", "serve"]

log = logging.getLogger(__name__)

_MOST_BYTES = 64 * 1024
_BODY_SECONDS = 5.0
_AT_ONCE = 100
_STOP_SECONDS = 10

_Handler = Callable[[Request], Awaitable[Response]]


class RunRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a client asks for: a pipeline by its name, and a window: its interval, or a name for all that came since the last window.

    ``again``: start another workflow where this window's failed. ``redo``: do the window again, finished or not.
    """

    pipeline: str
    window: Interval | None = None
    key: str = ""
    again: bool = False
    redo: bool = False


class _Refused(Exception):  # noqa: N818  # it is an answer
    def __init__(self, status: int, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers


def make_app(client: Client, pipelines: Mapping[str, PipelineSpec], *, token: str) -> Starlette:
    """An app that starts these pipelines, by their names, for whoever has the token; ``GET /healthz`` needs none.

    A client names a pipeline and a window, never an agent: what runs is in the files that the server was given.
    """
    if not token:
        raise ConfigurationError("expected a token that clients must send: an app without one would start runs for anybody")

    async def post_run(request: Request) -> Response:
        _check(request, token)
        asked = _read(await _body(request))
        spec = pipelines.get(asked.pipeline)
        if spec is None:
            raise _Refused(404, f"unknown pipeline {asked.pipeline!r}{one_of(asked.pipeline, sorted(pipelines))}")
        wanted = PipelineRequest(spec, asked.window, asked.key, "redo" if asked.redo else "reuse")
        with within(client, request.headers.get(TRACEPARENT)):
            handle = await start(client, wanted, again=asked.again)
        log.info("started", extra=fields(workflow=handle.id))
        return _answer(202, {"id": handle.id}, Location=f"/runs/{quote(handle.id)}")

    async def get_run(request: Request) -> Response:
        _check(request, token)
        id_ = request.path_params["id"]
        if id_.partition("/")[0] not in pipelines:
            raise _Refused(404, f"there is no run {id_!r} of these pipelines: {', '.join(sorted(pipelines))}")
        return _answer(200, await look(client, id_))

    async def healthy(_: Request) -> Response:
        return Response("ok\n", media_type="text/plain")

    return Starlette(
        routes=[
            Route("/runs", _explained(post_run), methods=["POST"]),
            Route("/runs/{id:path}", _explained(get_run)),
            Route("/healthz", healthy),
        ]
    )


def _explained(handler: _Handler) -> _Handler:
    """What is wrong as a status and one line."""

    async def explained(request: Request) -> Response:
        try:
            return await handler(request)
        except _Refused as refused:
            return _answer(refused.status, {"error": refused.message}, **refused.headers)
        except RefusedError as error:
            return _answer(503, {"error": str(error)}, **{"Retry-After": "60"})
        except NotFoundError as error:
            return _answer(404, {"error": str(error)})
        except ConfigurationError as error:
            return _answer(400, {"error": str(error)})
        except UnavailableError as error:
            return _answer(503, {"error": str(error)}, **{"Retry-After": "5"})
        except ClientDisconnect:
            return Response(status_code=400)
        except FactoryError as error:
            return _answer(500, {"error": str(error)})

    return explained


def _answer(status: int, what: Any, **headers: str) -> Response:
    return Response(msgspec.json.encode(what), status, headers, "application/json")


def _check(request: Request, token: str) -> None:
    kind, _, given = request.headers.get("authorization", "").partition(" ")
    if kind.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), token.encode()):
        raise _Refused(401, "expected the header Authorization: Bearer, with this server's token", **{"WWW-Authenticate": "Bearer"})


async def _body(request: Request) -> bytes:
    """What came, of bounded length and within bounded time."""
    found = bytearray()
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for part in request.stream():
                found += part
                if len(found) > _MOST_BYTES:
                    raise _Refused(413, f"expected a request of at most {_MOST_BYTES:,} bytes", Connection="close")
    except TimeoutError:
        raise _Refused(408, f"the request did not come within {_BODY_SECONDS:g} s", Connection="close") from None
    return bytes(found)


def _read(body: bytes) -> RunRequest:
    try:
        return msgspec.json.decode(body, type=RunRequest)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise _Refused(400, f'expected {{"pipeline": "…", "window": {{"start": "…", "end": "…"}}}}, or a "key": {error}') from None


async def serve(app: Starlette, listen: str, *, certificate: str = "", key: str = "") -> None:
    """Serve the app until SIGTERM or SIGINT; requests that are under way are answered first. With a certificate (PEM), over TLS alone.

    Raises ConfigurationError where it can't listen, or the certificate can't be used.
    """
    host, port = parse_listen(listen, "--listen")
    options: dict[str, Any] = {"ssl_certfile": certificate, "ssl_keyfile": key or None} if certificate else {}
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        limit_concurrency=_AT_ONCE,
        timeout_graceful_shutdown=_STOP_SECONDS,
        **options,
    )
    try:
        config.load()
        bound = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:  # ssl.SSLError is one
        raise ConfigurationError(f"cannot serve on {listen}: {error.strerror or error}") from error
    for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn handles them, and raises them again when it is done
        asyncio.get_running_loop().add_signal_handler(number, int)
    with bound:
        log.info("serving", extra=fields(port=bound.getsockname()[1], host=host, tls=bool(certificate)))
        await uvicorn.Server(config).serve(sockets=[bound])
