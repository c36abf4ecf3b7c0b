"""Finds sources and sinks from elsewhere: installed ones by their entry points, your own as ``module:Class``."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Collection, Mapping
from importlib.metadata import Distribution, EntryPoint, distributions
from typing import Any

import msgspec

from factory_agents.errors import ConfigurationError, FactoryError
from factory_agents.runtime.agents import bind_params, source_version
from factory_agents.runtime.loading import describe, import_member, look_here

__all__ = ["SINKS", "SOURCES", "PluginKind", "installed", "is_class_path", "make_plugin"]


class PluginKind(msgspec.Struct, frozen=True):
    """What a plugin is called in messages, the entry points' group that it is found in, and what it has to have."""

    name: str
    group: str
    methods: tuple[str, ...]
    built_in: tuple[str, ...] = ()


SINKS = PluginKind("sink", "factory_agents.sinks", ("claim", "write", "commit"), ("postgres", "bigquery"))
SOURCES = PluginKind("source", "factory_agents.sources", ("read",))

_CLASS_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def is_class_path(name: str) -> bool:
    """Whether it has the form ``module:Class``."""
    return _CLASS_PATH.fullmatch(name) is not None


def installed(kind: PluginKind) -> dict[str, list[tuple[Distribution, EntryPoint]]]:
    """The installed plugins of a kind by name, with the distributions that bring them. Nothing is imported."""
    found: dict[str, list[tuple[Distribution, EntryPoint]]] = {}
    seen: set[str] = set()
    for distribution in distributions():
        try:
            name, points = distribution.name, distribution.entry_points
        except Exception:  # one broken distribution hides nobody else's
            continue
        if name in seen:  # the one that is found first is the one that is imported
            continue
        seen.add(name)
        for point in points:
            if point.group == kind.group:
                found.setdefault(point.name, []).append((distribution, point))
    return found


def make_plugin(kind: PluginKind, name: str, params: Mapping[str, Any], *, untrusted: Collection[str] = (), key: str = "") -> Any:
    """The source or sink called ``name``, made with ``params``: its class is called with them as keywords.

    ``untrusted`` are the names of parameters that whoever started the run decided, as in ``AgentRun``; a class that takes a keyword
    ``untrusted`` is told. Where ``key``, the parameter that ``name`` came from, is among them, only an installed one is taken. Raises
    ConfigurationError for an unknown name, a plugin that can't be loaded, and parameters that it doesn't take.
    """
    class_, where = _load(kind, name, untrusted=key in untrusted)
    given = dict(params)
    if "untrusted" in _keywords(class_, where):
        given["untrusted"] = tuple(sorted(set(untrusted) & set(params)))
    arguments = bind_params(class_, given, where)
    try:
        made = class_(**arguments)
    except FactoryError:
        raise
    except Exception as error:
        raise ConfigurationError(f"{where}: making it raised {describe(error)}") from error
    missing = [method for method in kind.methods if not callable(getattr(made, method, None))]
    if missing:
        raise ConfigurationError(f"{where}: it is no {kind.name}, it lacks {', '.join(missing)}")
    _complete(made, class_, name, params)
    return made


def _keywords(class_: Any, where: str) -> Collection[str]:
    try:
        return inspect.signature(class_).parameters.keys()
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"{where}: expected a class that is called with its parameters, got {type(class_).__name__}") from error


def _complete(made: Any, class_: Any, name: str, params: Mapping[str, Any]) -> None:
    """What enters the fingerprint, where the class doesn't say it: its name, its code's version and its parameters."""
    for attribute, value in (("name", name), ("version", source_version(class_)), ("identity", {"params": dict(params)})):
        if not hasattr(made, attribute):
            setattr(made, attribute, value)
    if not hasattr(made, "close"):
        made.close = _nothing


def _nothing() -> None:
    """Close what holds nothing."""


def _load(kind: PluginKind, name: str, *, untrusted: bool) -> tuple[Any, str]:
    """The class, and how to speak of it in messages."""
    where = f"{kind.name} {name!r}"
    if is_class_path(name):
        if untrusted:
            raise ConfigurationError(
                f"{where}: it comes from a parameter of the run, so it may only be the name of an installed one"
                f"{_names(kind, installed(kind))}; name the class in the DAG, or install it with an entry point in {kind.group}"
            )
        look_here()
        return import_member(name, where, error=ConfigurationError), where
    plugins = installed(kind)
    found = plugins.get(name, [])
    if not found:
        near = difflib.get_close_matches(name, [*kind.built_in, *plugins], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigurationError(f"{where}: there is no such {kind.name}{hint}{_names(kind, plugins)}; or your own as module:Class")
    if len({point.value for _, point in found}) > 1:
        owners = " and ".join(f"{d.name} {d.version}" for d, _ in found)
        raise ConfigurationError(f"{where}: {owners} bring one each; uninstall one, or name the class itself: {found[0][1].value}")
    distribution, point = found[0]
    where = f"{where} of {distribution.name} {distribution.version} ({point.value})"
    target = point.value.partition("[")[0].strip()
    if not is_class_path(target):
        raise ConfigurationError(f"{where}: expected module:Class")
    return import_member(target, where, error=ConfigurationError), where


def _names(kind: PluginKind, plugins: Collection[str]) -> str:
    known = [*kind.built_in, *sorted(plugins)]
    return f" (there are {', '.join(known)})" if known else " (none is installed)"
