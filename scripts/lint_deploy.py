"""``make lint-deploy``: the charts with every values file of their ``ci/``: valid for two Kubernetes releases, and within our policies.

Custom resources are checked against the operators' own definitions, which are looked for in the folders of FACTORY_CRDS (separated by
colons). Kinds without a definition are named at the end; with ``--all-kinds`` they are findings.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jsonschema_rs
import kubernetes_validate
import yaml

from factory_agents.errors import ConfigurationError

ROOT = Path(__file__).resolve().parents[1]
CHARTS = ROOT / "deploy" / "helm"
# It reads megabytes of definitions for each document.
kubernetes_validate.utils.schema_contents = functools.cache(kubernetes_validate.utils.schema_contents)

RELEASES = ("1.30", "1.37")
"""The oldest and the newest Kubernetes that the charts are checked for."""

Document: TypeAlias = Mapping[str, Any]
Validator: TypeAlias = jsonschema_rs.Draft202012Validator


class Combination(NamedTuple):
    """A chart with a values file."""

    chart: Path
    values: Path

    def __str__(self) -> str:
        return f"{self.chart.name}/{self.values.stem.removesuffix('-values')}"


def combinations() -> list[Combination]:
    """Every chart with every values file of its folder ``ci``."""
    return [
        Combination(chart.parent, values)
        for chart in sorted(CHARTS.glob("*/Chart.yaml"))
        for values in sorted(chart.parent.glob("ci/*.yaml"))
    ]


# Helm


def helm() -> str:
    """The program: FACTORY_HELM, else the one on the PATH. Raises ConfigurationError."""
    found = os.environ.get("FACTORY_HELM") or shutil.which("helm")
    if found is None:
        raise ConfigurationError("Helm is not installed: go install helm.sh/helm/v4/cmd/helm@v4.3.1, or set FACTORY_HELM to its program")
    return found


def run_helm(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """What Helm says to ``arguments``, whatever its exit status."""
    return subprocess.run([helm(), *map(str, arguments)], capture_output=True, text=True, check=False)


def render(combination: Combination, *more: str) -> list[dict[str, Any]]:
    """The documents of a combination. Raises ConfigurationError with what Helm says against it."""
    done = run_helm("template", "release", combination.chart, "--namespace", "here", "--values", combination.values, *more)
    if done.returncode:
        raise ConfigurationError(f"{combination}: {complaint(done.stderr)}")
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def complaint(stderr: str) -> str:
    """Helm's error without what it tells of symbolic links."""
    return "\n".join(line for line in stderr.splitlines() if not line.startswith("level=INFO"))


# Schemas


def name_of(document: Document) -> str:
    """A document's kind and name."""
    return f"{document['kind']} {document['metadata']['name']}"


def is_custom(document: Document) -> bool:
    """Whether an operator defines its kind."""
    group = str(document["apiVersion"]).partition("/")[0]
    return "." in group and not group.endswith(".k8s.io")


def invalid(document: Document, definitions: Mapping[tuple[str, str], Any]) -> Iterator[str]:
    """What the schemas of Kubernetes, or its operator's, say against a document; nothing for an unknown custom resource."""
    if is_custom(document):
        schema = definitions.get((document["apiVersion"], document["kind"]))
        if schema is not None:
            for error in schema.iter_errors(document):
                yield f"{name_of(document)}: {'.'.join(map(str, error.instance_path))}: {error.message}"
        return
    for release in RELEASES:
        try:
            kubernetes_validate.validate(dict(document), release, strict=True)
        except kubernetes_validate.ValidationError as error:
            yield f"{name_of(document)}: Kubernetes {release}: {'.'.join(map(str, error.path))}: {error.message}"
        except kubernetes_validate.SchemaNotFoundError as error:
            yield f"{name_of(document)}: {error.message}"


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # the same, in C
    """Of definitions: they list ``=`` among operators, which YAML 1.1 gives a meaning."""


_Loader.add_constructor("tag:yaml.org,2002:value", lambda loader, node: node.value)


def definition_documents(folders: str) -> Iterator[Mapping[str, Any]]:
    """The custom resource definitions in the folders."""
    for folder in filter(None, folders.split(os.pathsep)):
        for path in sorted(Path(folder).glob("*.yaml")):
            for document in yaml.load_all(path.read_bytes(), _Loader):
                if document and document.get("kind") == "CustomResourceDefinition":
                    yield document


@functools.cache
def definitions(folders: str) -> Mapping[tuple[str, str], Validator]:
    """Their validators, by API version and kind."""
    return {of: validator for document in definition_documents(folders) for of, validator in _validators(document["spec"])}


def _validators(spec: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str], Validator]]:
    for version in spec["versions"]:
        if version["served"]:
            schema = strict({"type": "object", **version["schema"]["openAPIV3Schema"]})
            schema["properties"]["metadata"] = {"type": "object"}
            yield (f"{spec['group']}/{version['name']}", spec["names"]["kind"]), jsonschema_rs.Draft202012Validator(schema)


def strict(schema: Any) -> Any:
    """An API server's schema as JSON Schema that takes no field that it doesn't name, as the server with strict validation does."""
    if not isinstance(schema, dict):
        return [strict(part) for part in schema] if isinstance(schema, list) else schema
    made = {key: strict(value) for key, value in schema.items() if key not in ("properties", "description", "format", "default")}
    if "properties" in schema:
        made["properties"] = {name: strict(part) for name, part in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields") and "type" in schema:
            made.setdefault("additionalProperties", False)
    if schema.get("nullable"):
        made["type"] = [schema["type"], "null"]
    return made


# Policies


def pod_of(document: Document) -> Mapping[str, Any] | None:
    """The pod's spec of a document that makes pods."""
    if document["kind"] == "Pod":
        return document["spec"]  # type: ignore[no-any-return]
    template = document.get("spec", {}).get("template", {})
    return template.get("spec") if "containers" in template.get("spec", {}) else None


def breaches(documents: Sequence[Document]) -> Iterator[str]:
    """What the policies say against documents that are installed together."""
    for document in documents:
        where = name_of(document)
        if document["kind"] == "Secret":
            yield f"{where}: the chart holds a secret"
        if re.search(r"://[^/\s\"]+:[^/\s\"]+@", json.dumps(document)):
            yield f"{where}: a URL holds a password"
        pod = pod_of(document)
        if pod is not None:
            yield from (f"{where}: {what}" for what in _pod_breaches(pod))
        for name, part in _made_by_strimzi(document).items():
            yield from (f"{where}: {name}: {what}" for what in _unbounded(part))
        if document["kind"] in ("Deployment", "WorkerDeployment"):
            yield from (f"{where}: {what}" for what in _deployment_breaches(document, documents))
        if _is_dangling(document, documents):
            yield f"{where}: selects no pod of this chart"
    seen: set[str] = set()
    for document in documents:
        if name_of(document) in seen:
            yield f"{name_of(document)}: is there twice"
        seen.add(name_of(document))


def _pod_breaches(pod: Mapping[str, Any]) -> Iterator[str]:
    security = pod.get("securityContext", {})
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(key):
            yield f"{key} is set"
    if pod.get("automountServiceAccountToken") is not False:
        yield "gets a service account's token"
    if security.get("runAsNonRoot") is not True:
        yield "may run as root"
    if security.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "has no seccomp profile RuntimeDefault"
    for volume in pod.get("volumes", ()):
        if not {"emptyDir", "configMap", "secret", "projected", "persistentVolumeClaim"} & volume.keys():
            yield f"volume {volume['name']} is of a kind that restricted pods may not have"
        if "emptyDir" in volume and "sizeLimit" not in (volume["emptyDir"] or {}):
            yield f"volume {volume['name']} may fill the node's disk"
    for container in (*pod["containers"], *pod.get("initContainers", ())):
        yield from (f"container {container['name']}: {what}" for what in _container_breaches(container))


def _container_breaches(container: Mapping[str, Any]) -> Iterator[str]:
    image = str(container.get("image", ""))
    if not re.search(r"@sha256:[0-9a-f]{64}$|:[^/:@]*\d[^/:@]*$", image):
        yield f"image {image!r} names no version"
    yield from _unbounded(container)
    ports = container.get("ports", ())
    if any("hostPort" in port for port in ports):
        yield "has a port of the node"
    if ports and not {"startupProbe", "livenessProbe", "readinessProbe"} <= container.keys():
        yield "serves, and nobody probes it"
    for variable in container.get("env", ()):
        if "value" in variable and re.search(r"PASSWORD|TOKEN|SECRET|API_KEY|CREDENTIAL", variable["name"]):
            yield f"{variable['name']} stands in the open"
    yield from _rights(container.get("securityContext", {}))


def _unbounded(container: Mapping[str, Any]) -> Iterator[str]:
    resources = container.get("resources", {})
    for kind, name in (("limits", "memory"), ("requests", "memory"), ("requests", "cpu")):
        if name not in resources.get(kind, {}):
            yield f"has no {kind}.{name}"


def _made_by_strimzi(document: Document) -> Mapping[str, Any]:
    """The parts of a Kafka cluster that the operator makes containers of."""
    if document["kind"] == "KafkaNodePool":
        return {"brokers": document["spec"]}
    return document["spec"]["entityOperator"] if document["kind"] == "Kafka" else {}


def _rights(security: Mapping[str, Any]) -> Iterator[str]:
    if security.get("allowPrivilegeEscalation") is not False or security.get("privileged"):
        yield "may gain rights"
    if security.get("readOnlyRootFilesystem") is not True:
        yield "may write to its image"
    if security.get("capabilities", {}).get("drop") != ["ALL"]:
        yield "keeps capabilities"


def _deployment_breaches(document: Document, documents: Iterable[Document]) -> Iterator[str]:
    spec = document["spec"]
    labels = spec["template"]["metadata"]["labels"]
    grace = spec["template"]["spec"].get("terminationGracePeriodSeconds", 0)
    if grace < 15:
        yield f"gives its pods {grace} s to end"
    is_agent = labels.get("app.kubernetes.io/component") == "agent"
    if is_agent and spec["strategy"]["rollingUpdate"] != {"maxSurge": 0, "maxUnavailable": 1}:
        yield "updates with surplus pods, or several at once"
    budgets = [d for d in documents if d["kind"] == "PodDisruptionBudget"]
    own = [d for d in budgets if d["spec"]["selector"]["matchLabels"].items() <= labels.items()]
    if spec.get("replicas", 2) > 1 and len(own) != 1:
        yield f"has {len(own)} disruption budgets, and needs one"


def _is_dangling(document: Document, documents: Iterable[Document]) -> bool:
    """Whether it chooses by labels that nothing has."""
    kind, spec = document["kind"], document.get("spec", {})
    if kind not in ("Service", "PodDisruptionBudget", "NetworkPolicy", "ServiceMonitor", "PodMonitor", "Deployment"):
        return False
    chosen: Mapping[str, str] = spec["selector"] if kind == "Service" else spec.get("podSelector", spec.get("selector"))["matchLabels"]
    labels = [_labels(d) for d in documents if (d["kind"] == "Service" if kind == "ServiceMonitor" else pod_of(d) is not None)]
    return chosen != _DAG_PODS and not any(chosen.items() <= of.items() for of in labels)


_DAG_PODS = {"app.kubernetes.io/name": "factory-agent"}  # Airflow makes them


def _labels(document: Document) -> Mapping[str, str]:
    """The labels of a Service, or of the pods that a document makes."""
    labelled = document if document["kind"] in ("Pod", "Service") else document["spec"]["template"]
    return labelled["metadata"]["labels"]  # type: ignore[no-any-return]


# The command


def main(arguments: Sequence[str] | None = None) -> int:
    """Check everything, print what was found, and return the exit status."""
    parser = argparse.ArgumentParser(prog="make lint-deploy", description=__doc__)
    parser.add_argument("--all-kinds", action="store_true", help="a custom resource without its definition is a finding")
    given = parser.parse_args(arguments)
    known = definitions(os.environ.get("FACTORY_CRDS", ""))
    findings: list[str] = []
    checked: set[str] = set()
    unknown: set[str] = set()
    every = combinations()
    for chart in sorted({combination.chart for combination in every}):
        done = run_helm("lint", "--strict", chart)
        if done.returncode:
            findings.append(f"{chart.name}: {done.stdout}{complaint(done.stderr)}")
    for combination in every:
        documents = render(combination)
        findings += [f"{combination}: {what}" for what in breaches(documents)]
        for document in documents:
            text = json.dumps(document, sort_keys=True, default=str)
            if text not in checked:
                checked.add(text)
                findings += [f"{combination}: {what}" for what in invalid(document, known)]
                if is_custom(document) and (document["apiVersion"], document["kind"]) not in known:
                    unknown.add(f"{document['kind']} ({document['apiVersion']})")
    if given.all_kinds:
        findings += [f"no definition of {kind}: set FACTORY_CRDS" for kind in sorted(unknown)]
    for finding in findings:
        print(finding)
    print(f"{len(every)} combinations, {len(checked)} documents, Kubernetes {' and '.join(RELEASES)}: {len(findings)} findings")
    if unknown and not given.all_kinds:
        print(f"not checked, no definition in FACTORY_CRDS: {', '.join(sorted(unknown))}")
    return 1 if findings else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ConfigurationError as error:
        sys.exit(f"error: {error}")
