"""The reference for a round trip: a bare asyncio server on a Unix socket that answers each line with fixed bytes."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast


class Echo(asyncio.Protocol):
    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._transport.write(self._answer * data.count(b"\n"))


@contextmanager
def serving(path: str, answer_bytes: int) -> Iterator[None]:
    """A process that answers at `path`, with answers of this length."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        number = listening.fileno()
        command = [sys.executable, "-m", "bench.echo", str(number), str(answer_bytes)]
        process = subprocess.Popen(command, pass_fds=(number,))
    try:
        yield
    finally:
        process.kill()
        process.wait()


async def _serve(number: int, answer: bytes) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_unix_server(lambda: Echo(answer), sock=socket.socket(fileno=number))
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), b"x" * (int(sys.argv[2]) - 1) + b"\n"))
