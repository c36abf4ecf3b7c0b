"""BigQuery as the sink asks it: tables, queries and load jobs, each idempotent by a name or a job id, and what its errors mean."""

from __future__ import annotations

import io
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import TimeoutError as TookTooLongError
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from factory_agents import failpoints
from factory_agents.errors import ConfigurationError, FactoryError, SinkError, UnavailableError
from factory_agents.runtime.exact_sink import pauses
from factory_agents.sinks.arrow import as_parquet

if TYPE_CHECKING:
    import pyarrow as pa
    from google.api_core.retry import Retry
    from google.auth.credentials import Credentials
    from google.cloud import bigquery

__all__ = ["Account", "ConflictError", "NotFoundError", "Warehouse", "account_from_env"]

_T = TypeVar("_T")
_SCOPES = ("https://www.googleapis.com/auth/bigquery", "https://www.googleapis.com/auth/cloud-platform")
_ANSWER = 60.0
"""Seconds that one answer may take; the client asks again until ``_PATIENCE`` is over."""
_PATIENCE = 120.0
_PAUSE = 1.0
_OURSELVES = {"factory": "publish"}
"""A label of every job and table, to find what we cost."""

_CONFLICTS = ("concurrent update", "Could not serialize", "Failed to commit DuckLake transaction", "Transaction conflict")
"""What is said to one of two transactions that change one table: by BigQuery, and by its emulator (which has DuckLake below)."""
_BUSY = {
    "backendError",
    "internalError",
    "jobBackendError",
    "jobInternalError",
    "jobRateLimitExceeded",
    "rateLimitExceeded",
    "tableUnavailable",
}


class ConflictError(UnavailableError):
    """Another transaction changed the same table; nothing of this one was done."""


class NotFoundError(ConfigurationError):
    """A table, or its dataset, isn't there."""


class Account(msgspec.Struct, frozen=True):
    """Who asks, and who pays: ``project`` ("" for the credentials' own), and credentials, or the client's defaults without any.

    ``impersonate`` is a chain of service accounts: the last is who asks, each may act for the next.
    """

    project: str = ""
    credentials: dict[str, Any] | None = None
    impersonate: tuple[str, ...] = ()
    emulator: str = ""

    def __repr__(self) -> str:
        """Without the credentials."""
        return f"Account({self.project or 'default project'})"

    def client(self) -> bigquery.Client:
        """A client; raises ConfigurationError where there are no usable credentials."""
        from google.api_core.exceptions import GoogleAPIError
        from google.auth.exceptions import GoogleAuthError
        from google.cloud import bigquery

        try:
            credentials, project = self._credentials()
            return bigquery.Client(project=self.project or project or None, credentials=credentials)
        except (GoogleAuthError, GoogleAPIError, OSError, ValueError) as error:
            raise ConfigurationError(f"BigQuery: {_line(error)}; {_HOW}") from None

    def _credentials(self) -> tuple[Credentials, str | None]:
        import google.auth
        from google.auth.credentials import AnonymousCredentials

        if self.emulator:
            return AnonymousCredentials(), "local"
        if self.credentials is None:
            found, project = google.auth.default(scopes=_SCOPES)
        else:
            found, project = google.auth.load_credentials_from_dict(self.credentials, scopes=_SCOPES)
        if self.impersonate:
            from google.auth import impersonated_credentials

            *delegates, principal = self.impersonate
            found = impersonated_credentials.Credentials(found, principal, _SCOPES, delegates=delegates)
        return found, project


_HOW = (
    "give a google connection in Airflow, GOOGLE_APPLICATION_CREDENTIALS (a key's file), or credentials of the machine;"
    " and a project in the table's name or GOOGLE_CLOUD_PROJECT"
)


def account_from_env(environ: Mapping[str, str] | None = None) -> Account:
    """The account that the environment names, beside the client's own variables.

    ``BIGQUERY_CREDENTIALS`` is the JSON of a key or of a workload identity, ``BIGQUERY_IMPERSONATE`` accounts with commas between them.
    Raises ConfigurationError where the client isn't installed, or a variable isn't understood; its value is never shown.
    """
    environ = os.environ if environ is None else environ
    try:
        from google.cloud import bigquery  # noqa: F401
    except ImportError as error:
        raise ConfigurationError("publish to BigQuery needs its client: pip install 'factory-agents[bigquery]'") from error
    text = environ.get("BIGQUERY_CREDENTIALS", "")
    try:
        credentials = json.loads(text) if text else None
    except (ValueError, RecursionError):
        credentials = ()
    if credentials is not None and not isinstance(credentials, dict):
        raise ConfigurationError("BIGQUERY_CREDENTIALS: expected the JSON of a service account's key (its value is not shown)")
    return Account(
        project=environ.get("GOOGLE_CLOUD_PROJECT", ""),
        credentials=credentials,
        impersonate=tuple(filter(None, (part.strip() for part in environ.get("BIGQUERY_IMPERSONATE", "").split(",")))),
        emulator=environ.get("BIGQUERY_EMULATOR_HOST", ""),
    )


class Warehouse:
    """What is asked of BigQuery in one dataset. Every call may be made again after a lost answer.

    ``timeout`` is how many seconds one job may take. All raise ConfigurationError for what we may not do or name wrongly, SinkError for
    what BigQuery refuses, UnavailableError where it doesn't answer, is busy, or doesn't end in time.
    """

    def __init__(self, account: Account, project: str, dataset: str, *, timeout: float, labels: Mapping[str, str] | None = None) -> None:
        self._client = account.client()
        self.project = project or self._client.project
        self.dataset = dataset
        self._timeout = timeout
        self._labels = {**_OURSELVES, **(labels or {})}
        self._location: str | None = None

    def close(self) -> None:
        """Close connections."""
        self._client.close()

    def name(self, table: str) -> str:
        """A table of the dataset in full."""
        return f"{self.project}.{self.dataset}.{table}"

    def table(self, table: str) -> bigquery.Table | None:
        """A table as it is, or None."""
        from google.api_core.exceptions import NotFound

        with _explained(f"looking for the table {self.name(table)}"):
            try:
                return self._located(lambda: self._client.get_table(self.name(table), retry=self._retry, timeout=_ANSWER))
            except NotFound:
                return None

    def create(self, table: bigquery.Table) -> bigquery.Table:
        """Create a table, labelled as ours, unless it is there; as it is then."""
        table.labels = {**self._labels, **(table.labels or {})}
        with _explained(f"creating the table {table}"):
            return self._located(lambda: self._client.create_table(table, exists_ok=True, retry=self._retry, timeout=_ANSWER))

    def _located(self, ask: Callable[[], bigquery.Table]) -> bigquery.Table:
        """A table; where it is, our jobs run."""
        table = self._call(ask)
        self._location = table.location
        return table

    def drop(self, table: str) -> None:
        """Drop a table, if it is there."""
        with _explained(f"dropping the table {self.name(table)}"):
            self._call(lambda: self._client.delete_table(self.name(table), not_found_ok=True, retry=self._retry, timeout=_ANSWER))

    def rows(self, sql: str, **parameters: Any) -> list[tuple[Any, ...]]:
        """What a query gives."""
        return self._job(sql, f"asking {self.project}.{self.dataset}", _new_job_id(), parameters)[1]

    def change(self, sql: str, **parameters: Any) -> int:
        """How many rows a statement changed."""
        job, _ = self._job(sql, f"asking {self.project}.{self.dataset}", _new_job_id(), parameters)
        return int(job.num_dml_affected_rows or 0)

    def dry_run(self, sql: str) -> None:
        """Have a query checked, with the rights that it needs, and not run."""
        from google.cloud import bigquery

        config = bigquery.QueryJobConfig(dry_run=True, use_query_cache=False, labels=self._labels)
        with _explained(f"checking {self.project}.{self.dataset}"):
            self._call(lambda: self._client.query(sql, config, location=self._location, retry=self._retry, timeout=_ANSWER, job_retry=None))

    def run(self, sql: str, doing: str, job_id: str, **parameters: Any) -> int:
        """Run a script under a job id of its own; returns the bytes that it read.

        Raises ConflictError where another transaction was in its way: nothing of this one was done. After any other error that isn't a
        SinkError or ConfigurationError, whether it was done is unknown.
        """
        job, _ = self._job(sql, doing, job_id, parameters)
        return int(job.total_bytes_processed or 0)

    def _job(self, sql: str, doing: str, job_id: str, parameters: Mapping[str, Any]) -> tuple[Any, list[tuple[Any, ...]]]:
        """A query's job that is done, and its rows. An id runs once: asked for again, the job that has it is waited for."""
        from google.api_core.exceptions import Conflict
        from google.cloud import bigquery

        config = bigquery.QueryJobConfig(
            query_parameters=_parameters(parameters),
            labels=self._labels,
            use_query_cache=False,
            job_timeout_ms=round(self._timeout * 1000),
        )
        with _explained(doing):
            try:
                job = self._call(
                    lambda: self._client.query(
                        sql, config, job_id=job_id, location=self._location, retry=self._retry, timeout=_ANSWER, job_retry=None
                    )
                )
            except Conflict:
                job = self._call(lambda: self._found(job_id))
            rows = self._call(lambda: list(map(tuple, job.result(retry=self._retry, timeout=self._timeout, job_retry=None))))
        return job, rows

    def load(self, rows: pa.Table, table: str, schema: Sequence[bigquery.SchemaField], job_id: str) -> Load:
        """Begin to load rows into a table that is empty."""
        return Load(self, rows, table, schema, job_id)

    def _start_load(self, data: io.BytesIO, table: str, schema: Sequence[bigquery.SchemaField], job_id: str) -> Any:
        from google.api_core.exceptions import Conflict
        from google.cloud import bigquery

        lists = bigquery.ParquetOptions()
        lists.enable_list_inference = True
        config = bigquery.LoadJobConfig(
            source_format="PARQUET",
            schema=list(schema),
            parquet_options=lists,
            write_disposition="WRITE_EMPTY",
            create_disposition="CREATE_NEVER",
            labels=self._labels,
        )
        data.seek(0)
        size = data.getbuffer().nbytes
        try:
            return self._call(
                lambda: self._client.load_table_from_file(
                    data, self.name(table), size=size, job_id=job_id, location=self._location, job_config=config, timeout=_ANSWER
                )
            )
        except Conflict:
            return self._call(lambda: self._found(job_id))

    def _found(self, job_id: str) -> Any:
        """The job of this id, which an answer that got lost was about."""
        return self._client.get_job(job_id, location=self._location, retry=self._retry, timeout=_ANSWER)

    @property
    def _retry(self) -> Retry:
        from google.cloud.bigquery import DEFAULT_RETRY

        return DEFAULT_RETRY.with_timeout(_PATIENCE)

    def _call(self, ask: Callable[[], _T]) -> _T:
        failpoints.hit("bigquery.asking")
        answer = ask()
        failpoints.hit("bigquery.answered")
        return answer


class Load:
    """One load job; it keeps its rows until it is done, to begin again where BigQuery was busy."""

    def __init__(self, warehouse: Warehouse, rows: pa.Table, table: str, schema: Sequence[bigquery.SchemaField], job_id: str) -> None:
        self._warehouse = warehouse
        self._table, self._schema, self._job_id = table, schema, job_id
        self._rows = rows.num_rows
        self._data = as_parquet(rows)
        self._tries = 0
        self._doing = f"loading {self._rows:,} rows into {warehouse.name(table)}"
        self._begin()

    def _begin(self) -> None:
        """Under an id that no job has had: BigQuery never runs an id twice, not even after a failure."""
        self._tries += 1
        with _explained(self._doing):
            self._job = self._warehouse._start_load(self._data, self._table, self._schema, f"{self._job_id}-{self._tries}")

    def finish(self) -> None:
        """Wait until the rows are there."""
        for pause in pauses(self._warehouse._timeout, _PAUSE):
            try:
                with _explained(self._doing):
                    self._warehouse._call(lambda: self._job.result(retry=self._warehouse._retry, timeout=self._warehouse._timeout))
                return
            except _BusyError as error:
                if pause is None:
                    raise UnavailableError(str(error)) from error
                time.sleep(pause)
                self._begin()


def _new_job_id() -> str:
    return f"factory_{secrets.token_hex(12)}"


class _BusyError(UnavailableError):
    """A job failed for reasons that pass; another id may succeed."""


def _parameters(values: Mapping[str, Any]) -> list[bigquery.ScalarQueryParameter | bigquery.ArrayQueryParameter]:
    from google.cloud import bigquery

    types = {str: "STRING", int: "INT64"}
    return [
        bigquery.ArrayQueryParameter(name, "STRING" if value and isinstance(value[0], str) else "INT64", list(value))
        if isinstance(value, (list, tuple))
        else bigquery.ScalarQueryParameter(name, types.get(type(value), "TIMESTAMP"), value)
        for name, value in values.items()
    ]


@contextmanager
def _explained(doing: str) -> Iterator[None]:
    """Turn the client's errors into ours."""
    import requests
    from google.api_core.exceptions import GoogleAPIError
    from google.auth.exceptions import GoogleAuthError

    try:
        yield
    except TookTooLongError:
        raise UnavailableError(f"{doing}: it took longer than timeout allows; raise that, or retry") from None
    except (GoogleAPIError, GoogleAuthError, requests.RequestException, ConnectionError) as error:
        raise explain(error, doing) from error


def explain(error: Exception, doing: str) -> FactoryError:
    """Our error for one of the client's."""
    import requests
    from google.api_core import exceptions as google
    from google.auth.exceptions import GoogleAuthError, TransportError

    if isinstance(error, google.RetryError) and error.cause is not None:
        error = error.cause
    said = f"{doing}: BigQuery says: {_line(error)}"
    if isinstance(error, (requests.RequestException, ConnectionError, TransportError)):
        return UnavailableError(f"{doing}: BigQuery does not answer: {_line(error)}")
    if isinstance(error, GoogleAuthError):
        return ConfigurationError(f"{doing}: {_line(error)}; {_HOW}")
    reason = _reason(error)
    if any(sign in said for sign in _CONFLICTS):
        return ConflictError(f"{said}; retry")
    if reason in _BUSY or isinstance(error, google.ServerError | google.TooManyRequests):
        return _BusyError(f"{said}; retry when it is less busy")
    if reason == "quotaExceeded":
        return UnavailableError(f"{said}; retry when the quota allows it again, or have it raised")
    if isinstance(error, google.Unauthorized | google.Forbidden):
        return ConfigurationError(f"{said}; grant roles/bigquery.dataEditor on the dataset, roles/bigquery.jobUser on the project")
    if isinstance(error, google.NotFound):
        return NotFoundError(f"{said}; create it, or correct the table's name")
    return SinkError(said)


def _reason(error: Exception) -> str:
    return str(_detail(error).get("reason", ""))


def _detail(error: Exception) -> Mapping[str, Any]:
    """What the answer itself says of an error, beside the request that the client tells of."""
    details = getattr(error, "errors", None)
    return details[0] if details and isinstance(details[0], Mapping) else {}


def _line(error: Exception) -> str:
    text = _detail(error).get("message") or getattr(error, "message", None) or error
    return " ".join(str(text).split())[:500]
