"""What an answer must be: a contract or a JSON Schema, which the provider is told and we check."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from factory_agents.contracts import Contract, load_contract
from factory_agents.errors import ConfigurationError
from factory_agents.protocol import digest

__all__ = ["AnswerContract", "InvalidAnswer", "classified_fields", "load_answer_contract"]

_OPEN = frozenset({"", "public", "internal"})
_MOST_REASONS = 5


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
        try:
            value = msgspec.json.decode(_without_fence(text))
        except (msgspec.DecodeError, UnicodeError, RecursionError, ValueError) as error:
            raise InvalidAnswer(f"not JSON: {error}") from None
        if not isinstance(value, dict):
            raise InvalidAnswer(f"expected a JSON object, got {type(value).__name__}")
        if not self._is_valid(value):
            reasons = [violation.reason for violation in self.contract.violations(value)[:_MOST_REASONS]]
            raise InvalidAnswer("; ".join(reasons) or "it breaks the contract")
        return msgspec.json.encode(value)


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
    """The fields whose classification is neither public nor internal: ``classification`` in the standard, else ``x-classification``."""
    properties = contract.schema.get("properties") if isinstance(contract.schema, dict) else None
    return frozenset(
        name
        for name, schema in (properties or {}).items()
        if isinstance(schema, dict) and str(schema.get("x-classification") or "").lower() not in _OPEN
    )


def _without_fence(text: str) -> str:
    """The answer without the Markdown fence that some models put around it."""
    text = text.strip()
    if text.startswith("```") and text.endswith("```") and "\n" in text:
        text = text.partition("\n")[2].removesuffix("```").strip()
    return text
