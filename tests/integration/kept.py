"""A real keeper for tests, with its client, in folders of its own; what it says is awaited one by one."""

import asyncio
import contextlib
import ctypes
import os
import select
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any, Self

from nexusd.keeper import proctable
from nexusd.keeper.client import KeeperClient
from nexusd.keeper.proctable import PR_SET_CHILD_SUBREAPER

PATIENCE_S = 20.0
POLL_S = 0.005
Message = dict[str, Any]


class ThirdHolder:
    """Holds descriptors as systemd does."""

    def __init__(self) -> None:
        self.held: dict[str, int] = {}
        self.stored: dict[str, int] = {}

    def keep(self, name: str, fd: int) -> None:
        assert name not in self.held
        self.held[name] = os.dup(fd)

    def drop(self, name: str) -> None:
        if name in self.held:
            os.close(self.held.pop(name))


class Kept:
    """`with Kept() as kept:` has its welcome behind it. Leaving it ends the runs and the keeper."""

    def __init__(self, hung_s: float = 10.0) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="nxk"))
        (self.home / "r").mkdir()
        self.keeper_log = self.home / "keeper.log"
        self.hung_s = hung_s
        self.loop = asyncio.new_event_loop()
        self.unheard: list[Message] = []
        self.client: KeeperClient | None = None
        self.third: ThirdHolder | None = None

    def __enter__(self) -> Self:
        _be_subreaper(True)
        self.connect()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._end_runs()
        finally:
            for pid in processes_of(self.home):
                os.kill(pid, signal.SIGKILL)
            self.leave()
            self.loop.close()
            _reap_all()
            _be_subreaper(False)
            shutil.rmtree(self.home)

    def _end_runs(self) -> None:
        """All that is known of is killed and forgotten; then the keeper is told to go, and does."""
        if self.client is None:
            self.connect()
        for key in self.keys():
            self.kept.kill(key)
            self.kept.forget(key)
        for name in self.kept.held_names():
            self.kept.release(name)
        for name in list(self.kept._notes):
            self.kept.note(name, None)
        keeper = self.kept.pid
        assert keeper is not None
        self.kept.dismiss()
        await_end(keeper)
        assert not (self.home / "keeper.sock").exists()

    @property
    def kept(self) -> KeeperClient:
        assert self.client is not None
        return self.client

    @property
    def keeper(self) -> int:
        assert self.kept.pid is not None
        return self.kept.pid

    def connect(self) -> list[Message]:
        """A new nexusd. Returns the table that it is told."""
        self.unheard.clear()
        if self.third is not None:
            self.third.stored = {name: os.dup(fd) for name, fd in self.third.held.items()}
        self.client = KeeperClient(
            str(self.home), str(self.keeper_log), self._hear, self.hung_s, store=self.third
        )
        self.do(_call(self.client.open))
        return self.table()

    def table(self) -> list[Message]:
        """The rest of the table, to its end."""
        rows = []
        while (message := self.next())["say"] != "welcome":
            rows.append(message)
        return rows

    def leave(self) -> None:
        """nexusd is gone, as if killed."""
        if self.client is not None:
            self.client.close()
            self.client = None

    def _hear(self, message: Message) -> None:
        self.unheard.append(message)

    def keys(self) -> list[str]:
        return self.kept.keys()

    # Waiting

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    def wait(self, is_so: Callable[[], object]) -> None:
        """Let the client work until it is so. For what nobody tells: bytes in a file, a process that is gone."""
        assert self.do(_until(is_so)), f"it did not come about; unheard: {self.unheard}"

    def next(self) -> Message:
        self.wait(lambda: self.unheard)
        return self.unheard.pop(0)

    def until(self, say: str, run: str | None = None) -> Message:
        """The next such message; others before it are passed over."""
        while True:
            message = self.next()
            if message["say"] == say and run in (None, message.get("run")):
                return message

    def all_said(self, say: str, runs: Iterable[str]) -> list[Message]:
        """Such a message of each run, in the order in which they came."""
        missing, found = set(runs), []
        while missing:
            message = self.next()
            if message["say"] == say and message["run"] in missing:
                missing.remove(message["run"])
                found.append(message)
        return found

    def kill_keeper(self) -> None:
        os.kill(self.keeper, signal.SIGKILL)

    def replace_keeper(self) -> list[Message]:
        """Kill it, and return the table of its successor."""
        self.kill_keeper()
        self.until("lost")
        return self.table()

    def settle(self) -> None:
        """Whatever the keeper was asked before, it has done."""
        self.kept.note("settle", os.urandom(4).hex())
        journal = self.home / "keeper.journal"
        wanted = self.kept._notes["settle"]
        self.wait(lambda: journal.exists() and wanted in journal.read_text())

    # Runs

    def launch(self, key: str, *argv: str, **more: Any) -> Message:
        environment = {
            "PATH": os.environ["PATH"],
            "NEXUS_RUN": key,
            "NEXUS_MODULE_ID": "test/module",
            "NEXUS_REPLICA": "0",
            "NEXUS_CONFIG": str(self.home / "config.json"),
            "NOTIFY_SOCKET": str(self.path(key, "notify")),
        }
        return {
            "argv": list(argv),
            "directory": str(self.home),
            "log": {"path": str(self.log_path(key)), "max_bytes": 10 << 20, "files": 3},
            "notify_path": str(self.path(key, "notify")),
            "control_path": str(self.path(key, "control")),
            **more,
            "environment": environment | more.get("environment", {}),
        }

    def path(self, key: str, kind: str) -> Path:
        return self.home / "r" / f"{key}.{kind}"

    def log_path(self, key: str) -> Path:
        return self.home / "logs" / f"{key}.log"

    def log(self, key: str) -> str:
        path = self.log_path(key)
        return path.read_text() if path.exists() else ""

    def spawn(self, key: str, *argv: str, listening: Iterable[str] = (), **more: Any) -> None:
        self.kept.spawn(key, self.launch(key, *argv, **more), listening)

    def start(self, key: str, *argv: str, **more: Any) -> int:
        """Spawn it, await its first instruction, return its pid."""
        self.spawn(key, *argv, **more)
        spawned = self.until("spawned", key)
        if not spawned["running"]:
            self.until("running", key)
        return int(spawned["entry"]["pid"])

    def run(self, key: str, *argv: str, **more: Any) -> Message:
        """Spawn it, await its end, forget it. Returns how it ended; its log is there."""
        self.spawn(key, *argv, **more)
        exited = self.until("exited", key)
        self.kept.forget(key)
        return exited

    def spare(self) -> int | None:
        """The pid of the process that the keeper has ready for the next Python module."""
        for pid in proctable.children(self.keeper):
            if Path(f"/proc/{pid}/comm").read_text() == "nexus-spare\n":
                return pid
        return None

    def await_spare(self) -> int:
        self.kept.warm()
        self.wait(self.spare)
        pid = self.spare()
        assert pid is not None
        return pid

    def sh(self, key: str, script: str, **more: Any) -> str:
        """Run a shell script to its end; returns what it wrote."""
        self.run(key, "/bin/sh", "-c", script, **more)
        return self.log(key)


async def _call(function: Callable[[], object]) -> None:
    function()


async def _until(is_so: Callable[[], object]) -> bool:
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(POLL_S)
    return True


def await_end(pid: int) -> None:
    """Until the process is gone or a zombie."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([pidfd], [], [], PATIENCE_S)[0], f"{pid} does not end"
    finally:
        os.close(pidfd)


def is_alive(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] not in "ZX"


def processes_of(home: Path) -> list[int]:
    """The living processes that have this folder in their command line, their environment or as their own."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            text = (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
            is_ours = str(home).encode() in text or os.readlink(folder / "cwd") == str(home)
        except OSError:
            continue
        if is_ours and is_alive(int(folder.name)):
            found.append(int(folder.name))
    return found


def open_fds(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def _be_subreaper(yes: bool) -> None:
    """As nexusd is one: what loses its keeper becomes ours."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, int(yes), 0, 0, 0)


def _reap_all() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
