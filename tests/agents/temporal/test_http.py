"""Runs over HTTP: each window is started once, only for whoever has the token, and what is wrong is one line."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from factory_agents.errors import ConfigurationError
from factory_agents.temporal import http
from tests.agents.temporal.test_commands import written
from tests.support.certificates import certificate
from tests.support.commands import Live
from tests.support.runs import Runs, events
from tests.support.temporal import Pipelines
from tests.support.waiting import wait_for

TOKEN = "t0ken"
NOBODY: Any = None


@dataclass
class Answer:
    status: int
    headers: Any
    body: bytes

    @property
    def data(self) -> Any:
        return json.loads(self.body)


class Server:
    """``factory temporal serve`` as a process."""

    def __init__(self, pipelines: Pipelines, *arguments: str, context: ssl.SSLContext | None = None, **variables: str) -> None:
        variables = {"FACTORY_HTTP_TOKEN": TOKEN} | variables
        self.live: Live = pipelines.factory.start("temporal", "serve", "p.yaml", "--listen", "127.0.0.1:0", *arguments, **variables)
        self.live.wait_logged("serving")
        said = next(json.loads(line) for line in self.live.lines if '"serving"' in line)
        self.port = said["port"]
        self.context = context

    def ask(self, path: str, body: Any = None, *, token: str | None = TOKEN, method: str | None = None) -> Answer:
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        scheme, host = ("https", "localhost") if self.context else ("http", "127.0.0.1")
        request = urllib.request.Request(f"{scheme}://{host}:{self.port}{path}", data, method=method)
        if token is not None:
            request.add_header("Authorization", f"Bearer {token}")
        try:
            with urllib.request.urlopen(request, timeout=30, context=self.context) as answer:
                return Answer(answer.status, answer.headers, answer.read())
        except urllib.error.HTTPError as error:
            return Answer(error.code, error.headers, error.read())


def test_a_run_is_started_once_and_followed_to_its_end(pipelines: Pipelines, runs: Runs) -> None:
    raw, marked = runs.topic("raw"), runs.topic("marked")
    runs.produce(raw, events(100))
    written(pipelines, raw, marked)
    server = Server(pipelines)
    asked = {"pipeline": pipelines.prefix, "key": "w"}
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: server.ask("/runs", asked), range(8)))
    id_ = f"{pipelines.prefix}/w"
    assert {(a.status, a.data["id"], a.headers["Location"]) for a in answers} == {(202, id_, f"/runs/{id_}")}
    waiting = server.ask(f"/runs/{id_}").data  # no worker runs yet
    assert (waiting["status"], waiting.get("progress")) == ("running", None)
    with pipelines.served():
        wait_for(lambda: server.ask(f"/runs/{id_}").data["status"] == "completed", "the run to end")
    done = server.ask(f"/runs/{id_}").data
    assert [(s["stage"], s["counts"]["consumed"]) for s in done["result"]["stages"]] == [("mark", 100)]
    assert sum(e.HasField("workflow_execution_started_event_attributes") for e in pipelines.history(id_)) == 1
    assert server.ask("/runs", asked).status == 202  # it has run: nothing more is started
    assert server.ask(f"/runs/{id_}").data == done
    assert server.live.stop().code == 0


def test_a_run_that_failed_says_why_and_may_be_started_again(pipelines: Pipelines, runs: Runs) -> None:
    raw = runs.topic("raw")
    written(pipelines, raw, "no-such-topic")
    server = Server(pipelines)
    asked = {"pipeline": pipelines.prefix, "window": {"start": "2026-11-01T04:00:00Z", "end": "2026-11-01T05:00:00Z"}}
    id_ = server.ask("/runs", asked).data["id"]
    assert id_ == f"{pipelines.prefix}/2026-11-01T04:00:00.000Z/2026-11-01T05:00:00.000Z"
    with pipelines.served():
        wait_for(lambda: server.ask(f"/runs/{id_}").data["status"] == "failed", "the run to fail")
    failed = server.ask(f"/runs/{id_}").data
    assert "ConfigurationError" in failed["error"]
    assert "no-such-topic" in failed["error"]
    assert server.ask("/runs", asked).status == 202
    assert server.ask(f"/runs/{id_}").data["status"] == "failed"
    assert server.ask("/runs", {**asked, "again": True}).status == 202
    assert server.ask(f"/runs/{id_}").data["status"] == "running"


def test_who_is_refused_learns_why_and_nothing_starts(pipelines: Pipelines) -> None:
    written(pipelines, "raw", "marked")
    server = Server(pipelines)
    asked = {"pipeline": pipelines.prefix, "key": "w"}
    id_ = f"{pipelines.prefix}/w"
    for token in (None, "", "t0kem", TOKEN[:-1], "\u00e9"):
        for path, body in (("/runs", asked), (f"/runs/{id_}", None)):
            refused = server.ask(path, body, token=token)
            assert (refused.status, refused.headers["WWW-Authenticate"]) == (401, "Bearer")
            assert TOKEN not in refused.body.decode()
    wrong: list[tuple[Any, int, str]] = [
        ({"pipeline": "other", "key": "w"}, 404, "unknown pipeline 'other'"),
        ({"pipeline": pipelines.prefix}, 400, "expected an interval, or the name of a window"),
        ({**asked, "spec": {}}, 400, "unknown field `spec`"),
        ({**asked, "key": "a|b"}, 400, "expected a printable name"),
        ({"pipeline": pipelines.prefix, "window": {"start": "2026-11-01T04:00:00Z", "end": "2026-11-01T04:00:00Z"}}, 400, "end"),
        (b"[" * 50_000, 400, "expected"),
        (b"\xff", 400, "expected"),
        (b"", 400, "expected"),
        (b" " * 70_000, 413, "at most 65,536 bytes"),
    ]
    for body, status, says in wrong:
        answer = server.ask("/runs", body)
        assert (answer.status, says in answer.data["error"], "\n" in answer.data["error"]) == (status, True, False), answer
    assert server.ask(f"/runs/{id_}").status == 404
    assert server.ask("/runs/other/w").status == 404
    assert server.ask("/runs", method="GET").status == 405
    assert not pipelines.exists(id_)
    assert server.ask("/healthz", token=None).body == b"ok\n"
    assert TOKEN not in "".join(server.live.lines)


def test_any_name_that_a_ledger_takes_is_started_and_found(pipelines: Pipelines) -> None:
    written(pipelines, "raw", "marked")
    server = Server(pipelines)
    for key in ("Müllers Käse", "事件 1", "a/b?c#d%20", "..", "x" * 800):
        started = server.ask("/runs", {"pipeline": pipelines.prefix, "key": key})
        assert (started.status, started.data["id"]) == (202, f"{pipelines.prefix}/{key}")
        assert server.ask(started.headers["Location"]).data["id"] == started.data["id"]
    assert server.ask("/runs", {"pipeline": pipelines.prefix, "key": "x" * 2000}).status == 400
    assert server.ask("/runs/").status == 404


def test_a_body_that_never_ends_is_given_up(pipelines: Pipelines) -> None:
    written(pipelines, "raw", "marked")
    server = Server(pipelines)
    with socket.create_connection(("127.0.0.1", server.port), timeout=40) as slow:
        slow.sendall(f"POST /runs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 10\r\n\r\n{{".encode())
        assert slow.recv(1000).startswith(b"HTTP/1.1 408 ")


def test_over_tls_with_a_token_from_a_file(pipelines: Pipelines, tmp_path: Path) -> None:
    written(pipelines, "raw", "marked")
    cert, key = certificate(tmp_path)
    (tmp_path / "token").write_text("of-a-file\n")
    options = ("--tls-cert", str(cert), "--tls-key", str(key), "--token-file", str(tmp_path / "token"))
    server = Server(pipelines, *options, context=ssl.create_default_context(cafile=str(cert)))
    assert server.ask("/runs", {"pipeline": pipelines.prefix, "key": "w"}).status == 401
    assert server.ask("/runs", {"pipeline": pipelines.prefix, "key": "w"}, token="of-a-file").status == 202
    server.context = None
    with pytest.raises((urllib.error.URLError, ConnectionError)):
        server.ask("/healthz")


def test_what_cannot_be_served_is_one_line(pipelines: Pipelines, tmp_path: Path) -> None:
    written(pipelines, "raw", "marked")
    (tmp_path / "empty").write_text("")
    for arguments, variables, says in (
        ((), {}, "expected a token for clients in FACTORY_HTTP_TOKEN or --token-file"),
        (("--token-file", str(tmp_path / "none")), {}, "No such file"),
        (("p.yaml",), {"FACTORY_HTTP_TOKEN": TOKEN}, "expected pipelines with different names"),
    ):
        failed = pipelines.factory("temporal", "serve", "p.yaml", *arguments, **variables)
        assert failed.code != 0
        assert says in failed.error
    app = http.make_app(NOBODY, {}, token=TOKEN)
    with socket.create_server(("127.0.0.1", 0)) as busy:
        for listen, certificate_, says in (
            (f"127.0.0.1:{busy.getsockname()[1]}", "", "Address already in use"),
            ("nowhere", "", "--listen: expected host:port"),
            ("0", str(tmp_path / "none"), "No such file"),
            ("0", str(tmp_path / "empty"), "cannot serve on 0: "),
        ):
            with pytest.raises(ConfigurationError, match=says):
                asyncio.run(http.serve(app, listen, certificate=certificate_))


def test_no_app_is_made_without_a_token() -> None:
    with pytest.raises(ConfigurationError, match="expected a token"):
        http.make_app(NOBODY, {}, token="")
