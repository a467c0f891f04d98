"""The socket's place in the file system: bound without a window, never taken from a living daemon.

What is spoken there is decided elsewhere.
"""

import fcntl
import grp
import logging
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nexusd.domain.addresses import LONGEST_SOCKET_PATH
from nexusd.domain.errors import NotPossible
from nexusd.rpc.peers import credentials

log = logging.getLogger("nexusd.rpc")

BACKLOG = 1024  # a full one makes connect() fail with EAGAIN for clients that do not block


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A listening socket and the file that leads to it."""

    sock: socket.socket
    path: Path
    identity: tuple[int, int]

    def remove(self) -> None:
        """Delete the file, unless the path leads to somebody else's socket by now."""
        try:
            with _locked(self.path):
                if _identity(self.path) == self.identity:
                    self.path.unlink()
        # Its folder has gone, or is another's by now: the next daemon clears it away.
        except OSError as failure:
            log.warning("cannot remove %s: %s", self.path, failure.strerror)


def bind(path: Path, *, mode: int = 0o660, group: str | None = None) -> Endpoint:
    """Listen on `path`, clearing away what a dead daemon left there. Raises NotPossible, and then has touched
    nothing.
    """
    if len(os.fsencode(path)) > LONGEST_SOCKET_PATH:
        raise NotPossible(
            f"the socket's path is too long: {path}",
            reason=f"it has {len(os.fsencode(path))} bytes, the kernel takes {LONGEST_SOCKET_PATH}",
            hint="choose a shorter one with --socket or NEXUS_SOCKET",
        )
    try:
        with _locked(path):
            _clear_stale(path)
            return _bind(path, mode, group)
    except OSError as failure:
        raise NotPossible(f"cannot listen on {path}: {failure.strerror}", reason=str(failure)) from failure


def taken_over(descriptor: int, path: str, identity: tuple[int, int]) -> Endpoint:
    """As the nexusd that bound it handed it over."""
    return Endpoint(socket.socket(fileno=descriptor), Path(path), identity)


def _bind(path: Path, mode: int, group: str | None) -> Endpoint:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # bind() makes the file with 0777 less the umask; a chmod after it would leave a moment of open doors.
    before = os.umask(0o777 & ~mode)
    try:
        sock.bind(os.fspath(path))
    except OSError:
        sock.close()
        raise
    finally:
        os.umask(before)
    identity = _identity(path)
    assert identity is not None
    if group is not None:
        _give_to(path, group)
    sock.listen(BACKLOG)
    sock.setblocking(False)
    return Endpoint(sock, path, identity)


def _give_to(path: Path, group: str) -> None:
    try:
        os.chown(path, -1, grp.getgrnam(group).gr_gid)
    except KeyError:
        log.info("there is no group %s: %s is for its owner alone", group, path)
    except OSError as failure:
        log.warning("cannot give %s to the group %s: %s", path, group, failure.strerror)


def _clear_stale(path: Path) -> None:
    """Make way, if what stands at `path` is a socket that nobody listens on."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise NotPossible(
            f"{path} is in the way: it is not a socket",
            hint="nexusd does not delete it; move it, or choose another path with --socket",
        )
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:  # its backlog is full: busy, so alive
            raise _taken(path, "it is busy") from None
        raise _taken(path, f"pid {credentials(probe)[0]}")


def _taken(path: Path, who: str) -> NotPossible:
    hint = "nexusctl status asks it; nexusctl shutdown ends it"
    return NotPossible(f"another nexusd answers on {path} ({who})", hint=hint)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One daemon at a time at this path. The lock file stays: to delete it would let two hold "the" lock."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(f"{path}.lock", flags, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
