"""What a keeper finds again of a run whose old keeper and nexusd died together: in /proc, and in the run itself."""

import json
import os
import socket
import stat
import time
from collections.abc import Callable, Container

from nexusd.keeper import birth, proctable
from nexusd.keeper.endpoints import notify_socket
from nexusd.keeper.run import Run

_IS_READY = b'{"jsonrpc":"2.0","id":1,"method":"ready"}\n'
_ANSWER_BYTES = 4096
_BIRTH_S = 1.0  # from the gate to the module's own code, or to the end of a child whose keeper is gone


def find_process(run: Run) -> bool:
    """A plain program whose keeper died before it knew its pid: it leads the session that it was born into."""
    for process, named in proctable.parentless():
        if named == run.key and process.session == process.pid:
            run.pid, run.start_ticks = process.pid, process.start_ticks
            return True
    return False


def has_begun(run: Run) -> bool:
    """Whether a process that was at its gate when its keeper died, or just let through, goes on as the module.

    It ends where it is, or bears the run's key soon; one that shows neither is taken for the module. One that came
    through and has ended already is taken for unborn: it would have to do both before the next keeper is there.
    """
    over = time.monotonic() + _BIRTH_S
    while run.is_alive():
        if proctable.stray(run.process()).run == run.key or time.monotonic() > over:
            run.begun = True
            return True
        time.sleep(0.005)
    return False


def find_log_pipe(run: Run) -> int | None:
    """The reading end of the pipe that a living run writes its log to, found through /proc; None: out of reach."""
    for process in (run.pid, *proctable.children(run.pid)):
        for number in (1, 2):
            path = f"/proc/{process}/fd/{number}"
            try:
                found = os.stat(path)
                if stat.S_ISFIFO(found.st_mode) and found.st_ino == run.pipe:
                    return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError:  # gone, closed, or not ours to see
                continue
    return None


def find_listening(run: Run, held: Container[str], complain: Callable[[str], None]) -> dict[str, int]:
    """The replica has the sockets that died with their holders; one of them is as good as another."""
    found: dict[str, int] = {}
    for place, name in enumerate(run.listening):
        if name in held or name in found:
            continue
        try:
            found[name] = proctable.take_listening_socket(run.pid, birth.FIRST_FD + place)
        except OSError as error:
            complain(f"{run.key}: its socket {name} is out of reach: {error.strerror or error}")
    return found


def bind_again(path: str) -> int:
    """A new notify socket in the place of one that died with its holders, for the same user alone."""
    owner = os.getuid()
    if os.path.exists(path):
        owner = os.stat(path).st_uid
        os.unlink(path)
    return notify_socket(path, owner)


def ask_whether_ready(run: Run) -> socket.socket | None:
    """A question on its control socket: its READY=1 may lie in the notify socket that died. None: it can't be asked.

    A run that is still starting answers when it is ready.
    """
    asking = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        asking.connect(run.control_path)
        asking.sendall(_IS_READY)
    except OSError:  # many others wait already for a run that accepts nobody, or it does not listen any more
        asking.close()
        return None
    return asking


def says_ready(asking: socket.socket) -> bool:
    """What has come as the answer; a program that does not know the question is not known to be ready."""
    try:
        answer = json.loads(asking.recv(_ANSWER_BYTES))
    except (OSError, ValueError, RecursionError):  # it hung up, or says what is no answer
        return False
    match answer:
        case {"result": {"ready": True}}:
            return True
    return False
