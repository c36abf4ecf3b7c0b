"""The program of the Snowflake emulator: fakesnow, with the answers completed that Snowflake's client of today asks for.

It runs in the emulator's own environment, which has nothing of ours.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import sys
import threading
import time
from typing import Any

import duckdb
import uvicorn
from fakesnow.cursor import FakeSnowflakeCursor
from snowflake.connector.errors import ProgrammingError  # noqa: TID253
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

server = importlib.import_module("fakesnow.server")  # the package has a function of this name
_LOCKED = 625
"""Snowflake's number for a statement that waited too long for another transaction."""
_IDLE = 1.0
_KEPT = 1000
_ANSWERS: dict[str, Response] = {}
"""The last answers, by their requests."""


async def login(request: Request) -> Response:
    """A session, with the tokens and the id that fakesnow leaves out."""
    answer: Response = await server.login_request(request)
    body = json.loads(bytes(answer.body))
    body["data"] |= {"masterToken": body["data"]["token"], "sessionId": 1}
    return JSONResponse(body, answer.status_code)


async def query(request: Request) -> Response:
    """A statement: one that is sent again, since its answer was lost, isn't run again.

    What fakesnow answers to PUT lacks a region, and says that nothing is overwritten whatever was asked for.
    """
    number = request.query_params.get("requestId", "")
    if number in _ANSWERS:
        return _ANSWERS[number]
    answer: Response = await server.query_request(request)
    if answer.status_code >= 500:
        return answer  # no answer: the client asks again
    _ANSWERS[number] = answer = _completed(answer)
    while len(_ANSWERS) > _KEPT:
        _ANSWERS.pop(next(iter(_ANSWERS)))
    return answer


def _completed(answer: Response) -> Response:
    body = json.loads(bytes(answer.body))
    if "stageInfo" not in (body.get("data") or {}):
        return answer
    body["data"]["stageInfo"]["region"] = ""
    body["data"]["overwrite"] = True
    return JSONResponse(body, answer.status_code)


class Transactions:
    """What Snowflake does with transactions, and DuckDB doesn't.

    DuckDB doesn't wait for another transaction, it refuses at once: that is Snowflake's error for having waited too long. Snowflake
    aborts a transaction that others wait for once it has been idle for five minutes; here it is a second.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: dict[Any, float] = {}
        """When a session's last statement ended; infinite while one runs."""

    def explained(self, execute: Any) -> Any:
        """``execute``, a method of fakesnow's cursor, with this behaviour."""

        def execute_explained(cursor: Any, command: str, *args: Any, **kwargs: Any) -> Any:
            session = cursor._conn
            with self._lock:
                self._last[session] = math.inf
            try:
                return execute(cursor, command.replace("CURRENT_TRANSACTION()", "CAST(TXID_CURRENT() AS VARCHAR)"), *args, **kwargs)
            except duckdb.TransactionException as error:
                self._abort_idle()
                raise ProgrammingError(msg=f"the statement was aborted, it met another transaction: {error}", errno=_LOCKED) from error
            finally:
                self._last[session] = time.monotonic()

        return execute_explained

    def _abort_idle(self) -> None:
        with self._lock:
            for session, last in list(self._last.items()):
                if time.monotonic() - last > _IDLE:
                    with contextlib.suppress(duckdb.Error):  # it has none, or its last result is being read
                        session._duck_conn.rollback()


def main(host: str, port: int) -> None:
    """Serve until a signal ends it."""
    FakeSnowflakeCursor.execute = Transactions().explained(FakeSnowflakeCursor.execute)
    ours = {"/session/v1/login-request": login, "/queries/v1/query-request": query}
    theirs = [route for route in server.app.router.routes if route.path not in ours]
    server.app.router.routes[:] = [Route(path, endpoint, methods=["POST"]) for path, endpoint in ours.items()] + theirs
    uvicorn.run(server.app, host=host, port=port, access_log=False)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
