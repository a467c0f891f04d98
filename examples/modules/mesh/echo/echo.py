"""Answers each line with the same line.

Shows: a listening socket that nexusd keeps over reloads, and connections that end between two lines.
"""

import asyncio
from asyncio import StreamReader, StreamWriter

from prometheus_client import Counter

from nexusd.sdk import Module


class Echo(Module):
    """Each connection is a task; on stop each finishes the line it is at."""

    async def start(self) -> None:
        self.lines = Counter("echo_lines", "Lines that were answered", registry=self.metrics)
        self.stopping = asyncio.Event()
        self.connections: set[asyncio.Task[None]] = set()
        # Not bound here: the socket was listening before this process began, and is when it has ended.
        self.server = await asyncio.start_server(self.accept, sock=self.sockets["echo"])

    def accept(self, reader: StreamReader, writer: StreamWriter) -> None:
        task = asyncio.create_task(self.serve(reader, writer))
        self.connections.add(task)
        task.add_done_callback(self.connections.discard)

    async def serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        try:
            while line := await self.next_line(reader):
                writer.write(line)
                await writer.drain()
                self.lines.inc()
        except (ConnectionError, ValueError) as error:  # ValueError: a line longer than 64 KiB
            self.log.info("connection ended: %s", error)
        finally:
            writer.close()

    async def next_line(self, reader: StreamReader) -> bytes:
        """The next line; nothing when there is none or the module is stopping."""
        line = asyncio.create_task(reader.readline())
        stopping = asyncio.create_task(self.stopping.wait())
        await asyncio.wait((line, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if line.done():
            return line.result()
        line.cancel()
        return b""

    async def stop(self) -> None:
        """Who connects from here on waits in the socket's queue for the next generation."""
        self.server.close()
        self.stopping.set()
        if self.connections:
            await asyncio.wait(self.connections)
