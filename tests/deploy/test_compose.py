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
from factory_agents.topics_file import read_topics
from tests.support.databases import own_database
from tests.support.prometheus import AMTOOL, PROMTOOL

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
PROFILES = ["", *sorted({p for s in SERVICES.values() for p in s.get("profiles", ())})]
LOADER = os.environ.get("FACTORY_COMPOSE_LOADER") or shutil.which("compose-loader")


def _mounts() -> set[str]:
    return {v.partition(":")[0] for s in SERVICES.values() for v in s.get("volumes", ())}


def make_secrets(folder: Path) -> str:
    script = ROOT / "deploy" / "compose" / "make_secrets.py"
    return subprocess.run([sys.executable, script, folder], check=True, capture_output=True, text=True).stdout


def enabled(profile: str) -> dict[str, dict[str, Any]]:
    """The services that ``docker compose --profile`` starts."""
    return {name: s for name, s in SERVICES.items() if not s.get("profiles") or profile in s["profiles"]}


@pytest.fixture(scope="module")
def loaded() -> dict[str, Any]:
    """What compose itself makes of the file, when none of its variables are set."""
    if LOADER is None:
        pytest.skip("compose's loader is not installed (FACTORY_COMPOSE_LOADER)")
    done = subprocess.run([LOADER, ROOT / "docker-compose.yaml"], env={"PATH": "/bin"}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    model: dict[str, Any] = yaml.safe_load(done.stdout)
    assert set(model["services"]) == set(SERVICES)
    return model


@pytest.mark.skipif(LOADER is None, reason="compose's loader is not installed (FACTORY_COMPOSE_LOADER)")
@pytest.mark.parametrize("profile", PROFILES)
def test_compose_itself_loads_each_profile(profile: str, tmp_path: Path) -> None:
    """Alone, as its user starts it: without the services of the other profiles, which nothing in it may need."""
    (tmp_path / "compose.yaml").write_text(yaml.safe_dump({**COMPOSE, "services": enabled(profile)}))
    done = subprocess.run([str(LOADER), tmp_path / "compose.yaml"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert set(yaml.safe_load(done.stdout)["services"]) == set(enabled(profile))


def test_the_profiles_are_those_that_its_head_explains() -> None:
    head = (ROOT / "docker-compose.yaml").read_text().partition("\nname:")[0]
    assert set(re.findall(r"^#   (\w+) {2,}", head, re.MULTILINE)) == set(PROFILES) - {""}


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_needs_nothing_of_another(profile: str) -> None:
    services = enabled(profile)
    needed = {other for s in services.values() for other in s.get("depends_on", ())}
    assert needed <= set(services)


def test_every_port_is_on_loopback_and_taken_once(loaded: dict[str, Any]) -> None:
    ports = [port for service in loaded["services"].values() for port in service.get("ports", ())]
    assert len(ports) > 10
    assert [port for port in ports if port.get("host_ip") != "127.0.0.1"] == []
    published = [port["published"] for port in ports]
    assert len(published) == len(set(published))


def test_whatever_stays_says_whether_it_is_well(loaded: dict[str, Any]) -> None:
    once = {"secrets", "init"}
    assert {n for n, s in loaded["services"].items() if s.get("restart", "no") == "no"} == once
    assert [n for n, s in loaded["services"].items() if n not in once and not s.get("healthcheck", {}).get("test")] == []


def test_every_image_has_an_exact_version() -> None:
    assert [s["image"] for s in SERVICES.values() if not re.search(r":v?\d+\.\d+[\w.-]*(@sha256:[0-9a-f]{64})?$", s["image"])] == []


def test_no_container_may_gain_rights(loaded: dict[str, Any]) -> None:
    services = loaded["services"]
    assert [n for n, s in services.items() if "no-new-privileges:true" not in s["security_opt"] or s.get("privileged")] == []
    assert [n for n, s in services.items() if not s.get("read_only")] == ["kafka"]
    own_start = {"kafka", "postgres"}  # they change to their own user as they start
    assert [n for n, s in services.items() if n not in own_start and s.get("cap_drop") != ["ALL"]] == []
    assert [n for n, s in services.items() if s.get("network_mode") == "host" or s.get("pid") == "host"] == []


def test_only_the_guard_has_dockers_socket_and_only_alloy_the_guard(loaded: dict[str, Any]) -> None:
    services = loaded["services"]
    assert [n for n, s in services.items() if any("docker.sock" in v["source"] for v in s.get("volumes", ()))] == ["docker-logs"]
    assert [n for n, s in services.items() if "docker-logs" in s["networks"]] == ["alloy", "docker-logs"]
    assert services["docker-logs"]["environment"]["POST"] == "0"
    assert "ports" not in services["docker-logs"]


def test_no_environment_holds_a_secret_nor_a_default_for_one(loaded: dict[str, Any]) -> None:
    for name, service in loaded["services"].items():
        for variable, value in (service.get("environment") or {}).items():
            if re.search("PASSWORD|SECRET|TOKEN|KEY|CREDENTIAL|SQL_ALCHEMY_CONN", variable):
                assert re.search("_(FILE|CMD)$|__SECRETS__", variable), (name, variable)
            assert not re.search(r"://[^/\s]*:[^/\s]*@", value or ""), (name, variable)
    text = (ROOT / "docker-compose.yaml").read_text()
    assert set(re.findall(r"\$\{([^}]*)\}", text)) == {"OTEL_EXPORTER_OTLP_ENDPOINT:-"}


def test_no_secret_can_get_into_an_images_history() -> None:
    """No argument but the base and what is installed, no secret in an environment, nothing copied that the repository doesn't name."""
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert re.findall(r"^ARG (\w+)", dockerfile, re.MULTILINE) == ["PYTHON_IMAGE", "AGENT_REQUIREMENTS"]
    assert not re.search("PASSWORD|SECRET|TOKEN|API_KEY|CREDENTIAL", dockerfile)
    assert (ROOT / ".dockerignore").read_text().split("\n")[1] == "*"


def test_what_it_mounts_is_in_the_repository() -> None:
    missing = [m for m in _mounts() if m.startswith("./") and not (ROOT / m).exists()]
    assert missing == []


@pytest.mark.skipif(PROMTOOL is None or AMTOOL is None, reason="promtool and amtool are not installed")
def test_its_prometheus_scrapes_services_that_there_are(tmp_path: Path) -> None:
    folder = ROOT / "deploy/compose"
    shutil.copy(folder / "prometheus.yaml", tmp_path)
    shutil.copy(ROOT / "deploy/prometheus/rules.yaml", tmp_path)
    for command in ([PROMTOOL, "check", "config", tmp_path / "prometheus.yaml"], [AMTOOL, "check-config", folder / "alertmanager.yaml"]):
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    scrapes = yaml.safe_load((folder / "prometheus.yaml").read_text())["scrape_configs"]
    hosts = {target for s in scrapes for of in s.get("static_configs", ()) for target in of["targets"]}
    hosts |= {f"{name}:{of['port']}" for s in scrapes for of in s.get("dns_sd_configs", ()) for name in of["names"]}
    listening = {f"{n}:{port}" for n, s in SERVICES.items() for port in re.findall(r"0\.0\.0\.0:(\d+)", str(s.get("command")))}
    assert hosts == listening


def test_grafana_asks_services_that_there_are() -> None:
    sources = yaml.safe_load((ROOT / "deploy/compose/grafana/datasources/factory.yaml").read_text())["datasources"]
    assert {re.fullmatch(r"http://([\w-]+):\d+", source["url"])[1] for source in sources} <= set(SERVICES)  # type: ignore[index]
    (provider,) = yaml.safe_load((ROOT / "deploy/compose/grafana/dashboards/factory.yaml").read_text())["providers"]
    assert f"./deploy/grafana:{provider['options']['path']}:ro" in SERVICES["grafana"]["volumes"]


@pytest.mark.parametrize("service", [n for n, s in SERVICES.items() if s["image"].startswith("factory-agents:")])
def test_its_agents_are_started_with_flags_that_there_are(service: str) -> None:
    """Each command of the ``factory`` program is parsed: the last flag asks for its help."""
    command = [str(Path(sys.executable).with_name("factory")), *SERVICES[service]["command"], "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_secrets_are_made_once_and_are_nowhere_else(tmp_path: Path) -> None:
    said = make_secrets(tmp_path)
    first = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert json.loads(first["passwords.json"])["admin"] in said
    assert make_secrets(tmp_path) == said
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == first
    assert {stat.S_IMODE(path.stat().st_mode) & 0o007 for path in tmp_path.iterdir()} == {0}
    assert first["grafana_password"] in said


@pytest.mark.parametrize("command", ["command", "healthcheck"])
def test_temporal_is_started_and_asked_with_flags_that_there_are(command: str) -> None:
    service = SERVICES["temporal"]
    words = service["command"] if command == "command" else service["healthcheck"]["test"][2:]
    program = str(Path(sys.executable).with_name("temporal"))
    done = subprocess.run([program, *words, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    unknown = subprocess.run([program, *words, "--no-such-flag"], capture_output=True, text=True, check=False)
    assert "unknown flag: --no-such-flag" in unknown.stderr


def test_the_agents_image_has_what_its_services_need() -> None:
    locked = (ROOT / "requirements/agent.txt").read_text()
    for package in ("temporalio", "prometheus-client", "psycopg", "opentelemetry-sdk"):
        assert re.search(rf"^{package}(\[\w+\])?==", locked, re.MULTILINE), package


def test_live_agents_find_their_topics() -> None:
    command = SERVICES["enrich"]["command"]
    names = {command[command.index(flag) + 1] for flag in ("--in-topic", "--out-topic")}
    assert names <= {topic.name for topic in read_topics("include/topics.yaml")}


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
