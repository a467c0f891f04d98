"""The keeper of a runtime folder: found where it listens, or started there.

When one is needed, and what it is told, is the client's.
"""

import logging
import os
import resource
import signal
import socket
import sys
from typing import Any

from nexusd.keeper import protocol
from nexusd.keeper.endpoints import bind_private
from nexusd.keeper.proctable import RUN_ROOM

_OWN_VARIABLES = (
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
)
# Not -m: an uninstalled tree must be found too, and the folder nexusd was called in must not.
_PROGRAM = f"""import sys
sys.path.append({os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))!r})
from nexusd.keeper.process import main
main()"""

log = logging.getLogger("nexusd.keeper")


def find(runtime: str) -> tuple[socket.socket, int | None] | None:
    """A connection to the keeper that is there, and its pid as far as it can be told. Raises OSError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.setblocking(False)  # a keeper that hangs, and has too many waiting, must not hang us
    try:
        sock.connect(_path(runtime))
    except (FileNotFoundError, ConnectionRefusedError):
        sock.close()
        return None
    except OSError:
        sock.close()
        raise
    return sock, _pid_of_keeper(sock, runtime)


def _path(runtime: str) -> str:
    return os.path.join(runtime, "keeper.sock")


def _pid_of_keeper(sock: socket.socket, runtime: str) -> int | None:
    """It listens there once it runs; before that the pid is of the nexusd that started it."""
    pid, _ = protocol.peer(sock)
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            title = file.read().rstrip(b"\0")
    except OSError:
        return None
    return pid if title and f"nexus-keeper {runtime}".encode().startswith(title) else None


def start(runtime: str, stderr_path: str, files: int) -> tuple[socket.socket, int]:
    """Listen for the keeper, then start it: the connection is there before its first line ran. Raises OSError.

    files: the limit of open files that nexusd found itself with, for runs that have none of their own.
    """
    path = _path(runtime)
    if os.path.exists(path):
        os.unlink(path)  # we hold the folder's lock, and nobody answered there
    server = bind_private(socket.SOCK_SEQPACKET, path)
    server.listen()
    pid = _spawn(runtime, server, stderr_path, files)
    server.close()
    log.info("keeper started, pid %d", pid)
    found = find(runtime)
    if found is None:
        raise ConnectionRefusedError(f"the keeper does not answer at {path}")
    return found[0], pid


def _spawn(runtime: str, server: socket.socket, stderr_path: str, files: int) -> int:
    environment = {name: value for name, value in os.environ.items() if name not in _OWN_VARIABLES}
    environment["NEXUS_RUN"] = RUN_ROOM
    arguments = [sys.executable, "-P", "-c", _PROGRAM, "--runtime", runtime, "--listen-fd", "3"]
    append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    actions: list[Any] = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDWR, 0),
        (os.POSIX_SPAWN_DUP2, 0, 1),
        (os.POSIX_SPAWN_OPEN, 2, stderr_path, append, 0o640),
        (os.POSIX_SPAWN_DUP2, server.fileno(), 3),
    ]
    if server.fileno() == 3:
        os.set_inheritable(3, True)
        actions.pop()
    return os.posix_spawn(
        sys.executable,
        [*arguments, "--files", str(files)],
        environment,
        file_actions=actions,
        setsid=True,
        setsigmask=(),
        # All: what nexusd was started with ignored (nohup, a shell's background job) no module should have so.
        setsigdef=signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP},
    )


def raise_file_limit() -> int:
    """Two descriptors a run, and the API's connections, are more than the usual 1,024. Returns what was."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return soft
