"""The test's side of aeon_process.py: calls AEON's functions in another process, over the socket or inside."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.running_nexus import BOUND_S, Nexus, ticking

PROGRAM = str(Path(__file__).with_name("aeon_process.py"))


class Raised(Exception):
    """What the function raised there: the names of its classes, and its text."""

    def __init__(self, classes: list[str], text: str) -> None:
        super().__init__(text)
        self.classes = classes


class Calls:
    """`calls("get_status", "mesh/echo")` is what that gave in the other process."""

    def __init__(self, path: Path, process: subprocess.Popen[bytes]) -> None:
        self._socket = _connected(path, process)
        self._lines = self._socket.makefile("rb")

    def __call__(self, name: str, *args: Any, **kwargs: Any) -> Any:
        self._socket.sendall(json.dumps({"name": name, "args": args, "kwargs": kwargs}).encode() + b"\n")
        told = json.loads(self._lines.readline())
        if "raised" in told:
            raise Raised(told["raised"], told["text"])
        return told["result"]

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


class Beside:
    """AEON in a process of its own, beside the daemon."""

    def __init__(self, nexus: Nexus, name: str = "beside") -> None:
        path = nexus.home / f"{name}.ask"
        self._process = subprocess.Popen(
            [sys.executable, PROGRAM, "socket"],
            env={**nexus.environment, "NEXUS_SOCKET": str(nexus.socket), "ASK": str(path)},
            stdin=subprocess.DEVNULL,
        )
        self.calls = Calls(path, self._process)

    def __enter__(self) -> Calls:
        return self.calls

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.calls.close()
        self._process.terminate()
        self._process.wait(BOUND_S)


def start_inside(nexus: Nexus) -> Calls:
    """Start the daemon as an object of AEON's own process. It ends with the daemon, as any nexusd does."""
    path = nexus.home / "inside.ask"
    folders = {"RUNTIME": nexus.runtime, "STATE": nexus.state, "LOGS": nexus.logs, "SOCKET": nexus.socket}
    nexus.environment |= {f"NEXUS_{name}": str(folder) for name, folder in folders.items()}
    nexus.environment |= {"NEXUS_MODULES": str(nexus.modules), "NEXUS_CONFIG_FILE": str(nexus.settings)}
    nexus.environment["ASK"] = str(path)
    nexus.program = [sys.executable, PROGRAM, "inside"]
    nexus.start()
    assert nexus.process is not None
    return Calls(path, nexus.process)


def _connected(path: Path, process: subprocess.Popen[bytes]) -> socket.socket:
    ended = os.pidfd_open(process.pid)
    try:
        for _ in ticking(BOUND_S, f"nobody listens at {path}"):
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(str(path))
                return connection
            except OSError:
                connection.close()
            assert not select.select([ended], [], [], 0.01)[0], f"it left with {process.wait()}"
    finally:
        os.close(ended)
    raise AssertionError("unreachable")
