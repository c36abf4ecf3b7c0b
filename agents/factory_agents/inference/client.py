"""One question to a model: at an OpenAI-compatible endpoint, or of any provider that pydantic-ai knows."""

from __future__ import annotations

import os
from collections.abc import Sequence
from email.utils import parsedate_to_datetime
from time import time
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from factory_agents.errors import ConfigurationError
from factory_agents.inference.money import Usage
from factory_agents.text import printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic_ai.models import Model

__all__ = [
    "Client",
    "ModelRefusedError",
    "ModelUnavailableError",
    "RateLimitedError",
    "Reply",
    "counted",
    "open_client",
    "read_key",
    "refused",
]

_DEFAULT_HOLD, _LONGEST_HOLD = 1.0, 3600.0
_LONGEST_SAID = 300
_MOST_TOKENS = 1_000_000_000
_FINAL = {401: "the key is not accepted", 403: "the key may not use it", 404: "there is no such model or address", 405: "it is no such API"}
_OF_THE_EVENT = {400, 413, 422}


class Reply(NamedTuple):
    """What a model said, and the tokens that it took."""

    text: str
    usage: Usage


class RateLimitedError(Exception):
    """The model wants to be left alone for so many ``seconds``."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"asked for a pause of {seconds:g} s")
        self.seconds = seconds


class ModelUnavailableError(ConnectionError):
    """The model failed, or what carries its answers did."""


class ModelRefusedError(Exception):
    """The model takes just this question not: it is too long, say."""


class Client(Protocol):
    """Asks a model; all in one event loop."""

    async def ask(self, system: str, turns: Sequence[str]) -> Reply:
        """``turns``: what the user said and the model answered, by turns, the user first.

        Raises RateLimitedError, ModelUnavailableError, ModelRefusedError, and ConfigurationError for what no other question mends.
        """
        ...

    async def close(self) -> None:
        """Disconnect."""
        ...


class _PydanticClient:
    """See ``Client``."""

    def __init__(self, model: Model, name: str, schema: dict[str, Any], settings: Mapping[str, Any], http: Any) -> None:
        from pydantic_ai.models import ModelRequestParameters
        from pydantic_ai.output import OutputObjectDefinition

        self._model, self._name, self._http = model, name, http
        self._settings: Any = dict(settings)
        structured = OutputObjectDefinition(json_schema=schema, name="answer")
        self._parameters = ModelRequestParameters(output_mode="native", output_object=structured, allow_text_output=True)

    async def ask(self, system: str, turns: Sequence[str]) -> Reply:
        """See ``Client.ask``."""
        from pydantic_ai.exceptions import ModelAPIError, ModelHTTPError, UnexpectedModelBehavior, UserError
        from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, SystemPromptPart, TextPart, UserPromptPart

        first = [SystemPromptPart(system)] if system else []
        messages: list[ModelMessage] = [ModelRequest(parts=[*first, UserPromptPart(turns[0])])]
        for n, text in enumerate(turns[1:], 1):
            messages.append(ModelResponse(parts=[TextPart(text)]) if n % 2 else ModelRequest(parts=[UserPromptPart(text)]))
        try:
            response = await self._model.request(messages, self._settings, self._parameters)
        except ModelHTTPError as error:
            raise refused(self._name, error.status_code, _header(error, "retry-after"), _short(error)) from error
        except (ModelAPIError, UnexpectedModelBehavior, RecursionError) as error:
            status = getattr(error.__cause__, "status_code", 0)
            if 300 <= status < 400:
                raise refused(self._name, status, "", _short(error)) from error
            raise ModelUnavailableError(_short(error)) from error
        except UserError as error:
            raise ConfigurationError(f"model {self._name!r}: {_short(error)}") from error
        usage = response.usage
        text = "".join(part.content for part in response.parts if isinstance(part, TextPart))
        refusal = (response.provider_details or {}).get("refusal")
        return Reply(text or str(refusal or ""), counted(usage.input_tokens, usage.cache_read_tokens, usage.output_tokens))

    async def close(self) -> None:
        """See ``Client.close``."""
        if self._http is not None:
            await self._http.close()


def counted(prompt: int | None, cached: int | None, completion: int | None) -> Usage:
    """Tokens as a provider counts them. Raises ModelUnavailableError for what is no count: it would upset every budget."""
    found = Usage(*(max(0, tokens or 0) for tokens in (prompt, cached, completion)))
    if max(found) > _MOST_TOKENS:
        raise ModelUnavailableError(f"an answer that took {max(found)} tokens, as it says")
    return found


def refused(model: str, status: int, retry_after: str, said: str) -> Exception:
    """What an answer with such a status means."""
    said = f"{status}: {one_line(said)}"
    if status == 429:
        return RateLimitedError(_seconds(retry_after))
    if status in _FINAL or 300 <= status < 400:
        return ConfigurationError(f"model {model!r}: {_FINAL.get(status, 'there is another address')} ({said})")
    return ModelRefusedError(said) if status in _OF_THE_EVENT else ModelUnavailableError(said)


def _seconds(retry_after: str) -> float:
    """A pause that was asked for, as a number or as a date."""
    for read in (float, lambda text: parsedate_to_datetime(text).timestamp() - time()):
        try:
            seconds: float = read(retry_after)
        except (ValueError, TypeError, OverflowError):
            continue
        return min(max(0.0, seconds), _LONGEST_HOLD) if seconds == seconds else _DEFAULT_HOLD
    return _DEFAULT_HOLD


def _header(error: Exception, name: str) -> str:
    response = getattr(error.__cause__, "response", None)
    return str(response.headers.get(name) or "") if response is not None else ""


def _short(error: Exception) -> str:
    return one_line(str(error.__cause__ or error))


def one_line(said: str) -> str:
    """What a provider said, in one line; it may quote what it was asked."""
    text = printable(" ".join(said.split()))
    return text if len(text) <= _LONGEST_SAID else text[:_LONGEST_SAID] + "…"


def read_key(variable: str) -> str:
    """The key in an environment variable, without the end of line that files have; empty where there is none.

    Raises ConfigurationError for one that no header can hold, and says nothing of it.
    """
    key = os.environ.get(variable, "").strip()
    if not key.isascii() or not key.isprintable():
        raise ConfigurationError(f"{variable}: a key is one line of plain letters and digits; that one isn't")
    return key


def open_client(
    model: str, *, endpoint: str, key_variable: str, schema: dict[str, Any], settings: Mapping[str, Any], timeout: float
) -> Client:
    """A client for ``model`` at an OpenAI-compatible ``endpoint``, or by pydantic-ai for ``provider:model``; the key is in the environment.

    Raises ConfigurationError where the extra is missing, the provider isn't known, or its key isn't there.
    """
    key = read_key(key_variable)
    if endpoint and ":" not in model.partition("/")[0]:
        from factory_agents.inference.http import EndpointClient

        return EndpointClient(model, endpoint, key, schema, settings)
    try:
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient
        from pydantic_ai.exceptions import UserError
        from pydantic_ai.models import infer_model
        from pydantic_ai.models.openai import OpenAIChatModel
        from pydantic_ai.providers.openai import OpenAIProvider
    except ImportError as error:
        raise ConfigurationError(f"agent 'infer' needs pydantic-ai ({error}): pip install 'factory-agents[llm]'") from None
    http = None
    if endpoint or model.startswith("openai:"):
        if not endpoint and not key:
            raise ConfigurationError(f"model {model!r}: no key: set {key_variable}, from a secret or a connection")
        plain = DefaultAsyncHttpxClient(follow_redirects=False)  # data and keys go where the author says, and nowhere else
        http = AsyncOpenAI(base_url=endpoint or None, api_key=key or "none", max_retries=0, timeout=timeout, http_client=plain)
        made: Model = OpenAIChatModel(model.partition(":")[2], provider=OpenAIProvider(openai_client=http))
    else:
        try:
            made = infer_model(model)
        except (UserError, ValueError, ImportError) as error:
            raise ConfigurationError(f"model {model!r}: {_short(error)}; or give the endpoint of an OpenAI-compatible server") from None
    return _PydanticClient(made, model, schema, settings, http)
