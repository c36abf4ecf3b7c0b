"""The address of a PostgreSQL, and what is said when it can't be used: the host, never the URL."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import quote

import psycopg
import pytest

from factory_agents.databases.postgres import Database, database_from_env, explain
from factory_agents.errors import ConfigurationError, FactoryError, SinkError, UnavailableError
from factory_agents.publish import build
from factory_agents.sources.lookups import Lookup, LookupJoin
from factory_agents.sources.table import connect

SECRET = "hunter2"


def publish() -> None:
    build({"table": "t"})


def ingest() -> None:
    connect("DATABASE_URL")


def look_up() -> None:
    LookupJoin([Lookup(on="a", table="t")]).join([{"a": "x"}])


USERS = [publish, ingest, look_up]


@pytest.fixture
def variable(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Database]:
    def read(url: str) -> Database:
        monkeypatch.setenv("DATABASE_URL", url)
        return database_from_env("DATABASE_URL")

    for name in ("PGHOST", "PGPORT", "PGDATABASE"):
        monkeypatch.delenv(name, raising=False)
    return read


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("postgresql://u:hunter2@h:7/x", "h:7/x"),
        ("postgres://u:hunter2@h/x", "h:5432/x"),
        ("postgresql+psycopg2://u:hunter2@h:7/x", "h:7/x"),
        ("postgresql+asyncpg://u:hunter2@h:7/x", "h:7/x"),
        (" postgresql://u:hunter2@h:7/x", "h:7/x"),
        ("\tpostgresql+psycopg://u:hunter2@h:7/x \n", "h:7/x"),
        ("postgresql://u:hunter2%25@h:7/x", "h:7/x"),
        ("postgresql://u:hun?ter2@h:7/x", "h:7/x"),
        ("postgresql://u:hunter2@h1,h2:7/x", "h1:5432,h2:7/x"),
        ("postgresql://u:hunter2@/x?host=h1,h2&port=7", "h1:7,h2:7/x"),
        ("postgresql://u:hunter2@[::1]:7/x", "[::1]:7/x"),
        ("postgresql://u:hunter2@/x?host=/tmp", "/tmp:5432/x"),
        ("host=h port=7 password=hunter2 user=u", "h:7/u"),
        ("user=u password='hunter2'", "localhost:5432/u"),
    ],
)
def test_every_form_of_a_url_is_read_and_shown_as_its_address(variable: Callable[[str], Database], url: str, address: str) -> None:
    database = variable(url)
    assert database.address == address
    assert repr(database) == f"Database({address})"


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("postgresql://u:hunter2%@h:7/x", "h"),
        ("postgresql+psycopg2://u:hunter2%zz@h/x", "h"),
        ("postgresql://u:hunter2@h:port/x", "h"),
        ("postgresql://u:hunter2@h:7:8/x", "h"),
        ("postgresql://u:p@hunter2@h/x", "h"),
        ("postgresql://u:hunter2/x@h/x", "h"),
        ("postgresql://u:7/hunter2@h/x", "h"),
        ("postgresql://u:p@ss/hunter2@h/x", "h"),
        ("postgresql://u:p/a?hunter2@h/x", ""),
        ("postgresql://u:hunter2@h/x?nonsense=1", "h"),
        ("mysql://u:hunter2@h/x", "h"),
        ("hunter2 is no url", ""),
        ("host=h pasword=hunter2", ""),
        ("postgresql//u:hunter2@h", ""),
    ],
)
@pytest.mark.parametrize("use", USERS)
def test_a_url_that_is_none_is_not_shown_but_for_its_host(
    variable: Callable[[str], Database], monkeypatch: pytest.MonkeyPatch, use: Callable[[], None], url: str, host: str
) -> None:
    monkeypatch.setenv("DATABASE_URL", url)
    with pytest.raises(ConfigurationError, match="DATABASE_URL is not a database URL") as caught:
        use()
    said = str(caught.value)
    assert SECRET not in said
    assert (f"its host is {host})" in said) if host else ("its host" not in said)
    assert "\n" not in said
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("use", [ingest, look_up])
def test_a_database_that_does_not_answer_is_named_without_credentials(
    variable: Callable[[str], Database], monkeypatch: pytest.MonkeyPatch, use: Callable[[], None]
) -> None:
    for url in ("postgresql+psycopg2://someone:hunter2@127.0.0.1:1/sales", " postgresql://someone:hunter2%25@127.0.0.1:1/sales"):
        monkeypatch.setenv("DATABASE_URL", url)
        with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:1/sales does not answer") as caught:
            use()
        assert SECRET not in str(caught.value)
        assert "someone" not in str(caught.value)


@pytest.mark.parametrize("use", USERS)
def test_a_variable_that_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch, use: Callable[[], None]) -> None:
    for value in ("", "  "):
        monkeypatch.setenv("DATABASE_URL", value)
        with pytest.raises(ConfigurationError, match="DATABASE_URL is not set"):
            use()


@pytest.mark.parametrize("setting", ["sslmode=nonsense", "connect_timeout=soon", "port=1,2,3&host=a,b"])
def test_a_setting_that_libpq_refuses_is_not_tried_again(variable: Callable[[str], Database], setting: str) -> None:
    with pytest.raises(ConfigurationError, match="correct DATABASE_URL"):
        variable(f"postgresql://u:hunter2@127.0.0.1:1/x?{setting}").connect("test")


@pytest.mark.parametrize(
    "options", ["-c search_path=a,", "-c serch_path=a", "-c max_connections=1", "-c statement_timeout=soon", "--zzz=1", "-Q"]
)
def test_a_setting_that_the_server_refuses_is_not_tried_again(database_url: str, variable: Callable[[str], Database], options: str) -> None:
    with pytest.raises(ConfigurationError, match=r"refuses: .*; correct DATABASE_URL"):
        variable(f"{database_url}?options={quote(options)}").connect("test")


def test_sessions_have_the_urls_own_name_or_ours(database_url: str, variable: Callable[[str], Database]) -> None:
    for url, name in ((database_url, "ours"), (f"{database_url}?application_name=theirs", "theirs")):
        with variable(url).connect("ours") as session:
            assert session.execute("SHOW application_name").fetchone() == (name,)


@pytest.mark.parametrize(
    ("error", "ours", "says"),
    [
        (psycopg.errors.DiskFull("could not extend file"), UnavailableError, "disk is full"),
        (psycopg.errors.OutOfMemory("out of memory"), UnavailableError, "out of memory"),
        (psycopg.errors.TooManyConnections("sorry"), UnavailableError, "no more connections"),
        (psycopg.errors.DeadlockDetected("deadlock"), UnavailableError, "deadlock"),
        (psycopg.errors.SerializationFailure("could not serialize"), UnavailableError, "each other's way"),
        (psycopg.errors.ReadOnlySqlTransaction("cannot execute"), UnavailableError, "read-only"),
        (psycopg.errors.AdminShutdown("terminating"), UnavailableError, "lost"),
        (psycopg.OperationalError("server closed the connection"), UnavailableError, "lost"),
        (psycopg.DatabaseError("server closed the connection unexpectedly"), UnavailableError, "lost"),  # a result without a code
        (psycopg.InterfaceError("the connection is closed"), UnavailableError, "lost"),
        (psycopg.errors.InsufficientPrivilege("permission denied for table x"), ConfigurationError, "permission denied for table x"),
        (psycopg.errors.CheckViolation("violates check constraint"), SinkError, "violates check"),
        (psycopg.DataError("cannot dump"), SinkError, "cannot dump"),
    ],
)
def test_each_of_its_errors_says_whether_a_retry_may_help(error: psycopg.Error, ours: type[FactoryError], says: str) -> None:
    explained = explain(error, "publishing to t (db:5432/x)")
    assert type(explained) is ours
    assert says in str(explained)
    assert "db:5432/x" in str(explained)


def test_a_reader_is_told_that_its_query_is_wrong() -> None:
    assert type(explain(psycopg.errors.SyntaxError("syntax error"), "query", ConfigurationError)) is ConfigurationError
