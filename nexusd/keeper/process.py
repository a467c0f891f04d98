"""The keeper: parent of every replica. It forks, reaps, signals, moves log bytes, holds descriptors, remembers.

It has no policy: what runs, when and how often is nexusd's to say (`client`, words in `protocol`). While
nexusd is away it goes on reaping, draining logs and collecting notifications, and tells them when asked.
"""

import argparse
import os
import resource
import selectors
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from nexusd.keeper import birth, proctable, protocol
from nexusd.keeper.journal import Journal
from nexusd.keeper.logfile import LogFile
from nexusd.keeper.protocol import Message

READ_BYTES = 1 << 20
NOTICE_BYTES = 4096
MOST_UNSENT = 20_000  # packets; a nexusd this far behind is let go, and takes the whole table when it is back
SWEEP_S = 0.05  # how often a run that is being killed is looked for again


@dataclass(slots=True)
class Run:
    """One process of a module with all that was started below it, from fork until nexusd forgets it."""

    key: str
    pid: int
    start_ticks: int
    log: Message  # path, max_bytes, files
    notify_path: str
    control_path: str
    is_child: bool = True
    log_fd: int = -1
    notify: socket.socket | None = None
    gate: socket.socket | None = None
    pidfd: int = -1
    notices: dict[str, str] = field(default_factory=dict)
    refusal: Message | None = None
    running: bool = False
    ended: Message | None = None  # {"status": wait status or None when unknown, "at": monotonic seconds}

    def entry(self) -> Message:
        """What the journal keeps."""
        names = ("key", "pid", "start_ticks", "log", "notify_path", "control_path")
        return {name: getattr(self, name) for name in names}

    def told(self) -> Message:
        """The run as the table tells it."""
        return {
            "say": "run",
            "run": self.key,
            "entry": self.entry(),
            "running": self.running,
            "notices": self.notices,
            "ended": self.ended,
            "refusal": self.refusal,
        }

    @property
    def log_path(self) -> str:
        return str(self.log["path"])

    def process(self) -> proctable.Stat:
        return proctable.Stat(self.pid, "", 0, 0, self.start_ticks)


class Keeper:
    def __init__(self, runtime: str, server: socket.socket) -> None:
        self._runtime = runtime
        self._server = server
        self._boot = proctable.boot_id()
        self._journal = Journal(os.path.join(runtime, "keeper.journal"))
        self._title = proctable.Title()
        self._selector = selectors.DefaultSelector()
        self._runs: dict[str, Run] = {}
        self._by_pid: dict[int, Run] = {}
        self._notes: dict[str, str] = {}
        self._held: dict[str, int] = {}
        self._logs: dict[str, LogFile] = {}
        self._sweeping: set[str] = set()
        self._client: socket.socket | None = None
        self._outbox: deque[tuple[bytes, tuple[int, ...]]] = deque()
        self._buffer = memoryview(bytearray(READ_BYTES))
        self._recovered = False
        self._warm = False
        self._leaving = False
        self._soft_files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._words: dict[str, Callable[[Message, list[int]], None]] = {
            "adopt": self._adopt,
            "hello": self._hello,
            "spawn": self._spawn,
            "signal": self._signal,
            "kill": self._kill,
            "forget": self._forget,
            "note": self._note,
            "hold": self._hold,
            "release": self._release,
            "warm": self._warm_up,
            "ping": self._ping,
            "leave": self._leave,
        }

    # The loop

    def serve(self) -> None:
        """Until nexusd says leave, or until nobody is served and nothing is kept."""
        self._title.show("nexus-keeper", f"nexus-keeper {self._runtime}")
        proctable.become_subreaper()
        self._raise_file_limit()
        self._watch_server()
        self._watch_children()
        while not self._leaving:
            for entry, mask in self._selector.select(self._patience()):
                # What was closed earlier in this pass is not asked, nor what took its number since.
                if self._selector.get_map().get(entry.fd) is entry:
                    entry.data(mask)
            self._sweep_all()
        self._go()

    def _patience(self) -> float | None:
        if self._sweeping:
            return SWEEP_S
        return 1.0 if any(log.trouble for log in self._logs.values()) else None

    def _raise_file_limit(self) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != hard:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    def _watch_server(self) -> None:
        self._server.setblocking(False)
        self._watch(self._server.fileno(), self._accept)

    def _watch_children(self) -> None:
        ears, mouth = socket.socketpair()
        ears.setblocking(False)
        mouth.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(mouth.fileno(), warn_on_full_buffer=False)
        self._ears = (ears, mouth)
        self._watch(ears.fileno(), self._reap)

    def _watch(self, fd: int, ready: Callable[[int], object]) -> None:
        self._selector.register(fd, selectors.EVENT_READ, ready)

    # nexusd

    def _accept(self, _mask: int) -> None:
        client, _ = self._server.accept()
        if protocol.peer_uid(client) not in (0, os.getuid()):
            client.close()
            return
        self._drop_client()
        client.setblocking(False)
        self._client = client
        self._watch(client.fileno(), self._serve_client)

    def _drop_client(self) -> None:
        if self._client is None:
            return
        self._selector.unregister(self._client.fileno())
        self._client.close()
        self._client = None
        self._outbox.clear()
        if not self._runs and not self._held:
            self._leaving = True

    def _serve_client(self, mask: int) -> None:
        if mask & selectors.EVENT_WRITE:
            self._flush()
        if mask & selectors.EVENT_READ and self._client is not None:
            self._hear()

    def _hear(self) -> None:
        assert self._client is not None
        try:
            received = protocol.receive(self._client)
        except BlockingIOError:
            return
        except (OSError, ValueError) as error:
            self._complain(f"nexusd's connection: {error}")
            received = None
        if received is None:
            self._drop_client()
            return
        message, fds = received
        word = self._words.get(message.get("say", ""))
        if word is None:
            protocol.close_all(fds)
            self._complain(f"unknown word: {message.get('say')!r}")
            return
        word(message, fds)

    def _tell(self, message: Message, fds: tuple[int, ...] = ()) -> None:
        """To nexusd, in order; while it is away its table is what it will be told."""
        if self._client is None:
            return
        self._outbox.append((protocol.encode(message), fds))
        if len(self._outbox) > MOST_UNSENT:
            self._complain("nexusd does not read: connection dropped")
            self._drop_client()
            return
        self._flush()

    def _flush(self) -> None:
        assert self._client is not None
        try:
            while self._outbox:
                protocol.send(self._client, *self._outbox[0])
                self._outbox.popleft()
        except BlockingIOError:
            pass
        except OSError:
            self._drop_client()
            return
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._outbox else 0)
        if self._selector.get_key(self._client.fileno()).events != wanted:
            self._selector.modify(self._client.fileno(), wanted, self._serve_client)

    def _complain(self, text: str) -> None:
        print(f"nexus-keeper: {text}", file=sys.stderr, flush=True)  # noqa: T201  (its stderr is its log)

    # Its words

    def _hello(self, _message: Message, _fds: list[int]) -> None:
        if not self._recovered:
            self._recover()
        for run in self._runs.values():
            self._tell(run.told(), self._fds_of(run))
        for name, text in self._notes.items():
            self._tell({"say": "note", "name": name, "text": text})
        for name, fd in self._held.items():
            self._tell({"say": "held", "name": name}, (fd,))
        self._tell({"say": "welcome", "pid": os.getpid(), "boot": self._boot})

    def _fds_of(self, run: Run) -> tuple[int, ...]:
        return (run.log_fd, run.notify.fileno()) if run.notify is not None and run.log_fd >= 0 else ()

    def _spawn(self, message: Message, fds: list[int]) -> None:
        log_read, log_write, notify, control, *listening = fds
        launch: dict[str, Any] = message["launch"]
        launch.setdefault("limits", {}).setdefault("files", self._soft_files)
        if "python" in launch:
            self._warm_up({}, [])
        try:
            pid, gate = birth.fork(launch, [log_write, control, *listening], self._title)
        except OSError as error:
            protocol.close_all(fds)
            refusal = {"step": "fork", "errno": error.errno, "reason": error.strerror, "about": None}
            self._tell({"say": "refused", "run": message["run"], "refusal": refusal})
            return
        protocol.close_all([log_write, control, *listening])
        process = proctable.stat(pid)
        assert process is not None  # our own child, not yet waited for
        run = Run(
            message["run"],
            pid,
            process.start_ticks,
            launch["log"],
            launch["notify_path"],
            launch["control_path"],
            gate=gate,
        )
        self._take_in(run, log_read, notify)
        self._journal.run({**run.entry(), "boot": self._boot})
        self._tell({"say": "spawned", "run": run.key, "entry": run.entry()})
        self._watch(gate.fileno(), lambda _mask: self._gate_said(run))
        birth.open_gate(gate)

    def _take_in(self, run: Run, log_fd: int, notify_fd: int) -> None:
        self._runs[run.key] = self._by_pid[run.pid] = run
        if run.log_path not in self._logs:
            self._logs[run.log_path] = LogFile(run.log_path, run.log["max_bytes"], run.log["files"])
        run.log_fd = log_fd
        if log_fd >= 0:
            os.set_blocking(log_fd, False)
            self._watch(log_fd, lambda _mask: self._move_log(run))
        run.notify = socket.socket(fileno=notify_fd)
        run.notify.setblocking(False)
        self._watch(notify_fd, lambda _mask: self._take_notices(run))

    def _gate_said(self, run: Run) -> None:
        assert run.gate is not None
        try:
            run.refusal = birth.read_gate(run.gate)
        except (OSError, ValueError) as error:
            run.refusal = {"step": "prepare", "errno": None, "reason": str(error), "about": None}
        self._close_gate(run)
        run.running = run.refusal is None
        if run.running:
            self._tell({"say": "running", "run": run.key})

    def _close_gate(self, run: Run) -> None:
        if run.gate is not None:
            self._selector.unregister(run.gate.fileno())
            run.gate.close()
            run.gate = None

    def _signal(self, message: Message, _fds: list[int]) -> None:
        if (run := self._runs.get(message["run"])) is None:
            return
        targets = [run.process()] if message.get("leader_only") else self._members(run)
        for process in targets:
            proctable.send_signal(process, message["signal"])

    def _kill(self, message: Message, _fds: list[int]) -> None:
        if message["run"] in self._runs:
            self._sweeping.add(message["run"])

    def _forget(self, message: Message, _fds: list[int]) -> None:
        run = self._runs.pop(message["run"], None)
        if run is None:
            return
        self._by_pid.pop(run.pid, None)
        self._sweeping.discard(run.key)
        self._close_gate(run)
        self._close_log(run)
        self._close_pidfd(run)
        if run.notify is not None:
            self._selector.unregister(run.notify.fileno())
            run.notify.close()
        for path in (run.notify_path, run.control_path):
            if os.path.exists(path):
                os.unlink(path)
        if not any(other.log_path == run.log_path for other in self._runs.values()):
            self._logs.pop(run.log_path).close()
        self._journal.gone(run.key)
        self._keep_journal_short()

    def _note(self, message: Message, _fds: list[int]) -> None:
        name, text = message["name"], message.get("text")
        if text is None:
            self._notes.pop(name, None)
        else:
            self._notes[name] = text
        self._journal.note(name, text)
        self._keep_journal_short()

    def _hold(self, message: Message, fds: list[int]) -> None:
        self._release(message, [])
        self._held[message["name"]] = fds[0]

    def _release(self, message: Message, _fds: list[int]) -> None:
        if (held := self._held.pop(message["name"], None)) is not None:
            os.close(held)

    def _warm_up(self, _message: Message, _fds: list[int]) -> None:
        if self._warm:
            return
        from nexusd.keeper import host  # noqa: PLC0415  (100 ms that a fleet of plain programs never pays)

        host.warm()
        self._warm = True

    def _ping(self, message: Message, _fds: list[int]) -> None:
        written = {path: log.written for path, log in self._logs.items()}
        troubles = [log.trouble for log in self._logs.values() if log.trouble]
        counters = {"runs": len(self._runs), "log_bytes": sum(written.values()), "troubles": troubles[:5]}
        self._tell({"say": "pong", "id": message.get("id"), **counters})

    def _leave(self, _message: Message, _fds: list[int]) -> None:
        self._leaving = True

    def _go(self) -> None:
        os.unlink(os.path.join(self._runtime, "keeper.sock"))
        for log in self._logs.values():
            log.close()
        if not self._runs:
            self._journal.remove()

    # Taking over from a keeper that died

    def _adopt(self, message: Message, fds: list[int]) -> None:
        running, notices = message["running"], message["notices"]
        run = Run(**message["entry"], is_child=False, running=running, notices=notices)
        self._take_over(run, fds[0], fds[1])

    def _take_over(self, run: Run, log_fd: int, notify_fd: int) -> None:
        """Not our child: a pidfd tells its end, and whoever inherited it knows the status."""
        self._take_in(run, log_fd, notify_fd)
        self._journal.run({**run.entry(), "boot": self._boot})
        process = proctable.stat(run.pid)
        if process is None or process.start_ticks != run.start_ticks or process.state in "ZX":
            self._ended(run, None)
            return
        run.pidfd = os.pidfd_open(run.pid)
        self._watch(run.pidfd, lambda _mask: self._ended(run, None))

    def _recover(self) -> None:
        """Runs that nobody handed over: their old keeper and nexusd died together; /proc has their log pipe."""
        self._recovered = True
        entries, notes = self._journal.read()
        self._notes = {**notes, **self._notes}
        for key, entry in entries.items():
            if key not in self._runs and entry.get("boot") == self._boot:
                self._recover_run(entry)
        self._compact()

    def _recover_run(self, entry: Message) -> None:
        fields = {name: value for name, value in entry.items() if name != "boot"}
        run = Run(**fields, is_child=False, running=True)
        try:
            log_fd = os.open(f"/proc/{run.pid}/fd/1", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            self._complain(f"{run.key}: its log pipe is out of reach: {error.strerror}")
            log_fd = -1
        self._take_over(run, log_fd, _bind_again(run.notify_path))

    def _keep_journal_short(self) -> None:
        if self._journal.is_long:
            self._compact()

    def _compact(self) -> None:
        entries = {key: {**run.entry(), "boot": self._boot} for key, run in self._runs.items()}
        self._journal.rewrite(entries, self._notes)

    # Ends

    def _reap(self, _mask: int) -> None:
        """One reaper for children and for the orphans that the subreaper inherits."""
        self._ears[0].recv(4096)
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            run = self._by_pid.get(pid)
            if run is not None and run.ended is None:
                self._ended(run, status)

    def _ended(self, run: Run, status: int | None) -> None:
        """The leader is gone: what it left behind goes too, then its last bytes, then nexusd hears of it."""
        if run.gate is not None:
            self._gate_said(run)
        self._by_pid.pop(run.pid, None)
        self._close_pidfd(run)
        run.ended = {"status": status, "at": time.monotonic()}
        if not run.is_child or self._orphans():
            self._sweep(run)
        self._take_notices(run)
        self._drain(run)
        self._tell({"say": "exited", "run": run.key, "refusal": run.refusal, **run.ended})

    def _orphans(self) -> set[int]:
        return proctable.children() - self._by_pid.keys()

    def _members(self, run: Run) -> list[proctable.Stat]:
        return proctable.members(run.key, run.process(), self._orphans())

    def _sweep_all(self) -> None:
        for key in tuple(self._sweeping):
            if key not in self._runs:
                self._sweeping.discard(key)
            else:
                self._sweep(self._runs[key])

    def _sweep(self, run: Run) -> None:
        """SIGKILL all that is left of the run; looked at again until nothing is."""
        left = self._members(run)
        for process in left:
            proctable.send_signal(process, signal.SIGKILL)
        if left:
            self._sweeping.add(run.key)
        else:
            self._sweeping.discard(run.key)

    def _close_pidfd(self, run: Run) -> None:
        if run.pidfd >= 0:
            self._selector.unregister(run.pidfd)
            os.close(run.pidfd)
            run.pidfd = -1

    # Bytes

    def _move_log(self, run: Run) -> bool:
        """One read, so that a loud replica does not hold up the others. False when there is no more for now."""
        try:
            count = os.readv(run.log_fd, [self._buffer])
        except BlockingIOError:
            return False
        if count == 0:
            self._close_log(run)
            return False
        self._logs[run.log_path].write(self._buffer[:count])
        return True

    def _drain(self, run: Run) -> None:
        """All that its pipe holds; a process that got away and goes on writing does not hold us here."""
        for _ in range(4):
            if run.log_fd < 0 or not self._move_log(run):
                return

    def _close_log(self, run: Run) -> None:
        if run.log_fd >= 0:
            self._selector.unregister(run.log_fd)
            os.close(run.log_fd)
            run.log_fd = -1

    def _take_notices(self, run: Run) -> None:
        """sd_notify datagrams: told to nexusd, and the last of each kind remembered (sd_notify(3))."""
        while run.notify is not None:
            try:
                text = run.notify.recv(NOTICE_BYTES)
            except BlockingIOError:
                return
            pairs = (line.partition("=") for line in text.decode(errors="replace").splitlines())
            notices = {name: value for name, sign, value in pairs if sign}
            run.notices.update(notices)
            self._tell({"say": "notify", "run": run.key, "notices": notices})


def _bind_again(path: str) -> int:
    if os.path.exists(path):
        os.unlink(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(path)
    return sock.detach()


def main() -> None:
    """nexusd hands over the listening socket, so that it can connect before this program has begun."""
    parser = argparse.ArgumentParser(prog="nexus-keeper")
    parser.add_argument("--runtime", required=True)
    parser.add_argument("--listen-fd", type=int, required=True)
    arguments = parser.parse_args()
    Keeper(arguments.runtime, socket.socket(fileno=arguments.listen_fd)).serve()


if __name__ == "__main__":
    main()
