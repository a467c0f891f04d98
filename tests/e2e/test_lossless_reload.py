"""mesh/echo under load while it is reloaded again and again: no request may fail, no connection may be lost."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import socket
import threading
from collections import Counter
from collections.abc import Coroutine
from pathlib import Path

import pytest

from nexusctl.client import RpcError
from tests.running_nexus import BOUND_S, Nexus

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "modules" / "mesh" / "echo"
RELOADS = 20
REQUESTS = 20_000
SHORT, LASTING = 12, 8  # clients that connect for each request, clients that stay connected


class Load:
    """Clients in a thread of their own, from the beginning of the with-block to its end."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._over = threading.Event()
        self._more = threading.Condition()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._clients()))
        self.done: Counter[str] = Counter()
        self.failures: list[str] = []

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def until(self, requests: int) -> None:
        with self._more:
            assert self._more.wait_for(lambda: self.done.total() >= requests or self.failures, BOUND_S)

    async def _clients(self) -> None:
        short = (self._connect_each_time(number) for number in range(SHORT))
        await asyncio.gather(*short, *(self._stay(number) for number in range(LASTING)))

    async def _connect_each_time(self, number: int) -> None:
        for count in itertools.takewhile(lambda _: not self._over.is_set(), itertools.count()):
            await self._attempt("short", self._once(f"s{number}-{count}\n".encode()))

    async def _once(self, line: bytes) -> bool:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            return await _asked(reader, writer, line)
        finally:
            writer.close()

    async def _stay(self, number: int) -> None:
        """One connection for the whole of the test. When it is lost, so are all requests to come: that is told."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        for count in itertools.takewhile(lambda _: not self._over.is_set(), itertools.count()):
            line = f"l{number}-{count}\n".encode()
            if not await self._attempt("lasting", _asked(reader, writer, line)):
                break
        writer.close()

    async def _attempt(self, kind: str, request: Coroutine[None, None, bool]) -> bool:
        try:
            async with asyncio.timeout(BOUND_S):
                well = await request
        except (OSError, TimeoutError) as error:
            self.failures.append(f"{kind}: {error!r}")
            return False
        if not well:
            self.failures.append(f"{kind}: closed or another answer")
        with self._more:
            self.done[kind] += 1
            self._more.notify()
        return well


async def _asked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, line: bytes) -> bool:
    writer.write(line)
    return await reader.readline() == line


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@pytest.fixture
def echo(nexus: Nexus, port: int) -> Nexus:
    folder = nexus.modules / "mesh" / "echo"
    shutil.copytree(EXAMPLE, folder)
    manifest = folder / "module.toml"
    manifest.write_text(manifest.read_text().replace("127.0.0.1:7777", f"127.0.0.1:{port}"))
    nexus.start().until_state("mesh/echo", "started")
    return nexus


def reload_with_new_code(nexus: Nexus, number: int, strategy: str) -> None:
    code = nexus.modules / "mesh" / "echo" / "echo.py"
    code.write_text(f"{code.read_text()}\n# {number}\n")
    told = nexus.call("reload_module", module_id="mesh/echo", strategy=strategy)
    assert told["reloaded"] and told["changed"]


def test_twenty_reloads_under_twenty_thousand_requests_lose_none(echo: Nexus, port: int) -> None:
    with Load(port) as load:
        for number in range(RELOADS):
            load.until(number * REQUESTS // RELOADS)
            reload_with_new_code(echo, number, "graceful")
        load.until(REQUESTS)
    assert load.failures == []
    assert min(load.done["short"], load.done["lasting"]) > REQUESTS / 10
    assert echo.status("mesh/echo")["generation"] == RELOADS + 1


def test_rolling_reloads_of_three_replicas_lose_none(echo: Nexus, port: int) -> None:
    echo.call("scale_module", module_id="mesh/echo", replicas=3)
    with Load(port) as load:
        for number in range(3):
            load.until(number * 500)
            reload_with_new_code(echo, number, "rolling")
    assert load.failures == []


def test_a_reload_that_fails_loses_none(echo: Nexus, port: int) -> None:
    code = echo.modules / "mesh" / "echo" / "echo.py"
    code.write_text(code.read_text().replace("self.serve_lines", "self.serve_words"))
    with Load(port) as load:
        load.until(200)
        with pytest.raises(RpcError, match="the old one goes on"):
            echo.call("reload_module", module_id="mesh/echo")
        load.until(1_000)
    assert load.failures == []


def test_half_a_line_goes_along_to_the_next_generation(echo: Nexus, port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), BOUND_S) as client:
        client.sendall(b"whole\nhal")
        assert client.recv(100) == b"whole\n"
        for number in range(3):
            reload_with_new_code(echo, number, "graceful")
        client.sendall(b"ves\n")
        assert client.recv(100) == b"halves\n"


def test_a_plain_stop_ends_an_open_connection_between_two_lines_at_once(echo: Nexus, port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), BOUND_S) as client:
        client.sendall(b"one\n")
        assert client.recv(100) == b"one\n"
        echo.call("stop_module", module_id="mesh/echo")
        assert client.recv(100) == b""
