"""journald for tests: one that only listens, and the real one in a mount namespace of its own."""

from __future__ import annotations

import array
import os
import shutil
import socket
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.running_nexus import BOUND_S, ticking

PROGRAM = "/lib/systemd/systemd-journald"
ALONE = "mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/journal /run/log/journal && exec " + PROGRAM


class FakeJournald:
    """Its sockets, as far as they are read."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="nxj-", dir="/tmp"))
        self.folder.chmod(0o755)
        self._streams = socket.socket(socket.AF_UNIX)
        self._records = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        for sock, name in ((self._streams, "stdout"), (self._records, "socket")):
            sock.bind(str(self.folder / name))
            sock.settimeout(BOUND_S)
        self._streams.listen()

    def stream(self) -> Stream:
        """The next program that connects."""
        connection, _ = self._streams.accept()
        connection.settimeout(BOUND_S)
        return Stream(connection)

    def record(self) -> dict[str, str]:
        """The next record, its fields."""
        fds = array.array("i")
        data, rights, _, _ = self._records.recvmsg(1 << 20, socket.CMSG_SPACE(4))
        for _, _, sent in rights:
            fds.frombytes(sent)
        for fd in fds:
            data = os.pread(fd, 1 << 24, 0)
            os.close(fd)
        return decoded(data)

    def close(self) -> None:
        self._streams.close()
        self._records.close()
        shutil.rmtree(self.folder)


class Stream:
    """What one program writes. `header`: the lines before its own."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._rest = b""
        self.header = [self.line() for _ in range(7)]

    def line(self) -> str:
        while b"\n" not in self._rest:
            data = self._connection.recv(1 << 16)
            assert data, "the stream has ended"
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()

    def has_ended(self) -> bool:
        return not self._connection.recv(1 << 16)

    def close(self) -> None:
        self._connection.close()


def decoded(data: bytes) -> dict[str, str]:
    """A record of the native protocol."""
    found = {}
    while data:
        line, _, data = data.partition(b"\n")
        name, sign, value = line.partition(b"=")
        if not sign:
            (length,) = struct.unpack_from("<Q", data)
            value, data = data[8 : 8 + length], data[8 + length + 1 :]
        found[name.decode()] = value.decode()
    return found


class RealJournald:
    """folder: of its sockets, as this process sees them."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.folder = Path(f"/proc/{pid}/root/run/systemd/journal")

    def lines(self, *matches: str) -> list[str]:
        command = [
            "nsenter",
            "-t",
            str(self._pid),
            "-m",
            "journalctl",
            "--no-pager",
            "-q",
            "-o",
            "cat",
            *matches,
        ]
        return subprocess.run(command, capture_output=True, text=True, timeout=BOUND_S).stdout.splitlines()

    def until(self, line: str, *matches: str) -> None:
        for _ in ticking(BOUND_S, f"{line!r} is not in the journal"):
            if line in self.lines(*matches):
                return


@contextmanager
def real_journald() -> Iterator[RealJournald]:
    """Skips where it can't be had."""
    missing = [name for name in (PROGRAM, "unshare", "nsenter", "journalctl") if shutil.which(name) is None]
    if missing or os.getuid() != 0:
        pytest.skip(f"no journald of our own: {', '.join(missing) or 'mounting takes root'}")
    with subprocess.Popen(["unshare", "-m", "sh", "-c", ALONE], stderr=subprocess.PIPE) as process:
        found = RealJournald(process.pid)
        try:
            for _ in ticking(BOUND_S, "journald does not open its sockets"):
                if process.poll() is not None:
                    assert process.stderr is not None
                    pytest.skip(f"journald does not run here: {process.stderr.read().decode().strip()}")
                # Before it has mounted its own, /run is that of this machine.
                if Path(f"/proc/{process.pid}/comm").read_text() == "systemd-journal\n" and all(
                    (found.folder / name).exists() for name in ("stdout", "socket")
                ):
                    break
            yield found
        finally:
            process.kill()
