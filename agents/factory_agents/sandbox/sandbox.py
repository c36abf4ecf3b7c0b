"""Starts, ends and describes the parts of a sandbox together, whoever else does the same at this moment."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import msgspec

from factory_agents.errors import UnavailableError
from factory_agents.sandbox import airflow as airflows
from factory_agents.sandbox import bigquery, emulators, kafka, model, observability, postgres, private, registry, snowflake, temporal
from factory_agents.sandbox import state as states
from factory_agents.sandbox.processes import alive, free_port, is_free, listens
from factory_agents.sandbox.state import (
    HOST,
    BigQueryState,
    KafkaState,
    ModelState,
    ObservabilityState,
    PartStatus,
    PostgresState,
    RegistryState,
    SandboxInfo,
    SandboxStatus,
    SnowflakeState,
    State,
    TemporalState,
)

_TRIES = 3  # a port that was free may be taken before the server binds it


def _to_stderr(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


class Sandbox:
    """A Kafka broker and a PostgreSQL server whose files and processes belong to ``home``, which nobody else may read.

    The database wants a password; so do the model, and the listener of the broker that ``sasl`` adds. The other listener takes any client
    on this machine, and the emulators, the Temporal server and the schema registry have no password at all.

    Args:
        home: where everything is kept; by default ``FACTORY_HOME``, else ``.factory`` in the current directory.
        sasl: whether the broker also has a listener that wants a user and a password (SASL_PLAINTEXT, PLAIN).
        with_bigquery: whether a BigQuery emulator runs beside them. It needs Python 3.13 on the machine, and is built the first time.
        with_temporal: whether a Temporal development server runs beside them.
        with_snowflake: the same for a Snowflake emulator, which needs Python 3.11.
        with_registry: whether a schema registry runs beside them. It is fetched the first time.
        with_model: whether a small language model runs beside them, which takes one core while it is asked. It is built the first time.
        with_observability: whether Prometheus, Alertmanager, a metrics server and (if there) Jaeger run beside them, from the PATH.
        host: this machine's address to listen at; another than loopback lets its neighbours in, for example a test cluster's pods.
            Temporal is always on loopback.
        tell: receives progress, one line a call; by default written to standard error.

    Any number of processes may use the same ``home`` at once: each method takes its lock.
    """

    def __init__(
        self,
        home: Path | None = None,
        *,
        sasl: bool = False,
        with_bigquery: bool = False,
        with_temporal: bool = False,
        with_snowflake: bool = False,
        with_registry: bool = False,
        with_model: bool = False,
        with_observability: bool = False,
        host: str = HOST,
        tell: Callable[[str], None] = _to_stderr,
    ) -> None:
        self.home = (home or states.default_home()).absolute()
        self._sasl = sasl
        self._with_bigquery = with_bigquery
        self._with_temporal = with_temporal
        self._with_snowflake = with_snowflake
        self._with_registry = with_registry
        self._with_model = with_model
        self._with_observability = with_observability
        self._host = host
        self._tell = tell

    def up(self) -> SandboxInfo:
        """Start what doesn't run, wait until it serves, and say where it is; quick if all runs already.

        Raises:
            ConfigurationError: the ``sandbox`` extra isn't installed.
            UnavailableError: a part did not start, or its files could not be fetched.
        """
        with self._locked():
            for path in self.home.iterdir():
                if path != self._postgres_folder:  # its user passes through it
                    private.tighten(path)
            for _ in range(_TRIES):  # a part that was being killed when looked at is dead only now
                self._start_missing()
                found = states.info_of(self.home, self._state())
                if found is not None and self._is_all(found):
                    return found
        raise UnavailableError(f"the sandbox in {self.home} ends as soon as it is started: see its logs there")

    def _is_all(self, found: SandboxInfo) -> bool:
        wanted = (
            (self._with_bigquery, found.bigquery_url),
            (self._with_snowflake, found.snowflake_url),
            (self._with_temporal, found.temporal_address),
            (self._with_registry, found.registry_url),
            (self._with_model, found.model_url),
            (self._with_observability, found.prometheus_url),
        )
        return all(address is not None for asked, address in wanted if asked)

    def down(self, *, wipe: bool = False) -> None:
        """End all parts; with ``wipe`` forget their data too. No-op where nothing runs."""
        if not self.home.exists():
            return
        with self._locked():
            self._end_observability()
            self._end_kafka()
            self._end_postgres()
            self._end_bigquery()
            self._end_temporal()
            self._end_snowflake()
            self._end_registry()
            self._end_model()
            if wipe:
                states.forget(self.home)
                shutil.rmtree(self._kafka_folder, ignore_errors=True)
                shutil.rmtree(self._postgres_folder, ignore_errors=True)
                shutil.rmtree(self._bigquery_folder, ignore_errors=True)
                shutil.rmtree(self._temporal_folder, ignore_errors=True)
                shutil.rmtree(self._snowflake_folder, ignore_errors=True)
                shutil.rmtree(self._registry_folder, ignore_errors=True)
                shutil.rmtree(self._model_folder, ignore_errors=True)
                shutil.rmtree(self._observability_folder, ignore_errors=True)

    def status(self) -> SandboxStatus:
        """What runs, where; takes no lock, so it answers while another process starts the parts."""
        state = states.load(self.home)
        return SandboxStatus(
            home=self.home,
            kafka=_part(state.kafka if state else None, kafka.log_of(self._kafka_folder)),
            postgres=_part(state.postgres if state else None, postgres.log_of(self._postgres_folder)),
            temporal=_part(state.temporal, temporal.log_of(self._temporal_folder)) if state and state.temporal else None,
            bigquery=_part(state.bigquery, emulators.log_of(self._bigquery_folder)) if state and state.bigquery else None,
            snowflake=_part(state.snowflake, emulators.log_of(self._snowflake_folder)) if state and state.snowflake else None,
            registry=_part(state.registry, registry.log_of(self._registry_folder)) if state and state.registry else None,
            model=_part(state.model, emulators.log_of(self._model_folder)) if state and state.model else None,
            observability=_part(state.observability, observability.log_of(self._observability_folder))
            if state and state.observability
            else None,
        )

    def info(self) -> SandboxInfo:
        """Where the running sandbox is.

        Raises:
            UnavailableError: it isn't running.
        """
        found = states.read_info(self.home)
        if found is None:
            raise UnavailableError(f"no sandbox is running in {self.home}: start it with `factory sandbox up`")
        return found

    def env(self) -> dict[str, str]:
        """The variables that make a shell use the running sandbox.

        Raises:
            UnavailableError: it isn't running.
        """
        return self.info().env()

    def shell_env(self, *, airflow: bool = False, trial: bool = False) -> dict[str, str]:
        """What ``env`` says, and the database's own programs on the PATH where there are none; with ``airflow`` all that it needs for the
        DAGs of the current directory, prepared if need be (``trial``: with metadata of their own).

        Raises:
            UnavailableError: it isn't running.
            ConfigurationError: no Airflow is installed.
            FactoryError: Airflow cannot prepare its metadata.
        """
        info = self.info()
        variables = info.env()
        if airflow:
            variables = airflows.airflow_variables(info, Path.cwd(), trial=trial)
            with self._locked():
                airflows.prepare_airflow(variables, self._tell)
        if shutil.which("psql") is None:
            variables["PATH"] = os.pathsep.join([os.environ.get("PATH", ""), str(postgres.programs())])
        return variables

    @property
    def kafka_pid(self) -> int | None:
        """The broker's process id, or None if it doesn't run."""
        return self.status().kafka.pid

    @property
    def postgres_pid(self) -> int | None:
        """The database server's process id, or None if it doesn't run."""
        return self.status().postgres.pid

    def stop_kafka(self) -> None:
        """End the broker and keep its data."""
        with self._locked():
            self._end_kafka()

    def start_kafka(self) -> None:
        """Start the broker on its old data and port, if it doesn't run."""
        with self._locked():
            broker = self._launch_kafka()
            if broker is not None:
                self._finish_kafka(broker)

    def restart_kafka(self) -> None:
        """End the broker and start it again, on the same data and port."""
        with self._locked():
            self._end_kafka()
            broker = self._launch_kafka()
            if broker is not None:
                self._finish_kafka(broker)

    def start_postgres(self) -> None:
        """Start the database server on its old data and port, if it doesn't run."""
        with self._locked():
            self._start_postgres()

    def stop_registry(self) -> None:
        """End the schema registry and keep its data."""
        with self._locked():
            self._end_registry()

    def start_registry(self) -> None:
        """Start the schema registry on its old data and port, if it doesn't run."""
        with self._locked():
            self._start_registry()

    @property
    def _kafka_folder(self) -> Path:
        return self.home / "kafka"

    @property
    def _postgres_folder(self) -> Path:
        return self.home / "postgres"

    @property
    def _bigquery_folder(self) -> Path:
        return self.home / "bigquery"

    @property
    def _temporal_folder(self) -> Path:
        return self.home / "temporal"

    @property
    def _snowflake_folder(self) -> Path:
        return self.home / "snowflake"

    @property
    def _registry_folder(self) -> Path:
        return self.home / "registry"

    @property
    def _model_folder(self) -> Path:
        return self.home / "model"

    @property
    def _observability_folder(self) -> Path:
        return self.home / "observability"

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        private.folder(self.home, group=postgres.server_group())
        with private.append(self.home / "lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _state(self) -> State:
        return states.load(self.home) or State(password=secrets.token_hex(16))

    def _start_missing(self) -> None:
        broker = self._launch_kafka()  # boots while the database's cluster is created
        self._start_postgres()
        if self._with_bigquery:
            self._start_bigquery()
        if self._with_temporal:
            self._start_temporal()
        if self._with_snowflake:
            self._start_snowflake()
        if self._with_registry:
            self._start_registry()
        if self._with_model:
            self._start_model()
        if broker is not None:
            self._finish_kafka(broker)
        if self._with_observability:
            self._start_observability()

    def _launch_kafka(self) -> KafkaState | None:
        """Begin to start the broker; None if one serves already."""
        state = self._state()
        broker = state.kafka
        if broker is not None and alive(broker.process):
            if listens(broker.host, broker.port) and (broker.sasl_port is not None or not self._sasl):
                return None
            kafka.end(self._kafka_folder, broker.process, self._tell)
        return self._launch_kafka_on(_kafka_ports(broker, self._host, self._sasl))

    def _launch_kafka_on(self, ports: KafkaState) -> KafkaState:
        state = self._state()
        process = kafka.start(self._kafka_folder, ports, state.password, self._tell)
        launched = msgspec.structs.replace(ports, process=process)
        states.save(self.home, msgspec.structs.replace(state, kafka=launched))
        return launched

    def _finish_kafka(self, broker: KafkaState) -> None:
        for attempt in range(1, _TRIES + 1):
            if broker.process is None:
                break
            try:
                kafka.wait_ready(self._kafka_folder, broker.process)
                return
            except UnavailableError:
                kafka.end(self._kafka_folder, broker.process, self._tell)
                if attempt == _TRIES or not _port_taken(kafka.log_of(self._kafka_folder)):
                    raise
            broker = self._launch_kafka_on(_kafka_ports(None, self._host, self._sasl))

    def _end_kafka(self) -> None:
        state = self._state()
        if state.kafka is not None:
            kafka.end(self._kafka_folder, state.kafka.process, self._tell)
            states.save(self.home, msgspec.structs.replace(state, kafka=msgspec.structs.replace(state.kafka, process=None)))

    def _start_postgres(self) -> None:
        server = self._state().postgres
        if server is not None and alive(server.process):
            if listens(server.host, server.port) and server.databases:
                return
            postgres.end(server.process)
        for attempt in range(1, _TRIES + 1):
            port = _port_again(self._host, server.port if server else None)
            try:
                self._start_postgres_on(PostgresState(host=self._host, port=port, databases=server is not None and server.databases))
                return
            except UnavailableError:
                self._end_postgres()
                if attempt == _TRIES or not _port_taken(postgres.log_of(self._postgres_folder)):
                    raise
                server = None

    def _start_postgres_on(self, server: PostgresState) -> None:
        state = self._state()
        process = postgres.start(self._postgres_folder, server.host, server.port, state.password, self._tell)
        server = msgspec.structs.replace(server, process=process)
        states.save(self.home, msgspec.structs.replace(state, postgres=server))
        postgres.wait_ready(self._postgres_folder, process)
        if not server.databases:
            postgres.create_databases(server.host, server.port, state.password)
            states.save(self.home, msgspec.structs.replace(state, postgres=msgspec.structs.replace(server, databases=True)))

    def _end_postgres(self) -> None:
        state = self._state()
        if state.postgres is not None:
            postgres.end(state.postgres.process)
            stopped = msgspec.structs.replace(state.postgres, process=None)
            states.save(self.home, msgspec.structs.replace(state, postgres=stopped))

    def _start_bigquery(self) -> None:
        emulator = self._state().bigquery
        if emulator is not None and alive(emulator.process):
            if bigquery.answers(emulator.host, emulator.port):
                return
            emulators.end(emulator.process)
        port = _port_again(self._host, emulator.port if emulator else None)
        grpc_port = _port_again(self._host, emulator.grpc_port if emulator else None)
        process = bigquery.start(self._bigquery_folder, self._host, port, grpc_port, self._tell)
        started = BigQueryState(host=self._host, port=port, grpc_port=grpc_port, process=process)
        states.save(self.home, msgspec.structs.replace(self._state(), bigquery=started))
        bigquery.EMULATOR.wait_ready(self._bigquery_folder, process, lambda: bigquery.answers(self._host, port))

    def _end_bigquery(self) -> None:
        state = self._state()
        if state.bigquery is not None:
            emulators.end(state.bigquery.process)
            states.save(self.home, msgspec.structs.replace(state, bigquery=msgspec.structs.replace(state.bigquery, process=None)))

    def _start_registry(self) -> None:
        server = self._state().registry
        if server is not None and alive(server.process):
            if registry.answers(server.host, server.port):
                return
            registry.end(server.process)
        port = _port_again(self._host, server.port if server else None)
        management_port = _port_again(self._host, server.management_port if server else None)
        process = registry.start(self._registry_folder, self._host, port, management_port, self._tell)
        started = RegistryState(host=self._host, port=port, management_port=management_port, process=process)
        states.save(self.home, msgspec.structs.replace(self._state(), registry=started))
        registry.wait_ready(self._registry_folder, process, self._host, port)

    def _end_registry(self) -> None:
        state = self._state()
        if state.registry is not None:
            registry.end(state.registry.process)
            states.save(self.home, msgspec.structs.replace(state, registry=msgspec.structs.replace(state.registry, process=None)))

    def _start_temporal(self) -> None:
        server = self._state().temporal
        if server is not None and alive(server.process):
            if temporal.answers(server.host, server.port):
                return
            temporal.end(server.process)
        # whatever the host: its parts look for each other on loopback
        port = _port_again(HOST, server.port if server else None)
        ui_port = _port_again(HOST, server.ui_port if server else None)
        process = temporal.start(self._temporal_folder, HOST, port, ui_port, self._tell)
        started = TemporalState(host=HOST, port=port, ui_port=ui_port, process=process)
        states.save(self.home, msgspec.structs.replace(self._state(), temporal=started))
        temporal.wait_ready(self._temporal_folder, process, HOST, port)

    def _end_temporal(self) -> None:
        state = self._state()
        if state.temporal is not None:
            temporal.end(state.temporal.process)
            states.save(self.home, msgspec.structs.replace(state, temporal=msgspec.structs.replace(state.temporal, process=None)))

    def _start_snowflake(self) -> None:
        emulator = self._state().snowflake
        if emulator is not None and alive(emulator.process):
            if snowflake.answers(emulator.host, emulator.port):
                return
            emulators.end(emulator.process)
        port = _port_again(self._host, emulator.port if emulator else None)
        process = snowflake.start(self._snowflake_folder, self._host, port, self._tell)
        started = SnowflakeState(host=self._host, port=port, process=process)
        states.save(self.home, msgspec.structs.replace(self._state(), snowflake=started))
        snowflake.EMULATOR.wait_ready(self._snowflake_folder, process, lambda: snowflake.answers(self._host, port))

    def _end_snowflake(self) -> None:
        state = self._state()
        if state.snowflake is not None:
            emulators.end(state.snowflake.process)
            states.save(self.home, msgspec.structs.replace(state, snowflake=msgspec.structs.replace(state.snowflake, process=None)))

    def _start_model(self) -> None:
        state = self._state()
        server = state.model
        if server is not None and alive(server.process):
            if model.answers(server.host, server.port):
                return
            emulators.end(server.process)
        port = _port_again(self._host, server.port if server else None)
        process = model.start(self._model_folder, self._host, port, state.password, self._tell)
        started = ModelState(host=self._host, port=port, process=process)
        states.save(self.home, msgspec.structs.replace(self._state(), model=started))
        model.SERVER.wait_ready(self._model_folder, process, lambda: model.answers(self._host, port))

    def _end_model(self) -> None:
        state = self._state()
        if state.model is not None:
            emulators.end(state.model.process)
            states.save(self.home, msgspec.structs.replace(state, model=msgspec.structs.replace(state.model, process=None)))

    def _start_observability(self) -> None:
        state = self._state()
        before, broker = state.observability, state.kafka
        if broker is None:
            return
        bootstrap = f"{broker.host}:{broker.port}"
        if before is not None:
            if before.bootstrap == bootstrap and observability.answers(before):
                return
            observability.end(before)
        ports = ObservabilityState(
            host=self._host,
            port=_port_again(self._host, before.port if before else None),
            alerts_port=_port_again(self._host, before.alerts_port if before else None),
            metrics_port=_port_again(self._host, before.metrics_port if before else None),
            traces_port=_port_again(self._host, before.traces_port if before and before.traces_port else None),
            otlp_port=_port_again(self._host, before.otlp_port if before and before.otlp_port else None),
        )
        started = observability.start(self._observability_folder, ports, bootstrap, self._tell)
        states.save(self.home, msgspec.structs.replace(self._state(), observability=started))
        observability.wait_ready(self._observability_folder, started)

    def _end_observability(self) -> None:
        state = self._state()
        if state.observability is not None:
            observability.end(state.observability)
            stopped = msgspec.structs.replace(state.observability, process=None, alerts=None, metrics=None)
            states.save(self.home, msgspec.structs.replace(state, observability=stopped))


_Server: TypeAlias = (
    KafkaState | PostgresState | BigQueryState | SnowflakeState | TemporalState | RegistryState | ModelState | ObservabilityState | None
)


def _part(state: _Server, log: Path) -> PartStatus:
    log_if_any = log if log.exists() else None
    if state is None or state.process is None or not alive(state.process):
        return PartStatus(running=False, log=log_if_any)
    return PartStatus(running=True, address=f"{state.host}:{state.port}", pid=state.process.pid, log=log_if_any)


def _kafka_ports(before: KafkaState | None, host: str, sasl: bool) -> KafkaState:
    """The ports of the last time, so that clients find a restarted broker; new ones where those are taken."""
    if before is None:
        return KafkaState(host=host, port=free_port(host), controller_port=free_port(host), sasl_port=free_port(host) if sasl else None)
    return KafkaState(
        host=host,
        port=_port_again(host, before.port),
        controller_port=_port_again(host, before.controller_port),
        sasl_port=_port_again(host, before.sasl_port) if sasl or before.sasl_port is not None else None,
    )


def _port_again(host: str, old: int | None) -> int:
    return old if old is not None and is_free(host, old) else free_port(host)


def _port_taken(log: Path) -> bool:
    told = log.read_bytes()
    return b"Address already in use" in told or b"BindException" in told
