"""Finds a user's agent: by ``module:function``, or in source text that travels with the run."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import linecache
import sys
import threading
import traceback
import types
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.machinery import FileFinder
from pathlib import Path
from typing import Any

from factory_agents.errors import AgentError, FactoryError
from factory_agents.protocol import AgentRef
from factory_agents.runtime.agents import AgentFunction, as_agent
from factory_agents.text import did_you_mean

__all__ = ["describe", "import_member", "load_agent_ref", "load_function", "load_source", "working_directory_first"]


def load_agent_ref(ref: AgentRef) -> AgentFunction:
    """The agent that a reference names: from its source text if it carries one, else ``name`` as ``module:function``.

    Raises AgentError where there is none. A version in the reference takes the place of the agent's own.
    """
    found = load_source(ref.source, ref.function or ref.name, name=ref.name) if ref.source else load_function(ref.name)
    return replace(found, version=ref.version) if ref.version else found


def load_function(spec: str) -> AgentFunction:
    """Import ``module:function``.

    Raises AgentError for anything that stands in the way: no such module or function, a module that raises.
    """
    where = f"agent {spec!r}"
    module_name, colon, function_name = spec.partition(":")
    if not colon or not module_name or not function_name:
        raise AgentError(f"{where}: expected module:function, for example my_agents.clicks:enrich, or the name of a built-in agent")
    return as_agent(import_member(spec, where, error=AgentError), where)


@contextmanager
def working_directory_first() -> Iterator[None]:
    """Let modules of the working directory be found, before what is installed: for a program, and never within a run beside others."""
    here = str(Path.cwd())
    added = here not in sys.path and "" not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        yield
    finally:
        if added and here in sys.path:
            sys.path.remove(here)


def import_member(spec: str, where: str, *, error: type[FactoryError]) -> Any:
    """What ``module:name`` names. Raises ``error``, which begins with ``where``, for anything that stands in the way."""
    module_name, _, name = spec.partition(":")
    for finder in list(sys.path_importer_cache.values()):  # importlib.invalidate_caches() imports importlib.metadata: 10 ms of a start
        if isinstance(finder, FileFinder):
            finder.invalidate_caches()  # the file may be younger than the last look at its folder
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as missing:
        raise error(_not_found(where, module_name, missing)) from missing
    except (Exception, SystemExit) as raised:
        raise error(f"{where}: importing {module_name} raised {describe(raised)}") from raised
    return _member(module, name, where, error)


def _not_found(where: str, module_name: str, error: ModuleNotFoundError) -> str:
    if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
        return f"{where}: {module_name} imports {error.name!r}, which is not installed here"
    return f"{where}: no module {error.name!r} in {Path.cwd()} or among what is installed; correct it, or set PYTHONPATH"


def load_source(source: str, function: str, name: str = "") -> AgentFunction:
    """Run source text as a module of its own and take the function out of it; its version is a hash of the text.

    Tracebacks show the text's lines. Raises AgentError where it is no Python, raises, or doesn't define the function.
    """
    digest = hashlib.sha256(source.encode()).hexdigest()[:12]
    spec = name or function
    filename = f"<agent {spec} {digest}>"
    module = types.ModuleType(f"factory_agent_{digest}")
    module.__file__ = filename
    _remember(module, source)
    try:
        exec(compile(source, filename, "exec", dont_inherit=True), module.__dict__)
    except Exception as error:
        raise AgentError(f"agent {spec!r}: its source raised {describe(error)}") from error
    found = as_agent(_member(module, function, f"agent {spec!r}", AgentError), f"agent {spec!r}")
    return replace(found, name=name or found.name, version=digest)


_MOST_SOURCES = 64
_sources: OrderedDict[tuple[str, str], None] = OrderedDict()
_sources_lock = threading.Lock()


def _remember(module: types.ModuleType, source: str) -> None:
    """Let dataclasses and annotations find the module by its name, and tracebacks its text; of many sources the oldest is forgotten."""
    filename = str(module.__file__)
    with _sources_lock:
        linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
        sys.modules[module.__name__] = module
        _sources[module.__name__, filename] = None
        _sources.move_to_end((module.__name__, filename))
        while len(_sources) > _MOST_SOURCES:
            (name, file), _ = _sources.popitem(last=False)
            linecache.cache.pop(file, None)
            if all(name != other for other, _ in _sources):
                sys.modules.pop(name, None)


def _member(module: types.ModuleType, name: str, where: str, error: type[FactoryError]) -> Any:
    value: Any = module
    for part in name.split("."):
        known = [n for n in dir(value) if not n.startswith("_")]
        value = getattr(value, part, None)
        if value is None:
            raise error(f"{where}: {module.__name__} has no {name!r}{did_you_mean(part, known)}")
    return value


def describe(error: BaseException) -> str:
    """The error in one line, with the line of code that it came from."""
    if isinstance(error, SyntaxError):
        return f"SyntaxError: {error.msg} ({error.filename}:{error.lineno})"
    frames = traceback.extract_tb(error.__traceback__)
    place = next((f" ({f.filename}:{f.lineno})" for f in reversed(frames) if "importlib" not in f.filename), "")
    return f"{type(error).__name__}: {' '.join(str(error).split())}{place}"
