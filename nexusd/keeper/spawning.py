"""Starts a plain program by posix_spawn(3): the keeper's memory is not copied, so it takes half as long as a fork.

Where a process needs what that can't give (another user, a limit on memory, listening sockets, whose LISTEN_PID
names the process itself), `birth` forks it.
"""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager

from nexusd.keeper.birth import FIRST_FD, Launch, Refused, environment, executable, refusal

_LIMITS = {"files"}


def is_plain(launch: Launch, listening: list[int]) -> bool:
    limits = launch.get("limits", {})
    return (
        "python" not in launch and launch.get("user") is None and not listening and limits.keys() <= _LIMITS
    )


def spawn(launch: Launch, log: int, control: int, null: int) -> int:
    """The pid of a process that runs the program already. Raises Refused, and leaves nothing behind then.

    log, control, null (/dev/null): descriptors above those that the process is given.
    """
    step = "directory"
    try:
        os.chdir(launch["directory"])
        step = "exec"
        surroundings = environment(launch, 0)
        argv = launch["argv"]
        program = executable(argv[0], surroundings)
        with _open_files(launch.get("limits", {}).get("files")):
            return os.posix_spawn(
                program, argv, surroundings, file_actions=_descriptors(log, control, null), setsid=True
            )
    except (OSError, ValueError) as error:
        raise Refused(refusal(step, error)) from error
    finally:
        os.chdir("/")  # the keeper holds no file system


def _descriptors(log: int, control: int, null: int) -> list[tuple[int, int, int]]:
    """The same as `birth` lays out; every other descriptor of the keeper is closed by the exec."""
    wanted = (null, log, log, control)
    assert min(wanted) > FIRST_FD  # else one would be replaced before its turn
    return [(os.POSIX_SPAWN_DUP2, source, number) for number, source in enumerate(wanted)]


@contextmanager
def _open_files(limit: int | None) -> Iterator[None]:
    """Have the next process inherit this soft limit."""
    if limit is None:
        yield
        return
    own = resource.getrlimit(resource.RLIMIT_NOFILE)
    hard = own[1]
    ceiling = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (ceiling, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, own)
