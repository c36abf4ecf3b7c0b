"""Workflows: no action that can change under us, no right that a job doesn't need, and nothing published that was not tested."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.tools import CRANE, find_tool, image_registry

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".github/workflows"
FILES = sorted(FOLDER.glob("*.yml"))
RELEASE: dict[str, Any] = yaml.safe_load((FOLDER / "release.yml").read_text())
JOBS: dict[str, dict[str, Any]] = RELEASE["jobs"]
ACTIONLINT, COSIGN = find_tool("actionlint"), find_tool("cosign")
HELM = os.environ.get("FACTORY_HELM") or find_tool("helm")


def needs(job: str) -> set[str]:
    """All jobs that have ended well when this one starts."""
    direct = JOBS[job].get("needs", [])
    return {other for name in ([direct] if isinstance(direct, str) else direct) for other in {name, *needs(name)}}


@pytest.mark.skipif(ACTIONLINT is None, reason="actionlint is not installed")
def test_actionlint_is_content() -> None:
    done = subprocess.run([str(ACTIONLINT), "-shellcheck=", *map(str, FILES)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_actions_are_pinned_by_commit_and_say_which_version_that_is(file: Path) -> None:
    used = re.findall(r"uses: (.+)", file.read_text())
    assert used
    assert [u for u in used if not re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v?\d+\.\d+\.\d+", u)] == []


def test_an_action_is_the_same_commit_everywhere() -> None:
    used = {tuple(u.split("@", 1)) for file in FILES for u in re.findall(r"uses: (.+)", file.read_text())}
    assert len({action for action, _ in used}) == len(used)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_no_checkout_leaves_a_token_behind(file: Path) -> None:
    jobs = yaml.safe_load(file.read_text())["jobs"]
    checkouts = [s for job in jobs.values() for s in job["steps"] if s.get("uses", "").startswith("actions/checkout@")]
    assert [s for s in checkouts if s["with"].get("persist-credentials") is not False] == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_make_targets_of_workflows_exist(file: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z-]+)", file.read_text())) <= targets


def test_a_release_starts_from_a_tag_alone_and_is_never_cancelled() -> None:
    assert RELEASE[True] == {"push": {"tags": ["v*"]}}  # YAML reads the key `on` so
    assert RELEASE["concurrency"] == {"group": "release", "cancel-in-progress": False}


def test_each_job_has_the_least_rights() -> None:
    assert RELEASE["permissions"] == {}
    rights = {name: {right for right, level in job["permissions"].items() if level == "write"} for name, job in JOBS.items()}
    assert rights == {
        "build": set(),
        "test": set(),
        "attest": {"attestations", "id-token"},
        "pypi": {"id-token"},
        "images": {"id-token", "packages"},
        "charts": {"id-token", "packages"},
        "release": {"contents"},
    }


def test_a_job_that_publishes_distributions_runs_no_code_of_the_repository() -> None:
    for name in ("attest", "pypi"):
        assert [s for s in JOBS[name]["steps"] if s.get("uses", "").startswith(("actions/checkout", "actions/setup-python"))] == []


def test_nothing_is_published_that_was_not_built_once_and_tested() -> None:
    for name in ("attest", "pypi", "images", "charts", "release"):
        assert {"build", "test"} <= needs(name), name
    assert needs("release") == set(JOBS) - {"release"}
    uploads = [s for job in JOBS.values() for s in job["steps"] if "upload-artifact" in s.get("uses", "")]
    assert len(uploads) == 1
    for name in ("test", "attest", "pypi", "images", "release"):
        (taken,) = (s["with"]["name"] for s in JOBS[name]["steps"] if "download-artifact" in s.get("uses", ""))
        assert taken == uploads[0]["with"]["name"]


def test_publishing_needs_no_stored_secret() -> None:
    text = (FOLDER / "release.yml").read_text()
    assert set(re.findall(r"secrets\.(\w+)", text)) == {"GITHUB_TOKEN"}
    assert JOBS["pypi"]["environment"] == "pypi"
    (publish,) = (s for s in JOBS["pypi"]["steps"] if "gh-action-pypi-publish" in s.get("uses", ""))
    assert not {"password", "user", "attestations"} & set(publish.get("with", {}))  # trusted publishing, with attestations


def test_images_come_with_provenance_and_components_and_are_signed_by_digest() -> None:
    (push,) = (s["with"] for s in JOBS["images"]["steps"] if "build-push-action" in s.get("uses", ""))
    assert push["provenance"] == "mode=max"
    assert push["sbom"] is True
    signed = [s["run"] for job in JOBS.values() for s in job["steps"] if "cosign sign" in s.get("run", "")]
    assert len(signed) == 2
    assert all(re.search(r'cosign sign --yes "\$\w+@\$\w+"', run, re.IGNORECASE) for run in signed)


class Publishing:
    """The scripts of the workflow that publish, with Helm and a registry on loopback, and a cosign that notes what it is asked."""

    def __init__(self, folder: Path, address: str) -> None:
        self._folder, self.address, self._bin = folder, address, folder / "bin"
        self._bin.mkdir()
        self._put("helm", f'[ "$1" = push ] && exec {HELM} "$@" --plain-http\nexec {HELM} "$@"')
        self.sign("true")
        shutil.copytree(ROOT / "deploy/helm", folder / "deploy/helm")
        self.charts = sorted(path.parent.name for path in ROOT.glob("deploy/helm/*/Chart.yaml"))

    def _put(self, name: str, script: str) -> None:
        (self._bin / name).write_text(f"#!/bin/sh\n{script}\n")
        (self._bin / name).chmod(0o755)

    def sign(self, command: str) -> None:
        """What cosign does once it has noted what it is asked."""
        self._put("cosign", f'echo "$@" >> {self._folder}/signed\n{command}')

    def run(self, job: str, what: str, **environment: str) -> list[list[str]]:
        """Run the step of a job whose script has these words; what cosign was asked."""
        (step,) = (s["run"] for s in JOBS[job]["steps"] if what in s.get("run", ""))
        (self._folder / "signed").unlink(missing_ok=True)
        environment |= {"PATH": f"{self._bin}:/usr/bin:/bin", "HOME": str(self._folder)}
        done = subprocess.run(["bash", "-e", "-c", step], cwd=self._folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return [line.split() for line in (self._folder / "signed").read_text().splitlines()]

    def publish_charts(self) -> list[list[str]]:
        return self.run("charts", "helm push", REGISTRY=f"{self.address}/ours")

    def push_image(self, name: str) -> tuple[str, str]:
        """An image of one layer: its name and its digest."""
        (self._folder / "layer.tar").write_bytes(name.encode().ljust(10240, b"\0"))
        image = f"{self.address}/ours/{name}"
        crane("append", "--oci-empty-base", "-f", str(self._folder / "layer.tar"), "-t", f"{image}:1.0")
        return image, crane("digest", f"{image}:1.0")


def crane(*arguments: str) -> str:
    return subprocess.run([str(CRANE), *arguments], capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def publishing(tmp_path: Path) -> Iterator[Publishing]:
    if CRANE is None or HELM is None:
        pytest.skip("crane and Helm are not installed")
    with image_registry(tmp_path) as address:
        yield Publishing(tmp_path, address)


def test_the_step_that_publishes_charts_pushes_and_signs_what_it_pushed(publishing: Publishing) -> None:
    signed = publishing.publish_charts()
    assert [command for *command, _ in signed] == [["sign", "--yes"]] * len(publishing.charts)
    for name, (*_, what) in zip(publishing.charts, signed, strict=True):
        version = re.findall(r"^version: (\S+)", (ROOT / f"deploy/helm/{name}/Chart.yaml").read_text(), re.MULTILINE)[0]
        chart = f"{publishing.address}/ours/charts/{name}"
        assert what == f"{chart}@{crane('digest', f'{chart}:{version}')}"


@pytest.mark.skipif(COSIGN is None, reason="cosign is not installed: go install github.com/sigstore/cosign/v3/cmd/cosign@v3.1.3")
def test_images_and_charts_that_were_signed_are_verified_and_no_others(publishing: Publishing, tmp_path: Path) -> None:
    """With a key pair in the place of the workflow's identity, and without the public log."""
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "COSIGN_PASSWORD": "of this test"}

    def cosign(*arguments: str) -> int:
        return subprocess.run([str(COSIGN), *arguments], cwd=tmp_path, env=environment, capture_output=True, check=False).returncode

    def verified(what: str, key: str = "ours") -> bool:
        return cosign("verify", "--key", f"{key}.pub", "--insecure-ignore-tlog", "--allow-http-registry", what) == 0

    assert {cosign("generate-key-pair", "--output-key-prefix", key) for key in ("ours", "other")} == {0}
    offline = "--tlog-upload=false --use-signing-config=false --allow-http-registry"
    publishing.sign(f'COSIGN_PASSWORD="of this test" exec {COSIGN} "$@" --key {tmp_path}/ours.key {offline}')
    image, digest = publishing.push_image("factory-agents")
    signed = [what for *_, what in (*publishing.run("images", "cosign sign", IMAGE=image, DIGEST=digest), *publishing.publish_charts())]
    assert len(signed) == 1 + len(publishing.charts)
    assert [what for what in signed if not verified(what)] == []
    assert not verified(signed[0], key="other")
    assert not verified("@".join(publishing.push_image("another")))


def test_expressions_are_not_pasted_into_scripts() -> None:
    runs = [s["run"] for file in FILES for job in yaml.safe_load(file.read_text())["jobs"].values() for s in job["steps"] if "run" in s]
    assert {e for run in runs for e in re.findall(r"\$\{\{\s*(\w+)", run)} <= {"matrix"}
