"""Parameters of the built-in agents: a mapping into the agent's typed struct, with the name meant for a mistyped one."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from factory_agents.errors import ConfigurationError

__all__ = ["read_params"]

_S = TypeVar("_S", bound=msgspec.Struct)


def read_params(agent: str, params: Mapping[str, Any], type_: type[_S]) -> _S:
    """The parameters as ``type_``; numbers and booleans may come as text. Raises ConfigurationError naming the parameter."""
    known = type_.__struct_fields__
    for name in params:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it takes: {', '.join(known)}"
            raise ConfigurationError(f"agent {agent!r}: unknown parameter {name!r}; {hint}")
    try:
        return msgspec.convert(dict(params), type_, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"agent {agent!r}: {error}") from error
