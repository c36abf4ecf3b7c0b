"""Parameters of the built-in agents: a mapping into the agent's typed struct, with the name meant for a mistyped one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from factory_agents.errors import ConfigurationError
from factory_agents.text import unknown

__all__ = ["read_params"]

_S = TypeVar("_S", bound=msgspec.Struct)


def read_params(agent: str, params: Mapping[str, Any], type_: type[_S], *, required: Mapping[str, str] | None = None) -> _S:
    """The parameters as ``type_``; numbers and booleans may come as text. Raises ConfigurationError naming the parameter.

    ``required``: parameters that have to be there and not empty, and what each is.
    """
    known = type_.__struct_fields__
    for name in params:
        if name not in known:
            raise ConfigurationError(f"agent {agent!r}: {unknown('parameter', name, known)}")
    for name, what in (required or {}).items():
        if not params.get(name):
            raise ConfigurationError(f"agent {agent!r}: parameter {name!r} is required: {what}")
    for name, hint in get_type_hints(type_).items():
        if get_origin(hint) is Literal and name in params and params[name] not in (values := get_args(hint)):
            raise ConfigurationError(f"agent {agent!r}: {name}: expected one of: {', '.join(values)}; found {params[name]!r}")
    try:
        return msgspec.convert(dict(params), type_, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"agent {agent!r}: {error}") from error
