"""The API that most model servers speak (OpenAI's chat completions), over a few kept connections: ten times the calls of a whole client.

No proxies and no redirects: what needs these is asked through pydantic-ai.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgspec

from factory_agents.errors import ConfigurationError
from factory_agents.inference.client import ModelUnavailableError, Reply, counted, refused

__all__ = ["EndpointClient", "read_reply"]

_LARGEST_BODY = 64 * 1024 * 1024
_SETTINGS = {"extra_body", "extra_headers", "timeout"}
"""What pydantic-ai takes among a model's settings, and is no part of the API."""


class _Response(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None


class _Message(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None


class _Choice(msgspec.Struct):
    message: _Message


class _Completion(msgspec.Struct):
    choices: list[_Choice]
    usage: _Usage | None = None


_decode = msgspec.json.Decoder(_Completion).decode


class EndpointClient:
    """See ``Client``; ``url`` is what ``/chat/completions`` is appended to."""

    def __init__(self, model: str, url: str, key: str, schema: dict[str, Any], settings: Mapping[str, Any]) -> None:
        parts = urlsplit(url)
        for name in _SETTINGS.intersection(settings):
            raise ConfigurationError(f"parameters: {name}: no parameter of the API of {url}")
        self._name, self._host = model, parts.hostname or ""
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._tls else 80)
        structured = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
        self._rest = {**settings, "model": model, "response_format": structured}
        path = f"{parts.path.rstrip('/')}/chat/completions" + (f"?{parts.query}" if parts.query else "")
        head = f"POST {path} HTTP/1.1\r\nhost: {parts.netloc}\r\ncontent-type: application/json\r\naccept: application/json\r\n"
        self._head = head + (f"authorization: Bearer {key}\r\n" if key else "")
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask(self, system: str, turns: Sequence[str]) -> Reply:
        """See ``Client.ask``."""
        response = await self._post(msgspec.json.encode(self.question(system, turns)))
        if response.status != 200:
            raise refused(self._name, response.status, response.headers.get("retry-after", ""), response.body.decode(errors="replace"))
        return read_reply(response.body)

    def question(self, system: str, turns: Sequence[str]) -> dict[str, Any]:
        """What is posted."""
        messages = [{"role": "system", "content": system}] if system else []
        messages += [{"role": "assistant" if n % 2 else "user", "content": text} for n, text in enumerate(turns)]
        return {**self._rest, "messages": messages}

    async def _post(self, body: bytes) -> _Response:
        request = f"{self._head}content-length: {len(body)}\r\n\r\n".encode() + body
        while self._free:
            reader, writer = self._free.pop()
            if reader.at_eof() or writer.is_closing():
                writer.close()
                continue
            try:
                return await self._exchange(reader, writer, request)
            except (ConnectionError, asyncio.IncompleteReadError) as error:
                if getattr(error, "partial", b""):
                    raise ModelUnavailableError(f"{self._host}:{self._port} closed the connection: {error}") from None
                break  # it was closed while nobody used it, or for this question, which isn't asked on each of them
        try:
            reader, writer = await asyncio.open_connection(self._host, self._port, ssl=self._tls, limit=1 << 20)
        except OSError as error:
            raise ModelUnavailableError(f"{self._host}:{self._port}: {error}") from None
        try:
            return await self._exchange(reader, writer, request)
        except (ConnectionError, asyncio.IncompleteReadError) as error:
            raise ModelUnavailableError(f"{self._host}:{self._port} closed the connection: {error}") from None

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> _Response:
        kept = False
        try:
            writer.write(request)
            await writer.drain()
            response = await _read(reader)
            kept = response.headers.get("connection", "").lower() != "close" and "eof" not in response.headers
            return response
        except (ValueError, IndexError, asyncio.LimitOverrunError) as error:
            raise ModelUnavailableError(f"an answer that is no HTTP: {error}") from None
        finally:
            if kept:
                self._free.append((reader, writer))
            else:
                writer.close()

    async def close(self) -> None:
        """See ``Client.close``."""
        while self._free:
            _, writer = self._free.pop()
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


def read_reply(body: bytes) -> Reply:
    """What a completion says. Raises ModelUnavailableError for what is none."""
    try:
        completion = _read_completion(body)
        message, usage = completion.choices[0].message, completion.usage or _Usage()
    except (msgspec.MsgspecError, IndexError, ValueError, RecursionError) as error:
        raise ModelUnavailableError(f"an answer that is none of this API: {error}") from None
    cached = usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details is not None else None
    return Reply(message.content or message.refusal or "", counted(usage.prompt_tokens, cached, usage.completion_tokens))


def _read_completion(body: bytes) -> _Completion:
    """An answer may end within a letter, or an emoji, where the tokens ran out: that is no reason to pass over all of it."""
    try:
        return _decode(body)
    except msgspec.ValidationError:
        raise
    except (msgspec.DecodeError, UnicodeDecodeError):
        return msgspec.convert(json.loads(body.decode(errors="replace")), _Completion)


async def _read(reader: asyncio.StreamReader) -> _Response:
    status = 100
    while status == 100:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        status = int(lines[0].split(" ")[1])
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:] if line)}
    if headers.get("transfer-encoding", "").lower() == "chunked":
        return _Response(status, headers, await _chunks(reader))
    if "content-length" in headers:
        size = int(headers["content-length"])
        if not 0 <= size <= _LARGEST_BODY:
            raise ValueError(f"a body of {size} bytes")
        return _Response(status, headers, await reader.readexactly(size))
    body = bytearray()
    while part := await reader.read(1 << 20):
        body += part
        if len(body) > _LARGEST_BODY:
            raise ValueError(f"a body of more than {_LARGEST_BODY} bytes")
    return _Response(status, {**headers, "eof": ""}, bytes(body))


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    body = bytearray()
    while True:
        size = int((await reader.readline()).partition(b";")[0], 16)
        if size < 0 or len(body) + size > _LARGEST_BODY:
            raise ValueError(f"a chunk of {size} bytes")
        body += await reader.readexactly(size)
        await reader.readuntil(b"\r\n")
        if not size:
            return bytes(body)
