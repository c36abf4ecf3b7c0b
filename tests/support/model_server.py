"""A model's stand-in: OpenAI's API on loopback, with the faults that a test wants, which counts what it is asked."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
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
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                size = int(head.partition("content-length:")[2].partition("\r\n")[0])
                request = json.loads(await reader.readexactly(size))
                status, headers, body = await self._reply(request) if " /v1/chat/completions " in head else (404, "", {})
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
        text = json.dumps(self.answer(question))
        if fault == "cut":
            text = text[: len(text) // 2]
            self.cut += 1
        self.answered[question] += 1
        usage = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": COMPLETION_TOKENS, "total_tokens": PROMPT_TOKENS + COMPLETION_TOKENS}
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        return 200, "", {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}
