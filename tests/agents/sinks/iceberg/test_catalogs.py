"""Catalogs and storage that aren't SQLite and local files: the same promises on PostgreSQL, and on Glue and S3."""

from __future__ import annotations

import json
import secrets
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from botocore.exceptions import ClientError

from factory_agents.errors import ConfigurationError, FencedError, SinkError, UnavailableError
from factory_agents.protocol import Shard
from factory_agents.sinks.iceberg.catalog import explained
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


@pytest.mark.parts
def test_rights_that_are_taken_away_while_we_publish_are_one_clear_line_and_a_retry_with_them_lands(
    in_postgres: Bench, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, role = in_postgres, f"lake_{secrets.token_hex(4)}"
    bench.publish([event("a")])
    with psycopg.connect(database_url, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'local'")
        admin.execute(f"GRANT ALL ON iceberg_tables, iceberg_namespace_properties TO {role}")
        parts = urlsplit(bench.properties["uri"])
        uri = parts._replace(netloc=f"{role}:local@{parts.netloc.rpartition('@')[2]}").geturl()
        monkeypatch.setenv("ICEBERG_CATALOG", json.dumps({**bench.properties, "uri": uri, "init_catalog_tables": "false"}))
        sink = bench.sink()
        sink.claim(bench.claim(W2))
        sink.write(at([event("b")]))
        admin.execute(f"REVOKE UPDATE ON iceberg_tables FROM {role}")
        with pytest.raises(ConfigurationError, match=r"permission denied for table iceberg_tables$"):
            sink.commit(rejected=0)
        sink.close()
        assert bench.rows("id") == [("a",)]
        admin.execute(f"GRANT UPDATE ON iceberg_tables TO {role}")
        assert bench.publish([event("b")], W2).written == 1
        admin.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(13, "Permission denied", "/lake/t/data"),
        OSError("When initiating multiple part upload for key 'k' in bucket 'b': AWS Error ACCESS_DENIED during PutObject operation"),
        ClientError({"Error": {"Code": "AccessDeniedException", "Message": "no glue:UpdateTable"}}, "UpdateTable"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_storage_and_aws_deny_no_retry_mends(error: Exception) -> None:
    with pytest.raises(ConfigurationError, match=r"table t: .*(denied|DENIED|no glue)"), explained("table t"):
        raise error


def test_a_catalog_in_a_file_that_may_only_be_read_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    properties = {"type": "sql", "uri": f"sqlite:///{tmp_path}/catalog.db", "warehouse": f"file://{tmp_path}/warehouse"}
    monkeypatch.setenv("ICEBERG_CATALOG", json.dumps(properties))
    bench = Bench(properties)
    bench.publish([event("a")])
    only_read = {**properties, "uri": f"sqlite:///file:{tmp_path}/catalog.db?mode=ro&uri=true"}
    monkeypatch.setenv("ICEBERG_CATALOG", json.dumps(only_read))
    with pytest.raises(ConfigurationError, match="attempt to write a readonly database"):
        bench.publish([event("b")], W2)
    assert bench.rows("id") == [("a",)]


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
