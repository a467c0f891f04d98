"""From fork to the module's first instruction: everything a new process is given before it is the module.

The child waits at a gate until the keeper has written its pid down, so no process of a module ever runs unknown.
What it is to be comes through the gate, and so does, the other way, what goes wrong before the module's own code.
"""

import ctypes  # (loaded before the fork: the title is written through it)
import fcntl
import json
import os
import resource
import signal
import socket
import sys
import traceback
from typing import Any, NamedTuple, NoReturn

from nexusd.keeper import protocol
from nexusd.keeper.proctable import Title

Launch = dict[str, Any]

FIRST_FD = 3  # LISTEN_FDS begin here (sd_listen_fds(3)); the control socket follows them
_ASIDE = 200  # descriptors wait up here while the low numbers are given out
_UMASK = 0o022
_INHERITED = dict(os.environ)  # the keeper's own, which it never changes
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LIMITS = {"files": resource.RLIMIT_NOFILE, "memory": resource.RLIMIT_DATA}


class Refused(Exception):
    """The module's own code was not reached; `refusal` tells nexusd why."""

    def __init__(self, refusal: dict[str, Any]) -> None:
        super().__init__(refusal["reason"])
        self.refusal = refusal


def refusal(step: str, error: BaseException) -> dict[str, Any]:
    """What went wrong, and at which step: prepare, limits, user, directory, fork or exec."""
    told: dict[str, Any] = {
        "step": step,
        "errno": None,
        "reason": f"{type(error).__name__}: {error}",
        "about": None,
    }
    if isinstance(error, OSError):
        about = str(error.filename) if error.filename else None
        told |= {"errno": error.errno, "reason": error.strerror or str(error), "about": about}
    return told


def prepare_keeper() -> None:
    """Once: what every process inherits. What Python ignores is caught instead: exec resets that (execve(2))."""
    os.umask(_UMASK)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, _pass_over)


def _pass_over(*_: object) -> None:
    pass


def _reset_signals() -> None:
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)


class Newborn(NamedTuple):
    """A child that waits to be told what it is to be; it ends when the other side of its gate does."""

    pid: int
    gate: socket.socket


def fork(title: Title | None, spare: bool = False) -> Newborn:
    """A child that waits for `launch`. A spare prepares itself meanwhile. Raises OSError."""
    gate, child_gate = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        pid = os.fork()
    except OSError:
        gate.close()
        child_gate.close()
        raise
    if pid == 0:
        _wait(child_gate.detach(), title, spare)
    child_gate.close()
    gate.setblocking(False)
    return Newborn(pid, gate)


def launch(newborn: Newborn, launch: Launch, fds: list[int]) -> None:
    """Let it go. Raises OSError when it is dead already, protocol.TooLong.

    launch: argv, or python (`file:Class`) and folder; environment, directory, and if given limits and user:
    uid, gid, groups. fds: the log's writing end, the control socket, then the listening sockets.
    """
    protocol.send(newborn.gate, protocol.encode(launch), tuple(fds))


def read_gate(gate: socket.socket) -> dict[str, Any] | None:
    """What went wrong on the way, None when the module's own code was reached. BlockingIOError: too early."""
    said = gate.recv(4096)
    return json.loads(said) if said else None


def _wait(gate: int, title: Title | None, spare: bool) -> NoReturn:
    """The child's first steps. If the keeper dies before it could write us down, we never were."""
    try:
        os.setsid()
        aside = fcntl.fcntl(gate, fcntl.F_DUPFD_CLOEXEC, _ASIDE)
        os.closerange(FIRST_FD, aside)
        os.closerange(aside + 1, os.sysconf("SC_OPEN_MAX"))
        if spare:
            _prepare(title)
        with socket.socket(fileno=aside) as door:
            received = protocol.receive(door)
            if received is not None:
                _be_born(*received, door.detach(), title)
    except BaseException:  # nothing may unwind into the keeper's own loop
        traceback.print_exc()
    os._exit(0)


def _prepare(title: Title | None) -> None:
    """Touch what a module's start touches, so that it is copied before anybody waits for it."""
    from nexusd.keeper import host  # noqa: PLC0415  (warm already)

    if title is not None:
        title.show("nexus-spare", "nexus: spare")
    host.rehearse()


def _be_born(launch: Launch, fds: list[int], gate: int, title: Title | None) -> NoReturn:
    step = "prepare"
    try:
        gate = _lay_out(fds, gate)
        step = "limits"
        _limit(launch.get("limits", {}))
        step = "user"
        _change_user(launch.get("user"))
        if launch.get("dies_with_keeper"):
            _die_with_parent()
        step = "directory"
        os.chdir(launch["directory"])
        surroundings = environment(launch, len(fds) - 2)
        step = "exec"
        if "python" in launch:
            _become_host(launch, surroundings, title, gate)
        argv = launch["argv"]
        os.execve(executable(argv[0], surroundings), argv, surroundings)
    except BaseException as error:  # as above
        _tell(gate, step, error)
    os._exit(127)


def _tell(gate: int, step: str, error: BaseException) -> None:
    try:
        os.write(gate, json.dumps(refusal(step, error)).encode())
    except OSError:
        pass  # the keeper is gone, nobody is left to be told


def _lay_out(fds: list[int], gate: int) -> int:
    """stdin, stdout, stderr, the listening sockets, the control socket, the gate; nothing else stays open."""
    log, control, *listening = (fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _ASIDE) for fd in fds)
    gate_aside = fcntl.fcntl(gate, fcntl.F_DUPFD_CLOEXEC, _ASIDE)
    null = os.open(os.devnull, os.O_RDONLY)
    wanted = [null, log, log, *listening, control]
    for number, source in enumerate(wanted):
        os.dup2(source, number, inheritable=True)
    os.dup2(gate_aside, len(wanted), inheritable=False)
    os.closerange(len(wanted) + 1, os.sysconf("SC_OPEN_MAX"))
    return len(wanted)


def _limit(limits: dict[str, int]) -> None:
    for name, value in limits.items():
        kind = _LIMITS[name]
        hard = resource.getrlimit(kind)[1]
        ceiling = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (ceiling, hard if name == "files" else ceiling))


def _change_user(user: dict[str, Any] | None) -> None:
    if user is None:
        return
    if os.getuid() == 0:
        os.setgroups(user["groups"])
    os.setresgid(user["gid"], user["gid"], user["gid"])
    os.setresuid(user["uid"], user["uid"], user["uid"])


def _die_with_parent() -> None:
    """After a change of user, which clears it (prctl(2)). One that lost its keeper just before, the next ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def environment(launch: Launch, listening: int) -> dict[str, str]:
    """For the process that calls, or, without listening sockets, for any."""
    variables: dict[str, str] = launch["environment"]
    if "control_path" in launch:
        variables["NEXUS_CONTROL_FD"] = str(FIRST_FD + listening)
    if listening:
        variables |= {"LISTEN_FDS": str(listening), "LISTEN_PID": str(os.getpid())}
    return variables


def executable(name: str, environment: dict[str, str]) -> str:
    """The file to execute: a name without a slash is looked up in the module's PATH, as a shell would."""
    if "/" in name:
        return name
    for folder in environment.get("PATH", os.defpath).split(":"):
        path = os.path.join(folder, name)
        if os.access(path, os.X_OK) and os.path.isfile(path):
            return path
    raise FileNotFoundError(2, "not found in PATH", name)


def _surround(environment: dict[str, str]) -> None:
    """Make this process's environment the given one. Most of it is there: what need not be touched is not copied."""
    for variable in _INHERITED:
        if variable not in environment:
            del os.environ[variable]
    for variable, value in environment.items():
        if _INHERITED.get(variable) != value:
            os.environ[variable] = value


def _become_host(launch: Launch, environment: dict[str, str], title: Title | None, gate: int) -> NoReturn:
    from nexusd.keeper import host  # noqa: PLC0415  (warm already; cold keepers never pay for it)

    _surround(environment)
    name = f"{environment['NEXUS_MODULE_ID']}#{environment['NEXUS_REPLICA']}"
    if title is not None:
        title.show(name.rpartition("/")[2], f"nexus: {name}")
        title.carry(environment["NEXUS_RUN"])
    sys.argv = [launch["python"]]
    _reset_signals()
    os.close(gate)
    host.run(launch["python"], launch["folder"])
