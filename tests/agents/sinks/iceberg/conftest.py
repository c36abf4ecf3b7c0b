"""Catalogs of a test's own, and publishers to a table in them."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path

import psycopg
import pytest

from tests.support.iceberg import Bench
from tests.support.rest_catalog import RestCatalogServer


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of the deaths at each step of a publication with deletes every fifth: those of one without are all tried, and real kills too."""
    for item in items:
        if (
            item.name.startswith("test_a_publisher_of_deletes_that_dies_at_any_step")
            and "iceberg" in item.path.parts
            and "[0]" not in item.name
        ):
            item.add_marker(pytest.mark.soak)


def _bench(properties: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setenv("ICEBERG_CATALOG", json.dumps(properties))
    return Bench(properties)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A table in a catalog in SQLite, its files local."""
    return _bench({"type": "sql", "uri": f"sqlite:///{tmp_path}/catalog.db", "warehouse": f"file://{tmp_path}/warehouse"}, monkeypatch)


@pytest.fixture
def in_postgres(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """A catalog in PostgreSQL."""
    uri = database_url.replace("postgresql://", "postgresql+psycopg://", 1)
    yield _bench({"type": "sql", "uri": uri, "warehouse": f"file://{tmp_path}/warehouse"}, monkeypatch)
    with psycopg.connect(database_url) as connection:
        connection.execute("DROP TABLE IF EXISTS iceberg_tables, iceberg_namespace_properties")


@pytest.fixture
def rest_catalog(tmp_path: Path) -> Iterator[RestCatalogServer]:
    """A server that a test may let go wrong."""
    server = RestCatalogServer(tmp_path)
    yield server
    server.close()


@pytest.fixture
def in_rest(rest_catalog: RestCatalogServer, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A REST catalog."""
    return _bench({"type": "rest", "uri": rest_catalog.url}, monkeypatch)


@pytest.fixture(scope="session")
def aws() -> Iterator[str]:
    """Glue and S3, in this process; their URL."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def in_aws(aws: str, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A catalog in Glue, its files in S3."""
    import boto3

    region, bucket = "eu-central-1", f"lake-{secrets.token_hex(4)}"
    client = boto3.client("s3", endpoint_url=aws, region_name=region, aws_access_key_id="local", aws_secret_access_key="local")
    client.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": region})
    account = {"endpoint": aws, "region": region, "access-key-id": "local", "secret-access-key": "local"}
    properties = {f"{part}.{name}": value for part in ("glue", "s3") for name, value in account.items()}
    # Databases of Glue are of the whole account.
    monkeypatch.setattr(Bench, "table", f"lake_{secrets.token_hex(4)}.t")
    return _bench({"type": "glue", "warehouse": f"s3://{bucket}/warehouse", **properties}, monkeypatch)
