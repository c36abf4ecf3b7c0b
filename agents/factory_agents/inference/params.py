"""What the infer agent takes, and what of it decides what is asked."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import msgspec

from factory_agents.contracts import is_text, load_contract, pack_contract, split_name
from factory_agents.errors import ConfigurationError
from factory_agents.inference.money import Budget, Prices
from factory_agents.inference.prompt import Prompt, load_prompt, pack_prompt
from factory_agents.inference.structured import AnswerContract, classified_fields, load_answer_contract
from factory_agents.params import read_params
from factory_agents.protocol import digest

__all__ = ["Asking", "InferParams", "pack_files", "read_asking"]

_REQUIRED = {
    "prompt": "the prompt's file, such as prompts/kind.md",
    "output": "what an answer must be: a contract's file, or a JSON Schema",
}
_VARIABLES = {"model": "FACTORY_MODEL", "endpoint": "FACTORY_MODEL_ENDPOINT"}
_SECRET = re.compile(r"key|token|secret|sig|password", re.IGNORECASE)
_AUTHORS = ("endpoint", "api_key_env", "model", "unmask")
"""Parameters that decide where data and keys go: never from whoever starts a run."""


class InferParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What ``infer`` takes.

    ``prompt``: a file with a version. ``model``: ``provider:model`` for pydantic-ai, or the model's name at ``endpoint``, an
    OpenAI-compatible server; by default FACTORY_MODEL and FACTORY_MODEL_ENDPOINT. ``revision`` tells two models of one name apart.
    ``api_key_env`` names the environment variable that holds the key.
    ``output``: a contract's file or a JSON Schema that answers must keep. ``into``: the field that takes the answer. ``parameters`` are
    the model's (temperature, max_tokens, seed, …). ``contract`` describes the events read: fields that it classifies as neither public
    nor internal are masked, but for those in ``unmask``. ``subject`` names the field that says whose data an event is, so that its
    answers can be forgotten. ``repair``: a wrong answer is asked for once more. ``timeout`` is of one call, ``patience`` of an outage that
    a window waits for, in seconds. Limits are of the whole stage. ``prices`` are of a million tokens (``prompt``, ``completion``,
    ``cached``), ``budget`` is the most that may be spent (``window``, ``day``, ``window_tokens``, ``day_tokens``). ``batch``: a window's
    questions go to the endpoint's batch API; an attempt waits for the answers as long as ``patience`` says, and a later one takes them.
    """

    prompt: str | dict[str, str]
    output: str | dict[str, Any]
    model: str = ""
    endpoint: str = ""
    revision: str = ""
    api_key_env: str = "FACTORY_MODEL_API_KEY"
    into: str = "answer"
    parameters: dict[str, Any] = {}
    contract: str | dict[str, Any] = ""
    unmask: tuple[str, ...] = ()
    subject: str = ""
    repair: bool = False
    concurrency: int = 8
    timeout: float = 60.0
    retries: int = 3
    patience: float = 600.0
    requests_per_minute: float = 0.0
    tokens_per_minute: float = 0.0
    prices: Prices = Prices()
    budget: Budget = Budget()
    batch: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        for name in ("concurrency", "timeout", "patience"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: expected more than 0, got {getattr(self, name)}")
        for name in ("retries", "requests_per_minute", "tokens_per_minute"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected 0 or more, got {getattr(self, name)}")
        url = urlsplit(self.endpoint)
        if self.endpoint and (url.scheme not in ("http", "https") or not url.hostname or url.username or url.password):
            raise ValueError("endpoint: expected a URL such as https://models.example/v1, without a user or password")
        for name, _ in parse_qsl(url.query):
            if _SECRET.search(name):
                raise ValueError(f"endpoint: {name}: a key in a URL stands in every log; set it as api_key_env says")
        if self.batch and (not self.endpoint or ":" in self.model.partition("/")[0]):
            raise ValueError("batch: expected an endpoint with OpenAI's batch API (https://api.openai.com/v1), and a plain name as model")
        if not self.into:
            raise ValueError("into: expected the name of a field")


@dataclass(frozen=True)
class Asking:
    """The agent's parameters with the files that they name; ``masked`` are fields that no model sees."""

    settings: InferParams
    prompt: Prompt
    output: AnswerContract
    masked: frozenset[str] = frozenset()

    @property
    def question(self) -> bytes:
        """What answers are logged under, together with the values that go into the prompt: whatever else changes leaves them valid."""
        settings = self.settings
        return digest([settings.model, settings.revision, self.prompt.digest, settings.parameters, self.output.digest]).encode()

    @property
    def identity(self) -> dict[str, Any]:
        """What enters the fingerprint."""
        settings = self.settings
        return {
            "model": [settings.model, settings.revision],
            "prompt": [self.prompt.label, self.prompt.digest],
            "parameters": settings.parameters,
            "output": self.output.digest,
            "masked": self.prompt.touched(self.masked),
            "into": settings.into,
            "repair": settings.repair,
        }


def read_asking(params: Mapping[str, Any], untrusted: frozenset[str] = frozenset()) -> Asking:
    """The parameters, checked, with their files; ``untrusted`` names those that came from whoever started the run.

    Raises ConfigurationError and ContractError.
    """
    surroundings = {name: value for name, variable in _VARIABLES.items() if (value := os.environ.get(variable)) and not params.get(name)}
    settings = read_params("infer", {**params, **surroundings}, InferParams, required=_REQUIRED)
    if not settings.model:
        raise ConfigurationError(
            "agent 'infer': parameter 'model' is required: such as openai:gpt-5-mini, or what the endpoint calls it (or set FACTORY_MODEL)"
        )
    for name in _AUTHORS:
        if name in untrusted:
            raise ConfigurationError(f"agent 'infer': {name}: it comes from a parameter of the run; write it in the DAG")
    settings.budget.check(settings.prices)
    masked: frozenset[str] = frozenset()
    if settings.contract:
        masked = classified_fields(load_contract(settings.contract, untrusted="contract" in untrusted)).difference(settings.unmask)
    prompt = load_prompt(settings.prompt, untrusted="prompt" in untrusted)
    return Asking(settings, prompt, load_answer_contract(settings.output, untrusted="output" in untrusted), masked)


def pack_files(params: Mapping[str, Any], untrusted: Collection[str], folders: Sequence[Path]) -> dict[str, Any]:
    """The parameters with the texts of prompt and output put in, as far as their files are in one of the folders.

    What came from whoever started the run stays a name, which is confined where it is read.
    """
    packed = dict(params)
    prompt, output = params.get("prompt"), params.get("output")
    if isinstance(prompt, str) and "prompt" not in untrusted and (path := _found(prompt, folders)):
        packed["prompt"] = pack_prompt(prompt, path)
    if isinstance(output, str) and "output" not in untrusted and not is_text(output):
        file, schema = split_name(output)
        if path := _found(file, folders):
            packed["output"] = pack_contract(load_contract(f"{path}#{schema}" if schema else path, name=file))
    return packed


def _found(name: str, folders: Sequence[Path]) -> Path | None:
    return next((folder / name for folder in folders if (folder / name).is_file()), None)
