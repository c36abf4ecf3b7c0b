"""What a sandbox remembers between two commands: its ports, passwords and processes, in one private file."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote, urlsplit

import msgspec

from factory_agents.errors import ConfigurationError
from factory_agents.sandbox import private
from factory_agents.sandbox.processes import ProcessRecord, alive

HOST = "127.0.0.1"
USER = "factory"
DATABASE = "factory"
AIRFLOW_DATABASE = "airflow"
BIGQUERY_PROJECT = "local"
SNOWFLAKE_ACCOUNT, SNOWFLAKE_DATABASE, SNOWFLAKE_SCHEMA = "local", "LOCAL", "PUBLIC"
MODEL = "smollm2-135m-instruct"
_FILE = "sandbox.json"


class KafkaState(msgspec.Struct, frozen=True, kw_only=True):
    """The broker's address, ports and process; ``sasl_port`` only where the listener with a password was asked for."""

    port: int
    controller_port: int
    sasl_port: int | None = None
    host: str = HOST
    process: ProcessRecord | None = None


class PostgresState(msgspec.Struct, frozen=True, kw_only=True):
    """The server's address and process; ``databases`` once its databases exist."""

    port: int
    host: str = HOST
    process: ProcessRecord | None = None
    databases: bool = False


class BigQueryState(msgspec.Struct, frozen=True, kw_only=True):
    """The emulator's address and process."""

    port: int
    grpc_port: int
    host: str = HOST
    process: ProcessRecord | None = None


class TemporalState(msgspec.Struct, frozen=True, kw_only=True):
    """The development server's address and process."""

    port: int
    ui_port: int
    host: str = HOST
    process: ProcessRecord | None = None


class SnowflakeState(msgspec.Struct, frozen=True, kw_only=True):
    """The emulator's address and process."""

    port: int
    host: str = HOST
    process: ProcessRecord | None = None


class RegistryState(msgspec.Struct, frozen=True, kw_only=True):
    """The schema registry's address and process."""

    port: int
    management_port: int
    host: str = HOST
    process: ProcessRecord | None = None


class ModelState(msgspec.Struct, frozen=True, kw_only=True):
    """The model server's address and process."""

    port: int
    host: str = HOST
    process: ProcessRecord | None = None


class ObservabilityState(msgspec.Struct, frozen=True, kw_only=True):
    """Prometheus' address and process, those of Alertmanager, of the metrics server, and of Jaeger; and the broker that they ask.

    Jaeger takes traces at ``otlp_port`` and shows them at ``traces_port``; without a process, there is none.
    """

    port: int
    alerts_port: int
    metrics_port: int
    traces_port: int = 0
    otlp_port: int = 0
    host: str = HOST
    bootstrap: str = ""
    process: ProcessRecord | None = None
    alerts: ProcessRecord | None = None
    metrics: ProcessRecord | None = None
    traces: ProcessRecord | None = None


class State(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a sandbox keeps; ``password`` serves all parts that want one."""

    password: str
    kafka: KafkaState | None = None
    postgres: PostgresState | None = None
    bigquery: BigQueryState | None = None
    temporal: TemporalState | None = None
    snowflake: SnowflakeState | None = None
    registry: RegistryState | None = None
    model: ModelState | None = None
    observability: ObservabilityState | None = None


class SandboxInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Where a running sandbox is reached.

    The URLs carry the password and suit psycopg and psql; ``airflow_database_url`` is the empty database for Airflow's own
    metadata, in SQLAlchemy's form. The ``sasl_`` fields are None unless the sandbox was started with ``sasl=True``
    (SASL_PLAINTEXT, mechanism PLAIN); ``bigquery_url`` and ``snowflake_url`` are None unless the emulator runs, ``temporal_address`` and
    ``temporal_ui_url`` unless that server does, ``registry_url`` unless the schema registry does, ``model_url`` and ``model_key`` unless
    the model does, ``prometheus_url``, ``alertmanager_url`` and ``metrics_url`` unless those run, ``jaeger_url`` and
    ``otlp_url`` unless Jaeger does.
    """

    home: Path
    bootstrap: str
    database_url: str
    airflow_database_url: str
    kafka_pid: int
    postgres_pid: int
    sasl_bootstrap: str | None = None
    sasl_username: str | None = None
    sasl_password: str | None = None
    bigquery_url: str | None = None
    temporal_address: str | None = None
    temporal_ui_url: str | None = None
    snowflake_url: str | None = None
    registry_url: str | None = None
    model_url: str | None = None
    model_key: str | None = None
    prometheus_url: str | None = None
    alertmanager_url: str | None = None
    metrics_url: str | None = None
    jaeger_url: str | None = None
    otlp_url: str | None = None

    def env(self) -> dict[str, str]:
        """The variables that make any shell, agent or Airflow process use this sandbox."""
        kafka = {"conn_type": "kafka", "extra": {"bootstrap.servers": self.bootstrap, "group.id": "factory-sandbox"}}
        variables = {
            "KAFKA_BOOTSTRAP": self.bootstrap,
            "DATABASE_URL": self.database_url,
            "AIRFLOW_CONN_KAFKA_DEFAULT": msgspec.json.encode(kafka).decode(),
            "AIRFLOW_CONN_POSTGRES_DEFAULT": self.database_url,
        }
        if self.bigquery_url is not None:
            variables |= bigquery_env(self.bigquery_url)
        if self.snowflake_url is not None:
            variables |= snowflake_env(self.snowflake_url)
        if self.temporal_address is not None:
            variables["TEMPORAL_ADDRESS"] = self.temporal_address
        if self.registry_url is not None:
            variables["SCHEMA_REGISTRY_URL"] = self.registry_url
        if self.model_url is not None:
            variables |= model_env(self.model_url, self.model_key or "")
        if self.otlp_url is not None:
            variables["OTEL_EXPORTER_OTLP_ENDPOINT"] = self.otlp_url
        return variables


def bigquery_env(url: str) -> dict[str, str]:
    """The variables that make BigQuery's clients use an emulator."""
    google = {"conn_type": "google_cloud_platform", "extra": {"is_anonymous": True, "project": BIGQUERY_PROJECT}}
    return {
        "BIGQUERY_EMULATOR_HOST": url,
        "GOOGLE_CLOUD_PROJECT": BIGQUERY_PROJECT,
        "AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT": msgspec.json.encode(google).decode(),
    }


def snowflake_env(url: str) -> dict[str, str]:
    """The variables that make Snowflake's client use an emulator, which takes any user and password."""
    place = urlsplit(url)
    where = {"account": SNOWFLAKE_ACCOUNT, "host": place.hostname, "port": place.port, "protocol": place.scheme}
    where |= {"database": SNOWFLAKE_DATABASE}
    snowflake = {"conn_type": "snowflake", "login": USER, "password": USER, "schema": SNOWFLAKE_SCHEMA, "extra": where}
    named = where | {"user": USER, "password": USER, "schema": SNOWFLAKE_SCHEMA}
    return {
        **{f"SNOWFLAKE_{name.upper()}": str(value) for name, value in named.items()},
        "SNOWFLAKE_DISABLE_PLATFORM_DETECTION": "true",  # else the client asks the clouds' metadata servers where it is
        "AIRFLOW_CONN_SNOWFLAKE_DEFAULT": msgspec.json.encode(snowflake).decode(),
    }


def model_env(url: str, key: str) -> dict[str, str]:
    """The variables that make ``infer`` ask a model: directly, and in Airflow by the connection ``model_default``."""
    connection = {"conn_type": "pydanticai", "host": url, "password": key, "extra": {"model": MODEL}}
    return {
        "FACTORY_MODEL": MODEL,
        "FACTORY_MODEL_ENDPOINT": url,
        "FACTORY_MODEL_API_KEY": key,
        "AIRFLOW_CONN_MODEL_DEFAULT": msgspec.json.encode(connection).decode(),
    }


class PartStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One part: whether its process runs, and where."""

    running: bool
    address: str | None = None
    pid: int | None = None
    log: Path | None = None


class SandboxStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of the sandbox kept in ``home``; ``bigquery``, ``snowflake``, ``temporal``, ``registry``, ``model`` and
    ``observability`` (of Prometheus) where they were asked for.
    """

    home: Path
    kafka: PartStatus
    postgres: PartStatus
    bigquery: PartStatus | None = None
    temporal: PartStatus | None = None
    snowflake: PartStatus | None = None
    registry: PartStatus | None = None
    model: PartStatus | None = None
    observability: PartStatus | None = None

    @property
    def running(self) -> bool:
        """Whether both parts run."""
        return self.kafka.running and self.postgres.running


def default_home() -> Path:
    """``FACTORY_HOME``, else ``.factory`` in the current directory."""
    return Path(os.environ.get("FACTORY_HOME") or ".factory").absolute()


def read_info(home: Path | None = None) -> SandboxInfo | None:
    """The sandbox that runs in ``home`` (by default the current directory's), or None; starts and imports nothing."""
    home = (home or default_home()).absolute()
    state = load(home)
    return None if state is None else info_of(home, state)


def load(home: Path) -> State | None:
    """The state kept in ``home``, or None where there has been no sandbox.

    Raises:
        ConfigurationError: the file is not one of ours.
    """
    path = home / _FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=State)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise ConfigurationError(f"{path}: expected the state of a sandbox: {error}; remove it to begin again") from error


def save(home: Path, state: State) -> None:
    """Replace the state in ``home``, readable by its owner only."""
    fresh = home / f"{_FILE}.new"
    private.write(fresh, msgspec.json.format(msgspec.json.encode(state), indent=2))
    fresh.replace(home / _FILE)


def forget(home: Path) -> None:
    """Remove the state file."""
    (home / _FILE).unlink(missing_ok=True)


def info_of(home: Path, state: State) -> SandboxInfo | None:
    """How to reach the sandbox of ``state``, or None if a part of it doesn't run."""
    kafka, postgres = state.kafka, state.postgres
    if kafka is None or postgres is None or not (alive(kafka.process) and alive(postgres.process)):
        return None
    if kafka.process is None or postgres.process is None or not postgres.databases:
        return None
    authority = f"{USER}:{quote(state.password)}@{postgres.host}:{postgres.port}"
    sasl = kafka.sasl_port is not None
    model = _url(state.model)
    temporal = state.temporal if state.temporal is not None and alive(state.temporal.process) else None
    seen = state.observability if state.observability is not None and alive(state.observability.process) else None
    return SandboxInfo(
        home=home,
        bootstrap=f"{kafka.host}:{kafka.port}",
        database_url=f"postgresql://{authority}/{DATABASE}",
        airflow_database_url=f"postgresql+psycopg2://{authority}/{AIRFLOW_DATABASE}",
        kafka_pid=kafka.process.pid,
        postgres_pid=postgres.process.pid,
        sasl_bootstrap=f"{kafka.host}:{kafka.sasl_port}" if sasl else None,
        sasl_username=USER if sasl else None,
        sasl_password=state.password if sasl else None,
        temporal_address=f"{temporal.host}:{temporal.port}" if temporal is not None else None,
        temporal_ui_url=f"http://{temporal.host}:{temporal.ui_port}" if temporal is not None else None,
        bigquery_url=_url(state.bigquery),
        snowflake_url=_url(state.snowflake),
        registry_url=_registry_url(state.registry),
        model_url=f"{model}/v1" if model is not None else None,
        model_key=state.password if model is not None else None,
        prometheus_url=f"http://{seen.host}:{seen.port}" if seen is not None else None,
        alertmanager_url=f"http://{seen.host}:{seen.alerts_port}" if seen is not None else None,
        metrics_url=f"http://{seen.host}:{seen.metrics_port}/metrics" if seen is not None else None,
        jaeger_url=f"http://{seen.host}:{seen.traces_port}" if seen is not None and seen.traces is not None else None,
        otlp_url=f"http://{seen.host}:{seen.otlp_port}" if seen is not None and seen.traces is not None else None,
    )


def _registry_url(state: RegistryState | None) -> str | None:
    address = _url(state)
    return f"{address}/apis/ccompat/v7" if address is not None else None


def _url(state: BigQueryState | SnowflakeState | RegistryState | ModelState | None) -> str | None:
    return f"http://{state.host}:{state.port}" if state is not None and alive(state.process) else None
