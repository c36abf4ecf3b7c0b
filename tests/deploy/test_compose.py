"""``docker-compose.yaml``: what a laptop runs is loopback only, holds no secret, and is the same factory as the demo's."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from factory_agents.sandbox import SandboxInfo
from tests.support.databases import own_database

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
LOADER = os.environ.get("FACTORY_COMPOSE_LOADER") or shutil.which("compose-loader")


def _mounts() -> set[str]:
    return {v.partition(":")[0] for s in SERVICES.values() for v in s.get("volumes", ())}


def make_secrets(folder: Path) -> str:
    script = ROOT / "deploy" / "compose" / "make_secrets.py"
    return subprocess.run([sys.executable, script, folder], check=True, capture_output=True, text=True).stdout


@pytest.mark.skipif(LOADER is None, reason="compose's loader is not installed (FACTORY_COMPOSE_LOADER)")
@pytest.mark.parametrize("profile", ["", *sorted({p for s in SERVICES.values() for p in s.get("profiles", ())})])
def test_compose_itself_loads_each_profile(profile: str) -> None:
    environment = {**os.environ, "COMPOSE_PROFILES": profile}
    loaded = subprocess.run([str(LOADER), ROOT / "docker-compose.yaml"], env=environment, capture_output=True, text=True, check=False)
    assert loaded.returncode == 0, loaded.stderr
    assert set(yaml.safe_load(loaded.stdout)["services"]) == set(SERVICES)


def test_every_port_is_on_loopback() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert ports
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []


def test_every_image_has_an_exact_version() -> None:
    assert [s["image"] for s in SERVICES.values() if not re.search(r":\d+\.\d+", s["image"])] == []


def test_no_container_may_gain_rights() -> None:
    assert [n for n, s in SERVICES.items() if "no-new-privileges:true" not in s["security_opt"] or s.get("privileged")] == []
    ours = {n: s for n, s in SERVICES.items() if "build" in s}
    assert [n for n, s in ours.items() if not s.get("read_only") or s.get("cap_drop") != ["ALL"]] == []


def test_what_it_mounts_is_in_the_repository() -> None:
    missing = [m for m in _mounts() if m.startswith("./") and not (ROOT / m).exists()]
    assert missing == []


def test_secrets_are_made_once_and_are_nowhere_else(tmp_path: Path) -> None:
    said = make_secrets(tmp_path)
    first = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert json.loads(first["passwords.json"])["admin"] in said
    assert make_secrets(tmp_path) == said
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == first
    assert {stat.S_IMODE(path.stat().st_mode) & 0o007 for path in tmp_path.iterdir()} == {0}
    environments = json.dumps([s.get("environment", {}) for s in SERVICES.values()])
    assert not re.search(r"://[^/\"]*:[^/\"]*@|PASSWORD\"|JWT_SECRET\"|FERNET_KEY\"|SQL_ALCHEMY_CONN\"", environments)


@pytest.mark.slow
@pytest.mark.airflow
def test_its_airflow_runs_the_pipeline(sandbox_info: SandboxInfo, tmp_path: Path, prefix: str) -> None:
    """The service's own environment, with this machine's paths and addresses in place of the containers'."""
    make_secrets(tmp_path)
    with own_database(sandbox_info.database_url, "compose") as url, own_database(sandbox_info.database_url, "compose_meta") as metadata:
        (tmp_path / "sql_alchemy_conn").write_text(metadata.replace("://", "+psycopg2://", 1))
        connections = json.loads((tmp_path / "connections.json").read_text())
        assert connections["kafka_default"]["extra"]["bootstrap.servers"] == SERVICES["scheduler"]["environment"]["KAFKA_BOOTSTRAP"]
        connections["kafka_default"]["extra"]["bootstrap.servers"] = sandbox_info.bootstrap
        connections["postgres_default"] = url
        (tmp_path / "connections.json").write_text(json.dumps(connections))
        places = {
            "/run/factory": str(tmp_path),
            "/opt/airflow/logs": f"{tmp_path}/logs",
            "/opt/airflow": str(ROOT),
            "/tmp/airflow": f"{tmp_path}/airflow",
        }
        environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "AIRFLOW__FACTORY__PREFIX": prefix, "HOME": str(tmp_path)}
        for name, value in SERVICES["scheduler"]["environment"].items():
            for place, here in places.items():
                value = value.replace(place, here)
            environment[name] = value
        environment["KAFKA_BOOTSTRAP"] = sandbox_info.bootstrap
        commands = SERVICES["init"]["command"][0].replace("/opt/airflow", str(ROOT))
        commands += "airflow dags test software_factory_pipeline 2018-06-05T09:00\n"
        done = subprocess.run(["/bin/sh", "-ec", commands], env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
        with psycopg.connect(url) as connection:
            rows = connection.execute("SELECT count(*) FROM events").fetchone()
    assert rows is not None
    assert rows[0] > 0
