"""Kills all that belongs to a run, again until nothing is left, and knows which processes those are.

When a run has to go is not decided here; what follows its end is the keeper's.
"""

import os
import signal
import time
from collections.abc import Callable

from nexusd.keeper import leaf, proctable
from nexusd.keeper.run import Run

SWEEP_S = 0.02  # how often what is being killed is looked for again
LINGER_S = 5.0  # an end is told at the latest then, even if something can't be killed


class Sweep:
    def __init__(self, is_known: Callable[[int], bool], ended: Callable[[Run], None]) -> None:
        """is_known: whether a child of the keeper is no orphan. ended: is told when nothing of a run is left."""
        self._is_known = is_known
        self._ended = ended
        self._runs: dict[str, Run] = {}
        self._at = 0.0
        self._parentless: tuple[float, list[proctable.Stray]] = (0.0, [])

    def begin(self, run: Run) -> None:
        self._runs[run.key] = run
        self._at = 0.0

    def drop(self, run: Run) -> None:
        self._runs.pop(run.key, None)

    def patience(self) -> float | None:
        """Seconds until there is something to do; None: nothing is being killed."""
        return max(0.0, self._at - time.monotonic()) if self._runs else None

    def tend(self) -> None:
        if self._runs and time.monotonic() >= self._at:
            for run in tuple(self._runs.values()):
                self._sweep(run)
            self._at = time.monotonic() + SWEEP_S

    def _sweep(self, run: Run) -> None:
        """SIGKILL all that is left of the run; looked at again until nothing is."""
        if run.leaf:
            leaf.kill(run.leaf)
        left = self.members(run)
        for process in left:
            proctable.send_signal(process, signal.SIGKILL)
        if not left:
            del self._runs[run.key]
        if run.ending is not None and (not left or time.monotonic() - run.ending["at"] > LINGER_S):
            self._ended(run)

    # Who belongs to whom

    def members(self, run: Run) -> list[proctable.Stat]:
        """Of a run with a leaf those in it, and by the walk those that moved themselves out of it."""
        if not run.leaf:
            return proctable.members(run.key, run.process(), self.strays if run.is_child else self._strangers)
        walked = proctable.members(run.key, run.process(), self.strays)
        inside = filter(None, map(proctable.stat, leaf.pids(run.leaf)))
        return list({one.pid: one for one in (*walked, *inside) if one.state not in "ZX"}.values())

    def orphans(self) -> list[int]:
        return [pid for pid in proctable.children(os.getpid()) if not self._is_known(pid)]

    def strays(self) -> list[proctable.Stray]:
        found = (proctable.stat(pid) for pid in self.orphans())
        return [proctable.stray(process) for process in found if process is not None]

    def _strangers(self) -> list[proctable.Stray]:
        """Where orphans of runs that were taken over are found; it takes a look at every process of the host."""
        now = time.monotonic()
        if now - self._parentless[0] > SWEEP_S / 2:
            self._parentless = (now, proctable.parentless())
        return self._parentless[1]
