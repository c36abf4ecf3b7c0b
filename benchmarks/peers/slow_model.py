"""A model on loopback that takes so many milliseconds for each answer: OpenAI's API as far as a benchmark needs it. Prints its port.

``GET /calls`` tells how many answers it has begun, each of which somebody pays for.
"""

from __future__ import annotations

import asyncio
import json
import sys

SECONDS = int(sys.argv[1]) / 1000
_MESSAGE = {"role": "assistant", "content": '{"label": "odd"}'}
_BODY = json.dumps(
    {
        "id": "x",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "finish_reason": "stop", "message": _MESSAGE}],
        "usage": {"prompt_tokens": 20, "completion_tokens": 5, "total_tokens": 25},
    }
).encode()
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(_BODY) + _BODY


class Connection(asyncio.Protocol):
    """Answers each request after its time."""

    calls = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self.transport, self.got = transport, b""

    def data_received(self, data: bytes) -> None:
        """Wait for the whole request."""
        self.got += data
        head, found, body = self.got.partition(b"\r\n\r\n")
        if self.got.startswith(b"GET /calls"):
            self.transport.write(b"HTTP/1.0 200 OK\r\n\r\n%d" % Connection.calls)  # type: ignore[attr-defined]
            self.transport.close()
        elif found and len(body) >= int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]):
            self.got = b""
            Connection.calls += 1
            asyncio.get_running_loop().call_later(SECONDS, self.transport.write, ANSWER)  # type: ignore[attr-defined]


async def main() -> None:
    """Serve until it is ended."""
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


asyncio.run(main())
