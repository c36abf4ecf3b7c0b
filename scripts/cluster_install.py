"""``make cluster-install``: the releases of deploy/helm/values/releases.yaml into the cluster at KUBECONFIG, one after the other.

A second run changes nothing. Each release is waited for before the next begins, since what it defines the next one uses.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
from lint_deploy import CHARTS, helm

from factory_agents.errors import ConfigurationError

VALUES = CHARTS / "values"
_KEYS = "go-template={{range $key, $_ := .data}}{{$key}} {{end}}"


class Release(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of the file: a chart of ours by its folder, or another's by its repository (none for OCI) and exact version."""

    name: str
    chart: str
    namespace: str
    values: str
    repository: str = ""
    version: str = ""
    wait: tuple[str, str] | None = None
    """An object and what it is waited for, once Helm is done: what an operator makes of a chart."""
    secrets: dict[str, list[str]] = {}
    """Secrets that its user makes first, in its namespace, with their keys: without them its pods would wait until Helm gives up."""


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    releases: list[Release]


def releases(path: Path = VALUES / "releases.yaml") -> list[Release]:
    """What the file lists, in its order."""
    return msgspec.yaml.decode(path.read_bytes(), type=_File).releases


def commands(release: Release, program: str = "helm") -> Iterator[list[str]]:
    """How a release is installed, or upgraded to what the files say."""
    ours = (CHARTS / release.chart).is_dir()
    install = [program, "upgrade", "--install", release.name, str(CHARTS / release.chart) if ours else release.chart]
    if release.repository:
        install += ["--repo", release.repository]
    if release.version:
        install += ["--version", release.version]
    yield [
        *install,
        "--namespace",
        release.namespace,
        "--create-namespace",
        "--values",
        str(VALUES / release.values),
        "--wait",
        "--timeout",
        "15m",
    ]
    if release.wait is not None:
        yield ["kubectl", "--namespace", release.namespace, "wait", release.wait[0], f"--for={release.wait[1]}", "--timeout=15m"]


def missing(release: Release) -> Iterator[str]:
    """What the cluster lacks that the release needs, and how to make it. Raises ConfigurationError where the cluster can't be asked."""
    for name, keys in release.secrets.items():
        of = ["--namespace", release.namespace]
        ask = ["kubectl", "get", "secret", name, *of, "--ignore-not-found", "--output", _KEYS]
        try:
            done = subprocess.run(ask, capture_output=True, text=True, check=False)
        except FileNotFoundError as error:
            raise ConfigurationError("kubectl is not installed") from error
        if done.returncode:
            raise ConfigurationError(f"kubectl could not ask the cluster: {done.stderr.strip().splitlines()[-1]}")
        if absent := set(keys) - set(done.stdout.split()):
            make = shlex.join(["kubectl", "create", "secret", "generic", name, *of]) + "".join(f" --from-literal={key}=…" for key in keys)
            yield f"{release.name} needs {', '.join(sorted(absent))} in the Secret {name} of the namespace {release.namespace}: {make}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Install all, or those that are named; return the exit status."""
    every = releases()
    names = [release.name for release in every]
    parser = argparse.ArgumentParser(prog="make cluster-install", description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="show the commands, and run none")
    parser.add_argument("--only", action="append", choices=names, metavar="RELEASE", help=f"one of {', '.join(names)}; repeatable")
    given = parser.parse_args(arguments)
    chosen = [release for release in every if not given.only or release.name in given.only]
    program = "helm" if given.dry_run else helm()
    lacks = [] if given.dry_run else [what for release in chosen for what in missing(release)]
    for what in lacks:
        print(f"error: {what}", file=sys.stderr)
    if lacks:
        return 1
    for release in chosen:
        for command in commands(release, program):
            print(shlex.join(command), flush=True)
            if not given.dry_run and subprocess.run(command, check=False).returncode:
                print(
                    f"error: {release.name} could not be installed; correct it and run this again, which goes on from here", file=sys.stderr
                )
                return 1
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ConfigurationError as error:
        sys.exit(f"error: {error}")
