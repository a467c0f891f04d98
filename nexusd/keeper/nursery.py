"""Children of the keeper that are to become modules: forked when one is wanted, and a spare forked before.

A spare has set up and copied what every Python module needs, and waits; so a module that is started alone, after a
crash for instance, is ready in a fraction of the time. What a child becomes, and when, is the keeper's to say.
"""

import math
import os
import signal
import time
from collections.abc import Iterator

from nexusd.keeper import birth
from nexusd.keeper.birth import Newborn
from nexusd.keeper.proctable import Title

CALM_S = 0.1  # so long after the last start of a module a spare is made: no start has to wait for it
RETRY_S = 5.0


class Nursery:
    def __init__(self, title: Title | None) -> None:
        self.due = math.inf  # monotonic seconds: when a spare is to be made
        self._title = title
        self._warm = False
        self._spare: Newborn | None = None

    @property
    def spare(self) -> int | None:
        """The pid of the spare."""
        return self._spare.pid if self._spare else None

    def warm_up(self) -> None:
        """Before the first Python module: its children find imported what they need. Raises ImportError."""
        if not self._warm:
            from nexusd.keeper import host  # noqa: PLC0415  (100 ms that a fleet of plain programs never pays)

            host.warm()
            self._warm = True
            self.due = time.monotonic() + CALM_S

    def newborns(self, for_python: bool) -> Iterator[Newborn]:
        """Children to be tried one after the other: the spare may be dead. Raises OSError, ImportError."""
        if for_python:
            self.warm_up()
            spare, self._spare = self._spare, None
            self.due = time.monotonic() + CALM_S
            if spare is not None:
                yield spare
        yield birth.fork(self._title)

    def make_spare(self) -> None:
        """If it is time. Raises OSError, and is due again a little later."""
        if time.monotonic() < self.due:
            return
        self.due = time.monotonic() + RETRY_S
        self._spare = birth.fork(self._title, spare=True)
        self.due = math.inf

    def reaped(self, pid: int) -> None:
        """A child has ended. If it was the spare, there will be another."""
        if self._spare is not None and pid == self._spare.pid:
            self._spare.gate.close()
            self._spare, self.due = None, time.monotonic() + RETRY_S

    def close(self) -> None:
        if self._spare is not None:
            os.kill(self._spare.pid, signal.SIGKILL)
            os.waitpid(self._spare.pid, 0)
            self._spare = None
