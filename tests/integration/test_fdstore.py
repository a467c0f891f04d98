"""systemd's store of descriptors: what is put there arrives, also when systemd is slow to read."""

from __future__ import annotations

import array
import asyncio
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from nexusd.system.fdstore import DescriptorStore, readable

BOUND_S = 20.0


@pytest.fixture
def ear(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(BOUND_S)
        yield sock


def heard(ear: socket.socket) -> tuple[dict[str, str], str | None]:
    """The words, and what the descriptor that came with them leads to."""
    words, rights, _, _ = ear.recvmsg(4096, socket.CMSG_SPACE(4))
    numbers = array.array("i", b"".join(sent for _, _, sent in rights))
    place = os.readlink(f"/proc/self/fd/{numbers[0]}") if numbers else None
    for number in numbers:
        os.close(number)
    return dict(line.split("=", 1) for line in words.decode().splitlines()), place


def test_a_descriptor_is_kept_under_a_name_that_systemd_takes_and_dropped_by_it(ear: socket.socket) -> None:
    async def story() -> None:
        store = DescriptorStore(ear.getsockname(), {})
        with open(os.devnull) as file:
            store.keep("listen=a/net tcp:127.0.0.1:80", file.fileno())
        store.drop("listen=a/net tcp:127.0.0.1:80")
        store.close()

    asyncio.run(story())
    kept, place = heard(ear)
    assert (kept["FDSTORE"], kept["FDPOLL"], place) == ("1", "0", os.devnull)
    assert not set(kept["FDNAME"]) & set(": ")
    assert readable(kept["FDNAME"]) == "listen=a/net tcp:127.0.0.1:80"
    assert heard(ear) == ({"FDSTOREREMOVE": "1", "FDNAME": kept["FDNAME"]}, None)


def test_what_a_slow_systemd_does_not_take_waits_for_its_turn(ear: socket.socket) -> None:
    """Among it descriptors that have been closed meanwhile."""

    async def story() -> list[str]:
        store = DescriptorStore(ear.getsockname(), {})
        for number in range(1000):  # more than any queue of datagrams holds
            with open(os.devnull) as file:
                store.keep(f"log={number}", file.fileno())
        names = [(await asyncio.to_thread(heard, ear))[0]["FDNAME"] for _ in range(1000)]
        store.close()
        return names

    assert asyncio.run(story()) == [f"log%3D{number}" for number in range(1000)]


def test_without_systemd_nothing_is_kept_and_nothing_complained_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        for address in ("", str(tmp_path / "nobody")):
            store = DescriptorStore(address, {})
            for _ in range(2):
                store.keep("log=a", 0)
            store.close()

    with caplog.at_level(logging.INFO):
        asyncio.run(story())
    assert [record.getMessage() for record in caplog.records] == [
        "systemd takes no descriptors: No such file or directory"
    ]
