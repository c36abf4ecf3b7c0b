"""A model's stand-in: OpenAI's API on loopback, with the faults that a test wants, which counts what it is asked."""

from __future__ import annotations

import asyncio
import inspect
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Self

PAUSE = b"<pause>"
"""Between two parts of raw bytes: what comes after it comes later."""
PROMPT_TOKENS, COMPLETION_TOKENS = 20, 5


def label(question: str) -> dict[str, Any]:
    """The answer to any question: its length's parity."""
    return {"label": "even" if len(question) % 2 == 0 else "odd"}


class ModelServer:
    """``faults`` are shares of all calls: ``limited`` (429), ``failed`` (500), ``cut`` (half of the JSON), ``hung`` (never answered)."""

    def __init__(self, answer: Callable[[str], Any] = label, *, seconds: float = 0.0, seed: int = 7, **faults: float) -> None:
        self.answer, self.seconds, self.faults = answer, seconds, faults
        self._chance = random.Random(seed)
        self.requests: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.answered: Counter[str] = Counter()
        self.cut = 0
        self.down = False
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None

    def __enter__(self) -> Self:
        self._server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        if self._server is not None:
            self._server.close()
        connections = asyncio.all_tasks(self._loop)
        for connection in connections:
            connection.cancel()
        if connections:
            self._loop.run_until_complete(asyncio.gather(*connections, return_exceptions=True))
        self._loop.run_until_complete(asyncio.sleep(0))  # what they closed is closed then
        self._loop.close()

    @property
    def calls(self) -> int:
        """Calls that it answered, and whose tokens it counts."""
        return sum(self.answered.values())

    @property
    def tokens(self) -> tuple[int, int]:
        """Prompt and completion tokens of all that it answered."""
        return self.calls * PROMPT_TOKENS, self.calls * COMPLETION_TOKENS

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                size = int(head.lower().partition("content-length:")[2].partition("\r\n")[0] or 0)
                method, path, _ = head.split(" ", 2)
                status, headers, body = await self._route(method, path, await reader.readexactly(size))
                if isinstance(body, bytes):  # all of the answer, as it is
                    for part in body.split(PAUSE):
                        writer.write(part)
                        await writer.drain()
                        await asyncio.sleep(0.3 if PAUSE in body else 0)
                    return
                data = json.dumps(body).encode()
                head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n{headers}content-length: {len(data)}\r\n\r\n"
                writer.write(head.encode() + data)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _route(self, method: str, path: str, data: bytes) -> tuple[int, str, dict[str, Any] | bytes]:
        return await self._reply(json.loads(data)) if (method, path) == ("POST", "/v1/chat/completions") else (404, "", {})

    def _fault(self) -> str:
        at = self._chance.random()
        for name, share in self.faults.items():
            if at < share:
                return name
            at -= share
        return "failed" if self.down else ""

    async def _reply(self, request: dict[str, Any]) -> tuple[int, str, dict[str, Any] | bytes]:
        self.requests.append(request)
        self.times.append(time.monotonic())
        fault = "failed" if self.down else self._fault()
        if fault == "cut" and self.faults["cut"] < 1 and len(request["messages"]) > 2:
            fault = ""  # a second answer to the same question is whole: two that are cut would be a dead letter by right
        if fault == "limited":
            return 429, "retry-after: 0.2\r\n", {"error": {"message": "slow down"}}
        if fault == "failed":
            return 500, "", {"error": {"message": "out of order"}}
        if fault == "hung":
            await asyncio.sleep(3600)
        await asyncio.sleep(self.seconds)
        question = "\n".join(str(m["content"]) for m in request["messages"])
        answer = self.answer(question)
        text = json.dumps(await answer if inspect.isawaitable(answer) else answer)
        if fault == "cut":
            text = text[: len(text) // 2]
            self.cut += 1
        return 200, "", self._completion(question, text)

    def _completion(self, question: str, text: str) -> dict[str, Any]:
        """An answer, which is counted."""
        self.answered[question] += 1
        usage = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": COMPLETION_TOKENS, "total_tokens": PROMPT_TOKENS + COMPLETION_TOKENS}
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        return {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}


class BatchServer(ModelServer):
    """The same with files and batches; a batch is over when a test says so (``finish``), or at once (``ready``).

    ``lines`` may change what comes of a question (by its text): None leaves it out, an integer is the status of its own answer.
    """

    def __init__(self, answer: Callable[[str], Any] = label, *, ready: bool = False, lines: Mapping[str, int | None] | None = None) -> None:
        super().__init__(answer)
        self.ready, self.ends_as, self.lines = ready, "completed", dict(lines or {})
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.lost = ""
        """Of which request the answer is lost once: ``before`` it is done, or ``after``."""

    async def _route(self, method: str, path: str, data: bytes) -> tuple[int, str, dict[str, Any] | bytes]:
        path, _, query = path.removeprefix("/v1/").partition("?")
        if (method, path) == ("POST", "files"):
            content = data.partition(b"application/jsonl\r\n\r\n")[2].rpartition(b"\r\n--")[0]
            return 200, "", self._keep(content)
        if (method, path) == ("POST", "batches"):
            lost, self.lost = self.lost, ""
            if lost == "before":
                raise ConnectionError
            made = json.loads(data)
            batch = {"id": f"batch_{len(self.batches)}", "object": "batch", "status": "in_progress", **made}
            self.batches[batch["id"]] = batch
            if self.ready:
                self.finish(self.ends_as)
            if lost == "after":
                raise ConnectionError
            return 200, "", batch
        if path == "batches":
            newest = list(reversed(self.batches.values()))
            after = query.partition("after=")[2]
            rest = newest[next((n + 1 for n, batch in enumerate(newest) if batch["id"] == after), 0) :]
            return 200, "", {"data": rest[:1], "has_more": len(rest) > 1}
        if path.startswith("batches/"):
            return (200, "", found) if (found := self.batches.get(path.partition("/")[2])) else (404, "", {})
        if path.startswith("files/"):
            body = self.files[path.split("/")[1]]
            return 200, "", b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body
        return await super()._route(method, f"/v1/{path}", data)

    def _keep(self, content: bytes) -> dict[str, Any]:
        name = f"file_{len(self.files)}"
        self.files[name] = content
        return {"id": name, "object": "file"}

    def finish(self, status: str = "completed") -> None:
        """Answer all batches that are under way, or end them otherwise."""
        for batch in self.batches.values():
            if batch["status"] == "in_progress":
                batch["status"] = status
                if status == "failed":
                    batch["errors"] = {"data": [{"message": "no such model in a batch"}]}
                    continue
                lines = map(json.loads, self.files[batch["input_file_id"]].splitlines())
                answers = [line for line in map(self._line, lines) if line is not None]
                batch["output_file_id"] = self._keep("\n".join(map(json.dumps, answers)).encode() + b'\n{"custom_id": 7}\n')["id"]

    def _line(self, asked: dict[str, Any]) -> dict[str, Any] | None:
        question = "\n".join(str(m["content"]) for m in asked["body"]["messages"])
        status = next((status for text, status in self.lines.items() if question.endswith(text)), 200)
        if status is None:
            return None
        body = self._completion(question, json.dumps(self.answer(question))) if status == 200 else {"error": {"message": "not that one"}}
        return {"custom_id": asked["custom_id"], "response": {"status_code": status, "body": body}, "error": None}
