"""Reaching a server: mutual TLS and an API key, by Temporal's own variables, and one line where it can't be done."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
import pytest

from factory_agents.errors import ConfigurationError, UnavailableError
from factory_agents.temporal import client as clients
from tests.agents.temporal.test_commands import written
from tests.support.certificates import certificate
from tests.support.grpc_front import in_front_of
from tests.support.runs import Runs, events
from tests.support.temporal import Pipelines, stage

KEY = "an-api-key"


def _who(method: str, context: Any) -> tuple[grpc.StatusCode, str] | None:
    """Passes calls of whoever has the key."""
    given = dict(context.invocation_metadata())
    return None if given.get("authorization") == f"Bearer {KEY}" else (grpc.StatusCode.UNAUTHENTICATED, "who are you?")


@contextmanager
def guarded(address: str, server: tuple[Path, Path], client: Path) -> Iterator[int]:
    """The port of a server that asks for a client's certificate and for the key, in front of one that asks for nothing."""
    credentials = grpc.ssl_server_credentials(
        [(server[1].read_bytes(), server[0].read_bytes())], root_certificates=client.read_bytes(), require_client_auth=True
    )
    with in_front_of(address, _who, credentials) as port:
        yield port


def test_mutual_tls_and_an_api_key_by_temporals_own_variables(
    pipelines: Pipelines, runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw, marked = runs.topic("raw"), runs.topic("marked")
    runs.produce(raw, events(20))
    written(pipelines, raw, marked)
    server, client = certificate(tmp_path), certificate(tmp_path, "client")
    with guarded(pipelines.address, server, client[0]) as port:
        variables: dict[str, Any] = {
            "TEMPORAL_ADDRESS": f"localhost:{port}",
            "TEMPORAL_API_KEY": KEY,
            "TEMPORAL_TLS_SERVER_CA_CERT_PATH": str(server[0]),
            "TEMPORAL_TLS_CLIENT_CERT_PATH": str(client[0]),
            "TEMPORAL_TLS_CLIENT_KEY_PATH": str(client[1]),
        }
        pipelines.worker(runner="thread", **variables)
        done = pipelines.factory.ok("temporal", "start", "p.yaml", "--key", "w", "--wait", **variables).data
        assert [s["counts"]["consumed"] for s in done["stages"]] == [20]
        for lacking in ("API_KEY", "TLS_CLIENT_", "TLS_SERVER_"):
            with monkeypatch.context() as patch:
                for name in variables.keys() - {name for name in variables if lacking in name}:
                    patch.setenv(name, variables[name])
                with pytest.raises(UnavailableError, match=f"Temporal at localhost:{port} doesn't answer") as raised:
                    asyncio.run(clients.connect())
                assert KEY not in str(raised.value)


def test_a_profile_of_the_configuration_file_is_taken(temporal_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "temporal.toml").write_text(
        f'[profile.default]\naddress = "127.0.0.1:1"\n[profile.ours]\naddress = "{temporal_address}"\nnamespace = "default"\n'
    )
    monkeypatch.setenv("TEMPORAL_CONFIG_FILE", str(tmp_path / "temporal.toml"))
    monkeypatch.delenv("TEMPORAL_ADDRESS", raising=False)

    async def connected(profile: str) -> str:
        return (await clients.connect(profile)).service_client.config.target_host

    assert asyncio.run(connected("ours")) == temporal_address
    with pytest.raises(UnavailableError, match=r"Temporal at 127\.0\.0\.1:1 doesn't answer"):
        asyncio.run(connected(""))
    with pytest.raises(ConfigurationError, match=r"Temporal's settings \(TEMPORAL_…\) can't be used.*theirs"):
        asyncio.run(connected("theirs"))


def test_a_workflow_that_no_worker_lets_answer_is_one_line(pipelines: Pipelines, runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "_ANSWER", timedelta(seconds=0.5))
    id_ = pipelines.start(pipelines.request(runs.topic("raw"), stage("mark", output=runs.topic("marked"))))
    for ask in (lambda: pipelines.progress(id_), lambda: pipelines.pause(id_, True), lambda: pipelines.retry(id_)):
        with pytest.raises(
            UnavailableError, match=rf"workflow {id_} did not answer .* a worker of the task queue '{pipelines.prefix}' run"
        ):
            ask()
