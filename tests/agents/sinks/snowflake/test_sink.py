"""Every promise of the sink: what is left behind, transactions that Snowflake ends, sessions that are lost, and what its errors mean."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from snowflake.connector import errors

from factory_agents.contracts import ColumnSpec, ColumnType, TableSpec
from factory_agents.errors import ConfigurationError, FactoryError, SinkError, UnavailableError
from factory_agents.runtime import exact_sink
from factory_agents.runtime.ledger_sink import ChangedError
from factory_agents.sandbox.processes import free_port
from factory_agents.sinks.snowflake import TableName, account_from_env, statements, table
from factory_agents.sinks.snowflake.session import ConflictError, LostSessionError, Session, explain
from factory_agents.sinks.snowflake.table import TargetTable
from tests.support.lossy_http import Loss, LossyHttp
from tests.support.sink_bench import W2, at, event, write_and_commit
from tests.support.snowflake import Bench, SnowflakeSchema

TARGET = TargetTable("T", TableSpec((ColumnSpec("id", ColumnType("text"), nullable=False),), ("id",)), ("ID",), "")


class TestOneWindow:
    def test_nothing_is_left_of_what_was_staged(self, bench: Bench) -> None:
        sink = bench.sink()
        assert sink.claim(bench.claim()) is None
        write_and_commit(sink, at([event("a"), event("b")]))
        assert bench.schema.tables() == ["FACTORY_PUBLISHES_T", "T"]

    def test_a_large_window_goes_in_parts(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(exact_sink, "_PART_BYTES", 100)
        outcome = bench.publish(at([event(str(n % 5), str(n)) for n in range(12)]))
        assert (outcome.rows, outcome.written, outcome.duplicates) == (12, 5, 7)
        assert bench.rows() == {"0": "10", "1": "11", "2": "7", "3": "8", "4": "9"}

    def test_what_is_loaded_is_counted(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Session, "put", lambda *args: None)
        with pytest.raises(SinkError, match="COPY loaded 0 of 1 rows; publish again"):
            bench.publish(at([event("a")]))

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            ("DROP TABLE t", "it was dropped"),
            ("ALTER TABLE t DROP COLUMN value", "its columns were changed"),
            ("ALTER TABLE t RENAME COLUMN value TO renamed", "its columns were changed"),
        ],
    )
    def test_a_table_that_is_changed_while_we_publish_is_a_retry(self, bench: Bench, change: str, says: str) -> None:
        sink = bench.sink()
        sink.claim(bench.claim())
        sink.write(at([event("a")]))
        bench.schema.query(change)
        with pytest.raises(ChangedError, match=rf"\.T: {says} while we published to it; a retry begins again"):
            sink.commit(rejected=0)
        bench.publish(at([event("a")]))
        assert bench.rows() == {"a": "x"}

    def test_who_published_to_a_table_before_it_was_made_again_lands_nothing_in_the_new_one(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The emulator says of every table that it was created at the same time: here it is told apart."""
        monkeypatch.setattr(table, "_made", lambda session, name: "first")
        zombie = bench.sink()
        zombie.claim(bench.claim())
        zombie.write(at([event("a", "zombie"), event("b", "zombie")]))
        bench.schema.query("DROP TABLE t")
        monkeypatch.setattr(table, "_made", lambda session, name: "second")
        bench.publish(at([event("a", "new")]))
        with pytest.raises(ChangedError, match="it was recreated while we published to it"):
            zombie.commit(rejected=0)
        assert bench.rows() == {"a": "new"}

    def test_the_result_names_the_table_in_full(self, bench: Bench) -> None:
        assert bench.publish(at([event("a")])).table == f"LOCAL.{bench.schema.name}.T"


class TestTransactions:
    def test_one_that_snowflake_ended_changes_nothing_any_more(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        """The emulator ends an idle transaction that others wait for after a second; Snowflake after five minutes."""
        bench.publish(at([event("a", "old"), event("b", "old")]))
        run, met = Session.run, []

        def meet_another(session: Session, sql: str, *values: Any) -> int:
            changed = run(session, sql, *values)
            if sql.startswith('DELETE FROM "T" USING') and not met:
                met.append(changed)
                bench.publish(at([event("z")]), W2)  # it waits until ours is ended, and lands
            return changed

        monkeypatch.setattr(Session, "run", meet_another)
        outcome = bench.publish(at([event("a", "new"), event("c", "new")]), input_generation=2)
        assert met == [1]
        assert (outcome.written, outcome.removed) == (2, 1), "it was landed again, as a whole"
        assert bench.rows() == {"a": "new", "c": "new", "z": "x"}

    @pytest.mark.parametrize(
        ("statement", "arguments"),
        [
            ("change_entry", ("L",)),
            ("insert_newest", (TARGET, "N")),
            ("delete_outdone", (TARGET, "N", (1, 2))),
            ("delete_publications", ("T", (1,))),
            ("delete_outweighed", (TARGET, "T", "D", (1,), (2,))),
            ("forget_deletes", (TARGET, "M", "D")),
            ("remember", (TARGET, "M", "D")),
        ],
    )
    def test_every_statement_in_one_names_it(self, statement: str, arguments: tuple[Any, ...]) -> None:
        assert getattr(statements, statement)(*arguments).endswith("CURRENT_TRANSACTION() = ?")

    def test_rows_of_a_session_that_was_lost_land_with_a_retry(self, bench: Bench) -> None:
        sink = bench.sink()
        sink.claim(bench.claim())
        assert sink.write(at([event("a")])) == {}
        sink._publication._stage()
        sink._sink._session.close()
        with pytest.raises(LostSessionError, match="the session was lost with the rows staged in it; a retry begins again") as raised:
            sink.commit(rejected=0)
        assert raised.value.retriable
        assert bench.publish(at([event("a")])).written == 1

    def test_a_landing_whose_answer_never_comes_is_found_in_the_ledger(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        run = Session.run

        def lose(session: Session, sql: str, *values: Any) -> int:
            changed = run(session, sql, *values)
            if sql == "COMMIT" and armed:
                armed.clear()
                raise UnavailableError("the answer is lost")
            return changed

        armed: list[int] = []
        monkeypatch.setattr(Session, "run", lose)
        sink = bench.sink()
        sink.claim(bench.claim())
        armed.append(1)
        outcome = write_and_commit(sink, at([event("a"), event("a")]))
        assert (outcome.written, outcome.duplicates) == (1, 1)
        assert bench.rows() == {"a": "x"}

    @pytest.mark.soak
    @pytest.mark.parametrize("what", ["request", "answer"])
    def test_every_request_or_answer_lost_once_changes_nothing(self, bench: Bench, monkeypatch: pytest.MonkeyPatch, what: Loss) -> None:
        turn: list[int] = []

        def lose(method: str, path: str) -> Loss:
            turn.append(1)
            return what if len(turn) % 2 else None

        bench.publish(at([event("a", "old"), event("stale")]))
        lossy = LossyHttp(bench.schema.url, lose)
        monkeypatch.setenv("SNOWFLAKE_PORT", lossy.url.rpartition(":")[2])
        try:
            outcome = bench.publish(at([event("a", "new"), event("b")]), input_generation=2)
        finally:
            lossy.close()
        assert (outcome.written, outcome.removed) == (2, 1)
        assert bench.rows() == {"a": "new", "b": "x"}
        assert len(lossy.asked) > 20

    @pytest.mark.parametrize("nth", [1, 9, 13])
    def test_rights_that_are_taken_away_while_we_publish_are_one_clear_line_and_a_retry_with_them_lands(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch, nth: int
    ) -> None:
        """One statement after the claim is refused: of staging, or within the landing's transaction."""
        bench.publish(at([event("a", "old"), event("stale")]))
        said = {"code": "003001", "message": "SQL access control error", "data": {"errorCode": "003001", "sqlState": "42501"}}
        asked: list[int] = []

        def lose(method: str, path: str) -> Loss:
            if claimed:
                asked.append(1)
            return "refused" if len(asked) == nth else None

        claimed = False
        lossy = LossyHttp(bench.schema.url, lose, (200, said | {"success": False}))
        monkeypatch.setenv("SNOWFLAKE_PORT", lossy.url.rpartition(":")[2])
        try:
            sink = bench.sink()
            sink.claim(bench.claim(fingerprint="new", input_generation=2))
            claimed = True
            with pytest.raises(ConfigurationError, match=r"^asking local: .* SQL access control error; grant the role USAGE on .*$"):
                write_and_commit(sink, at([event("a", "new"), event("b")]))
            sink.close()
            assert bench.rows() == {"a": "old", "stale": "x"}
            bench.publish(at([event("a", "new"), event("b")]), fingerprint="new", input_generation=2)
        finally:
            lossy.close()
        assert bench.rows() == {"a": "new", "b": "x"}

    def test_a_ledger_that_lost_its_first_row_is_refused(self, bench: Bench) -> None:
        bench.publish(at([event("a")]))
        bench.schema.query("DELETE FROM FACTORY_PUBLISHES_T WHERE WINDOW_KEY = ''")
        with pytest.raises(SinkError, match=r"its ledger FACTORY_PUBLISHES_T has lost its first row; drop the ledger, and publish again"):
            bench.publish(at([event("a")]))


class TestErrors:
    @pytest.mark.parametrize(
        ("error", "ours", "says"),
        [
            (errors.ProgrammingError("Statement has locked table 'T' in transaction 1", 625), ConflictError, "; retry"),
            (errors.ProgrammingError("SQL execution canceled", 604), UnavailableError, "raise timeout, or retry"),
            (errors.ProgrammingError("Object 'T' does not exist or not authorized.", 2003), ConfigurationError, "correct the table's name"),
            (errors.ProgrammingError("Insufficient privileges", 3001), ConfigurationError, "grant the role USAGE"),
            (errors.ProgrammingError("No active warehouse selected", 606), ConfigurationError, "SNOWFLAKE_WAREHOUSE"),
            (errors.ProgrammingError("Session no longer exists", 390111), LostSessionError, "a retry begins again"),
            (errors.DatabaseError("User must login again to access the service", 390104), LostSessionError, "a retry begins again"),
            (errors.DatabaseError("Incorrect username or password", 390100), ConfigurationError, "SNOWFLAKE_PRIVATE_KEY_FILE"),
            (errors.DatabaseError("Failed to login: JWT token is invalid", 250001), ConfigurationError, "SNOWFLAKE_PRIVATE_KEY_FILE"),
            (
                errors.DatabaseError("Failed to login: HTTP request failed after retries", 250001),
                UnavailableError,
                "answer: ",
            ),
            (errors.OperationalError("HTTP request failed after retries", 4), UnavailableError, "does not answer: "),
            (errors.ProgrammingError("Numeric value 'x' is not recognized", 100038), SinkError, "not recognized"),
        ],
    )
    def test_each_says_whether_a_retry_may_help(self, error: Exception, ours: type[FactoryError], says: str) -> None:
        explained = explain(error, "asking acme")
        assert isinstance(explained, ours)
        assert str(explained).startswith("asking acme: ")
        assert says in str(explained)

    def test_an_unreachable_snowflake_may_be_tried_again(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        from factory_agents.sinks.snowflake import session

        monkeypatch.setattr(session, "_LOGIN", 1)
        monkeypatch.setenv("SNOWFLAKE_PORT", "9")
        with pytest.raises(UnavailableError, match="logging in to local: Snowflake does not answer"):
            bench.publish(at([event("a")]))

    def test_a_refused_connection_is_no_wrong_password(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SNOWFLAKE_PORT", str(free_port("127.0.0.1")))
        with pytest.raises(UnavailableError, match=r"logging in to local: Snowflake does not answer: .*refused"):
            bench.publish(at([event("a")]))


class TestLogin:
    """The emulator takes whoever comes: what is shown is that the client takes what it is given."""

    def test_keys_and_tokens_are_taken_by_the_client(self, snowflake: SnowflakeSchema) -> None:
        key = rsa.generate_private_key(65537, 2048)
        form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)
        plain, locked = (
            key.private_bytes(*form, encryption).decode()
            for encryption in (serialization.NoEncryption(), serialization.BestAvailableEncryption(b"pw"))
        )
        for given in (
            {"SNOWFLAKE_PRIVATE_KEY": plain},
            {"SNOWFLAKE_PRIVATE_KEY": locked, "SNOWFLAKE_PRIVATE_KEY_PASSPHRASE": "pw"},
            {"SNOWFLAKE_TOKEN": "token"},
        ):
            assert self.logged_in(snowflake, given) == [(1,)]
        for given in ({"SNOWFLAKE_PRIVATE_KEY": locked, "SNOWFLAKE_PRIVATE_KEY_PASSPHRASE": "other"}, {"SNOWFLAKE_PRIVATE_KEY": "s3cret"}):
            with pytest.raises(ConfigurationError, match="logging in to local: Snowflake says: ") as raised:
                self.logged_in(snowflake, given)
            assert "s3cret" not in str(raised.value)

    @staticmethod
    def logged_in(snowflake: SnowflakeSchema, given: dict[str, str]) -> Any:
        session = Session(account_from_env(snowflake.environment | {"SNOWFLAKE_PASSWORD": ""} | given), TableName("", "", "T"), timeout=5)
        try:
            return session.rows("SELECT 1")
        finally:
            session.close()


BASE = {"SNOWFLAKE_ACCOUNT": "acme", "SNOWFLAKE_USER": "loader"}


class TestAccount:
    @pytest.mark.parametrize(
        ("given", "secrets"),
        [
            ({"SNOWFLAKE_PASSWORD": "s3cret"}, {"password": "s3cret"}),
            ({"SNOWFLAKE_TOKEN": "s3cret"}, {"token": "s3cret", "authenticator": "OAUTH"}),
            (
                {"SNOWFLAKE_PRIVATE_KEY": "s3cret", "SNOWFLAKE_PRIVATE_KEY_PASSPHRASE": "too"},
                {"private_key": "s3cret", "private_key_password": "too", "authenticator": "SNOWFLAKE_JWT"},
            ),
            (
                {"SNOWFLAKE_TOKEN": "s3cret", "SNOWFLAKE_AUTHENTICATOR": "PROGRAMMATIC_ACCESS_TOKEN"},
                {"token": "s3cret", "authenticator": "PROGRAMMATIC_ACCESS_TOKEN"},
            ),
            ({"SNOWFLAKE_AUTHENTICATOR": "WORKLOAD_IDENTITY"}, {"authenticator": "WORKLOAD_IDENTITY"}),
        ],
    )
    def test_credentials_are_the_clients_and_never_shown(self, given: dict[str, str], secrets: dict[str, str]) -> None:
        account = account_from_env(BASE | given)
        assert account.secrets == secrets
        assert "s3cret" not in repr(account)

    def test_a_key_or_a_token_may_be_in_a_file(self, tmp_path: Any) -> None:
        (tmp_path / "key.pem").write_text("-----BEGIN")
        assert account_from_env(BASE | {"SNOWFLAKE_PRIVATE_KEY_FILE": str(tmp_path / "key.pem")}).secrets["private_key"] == "-----BEGIN"

    @pytest.mark.parametrize(
        ("given", "says"),
        [
            ({"SNOWFLAKE_ACCOUNT": ""}, "SNOWFLAKE_ACCOUNT is not set: give a snowflake connection in Airflow"),
            ({}, "there are no credentials: give a snowflake connection in Airflow"),
            ({"SNOWFLAKE_PASSWORD": "s3cret", "SNOWFLAKE_TOKEN": "s3cret"}, "SNOWFLAKE_TOKEN, SNOWFLAKE_PASSWORD: expected one of them"),
            ({"SNOWFLAKE_TOKEN_FILE": "/s3cret"}, "SNOWFLAKE_TOKEN_FILE: the file cannot be read: No such file or directory"),
            ({"SNOWFLAKE_PASSWORD": "s3cret", "SNOWFLAKE_PORT": "x"}, "SNOWFLAKE_PORT: expected a number, got 'x'"),
        ],
    )
    def test_what_cannot_be_taken_is_one_line_without_secrets(self, given: dict[str, str], says: str) -> None:
        with pytest.raises(ConfigurationError) as raised:
            account_from_env(BASE | given)
        assert says in str(raised.value)
        assert "s3cret" not in str(raised.value)
