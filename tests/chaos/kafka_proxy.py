"""A proxy between a client and a broker that understands enough of Kafka's protocol to lose or hold one kind of request or answer."""

from __future__ import annotations

import asyncio
import contextlib
import struct
import threading
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["CREATE_TOPICS", "END_TXN", "PRODUCE", "KafkaProxy", "Trouble"]

PRODUCE, CREATE_TOPICS, END_TXN = 0, 19, 26
"""API keys of requests: records, new topics, and the end of a transaction (commit or abort)."""

Fate = Literal["request lost", "answer lost", "request held", "answer held"]


@dataclass
class Trouble:
    """What befalls the n-th request of a kind; ``came`` is set when it does, and what is held waits for ``release``.

    Lost means that the connection breaks instead, as it does for a client.
    """

    api: int
    fate: Fate
    nth: int = 1
    came: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)
    seen: int = 0

    def meets(self, api: int) -> bool:
        """Whether this request is the one."""
        self.seen += api == self.api
        return api == self.api and self.seen == self.nth


class KafkaProxy:
    """Listens on a port of its own; answers that name the broker's address name the proxy's instead, so that clients stay with it.

    ``requests`` counts what clients asked.
    """

    def __init__(self, bootstrap: str) -> None:
        host, _, port = bootstrap.rpartition(":")
        self._host, self._port = host, int(port)
        self._troubles: list[Trouble] = []
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._connections: set[asyncio.Task[None]] = set()
        self._is_cut = False
        self.bootstrap = ""
        self.requests = 0
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        self._ready.wait(10)

    def trouble(self, api: int, fate: Fate, nth: int = 1) -> Trouble:
        """Arrange for something to befall a request from now on."""
        trouble = Trouble(api, fate, nth)
        self._troubles.append(trouble)
        return trouble

    def cut(self) -> None:
        """Break every connection, and all that come until it is mended."""
        self._is_cut = True
        self._loop.call_soon_threadsafe(lambda: [task.cancel() for task in self._connections])

    def mend(self) -> None:
        """Let connections through again."""
        self._is_cut = False

    def close(self) -> None:
        """Break every connection and end."""
        for trouble in self._troubles:
            trouble.release.set()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._accept, self._host, 0))
        port = server.sockets[0].getsockname()[1]
        self.bootstrap = f"{self._host}:{port}"
        text = self._host.encode()
        self._theirs, self._ours = text + struct.pack(">i", self._port), text + struct.pack(">i", port)
        self._ready.set()
        self._loop.run_forever()
        server.close()
        for task in self._connections:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*self._connections, return_exceptions=True))
        self._loop.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)
        if self._is_cut:
            writer.close()
            return
        there, to_there = await asyncio.open_connection(self._host, self._port)
        marked: dict[int, Trouble] = {}
        both = (self._requests(reader, to_there, marked), self._answers(there, writer, marked))
        pumps = [asyncio.ensure_future(pump) for pump in both]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            for each in (writer, to_there):
                each.close()

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, marked: dict[int, Trouble]) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            while True:
                frame = await _frame(reader)
                api, _, correlation = struct.unpack_from(">hhi", frame)
                self.requests += 1
                trouble = next((t for t in self._troubles if t.meets(api)), None)
                if trouble is not None and trouble.fate.startswith("answer"):
                    marked[correlation] = trouble
                elif trouble is not None and not await self._suffers(trouble):
                    return
                await _send(writer, frame)

    async def _answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, marked: dict[int, Trouble]) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            while True:
                frame = await _frame(reader)
                trouble = marked.pop(struct.unpack_from(">i", frame)[0], None)
                if trouble is not None and not await self._suffers(trouble):
                    return
                await _send(writer, frame.replace(self._theirs, self._ours))

    async def _suffers(self, trouble: Trouble) -> bool:
        """Lose it (False) or hold it until it is released (True)."""
        trouble.came.set()
        if trouble.fate.endswith("lost"):
            return False
        await asyncio.to_thread(trouble.release.wait)
        return True


async def _frame(reader: asyncio.StreamReader) -> bytes:
    (size,) = struct.unpack(">i", await reader.readexactly(4))
    return await reader.readexactly(size)


async def _send(writer: asyncio.StreamWriter, frame: bytes) -> None:
    writer.write(struct.pack(">i", len(frame)) + frame)
    await writer.drain()
