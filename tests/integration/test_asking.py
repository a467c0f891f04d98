"""One check, asked of real servers and sockets: good ones, wrong ones, and those that hang, trickle or flood."""

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexusd.domain.checks import Said
from nexusd.domain.errors import NotPossible, TimedOut
from nexusd.domain.manifest_sections import Check
from nexusd.domain.module import Module
from nexusd.domain.replica import Replica, Started
from nexusd.system import http_check
from nexusd.system.asking import Asking
from nexusd.system.http_check import BODY_BYTES, HEAD_BYTES
from tests.fakes import module

RUN = "vitals/one#0@1~ab"
REPLICA = Replica("vitals/one", 0, 1, 0.0, wanted=True, state=Started(RUN, 1))
GOOD = Said("healthy")
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class World:
    """Implements `ports.Control` and `ports.Programs`: says what the test wants it to say."""

    def __init__(self, answer: Any = None) -> None:
        self.answer = answer
        self.asked: list[tuple[str, str]] = []

    async def ask(self, run: str, method: str, params: Mapping[str, Any], timeout_s: float) -> Any:
        self.asked.append((run, method))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def check(
        self, run: str, replica: Replica, module: Module, argv: Sequence[str], timeout_s: float
    ) -> Mapping[str, Any] | None:
        if isinstance(self.answer, Exception):
            raise self.answer
        found: Mapping[str, Any] | None = self.answer
        return found


def ask(check: Check, world: World | None = None, timeout_s: float = 5.0, folder: str = "/") -> Said | None:
    one = module("vitals/one")
    one = Module(one.id, folder, one.definition, 0.0)
    world = world or World()
    return asyncio.run(Asking(world, world).ask(check, REPLICA, one, timeout_s))


def asked_of(serve: Serve, path: str = "/", timeout_s: float = 5.0) -> tuple[Said | None, float]:
    """What an HTTP check of such a server comes to, and how long it took."""

    async def story() -> tuple[Said | None, float]:
        async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await serve(reader, writer)
            except (ConnectionError, asyncio.IncompleteReadError):
                pass  # the check has hung up
            finally:
                writer.close()

        server = await asyncio.start_server(served, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        world, began = World(), time.monotonic()
        check = Check(http=f"http://127.0.0.1:{port}{path}")
        said = await Asking(world, world).ask(check, REPLICA, module("vitals/one"), timeout_s)
        took_s = time.monotonic() - began
        server.close()
        return said, took_s

    return asyncio.run(story())


def answering(answer: bytes) -> Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()

    return serve


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (OK, GOOD),
        (b"HTTP/1.0 204 No Content\r\n\r\n", GOOD),
        (b"HTTP/1.1 302 Found\r\nLocation: http://elsewhere/\r\n\r\n", GOOD),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, GOOD),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", GOOD),
        (b"HTTP/1.1 404 Nope\r\nContent-Length: 0\r\n\r\n", "404 Not Found"),
        (b"HTTP/1.1 503 X\r\n\r\nno  database\r\n", '503 Service Unavailable: "no database"'),
        (b"HTTP/1.1 503 X\r\n\r\n <!doctype html><p>no</p>", "503 Service Unavailable"),
        (b"HTTP/1.1 503 X\r\n\r\n" + b"n" * 99, f'503 Service Unavailable: "{"n" * 80}…"'),
        (b"HTTP/1.1 599 X\r\n\r\n", "599"),
        (b"HTTP/2 200\r\n\r\n", "it does not speak HTTP/1: it said 'HTTP/2 200'"),
        (b"HTTP/1.1 2x0 OK\r\n\r\n", "it does not speak HTTP/1: it said 'HTTP/1.1 2x0 OK'"),
        (b"SSH-2.0-OpenSSH_9\r\n\r\n", "it does not speak HTTP/1: it said 'SSH-2.0-OpenSSH_9'"),
        (b"HTTP/1.1 200", "it hung up after 'HTTP/1.1 200'"),
        (b"", "it hung up without an answer"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * HEAD_BYTES, f"its answer's head is longer than {HEAD_BYTES} bytes"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", GOOD),
        (b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", GOOD),
    ],
)  # fmt: skip
def test_what_an_http_server_may_answer(answer: bytes, said: Said | str) -> None:
    expected = Said("unhealthy", said) if isinstance(said, str) else said
    assert asked_of(answering(answer))[0] == expected


@given(st.binary(max_size=200), st.booleans())
def test_whatever_a_server_says_it_is_a_status_or_no_answer(said: bytes, as_http: bool) -> None:
    async def story() -> None:
        reader = asyncio.StreamReader(limit=HEAD_BYTES)
        reader.feed_data(b"HTTP/1.1 " * as_http + said + b"\r\n\r\n" * as_http)
        reader.feed_eof()
        try:
            status, length = await http_check._head(reader)
        except http_check.NoAnswer as error:
            assert str(error)
        else:
            assert 200 <= status <= 999 and 0 <= length <= BODY_BYTES

    asyncio.run(story())


def test_the_request_is_one_that_every_server_understands() -> None:
    heard: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(OK)

    assert asked_of(serve, "/a%20b/ü?x=1&y=%2f#part")[0] == GOOD
    first, *fields = heard[0].decode().split("\r\n")
    assert first == "GET /a%20b/%C3%BC?x=1&y=%2f HTTP/1.1"
    assert fields[0].startswith("Host: 127.0.0.1:") and "Connection: close" in fields


def test_of_an_answer_of_ten_megabytes_only_the_beginning_is_read() -> None:
    taken = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal taken
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10485760\r\n\r\n")
        for _ in range(160):
            writer.write(b"x" * BODY_BYTES)
            await writer.drain()
            taken += BODY_BYTES

    assert asked_of(serve)[0] == GOOD
    assert taken < 10 * 2**20


def test_a_body_that_trickles_does_not_hold_up_the_verdict() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.01)  # the server's own pace

    said, took_s = asked_of(serve, timeout_s=20)
    assert (said, took_s < 10) == (GOOD, True)


def test_a_head_that_trickles_is_cut_at_the_time_out() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            writer.write(b"X: y\r\n")
            await writer.drain()
            await asyncio.sleep(0.01)  # the server's own pace

    said, took_s = asked_of(serve, timeout_s=0.3)
    assert (said, took_s < 5) == (Said("unhealthy", "no answer within 0.3 s"), True)


def test_a_server_that_accepts_and_says_nothing_is_cut_at_the_time_out() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    assert asked_of(serve, timeout_s=0.2)[0] == Said("unhealthy", "no answer within 0.2 s")


def closed_port() -> int:
    """A port that is ours and that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_nobody_there_is_said_in_words(host: str) -> None:
    port = closed_port()
    for check in (Check(http=f"http://{host}:{port}/"), Check(tcp=f"{host}:{port}")):
        assert ask(check) == Said("unhealthy", "connection refused")


def test_a_name_that_nobody_knows_is_said_in_words() -> None:
    said = ask(Check(tcp="no-such-host.invalid:80"))
    assert said is not None and said.word == "unhealthy" and said.reason and "Errno" not in said.reason


def test_a_socket_that_accepts_is_good(tmp_path: Path) -> None:
    with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as unix:
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        unix.bind(f"{tmp_path}/it.sock")
        assert ask(Check(tcp=f"127.0.0.1:{tcp.getsockname()[1]}")) == GOOD
        assert ask(Check(unix="it.sock"), folder=str(tmp_path)) == Said("unhealthy", "connection refused")
        unix.listen()
        assert ask(Check(unix="it.sock"), folder=str(tmp_path)) == GOOD
        assert ask(Check(unix=f"{tmp_path}/it.sock")) == GOOD
    assert ask(Check(unix=f"{tmp_path}/no.sock")) == Said("unhealthy", "no such file or directory")


# The module's own word

CONTROL = Check(control=True)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"status": "healthy", "reason": None}, GOOD),
        ({"status": "healthy", "reason": "all well"}, GOOD),
        ({"status": "degraded", "reason": "slow"}, Said("degraded", "slow")),
        ({"status": "degraded"}, Said("degraded", "it says that it is degraded")),
        ({"status": "degraded", "reason": "x" * 900_000}, Said("degraded", "x" * 300 + "…")),
        ({"status": "unhealthy", "reason": ["x"]}, Said("unhealthy", "it says that it is unhealthy")),
        (TimedOut("vitals/one#0: no answer to health within 2 s"), Said("unhealthy", "no answer to health within 2 s")),
        (NotPossible("the module does not answer health"), Said("unhealthy", "the module does not answer health")),
    ],
)  # fmt: skip
def test_what_a_module_may_say_of_itself(answer: object, said: Said) -> None:
    world = World(answer)
    assert ask(CONTROL, world) == said
    assert world.asked == [(RUN, "health")]


@pytest.mark.parametrize(
    "answer", [None, "healthy", [], {}, {"status": "fine"}, {"status": None}, {"status": []}]
)
def test_what_is_no_answer_is_a_failed_check(answer: object) -> None:
    said = ask(CONTROL, World(answer))
    assert said is not None and said.word == "unhealthy"
    assert said.reason is not None and said.reason.startswith("its answer to health has no status: ")


# Programs

EXEC = Check(exec=("./check", "x"))
ENDED: dict[str, Any] = {"status": 0, "timed_out": False, "refusal": None, "line": "a line", "flooded": False}
REFUSAL = {"step": "exec", "errno": 2, "reason": "No such file or directory", "about": "/no/check"}


@pytest.mark.parametrize(
    ("ended", "said"),
    [
        ({}, GOOD),
        ({"status": 3 << 8}, Said("unhealthy", "exit status 3, a line")),
        ({"status": 3 << 8, "line": None}, Said("unhealthy", "exit status 3")),
        ({"status": 11, "line": None}, Said("unhealthy", "killed by SIGSEGV")),
        ({"status": None, "timed_out": True}, Said("unhealthy", "not done within 5 s")),
        ({"status": 13, "flooded": True}, Said("unhealthy", "it writes without end")),
        ({"refusal": REFUSAL}, Said("unhealthy", "cannot execute /no/check: No such file or directory")),
    ],
)
def test_what_the_end_of_a_program_means(ended: dict[str, Any], said: Said) -> None:
    assert ask(EXEC, World(ENDED | ended)) == said


def test_a_program_that_was_not_run_to_its_end_says_nothing() -> None:
    assert ask(EXEC, World(None)) is None


def test_a_program_that_can_t_even_be_tried_has_failed() -> None:
    assert ask(EXEC, World(ValueError("no such user: nobody2"))) == Said("unhealthy", "no such user: nobody2")
