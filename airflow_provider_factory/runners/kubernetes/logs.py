"""An agent's log lines from its pod into the task's log: at their own level, readable, and none twice."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from airflow.providers.cncf.kubernetes.kubernetes_helper_functions import KubernetesApiException
from airflow.providers.cncf.kubernetes.utils.container import container_is_completed
from airflow.providers.cncf.kubernetes.utils.pod_manager import AsyncPodManager, PodPhase

from airflow_provider_factory.runners.kubernetes.failure import fresh_lines, log_stamp
from airflow_provider_factory.runners.kubernetes.private import OpenAsyncPodManager, OpenPodManager
from factory_agents.runners.process import log_line

if TYPE_CHECKING:
    from kubernetes.client import models as k8s

__all__ = ["OUTAGE_PATIENCE", "AgentPodManager", "AsyncAgentPodManager", "is_outage", "outlast", "short", "since_seconds"]

NO_ANSWER = "The Kubernetes API server doesn't answer, asking again: %s"
_UNKNOWN_TO_KUBELET = (400, 404)
_QUICK_LOOKS = 20
_QUICK_LOOK = 0.1
_T = TypeVar("_T")

OUTAGE_PATIENCE = 180.0
"""Seconds without an answer of the API server after which a task gives up (a retry takes its pod up again)."""


def is_outage(error: BaseException) -> bool:
    """Whether an error is the API server's or the network's own, and not an answer about a pod."""
    if isinstance(error, KubernetesApiException):
        return True
    status = getattr(error, "status", None)
    if isinstance(status, int) and status:
        return status == 429 or status >= 500
    return type(error).__module__.partition(".")[0] in ("urllib3", "aiohttp", "kubernetes", "kubernetes_asyncio") or isinstance(
        error, (OSError, TimeoutError)
    )


def short(error: BaseException) -> str:
    """An error's first line."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def since_seconds(stamp: str) -> int | None:
    """How far back to ask for lines later than ``stamp``, with a margin for rounding; None for all."""
    if not stamp:
        return None
    then = datetime.strptime(stamp[:19], "%Y-%m-%dT%H:%M:%S").replace(tzinfo=UTC)
    return max(1, math.ceil((datetime.now(UTC) - then).total_seconds()) + 2)


async def outlast(ask: Callable[[], Awaitable[_T]], log: Any) -> _T:
    """The answer of the API server; asks for ``OUTAGE_PATIENCE`` seconds where there is none, then raises what it got."""
    until = time.monotonic() + OUTAGE_PATIENCE
    while True:
        try:
            return await ask()
        except Exception as error:
            if not is_outage(error) or time.monotonic() > until:
                raise
            log.warning(NO_ANSWER, short(error))
            await asyncio.sleep(2)


def _all_succeeded(pod: k8s.V1Pod) -> bool:
    """Whether every container of a pod that restarts none has ended well: then so has the pod, though its phase doesn't say so yet."""
    ends = [status.state and status.state.terminated for status in pod.status.container_statuses or []]
    return (
        pod.spec.restart_policy == "Never"
        and len(ends) == len(pod.spec.containers)
        and all(end is not None and end.exit_code == 0 for end in ends)
    )


class AgentPodManager(OpenPodManager):
    """Follows an agent's pod; waits out an API server that doesn't answer; keeps the last lines for an error's message."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.last_lines: deque[str] = deque(maxlen=20)
        self._shown: dict[tuple[str, str], str] = {}

    def read_pod(self, pod: k8s.V1Pod) -> k8s.V1Pod:
        """See ``PodManager``; goes on asking for ``OUTAGE_PATIENCE`` seconds where the API server doesn't answer."""
        until = time.monotonic() + OUTAGE_PATIENCE
        while True:
            try:
                return super().read_pod(pod)
            except Exception as error:
                if not is_outage(error) or time.monotonic() > until:
                    raise
                self.log.warning(NO_ANSWER, short(error))
                time.sleep(2)

    def container_is_running(self, pod: k8s.V1Pod, container_name: str) -> bool:
        """See ``PodManager``; asked when the log ended, which the kubelet reports as the container's end within a second or so."""
        for _ in range(_QUICK_LOOKS):
            if not super().container_is_running(pod, container_name):
                return False
            time.sleep(_QUICK_LOOK)
        return True

    def await_pod_completion(self, pod: k8s.V1Pod, istio_enabled: bool = False, container_name: str = "base", *args: Any) -> k8s.V1Pod:
        """See ``PodManager``, which looks every two seconds, for a phase that follows its containers' end by one."""
        for _ in range(_QUICK_LOOKS):
            remote: k8s.V1Pod = self.read_pod(pod)
            if remote.status.phase in PodPhase.terminal_states:
                return remote
            if _all_succeeded(remote):
                remote.status.phase = PodPhase.SUCCEEDED
                return remote
            if not container_is_completed(remote, container_name):
                break
            time.sleep(_QUICK_LOOK)
        return super().await_pod_completion(pod, istio_enabled, container_name, *args)

    def read_pod_logs(self, pod: k8s.V1Pod, container_name: str, *args: Any, timestamps: bool = False, **kwargs: Any) -> Any:
        """See ``PodManager``, which asks again from a whole second on after an interruption: lines that were read before are left out.

        A kubelet that has just started again doesn't know its running pods yet: it is asked again, for ``OUTAGE_PATIENCE`` seconds.
        """
        from kubernetes.client.exceptions import ApiException

        until = time.monotonic() + OUTAGE_PATIENCE
        while True:
            try:
                lines = super().read_pod_logs(pod, container_name, *args, timestamps=timestamps, **kwargs)
                break
            except ApiException as error:
                unknown = error.status in _UNKNOWN_TO_KUBELET and time.monotonic() < until
                if not unknown or not super().container_is_running(pod, container_name):
                    raise
                self.log.warning("The node has no log of the running pod, asking again: %s", short(error))
                time.sleep(1)
        return self._unseen((pod.metadata.name, container_name), lines) if timestamps else lines

    def _unseen(self, key: tuple[str, str], lines: Iterable[bytes]) -> Iterator[bytes]:
        fresh = True
        for line in lines:
            if stamp := log_stamp(line.decode("utf-8", errors="replace")):
                fresh = stamp > self._shown.get(key, "")
                if fresh and line.endswith(b"\n"):  # a line that was cut off is read again, whole
                    self._shown[key] = stamp
            if fresh:
                yield line

    def tell(self, line: str) -> None:
        """Log one line of the agent at its own level."""
        level, text = log_line(line)
        self.last_lines.append(text)
        self.log.log(level, "%s", text)


class AsyncAgentPodManager(OpenAsyncPodManager):
    """The same for a trigger: each line once, whatever second it falls in."""

    async def read_pod(self, pod: k8s.V1Pod) -> k8s.V1Pod:
        """See ``AsyncPodManager``; waits out an API server that doesn't answer."""
        return await outlast(lambda: AsyncPodManager.read_pod(self, pod), self.log)

    async def fetch_container_logs_before_current_sec(self, pod: k8s.V1Pod, container_name: str, since_time: Any = None) -> Any:
        """Log the lines later than ``since_time`` (a stamp of Kubernetes') and return the last one's stamp."""
        since = since_time if isinstance(since_time, str) else ""
        lines = await self.read_log(pod, container_name, since_seconds=since_seconds(since))
        for stamp, line in fresh_lines(lines, since):
            level, text = log_line(line)
            self.log.log(level, "%s", text)
            since = stamp
        return since or None
