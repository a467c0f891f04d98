"""Modules in every state that a kill may find them in, each writing numbered lines; and what must not change.

Their programs are bash alone: between two lines they wait without a process of their own.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from tests.kernel import PIDFDS_TELL
from tests.systemd.service import Service, Status

_BEGIN = "#!/bin/bash\nexec {nothing}<> <(:)\npause() { read -rt $1 -u $nothing; }\nn=0\n"
_END = "trap 'echo \"$$ end $n\"; exit 0' TERM\n"
_SLOW_END = "trap 'pause 0.2; echo \"$$ end $n\"; exit 7' TERM\n"
_READY = "pause 0.15\nsystemd-notify --ready\n"
_LINES = 'while :; do echo "$$ $((n + 1))"; n=$((n + 1)); pause 0.02; done\n'
_LOG = '[log]\nmax_size = "16K"\nfiles = 100\n'  # so that rotation is among what a kill finds

STEADY, SLOW, LEAVING, RENEWED, CRASHER = "a/steady", "a/slow", "a/leaving", "a/renewed", "a/crasher"
RUNNING, STARTING, STOPPING, RELOADING = "running", "starting", "stopping", "being reloaded"
SCENES = (RUNNING, STARTING, STOPPING, RELOADING)  # `a/crasher` is backing off in each of them


class Population:
    """Modules of a service that has not been started yet."""

    def __init__(self, service: Service) -> None:
        self.service = service
        service.module(STEADY, _BEGIN + _END + _LINES, "replicas = 2\n" + _LOG)
        service.module(SLOW, _BEGIN + _END + _READY + _LINES, "autostart = false\n" + _LOG, ready="notify")
        service.module(LEAVING, _BEGIN + _SLOW_END + _READY + _LINES, _LOG, ready="notify")
        service.module(RENEWED, _BEGIN + _END + _READY + _LINES, _LOG, ready="notify")
        backoff = '[restart]\nbackoff = { first = "1h", initial = "1h", max = "2h" }\n'
        service.module(CRASHER, "#!/bin/sh\nexit 9\n", backoff)
        self._standing: dict[str, object] = {}
        self._pid = 0

    def settled(self) -> None:
        """To be called once, when the service has been started."""
        self.service.machine.await_(
            "the crasher backs off", lambda: self._of(CRASHER)["state"] == "backoff" or None
        )
        self._standing = self._picture()

    def _of(self, module_id: str) -> Status:
        found: Status = self.service.read("get_status", module_id=module_id)
        return found

    def _picture(self) -> dict[str, object]:
        """What must be the same after whatever happened to nexusd: process, start, restarts, the last end."""
        return {
            one["name"]: (one["pid"], round(one["since"], 1), one["restarts"], one["last_exit"])
            for module_id in (STEADY, CRASHER)
            for one in self._of(module_id)["instances"]
        }

    # A scene: something is under way

    def begin(self, scene: str) -> None:
        if scene == STARTING:
            self.service.call("start_module", module_id=SLOW, wait=False)
            self._pid = self._of(SLOW)["instances"][0]["pid"] or 0
        elif scene == STOPPING:
            self.service.call("stop_module", module_id=LEAVING, wait=False)
        elif scene == RELOADING:
            self.service.call("reload_module", module_id=RENEWED, wait=False)

    def end(self, scene: str) -> None:
        """What was under way came to the end that it would have come to; all else is as it was."""
        await_ = self.service.machine.await_
        if scene == STARTING:
            await_("the slow one has started", lambda: self._of(SLOW)["state"] == "started")
            (slow,) = self._of(SLOW)["instances"]
            assert self._pid in (0, slow["pid"]), slow
        elif scene == STOPPING:
            await_("the leaving one has stopped", lambda: self._of(LEAVING)["state"] == "stopped")
            (left,) = self._of(LEAVING)["instances"]
            assert left["last_exit"]["code"] in ((7,) if PIDFDS_TELL else (7, None)), left["last_exit"]
        elif scene == RELOADING:
            await_("one generation is left", lambda: self._is_renewed())
        expected = {STEADY: 2, RENEWED: 1, SLOW: int(scene == STARTING), LEAVING: int(scene != STOPPING)}
        await_("no module has a second copy", lambda: self.service.modules_running() == Counter(expected))
        assert self._picture() == self._standing

    def _is_renewed(self) -> bool:
        """Whether old or new: one of them runs, and the other is gone."""
        module = self._of(RENEWED)
        runs = [one for one in module["instances"] if one["state"] == "started"]
        return module["state"] == "started" and len(module["instances"]) == len(runs) == 1

    def restore(self, scene: str) -> None:
        """As it was before the scene."""
        if scene == STARTING:
            self.service.call("stop_module", module_id=SLOW)
        elif scene == STOPPING:
            self.service.call("start_module", module_id=LEAVING)

    # What is counted

    def restarts(self) -> int:
        """Of all that do not fail by themselves: whoever dies, and if it is in the middle of their birth."""
        sound = (STEADY, SLOW, LEAVING, RENEWED)
        return sum(one["restarts"] for module_id in sound for one in self._of(module_id)["instances"])

    def lines_lost(self) -> int:
        """Of all that was ever written, after all modules have ended in good order: they say how much it was."""
        lost = 0
        for name, numbers in self._lines().items():
            *written, end = numbers
            assert written == sorted(set(written)), f"{name}: twice, or out of order"
            lost += max(end, *written) - len(written)
        return lost

    def _lines(self) -> dict[str, list[int]]:
        """By process; the last of each is how many it says it wrote."""
        found: dict[str, list[int]] = defaultdict(list)
        for log in self._logs():
            for line in log.read_text().splitlines():
                matched = re.fullmatch(r"(\d+) (end )?(\d+)", line)
                assert matched, f"{log.name}: {line!r} is no whole line"
                found[f"{log.name.partition('.log')[0]} {matched[1]}"].append(int(matched[3]))
        return found

    def _logs(self) -> Iterator[Path]:
        """The oldest first."""
        folder = self.service.machine.path("/var/log/nexus/a")
        logs = [one for one in folder.glob("*.log*") if not one.name.startswith("crasher")]
        yield from sorted(logs, key=lambda one: -int(one.suffix[1:]) if one.suffix[1:].isdecimal() else 1)
