"""Finds sources and sinks from elsewhere: installed ones by their entry points, your own as ``module:Class``."""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from factory_agents.errors import ConfigurationError, FactoryError
from factory_agents.runtime.agents import bind_params, source_version
from factory_agents.runtime.loading import describe, import_member
from factory_agents.text import did_you_mean

if TYPE_CHECKING:
    from importlib.metadata import Distribution, EntryPoint

__all__ = ["SINKS", "SOURCES", "Plugin", "PluginKind", "find_plugin", "installed", "is_class_path"]


class PluginKind(msgspec.Struct, frozen=True):
    """What a plugin is called in messages, and the entry points' group that it is found in.

    ``volatile``: one that says nothing of its ``identity`` may give something else each time, so no result of it is taken up.
    """

    name: str
    group: str
    built_in: tuple[str, ...] = ()
    volatile: bool = False


SINKS = PluginKind("sink", "factory_agents.sinks", ("postgres", "bigquery", "snowflake", "iceberg"))
SOURCES = PluginKind("source", "factory_agents.sources", volatile=True)

_CLASS_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def is_class_path(name: str) -> bool:
    """Whether it has the form ``module:Class``."""
    return _CLASS_PATH.fullmatch(name) is not None


def installed(kind: PluginKind) -> dict[str, list[tuple[Distribution, EntryPoint]]]:
    """The installed plugins of a kind by name, with the distributions that bring them. Nothing of theirs is imported."""
    from importlib.metadata import distributions  # not where an agent begins: it loads the parts of e-mail

    found: dict[str, list[tuple[Distribution, EntryPoint]]] = {}
    seen: set[str] = set()
    for distribution in distributions():
        try:
            points = [point for point in distribution.entry_points if point.group == kind.group]
            name = distribution.name if points else ""  # read only where it is needed: it takes a millisecond
        except Exception:  # one broken distribution hides nobody else's
            continue
        if name not in seen:  # the one that is found first is the one that is imported
            for point in points:
                found.setdefault(point.name, []).append((distribution, point))
        seen.add(name)
    return found


class Plugin(msgspec.Struct, frozen=True):
    """A class that was found, and how messages speak of it: its name and where it comes from."""

    kind: PluginKind
    name: str
    class_: Any
    where: str

    def takes(self, keyword: str) -> bool:
        """Whether its class has a parameter of this name."""
        try:
            return keyword in inspect.signature(self.class_).parameters
        except (TypeError, ValueError) as error:
            got = type(self.class_).__name__
            raise ConfigurationError(f"{self.where}: expected a class that is called with its parameters, got {got}") from error

    def make(self, params: Mapping[str, Any], *, untrusted: Collection[str] = ()) -> Any:
        """Call the class with its parameters as keywords.

        ``untrusted`` are the names of those that whoever started the run decided, as in ``AgentRun``: a class that takes a keyword
        ``untrusted`` is told. Raises ConfigurationError for parameters that it doesn't take.
        """
        given = dict(params)
        if self.takes("untrusted"):
            given["untrusted"] = tuple(sorted(set(untrusted) & set(params)))
        arguments = bind_params(self.class_, given, self.where)
        try:
            made = self.class_(**arguments)
        except FactoryError:
            raise
        except Exception as error:
            raise ConfigurationError(f"{self.where}: making it raised {describe(error)}") from error
        return _completed(made, self, params)


def find_plugin(kind: PluginKind, name: str, *, untrusted: bool = False) -> Plugin:
    """The source or sink called ``name``, imported.

    An ``untrusted`` name comes from whoever started the run: only an installed one is taken. Raises ConfigurationError for an unknown name,
    and a plugin that can't be loaded.
    """
    class_, where = _load(kind, name, untrusted=untrusted)
    return Plugin(kind, name, class_, where)


def _completed(made: Any, plugin: Plugin, params: Mapping[str, Any]) -> Any:
    """What it made, with what enters the fingerprint where the class doesn't say it: its name, its code's version and its parameters."""
    identity = {"params": dict(params)} | ({"volatile": True} if plugin.kind.volatile else {})
    values = {"name": plugin.name, "version": source_version(plugin.class_), "identity": identity, "close": _nothing}
    for attribute, value in values.items():
        try:
            if not hasattr(made, attribute):
                setattr(made, attribute, value)
        except AttributeError as error:
            raise ConfigurationError(f"{plugin.where}: it has no attribute {attribute!r}, and none can be set; declare it") from error
    return made


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
        return import_member(name, where, error=ConfigurationError), where
    plugins = installed(kind)
    found = plugins.get(name, [])
    if not found:
        hint = did_you_mean(name, [*kind.built_in, *plugins])
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
