"""What the event loop complains of, as nexusd's log tells it."""

import asyncio
import contextlib
import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from nexusd.rpc.dispatch import Dispatcher
from nexusd.rpc.server import RpcServer
from nexusd.system.own_log import LoopComplaints

RETRY_S = 20.0


@contextlib.contextmanager
def no_descriptor_left() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 1, hard))
    filling = []
    try:
        with contextlib.suppress(OSError):
            while True:
                filling.append(os.open("/dev/null", os.O_RDONLY))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for file in filling:
            os.close(file)


def test_without_a_free_descriptor_one_line_is_logged_and_the_client_waits_for_its_turn(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(LoopComplaints())
        server = RpcServer(Dispatcher([], authorise=lambda _caller, _name: None))
        await server.serve(tmp_path / "s")
        client = socket.socket(socket.AF_UNIX)
        with no_descriptor_left():
            client.connect(str(tmp_path / "s"))
            while not caplog.records:
                await asyncio.sleep(0)
        async with asyncio.timeout(RETRY_S):
            while not server.connections:
                await asyncio.sleep(0.01)
        client.close()
        await server.close(0)

    asyncio.run(story())
    assert [record.getMessage() for record in caplog.records] == [
        "no connection can be accepted, tried again every second: Too many open files"
    ]


def test_any_other_complaint_is_asyncios_own(caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(LoopComplaints())
        loop.call_exception_handler({"message": "something else", "exception": ValueError("x")})

    asyncio.run(story())
    assert [record.getMessage() for record in caplog.records] == ["something else"]
