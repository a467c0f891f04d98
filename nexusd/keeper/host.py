"""The life of one Python module in a process of its own: start it, tell that it is ready, stop it.

What it does is its author's affair (nexusd/sdk.py), when it runs is nexusd's. Forked from the warm keeper
through `run`, or run as a script by an interpreter of the module's own.
"""

import asyncio
import contextlib
import faulthandler
import gc
import importlib
import json
import logging
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, NoReturn, TextIO

if __name__ == "__main__":
    # Python has put this file's folder first, where its neighbours could hide a module's own imports.
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if entry != here]
    sys.path.append(os.path.dirname(os.path.dirname(here)))

from nexusd.keeper.module_code import in_short, load_class, report
from nexusd.keeper.module_control import Control, Hooks
from nexusd.keeper.succession import Predecessor, Successor
from nexusd.sdk import HOOKS, Module, Surroundings

_FIRST_LISTENING_FD = 3  # SD_LISTEN_FDS_START of sd_listen_fds(3)
_UNNAMED = "unknown"
_READY_RETRY_S = 0.05
_SHARE_OF_ANSWERS = 0.8  # of the time to stop; the rest is the module's own stop()
_REHEARSALS = 10  # Python 3.11 specialises a function from its eighth call on
_SMALL = range(48, 512 + 1, 16)  # bytes: what Python's own allocator gives out, in steps, and `bytes` can be
_POOL = 16384  # bytes of memory that it divides into objects of one size


_streams: tuple[TextIO, TextIO] | None = None  # of the children of a warm keeper
_fillers: list[bytes] = []


def warm() -> None:
    """Pay once, in the keeper, for what each module would pay: imports, a first life, a first collection."""
    with contextlib.suppress(ImportError):
        importlib.import_module("prometheus_client")
    global _streams
    _streams = _stream(1), _stream(2)
    _log_to(_streams[1])
    wakeup = signal.set_wakeup_fd(-1)
    for _ in range(_REHEARSALS):
        rehearse()
    signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    signal.raise_signal(signal.SIGCHLD)  # whose child ended meanwhile was not told
    gc.collect()
    _fill_holes()
    gc.freeze()


def _fill_holes() -> None:
    """What the rehearsals have freed lies in holes all over the memory. A child that filled these would copy
    a page for each; so it finds none, and puts its objects side by side into pages that are new.
    """
    empty = sys.getsizeof(b"")
    _fillers.extend(bytes(size - empty) for size in _SMALL for _ in range(_POOL // size))


def rehearse() -> None:
    """The life of a module that does nothing. Python specialises what has run a few times, in place (PEP 659):
    once here, or in every child, which copies each page that it writes to.
    """
    folder = os.path.dirname(os.path.abspath(__file__))
    path, hooks = sys.path[:], sys.path_hooks[:]

    def notify(message: str) -> bool:
        if message == "READY=1":
            host.finish(0)
        return True

    host = Host(folder, notify)
    host.create("rehearsal:Rehearsal")
    host.run()
    sys.path[:], sys.path_hooks[:] = path, hooks
    del sys.modules["rehearsal"]


def run(target: str, folder: str) -> NoReturn:
    """Be the module `file:Class` of this folder until it ends; never returns.

    It leaves through os._exit: beneath this frame lie the keeper's, which a child must not unwind into,
    and a thread stuck in a request must not hold a process that has stopped.
    """
    status = 1
    try:
        status = _run_module(target, os.path.realpath(folder))
    except SystemExit as leaving:
        status = _exit_status(leaving.code)
    except BaseException:  # the border of the process: whatever it was, it is told and the status is 1
        traceback.print_exc()
    finally:
        _flush()
        os._exit(status)


def _run_module(target: str, folder: str) -> int:
    _behave_like_a_fresh_python()
    notify = Notifier(os.environ.pop("NOTIFY_SOCKET", ""))
    try:
        host = Host(folder, notify)
        host.create(target)
    except Exception as error:  # a module's own code may raise anything
        report(error, folder, notify)
        return 1
    return host.run()


class _Loop(asyncio.SelectorEventLoop):
    def _check_signal(self, sig: int) -> None:
        """asyncio asks for the set of all signals, for each handler: a fifth of a module's start.

        Ours are known to be signals. Where asyncio asks otherwise, this is merely not called.
        """


def _behave_like_a_fresh_python() -> None:
    # Python ignores these two at its start and turns them into exceptions; the keeper has reset them.
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    if _streams is None:
        sys.stdout, sys.stderr = _stream(1), _stream(2)
        _log_to(sys.stderr)
    else:
        sys.stdout, sys.stderr = _streams


def _log_to(stream: TextIO) -> None:
    _LOG.setStream(stream)
    logging.root.addHandler(_LOG)
    logging.root.setLevel(logging.INFO)
    faulthandler.enable(file=2)  # SIGABRT, the watchdog's, shows in the log where the module hung


def _stream(descriptor: int) -> TextIO:
    """Line by line. It writes, and never asks, so it may be made before the module's pipe lies beneath it."""
    return open(descriptor, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)


def _exit_status(code: object) -> int:
    """What sys.exit(code) means, as the interpreter reads it."""
    if code is None or isinstance(code, int):
        return (code or 0) & 0xFF
    sys.stderr.write(f"{code}\n")
    return 1


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()


class _OneLine(logging.Formatter):
    """A record is one line, whatever its text holds; only a traceback follows in lines of its own."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return super().formatMessage(record).replace("\n", "\\n")


_LOG = logging.StreamHandler()
_LOG.setFormatter(
    _OneLine("%(asctime)s.%(msecs)03d %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")
)


class Notifier:
    """Sends sd_notify messages and never waits: a module must not hang because nobody reads."""

    def __init__(self, path: str) -> None:
        self._address = "\0" + path[1:] if path.startswith("@") else path
        self._socket = (
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) if path else None
        )

    def __call__(self, message: str) -> bool:
        """False when the message was not taken: the queue is full or nobody has the socket."""
        if self._socket is None:
            return True
        try:
            self._socket.sendto(message.encode(errors="replace"), self._address)
        except OSError:
            return False
        return True


def create_module(kind: type[Module], place: Surroundings) -> Module:
    """An instance that has its surroundings before its own `__init__` runs."""
    module = kind.__new__(kind)
    module.settle(place)
    module.__init__()  # type: ignore[misc]
    return module


class Host:
    """The life of one module: start, serve, stop; and the exit status it ends with."""

    module: Module

    def __init__(self, folder: str, notify: Callable[[str], bool]) -> None:
        self._folder = folder
        self._notify = notify
        self._config_path = os.environ.get("NEXUS_CONFIG", "")
        self._state_path = os.environ.get("NEXUS_FORMER_STATE", "")
        self._beat_s = int(os.environ.pop("WATCHDOG_USEC", "0")) / 2e6
        self._control_fd = _control_fd()
        self._predecessor_path = os.environ.pop("NEXUS_PREDECESSOR", "")
        self._predecessor: Predecessor | None = None
        self._successor: Successor | None = None
        self._configuring = asyncio.Lock()
        self._errands: set[asyncio.Task[None]] = set()

    def create(self, target: str) -> None:
        """Raises whatever the module's own code raises."""
        kind = load_class(target, self._folder, Module, HOOKS)
        self.module = create_module(kind, self.surroundings(target))

    def run(self) -> int:
        """The module's life; its exit status."""
        loop = _Loop()
        try:
            return loop.run_until_complete(self.live())
        finally:
            loop.close()

    def surroundings(self, target: str) -> Surroundings:
        """What the environment says, in the module's terms."""
        return Surroundings(
            module_id=os.environ.get("NEXUS_MODULE_ID", "local/module"),
            replica=int(os.environ.get("NEXUS_REPLICA", "0")),
            generation=int(os.environ.get("NEXUS_GENERATION", "1")),
            config=_read_json(self._config_path) if self._config_path else {},
            sockets=listening_sockets(),
            log=logging.getLogger(target.partition(":")[0]),
            notify=self._notify,
            task_failed=self._task_failed,
            stop_timeout_s=float(os.environ.get("NEXUS_STOP_TIMEOUT", "10")),
        )

    async def live(self) -> int:
        """From start to stop; 0 when stopping was asked for and went well, else 1."""
        self._loop = asyncio.get_running_loop()
        self._end: asyncio.Future[int] = self._loop.create_future()
        self._ready = asyncio.Event()
        self._take_signals()
        self._beat()
        started = await self._start()
        if started:
            await self._succeed()
            self._announce_ready()
            await self._serve()
        return await self._stop(started)

    async def _serve(self) -> None:
        """Answer on the control socket until the end is asked for."""
        if self._control_fd is None:
            await asyncio.wait((self._end,))
            return
        module = self.module
        control = Control(
            Hooks(
                health=module.health,
                configure=self.configure,
                metrics=module.exposition,
                export_state=module.export_state,
                describe=lambda error: in_short(error, self._folder),
                take_over=self._be_succeeded,
            ),
            self._control_fd,
        )
        await asyncio.wait((self._end,))
        control.close()

    async def _start(self) -> bool:
        """Whether start() has returned. When the end is asked for before that, start() is cancelled."""
        starting = self._loop.create_task(self._start_module())
        self._end.add_done_callback(lambda _: starting.cancel())
        try:
            await starting
        except (Exception, asyncio.CancelledError) as error:  # a module's own code may raise anything
            if not self._end.done():
                report(error, self._folder, self._notify)
                self.finish(1)
            return False
        return True

    async def _start_module(self) -> None:
        if (state := self._former_state()) is not None:
            await self.module.import_state(state)
        await self.module.start()

    def _former_state(self) -> Any:
        if not self._state_path:
            return None
        try:
            return _read_json(self._state_path)
        except FileNotFoundError:  # a later start of the same generation: the state was used up by the first
            self.module.log.warning("no state to import: %s is gone", self._state_path)
            return None

    # Connections come from the generation before and go to the next one.

    async def _succeed(self) -> None:
        """Before READY=1: after it the predecessor is told to stop, and must know who goes on."""
        if self._predecessor_path and self.module.servers:
            try:
                self._predecessor = Predecessor(self._predecessor_path, self._go_on_with)
            except OSError as error:  # it has ended, or runs as another user: its connections end with it
                self.module.log.info("takes over no connections: %s", error)
                return
            await self._predecessor.knows_us()

    def _go_on_with(self, name: str, connection: socket.socket, begun: bytes) -> None:
        server = self.module.servers.get(name)
        if server is None:
            connection.close()
        else:
            server.take(connection, begun)

    def _be_succeeded(self, transport: asyncio.BaseTransport) -> None:
        if self._successor is not None:  # of a reload that came to nothing
            self._successor.close()
        self._successor = Successor(transport)

    async def _leave_connections(self) -> None:
        patience_s = _SHARE_OF_ANSWERS * self.module.stop_timeout_s
        successor = self._successor
        if self._predecessor is not None:
            await self._predecessor.ended()

        def hand_over(name: str) -> Callable[[socket.socket, bytes], bool]:
            return lambda *what: successor is not None and successor.hand_over(name, *what)

        closing = [server.close(hand_over(name), patience_s) for name, server in self.module.servers.items()]
        await asyncio.gather(*closing)
        if successor is not None:
            successor.close()

    async def _stop(self, started: bool) -> int:
        self._notify("STOPPING=1")
        await self._leave_connections()
        tasks = set(self.module.tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        try:
            if started:
                await self.module.stop()
        except Exception as error:  # a module's own code may raise anything
            report(error, self._folder, self._notify)
            return 1
        return self._end.result()

    def finish(self, status: int) -> None:
        if not self._end.done():
            self._end.set_result(status)

    def _task_failed(self, name: str, error: BaseException) -> None:
        """A background task has failed; while stopping that is only told."""
        report(error, self._folder, self._notify, f"background task {name!r}: ")
        self.finish(1)

    def _take_signals(self) -> None:
        self._loop.add_signal_handler(signal.SIGTERM, self.finish, 0)
        self._loop.add_signal_handler(signal.SIGINT, self.finish, 0)
        self._loop.add_signal_handler(signal.SIGHUP, self._reread_soon)

    def _beat(self) -> None:
        """WATCHDOG=1 at half the time, from the loop that works: if it hangs, the beat stops."""
        if self._beat_s > 0:
            self._notify("WATCHDOG=1")
            self._loop.call_later(self._beat_s, self._beat)

    def _announce_ready(self) -> None:
        """The one message that must not be lost, so it is sent until it is taken."""
        self._ready.set()
        if not self._notify("READY=1"):
            self._loop.call_later(_READY_RETRY_S, self._announce_ready)

    # Configuration.

    async def configure(self, key: str, value: Any) -> None:
        """Put the value into config and tell the module; the old one stays if it refuses. One at a time."""
        async with self._configuring:
            config = self.module.config
            before = {key: config[key]} if key in config else {}
            config[key] = value
            try:
                await self.module.configure(key, value)
            except BaseException:  # cancelled counts as refused: nobody waits for the answer
                del config[key]
                config.update(before)
                raise

    def _reread_soon(self) -> None:
        errand = self._loop.create_task(self._reread())
        self._errands.add(errand)
        errand.add_done_callback(self._errands.discard)

    async def _reread(self) -> None:
        """SIGHUP: what differs in the configuration's file is applied, key by key."""
        await self._ready.wait()
        self._notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            fresh = _read_json(self._config_path) if self._config_path else {}
            for key, value in fresh.items():
                if self.module.config.get(key) != value or key not in self.module.config:
                    await self._configure_or_log(key, value)
        except (OSError, ValueError) as error:
            self.module.log.error("cannot read the configuration again: %s", error)
        self._announce_ready()

    async def _configure_or_log(self, key: str, value: Any) -> None:
        try:
            await self.configure(key, value)
        except Exception as error:  # a module's own code may raise anything
            self.module.log.error("refused %s, the old value stays: %s", key, in_short(error, self._folder))


def _read_json(path: str) -> Any:
    with open(path, "rb") as file:
        return json.loads(file.read())


def _control_fd() -> int | None:
    text = os.environ.pop("NEXUS_CONTROL_FD", "")
    if not text:
        return None
    os.set_inheritable(int(text), False)
    return int(text)


def listening_sockets() -> dict[str, socket.socket]:
    """The sockets of sd_listen_fds(3) by name; no socket when LISTEN_PID is somebody else's.

    One without a name ("unknown", as systemd has it) goes by its address, written as the manifest writes it.
    """
    count, names, pid = (os.environ.pop(name, "") for name in ("LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PID"))
    if not count or pid != str(os.getpid()):
        return {}
    fds = range(_FIRST_LISTENING_FD, _FIRST_LISTENING_FD + int(count))
    for fd in fds:
        os.set_inheritable(fd, False)
    found = [socket.socket(fileno=fd) for fd in fds]
    named = names.split(":")
    if len(named) != len(found):
        named = [_UNNAMED] * len(found)
    pairs = zip(named, found, strict=True)
    return {_address(sock) if name == _UNNAMED else name: sock for name, sock in pairs}


def _address(listening: socket.socket) -> str:
    name = listening.getsockname()
    if listening.family == socket.AF_UNIX:
        return f"unix:{name}"
    host = f"[{name[0]}]" if listening.family == socket.AF_INET6 else name[0]
    return f"tcp:{host}:{name[1]}"


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2])
