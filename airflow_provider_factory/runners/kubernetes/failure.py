"""Says in one line why a pod came to nothing, from what Kubernetes knows of it: pure functions over its status and events."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from factory_agents.text import printable

if TYPE_CHECKING:
    from kubernetes.client import models as k8s

__all__ = ["Trouble", "event_lines", "fresh_lines", "log_stamp", "pod_failure", "termination_message"]

_PULLING = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError", "RegistryUnavailable")
_SETTING_UP = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")
_PERMANENT = ("InvalidImageName", "ErrImageNeverPull")
_KILLED = 137
_LONGEST = 12_288  # characters of a message: Kubernetes' bound for all containers of a pod
_SHOWN = 1000


@dataclass(frozen=True)
class Trouble:
    """Why a pod came to nothing, to be read after "the pod …"; ``permanent`` where another try would end alike.

    The text quotes Kubernetes, and through it images and probes: it is shown as one line, of bounded length.
    """

    text: str
    permanent: bool = False

    def __post_init__(self) -> None:
        """Take from the text what a terminal would act on."""
        object.__setattr__(self, "text", _shown(self.text))


def termination_message(pod: k8s.V1Pod | None, container: str) -> str:
    """What the container wrote into its termination message; empty while it runs, or where there is nothing.

    What is longer than Kubernetes lets it be is cut, and is no result then.
    """
    status = _container_status(pod, container)
    return (status.state.terminated.message or "")[:_LONGEST] if status and status.state and status.state.terminated else ""


def pod_failure(pod: k8s.V1Pod | None, container: str, events: Iterable[k8s.CoreV1Event] = ()) -> Trouble | None:
    """What went wrong with a pod, the deepest cause first; None where Kubernetes knows of nothing."""
    if pod is None or pod.status is None:
        return Trouble("is gone: somebody deleted it, or its node went")
    for found in (_disrupted(pod), _container_trouble(pod, container), _unscheduled(pod, events), _lingering(pod, events)):
        if found is not None:
            return found
    return None


def event_lines(events: Iterable[k8s.CoreV1Event]) -> list[str]:
    """A pod's warnings, oldest first, each once: ``reason: message (×n)``."""
    lines = []
    for event in events:
        if event.type == "Warning":
            times = f" (×{event.count})" if (event.count or 1) > 1 else ""
            lines.append(f"{_shown(f'{event.reason}: {event.message or str()}')}{times}")
    return list(dict.fromkeys(lines))


def log_stamp(line: str) -> str:
    """The time with which Kubernetes begins a log line, with nine digits of a second so that text sorts as time; empty for none."""
    stamp = line.partition(" ")[0].rstrip("\n")
    if not stamp.endswith("Z") or "T" not in stamp:
        return ""
    whole, _, fraction = stamp[:-1].partition(".")
    return f"{whole}.{fraction[:9]:0<9}Z"


def _shown(text: str) -> str:
    """A text from a cluster as one line of a log."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}…"


def _container_status(pod: k8s.V1Pod | None, container: str) -> k8s.V1ContainerStatus | None:
    statuses = (pod.status.container_statuses if pod is not None and pod.status else None) or ()
    return next((status for status in statuses if status.name == container), None)


def _disrupted(pod: k8s.V1Pod) -> Trouble | None:
    status = pod.status
    if status.reason == "Evicted":
        return Trouble(f"was evicted by its node: {status.message or 'no reason given'}")
    if status.reason == "DeadlineExceeded":
        return Trouble("ran longer than its active_deadline_seconds allow")
    for condition in status.conditions or ():
        if condition.type == "DisruptionTarget" and condition.status == "True":
            return Trouble(f"was taken away ({condition.reason}): {condition.message or 'no reason given'}")
    if status.reason and status.phase == "Failed":
        return Trouble(f"ended with {status.reason}: {status.message or 'no reason given'}")
    return None


def _container_trouble(pod: k8s.V1Pod, container: str) -> Trouble | None:
    status = _container_status(pod, container)
    state = status.state if status else None
    if state and state.waiting and state.waiting.reason:
        return _waiting(pod, container, state.waiting)
    if state and state.terminated and state.terminated.exit_code:
        return _terminated(pod, container, state.terminated)
    return None


def _waiting(pod: k8s.V1Pod, container: str, waiting: k8s.V1ContainerStateWaiting) -> Trouble | None:
    said = " ".join((waiting.message or "").split())
    if waiting.reason in _PULLING:
        image = next((c.image for c in pod.spec.containers if c.name == container), "?") if pod.spec else "?"
        return Trouble(f"never started: its image {image!r} cannot be pulled ({waiting.reason}): {said}", waiting.reason in _PERMANENT)
    if waiting.reason in _SETTING_UP:
        return Trouble(f"never started: its container cannot be set up ({waiting.reason}): {said}")
    return None


def _terminated(pod: k8s.V1Pod, container: str, ended: k8s.V1ContainerStateTerminated) -> Trouble:
    if ended.reason == "OOMKilled":
        return Trouble(
            f"ran out of memory (OOMKilled; its limit is {_memory_limit(pod, container)}): give it more by container_resources, "
            "or use more shards"
        )
    if ended.exit_code == _KILLED:
        return Trouble("was killed (SIGKILL): a stop that took longer than its grace, or memory")
    if ended.reason in ("ContainerCannotRun", "StartError"):
        return Trouble(f"could not run its command ({ended.reason}): {' '.join((ended.message or '').split())}")
    return Trouble(f"ended with exit code {ended.exit_code}")


def _memory_limit(pod: k8s.V1Pod, container: str) -> str:
    for c in pod.spec.containers if pod.spec else ():
        if c.name == container and c.resources and c.resources.limits:
            return str(c.resources.limits.get("memory", "none of its own"))
    return "none of its own"


def _unscheduled(pod: k8s.V1Pod, events: Iterable[k8s.CoreV1Event]) -> Trouble | None:
    for condition in pod.status.conditions or ():
        if condition.type == "PodScheduled" and condition.status == "False":
            return Trouble(f"found no node: {' '.join((condition.message or _last_warning(events)).split())}")
    return None


def _lingering(pod: k8s.V1Pod, events: Iterable[k8s.CoreV1Event]) -> Trouble | None:
    if pod.metadata is not None and pod.metadata.deletion_timestamp is not None:
        return Trouble("was deleted by somebody while its agent ran")
    if pod.status.phase == "Pending":
        return Trouble(f"did not start in time: {_last_warning(events) or 'Kubernetes gives no reason'}")
    return None


def _last_warning(events: Iterable[k8s.CoreV1Event]) -> str:
    lines = event_lines(events)
    return lines[-1] if lines else ""


def fresh_lines(lines: Iterable[str], since: str) -> Iterator[tuple[str, str]]:
    """Stamp and text of log lines later than ``since``; a line without a stamp belongs to the one before it."""
    fresh, stamp = False, since
    for line in lines:
        found = log_stamp(line)
        if found:
            fresh, stamp, line = found > since, found, line.partition(" ")[2]
        if fresh and line.strip():
            yield stamp, line.rstrip("\n")
