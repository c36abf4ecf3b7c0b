"""What Kubernetes knows of a pod, in one line that says what to do."""

from __future__ import annotations

from typing import Any

import pytest
from airflow.providers.cncf.kubernetes.pod_generator import PodGenerator
from kubernetes.client import models as k8s

from airflow_provider_factory.runners.kubernetes.failure import event_lines, fresh_lines, log_stamp, pod_failure, termination_message


def pod(state: dict[str, Any] | None = None, phase: str = "Running", **status: Any) -> k8s.V1Pod:
    """A pod with its one container in a state."""
    container = {"name": "base", "image": "i", "imageID": "i", "ready": False, "restartCount": 0, "state": state or {}}
    full = {"phase": phase, **({"containerStatuses": [container]} if state is not None else {}), **status}
    spec = {"containers": [{"name": "base", "image": "reg/agents:9", "resources": {"limits": {"memory": "64Mi"}}}]}
    return PodGenerator.deserialize_model_dict({"metadata": {"name": "p"}, "spec": spec, "status": full})


def warning(reason: str, message: str, count: int = 1, kind: str = "Warning") -> k8s.CoreV1Event:
    reference, meta = k8s.V1ObjectReference(name="p"), k8s.V1ObjectMeta(name="e")
    return k8s.CoreV1Event(involved_object=reference, metadata=meta, type=kind, reason=reason, message=message, count=count)


@pytest.mark.parametrize(
    ("seen", "says"),
    [
        (None, "is gone: somebody deleted it, or its node went"),
        (
            pod({"terminated": {"exitCode": 137, "reason": "OOMKilled"}}, "Failed"),
            "ran out of memory (OOMKilled; its limit is 64Mi): give it more by container_resources, or use more shards",
        ),
        (pod({"terminated": {"exitCode": 137, "reason": "Error"}}, "Failed"), "was killed (SIGKILL)"),
        (pod({"terminated": {"exitCode": 3, "reason": "Error"}}, "Failed"), "ended with exit code 3"),
        (
            pod({"terminated": {"exitCode": 128, "reason": "StartError", "message": "exec: no such file"}}, "Failed"),
            "could not run its command (StartError): exec: no such file",
        ),
        (
            pod({"waiting": {"reason": "ErrImagePull", "message": "not\nfound"}}, "Pending"),
            "never started: its image 'reg/agents:9' cannot be pulled (ErrImagePull): not found",
        ),
        (
            pod({"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "x" not found'}}, "Pending"),
            'cannot be set up (CreateContainerConfigError): secret "x" not found',
        ),
        (pod(phase="Failed", reason="Evicted", message="low on memory"), "was evicted by its node: low on memory"),
        (pod(phase="Failed", reason="DeadlineExceeded"), "ran longer than its active_deadline_seconds allow"),
        (pod(phase="Failed", reason="NodeShutdown", message="bye"), "ended with NodeShutdown: bye"),
        (
            pod({"terminated": {"exitCode": 137}}, conditions=[{"type": "DisruptionTarget", "status": "True", "reason": "Preemption"}]),
            "was taken away (Preemption): no reason given",
        ),
        (
            pod(phase="Pending", conditions=[{"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available"}]),
            "found no node: 0/3 nodes are available",
        ),
        (pod({"waiting": {"reason": "ContainerCreating"}}, "Pending"), "did not start in time: FailedMount: no volume"),
    ],
)  # fmt: skip
def test_each_trouble_has_its_words(seen: k8s.V1Pod | None, says: str) -> None:
    trouble = pod_failure(seen, "base", [warning("FailedMount", "no volume")])
    assert trouble is not None
    assert says in trouble.text
    assert not trouble.permanent


@pytest.mark.parametrize("seen", [pod({"running": {}}), pod({"terminated": {"exitCode": 0}}, "Succeeded")])
def test_a_pod_without_trouble_has_none(seen: k8s.V1Pod) -> None:
    assert pod_failure(seen, "base") is None


def test_an_image_name_that_cannot_be_is_permanent() -> None:
    trouble = pod_failure(pod({"waiting": {"reason": "InvalidImageName", "message": "bad"}}, "Pending"), "base")
    assert trouble is not None
    assert trouble.permanent


def test_the_message_is_that_of_the_agents_container() -> None:
    seen = pod({"terminated": {"exitCode": 0, "message": '{"a": 1}'}})
    assert termination_message(seen, "base") == '{"a": 1}'
    assert termination_message(seen, "sidecar") == ""
    assert termination_message(pod({"running": {}}), "base") == ""
    assert termination_message(None, "base") == ""


def test_warnings_are_listed_once_with_how_often() -> None:
    events = [
        warning("BackOff", "again\nand again", 4),
        warning("BackOff", "again and again", 4),
        warning("Pulled", "fine", kind="Normal"),
        warning("FailedMount", "no"),
    ]
    assert event_lines(events) == ["BackOff: again and again (×4)", "FailedMount: no"]


def test_stamps_sort_as_times() -> None:
    stamps = ["2026-01-01T00:00:05Z", "2026-01-01T00:00:05.1Z", "2026-01-01T00:00:05.12Z", "2026-01-01T00:00:06.000000001Z"]
    assert [log_stamp(f"{s} text") for s in stamps] == sorted(log_stamp(s) for s in reversed(stamps))
    assert log_stamp("no stamp") == ""


def test_lines_already_shown_are_left_out_and_their_continuations_with_them() -> None:
    lines = ["2026-01-01T00:00:05.1Z old", "of old", "2026-01-01T00:00:05.2Z new\n", "of new", "2026-01-01T00:00:05.3Z "]
    assert list(fresh_lines(lines, log_stamp(lines[0]))) == [
        (log_stamp(lines[2]), "new"),
        (log_stamp(lines[2]), "of new"),
    ]
    assert [text for _, text in fresh_lines(lines, "")] == ["old", "of old", "new", "of new"]


@pytest.mark.parametrize("field", ["its container's message", "its own message"])
def test_a_hostile_message_says_so_in_one_bounded_line(field: str) -> None:
    hostile = "\x1b]0;owned\x07\x9b2J\nERROR forged\u202e" * 10_000
    own = field == "its own message"
    ended = {"terminated": {"exitCode": 128, "reason": "StartError", "message": hostile}}
    seen = pod(None if own else ended, "Failed", **({"reason": "Evicted", "message": hostile} if own else {}))
    assert len(termination_message(seen, "base")) < 20_000
    trouble = pod_failure(seen, "base")
    assert trouble is not None
    assert trouble.text.isprintable()
    assert len(trouble.text) < 2000
