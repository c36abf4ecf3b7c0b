"""A prompt as a file with a version, and what of an event goes into it: fields by their names, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import yaml

from factory_agents.errors import ConfigurationError
from factory_agents.paths import confined_path, resolve_path
from factory_agents.protocol import digest

__all__ = ["MASKED", "Prompt", "load_prompt", "pack_prompt"]

MASKED = "[masked]"
"""What a prompt has in the place of a field that the contract classifies."""

_FIELD = re.compile(r"\{\{\s*([A-Za-z_][\w.-]*)\s*\}\}")
_FRONT = re.compile(r"\A---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_KEYS = ("name", "version", "system", "fields")


class Prompt(msgspec.Struct, frozen=True):
    """``text`` has ``{{ field }}`` where a field's value goes; ``fields`` are all that a model may see of an event."""

    name: str
    version: str
    text: str
    fields: tuple[str, ...]
    system: str = ""

    @property
    def label(self) -> str:
        """How a person calls it: ``name@version``."""
        return f"{self.name}@{self.version}"

    @property
    def digest(self) -> str:
        """Equal for equal prompts: a text that changed under the same version is another one."""
        return digest(self)

    def reader(self, masked: frozenset[str]) -> Callable[[Mapping[str, Any]], list[Any]]:
        """Gives what the fields hold, in their order; null where there is none, and ``MASKED`` in the place of a classified one."""
        fields, touched = self.fields, self.touched(masked)
        if not touched and not any("." in name for name in fields):
            return lambda event: [event.get(name) for name in fields]
        places = tuple((name, [path[len(name) + 1 :].split(".") for path in touched if path.startswith(f"{name}.")]) for name in fields)
        hidden = {name for name in fields if any(name == path or name.startswith(f"{path}.") for path in touched)}
        return lambda event: [
            MASKED if name in hidden else _masked(_value(event, name), below) if below else _value(event, name) for name, below in places
        ]

    def touched(self, masked: frozenset[str]) -> list[str]:
        """Those of the classified fields that the prompt's fields are, contain or lie in."""
        return sorted(
            path for path in masked if any(f"{path}.".startswith(f"{name}.") or f"{name}.".startswith(f"{path}.") for name in self.fields)
        )

    def render(self, values: Sequence[Any]) -> str:
        """The prompt with these values. What a value says is text: it is never looked at for fields again."""
        by_name = dict(zip(self.fields, values, strict=True))
        return _FIELD.sub(lambda found: _text(by_name[found[1]]), self.text)


def load_prompt(source: str | Mapping[str, str], *, untrusted: bool = False) -> Prompt:
    """Read a prompt from a file (found as ``resolve_path`` does), or from what ``pack_prompt`` made of one.

    A file begins with front matter (``version``, and if wanted ``name``, ``system`` and ``fields``), or is called ``name@version.md``.
    Raises ConfigurationError.
    """
    if isinstance(source, Mapping):
        if source.keys() != {"name", "text"} or not all(isinstance(part, str) for part in source.values()):
            raise ConfigurationError("prompt: expected a file's name, or a mapping with name and text")
        return _parse(source["name"], source["text"])
    path = confined_path(source, "prompt") if untrusted else resolve_path(source, "prompt")
    return _parse(source, _read(path, source))


def pack_prompt(source: str, path: Path) -> dict[str, str]:
    """A prompt's file as data that mean the same wherever they are read."""
    return {"name": source, "text": _read(path, source)}


def _read(path: Path, source: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"prompt {source!r}: cannot be read: {error}") from None


def _parse(source: str, text: str) -> Prompt:
    where = f"prompt {source!r}"
    stem, _, of_name = Path(source).name.removesuffix(".md").removesuffix(".txt").partition("@")
    head, body = _front_matter(where, text)
    name, version = str(head.get("name") or stem), str(head.get("version") or of_name)
    if not version:
        raise ConfigurationError(f"{where}: no version: begin it with front matter (--- / version: 1 / ---), or call it {stem}@1.md")
    body = body.strip()
    if not body:
        raise ConfigurationError(f"{where}: it has no text")
    used = tuple(dict.fromkeys(_FIELD.findall(body)))
    given = head.get("fields") or None
    if given is not None and (not isinstance(given, list) or not all(isinstance(f, str) for f in given)):
        raise ConfigurationError(f"{where}: fields: expected a list of names, got {given!r}")
    fields = tuple(given) if given is not None else used
    for field in used:
        if field not in fields:
            raise ConfigurationError(f"{where}: it uses {{{{ {field} }}}}, which its fields don't list")
    if not fields:
        raise ConfigurationError(f"{where}: it uses no field of the event; write {{{{ name }}}} where a field's value goes")
    unused = [field for field in fields if field not in used]
    if unused:
        body += "\n\n" + "\n".join(f"{field}: {{{{ {field} }}}}" for field in unused)
    return Prompt(name, version, body, fields, str(head.get("system") or "").strip())


def _front_matter(where: str, text: str) -> tuple[dict[str, Any], str]:
    found = _FRONT.match(text)
    if found is None:
        return {}, text
    try:
        head = yaml.load(found[1], yaml.BaseLoader) or {}  # every value as it is written: a version 1.10, a field called on
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{where}: its front matter is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(head, dict):
        raise ConfigurationError(f"{where}: front matter: expected keys such as version, got {type(head).__name__}")
    for key in head:
        if key not in _KEYS:
            raise ConfigurationError(f"{where}: front matter: unknown key {key!r}; expected {', '.join(_KEYS)}")
    return head, text[found.end() :]


def _value(event: Mapping[str, Any], name: str) -> Any:
    if name in event:
        return event[name]
    value: Any = event
    for part in name.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(part)
    return value


def _masked(value: Any, paths: Sequence[Sequence[str]]) -> Any:
    """A value without what lies at these paths, in it or in its elements. What is no object, as it should be, is masked whole."""
    if isinstance(value, list):
        return [_masked(item, paths) for item in value]
    if not isinstance(value, Mapping):
        return None if value is None else MASKED
    found = dict(value)
    for name, *below in paths:
        if name in found:
            found[name] = _masked(found[name], [below]) if below else MASKED
    return found


def _text(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
