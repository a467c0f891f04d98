"""Gives a run its process: leaf, journal and fork in an order in which no keeper's death loses what it has begun.

How a process is born is `birth`'s and `spawning`'s; what the run holds afterwards is the keeper's.
"""

import errno
from collections.abc import Callable
from typing import Any

from nexusd.keeper import birth, leaf, proctable, spawning
from nexusd.keeper.memory import Memory
from nexusd.keeper.nursery import Nursery
from nexusd.keeper.run import Run


class Launcher:
    def __init__(
        self, nursery: Nursery, memory: Memory, leave_leaf: Callable[[Run], None], null: int
    ) -> None:
        self._nursery = nursery
        self._memory = memory
        self._leave_leaf = leave_leaf
        self._null = null

    def start(self, run: Run, launch: dict[str, Any], fds: list[int]) -> None:
        """A process for the run, both written down. fds: log to write, control, listening sockets. Raises Refused."""
        step = "cgroup"
        try:
            if run.leaf:
                leaf.make(launch.pop("leaf"))
            step = "fork"
            if not run.leaf and spawning.is_plain(launch, fds[2:]):
                self._spawn_plain(run, launch, *fds)
            else:
                self._fork(run, launch, fds)
        except (OSError, ImportError, ValueError) as error:
            self._never_began(run)
            raise birth.Refused(birth.refusal(step, error)) from error
        except birth.Refused:
            self._never_began(run)
            raise

    def _never_began(self, run: Run) -> None:
        self._memory.gone(run.key)
        self._leave_leaf(run)

    def _spawn_plain(self, run: Run, launch: dict[str, Any], log: int, control: int) -> None:
        """It runs before its pid can be written down, so first its key is, which its environment bears, too."""
        self._memory.run(run.entry())
        run.pid = spawning.spawn(launch, log, control, self._null)
        run.running = True
        self._identify(run)

    def _fork(self, run: Run, launch: dict[str, Any], fds: list[int]) -> None:
        for newborn in self._nursery.newborns("python" in launch):
            run.pid, run.gate = newborn
            run.begun = False
            self._identify(run)
            try:
                if run.leaf:  # while it waits: so its first instruction is in there, and all that it forks
                    leaf.move(run.leaf, run.pid)
                birth.launch(newborn, launch, fds)
                run.begun = True
                self._memory.run(run.entry())
                return
            except OSError as error:
                newborn.gate.close()
                if error.errno not in (errno.EPIPE, errno.ECONNRESET, errno.ESRCH):
                    raise
        raise ChildProcessError(errno.ECHILD, "its process was killed before it was told what to be")

    def _identify(self, run: Run) -> None:
        process = proctable.stat(run.pid)
        assert process is not None  # our own child, not yet waited for
        run.start_ticks = process.start_ticks
        self._memory.run(run.entry())
