"""``@task.kafka_agent``: source that travels alone, a version that is its hash, and errors while the DAG file is parsed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG, Asset, TriggerRule, setup, task, teardown
from airflow.sdk.definitions.mappedoperator import MappedOperator
from airflow.sdk.exceptions import AirflowSkipException

from airflow_provider_factory.decorators.kafka_agent import AgentTask, function_source
from airflow_provider_factory.operators.kafka_agent import KafkaAgentOperator
from airflow_provider_factory.operators.window import WindowOperator
from factory_agents.errors import ConfigurationError
from factory_agents.runtime.loading import load_source

PREFIX = "x"


def from_file(tmp_path: Path, body: str) -> Callable[..., Any]:
    """The function ``agent`` of a file, as a DAG file would define it."""
    import importlib.util

    path = tmp_path / "my_dag.py"
    path.write_text(body)
    spec = importlib.util.spec_from_file_location("my_dag", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.agent  # type: ignore[no-any-return]


def run_source(function: Callable[..., Any], *args: Any) -> Any:
    """Call the function made of the travelling source alone."""
    source = function_source(function)
    return load_source(source.text, source.name).function(*args)


def test_the_body_travels_without_its_decorators() -> None:
    @task.kafka_agent(
        output_topic="out",
        map_index_template="{{ shard_label }}",
    )
    def enrich(event: dict) -> dict:
        """Adds the host."""
        return event | {"host": event["url"].split("/")[2]}

    assert isinstance(enrich, AgentTask)
    text = function_source(enrich.function).text
    assert text.splitlines()[3].startswith("def enrich(event: dict)")
    assert "@" not in text
    assert run_source(enrich.function, {"url": "https://a/b"}) == {"url": "https://a/b", "host": "a"}


def test_the_plain_function_is_there_for_unit_tests() -> None:
    @task.kafka_agent
    def double(event):
        return [event, event]

    assert double.function({"a": 1}) == [{"a": 1}] * 2


def test_imports_nested_functions_classes_and_comprehensions_of_its_own_are_fine() -> None:
    def agent(event):
        import json
        from urllib.parse import urlsplit as split

        class Host:
            name = "h"
            upper = name.upper()

        def inner(x):
            return [split(y).netloc for y in x] + [Host.upper, json.dumps(event)]

        return {"hosts": inner([event["url"]])}

    assert run_source(agent, {"url": "https://a/b"}) == {"hosts": ["a", "H", '{"url":"https://a/b"}'.replace(":", ": ", 1)]}


FIELDS = """
from typing import Any
Event = dict
def agent(event: Event, _more: list[
    Any] | None = None, least: int = 1) -> dict[
    str, Any
]:
    import datetime as dt
    from typing import NamedTuple
    import msgspec

    class Order(msgspec.Struct):
        class Line(msgspec.Struct):
            amount: int

        id: int
        at: {date} | None = None
        lines: list[dict] = []

    class Kind(NamedTuple):
        name: str = "é"

    order = msgspec.convert(event, Order)
    return {{**msgspec.to_builtins(order), "kind": Kind().name, "line": Order.Line(least).amount}}
"""


@pytest.mark.parametrize(("future", "date"), [("", "dt.date"), ("from __future__ import annotations", "str")])
def test_a_class_of_its_own_has_the_fields_that_it_has_in_the_file(tmp_path: Path, future: str, date: str) -> None:
    agent = from_file(tmp_path, f"{future}\n" + FIELDS.format(date=date))
    event = {"id": 7, "at": "2026-11-01", "lines": [{"a": 1}]}
    assert run_source(agent, event) == agent(event) == {**event, "kind": "é", "line": 1}


def test_a_field_whose_type_stands_in_the_file_alone_is_refused(tmp_path: Path) -> None:
    body = "Kind = str\ndef agent(event):\n    class A:\n        kind: Kind\n    return event\n"
    with pytest.raises(ConfigurationError, match=r"^my_dag.py:4: agent 'agent' uses 'Kind', which it doesn't define"):
        function_source(from_file(tmp_path, body))


@pytest.mark.parametrize(
    "change",
    ["f.__defaults__ = (5,)", "f.__defaults__ = None", "f.__kwdefaults__ = {'m': 5}", "f.__name__ = 'other'", "f.__code__ = g.__code__"],
)
def test_a_function_that_a_decorator_changes_in_place_is_refused(tmp_path: Path, change: str) -> None:
    body = f"def g(e, n=1): return 2\ndef below(f):\n    {change}\n    return f\n@below\ndef agent(e, n=1, *, m=None):\n    return n\n"
    with pytest.raises(ConfigurationError, match=r"a decorator below @task.kafka_agent changed the name or the defaults of"):
        function_source(from_file(tmp_path, body))


NESTED = '''
def outer():
    if True:
        @(lambda f: f)
        def agent(event, n=1):
            """Says:

            what it does
        at two margins
            """
            text = """
at the left
    indented
          more"""
            query = (
    "select 1"
        " from t"
            )
# a comment at the left
            odd = "a\x0cb" + "c\u2028d" + \\
    "e"
            more = f"""
{n
+ 1} and {text!r}
            end"""; raw = rb"""
            \\x"""
            return [text, query, odd, more, raw.decode(), agent.__doc__, event]
        return agent
agent = outer()
'''


def test_a_nested_function_is_the_same_one_whatever_its_texts_look_like(tmp_path: Path) -> None:
    agent = from_file(tmp_path, NESTED)
    assert run_source(agent, {"a": 1}) == agent({"a": 1})


@pytest.mark.parametrize("margin", ["\t", "    ", " ", "\t  "])
def test_a_function_is_the_same_one_wherever_it_stands(tmp_path: Path, margin: str) -> None:
    body = 'def agent(event):\n    """Doc."""\n    return {**event, "a": """\nb\n"""}\n'
    head, *rest = body.splitlines()
    inside = {"b", '"""}'}
    moved = "if True:\n" + "\n".join(line if line in inside else margin + line for line in [head, *rest]) + "\n"
    assert function_source(from_file(tmp_path, moved)).text == function_source(from_file(tmp_path, body)).text


def test_a_function_that_cannot_stand_alone_is_refused_with_file_and_line(tmp_path: Path) -> None:
    body = "def outer():\n    n = 0\n    def agent(event):\n        nonlocal n\n        return event\n    return agent\nagent = outer()\n"
    with pytest.raises(ConfigurationError, match=r"^my_dag.py:4: agent 'agent' cannot stand alone.*nonlocal"):
        function_source(from_file(tmp_path, body))


def test_a_function_that_a_decorator_wraps_is_refused(tmp_path: Path) -> None:
    head = (
        "import functools\ndef shout(f):\n    @functools.wraps(f)\n    def inner(event):\n        return f(event) | {}\n    return inner\n"
    )
    with pytest.raises(ConfigurationError, match=r"^my_dag.py:\d+: a decorator below @task.kafka_agent wraps 'agent'"):
        function_source(from_file(tmp_path, head + "@shout\ndef agent(event):\n    return event\n"))


def test_a_decorator_above_it_decorates_the_making_of_the_task() -> None:
    calls = []

    def counted(make):
        @functools.wraps(make)
        def inner(*args, **kwargs):
            calls.append(kwargs)
            return make(*args, **kwargs)

        return inner

    with DAG("d", schedule=None):
        window = WindowOperator(task_id="window", topic="raw")

        @counted
        @task.kafka_agent(output_topic="out")
        def enrich(event):
            return event

        made = enrich(window=window.output)
    assert isinstance(made.operator, KafkaAgentOperator)
    assert len(calls) == 1


@pytest.mark.parametrize("mapped", [False, True])
def test_a_condition_above_it_is_asked_before_it_runs(mapped: bool) -> None:
    with DAG("d", schedule=None):
        window = WindowOperator(task_id="window", topic="raw")

        @task.skip_if(lambda context: context["skip"])
        @task.kafka_agent(output_topic="out")
        def enrich(event):
            return event

        made = (enrich.expand(window=window.output) if mapped else enrich.override(task_id="other")(window.output)).operator
    hook = made.partial_kwargs["pre_execute"] if mapped else made._pre_execute_hook
    hook({"skip": False})
    with pytest.raises(AirflowSkipException):
        hook({"skip": True})


@pytest.mark.parametrize("mapped", [False, True])
def test_setup_and_teardown_above_it_are_what_the_task_is(mapped: bool) -> None:
    with DAG("d", schedule=None):
        window = WindowOperator(task_id="window", topic="raw")

        @setup
        @task.kafka_agent(output_topic="out")
        def prepare(event):
            return event

        @teardown(on_failure_fail_dagrun=True)
        @task.kafka_agent(output_topic="out")
        def tidy(event):
            return event

        first, last = ((f.expand if mapped else f)(window=window.output).operator for f in (prepare, tidy))
    assert (first.is_setup, first.is_teardown) == (True, False)
    assert (last.is_setup, last.is_teardown) == (False, True)
    assert last.partial_kwargs["on_failure_fail_dagrun"] if mapped else last.on_failure_fail_dagrun
    assert last.trigger_rule == TriggerRule.ALL_DONE_SETUP_SUCCESS


def test_reject_needs_no_import() -> None:
    from factory_agents.runtime.agents import Reject

    def agent(event):
        raise Reject("no")

    assert "from factory_agents.runtime.agents import Reject" in function_source(agent).text
    with pytest.raises(Reject):
        run_source(agent, {})


def test_builtins_are_known_where_they_are_what_they_are(tmp_path: Path) -> None:
    body = "from builtins import max\ndef agent(event, id=id):\n    filter = 3\n    return max(event['n'], filter)\n"
    assert run_source(from_file(tmp_path, body), {"n": 5}) == 5


@pytest.mark.parametrize(
    ("body", "line", "name"),
    [
        ("def agent(event):\n    x = 1\n    return helper(event)\n", 3, "helper"),
        ("import json\n@(lambda f: f)\ndef agent(event):\n\n    return json.dumps(event)\n", 5, "json"),
        ("LIMIT = 3\ndef agent(event, limit=LIMIT):\n    return event\n", 2, "LIMIT"),
        ("def agent(event):\n    return [lambda: deep for _ in event]\n", 2, "deep"),
        ("def agent(event):\n    class A:\n        x = 1\n    def f():\n        return x\n    return f\n", 5, "x"),
        ("def outer():\n    secret = 1\n    def agent(event):\n        return secret\n    return agent\nagent = outer()\n", 4, "secret"),
        ("def outer(filter):\n    def agent(event):\n        return filter(event)\n    return agent\nagent = outer(dict)\n", 3, "filter"),
        ("max = 3\ndef agent(event):\n    return [max for _ in event]\n", 3, "max"),
        ("def open(path):\n    return path\ndef agent(event, path=open('x')):\n    return event\n", 3, "open"),
        ("class Reject(Exception): pass\ndef agent(event):\n    raise Reject('mine')\n", 3, "Reject"),
    ],
)
def test_a_name_that_it_does_not_define_is_refused_with_file_and_line(tmp_path: Path, body: str, line: int, name: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        function_source(from_file(tmp_path, body))
    assert str(error.value).startswith(f"my_dag.py:{line}: agent 'agent' uses {name!r}, which it doesn't define")
    assert "\n" not in str(error.value)


def test_annotations_need_no_names(tmp_path: Path) -> None:
    head = "from __future__ import annotations\nfrom typing import Any\n"
    body = head + "def agent(event: dict[str, Any], n: Missing = 1) -> list[Any] | None:\n    return event\n"
    assert run_source(from_file(tmp_path, body), {}) == {}


@pytest.mark.parametrize(
    "body",
    [
        "agent = lambda e: e\n",
        "async def agent(e):\n    return e\n",
        "def agent(e):\n    yield e\n",
        "class agent:\n    def __call__(self, e): ...\n",
    ],
)
def test_what_has_no_plain_source_is_refused(tmp_path: Path, body: str) -> None:
    with pytest.raises(ConfigurationError, match=r"@task.kafka_agent takes"):
        function_source(from_file(tmp_path, body))


def test_the_version_is_the_sources_hash(tmp_path: Path) -> None:
    one = function_source(from_file(tmp_path, "def agent(e):\n    return e\n"))
    moved = function_source(from_file(tmp_path, "\n\n\n@(lambda f: f)\ndef agent(e):\n    return e\n"))
    changed = function_source(from_file(tmp_path, "def agent(e):\n    return None\n"))
    assert one.version == moved.version != changed.version


def test_calling_it_makes_a_task_whose_result_is_one_xcom() -> None:
    with DAG("d", schedule=None):
        window = WindowOperator(task_id="window", topic="raw")

        @task.kafka_agent(output_topic=Asset(name="out", uri="kafka://main/out"), agent_params={"n": 1})
        def enrich(event: dict, n: int) -> dict:
            """Adds."""
            return event | {"n": n}

        first = enrich(window.output)
        second = enrich(window=first)
        third = enrich.override(task_id="other", output_topic="more")(second)
    operator = first.operator
    assert isinstance(operator, KafkaAgentOperator)
    assert operator.task_type == "DecoratedKafkaAgentOperator"
    assert operator.operator_name == "@task.kafka_agent"
    assert (operator.task_id, second.operator.task_id, third.operator.task_id) == ("enrich", "enrich__1", "other")
    assert operator.multiple_outputs is False
    assert operator.doc_md == "Adds."
    assert operator.outlets == [Asset(name="out", uri="kafka://main/out")]
    assert operator.upstream_task_ids == {"window"}
    assert third.operator.outlets[0].uri == "kafka://main/more"


def test_expand_maps_over_the_windows_of_a_plan() -> None:
    with DAG("d", schedule=None):
        window = WindowOperator(task_id="window", topic="raw", shards=4)

        @task.kafka_agent(output_topic="out")
        def enrich(event):
            return event

        mapped = enrich.expand(window=window.output)
        later = enrich.partial(window=mapped, task_id="later").expand(shard=[(0, 2), (1, 2)])
    assert isinstance(mapped.operator, MappedOperator)
    assert mapped.operator.outlets[0].uri == "kafka://main/out"
    assert mapped.operator.upstream_task_ids == {"window"}
    assert later.operator.upstream_task_ids == {"enrich"}


def test_the_agent_itself_is_the_functions_business() -> None:
    with pytest.raises(ConfigurationError, match="sets agent from the function"):

        @task.kafka_agent(agent="enrich")
        def enrich(event):
            return event
