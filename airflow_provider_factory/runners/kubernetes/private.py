"""What is private in the Kubernetes provider and needed here, under names of our own: a release that renames it breaks this module only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator  # noqa: TID253  # see plugins/preload.py
from airflow.providers.cncf.kubernetes.triggers.pod import KubernetesPodTrigger
from airflow.providers.cncf.kubernetes.utils.pod_manager import AsyncPodManager, PodManager

if TYPE_CHECKING:
    from airflow.sdk import Context
    from kubernetes.client import models as k8s

__all__ = ["OpenAsyncPodManager", "OpenPodManager", "OpenPodOperator", "OpenPodTrigger"]


class OpenPodOperator(KubernetesPodOperator):
    """KubernetesPodOperator with what ours has to know and decide."""

    @property
    def was_killed(self) -> bool:
        """Whether ``on_kill`` was called."""
        return bool(self._killed)

    def run_selector(self, context: Context, *, exclude_checked: bool) -> str:
        """The labels by which a pod of just this run is looked for."""
        return str(self._build_find_pod_label_selector(context, exclude_checked=exclude_checked))

    def task_instance_selector(self, context: Context) -> str:
        """The labels of every pod of this task instance, whichever attempt's."""
        return ",".join(f"{k}={v}" for k, v in sorted(self._get_ti_pod_labels(context, include_try_number=False).items()))

    def may_take_up(self, pod: k8s.V1Pod) -> bool:
        """Whether a pod that an earlier attempt remembered may be used again."""
        return True

    def show_log(self, pod: k8s.V1Pod, *, follow: bool, since: str) -> None:
        """After deferral: log what the trigger has not shown yet; ``since`` is the stamp of the last line that it has, or empty."""
        super()._write_logs(pod, follow=follow)

    def _get_pod_from_task_state_store(self, context: Context) -> k8s.V1Pod | None:  # from 10.18 on
        pod = super()._get_pod_from_task_state_store(context)
        return pod if pod is not None and self.may_take_up(pod) else None

    def _write_logs(  # type: ignore[override]
        self, pod: k8s.V1Pod, follow: bool = False, since_time: Any = None
    ) -> None:
        self.show_log(pod, follow=follow, since=since_time if isinstance(since_time, str) else "")


class OpenPodManager(PodManager):
    """PodManager with a say in how a line of the log is shown."""

    def tell(self, line: str) -> None:
        """Log one line of the container's."""
        self.log.info("%s", line)

    def _log_message(self, message: str, *args: Any, **kwargs: Any) -> None:
        for line in message.splitlines():
            self.tell(line)


class OpenAsyncPodManager(AsyncPodManager):
    """AsyncPodManager that reads a log as it is."""

    async def read_log(self, pod: k8s.V1Pod, container: str, *, since_seconds: int | None) -> Any:
        """The lines of a container's log, with their stamps."""
        return await self._hook.read_logs(
            name=pod.metadata.name, namespace=pod.metadata.namespace, container_name=container, since_seconds=since_seconds
        )


class OpenPodTrigger(KubernetesPodTrigger):
    """KubernetesPodTrigger with a say in how it looks at its pod."""

    async def look(self) -> k8s.V1Pod:
        """The pod as it is now."""
        return await super()._get_pod()

    async def _get_pod(self) -> k8s.V1Pod:  # type: ignore[override]
        return await self.look()
