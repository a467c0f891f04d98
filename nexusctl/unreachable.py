"""Where the daemon's socket is, and why it could not be reached, in one sentence for an operator.

`cause` tells a program which it was: no daemon, no permission, not our protocol, timed out, shut down.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import stat

SYSTEM_SOCKET = "/run/nexus.sock"
PATH_LIMIT = 107  # sockaddr_un.sun_path holds 108 bytes, the last of them NUL

NO_DAEMON = "no daemon"
NO_PERMISSION = "no permission"
NOT_OUR_PROTOCOL = "not our protocol"
TIMED_OUT = "timed out"
SHUT_DOWN = "shut down"


def default_socket() -> str:
    """NEXUS_SOCKET; /run/nexus.sock for root; else the user's own, or the system's where only that is there.

    The user's own, where a nexusd of that user listens, is $XDG_RUNTIME_DIR/nexus/nexus.sock, and without that
    variable /tmp/nexus-UID/nexus.sock.
    """
    named = os.environ.get("NEXUS_SOCKET")
    if named:
        return named
    if os.geteuid() == 0:
        return SYSTEM_SOCKET
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    own = f"{runtime}/nexus/nexus.sock" if runtime else f"{_shared_folder()}/nexus.sock"
    return SYSTEM_SOCKET if os.path.exists(SYSTEM_SOCKET) and not os.path.exists(own) else own


def _shared_folder() -> str:
    return f"/tmp/nexus-{os.geteuid()}"


class Unreachable(ConnectionError):
    """No answer could be had. `cause` is one of the five words above, `str()` a full sentence."""

    def __init__(self, cause: str, sentence: str, path: str) -> None:
        super().__init__(sentence)
        self.cause = cause
        self.path = path


class Forbidden(Unreachable, PermissionError):
    """The socket lets this user not in: a daemon may well run, and is not ours to ask."""


class CutOff(Unreachable):
    """The connection was there, and ended before the answer: what was asked may have been done, or not."""


def unreachable(path: str, error: OSError) -> Unreachable:
    """An OSError of connect() as one of the causes, with what an operator needs to know."""
    if isinstance(error, Unreachable):
        return error
    if isinstance(error, TimeoutError):
        return Unreachable(TIMED_OUT, f"nobody accepted the connection at {path} in time", path)
    if error.errno in (errno.EACCES, errno.EPERM):
        return Forbidden(NO_PERMISSION, f"{_who_you_are()}; {_what_it_is(path)}", path)
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return Unreachable(NO_DAEMON, f"no daemon: {path} does not exist", path)
    if len(os.fsencode(path)) > PATH_LIMIT:
        return Unreachable(
            NO_DAEMON, f"{path} is too long: a socket's path has at most {PATH_LIMIT} bytes", path
        )
    if error.errno == errno.EPROTOTYPE:
        return Unreachable(NOT_OUR_PROTOCOL, f"{path} is a socket, but not a stream socket", path)
    if error.errno == errno.ECONNREFUSED and not _is_socket(path):
        return Unreachable(NOT_OUR_PROTOCOL, f"{path} is not a socket", path)
    if error.errno == errno.ECONNREFUSED:
        return Unreachable(NO_DAEMON, f"no daemon: {path} is left over from one, nobody listens there", path)
    return Unreachable(NO_DAEMON, f"no daemon: {path}: {error.strerror or error}", path)


def closed(path: str, method: str) -> CutOff:
    """A daemon that leaves in good order takes its socket away first."""
    if not os.path.lexists(path):
        return CutOff(SHUT_DOWN, "nexusd has shut down", path)
    return CutOff(NO_DAEMON, f"the daemon at {path} closed the connection before it answered {method}", path)


def unanswered(path: str, method: str, timeout: float) -> Unreachable:
    return Unreachable(TIMED_OUT, f"{method} was not answered within {timeout:g} s at {path}", path)


def refuse_foreign_folder(path: str) -> None:
    """/tmp/nexus-UID can be made by anybody: talk there only to what lies in a folder of our own."""
    folder = _shared_folder()
    if path != f"{folder}/nexus.sock":
        return
    try:
        owner = os.lstat(folder).st_uid
    except OSError:
        return
    if owner not in (0, os.geteuid()):
        text = f"{_who_you_are()}; {folder} belongs to {_user(owner)}: what listens there is not yours"
        raise Forbidden(NO_PERMISSION, text, path)


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return True


def _who_you_are() -> str:
    groups = ", ".join(_group(gid) for gid in sorted({os.getegid(), *os.getgroups()}))
    return f"you are {_user(os.geteuid())}, of group {groups}"


def _what_it_is(path: str) -> str:
    """The socket's owner and mode; where even looking is forbidden, those of the folder that forbids it."""
    while True:
        try:
            found = os.stat(path)
        except PermissionError:
            path = os.path.dirname(path) or "."
            continue
        except OSError as error:
            return f"{path}: {error.strerror}"
        owner = f"{_user(found.st_uid)}, group {_group(found.st_gid)}"
        return f"{path} is {stat.filemode(found.st_mode)} and belongs to {owner}"


def _user(uid: int) -> str:
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
