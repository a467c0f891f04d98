"""Connections answered line by line: with real sockets, and with the process that goes on in the same loop."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from nexusd.connections import LineServer

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
PATIENCE_S = 10.0
LOG = logging.getLogger("test")


async def echo(line: bytes) -> bytes:
    return line


def nobody(_connection: socket.socket, _begun: bytes) -> bool:
    return False


class Place:
    """A listening socket, and servers on it one after the other."""

    def __init__(self, listening: socket.socket) -> None:
        self.listening = listening

    def serve(self, answer: Callable[[bytes], Awaitable[bytes]] = echo, limit: int = 100) -> LineServer:
        return LineServer(self.listening.dup(), answer, LOG, limit)

    async def connect(self) -> Streams:
        return await asyncio.open_connection(*self.listening.getsockname())


@asynccontextmanager
async def place() -> AsyncIterator[Place]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        async with asyncio.timeout(PATIENCE_S):
            yield Place(listening)


def handing_to(server: LineServer) -> Callable[[socket.socket, bytes], bool]:
    def hand_over(connection: socket.socket, begun: bytes) -> bool:
        server.take(connection.dup(), begun)
        return True

    return hand_over


def test_lines_are_answered_in_their_order_however_they_come() -> None:
    async def story() -> None:
        async with place() as here:
            here.serve()
            reader, writer = await here.connect()
            writer.write(b"one\ntwo\nth")
            writer.write(b"ree\n")
            assert [await reader.readline() for _ in range(3)] == [b"one\n", b"two\n", b"three\n"]

    asyncio.run(story())


def test_who_says_all_and_listens_gets_every_answer_and_the_end() -> None:
    async def story() -> None:
        async with place() as here:
            here.serve()
            reader, writer = await here.connect()
            writer.write(b"one\nlast without newline")
            writer.write_eof()
            assert await reader.read() == b"one\nlast without newline"

    asyncio.run(story())


def test_what_is_being_answered_is_answered_before_the_server_has_closed() -> None:
    async def story() -> None:
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def slowly(line: bytes) -> bytes:
            begun.set()
            await go_on.wait()
            return line

        async with place() as here:
            server = here.serve(slowly)
            reader, writer = await here.connect()
            writer.write(b"slow\n")
            await begun.wait()
            closing = asyncio.ensure_future(server.close(nobody, PATIENCE_S))
            await asyncio.sleep(0)
            assert not closing.done()
            go_on.set()
            await closing
            assert await reader.read() == b"slow\n"

    asyncio.run(story())


def test_an_answer_that_never_comes_is_cut_off_in_the_end(caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        begun = asyncio.Event()

        async def never(_line: bytes) -> bytes:
            begun.set()
            await asyncio.Event().wait()
            return b""

        async with place() as here:
            server = here.serve(never)
            reader, writer = await here.connect()
            writer.write(b"hello\n")
            await begun.wait()
            await server.close(nobody, 0.01)
            assert await _read_or_reset(reader) == b""

    asyncio.run(story())
    assert "1 connections were cut off" in caplog.text


def test_a_connection_at_rest_goes_on_elsewhere_with_what_was_begun() -> None:
    async def story() -> None:
        async with place() as here:
            old = here.serve()
            reader, writer = await here.connect()
            writer.write(b"one\nhal")
            assert await reader.readline() == b"one\n"
            new = here.serve()
            await old.close(handing_to(new), PATIENCE_S)
            writer.write(b"ves\n")
            assert await reader.readline() == b"halves\n"
            assert (len(old.peers), len(new.peers)) == (0, 1)

    asyncio.run(story())


def test_who_has_just_been_accepted_is_not_dropped_by_the_close() -> None:
    async def story() -> None:
        async with place() as here:
            old = here.serve()
            clients = [await here.connect() for _ in range(50)]
            new = here.serve()
            await old.close(handing_to(new), PATIENCE_S)
            for reader, writer in clients:
                writer.write(b"here\n")
                assert await reader.readline() == b"here\n"

    asyncio.run(story())


def test_who_connects_after_the_close_waits_for_the_next_server() -> None:
    async def story() -> None:
        async with place() as here:
            await here.serve().close(nobody, PATIENCE_S)
            reader, writer = await here.connect()
            writer.write(b"early\n")
            here.serve()
            assert await reader.readline() == b"early\n"

    asyncio.run(story())


@pytest.mark.parametrize("line", [b"x" * 101, b"bad\n"])
def test_a_line_that_cannot_be_answered_ends_its_connection_alone(line: bytes) -> None:
    async def picky(line: bytes) -> bytes:
        if line == b"bad\n":
            raise ValueError(line)
        return line

    async def story() -> None:
        async with place() as here:
            here.serve(picky)
            (reader, writer), (other, asking) = await here.connect(), await here.connect()
            writer.write(line)
            assert await _read_or_reset(reader) == b""
            asking.write(b"good\n")
            assert await other.readline() == b"good\n"

    asyncio.run(story())


async def _read_or_reset(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read()
    except ConnectionResetError:
        return b""


def test_a_client_that_does_not_read_holds_up_nobody_but_itself() -> None:
    async def story() -> None:
        async with place() as here:
            server = here.serve(lambda line: echo(line * 100_000), limit=1000)
            _, deaf = await here.connect()
            deaf.write(b"x" * 99 + b"\n")
            deaf.write(b"x" * 99 + b"\n")
            reader, writer = await here.connect()
            writer.write(b"y\n")
            assert len(await reader.readexactly(200_000)) == 200_000
            await server.close(nobody, 0.01)

    asyncio.run(story())
