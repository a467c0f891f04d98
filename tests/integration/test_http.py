"""The small HTTP server on a real port: what is a request, and how much of its time a client gets."""

import asyncio
import errno
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from nexusd.system import http
from nexusd.system.http import HttpServer, Malformed, Request, Response, parse

BOUND_S = 20.0
Story = Callable[[HttpServer, int], Awaitable[None]]
LONG = b"x" * 5_000_000


async def hello(request: Request) -> Response:
    return Response(request.headers.get("accept", "").encode() + b"hello\n")


async def broken(_request: Request) -> Response:
    raise RuntimeError("a secret")


async def long(_request: Request) -> Response:
    return Response(LONG)


async def slow(_request: Request) -> Response:
    return await asyncio.Future()


def play(story: Story) -> None:
    async def told() -> None:
        server = HttpServer()
        server.offer(
            {"/hello": hello, "/broken": broken, "/long": long, "/slow": slow},
            lambda: None,
            ("/long", "/slow"),
        )
        server.open("127.0.0.1", 0)
        async with asyncio.timeout(BOUND_S):
            while not server.ports:
                await asyncio.sleep(0)
            await story(server, server.ports[0])
        server.close()

    asyncio.run(told())


async def said(port: int, request: bytes) -> tuple[str, dict[str, str], bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    first, *fields = head.decode().split("\r\n")
    return first, dict(field.split(": ", 1) for field in fields), body


def answered(request: bytes) -> tuple[str, dict[str, str], bytes]:
    found: list[Any] = []

    async def story(_server: HttpServer, port: int) -> None:
        found.extend(await said(port, request))

    play(story)
    return found[0], found[1], found[2]


def test_a_page_comes_with_its_length_and_the_connection_ends() -> None:
    first, headers, body = answered(b"GET /hello?x=1 HTTP/1.1\r\nHost: x\r\nAccept: you, \r\n\r\n")
    assert first == "HTTP/1.1 200 OK"
    assert body == b"you,hello\n"
    assert headers["Content-Length"] == "10"
    assert headers["Connection"] == "close"
    assert headers["Date"].endswith(" GMT")


def test_head_has_the_same_headers_and_no_body() -> None:
    first, headers, body = answered(b"HEAD /hello HTTP/1.1\r\n\r\n")
    assert (first, headers["Content-Length"], body) == ("HTTP/1.1 200 OK", "6", b"")


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"GET / HTTP/1.1", "404 Not Found"),
        (b"GET /metrics/../hello HTTP/1.1", "404 Not Found"),
        (b"POST /hello HTTP/1.1", "405 Method Not Allowed"),
        (b"GET /broken HTTP/1.0", "500 Internal Server Error"),
        (b"GET http://x/hello HTTP/1.1", "400 Bad Request"),
        (b"GET  /hello HTTP/1.1", "400 Bad Request"),
        (b"\x16\x03\x01\x02", "400 Bad Request"),
        (b"GET /hello HTTP/1.1\r\nno colon", "400 Bad Request"),
        (b"GET /hello HTTP/1.1\r\nspace : x", "400 Bad Request"),
        (b"GET /" + b"x" * http.LONGEST_HEAD + b" HTTP/1.1", "431 Request Header Fields Too Large"),
    ],
)
def test_what_is_no_page_has_its_status_in_plain_text(request_line: bytes, status: str) -> None:
    first, headers, body = answered(request_line + b"\r\n\r\n")
    assert first == f"HTTP/1.1 {status}"
    assert headers["Content-Type"] == "text/plain; charset=utf-8"
    assert b"secret" not in body


def test_what_may_be_done_with_a_page_is_told() -> None:
    assert answered(b"DELETE /hello HTTP/1.1\r\n\r\n")[1]["Allow"] == "GET, HEAD"


def test_a_request_may_come_byte_by_byte() -> None:
    async def story(_server: HttpServer, port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for byte in b"GET /hello HTTP/1.1\r\n\r\n":
            writer.write(bytes([byte]))
            await writer.drain()
        assert (await reader.read()).endswith(b"hello\n")
        writer.close()

    play(story)


def test_a_long_page_comes_whole() -> None:
    assert answered(b"GET /long HTTP/1.1\r\n\r\n")[2] == LONG


def test_who_sends_no_request_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "REQUEST_S", 0.05)

    async def story(_server: HttpServer, port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /hello HTTP/1.1\r\n")
        assert await reader.read() == b""
        writer.close()

    play(story)


def test_who_does_not_read_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "ANSWER_S", 0.1)

    async def story(server: HttpServer, port: int) -> None:
        sock = socket.create_connection(("127.0.0.1", port))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.sendall(b"GET /long HTTP/1.1\r\n\r\n")
        while not server._connections:
            await asyncio.sleep(0)
        while server._connections:
            await asyncio.sleep(0.01)
        sock.close()

    play(story)


def test_of_too_many_connections_the_one_that_has_waited_longest_goes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http, "MOST_CONNECTIONS", 3)

    async def story(_server: HttpServer, port: int) -> None:
        idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        assert (await said(port, b"GET /hello HTTP/1.1\r\n\r\n"))[0] == "HTTP/1.1 200 OK"
        assert await idle[0][0].read() == b""
        for _, writer in idle:
            writer.close()

    play(story)


async def asking(server: HttpServer, port: int, path: str, number: int) -> list[socket.socket]:
    """So many clients that ask and never read; the server has taken each on before the next one asks."""
    clients = []
    for count in range(number):
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", port))
        client.sendall(f"GET {path} HTTP/1.1\r\n\r\n".encode())
        clients.append(client)
        while sum(one.is_answering for one in server._connections) <= min(count, http.MOST_LONG - 1):
            await asyncio.sleep(0)
    return clients


@pytest.mark.parametrize("path", ["/long", "/slow"])
def test_however_many_do_not_read_a_long_page_a_short_one_is_answered(path: str) -> None:
    async def story(server: HttpServer, port: int) -> None:
        clients = await asking(server, port, path, http.MOST_CONNECTIONS + 10)
        assert (await said(port, b"GET /hello HTTP/1.1\r\n\r\n"))[0] == "HTTP/1.1 200 OK"
        for client in clients:
            client.close()

    play(story)


def test_for_a_reader_of_a_long_page_the_one_goes_that_has_not_read_for_longest() -> None:
    async def story(server: HttpServer, port: int) -> None:
        clients = await asking(server, port, "/long", http.MOST_LONG)
        while not all(one.stuck_since for one in server._connections):
            await asyncio.sleep(0)
        assert (await said(port, b"GET /long HTTP/1.1\r\n\r\n"))[2] == LONG
        assert len(server._connections) == http.MOST_LONG - 1
        for client in clients:
            client.close()

    play(story)


def test_when_all_wait_for_a_page_in_the_making_one_more_is_told_to_come_back() -> None:
    async def story(server: HttpServer, port: int) -> None:
        clients = await asking(server, port, "/slow", http.MOST_LONG)
        first, headers, _ = await said(port, b"GET /slow HTTP/1.1\r\n\r\n")
        assert (first, headers["Retry-After"]) == ("HTTP/1.1 503 Service Unavailable", "1")
        for client in clients:
            client.close()

    play(story)


def test_a_port_that_is_taken_is_told_and_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(http, "RETRY_S", 0.01)

    async def story() -> None:
        holder = socket.create_server(("127.0.0.1", 0))
        port = holder.getsockname()[1]
        server = HttpServer()
        server.offer({"/hello": hello}, lambda: None)
        server.open("127.0.0.1", port)
        async with asyncio.timeout(BOUND_S):
            while server.trouble is None:
                await asyncio.sleep(0.01)
            assert f"127.0.0.1 port {port}" in server.trouble
            holder.close()
            while not server.ports:
                await asyncio.sleep(0.01)
        assert server.trouble is None
        assert (await said(port, b"GET /hello HTTP/1.1\r\n\r\n"))[0] == "HTTP/1.1 200 OK"
        server.close()

    asyncio.run(story())
    assert [record.levelname for record in caplog.records].count("ERROR") == 1


@pytest.mark.parametrize("head", [b"", b"GET", b"GET / FTP/1.0", b"GET / HTTP/1.1\r\n: x"])
def test_what_is_no_request_is_malformed(head: bytes) -> None:
    with pytest.raises(Malformed):
        parse(head)


def test_the_port_is_handed_over_while_a_page_is_being_made_and_another_client_connects() -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def held(_request: Request) -> Response:
        begun.set()
        await go_on.wait()
        return Response(b"done\n")

    async def story(server: HttpServer, port: int) -> None:
        server.offer({"/held": held}, lambda: None)
        first = asyncio.create_task(said(port, b"GET /held HTTP/1.1\r\n\r\n"))
        await begun.wait()
        handing = asyncio.create_task(server.hand_over())
        await asyncio.sleep(0)
        second = asyncio.create_task(said(port, b"GET /hello HTTP/1.1\r\n\r\n"))
        go_on.set()
        (number,) = await handing
        assert (await first)[2] == b"done\n"

        following = HttpServer()
        following.offer({"/hello": hello}, lambda: None)
        following.open("127.0.0.1", port, [socket.socket(fileno=number)])
        assert (await second)[0] == "HTTP/1.1 200 OK"
        assert following.ports == (port,)
        following.close()

    play(story)


def test_a_page_that_comes_to_no_end_does_not_keep_the_port_from_being_handed_over() -> None:
    async def story(server: HttpServer, port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /slow HTTP/1.1\r\n\r\n")
        (number,) = await server.hand_over()
        os.close(number)
        assert await reader.read() == b""
        writer.close()

    play(story)


def test_where_no_descriptor_is_free_the_port_is_let_go_and_can_be_bound_anew(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none_free(_number: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async def story(server: HttpServer, port: int) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(os, "dup", none_free)
            assert await server.hand_over() == ()
        following = HttpServer()
        following.offer({"/hello": hello}, lambda: None)
        following.open("127.0.0.1", port)
        while not following.ports:
            await asyncio.sleep(0)
        assert (await said(port, b"GET /hello HTTP/1.1\r\n\r\n"))[0] == "HTTP/1.1 200 OK"
        following.close()

    play(story)
    assert "the metrics' port is not handed over: Too many open files" in caplog.text
