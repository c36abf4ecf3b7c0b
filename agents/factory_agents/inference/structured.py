"""What an answer must be: a contract or a JSON Schema, which the provider is told and we check."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from factory_agents.contracts import Contract, load_contract
from factory_agents.errors import ConfigurationError
from factory_agents.protocol import digest
from factory_agents.runtime.numbers import Digits, decode_exact

__all__ = ["AnswerContract", "InvalidAnswer", "classified_fields", "load_answer_contract"]

_OPEN = frozenset({"", "public", "internal"})
_MOST_REASONS = 5
_OF_THE_SAME = frozenset({"items", "prefixItems", "contains", "allOf", "anyOf", "oneOf", "if", "then", "else"})
"""Keywords whose schemas speak of what stands at the same path, or of a list's elements."""
_OF_SOME = frozenset({"additionalProperties", "patternProperties", "unevaluatedProperties", "dependentSchemas"})
"""Keywords whose schemas speak of fields that have no name here."""


class InvalidAnswer(Exception):  # noqa: N818  # what a model says is no error of ours
    """An answer that is no JSON, or not what the contract says; the text says why."""


class AnswerContract:
    """Checks answers; ``schema`` is what a provider is given."""

    def __init__(self, contract: Contract) -> None:
        self.contract = contract
        self.schema: dict[str, Any] = contract.schema
        self.digest = digest([contract.digest, self.schema])
        self._is_valid = contract.checker()

    def check(self, text: str) -> bytes:
        """The answer as JSON. Raises InvalidAnswer."""
        digits, text = Digits(), _without_fence(text)
        try:
            value = digits.decode(text)
        except (msgspec.DecodeError, UnicodeError, RecursionError, ValueError) as error:
            raise InvalidAnswer(f"not JSON: {error}") from None
        if not isinstance(value, dict):
            raise InvalidAnswer(f"expected a JSON object, got {type(value).__name__}")
        exact = decode_exact(text) if digits.kept else None
        if exact is not None or not self._is_valid(value):
            reasons = [violation.reason for violation in self.contract.violations(value, exact=exact)[:_MOST_REASONS]]
            if reasons or exact is None:
                raise InvalidAnswer("; ".join(reasons) or "it breaks the contract")
        return digits.encode(value)


def load_answer_contract(source: str | Mapping[str, Any], *, untrusted: bool = False) -> AnswerContract:
    """From a contract's file, text or mapping, or from a JSON Schema as a mapping. Raises ContractError and ConfigurationError."""
    if isinstance(source, Mapping) and source.get("type") == "object":
        if untrusted:
            raise ConfigurationError("agent 'infer': output: it comes from a parameter of the run, so it may only be the name of a file")
        source = {"name": "answer", "id": None, "schema": dict(source)}
    contract = load_contract(source, untrusted=untrusted)
    schema = contract.schema
    if not isinstance(schema, dict) or schema.get("type") != "object":
        raise ConfigurationError(f"output {contract.source}: expected the schema of an object (type: object)")
    return AnswerContract(contract)


def classified_fields(contract: Contract) -> frozenset[str]:
    """The fields whose classification is neither public nor internal: ``classification`` in the standard, else ``x-classification``.

    Fields within others have dotted names; those of a list's elements have the list's. Raises ConfigurationError for fields that have no
    name.
    """
    found: set[str] = set()
    for schema in _schemas(contract.schema):
        _classify(schema, schema, (), found, frozenset())
    if "" in found:
        raise ConfigurationError(
            f"contract {contract.source}: it classifies fields that it doesn't name (additionalProperties, say); name them"
        )
    return frozenset(found)


def _classify(schema: dict[str, Any], root: Any, path: tuple[str, ...], found: set[str], seen: frozenset[str]) -> None:
    """Collect classified paths; where it isn't known which fields a part of the schema speaks of, it is of all at ``path``."""
    if str(schema.get("x-classification") or "").lower() not in _OPEN:
        found.add(".".join(path))
        return
    properties = schema.get("properties")
    for name, each in properties.items() if isinstance(properties, dict) else ():
        for part in _schemas(each):
            _classify(part, root, (*path, name), found, seen)
    for part in [part for keyword in _OF_THE_SAME & schema.keys() for part in _schemas(schema[keyword])]:
        _classify(part, root, path, found, seen)
    ref = schema.get("$ref")
    if isinstance(ref, str) and ref not in seen:
        for part in _schemas(_resolved(root, ref)):
            _classify(part, root, path, found, seen | {ref})
    unnamed: set[str] = set()
    for whole in _schemas([schema[keyword] for keyword in _OF_SOME & schema.keys()]):
        for part in _schemas([whole, *whole.values()]):
            _classify(part, root, ("",), unnamed, seen)
    if unnamed:
        found.add(".".join(path))


def _schemas(value: Any) -> list[dict[str, Any]]:
    """The schemas in a keyword's value, which is one or a list of them, or says yes or no to all."""
    return [each for each in (value if isinstance(value, list) else [value]) if isinstance(each, dict)]


def _resolved(root: Any, ref: str) -> Any:
    """The part of a schema that a local reference names; None where there is none."""
    part = root
    for step in ref.removeprefix("#").strip("/").split("/"):
        part = part.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(part, dict) and step else part
    return part if part is not root else None


def _without_fence(text: str) -> str:
    """The answer without the Markdown fence that some models put around it."""
    text = text.strip()
    return text.partition("\n")[2].strip().rstrip("`").strip() if text.startswith("```") else text
