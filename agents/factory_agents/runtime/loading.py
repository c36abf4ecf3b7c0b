"""Finds a user's agent: by ``module:function``, or in source text that travels with the run."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import linecache
import sys
import traceback
import types
from pathlib import Path
from typing import Any

from factory_agents.errors import AgentError
from factory_agents.protocol import AgentRef
from factory_agents.runtime.agents import AgentFunction, as_agent

__all__ = ["load_agent_ref", "load_function", "load_source"]


def load_agent_ref(ref: AgentRef) -> AgentFunction:
    """The agent that a reference names: from its source text if it carries one, else ``name`` as ``module:function``.

    Raises AgentError where there is none. A version in the reference takes the place of the agent's own.
    """
    found = load_source(ref.source, ref.function or ref.name, name=ref.name) if ref.source else load_function(ref.name)
    return AgentFunction(found.function, found.name, ref.version, found.batch, found.key, found.id_field) if ref.version else found


def load_function(spec: str) -> AgentFunction:
    """Import ``module:function``; the working directory is searched before what is installed.

    Raises AgentError for anything that stands in the way: no such module or function, a module that raises.
    """
    module_name, colon, function_name = spec.partition(":")
    if not colon or not module_name or not function_name:
        raise AgentError(f"agent {spec!r}: expected module:function, for example my_agents.clicks:enrich, or the name of a built-in agent")
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise AgentError(_not_found(spec, module_name, error)) from error
    except Exception as error:
        raise AgentError(f"agent {spec!r}: importing {module_name} raised {_describe(error)}") from error
    return _member(module, function_name, spec)


def _not_found(spec: str, module_name: str, error: ModuleNotFoundError) -> str:
    if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
        return f"agent {spec!r}: {module_name} imports {error.name!r}, which is not installed here"
    return f"agent {spec!r}: no module {error.name!r} in {Path.cwd()} or among what is installed; correct it, or set PYTHONPATH"


def load_source(source: str, function: str, name: str = "") -> AgentFunction:
    """Run source text as a module of its own and take the function out of it; its version is a hash of the text.

    Tracebacks show the text's lines. Raises AgentError where it is no Python, raises, or doesn't define the function.
    """
    digest = hashlib.sha256(source.encode()).hexdigest()[:12]
    spec = name or function
    filename = f"<agent {spec} {digest}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    module = types.ModuleType(f"factory_agent_{digest}")
    module.__file__ = filename
    sys.modules[module.__name__] = module  # dataclasses and annotations look their module up
    try:
        exec(compile(source, filename, "exec", dont_inherit=True), module.__dict__)
    except Exception as error:
        del sys.modules[module.__name__]
        raise AgentError(f"agent {spec!r}: its source raised {_describe(error)}") from error
    found = _member(module, function, spec)
    return AgentFunction(found.function, name or found.name, digest, found.batch, found.key, found.id_field)


def _member(module: types.ModuleType, name: str, spec: str) -> AgentFunction:
    value: Any = module
    for part in name.split("."):
        known = [n for n in dir(value) if not n.startswith("_")]
        value = getattr(value, part, None)
        if value is None:
            near = difflib.get_close_matches(part, known, n=1)
            raise AgentError(f"agent {spec!r}: {module.__name__} has no {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    return as_agent(value, f"agent {spec!r}")


def _describe(error: Exception) -> str:
    """The error with the line that it came from."""
    if isinstance(error, SyntaxError):
        return f"SyntaxError: {error.msg} ({error.filename}:{error.lineno})"
    frames = traceback.extract_tb(error.__traceback__)
    place = next((f" ({f.filename}:{f.lineno})" for f in reversed(frames) if "importlib" not in f.filename), "")
    return f"{type(error).__name__}: {error}{place}"
