"""Writes docs/reference.md: every operator, sensor, trigger, hook, command, option and public name, from their docstrings."""

from __future__ import annotations

import argparse
import importlib
import inspect
import pkgutil
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import typer

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reference.md"
PROVIDER = {
    "Operators": "airflow_provider_factory.operators",
    "Decorators": "airflow_provider_factory.decorators",
    "Sensors": "airflow_provider_factory.sensors",
    "Triggers": "airflow_provider_factory.triggers",
    "Hooks": "airflow_provider_factory.hooks",
    "Assets": "airflow_provider_factory.assets",
    "Notifications": "airflow_provider_factory.notifications",
}
LONGEST = 120
OWN = ("airflow_provider_factory", "factory_agents")
HIDDEN = {"self", "args", "kwargs", "agent_dry_run"}  # the last is what Airflow's templates know ``dry_run`` by
PYTHON = ("factory_agents", "factory_agents.testing")
HEADER = """# Reference

Generated from the docstrings by `make reference`; edit those. Types are Python's; "(templated)" fields take Jinja.
"""


class Row(NamedTuple):
    """A parameter: name, type, default, what it means."""

    name: str
    type: str
    default: str
    text: str


def main(argv: list[str] | None = None) -> int:
    """Write the page, or with ``--check`` say whether it is what would be written (exit code 1 where not)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where the page is not up to date")
    options = parser.parse_args(argv)
    text = page()
    if options.check:
        return 0 if PAGE.read_text() == text else 1
    PAGE.write_text(text)
    return 0


def page() -> str:
    """The whole page."""
    parts = [HEADER]
    for title, name in PROVIDER.items():
        parts.append(f"## {title}\n")
        parts += [described(member) for member in members(name)]
    parts += [
        "## Configuration\n",
        "Options of `[factory]` in `airflow.cfg`, or `AIRFLOW__FACTORY__…` in the environment.\n",
        configuration(),
    ]
    parts += ["## Commands\n", *commands()]
    parts.append("## Python\n")
    for name in PYTHON:
        parts += [described(member) for member in public(importlib.import_module(name))]
    return "\n".join(parts)


def members(name: str) -> Iterator[Any]:
    """The public names of a module, or of all modules of a package."""
    module = importlib.import_module(name)
    if not hasattr(module, "__path__"):
        yield from public(module)
        return
    for found in sorted(pkgutil.iter_modules(module.__path__), key=lambda found: found.name):
        yield from public(importlib.import_module(f"{name}.{found.name}"))


def public(module: ModuleType) -> Iterator[Any]:
    """What ``__all__`` names of classes and functions, in its order."""
    for name in module.__all__:
        member = getattr(module, name)
        if inspect.isclass(member) or inspect.isfunction(member):
            yield member


def described(member: Any) -> str:
    """One class or function: how it is imported, what it says, its parameters."""
    text, rows = documented(member)
    lines = [f"### {member.__name__}\n", f"`{member.__module__}.{member.__qualname__}`\n", text, ""]
    if rows:
        lines += ["Parameters:\n", listed(rows)]
    if code := example(member):
        lines += [f"```python\n{code}\n```\n"]
    return "\n".join(lines)


def example(member: Any) -> str:
    """The code under ``Example::`` at the end of its own docstring; empty where there is none."""
    return inspect.cleandoc((member.__doc__ or "").partition("Example::")[2]).strip()


def documented(member: Any) -> tuple[str, list[Row]]:
    """Its text without the parameters, and those that its signature has."""
    text, said = _docstring(inspect.getdoc(member) or "")
    for base in member.__mro__[1:] if inspect.isclass(member) else ():
        inherited = _docstring(inspect.cleandoc(base.__doc__ or ""))[1]
        if not base.__module__.startswith(OWN):
            inherited = dict.fromkeys(inherited, f"see {base.__name__}")
        said = {**inherited, **said}
    rows = [
        Row(name, _type(p.annotation), "" if p.default is inspect.Parameter.empty else f"`{p.default!r}`", said.get(name, ""))
        for name, p in _signature(member).items()
        if name not in HIDDEN and not name.startswith("_")
    ]
    return text, rows


def _signature(member: Any) -> dict[str, inspect.Parameter]:
    own = inspect.isclass(member) and "__init__" in vars(member)
    try:
        return dict(inspect.signature(member.__init__ if own else member).parameters)
    except (TypeError, ValueError):
        return {}


def _docstring(text: str) -> tuple[str, dict[str, str]]:
    """What is said in general, and by parameter."""
    head, *params = re.split(r"^:param ", text.partition("Example::")[0], flags=re.MULTILINE)
    said = {}
    for param in params:
        name, _, what = param.partition(":")
        said[name.strip()] = _plain(" ".join(what.split()))
    return flowed(_plain(head.strip())), said


def _plain(text: str) -> str:
    return text.replace("``", "`")


def _type(annotation: Any) -> str:
    if annotation is inspect.Parameter.empty:
        return ""
    name = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return f"`{name}`"


def listed(rows: list[Row]) -> str:
    """Parameters, an item of a list each, in lines of at most LONGEST characters."""
    items = []
    for row in rows:
        head = " ".join(part for part in (f"`{row.name}`", row.type, row.default and f"= {row.default}") if part)
        items.append(wrapped(f"- {head}{row.text and f': {row.text}'}", "  "))
    return "\n".join(items) + "\n"


def wrapped(text: str, indent: str = "") -> str:
    """A text in lines of at most LONGEST characters, but for a word that is longer."""
    whole = " ".join(text.split())
    return textwrap.fill(whole, LONGEST, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def flowed(text: str) -> str:
    """A docstring's text in lines of at most LONGEST characters: paragraphs and items of lists; code stays as it is."""
    parts = re.split(r"(^ *```.*?^ *```$)", text, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if n % 2 else _paragraphs(part) for n, part in enumerate(parts))


def _paragraphs(text: str) -> str:
    items = re.split(r"(\n\s*\n|\n(?=(?:[-*]|\d+\.) )|\n$|^\n)", text)
    return "".join(item if n % 2 or re.match(r" {4}|\|", item) else wrapped(item, _hanging(item)) for n, item in enumerate(items))


def _hanging(item: str) -> str:
    marker = re.match(r"(?:[-*]|\d+\.) ", item)
    return " " * len(marker[0]) if marker else ""


def configuration() -> str:
    """The provider's options."""
    from airflow_provider_factory.get_provider_info import get_provider_info

    options: dict[str, dict[str, Any]] = get_provider_info()["config"]["factory"]["options"]
    rows = [
        Row(name, f"`{option['type']}`", f"`{option['default']}`" if option["default"] else "", _plain(option["description"]))
        for name, option in options.items()
    ]
    return listed(rows)


def commands() -> Iterator[str]:
    """Every command of ``factory``, with its arguments and options."""
    from factory_agents.cli import app

    yield from _command(typer.main.get_command(app), "factory")


def _command(command: Any, name: str) -> Iterator[str]:
    children: dict[str, Any] = getattr(command, "commands", {})
    if not children:
        text, *examples = re.split("Examples?:", (command.help or "").replace("\b", ""))
        yield f"### {name}\n\n{flowed(_plain(inspect.cleandoc(text)).strip())}\n"
        for example in examples:
            yield f"```sh deployment\n{inspect.cleandoc(example).strip()}\n```\n"
        rows = [Row(*_parameter(p)) for p in command.params]
        if rows:
            yield listed(rows)
    for child, found in sorted(children.items()):
        yield from _command(found, f"{name} {child}")


def _parameter(parameter: Any) -> tuple[str, str, str, str]:
    if parameter.param_type_name == "argument":
        name = str(parameter.metavar or parameter.name).upper()
    else:
        name = " ".join([", ".join([*parameter.opts, *parameter.secondary_opts]), parameter.metavar or ""]).strip()
    default = parameter.default
    shown = "" if default in (None, "", False, ()) or callable(default) else f"`{default}`"
    return name, "", shown, _plain(parameter.help or "")


if __name__ == "__main__":
    sys.exit(main())
