"""The batch API that OpenAI and servers like it have: many questions in a file, answers within a day, for less."""

from __future__ import annotations

import contextlib
import http.client
import ssl
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote, urlsplit

import msgspec

from factory_agents.errors import ConfigurationError
from factory_agents.inference.client import ModelRefusedError, ModelUnavailableError, Reply, one_line, refused
from factory_agents.inference.http import EndpointClient, read_reply

__all__ = ["Batch", "BatchApi", "NotAnsweredError"]

_LARGEST_BODY = 512 * 1024 * 1024
_MOST_PAGES, _PAGE = 20, 100
_NAME = "factory_batch"
"""The metadata by which a batch is known: a name that was chosen, and logged, before it was submitted."""
_BOUNDARY = "factory-batch-boundary"
_REFUSED, _NO_API = {400, 413, 422}, {404, 405, 501}
_T = TypeVar("_T")


class NotAnsweredError(Exception):
    """The batch has no answer to this question: it expired, say, or the model failed."""


class _Counts(msgspec.Struct):
    total: int = 0
    completed: int = 0
    failed: int = 0


class Batch(msgspec.Struct):
    """A batch as the provider describes it."""

    id: str
    status: str
    metadata: dict[str, str] | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    request_counts: _Counts | None = None
    errors: Any = None

    @property
    def is_over(self) -> bool:
        """Whether there will be no more answers."""
        return self.status in ("completed", "expired", "cancelled", "failed")

    @property
    def progress(self) -> str:
        """For a person."""
        counts = self.request_counts or _Counts()
        return f"batch {self.id}: {self.status}, {counts.completed} of {counts.total} questions answered"


class _File(msgspec.Struct):
    id: str


class _Page(msgspec.Struct):
    data: list[Batch]
    has_more: bool = False


class _Response(msgspec.Struct):
    status_code: int
    body: msgspec.Raw = msgspec.Raw()


class _Line(msgspec.Struct):
    custom_id: str
    response: _Response | None = None
    error: Any = None

    def reply(self) -> Reply | Exception:
        """The answer, or why there is none."""
        if self.response is None:
            return NotAnsweredError(one_line(str(self.error)))
        body = bytes(self.response.body)
        if self.response.status_code == 200:
            try:
                return read_reply(body)
            except ModelUnavailableError as error:
                return NotAnsweredError(str(error))
        said = f"{self.response.status_code}: {one_line(body.decode(errors='replace'))}"
        return ModelRefusedError(said) if self.response.status_code in _REFUSED else NotAnsweredError(said)


class _Answered(NamedTuple):
    status: int
    retry_after: str
    body: bytes


class BatchApi:
    """Files and batches at an endpoint. All of its methods raise what ``Client.ask`` does."""

    def __init__(self, model: str, url: str, key: str, client: EndpointClient, timeout: float) -> None:
        self._model, self._client, self._timeout = model, client, timeout
        self._parts = urlsplit(url)
        self._headers = {"accept": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})

    def submit(self, name: str, questions: Mapping[str, tuple[str, str]]) -> Batch:
        """Submit questions (system and text) by their ids, as a batch of this name."""
        path = "/v1/chat/completions"
        lines = b"\n".join(
            msgspec.json.encode({"custom_id": n, "method": "POST", "url": path, "body": self._client.question(system, [text])})
            for n, (system, text) in questions.items()
        )
        file = self._ask("POST", "/files", _form(f"{name}.jsonl", lines), f"multipart/form-data; boundary={_BOUNDARY}")
        ordered = {
            "input_file_id": _read(file, _File).id,
            "endpoint": path,
            "completion_window": "24h",
            "metadata": {_NAME: name},
        }
        return _read(self._ask("POST", "/batches", msgspec.json.encode(ordered)), Batch)

    def find(self, name: str, known: str) -> Batch | None:
        """The batch of this name, by the id at the provider where that is ``known``; None where there is none."""
        if known:
            answered = self._call("GET", f"/batches/{quote(known)}")
            return None if answered.status == 404 else _read(self._checked(answered), Batch)
        after = ""
        for _ in range(_MOST_PAGES):
            page = _read(self._ask("GET", f"/batches?limit={_PAGE}{after}"), _Page)
            for batch in page.data:
                if (batch.metadata or {}).get(_NAME) == name:
                    return batch
            if not (page.has_more and page.data):
                break
            after = f"&after={quote(page.data[-1].id)}"
        return None

    def replies(self, batch: Batch) -> dict[str, Reply | Exception]:
        """What came of each question that anything is said of: its answer, a ModelRefusedError, or a NotAnsweredError."""
        found: dict[str, Reply | Exception] = {}
        for file in (batch.error_file_id, batch.output_file_id):
            if file:
                found.update((line.custom_id, line.reply()) for line in _lines(self._ask("GET", f"/files/{quote(file)}/content")))
        return found

    def _ask(self, method: str, path: str, body: bytes | None = None, content: str = "application/json") -> bytes:
        return self._checked(self._call(method, path, body, content))

    def _checked(self, answered: _Answered) -> bytes:
        if 200 <= answered.status < 300:
            return answered.body
        said = answered.body[:10_000].decode(errors="replace")
        if answered.status in _NO_API:
            raise ConfigurationError(
                f"model {self._model!r}: its endpoint has no batch API ({answered.status}: {one_line(said)}); leave batch out"
            )
        raise refused(self._model, answered.status, answered.retry_after, said)

    def _call(self, method: str, path: str, body: bytes | None = None, content: str = "application/json") -> _Answered:
        """A connection for each: there are few."""
        parts = self._parts
        host, port = parts.hostname or "", parts.port
        if parts.scheme == "https":
            context = ssl.create_default_context()
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(host, port, timeout=self._timeout, context=context)
        else:
            connection = http.client.HTTPConnection(host, port, timeout=self._timeout)
        try:
            headers = self._headers | ({"content-type": content} if body is not None else {})
            connection.request(method, parts.path.rstrip("/") + path, body, headers)
            response = connection.getresponse()
            read = response.read(_LARGEST_BODY + 1)
        except (OSError, http.client.HTTPException) as error:
            raise ModelUnavailableError(f"{parts.netloc}: {type(error).__name__}: {one_line(str(error))}") from None
        finally:
            connection.close()
        if len(read) > _LARGEST_BODY:
            raise ModelUnavailableError(f"{parts.netloc}: an answer of more than {_LARGEST_BODY} bytes")
        return _Answered(response.status, response.headers.get("retry-after") or "", read)


def _form(name: str, content: bytes) -> bytes:
    """A file as a form sends it: its bytes are JSON lines, in which the boundary can't be at a line's start."""
    purpose = f'--{_BOUNDARY}\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    head = f'--{_BOUNDARY}\r\ncontent-disposition: form-data; name="file"; filename="{name}"\r\ncontent-type: application/jsonl\r\n\r\n'
    return f"{purpose}{head}".encode() + content + f"\r\n--{_BOUNDARY}--\r\n".encode()


def _read(body: bytes, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ModelUnavailableError(f"an answer that is none of the batch API: {error}") from None


def _lines(body: bytes) -> Iterator[_Line]:
    """The lines of a file of answers; one that is none leaves its own question without an answer, and no other."""
    for line in body.split(b"\n"):
        with contextlib.suppress(ModelUnavailableError):
            if line.strip():
                yield _read(line, _Line)
