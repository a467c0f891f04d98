"""A nexusd with folders of its own for one measure, ended and cleared away however the measure ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.processes import children, comm
from nexusctl.client import Client, Unreachable

_LOOK_S = 0.005
_STATUS_S = 0.025  # each look costs nexusd milliseconds while its modules change
_PATIENCE_S = 120.0
_LEAVE_S = 3.0


class Nexusd:
    """Write the fleet into `modules`, then `start`. Sockets lie on tmpfs where there is one, as under /run."""

    def __init__(self, folder: Path, runtime: Path) -> None:
        self.folder = folder
        self.modules = folder / "modules"
        self.modules.mkdir()
        self.socket = str(folder / "nexus.sock")
        self.environment = {
            **os.environ,
            "NEXUS_SOCKET": self.socket,
            "NEXUS_MODULES": str(self.modules),
            "NEXUS_RUNTIME": str(runtime / "run"),
            "NEXUS_STATE": str(folder / "state"),
            "NEXUS_LOGS": str(folder / "logs"),
            "NEXUS_CONFIG_FILE": str(folder / "nexusd.toml"),
        }
        (folder / "nexusd.toml").touch()
        self._process: subprocess.Popen[bytes] | None = None
        self._keeper: int | None = None

    def start(self, *program: str) -> float:
        """Call nexusd. Returns when that was, in monotonic seconds; what it says goes to `out` in its folder.

        program: a Python module that runs nexusd, with its arguments.
        """
        with open(self.folder / "out", "wb") as out:
            began = time.monotonic()
            self._process = subprocess.Popen(
                [sys.executable, "-m", *(program or ("nexusd",))],
                env=self.environment,
                stdout=out,
                stderr=out,
                start_new_session=True,  # Ctrl-C is ours: we end it in good order
            )
        return began

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def keeper_pid(self) -> int:
        """Waits for nexusd to have its one child."""
        while self._keeper is None:
            self._look()
            time.sleep(_LOOK_S)
        return self._keeper

    def client(self) -> Client:
        """A connection, as soon as there is somebody at the other end."""
        while True:
            self._look()
            client = Client(self.socket, timeout=_PATIENCE_S)
            try:
                client.connect()
                return client
            except Unreachable:
                time.sleep(_LOOK_S)

    def status(self) -> dict[str, Any]:
        with self.client() as client:
            status: dict[str, Any] = client.call("get_status")
            return status

    def await_started(self, count: int) -> float:
        """When nexusd first said that so many modules are started."""
        deadline = time.monotonic() + _PATIENCE_S
        with self.client() as client:
            while client.call("get_status")["modules"]["by_state"].get("started", 0) < count:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"not started in {_PATIENCE_S} s: {count} modules")
                time.sleep(_STATUS_S)
            return time.monotonic()

    def stop(self) -> None:
        """As an operator would; what does not end by that is killed."""
        process, self._process = self._process, None
        if process is None:
            return
        keeper = self._keeper or _only_child(process)
        process.terminate()
        try:
            process.wait(_PATIENCE_S)
        finally:  # after an interrupt, too
            _kill(process, keeper)

    def _look(self) -> None:
        """Is it alive? Remember its keeper, which would outlive it."""
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"nexusd ended: {(self.folder / 'out').read_text()[-2000:]}")
        self._keeper = self._keeper or _only_child(self._process)


def _only_child(process: subprocess.Popen[bytes]) -> int | None:
    return next(iter(children(process.pid)), None) if process.poll() is None else None


def _kill(process: subprocess.Popen[bytes], keeper: int | None) -> None:
    """nexusd first, so that it starts no other keeper; then the keeper is held, so that it forks no more."""
    process.kill()
    process.wait()
    if keeper is None or _has_gone(keeper):
        return
    os.kill(keeper, signal.SIGSTOP)
    for pid in (keeper, *children(keeper)):
        os.kill(pid, signal.SIGKILL)
    print(f"keeper {keeper} outlived nexusd by {_LEAVE_S:.0f} s: killed", file=sys.stderr)


def _has_gone(keeper: int) -> bool:
    """Whether the keeper leaves within the time that it is given for that."""
    deadline = time.monotonic() + _LEAVE_S
    while comm(keeper) == "nexus-keeper":
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOOK_S)
    return True


@contextmanager
def nexusd() -> Iterator[Nexusd]:
    tmpfs = "/dev/shm" if os.path.ismount("/dev/shm") else None
    with (
        TemporaryDirectory(prefix="nexusd-bench-") as folder,
        TemporaryDirectory(prefix="nexusd-bench-", dir=tmpfs) as runtime,
    ):
        daemon = Nexusd(Path(folder), Path(runtime))
        try:
            yield daemon
        finally:
            daemon.stop()
