"""The images hold no secret of the machine that built them, not in their history, settings or layers, and run without rights."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytestmark = pytest.mark.timeout(1800)  # a busy machine builds Airflow in a quarter of an hour

ROOT = Path(__file__).resolve().parents[2]
DOCKER = shlex.split(os.environ.get("FACTORY_TEST_DOCKER", ""))
"""The program of the engine that builds, with its options."""
BUILD = shlex.split(os.environ.get("FACTORY_TEST_BUILD", ""))
"""More arguments of its ``build``, as the base image."""
TAG = "factory-planted:test"

PLANTED = "planted-3f9c1b"
"""A secret of whoever builds: in files beside the sources and in arguments of the build."""
FILES = {
    ".env": f"POSTGRES_PASSWORD={PLANTED}",
    ".netrc": f"machine example.com password {PLANTED}",
    ".git/config": f"[remote] url = https://me:{PLANTED}@example.com",
    ".factory/sandbox.json": PLANTED,
    "kubeconfig": f"token: {PLANTED}",
    "agents/.pypirc": f"password: {PLANTED}",
    "agents/factory_agents/.env": f"DATABASE_URL=postgresql://me:{PLANTED}@db/x",
    "agents/factory_agents/kafka/client.key": PLANTED,
    "airflow_provider_factory/.env": PLANTED,
    "include/.env.local": f"KAFKA_PASSWORD={PLANTED}",
    "include/.ssh/id_ed25519": PLANTED,
    "include/tls/client.key": PLANTED,
    "include/store.jks": PLANTED,
    "include/store.p12": PLANTED,
    "requirements/pip.conf": f"index-url = https://me:{PLANTED}@example.com",
}
ARGUMENTS = {"NO_PROXY": f"{PLANTED}.example.com", "DATABASE_URL": PLANTED, "UV_INDEX_URL": f"https://me:{PLANTED}@example.com"}
EXPECTED = {
    "project": ("factory_agents/runtime/__init__.py", "include/topics.yaml"),
    "airflow": ("factory_agents/runtime/__init__.py", "airflow_provider_factory/operators/kafka_agent.py"),
}
RIGHTS = {"project": ("65532:65532", ["factory"]), "airflow": ("50000:0", ["/entrypoint"])}
UNPRIVILEGED = ("--network=none", "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--tmpfs=/tmp")
DAGS = """
airflow db migrate &&
airflow dags reserialize &&
airflow dags list-import-errors --output json &&
airflow dags list --output json &&
airflow providers list --output json
"""
PRIVATE = re.compile(r"(^|/)(\.(env(\.[^/]*)?|netrc|pypirc|ssh|git|docker|aws|kube)|id_(rsa|ed25519|ecdsa)|kubeconfig)(/|$)")


class Image(NamedTuple):
    """What an image consists of: its settings with its history, and every file of every layer, those that a later one hides among them."""

    target: str
    config: dict[str, Any]
    names: set[str]
    planted: list[str]
    """Files that hold a planted secret."""


def _files(layer: tarfile.TarFile) -> Iterator[tuple[str, bool]]:
    for member in layer:
        source = layer.extractfile(member) if member.isreg() else None
        yield member.name, PLANTED.encode() in (source.read() if source else member.linkname.encode())


def _read(target: str, archive: Path) -> Image:
    with tarfile.open(archive) as whole:

        def open_(name: str) -> Any:
            return whole.extractfile(name)

        (manifest,) = json.load(open_("manifest.json"))
        found: list[tuple[str, bool]] = []
        for name in manifest["Layers"]:
            with tarfile.open(fileobj=open_(name)) as layer:
                found += _files(layer)
        planted = [name for name, has_it in found if has_it]
        return Image(target, json.load(open_(manifest["Config"])), {name for name, _ in found}, planted)


@pytest.fixture(scope="module", params=["project", pytest.param("airflow", marks=pytest.mark.soak)])  # Airflow takes minutes to build
def image(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    """An image, built of the tracked files beside a developer's own, with a developer's arguments."""
    if not DOCKER:
        pytest.skip("no engine that builds images (FACTORY_TEST_DOCKER)")
    folder = tmp_path_factory.mktemp("image")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, tracked):
        (folder / "context" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / "context" / name)
    for name, text in FILES.items():
        (folder / "context" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "context" / name).write_text(text)
    given = [f"--build-arg={name}={value}" for name, value in ARGUMENTS.items()]
    _docker("build", *BUILD, *given, "--target", request.param, "--tag", TAG, str(folder / "context"))
    _docker("save", "--output", str(folder / "image.tar"), TAG)
    yield _read(request.param, folder / "image.tar")
    _docker("image", "rm", TAG)


def _docker(*arguments: str) -> str:
    done = subprocess.run([*DOCKER, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_no_secret_of_who_builds_is_in_any_layer(image: Image) -> None:
    for expected in EXPECTED[image.target]:
        assert any(name.endswith(expected) for name in image.names), "the layers are not read"
    assert image.planted == []
    assert [name for name in image.names if PRIVATE.search(name)] == []


def test_no_secret_is_in_its_history_and_settings(image: Image) -> None:
    said = json.dumps(image.config)
    assert PLANTED not in said
    assert re.findall(r"://[^/\s\"@]+:[^/\s\"@]+@", said) == []
    assert re.findall(r"PRIVATE KEY|AKIA[0-9A-Z]{16}|gh[pousr]_\w{20}|xox[abp]-\w+|eyJ[\w-]{10,}\.eyJ", said) == []
    assert re.findall(r"\w*(?:PASSWORD|SECRET|TOKEN|API_KEY|CREDENTIAL)\w*=[^\s\"\\]", said, re.IGNORECASE) == []


def test_it_is_built_to_run_without_rights(image: Image) -> None:
    settings = image.config["config"]
    assert (settings["User"], settings["Entrypoint"]) == RIGHTS[image.target]
    assert not settings.get("ExposedPorts")
    assert not settings.get("Volumes")


def test_what_pip_adds_is_found_by_what_it_runs(image: Image) -> None:
    listed = _docker("run", "--rm", *UNPRIVILEGED, "--entrypoint", "pip", TAG, "list", "--format=freeze", "--disable-pip-version-check")
    assert re.search(r"^factory-agents==", listed, re.MULTILINE), listed


@pytest.mark.soak
@pytest.mark.parametrize("user", ["50000:0", "1000690000:0"], ids=["its own", "any"])
@pytest.mark.parametrize("image", ["airflow"], indirect=True)
def test_airflow_works_on_a_read_only_root_as_any_user(image: Image, user: str) -> None:
    """With the project's folders, as docker-compose.yaml mounts them; some clusters choose the user's number."""
    mounts = [f"--volume={ROOT / name}:/opt/airflow/{name}:ro" for name in ("dags", "include", "plugins")]
    folders = {
        "AIRFLOW_HOME": "/tmp/airflow",
        "AIRFLOW__CORE__DAGS_FOLDER": "/opt/airflow/dags",
        "AIRFLOW__CORE__PLUGINS_FOLDER": "/opt/airflow/plugins",
        "AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT": "120",
        "FACTORY_INCLUDE": "/opt/airflow/include",
    }
    given = [f"--env={name}={value}" for name, value in folders.items()]
    said = _docker("run", "--rm", *UNPRIVILEGED, *mounts, *given, "--user", user, TAG, "bash", "-c", DAGS)
    lists = [json.loads(line) for line in said.splitlines() if line.startswith("[{")]
    assert len(lists) == 2, said  # no errors of an import before them
    dags, providers = lists
    assert {dag["dag_id"] for dag in dags} >= {"software_factory_pipeline", "hourly_from_topic"}
    assert any(provider["package_name"] == "airflow-provider-factory" for provider in providers)
