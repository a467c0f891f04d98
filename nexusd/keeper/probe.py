"""Check programs: started for nexusd, read, ended at their time-out with all that they started, and told.

What is run, and what an exit status means, is nexusd's; the loop and the one reaper are the keeper's. A probe is
no run: it stands in no table and no journal, and dies with the keeper.
"""

import errno
import math
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from nexusd.keeper import birth, proctable
from nexusd.keeper.loop import Loop
from nexusd.keeper.protocol import Message
from nexusd.keeper.sweep import LINGER_S, SWEEP_S

LEAVE_S = 1.0  # how long a keeper that goes sees to their ends
MOST_BYTES = 1 << 20  # of output; a program that writes more than this is not read further
TAIL_BYTES = 4096
LINE_LENGTH = 300
_READ_BYTES = 1 << 16
_LOOK_S = 0.005


@dataclass(slots=True, eq=False)
class _Probe:
    number: int
    mark: str  # its NEXUS_RUN, by which what it leaves behind is known
    leader: proctable.Stat
    deadline: float
    output: int = -1
    gate: Any = None
    taken: int = 0
    tail: bytearray = field(default_factory=bytearray)
    answered: bool = False
    ended: bool = False  # its first process has been reaped


class Probes:
    def __init__(
        self,
        loop: Loop,
        tell: Callable[[Message], None],
        strays: Callable[[], list[proctable.Stray]],
        runtime: str,
        soft_files: int,
    ) -> None:
        self._loop = loop
        self._tell = tell
        self._strays = strays
        self._mark = f"check of {runtime} "
        self._soft_files = soft_files
        self._by_pid: dict[int, _Probe] = {}
        self._sweeping: list[_Probe] = []
        self._sweep_at = 0.0

    def __contains__(self, pid: int) -> bool:
        return pid in self._by_pid

    def start(self, message: Message, _fds: list[int]) -> None:
        """`probe` of the protocol."""
        try:
            probe = self._fork(message)
        except (OSError, ValueError) as error:
            self._tell({"say": "probed", "id": message["id"], "refusal": birth.refusal("fork", error)})
            return
        self._by_pid[probe.leader.pid] = probe
        self._loop.watch(probe.output, lambda: self._read(probe))

    def _fork(self, message: Message) -> _Probe:
        mark = f"{self._mark}{os.getpid()} {message['id']}"
        launch = message["launch"] | {"dies_with_keeper": True}
        launch["environment"]["NEXUS_RUN"] = mark
        launch.setdefault("limits", {}).setdefault("files", self._soft_files)
        reading, writing = os.pipe()
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)  # in the place of a control socket
        newborn = None
        try:
            if launch.get("user") is not None:
                os.fchown(writing, launch["user"]["uid"], -1)  # or its user could not open /dev/stdout
            newborn = birth.fork(None)
            birth.launch(newborn, launch, [writing, null])
        except (OSError, ValueError):
            os.close(reading)
            if newborn is not None:
                newborn.gate.close()  # at which it ends
            raise
        finally:
            os.close(writing)
            os.close(null)
        os.set_blocking(reading, False)
        leader = proctable.stat(newborn.pid)
        assert leader is not None  # our own child, not yet waited for
        deadline = time.monotonic() + message["timeout"]
        return _Probe(message["id"], mark, leader, deadline, reading, newborn.gate)

    def reaped(self, pid: int, status: int) -> None:
        """The first process of a probe has ended: that is the answer. What it left behind goes, too."""
        probe = self._by_pid.pop(pid, None)
        if probe is None:
            return
        probe.ended = True
        while probe.output >= 0 and self._read(probe):
            pass
        self._answer(probe, status=status)
        self._end(probe)

    # Time

    def patience(self) -> float:
        """Seconds until there is something to do."""
        waiting = [probe.deadline for probe in self._by_pid.values() if not probe.answered]
        if self._sweeping:
            waiting.append(self._sweep_at)
        return max(0.0, min(waiting) - time.monotonic()) if waiting else math.inf

    def tend(self) -> None:
        """End what has had its time, and whatever is left of those that ended."""
        now = time.monotonic()
        for probe in tuple(self._by_pid.values()):
            if not probe.answered and probe.deadline <= now:
                self._answer(probe, timed_out=True)
                self._end(probe)
        if self._sweeping and now >= self._sweep_at:
            for probe in tuple(self._sweeping):
                self._sweep(probe)
            self._sweep_at = now + SWEEP_S

    def end_all(self) -> None:
        """The keeper goes, and its probes with it; the kernel would see to their first processes only.

        Again until nothing is left: what one of them forked meanwhile was not seen the first time.
        """
        left = {*self._by_pid.values(), *self._sweeping}
        deadline = time.monotonic() + LEAVE_S
        while (left := {probe for probe in left if self._kill(probe)}) and time.monotonic() < deadline:
            time.sleep(_LOOK_S)

    def end_former(self) -> None:
        """What probes of a keeper that was killed have started, and the kernel did not end with it."""
        for process, mark in proctable.parentless():
            if mark is not None and mark.startswith(self._mark):
                proctable.send_signal(process, signal.SIGKILL)

    def _end(self, probe: _Probe) -> None:
        self._close(probe)
        probe.deadline = time.monotonic() + LINGER_S
        if probe not in self._sweeping:
            self._sweeping.append(probe)
        self._sweep(probe)

    def _sweep(self, probe: _Probe) -> None:
        """SIGKILL all that is left of it; looked at again until nothing is."""
        left = self._kill(probe)
        if (not left and probe.ended) or time.monotonic() > probe.deadline:
            self._sweeping.remove(probe)

    def _kill(self, probe: _Probe) -> list[proctable.Stat]:
        left = proctable.members(probe.mark, probe.leader, self._strays)
        for process in left:
            proctable.send_signal(process, signal.SIGKILL)
        return left

    # Output

    def _read(self, probe: _Probe) -> int:
        """One piece. Only the end of it is kept; past MOST_BYTES the writer gets SIGPIPE."""
        try:
            piece = os.read(probe.output, _READ_BYTES)
        except BlockingIOError:
            return 0
        probe.taken += len(piece)
        probe.tail = (probe.tail + piece)[-TAIL_BYTES:]
        if not piece or probe.taken > MOST_BYTES:
            self._close_output(probe)
        return len(piece)

    def _close_output(self, probe: _Probe) -> None:
        if probe.output >= 0:
            self._loop.unwatch(probe.output)
            os.close(probe.output)
            probe.output = -1

    def _close(self, probe: _Probe) -> None:
        self._close_output(probe)
        if probe.gate is not None:
            probe.gate.close()
            probe.gate = None

    # Answers

    def _answer(self, probe: _Probe, status: int | None = None, timed_out: bool = False) -> None:
        """Once: a probe whose time was up is told when it is up, whether it can be killed or not."""
        if probe.answered:
            return
        probe.answered = True
        told = {
            "status": status,
            "timed_out": timed_out,
            "refusal": _refusal(probe),
            "line": _line(probe.tail),
            "tail": probe.tail.decode(errors="replace"),
        }
        flooded = {"flooded": probe.taken > MOST_BYTES}
        self._tell({"say": "probed", "id": probe.number, **told, **flooded})


def _refusal(probe: _Probe) -> Message | None:
    """Why its own program was never reached, if it was not."""
    try:
        return birth.read_gate(probe.gate)
    except BlockingIOError:  # nobody closed the gate, nobody wrote into it: it is still on its way
        return None
    except (OSError, ValueError) as error:
        return {
            "step": "prepare",
            "errno": getattr(error, "errno", errno.EIO),
            "reason": str(error),
            "about": None,
        }


def _line(tail: bytearray) -> str | None:
    """The last line that says something."""
    lines = (line.strip() for line in reversed(tail.decode(errors="replace").splitlines()))
    return next((line[:LINE_LENGTH] for line in lines if line), None)
