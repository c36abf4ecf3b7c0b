"""What every test may ask for: a real broker, a real database, topics and names of its own."""

from __future__ import annotations

import gc
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

from factory_agents.errors import FactoryError
from factory_agents.sandbox import Sandbox
from factory_agents.sandbox.state import bigquery_env, snowflake_env
from tests.support import closing, shared_sandbox
from tests.support.databases import own_database
from tests.support.topics import create_topic

if TYPE_CHECKING:
    from confluent_kafka.admin import AdminClient

    from factory_agents.sandbox import SandboxInfo
    from tests.support.bigquery import Emulator
    from tests.support.otlp import Collector
    from tests.support.snowflake import SnowflakeSchema

gc.disable()  # until everything is collected: a fifth of the time that it takes

WORKER = os.environ.get("PYTEST_XDIST_WORKER", "main")

# Before anything imports Airflow, which reads these once.
os.environ["AIRFLOW_HOME"] = str(shared_sandbox.AIRFLOW_HOMES / WORKER)
os.environ.setdefault("AIRFLOW__CORE__LOAD_EXAMPLES", "False")
os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(shared_sandbox.temporary()))

settings.register_profile("dev", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("dev"), derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


class TopicFactory(Protocol):
    """Creates a topic and returns its name; ``retention_ms=1`` stands for the setting ``retention.ms``."""

    def __call__(self, name: str = "t", partitions: int = 4, **config: object) -> str: ...


_TOGETHER = (
    "tests/agents/sandbox/test_sandbox.py",
    "tests/dags/",
    "tests/integration/test_least_rights.py",
    "tests/integration/test_promise_3_broker.py",
    "tests/provider/page/test_browser.py",
)
"""Files whose tests share what is dear to start: a broker of their own, a browser, topics."""


class _OneAirflow(LoadScopeScheduling):  # type: ignore[misc]  # xdist is untyped
    """Tests one by one to whoever is free, but those on a whole Airflow to one worker, so that there is one of it, and so those of a file
    that share something else.
    """

    def _split_scope(self, nodeid: str) -> str:
        if nodeid.startswith("tests/airflow/"):
            return "tests/airflow"
        return nodeid.partition("::")[0] if nodeid.startswith(_TOGETHER) else nodeid


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Twice as many as there are cores: half of its time a test waits for a broker, a database or a timeout. Units (``logical``) don't."""
    return len(os.sched_getaffinity(0)) * (1 if config.option.numprocesses == "logical" else 2)


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> _OneAirflow | None:
    return _OneAirflow(config, log) if config.getvalue("dist") == "load" else None


BEYOND_A_DATABASE = {
    "bootstrap",
    "own_sandbox",
    "bigquery_url",
    "snowflake_account",
    "airflow_home",
    "airflow_running",
    "cluster",
    "components",
}
PARTS = {"sandbox", *BEYOND_A_DATABASE}
"""Fixtures that start a broker, a database or an Airflow: who asks for one is no unit test."""

CATALOGS = {"bench", "examples", "rest_catalog"}
"""Fixtures of sinks whose tables are files: quick one by one, and very many."""


def pytest_collection_finish() -> None:
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        asked = set(getattr(item, "fixturenames", ()))
        if asked & PARTS:
            item.add_marker(pytest.mark.parts)
        if "database_url" in asked and not asked & BEYOND_A_DATABASE:
            item.add_marker(pytest.mark.database)
        if asked & CATALOGS:
            item.add_marker(pytest.mark.slow)


def pytest_configure(config: pytest.Config) -> None:
    closing.pytest_configure(config)
    if not hasattr(config, "workerinput"):  # the session, not one of its workers
        shared_sandbox.take_lease()


pytest_sessionfinish = closing.pytest_sessionfinish


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        shared_sandbox.give_lease_back()


@pytest.fixture(scope="session")
def sandbox() -> Sandbox:
    """The running sandbox that all workers share: don't stop its parts, take ``own_sandbox`` for that."""
    shared = shared_sandbox.shared()
    shared.up()
    return shared


@pytest.fixture(scope="session")
def sandbox_info(sandbox: Sandbox) -> SandboxInfo:
    """Where the shared sandbox is, its listener with a password included."""
    return sandbox.info()


@pytest.fixture(scope="module")
def breakable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    from factory_agents.sandbox import Sandbox

    own = Sandbox(tmp_path_factory.mktemp("breakable") / "factory")
    yield own
    own.down(wipe=True)


@pytest.fixture
def own_sandbox(breakable: Sandbox) -> Sandbox:
    """A running sandbox that the test may break: it is mended for the module's next one."""
    breakable.up()
    return breakable


@pytest.fixture(scope="session")
def bootstrap(sandbox_info: SandboxInfo) -> str:
    """The shared broker's address."""
    return sandbox_info.bootstrap


@pytest.fixture(scope="session")
def database_url(sandbox_info: SandboxInfo) -> Iterator[str]:
    """A database of this worker's own, empty at its start."""
    with own_database(sandbox_info.database_url, f"test_{WORKER}") as url:
        yield url


@pytest.fixture(scope="session")
def bigquery_url(request: pytest.FixtureRequest) -> str:
    """The shared BigQuery emulator, or "" for BigQuery itself: ``FACTORY_TEST_BIGQUERY`` names the project.

    Tests that need it are skipped, which the last line says, where the emulator can't be set up.
    """
    if os.environ.get("FACTORY_TEST_BIGQUERY"):
        return ""
    request.getfixturevalue("sandbox")
    try:
        return shared_sandbox.with_emulators(bigquery=True).up().bigquery_url or ""
    except FactoryError as error:
        pytest.skip(f"the BigQuery emulator: {error}")


@pytest.fixture(scope="session")
def temporal_address(sandbox: Sandbox) -> str:
    """The shared Temporal server: names of its own for each test, don't stop it."""
    return shared_sandbox.with_temporal().up().temporal_address or ""


@pytest.fixture(scope="session")
def registry_url(sandbox: Sandbox) -> str:
    """The shared schema registry: subjects of its own for each test, don't stop it."""
    return shared_sandbox.with_registry().up().registry_url or ""


@pytest.fixture
def own_registry(tmp_path: Path) -> Iterator[Sandbox]:
    """A sandbox with a registry that the test may stop."""
    own = Sandbox(tmp_path / "factory", with_registry=True)
    own.up()
    yield own
    own.down(wipe=True)


@pytest.fixture
def emulator(bigquery_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    """A dataset of this test's own; publishers in this process find the emulator."""
    from tests.support.bigquery import Emulator

    account = {"GOOGLE_CLOUD_PROJECT": os.environ.get("FACTORY_TEST_BIGQUERY", "")}
    for name, value in (bigquery_env(bigquery_url) if bigquery_url else account).items():
        monkeypatch.setenv(name, value)
    own = Emulator(bigquery_url)
    yield own
    own.close()


@pytest.fixture(scope="session")
def snowflake_account(request: pytest.FixtureRequest) -> Mapping[str, str]:
    """The shared Snowflake emulator, or the account of this shell with ``FACTORY_TEST_SNOWFLAKE``, as variables.

    Tests that need it are skipped, which the last line says, where the emulator can't be set up.
    """
    if os.environ.get("FACTORY_TEST_SNOWFLAKE"):
        return {name: value for name, value in os.environ.items() if name.startswith("SNOWFLAKE_")}
    request.getfixturevalue("sandbox")
    try:
        return snowflake_env(shared_sandbox.with_emulators(snowflake=True).up().snowflake_url or "")
    except FactoryError as error:
        pytest.skip(f"the Snowflake emulator: {error}")


@pytest.fixture
def snowflake(snowflake_account: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[SnowflakeSchema]:
    """A schema of this test's own, which publishers in this process find."""
    from tests.support.snowflake import SnowflakeSchema

    for name, value in snowflake_account.items():
        monkeypatch.setenv(name, value)
    own = SnowflakeSchema(snowflake_account)
    monkeypatch.setenv("SNOWFLAKE_SCHEMA", own.name)
    yield own
    own.close()


@pytest.fixture(scope="session")
def admin(bootstrap: str) -> AdminClient:
    """An admin client of the shared broker."""
    from confluent_kafka.admin import AdminClient

    return AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})


@pytest.fixture
def prefix() -> str:
    """A name that nobody else uses, for pipelines and transactional ids."""
    return f"{WORKER}-{secrets.token_hex(4)}"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process a broker that doesn't answer is given up after a second."""
    from factory_agents.kafka.topics import Cluster

    monkeypatch.setitem(Cluster.__init__.__kwdefaults__, "timeout", 1.0)


@pytest.fixture
def topic(admin: AdminClient, prefix: str) -> Iterator[TopicFactory]:
    """Creates topics named for this test alone, and deletes them after it."""
    created: list[str] = []

    def create(name: str = "t", partitions: int = 4, **config: object) -> str:
        full = f"{prefix}.{name}" if f"{prefix}.{name}" not in created else f"{prefix}.{name}-{len(created)}"
        create_topic(admin, full, partitions, **config)
        created.append(full)
        return full

    yield create
    if created:
        for future in admin.delete_topics(created).values():
            future.exception()  # gone already is as good


@pytest.fixture
def collector() -> Iterator[Collector]:
    """A collector of traces, which takes and keeps them."""
    from tests.support.otlp import collecting

    with collecting() as running:
        yield running
