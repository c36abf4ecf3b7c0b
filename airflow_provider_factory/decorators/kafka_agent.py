"""``@task.kafka_agent``: the body of a function in a DAG file is the agent; its source travels, its hash is the version."""

from __future__ import annotations
import __future__

import ast
import builtins
import dis
import hashlib
import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from types import CellType, CodeType, FunctionType
from typing import Any

from airflow.sdk import TriggerRule
from airflow.sdk.bases.decorator import _TaskDecorator, get_unique_task_id
from airflow.sdk.definitions.xcom_arg import XComArg

from airflow_provider_factory.operators.kafka_agent import KafkaAgentOperator
from factory_agents.errors import ConfigurationError
from factory_agents.runtime.agents import Reject

__all__ = ["AgentTask", "FunctionSource", "function_source", "kafka_agent_task"]

_PROVIDED = {"Reject": "from factory_agents.runtime.agents import Reject"}
"""Names a function may use without defining them, and the line that its source gets for each."""

_OWN = ("agent", "agent_source", "agent_version")


class FunctionSource:
    """A function's own source text, complete in itself, and a version that is its hash.

    :param name: the function's name.
    :param text: its source, without decorators and margin.
    """

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.text = text
        self.version = hashlib.sha256(text.encode()).hexdigest()[:12]


def function_source(function: Callable[..., Any]) -> FunctionSource:
    """The source of a function without its decorators, ready to be run elsewhere.

    Raises ConfigurationError, with file and line, for what has no source of its own (a lambda, a method, a coroutine), for a
    function that another one wraps or changes, and for names that the function uses but doesn't define: it has to import them in its body.

    :param function: a plain function, as it is written in the DAG file.
    """
    where = _where(function)
    if not isinstance(function, FunctionType) or function.__name__ == "<lambda>":
        raise ConfigurationError(f"{where}: @task.kafka_agent takes a function made by def, got {type(function).__name__}")
    if hasattr(function, "__wrapped__"):
        raise ConfigurationError(
            f"{where}: a decorator below @task.kafka_agent wraps {function.__name__!r}; only the function's own source travels, so the "
            "wrapper would be lost: do its work in the function's body"
        )
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        raise ConfigurationError(f"{where}: @task.kafka_agent takes a plain function; {function.__name__!r} is a coroutine or a generator")
    try:
        lines, first = inspect.getsourcelines(function)
    except (OSError, TypeError) as error:
        raise ConfigurationError(f"{where}: the source of {function.__name__!r} cannot be read, so it cannot travel: {error}") from error
    text, offset = _without_decorators("".join(lines))
    _check_unchanged(text, function, where)
    return FunctionSource(function.__name__, _complete(text, function, Path(function.__code__.co_filename).name, first + offset))


def _where(function: Any) -> str:
    code = getattr(function, "__code__", None)
    return f"{Path(code.co_filename).name}:{code.co_firstlineno}" if code else repr(function)


def _without_decorators(text: str) -> tuple[str, int]:
    """The ``def`` and its body without the margin that they stood at, and how many lines of decorators stood before it.

    What stands inside a text of several lines is the text's own: it keeps its margin.
    """
    margin = text[: len(text) - len(text.lstrip())]
    head = "if 1:\n" if margin else ""
    tree = ast.parse(head + text)
    node = tree.body[0].body[0] if isinstance(tree.body[0], ast.If) else tree.body[0]
    inside = _lines_inside_texts(node)
    lines = (head + text).split("\n")  # not splitlines: a form feed ends no line of Python's
    kept = (
        line if number in inside else _without_margin(line, margin)
        for number, line in enumerate(lines[node.lineno - 1 : node.end_lineno], node.lineno)
    )
    return "\n".join(kept) + "\n", node.lineno - 1 - bool(head)


def _lines_inside_texts(tree: ast.AST) -> set[int]:
    """The numbers of lines that begin inside a literal (or among the parts of one, where indentation means nothing)."""
    inside: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant | ast.JoinedStr) or type(node).__name__ == "TemplateStr":
            inside.update(range(node.lineno + 1, (node.end_lineno or node.lineno) + 1))  # type: ignore[attr-defined]  # expressions have them
    return inside


def _without_margin(line: str, margin: str) -> str:
    return line.removeprefix(margin) if line.startswith(margin) else line.lstrip(" \t")


def _check_unchanged(text: str, function: FunctionType, where: str) -> None:
    """Refuse a function whose name or defaults are no longer those of its source: a decorator below changed it in place."""
    node = _definition(text)
    if node is None:
        return
    arguments, keywords = node.args, function.__kwdefaults__ or {}
    written: list[ast.expr | None] = [*arguments.defaults, *arguments.kw_defaults]
    now = [*(function.__defaults__ or ()), *(keywords.get(argument.arg) for argument in arguments.kwonlyargs)]
    if node.name != function.__name__ or len(written) != len(now) or not all(map(_may_be, written, now)):
        raise ConfigurationError(
            f"{where}: a decorator below @task.kafka_agent changed the name or the defaults of {node.name!r}; only the function's own "
            "source travels, so the change would be lost: write it into the function"
        )


def _definition(text: str) -> ast.FunctionDef | None:
    try:
        node = ast.parse(text).body[0]
    except SyntaxError:
        return None
    return node if isinstance(node, ast.FunctionDef) else None


def _may_be(written: ast.expr | None, value: Any) -> bool:
    """Whether a default may be what its source says; only a literal tells."""
    if written is None:
        return value is None
    try:
        meant = ast.literal_eval(written)
    except (ValueError, TypeError):
        return True
    return type(meant) is type(value) and bool(meant == value)


def _lazily(text: str, function: FunctionType) -> tuple[str, bool]:
    """The source, and whether all of its annotations are to be texts, as ``from __future__ import annotations`` makes them.

    A class in it may want its fields' types as they are; where the file has no such import either, only the signature's become texts, as
    the names in these need not travel.
    """
    node = _definition(text)
    if node is None or function.__code__.co_flags & __future__.annotations.compiler_flag or not _has_fields(node):
        return text, True
    lines = [line.encode() for line in text.split("\n")]
    arguments = [*node.args.posonlyargs, *node.args.args, node.args.vararg, *node.args.kwonlyargs, node.args.kwarg]
    hints = [*(argument.annotation for argument in arguments if argument is not None), node.returns]
    for hint in sorted((h for h in hints if h is not None), key=lambda h: (h.lineno, h.col_offset), reverse=True):
        first, last = hint.lineno - 1, (hint.end_lineno or hint.lineno) - 1
        said = hint if isinstance(hint, ast.Constant) else ast.Constant(ast.unparse(hint))
        own = ast.unparse(said).encode() + b" \\\n" * (last - first)  # no line moves
        lines[first : last + 1] = [lines[first][: hint.col_offset] + own + lines[last][hint.end_col_offset :]]
    return b"\n".join(lines).decode(), False


def _has_fields(tree: ast.AST) -> bool:
    """Whether a class in it has annotated fields."""
    classes = (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    return any(isinstance(node, ast.AnnAssign) for of in classes for node in ast.walk(of))


def _complete(text: str, function: FunctionType, file: str, first: int) -> str:
    text, lazy = _lazily(text, function)
    try:
        code = compile(text, file, "exec", flags=__future__.annotations.compiler_flag if lazy else 0, dont_inherit=True)
    except SyntaxError as error:  # what only makes sense where the function stands: nonlocal, for one
        raise ConfigurationError(
            f"{file}:{first + (error.lineno or 1) - 1}: agent {function.__name__!r} cannot stand alone, and only its own source travels: "
            f"{error.msg}"
        ) from None
    imports = []
    for name, line in _undefined(code, {function.__name__}, _shadowed(function)):
        if name not in _PROVIDED or _meant(function, name) not in (None, Reject):
            raise ConfigurationError(
                f"{file}:{first + line - 1}: agent {function.__name__!r} uses {name!r}, which it doesn't define; only its own source "
                f"travels: import or define {name!r} in its body, or take it as a parameter (agent_params)"
            )
        if _PROVIDED[name] not in imports:
            imports.append(_PROVIDED[name])
    head = [*(["from __future__ import annotations"] if lazy else []), *imports]
    return "".join(f"{line}\n" for line in head) + ("\n\n" if head else "") + text


def _meant(function: FunctionType, name: str) -> Any:
    """What a name that isn't the function's own stands for where the function was defined; None for nothing (yet)."""
    if name in function.__code__.co_freevars and function.__closure__ is not None:
        cell = function.__closure__[function.__code__.co_freevars.index(name)]
        return cell.cell_contents if cell != CellType() else None
    return function.__globals__.get(name)


def _shadowed(function: FunctionType) -> set[str]:
    """Builtins that are something else where the function was defined: a ``filter`` or an ``id`` around it wouldn't travel."""
    names = {name for name in dir(builtins) if not name.startswith("__")}
    around = names & ({*function.__code__.co_freevars} | function.__globals__.keys())
    return {name for name in around if _meant(function, name) is not getattr(builtins, name)}


def _undefined(code: CodeType, defined: Iterable[str], shadowed: Collection[str] = ()) -> Iterator[tuple[str, int]]:
    """Names that code looks up globally though nobody defines them, with the line of the text."""
    known = {*defined, *(set(dir(builtins)) - {*shadowed}), "__name__", "__qualname__", "__module__", "__class__"}
    instructions = list(dis.get_instructions(code))
    known.update(i.argval for i in instructions if i.opname in ("STORE_NAME", "STORE_GLOBAL"))
    if any(i.opname == "SETUP_ANNOTATIONS" for i in instructions):
        known.add("__annotations__")
    for i in instructions:
        if i.opname in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS") and i.argval not in known:
            yield i.argval, (i.positions.lineno if i.positions else None) or code.co_firstlineno
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _undefined(constant, known if code.co_name == "<module>" else defined, shadowed)


class DecoratedKafkaAgentOperator(KafkaAgentOperator):
    """What ``@task.kafka_agent`` makes: a KafkaAgentOperator whose agent is the decorated function."""

    custom_operator_name = "@task.kafka_agent"


class AgentTask(_TaskDecorator[..., Any, KafkaAgentOperator]):  # so that @task.skip_if, @setup and their like find what they expect
    """A function as an agent's task: call it to make a task, or map it with ``expand``; ``function`` is the plain function, for unit tests.

    It takes KafkaAgentOperator's arguments (``window``, ``shard``, ``agent_params`` …); the function itself takes the event and its
    parameters.

    :param function: the decorated function.
    :param arguments: KafkaAgentOperator's, but the agent.
    """

    def __init__(self, function: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
        for name in _OWN:
            if name in arguments:
                raise ConfigurationError(f"{_where(function)}: @task.kafka_agent sets {name} from the function; leave it out")
        self._source = function_source(function)
        super().__init__(
            function=function,
            operator_class=DecoratedKafkaAgentOperator,
            multiple_outputs=False,
            kwargs={"task_id": self._source.name, **arguments},
        )

    def __call__(self, window: Any = None, **arguments: Any) -> XComArg:
        """One task over a window, a result or mapped results; returns its output."""
        operator = DecoratedKafkaAgentOperator(**self._ready({"window": window, **arguments}))
        for name, value in self._marks().items():
            setattr(operator, name, value)
        return XComArg(operator)

    def override(self, **arguments: Any) -> AgentTask:
        """The same function with other arguments, for example another ``task_id``."""
        other = AgentTask(self.function, {**self.kwargs, **arguments})
        for name, value in self._marks().items():
            setattr(other, name, value)
        return other

    def partial(self, **arguments: Any) -> AgentTask:
        """The same for every mapped task: ``partial(window=…).expand(shard=…)``."""
        return self.override(**arguments)

    def expand(self, **mapped: Any) -> XComArg:
        """One task for each of the mapped values, usually ``expand(window=window.output)``."""
        return XComArg(self._partial().expand(**mapped))

    def expand_kwargs(self, mapped: Any, *, strict: bool = True) -> XComArg:
        """One task for each set of arguments."""
        return XComArg(self._partial().expand_kwargs(mapped, strict=strict))

    def _partial(self) -> Any:
        partial = DecoratedKafkaAgentOperator.partial(**self._ready({}))
        partial.kwargs.update(self._marks())
        return partial

    def _marks(self) -> dict[str, bool]:
        """What ``@setup`` and ``@teardown`` have said of the task."""
        return {name: getattr(self, name) for name in ("is_setup", "is_teardown", "on_failure_fail_dagrun")}

    def _ready(self, more: Mapping[str, Any]) -> dict[str, Any]:
        arguments = {**self.kwargs, **more}
        arguments["task_id"] = get_unique_task_id(arguments["task_id"], arguments.get("dag"), arguments.get("task_group"))
        if self.is_teardown:
            if "trigger_rule" in arguments:
                raise ConfigurationError(f"{_where(self.function)}: a teardown task has a trigger_rule of its own; leave it out")
            arguments["trigger_rule"] = TriggerRule.ALL_DONE_SETUP_SUCCESS
        if self.function.__doc__ and not any(arguments.get(name) for name in ("doc", "doc_md", "doc_json", "doc_rst", "doc_yaml")):
            arguments["doc_md"] = inspect.cleandoc(self.function.__doc__)
        return {**arguments, "agent": self._source.name, "agent_source": self._source.text, "agent_version": self._source.version}


def kafka_agent_task(python_callable: Callable[..., Any] | None = None, **arguments: Any) -> Any:
    """Make a function an agent's task; usable as ``@task.kafka_agent`` and as ``@task.kafka_agent(output_topic=…)``.

    Takes KafkaAgentOperator's arguments but the agent itself. Raises ConfigurationError while the DAG file is parsed.

    :param python_callable: the function that is decorated.
    :param arguments: KafkaAgentOperator's, but the agent.

    Example::

        @task.kafka_agent(output_topic="long_events")
        def long_only(event: dict, least: int = 100) -> dict | None:
            return event if len(event["text"]) >= least else None


        window = WindowOperator(task_id="texts", topic="raw_events")
        long_only(window=window.output, agent_params={"least": 200})
    """
    arguments.pop("multiple_outputs", None)

    def make(function: Callable[..., Any]) -> AgentTask:
        return AgentTask(function, arguments)

    return make if python_callable is None else make(python_callable)
