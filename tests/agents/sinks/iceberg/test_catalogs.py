"""Catalogs and storage that aren't SQLite and local files: the same promises on PostgreSQL, and on Glue and S3."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from factory_agents.errors import ConfigurationError, FencedError, SinkError, UnavailableError
from factory_agents.protocol import Shard
from factory_agents.testing.records import W2, at, event
from tests.support.iceberg import Bench
from tests.support.rest_catalog import RestCatalogServer, Trouble

IN_POSTGRES = pytest.param("in_postgres", marks=pytest.mark.parts)


@pytest.fixture(params=[IN_POSTGRES, "in_rest", pytest.param("in_aws", marks=pytest.mark.slow)])
def bench(request: pytest.FixtureRequest) -> Bench:
    found: Bench = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize("mode", ["append", "upsert"])
def test_a_window_lands_is_replaced_and_fences(bench: Bench, mode: str) -> None:
    bench.params = {"mode": mode, "partition_by": ["bucket(2, id)"]}
    assert bench.publish([event("a"), event("b")]).written == 2
    zombie = bench.sink()
    zombie.claim(bench.claim())
    zombie.write(at([event("zombie")]))
    outcome = bench.publish([event("b", "new"), event("c")])
    assert (outcome.written, outcome.removed) == (2, 1)
    with pytest.raises(FencedError):
        zombie.commit(rejected=0)
    zombie.close()
    assert bench.rows("id", "value") == [("b", "new"), ("c", "x")]
    assert bench.publish([], input_generation=9, fingerprint="same").removed == 2
    assert bench.publish([event("d")], input_generation=9, fingerprint="same").reused


@pytest.mark.slow
@pytest.mark.parametrize("catalog", [IN_POSTGRES, "in_rest"])
def test_shards_and_windows_at_once_all_land(request: pytest.FixtureRequest, catalog: str) -> None:
    """Not on moto: its Glue takes an update of a table whatever version it names, and so loses one of two at once."""
    bench: Bench = request.getfixturevalue(catalog)
    bench.publish([], W2)
    claims = [bench.claim(shard=Shard(i, 3), input_generation=1) for i in range(3)]

    def publish(i: int) -> Any:
        sink = bench.sink()
        try:
            sink.claim(claims[i])
            sink.write(at([event(f"k{i}")], i))
            return sink.commit(rejected=0).written
        finally:
            sink.close()

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(publish, range(3))) == [1, 1, 1]
    assert bench.rows("id") == [("k0",), ("k1",), ("k2",)]


@pytest.mark.parametrize("nth", [0, 1])
@pytest.mark.parametrize("trouble", ["lost request", "lost answer", 401, 409, 419, 429, 500, 502, 503, 504])
def test_a_commit_that_a_rest_catalog_does_not_answer_well_is_made_once(
    in_rest: Bench, rest_catalog: RestCatalogServer, trouble: Trouble, nth: int
) -> None:
    """Of a claim, and of a landing."""
    in_rest.publish([event("a", "old"), event("b")])
    commits = 0

    def trouble_once(method: str, path: str) -> Trouble:
        nonlocal commits
        commits += method == "POST"
        return trouble if method == "POST" and commits == nth + 1 else None

    rest_catalog.trouble = trouble_once
    outcome = in_rest.publish([event("a", "new")])
    assert (outcome.written, outcome.removed, commits) == (1, 1, 2 if trouble == "lost answer" else 3)
    assert in_rest.rows("id", "value") == [("a", "new")]


@pytest.mark.parametrize(("trouble", "raises"), [(403, ConfigurationError), (400, SinkError)])
def test_a_commit_that_a_rest_catalog_refuses_is_one_clear_line(
    in_rest: Bench, rest_catalog: RestCatalogServer, trouble: Trouble, raises: type[Exception]
) -> None:
    in_rest.publish([event("a")])
    rest_catalog.trouble = lambda method, path: trouble if method == "POST" else None
    with pytest.raises(raises, match=rf"table lake\.t: Trouble: {trouble}, as the test says$"):
        in_rest.publish([event("a", "new")])
    rest_catalog.trouble = lambda method, path: None
    assert in_rest.rows("id", "value") == [("a", "x")]


def test_a_rest_catalog_that_does_not_answer_is_not_waited_for_for_ever(
    in_rest: Bench, rest_catalog: RestCatalogServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("factory_agents.sinks.iceberg.rest._TIMEOUT", (10, 0.2))
    answers = threading.Event()

    def hang(method: str, path: str) -> Trouble:
        answers.wait()
        return "lost request"

    rest_catalog.trouble = hang
    with pytest.raises(UnavailableError, match=r"Iceberg catalog 'default': .*Read timed out"):
        in_rest.publish([event("a")])
    answers.set()


class _Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>\n<body>Sign in</body>\n</html>")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


def test_properties_that_lead_to_no_catalog_are_one_clear_line(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Page)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    mistakes = {
        f"what answers at {url} is no REST catalog: correct its uri": {"uri": url},
        "a REST catalog needs its uri": {"type": "rest"},
        "Invalid URL 'catalog.example/v1/config': No scheme supplied": {"type": "rest", "uri": "catalog.example"},
        "'rust' is not a valid CatalogType": {"type": "rust"},
    }
    for says, properties in mistakes.items():
        monkeypatch.setenv("ICEBERG_CATALOG", json.dumps(properties))
        with pytest.raises(ConfigurationError, match=f"^Iceberg catalog 'default': .*{says}") as caught:
            bench.publish([event("a")])
        assert "\n" not in str(caught.value)
    server.shutdown()
    server.server_close()
