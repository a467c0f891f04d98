"""nexusd's side of the keeper: asks, hears, and holds a second copy of what it holds.

It decides how a lost keeper is replaced (a new one is started and handed every run); what its news mean for a
module is the supervisor's. Messages come to `hear` as `protocol` names them; two more are made here: `lost` when
the keeper is gone, `welcome` once a keeper, old or new, has told its whole table.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping

from nexusd.keeper import endpoints, journal_stream, protocol, startup
from nexusd.keeper.keepsakes import Keepsakes, NoStore, Store
from nexusd.keeper.probe_client import ProbeClient
from nexusd.keeper.protocol import MOST_FDS, Message, Outbox, TooLong
from nexusd.keeper.table import KnownRun, Table

HUNG_S = 10.0
_LEAVE_S = 2.0  # how long a dismissed keeper may take to hear of it
# Nothing is started, stopped or read of logs without a keeper. One that was killed, and the next as well, is
# replaced at once; one that can't live is not to take the whole of a processor.
_RESTART_S = (0.0, 0.0, 0.0, 0.1, 0.5, 1.0, 2.0, 5.0)
_FORGOTTEN_S = 20.0
_ON_REQUEST = 0  # the id of a ping that somebody waits for; that of the others is when they were sent
log = logging.getLogger("nexusd.keeper")


def restart_delay_s(restarts: Iterable[float], now: float) -> float:
    """How long to wait before a keeper is replaced, by when others were."""
    recent = sum(now - at < _FORGOTTEN_S for at in restarts)
    return _RESTART_S[min(recent, len(_RESTART_S) - 1)]


class KeeperClient:
    """Its methods are to be called from the event loop's thread. hung_s: how long a keeper may be silent."""

    def __init__(
        self,
        runtime: str,
        stderr_path: str,
        hear: Callable[[Message], None],
        hung_s: float = HUNG_S,
        as_json: Callable[[Message], bytes] = protocol.as_json,
        journald: str = "/run/systemd/journal",
        soft_files: int | None = None,
        store: Store | None = None,
    ) -> None:
        """as_json: nexusd may have a faster one than the standard library. journald: folder of its sockets.

        soft_files: the limit that modules have, where this process's own was raised by a nexusd before us.
        """
        self._runtime = runtime
        self._stderr_path = stderr_path
        self._hear = hear
        self._hung_s = hung_s
        self._as_json = as_json
        self._journald = journald
        self.soft_files = soft_files
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sock: socket.socket | None = None
        self._outbox = Outbox()
        self._keepsakes = Keepsakes(store or NoStore())
        self._table = Table(self._keepsakes)
        self._notes: dict[str, str] = {}
        self._held: dict[str, int] = {}
        self._probes = ProbeClient(self._send)
        self._restarts: deque[float] = deque(maxlen=len(_RESTART_S))
        self._asked_at: float | None = None
        self._heard_at = 0.0
        self._welcomed = False
        self._leaving = False
        self.pid: int | None = None
        self.on_pong: Callable[[float], None] | None = None  # is told how many seconds a round trip took
        self._written: dict[str, int] = {}
        self._counted: asyncio.Event | None = None
        self._ponged: asyncio.Event | None = None
        self.troubles: list[str] = []  # logs that the disk does not take, as of the last pong

    @property
    def connected(self) -> bool:
        return self._sock is not None

    # Its life

    def open(self) -> None:
        """Connect to the keeper that is there, or start one. Its table follows through `hear`."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_signal_handler(signal.SIGCHLD, self._table.reap)
        former = startup.raise_file_limit()
        self.soft_files = former if self.soft_files is None else self.soft_files
        self._held |= self._keepsakes.listening()
        self._use(self._connect())
        self._loop.call_later(self._hung_s / 5, self._ping)

    def _connect(self) -> socket.socket:
        found = startup.find(self._runtime)
        if found is None:
            found = startup.start(self._runtime, self._stderr_path, self.soft_files or 0)
        sock, self.pid = found
        return sock

    def _use(self, sock: socket.socket) -> None:
        assert self._loop is not None
        self._sock = sock
        self._asked_at = None
        self._heard_at = time.monotonic()
        self._welcomed = False
        self._loop.add_reader(sock, self._read)
        for message, fds in self._table.adoptions():
            self._say(message, fds)
        for name, text in self._notes.items():
            self._say({"say": "note", "name": name, "text": text})
        for name, fd in self._held.items():
            self._say({"say": "hold", "name": name}, (fd,))
        for key, fds in self._keepsakes.runs():
            self._say({"say": "kept", "run": key}, fds)
        self._say({"say": "hello"})

    def _lost(self, why: str) -> None:
        """Replace the keeper. What it had not told is asked of the new one; the runs themselves go on."""
        if self._sock is None or self._loop is None:
            return
        self._hang_up()
        if self._leaving:
            return
        log.warning("keeper lost (%s): a new one takes its runs over", why)
        self._hear({"say": "lost", "why": why})
        self._loop.call_later(self._restart_delay_s(), self._restart)

    def _hang_up(self) -> None:
        if self._sock is not None and self._loop is not None:
            self._loop.remove_reader(self._sock)
            self._loop.remove_writer(self._sock)
            self._sock.close()
            self._sock = None
        self._welcomed = False
        self._counted = self._ponged = None
        self._outbox.clear()
        self._probes.lost()

    def _restart_delay_s(self) -> float:
        now = time.monotonic()
        delay_s = restart_delay_s(self._restarts, now)
        self._restarts.append(now)
        return delay_s

    def _restart(self) -> None:
        if self._leaving:
            return
        try:
            self._use(self._connect())
        except OSError as error:
            log.error("no keeper can be started: %s", error)
            assert self._loop is not None
            self._loop.call_later(self._restart_delay_s(), self._restart)

    def close(self) -> None:
        """Leave the keeper and its runs alone; a later nexusd finds them."""
        self._leaving = True
        self._tell_the_rest()
        self._hang_up()
        self._table.let_go()
        protocol.close_all(tuple(self._held.values()))
        self._held.clear()
        self._keepsakes.close()
        if self._loop is not None:
            self._loop.remove_signal_handler(signal.SIGCHLD)

    def dismiss(self) -> None:
        """Tell the keeper to go, and see that it hears it; what it has not been told to end runs on."""
        self._leaving = True
        if self._loop is not None:  # a loop that is being closed has no ear left for the keeper's end
            self._loop.remove_signal_handler(signal.SIGCHLD)
        self._say({"say": "leave"})
        self._tell_the_rest()

    def _tell_the_rest(self) -> None:
        if self._sock is not None and self._outbox:
            self._sock.settimeout(_LEAVE_S)
            with contextlib.suppress(OSError):  # it is gone, or hangs: then it is found by the next nexusd
                self._outbox.flush(self._sock)

    # What it is asked

    def spawn(self, key: str, launch: Message, listening: Iterable[str] = ()) -> None:
        """Start a run. launch: see `birth.fork`, and log, notify_path, control_path, uid. Raises OSError, TooLong.

        Before a keeper has told its table nothing is started: the table would not have the run, and with
        its `welcome` the run would be started a second time.
        """
        if not self._welcomed:
            return
        opened: list[int] = []
        paths = (launch["notify_path"], launch["control_path"])
        uid = (launch.get("user") or {}).get("uid", os.getuid())
        try:
            opened += journal_stream.for_launch(launch, self._journald) or endpoints.log_pipe(uid)
            opened.append(endpoints.notify_socket(paths[0], uid))
            opened.append(endpoints.control_socket(paths[1], uid))
            launch["listening"] = list(listening)
            shared = [self._held[name] for name in launch["listening"]]
            if len(opened) + len(shared) > MOST_FDS:
                raise TooLong(f"{len(shared)} listening sockets: {MOST_FDS - len(opened)} can be handed over")
            self._send({"say": "spawn", "run": key, "launch": launch}, (*opened, *shared))
        except BaseException:
            protocol.close_all(opened)
            endpoints.unlink(paths)
            raise
        log_read, log_write, notify, control = opened
        protocol.close_all((log_write, control))
        self._table.runs[key] = KnownRun((log_read, notify), paths)
        self._keepsakes.keep_run(key, log_read, notify)

    async def probe(self, launch: Message, timeout_s: float) -> Message | None:
        """Run a check program; None: nothing is known, the keeper is not there. Raises TooLong."""
        return await self._probes.probe(launch, timeout_s) if self._welcomed else None

    def signal(self, key: str, number: int, leader_only: bool = False) -> None:
        self._say({"say": "signal", "run": key, "signal": number, "leader_only": leader_only})

    def kill(self, key: str) -> None:
        self._say({"say": "kill", "run": key})

    def forget(self, key: str) -> None:
        self._table.drop(key)
        self._say({"say": "forget", "run": key})

    def socket_paths(self) -> set[str]:
        """The sockets of all runs that there are."""
        return self._table.socket_paths()

    def note(self, name: str, text: str | None) -> None:
        """Have the keeper remember a line of text for the nexusd that comes after us."""
        if self._notes.get(name) == text:
            return
        if text is None:
            self._notes.pop(name, None)
        else:
            self._notes[name] = text
        self._say({"say": "note", "name": name, "text": text})

    def hold(self, name: str, fd: int) -> None:
        """Share a listening socket under this name; the descriptor is ours from now on."""
        self._held[name] = fd
        self._keepsakes.keep_listening(name, fd)
        self._say({"say": "hold", "name": name}, (fd,))

    def release(self, name: str) -> None:
        if (fd := self._held.pop(name, None)) is not None:
            os.close(fd)
            self._keepsakes.forget_listening(name)
            self._say({"say": "release", "name": name})

    def holds(self, name: str) -> bool:
        return name in self._held

    def held_names(self) -> list[str]:
        return list(self._held)

    def warm(self) -> None:
        self._say({"say": "warm"})

    @property
    def notes(self) -> dict[str, str]:
        """What the keeper was told to remember, by name."""
        return dict(self._notes)

    def processes(self) -> dict[str, tuple[int, int, str | None]]:
        """pid, start time (clock ticks) and cgroup of each run's first process, by the run's key."""
        return self._table.processes()

    def leaf(self, key: str) -> str | None:
        """The cgroup that the run was born in, if it has one."""
        return self._table.leaf(key)

    def journal(self, key: str) -> str | None:
        """What journald calls the run's output; None: it goes to a file."""
        return self._table.journal(key)

    def keys(self) -> list[str]:
        """Of all runs that there are."""
        return list(self._table.runs)

    async def answers(self, patience_s: float) -> bool:
        """Whether the keeper comes round its loop within that time."""
        if not self.connected:
            return False
        asked, self._ponged = self._ponged, self._ponged or asyncio.Event()
        if asked is None:
            self._say({"say": "ping", "id": _ON_REQUEST})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                await self._ponged.wait()
                return True
        return False

    async def log_bytes(self, patience_s: float) -> Mapping[str, int]:
        """Bytes written by path of the log, since the keeper began; what it said last if it does not answer."""
        if not self.connected:
            return self._written
        if (counted := self._counted) is None:
            counted = self._counted = asyncio.Event()
            self._say({"say": "count"})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                await counted.wait()
        return self._written

    def _say(self, message: Message, fds: tuple[int, ...] = ()) -> None:
        try:
            self._send(message, fds)
        except TooLong as error:
            log.error("the keeper can't be told: %s", error)

    def _send(self, message: Message, fds: tuple[int, ...] = ()) -> None:
        """Descriptors may be closed after this. Raises TooLong, OSError when none is free."""
        packet = protocol.encode(message, self._as_json)
        if self._sock is None or self._loop is None:
            return  # the next keeper is told the whole state anyway
        waited = bool(self._outbox)
        try:
            self._outbox.send(self._sock, packet, fds)
        except (BrokenPipeError, ConnectionResetError):
            return  # the reader sees the end, and what it was told before
        if self._outbox and not waited:
            self._loop.add_writer(self._sock, self._flush)

    def _flush(self) -> None:
        assert self._sock is not None and self._loop is not None
        try:
            self._outbox.flush(self._sock)
        except OSError:
            self._outbox.clear()  # as above
        if not self._outbox:
            self._loop.remove_writer(self._sock)

    # What it says

    def _read(self) -> None:
        """Up to a bounded number of packets, so that requests are answered between them."""
        for _ in range(64):
            if self._sock is None:
                return
            try:
                received = protocol.receive(self._sock)
            except BlockingIOError:
                return
            except (OSError, ValueError) as error:
                self._lost(str(error))
                return
            if received is None:
                self._lost("its connection ended")
                return
            self._heard_at = time.monotonic()
            self._take(*received)

    def _take(self, message: Message, fds: list[int]) -> None:
        match message["say"]:
            case "run":
                self._table.take_row(message, fds)
            case "note":
                self._notes[message["name"]] = message["text"]
            case "held":
                self._take_held(message["name"], fds[0])
            case "spawned" | "running" | "notify":
                self._table.take(message)
            case "exited" if message["status"] is None:
                message["status"] = self._table.status_of(message["run"])
            case "welcome" if message.get("protocol") != protocol.VERSION:
                log.warning("keeper %d speaks another version of the protocol: replaced", message["pid"])
                os.kill(message["pid"], signal.SIGKILL)
                return
            case "welcome":
                self._welcome(message)
            case "pong":
                self._pong(message)
                return
            case "counted":
                self._take_count(message)
                return
            case "probed":
                self._probes.heard(message)
                return
        self._hear(message)

    def _welcome(self, message: Message) -> None:
        self.pid = message["pid"]
        self._welcomed = True
        self._table.reap()  # a child that ended before we had an ear for it
        self._table.drop_unborn()
        self._keepsakes.settled(set(self._table.runs))

    def _take_held(self, name: str, fd: int) -> None:
        if name in self._held:
            os.close(fd)
        else:
            self._held[name] = fd
            self._keepsakes.keep_listening(name, fd)

    # Is it alive

    def _ping(self) -> None:
        """A keeper that says nothing for so long is killed and replaced: nothing it holds is lost by that."""
        if self._leaving or self._loop is None:
            return
        now = time.monotonic()
        if self._sock is None:
            pass
        elif self._asked_at is None:
            self._asked_at = now
            self._say({"say": "ping", "id": now})
        elif now - max(self._asked_at, self._heard_at) > self._hung_s and self.pid is not None:
            log.error("keeper %d has not answered for %.0f s: killed", self.pid, now - self._asked_at)
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        self._loop.call_later(self._hung_s / 5, self._ping)

    def _pong(self, message: Message) -> None:
        self.troubles = list(message["troubles"])
        if message["id"] == _ON_REQUEST:
            if self._ponged is not None:
                self._ponged.set()
                self._ponged = None
            return
        if self.on_pong is not None and self._asked_at is not None:
            self.on_pong(time.monotonic() - self._asked_at)
        self._asked_at = None

    def _take_count(self, message: Message) -> None:
        self._written = {**self._written, **message["written"]}
        if message["left"] <= 0 and self._counted is not None:
            self._counted.set()
            self._counted = None
