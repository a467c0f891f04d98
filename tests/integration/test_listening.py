"""Opening the sockets that manifests ask for, against the kernel."""

import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from nexusd.system.listening import open_socket, socket_name


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="nx") as folder:
        yield Path(folder)


def listening(entry: str) -> socket.socket:
    return socket.socket(fileno=open_socket(entry))


@pytest.mark.parametrize("entry", ["tcp:127.0.0.1:0", "web=tcp:127.0.0.1:0", "tcp:localhost:0"])
def test_a_tcp_socket_accepts(entry: str) -> None:
    with listening(entry) as server, socket.create_connection(server.getsockname()[:2]):
        assert server.accept()[0].close() is None
        assert not os.get_inheritable(server.fileno())


def test_an_ipv6_socket_accepts() -> None:
    if not os.path.exists("/proc/net/if_inet6"):
        pytest.skip("no IPv6 here")
    with listening("tcp:[::1]:0") as server, socket.create_connection(server.getsockname()[:2]):
        assert server.accept()[0].close() is None


def test_a_unix_socket_accepts_and_a_stale_one_is_replaced(place: Path) -> None:
    for _ in range(2):  # the first leaves its file behind
        with listening(f"unix:{place}/s") as server, socket.socket(socket.AF_UNIX) as client:
            client.connect(str(place / "s"))
            assert server.accept()[0].close() is None


def test_a_living_socket_is_not_stolen_even_when_it_accepts_nobody(place: Path) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(place / "s"))
        other.listen(0)
        waiting = [socket.socket(socket.AF_UNIX) for _ in range(3)]
        for client in waiting:
            client.setblocking(False)
            client.connect_ex(str(place / "s"))
        with pytest.raises(OSError, match=r"cannot listen on unix:.*: Address already in use"):
            open_socket(f"unix:{place}/s")
        for client in waiting:
            client.close()


@pytest.mark.parametrize("kind", ["a file", "a folder", "a datagram socket"])
def test_what_is_no_stale_socket_is_left_alone(place: Path, kind: str) -> None:
    path = place / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams:
        if kind == "a file":
            path.write_text("precious")
        elif kind == "a folder":
            path.mkdir()
        else:
            datagrams.bind(str(path))
        with pytest.raises(OSError, match="Address already in use"):
            open_socket(f"unix:{path}")
    assert path.exists()


def test_what_stands_in_the_way_is_told_with_the_entry(place: Path) -> None:
    with listening("tcp:127.0.0.1:0") as server:
        entry = f"web=tcp:127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(OSError, match=f"cannot listen on {entry}: Address already in use"):
            open_socket(entry)
    with pytest.raises(OSError, match=r"cannot listen on unix:.*/gone/s: No such file or directory"):
        open_socket(f"unix:{place}/gone/s")
    with pytest.raises(
        OSError, match=r"cannot listen on tcp:198.51.100.1:80: Cannot assign requested address"
    ):
        open_socket("tcp:198.51.100.1:80")


def test_failures_leave_no_descriptor(place: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for entry in (f"unix:{place}/gone/s", "tcp:198.51.100.1:80"):
        with pytest.raises(OSError):
            open_socket(entry)
    assert len(os.listdir("/proc/self/fd")) == before


def test_sockets_are_held_by_module_and_entry() -> None:
    assert socket_name("test/one", "tcp::80") != socket_name("test/two", "tcp::80")
