"""What is private in the Kubernetes provider is there, takes what it is given, is asked for, and is used in one module."""

from __future__ import annotations

import ast
import gc
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from airflow.providers.cncf.kubernetes.operators import pod as pod_operator
from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.providers.cncf.kubernetes.triggers.pod import KubernetesPodTrigger
from airflow.providers.cncf.kubernetes.utils.pod_manager import AsyncPodManager, PodManager

import airflow_provider_factory
from airflow_provider_factory.operators.kafka_agent import KafkaAgentOperator
from airflow_provider_factory.runners.kubernetes import private
from airflow_provider_factory.runners.kubernetes.logs import AgentPodManager, AsyncAgentPodManager
from airflow_provider_factory.triggers.agent_pod import AgentPodTrigger

PACKAGE = Path(airflow_provider_factory.__file__).parent
KEEPS_PODS_IN_TASK_STATE = "task_state_store" in inspect.getsource(pod_operator)

ASKED = [
    (KubernetesPodOperator, "_build_find_pod_label_selector", ["context", "exclude_checked"]),
    (KubernetesPodOperator, "_get_ti_pod_labels", ["context", "include_try_number"]),
]
"""What ours calls, and with what."""


@pytest.fixture(autouse=True)
def uncollected() -> Iterator[None]:
    """Without the garbage collector: CPython before 3.11.8 miscounts (a SystemError) where it runs in the middle of ``ast.parse`` and ends
    something that makes another thread print a traceback, which is parsed, too.
    """
    gc.disable()
    yield
    gc.enable()


OVERRIDDEN = [
    (KubernetesPodOperator, "_write_logs", ["pod", "follow", "since_time"]),
    (KubernetesPodOperator, "_get_pod_from_task_state_store", ["context"]),
    (PodManager, "_log_message", ["message"]),
    (KubernetesPodTrigger, "_get_pod", []),
]
"""What the provider calls, and ours takes the place of."""

ATTRIBUTES = [(KubernetesPodOperator, "_killed", "on_kill"), (AsyncPodManager, "_hook", "__init__")]
"""What ours reads, and where the provider sets it."""


def parameters(owner: type, name: str) -> list[str]:
    return [p for p in inspect.signature(getattr(owner, name)).parameters if p != "self"]


@pytest.mark.parametrize(("owner", "name", "takes"), ASKED)
def test_what_is_asked_is_there_and_takes_what_it_is_given(owner: type, name: str, takes: list[str]) -> None:
    assert set(takes) <= set(parameters(owner, name))


@pytest.mark.parametrize(("owner", "name", "takes"), OVERRIDDEN)
def test_what_is_overridden_is_there_and_the_provider_calls_it(owner: type, name: str, takes: list[str]) -> None:
    if name == "_get_pod_from_task_state_store" and not KEEPS_PODS_IN_TASK_STATE:
        assert not hasattr(owner, name)
        return
    assert parameters(owner, name)[: len(takes)] == takes
    assert f"self.{name}(" in inspect.getsource(sys.modules[owner.__module__])


@pytest.mark.parametrize(("owner", "name", "where"), ATTRIBUTES)
def test_what_is_read_is_set_where_it_was(owner: type, name: str, where: str) -> None:
    assert f"self.{name} = " in inspect.getsource(getattr(owner, where))


def names_of(tree: ast.AST) -> tuple[set[str], set[str]]:
    """Private names that a module defines (methods, functions, attributes of its objects), and those that it uses."""
    defined, used = set[str](), set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.Attribute):
            (defined if isinstance(node.ctx, ast.Store) else used).add(node.attr)
        elif isinstance(node, ast.AnnAssign | ast.Assign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            defined.update(t.id for t in targets if isinstance(t, ast.Name))
    return tuple({n for n in names if n.startswith("_") and not n.startswith("__") and n.islower()} for names in (defined, used))  # type: ignore[return-value]


def test_this_list_is_all_that_the_module_uses() -> None:
    defined, used = names_of(ast.parse(inspect.getsource(private)))
    listed = {name for _, name, _ in (*ASKED, *OVERRIDDEN, *ATTRIBUTES)}
    assert defined | used == listed


def test_no_other_module_uses_what_is_private_in_a_package_of_others() -> None:
    modules = [p for p in PACKAGE.rglob("*.py") if p.name not in ("private.py", "version_compat.py")]
    names = {p: names_of(ast.parse(p.read_text())) for p in modules}
    ours = set().union(*(defined for defined, _ in names.values()))
    assert not {str(p.relative_to(PACKAGE)): used - ours for p, (_, used) in names.items() if used - ours}


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (KafkaAgentOperator, KubernetesPodOperator),
        (AgentPodManager, PodManager),
        (AsyncAgentPodManager, AsyncPodManager),
        (AgentPodTrigger, KubernetesPodTrigger),
    ],
)
def test_no_name_of_ours_takes_the_place_of_one_of_theirs_by_chance(ours: type, theirs: type) -> None:
    modules: set[ModuleType] = {sys.modules[c.__module__] for c in ours.__mro__ if c.__module__.startswith("airflow_provider_factory")}
    own = set().union(*(names_of(ast.parse(inspect.getsource(m)))[0] for m in modules - {private}))
    source = "\n".join(inspect.getsource(c) for c in theirs.__mro__ if c.__module__.startswith("airflow."))
    assert not {name for name in own if hasattr(theirs, name) or f"self.{name} =" in source or f"self.{name}:" in source}
