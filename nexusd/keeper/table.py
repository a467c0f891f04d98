"""The runs as nexusd knows them: what a new keeper needs to take each over, and what is to be removed in the end.

It holds the second copy of each run's descriptors. What is said to the keeper, and when, is the client's.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from nexusd.keeper import endpoints, proctable, protocol
from nexusd.keeper.keepsakes import Keepsakes
from nexusd.keeper.protocol import Message
from nexusd.keeper.run import unread_notices


@dataclass(slots=True)
class KnownRun:
    fds: tuple[int, ...]  # log, notify
    paths: tuple[str, ...]  # of the sockets that were bound for it
    entry: Message | None = None
    running: bool = False
    notices: Message | None = None


class Table:
    def __init__(self, keepsakes: Keepsakes) -> None:
        self._keepsakes = keepsakes
        self.runs: dict[str, KnownRun] = {}
        self._statuses: dict[int, int] = {}

    def adoptions(self) -> Iterator[tuple[Message, tuple[int, ...]]]:
        """What a new keeper is told, with which descriptors."""
        for key, run in self.runs.items():
            if run.entry is not None:
                adopted = {"say": "adopt", "run": key, "entry": run.entry}
                yield {**adopted, "running": run.running, "notices": run.notices or {}}, run.fds

    def take(self, message: Message) -> None:
        """News of one run; of one that was forgotten meanwhile nothing is kept."""
        if (run := self.runs.get(message["run"])) is None:
            return
        match message["say"]:
            case "spawned":
                run.entry, run.running = message["entry"], message["running"]
                self._keepsakes.keep_process(message["run"], run.entry["pid"], run.entry["start_ticks"])
            case "running":
                run.running = True
            case "notify":
                run.notices = {**(run.notices or {}), **message["notices"]}

    def take_row(self, message: Message, fds: list[int]) -> None:
        """A row of the keeper's own table. One that found the run by itself has made it a new notify socket."""
        key, entry = message["run"], message["entry"]
        known = self.runs.get(key)
        if known is not None and not fds:
            fds = list(known.fds)
        elif known is not None:
            # What was said to the old socket and read by no keeper would be lost with it: READY=1, as a rule.
            message["notices"] = unread_notices(known.fds[1]) | message["notices"]
            protocol.close_all(known.fds)
        paths = (entry["notify_path"], entry["control_path"])
        self.runs[key] = KnownRun(tuple(fds), paths, entry, message["running"], message["notices"])
        if fds:
            self._keepsakes.keep_run(key, *fds)
            self._keepsakes.keep_process(key, entry["pid"], entry["start_ticks"])
        ended = message["ended"]
        if ended is not None and ended["status"] is None:
            ended["status"] = self.status_of(key)

    def drop(self, key: str) -> None:
        if (run := self.runs.pop(key, None)) is not None:
            protocol.close_all(run.fds)
            endpoints.unlink(run.paths)
            self._keepsakes.forget(key)
            if run.entry is not None:
                self._statuses.pop(run.entry["pid"], None)

    def drop_unborn(self) -> None:
        """What the former keeper never started stands in no table: its descriptors are let go."""
        for key in [key for key, run in self.runs.items() if run.entry is None]:
            self.drop(key)

    def let_go(self) -> None:
        """Of all descriptors; the runs go on."""
        for run in self.runs.values():
            protocol.close_all(run.fds)
        self.runs.clear()

    # What is asked of it

    def processes(self) -> dict[str, tuple[int, int, str | None]]:
        entries = ((key, run.entry) for key, run in self.runs.items() if run.entry)
        return {key: (one["pid"], one["start_ticks"], one.get("leaf") or None) for key, one in entries}

    def leaf(self, key: str) -> str | None:
        run = self.runs.get(key)
        return (run.entry.get("leaf") or None) if run is not None and run.entry else None

    def journal(self, key: str) -> str | None:
        run = self.runs.get(key)
        return run.entry["log"].get("journal") if run is not None and run.entry else None

    def socket_paths(self) -> set[str]:
        return {path for run in self.runs.values() for path in run.paths}

    # Who died

    def reap(self) -> None:
        """The one reaper of nexusd's process: the keeper, and whom its death leaves to us."""
        for pid, status in proctable.reap():
            if any(run.entry is not None and run.entry["pid"] == pid for run in self.runs.values()):
                self._statuses[pid] = status

    def status_of(self, key: str) -> int | None:
        """The wait status of a run that was ours to reap, or of which a pidfd tells; None: it is unknown.

        Kept until it is forgotten: a new keeper may tell the end twice, as news and in its table.
        """
        self.reap()
        run = self.runs.get(key)
        if run is None or run.entry is None:
            return None
        pid: int = run.entry["pid"]
        return self._statuses[pid] if pid in self._statuses else self._keepsakes.status(key, pid)
