"""What a run is given before it has a process: the pipe of its log and its sockets, for its user alone.

Which of them a run has, and who holds them, is the client's and the keeper's.
"""

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterable

PIPE_BYTES = 1 << 20


def log_pipe(uid: int) -> tuple[int, int]:
    """The writing end is opened for reading too: then it never breaks, even while nobody holds the other end."""
    reading, writing = os.pipe()
    try:
        both = os.open(f"/proc/self/fd/{writing}", os.O_RDWR | os.O_CLOEXEC)
        if _is_to_be_given(uid):
            os.fchown(both, uid, -1)  # or its user could not open /dev/stdout
    except OSError:
        os.close(reading)
        raise
    finally:
        os.close(writing)
    if os.getuid() == 0:  # others have 64 MiB of pipes in all (pipe(7), pipe-user-pages-soft)
        with contextlib.suppress(OSError):  # nor root, in a container, may have more than pipe-max-size
            fcntl.fcntl(reading, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    return reading, both


def bind_private(kind: socket.SocketKind, path: str, uid: int = 0) -> socket.socket:
    """A socket at `path`, for this user alone: ours, or the one that it is to be given to."""
    sock = socket.socket(socket.AF_UNIX, kind)
    before = os.umask(0o177)
    try:
        sock.bind(path)
    finally:
        os.umask(before)
    if _is_to_be_given(uid):
        os.chown(path, uid, -1)
    return sock


def notify_socket(path: str, uid: int) -> int:
    return bind_private(socket.SOCK_DGRAM, path, uid).detach()


def control_socket(path: str, uid: int) -> int:
    sock = bind_private(socket.SOCK_STREAM, path, uid)
    sock.listen(16)
    return sock.detach()


def _is_to_be_given(uid: int) -> bool:
    """Who is not root can't, and can't run a process as that user either: the birth says so."""
    return os.getuid() == 0 and uid != 0


def unlink(paths: Iterable[str]) -> None:
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
