"""A real nexusd in folders of its own: started, asked, killed and cleared away for the end-to-end tests.

Waits are for events (the API's, a fifo's, a process's end), each with a generous bound; nothing sleeps.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nexusctl.client import Client, Unreachable

BOUND_S = 20.0
CONNECT_EVERY_S = 0.01
SETTINGS = '[metrics]\nlisten = "off"\n'
INTERPRETER = f"#!{sys.executable} -ISs\n"

Status = dict[str, Any]


class Nexus:
    """One nexusd and all that it starts, known by a variable in their environment."""

    def __init__(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="nx-", dir="/tmp"))
        self.home.chmod(0o755)
        self.modules = self.home / "modules"
        self.modules.mkdir()
        self.runtime, self.state, self.logs = (self.home / name for name in ("run", "state", "logs"))
        self.socket = self.home / "nexus.sock"
        self.log_path = self.home / "nexusd.log"
        self.settings = self.home / "nexusd.toml"
        self.settings.write_text(SETTINGS)
        self.bell = Fifo(self.home / "bell")
        self.program = [sys.executable, "-m", "nexusd"]
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("NEXUS_")},
            "BELL": str(self.bell.path),
            "E2E_HOME": str(self.home),
            "PYTHONPATH": os.getcwd(),
        }
        self.process: subprocess.Popen[bytes] | None = None
        self.tracebacks_expected = False
        self._client: Client | None = None

    # The daemon

    def launch(self) -> subprocess.Popen[bytes]:
        """Start the daemon and wait for nothing."""
        self._forget_client()
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment,
                start_new_session=True,
            )
        return self.process

    def command(self) -> list[str]:
        folders = {"runtime": self.runtime, "state": self.state, "logs": self.logs, "socket": self.socket}
        options = [f"--{name}={folder}" for name, folder in folders.items()]
        return [*self.program, f"--config={self.settings}", f"--modules={self.modules}", *options]

    def start(self) -> Nexus:
        """Start the daemon and wait until it answers."""
        process = self.launch()
        ended = os.pidfd_open(process.pid)
        try:
            for _ in ticking(BOUND_S, "nexusd does not answer"):
                if self._answers():
                    return self
                if select.select([ended], [], [], CONNECT_EVERY_S)[0]:
                    raise AssertionError(f"nexusd left with {process.wait()}:\n{self.log()}")
        finally:
            os.close(ended)
        raise AssertionError("unreachable")

    def _answers(self) -> bool:
        try:
            with Client(self.socket, timeout=BOUND_S) as client:
                return bool(client.call("check_liveness")["live"])
        except Unreachable:
            return False

    def kill(self, number: int = signal.SIGKILL) -> None:
        assert self.process is not None
        self.process.send_signal(number)
        self.wait()

    def wait(self, bound_s: float = BOUND_S) -> int:
        """The daemon's exit status once it has gone."""
        assert self.process is not None
        status = self.process.wait(bound_s)
        self._forget_client()
        return status

    def restart(self) -> Nexus:
        self.kill(signal.SIGTERM)
        return self.start()

    def kill_keeper(self) -> None:
        """kill -9, and wait until nexusd has another."""
        former = self.keeper_pid
        with self.events() as events:
            os.kill(former, signal.SIGKILL)
            events.find(lambda event: event["kind"] == "keeper.connected")
        assert self.keeper_pid != former

    def kill_both(self) -> None:
        """kill -9 of nexusd and of its keeper, as near to at once as can be."""
        keeper = self.keeper_pid
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGSTOP)  # so that it starts no new keeper in between
        os.kill(keeper, signal.SIGKILL)
        self.kill()
        wait_gone(keeper)

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def keeper_pid(self) -> int:
        pid: int = self.status()["keeper"]["pid"]
        return pid

    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    # Its modules

    def add_module(self, module_id: str, manifest: str, files: Mapping[str, str] | None = None) -> Path:
        """Write a module's folder; a text that begins with #! becomes a program."""
        folder = self.modules / module_id
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in {"module.toml": manifest, **(files or {})}.items():
            (folder / name).write_text(text)
            (folder / name).chmod(0o755 if text.startswith("#!") else 0o644)
        return folder

    def add_program(self, module_id: str, text: str, manifest: str = "", run: str = "") -> Path:
        """A module that is one program beside its manifest."""
        return self.add_module(
            module_id, f'{manifest}\n[run]\nexec = ["./program"]\n{run}\n', {"program": text}
        )

    def add_python(self, module_id: str, text: str, manifest: str = "") -> Path:
        """A module that is the class Module in module_code.py."""
        files = {"module_code.py": text}
        return self.add_module(module_id, f'{manifest}\n[run]\npython = "module_code:It"\n', files)

    # The API

    @property
    def client(self) -> Client:
        if self._client is None:
            self._client = Client(self.socket, timeout=BOUND_S)
        return self._client

    def call(self, method: str, **params: Any) -> Any:
        return self.client.call(method, params)

    def status(self, module_id: str | None = None) -> Status:
        found: Status = self.call("get_status", **({"module_id": module_id} if module_id else {}))
        return found

    def replica(self, module_id: str, place: int = 0) -> Status:
        found: Status = self.status(module_id)["instances"][place]
        return found

    def pid_of(self, module_id: str, place: int = 0) -> int:
        pid: int = self.replica(module_id, place)["pid"]
        return pid

    def ctl(
        self, *arguments: str, uid: int | None = None, bound_s: float = 30
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*(as_user(uid) if uid is not None else ()), *self.ctl_command(*arguments)],
            env={**self.environment, "NEXUS_SOCKET": str(self.socket)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=bound_s,
        )

    @staticmethod
    def ctl_command(*arguments: str) -> list[str]:
        return [sys.executable, "-m", "nexusctl", *arguments]

    @contextmanager
    def events(self) -> Iterator[Events]:
        """The events from now on."""
        with Client(self.socket, timeout=BOUND_S) as client:
            yield Events(client)

    def until(self, module_id: str, done: Callable[[Status], Any], bound_s: float = BOUND_S) -> Status:
        """The module's status once `done` holds of it; looked at again after each event."""
        deadline = time.monotonic() + bound_s
        with self.events() as events:
            while not done(status := self.status(module_id)):
                left = deadline - time.monotonic()
                assert left > 0, f"{module_id} in vain: {status}\n{self.log()}"
                events.next(left, f"{module_id}: {status}")
        return status

    def until_state(self, module_id: str, state: str, bound_s: float = BOUND_S) -> Status:
        return self.until(module_id, lambda status: status["state"] == state, bound_s)

    def history(self, module_id: str) -> list[Status]:
        events: list[Status] = self.call("get_history", module_id=module_id, limit=1000)["events"]
        return events

    def states(self, module_id: str) -> list[str]:
        """The states that the module has gone through."""
        return [event["to"] for event in self.history(module_id) if event["kind"] == "module.state"]

    def wait_log(self, module_id: str, text: str, bound_s: float = BOUND_S) -> str:
        """The first line of the module's log that holds the text."""
        with Client(self.socket, timeout=BOUND_S) as client:
            first = client.call("get_logs", {"module_id": module_id, "lines": 1000, "follow": True})
            lines = [row["line"] for row in first["lines"]]
            while not (found := [line for line in lines if text in line]):
                try:
                    lines = client.next_notification(timeout=bound_s)["lines"]
                except Unreachable as error:
                    raise AssertionError(f"{text!r} is not in the log of {module_id}: {error}") from error
        return str(found[0])

    def log_lines(self, module_id: str, index: int = 0) -> list[str]:
        """All lines that the disk has of a replica, rotated files first."""
        newest = self.logs / module_id / f"{index}.log"
        while True:
            files = sorted(newest.parent.glob(f"{index}.log.*"), key=lambda one: -int(one.suffix[1:]))
            files += [newest] if newest.exists() else []
            try:
                return "".join(path.read_text(errors="replace") for path in files).splitlines()
            except FileNotFoundError:
                continue  # it was just being turned over

    def _forget_client(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    # The end

    def processes(self) -> dict[int, str]:
        """What lives of this nexusd: pids and command lines."""
        return {pid: line for pid, line in all_processes(f"E2E_HOME={self.home}") if pid != os.getpid()}

    def close(self) -> None:
        """Stop everything, as an operator would; then nothing may be left, and nothing may have gone wrong."""
        try:
            if self.process is not None and self._ended_by_force():
                self.start()
            if self.process is not None and self.process.poll() is None:
                self.kill(signal.SIGTERM)
            self._check_the_end()
        finally:
            for pid in self.processes():
                os.kill(pid, signal.SIGKILL)
            if self.process is not None:
                self.process.wait(BOUND_S)
            sys.stdout.write(self.log())  # pytest shows it when the test failed
            self.bell.close()
            shutil.rmtree(self.home, ignore_errors=True)

    def _ended_by_force(self) -> bool:
        assert self.process is not None
        return self.process.poll() == -signal.SIGKILL

    def _check_the_end(self) -> None:
        left = self.processes()
        for pid in left:
            wait_gone(pid, 2.0, left[pid])
        assert not self.socket.exists(), "the socket is still there"
        complaints = self.log() + self._keeper_log()
        assert self.tracebacks_expected or "Traceback" not in complaints, complaints

    def _keeper_log(self) -> str:
        path = self.logs / "keeper.log"
        return path.read_text() if path.exists() else ""


class Events:
    """A subscription of its own connection."""

    def __init__(self, client: Client) -> None:
        self._subscription = client.subscribe("subscribe_events", {})

    def next(self, bound_s: float = BOUND_S, about: str = "an event") -> Status:
        try:
            event: Status = self._subscription.next(bound_s)["event"]
        except Unreachable as error:
            raise AssertionError(f"waited in vain for {about}: {error}") from error
        return event

    def find(self, wanted: Callable[[Status], Any], bound_s: float = BOUND_S) -> Status:
        deadline = time.monotonic() + bound_s
        seen = []
        while True:
            event = self.next(max(deadline - time.monotonic(), 0.01), f"one beyond {seen}")
            if wanted(event):
                return event
            seen.append(event)


class Fifo:
    """Lines between a test and the modules: `hear` takes the next one, `say` leaves one to be read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        os.mkfifo(path)
        path.chmod(0o666)
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._rest = b""

    def hear(self, bound_s: float = BOUND_S) -> str:
        deadline = time.monotonic() + bound_s
        while b"\n" not in self._rest:
            ready, _, _ = select.select([self._fd], [], [], max(deadline - time.monotonic(), 0))
            assert ready, f"nobody rang within {bound_s} s"
            self._rest += os.read(self._fd, 65536)
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()

    def say(self, text: str = "go") -> None:
        os.write(self._fd, text.encode() + b"\n")

    def close(self) -> None:
        os.close(self._fd)


def all_processes(marked: str) -> Iterator[tuple[int, str]]:
    """Those with this variable in the environment they were started with."""
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            variables = Path(f"/proc/{name}/environ").read_bytes().split(b"\0")
            if marked.encode() in variables:
                yield int(name), Path(f"/proc/{name}/cmdline").read_text().replace("\0", " ")
        except OSError:
            continue


def as_user(uid: int) -> list[str]:
    """To put before a command. It may read all (the interpreter may lie in root's home), and write nothing more."""
    caps = "-all,+dac_read_search"
    user = [f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
    return ["setpriv", *user, f"--inh-caps={caps}", f"--ambient-caps={caps}"]


def is_alive(pid: int) -> bool:
    """A zombie has ended."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_gone(pid: int, bound_s: float = BOUND_S, about: str = "") -> None:
    """Until the process has ended, told by its pidfd."""
    try:
        watched = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([watched], [], [], bound_s)[0], f"process {pid} goes on: {about}"
    finally:
        os.close(watched)


def ticking(bound_s: float, about: str) -> Iterator[None]:
    """Rounds of a loop until the bound is over."""
    deadline = time.monotonic() + bound_s
    while time.monotonic() < deadline:
        yield
    raise AssertionError(about)
