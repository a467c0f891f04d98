"""What a nexusd hands to its successor over execve(2), in the same process: sockets, locks, clients; and the jump.

It goes in a file in memory, whose descriptor NEXUS_HANDOVER names. What belongs to it is the daemon's to say.
"""

import asyncio
import logging
import os
import signal
import socket
import threading
from collections.abc import Collection, Iterable, Mapping, MutableMapping

import msgspec

from nexusd.domain.decoding import prepare
from nexusd.domain.replacing import FORMAT, Command

VARIABLE = "NEXUS_HANDOVER"
# A signal that comes between two nexusds waits for the second one: execve keeps what is blocked and what is pending.
THREADS_S = 0.5
_PASSES = 4  # of the loop, from a signal that was caught to what it calls
HELD_BACK = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

log = logging.getLogger("nexusd")


class Client(msgspec.Struct, frozen=True):
    """A connection, and what was read of it and not taken up."""

    fd: int
    rest: bytes


class Bound(msgspec.Struct, frozen=True):
    """A listening Unix socket of nexusd's own, and the identity of its file."""

    fd: int
    path: str
    device: int
    inode: int


class Handover(msgspec.Struct, frozen=True):
    version: str  # of the one who hands over
    target: str  # the version that was to come
    left_at: float  # monotonic seconds: when the API stopped answering
    was_ready: bool  # systemd has heard READY=1
    api: Bound | None = None  # None: systemd's, which goes on as descriptor 3
    metrics: tuple[int, ...] = ()
    metrics_at: str = ""
    locks: dict[str, int] = {}  # by path
    clients: tuple[Client, ...] = ()
    soft_files: int | None = None  # of open files: what there was before nexusd raised it for itself
    format: int = FORMAT
    failure: str | None = None  # why there is no successor, where it has to be the same again

    @property
    def descriptors(self) -> tuple[int, ...]:
        api = (self.api.fd,) if self.api is not None else ()
        return (*api, *self.metrics, *self.locks.values(), *(client.fd for client in self.clients))


prepare(Handover)


def taken(environment: MutableMapping[str, str]) -> Handover | None:
    """What this process was handed by the nexusd that it was before; taken out of the environment."""
    pid, _, number = environment.pop(VARIABLE, "").partition(":")
    if pid != str(os.getpid()) or not number.isdecimal():
        return None
    with os.fdopen(int(number), "rb") as file:
        handed = msgspec.json.decode(file.read(), type=Handover)
    for descriptor in handed.descriptors:
        os.set_inheritable(descriptor, False)
    return handed


def jump(
    command: Command,
    handed: Handover,
    environment: Mapping[str, str],
    variables: Mapping[str, str],
    held: Collection[int],
) -> OSError:
    """Become the successor. It returns only where that failed: all that was handed over is still ours then.

    variables: what systemd gave. held: descriptors that they speak of.
    """
    kept = (*handed.descriptors, *held)
    try:
        file = _in_memory(msgspec.json.encode(handed))
    except OSError as error:
        return error
    try:
        _let_inherit(kept, True)
        os.execve(
            command.program, command.argv, {**environment, **variables, VARIABLE: f"{os.getpid()}:{file}"}
        )
    except OSError as error:
        _let_inherit(kept, False)
        os.close(file)
        return error


def hold_signals_back() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)


def keep_for_successor(number: int) -> None:
    """A signal that was caught after all: sent to the one thread that is sure to have it blocked."""
    signal.pthread_kill(threading.main_thread().ident or 0, number)


async def without_threads() -> None:
    """Other threads have signals caught that we hold back: let them end, and hear what they have caught.

    One that reads at length is not waited for: execve ends it.
    """
    ending = asyncio.get_running_loop().create_task(asyncio.get_running_loop().shutdown_default_executor())
    await asyncio.wait([ending], timeout=THREADS_S)
    for _ in range(_PASSES):
        await asyncio.sleep(0)


def let_signals_come() -> None:
    """To whoever has put handlers up by now."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_BACK)


def _in_memory(content: bytes) -> int:
    file = os.memfd_create("nexusd-handover", 0)  # no MFD_CLOEXEC: it is to be inherited
    view = memoryview(content)
    while view:
        view = view[os.write(file, view) :]
    os.lseek(file, 0, os.SEEK_SET)
    return file


def _let_inherit(descriptors: Iterable[int], inheritable: bool) -> None:
    for descriptor in descriptors:
        os.set_inheritable(descriptor, inheritable)


def sockets_of(handed: Handover, listen: str) -> list[socket.socket]:
    """The sockets of the metrics, if they are wanted at the same place; else they are closed."""
    sockets = [socket.socket(fileno=number) for number in handed.metrics]
    if handed.metrics_at == listen:
        return sockets
    for sock in sockets:
        sock.close()
    return []
