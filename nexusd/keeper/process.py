"""The keeper: parent of every replica. It forks, reaps, signals, moves log bytes, holds descriptors, remembers.

It has no policy: what runs, when and how often is nexusd's to say (`client`, words in `protocol`). While
nexusd is away it goes on reaping, draining logs and collecting notifications, and tells them when asked.
"""

import argparse
import contextlib
import errno
import gc
import math
import os
import signal
import socket
import time
import traceback
from collections.abc import Callable
from typing import Any

from nexusd.keeper import birth, leaf, proctable, protocol, recovery
from nexusd.keeper.connection import Connection
from nexusd.keeper.journal import Journal
from nexusd.keeper.launching import Launcher
from nexusd.keeper.logs import Logs
from nexusd.keeper.loop import Loop
from nexusd.keeper.memory import Memory
from nexusd.keeper.nursery import Nursery
from nexusd.keeper.probe import Probes
from nexusd.keeper.protocol import Message
from nexusd.keeper.run import Run, from_entry, from_memory
from nexusd.keeper.sweep import Sweep

LEAF_RETRY_S = 0.2  # how often a leaf that the kernel does not give back is asked for again
DRAIN_BYTES = 4 << 20  # what is taken of a pipe whose run has ended; it holds 1 MiB
COUNTED_AT_ONCE = 256  # logs in one packet


class Keeper:
    def __init__(
        self, runtime: str, server: socket.socket, title: proctable.Title | None, soft_files: int
    ) -> None:
        self._runtime = runtime
        self._nursery = Nursery(title)
        self._soft_files = soft_files
        journal = Journal(os.path.join(runtime, "keeper.journal"), proctable.boot_id())
        self._memory = Memory(journal, self._entries, _complain)
        self._loop = Loop()
        self._nexusd = Connection(server, self._loop, self._hear, self._left_alone, _complain)
        self._sweep = Sweep(self._is_known, self._ended)
        self._probes = Probes(self._loop, self._nexusd.tell, self._sweep.strays, runtime, soft_files)
        self._logs = Logs(_complain)
        self._runs: dict[str, Run] = {}
        self._by_pid: dict[int, Run] = {}
        self._held: dict[str, int] = {}
        self._empty_leaves: set[str] = set()  # of runs that have ended
        self._recovered = False
        self._kept: dict[str, list[int]] = {}  # log and notify descriptors for the recovery
        self._leaving = False
        self._dismissed = False
        self._null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._launcher = Launcher(self._nursery, self._memory, self._leave_leaf, self._null)
        self._words: dict[str, Callable[[Message, list[int]], None]] = {
            "adopt": self._adopt,
            "kept": self._kept_for_recovery,
            "hello": self._hello,
            "spawn": self._spawn,
            "probe": self._probes.start,
            "signal": self._signal,
            "kill": self._kill,
            "forget": self._forget,
            "note": self._note,
            "hold": self._hold,
            "release": self._release,
            "warm": self._warm_up,
            "ping": self._ping,
            "count": self._count,
            "leave": self._leave,
        }

    # The loop

    def serve(self) -> None:
        """Until nexusd says leave, or until nobody is served and nothing is kept."""
        proctable.become_subreaper()
        birth.prepare_keeper()
        self._watch_children()
        gc.freeze()  # what is there now stays: no collection need touch it, and no fork need copy it for that
        while not self._leaving:
            self._loop.turn(self._patience())
            self._sweep.tend()
            self._probes.tend()
            self._logs.retry()
            self._remove_leaves()
            self._make_spare()
        self._go()

    def _patience(self) -> float | None:
        if (soon := self._sweep.patience()) is not None:
            return min(soon, self._probes.patience())
        waits = [self._probes.patience(), self._nursery.due - time.monotonic(), self._logs.patience()]
        waits += [LEAF_RETRY_S] if self._empty_leaves else []
        return max(0.0, min(waits)) if min(waits) < math.inf else None

    def _watch_children(self) -> None:
        ears, mouth = socket.socketpair()
        ears.setblocking(False)
        mouth.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(mouth.fileno(), warn_on_full_buffer=False)
        self._ears = (ears, mouth)
        self._loop.watch(ears.fileno(), self._reap)

    def _hear(self, message: Message, fds: list[int]) -> None:
        """Take a word of nexusd's. The border: whatever one of them leads to, the runs go on."""
        try:
            protocol.check(message, fds)
        except ValueError as error:
            protocol.close_all(fds)
            _complain(f"nexusd said what is no word: {error}")
            if message.get("say") == "spawn":
                self._refuse(
                    message.get("run"), birth.refusal("fork", ValueError(f"the keeper can't: {error}"))
                )
            return
        try:
            self._words[message["say"]](message, fds)
        except Exception:
            _complain(f"{message['say']}: {traceback.format_exc()}")

    def _left_alone(self) -> None:
        if not self._runs and not self._held:
            self._leaving = True

    def _go(self) -> None:
        self._nursery.close()
        path = os.path.join(self._runtime, "keeper.sock")
        if os.path.exists(path):
            os.unlink(path)
        self._probes.end_all()
        self._remove_leaves()
        self._logs.close()
        if self._dismissed and not self._runs:  # otherwise its notes are for the nexusd that comes next
            self._memory.remove()

    def _entries(self) -> dict[str, Message]:
        return {key: run.remembered() for key, run in self._runs.items()}

    def _is_known(self, pid: int) -> bool:
        """Whether this child is no orphan that came to us."""
        return pid in self._by_pid or pid == self._nursery.spare or pid in self._probes

    # Words: the table

    def _hello(self, _message: Message, _fds: list[int]) -> None:
        if not self._recovered:
            self._recover()
        for run in self._runs.values():
            self._nexusd.tell(run.told(), run.shared_fds())
        for name, text in self._memory.notes.items():
            self._nexusd.tell({"say": "note", "name": name, "text": text})
        for name, fd in self._held.items():
            self._nexusd.tell({"say": "held", "name": name}, (fd,))
        self._nexusd.tell({"say": "welcome", "pid": os.getpid(), "protocol": protocol.VERSION})

    def _note(self, message: Message, _fds: list[int]) -> None:
        self._memory.note(message["name"], message.get("text"))

    def _hold(self, message: Message, fds: list[int]) -> None:
        self._release(message, [])
        self._held[message["name"]] = fds[0]

    def _release(self, message: Message, _fds: list[int]) -> None:
        if (held := self._held.pop(message["name"], None)) is not None:
            os.close(held)

    def _ping(self, message: Message, _fds: list[int]) -> None:
        written, troubles = self._logs.written_now(), self._logs.troubles()
        counters = {"runs": len(self._runs), "log_bytes": written, "troubles": troubles[:5]}
        self._nexusd.tell({"say": "pong", "id": message.get("id"), **counters})

    def _count(self, _message: Message, _fds: list[int]) -> None:
        written = self._logs.written()
        paths = list(written)
        for start in range(0, max(len(paths), 1), COUNTED_AT_ONCE):
            part = {path: written[path] for path in paths[start : start + COUNTED_AT_ONCE]}
            self._nexusd.tell({"say": "counted", "written": part, "left": len(paths) - start - len(part)})

    def _leave(self, _message: Message, _fds: list[int]) -> None:
        self._leaving = self._dismissed = True

    # Words: runs

    def _spawn(self, message: Message, fds: list[int]) -> None:
        key, launch = message["run"], message["launch"]
        log_read, log_write, notify, *given = fds
        try:
            run = self._start(key, launch, os.fstat(log_read).st_ino, [log_write, *given])
        except birth.Refused as refused:
            protocol.close_all([log_read, notify])
            self._refuse(key, refused.refusal)
            return
        finally:
            protocol.close_all([log_write, *given])
        self._take_in(run, log_read, notify)
        self._nexusd.tell({"say": "spawned", "run": key, "entry": run.entry(), "running": run.running})
        if run.gate is not None:
            self._loop.watch(run.gate.fileno(), lambda: self._gate_said(run))

    def _refuse(self, key: object, refusal: Message) -> None:
        """There is no process, and nothing of the run is kept."""
        self._nexusd.tell({"say": "refused", "run": key, "refusal": refusal})

    def _start(self, key: str, launch: dict[str, Any], pipe: int, fds: list[int]) -> Run:
        """A run with its process, both written down. Raises Refused."""
        launch.setdefault("limits", {}).setdefault("files", self._soft_files)
        paths = (launch["notify_path"], launch["control_path"])
        run = Run(key, 0, 0, launch["log"], *paths, pipe=pipe, listening=launch.get("listening", []))
        run.leaf = launch.get("leaf", {}).get("path", "")
        if key in self._runs:
            there_is = FileExistsError(errno.EEXIST, "there is such a run", key)
            raise birth.Refused(birth.refusal("fork", there_is))
        self._launcher.start(run, launch, fds)
        return run

    def _make_spare(self) -> None:
        try:
            self._nursery.make_spare()
        except OSError as error:
            _complain(f"no spare process: {error.strerror}")

    def _warm_up(self, _message: Message, _fds: list[int]) -> None:
        self._nursery.warm_up()

    def _gate_said(self, run: Run) -> None:
        assert run.gate is not None
        try:
            run.refusal = birth.read_gate(run.gate)
        except ConnectionResetError:  # it has not even read what it was to be
            run.refusal = birth.refusal("prepare", ChildProcessError(errno.ECHILD, "its process was killed"))
        except (OSError, ValueError) as error:
            run.refusal = birth.refusal("prepare", error)
        self._close_gate(run)
        run.running = run.refusal is None
        if run.running:
            self._nexusd.tell({"say": "running", "run": run.key})

    def _signal(self, message: Message, _fds: list[int]) -> None:
        if (run := self._runs.get(message["run"])) is None:
            return
        targets = [run.process()] if message.get("leader_only") else self._sweep.members(run)
        for process in targets:
            proctable.send_signal(process, message["signal"])

    def _kill(self, message: Message, _fds: list[int]) -> None:
        if (run := self._runs.get(message["run"])) is not None:
            self._sweep.begin(run)

    def _forget(self, message: Message, _fds: list[int]) -> None:
        run = self._runs.pop(message["run"], None)
        if run is None:
            return
        self._let_go(run)
        self._memory.gone(run.key)
        self._memory.keep_short()

    # What a run holds

    def _take_in(self, run: Run, log_fd: int | None, notify_fd: int) -> None:
        self._runs[run.key] = self._by_pid[run.pid] = run
        self._logs.enter(run.log)
        if log_fd is not None:
            run.log_fd = log_fd
        if log_fd is not None and not run.is_journals:
            os.set_blocking(log_fd, False)
            self._loop.watch(log_fd, lambda: self._move_log(run))
        run.notify = socket.socket(fileno=notify_fd)
        run.notify.setblocking(False)
        self._loop.watch(notify_fd, lambda: self._take_notices(run))

    def _let_go(self, run: Run) -> None:
        self._by_pid.pop(run.pid, None)
        self._sweep.drop(run)
        self._close_gate(run)
        self._close_pipe(run)
        self._close_pidfd(run)
        self._close_question(run)
        if run.notify is not None:
            self._loop.unwatch(run.notify.fileno())
            run.notify.close()
        self._logs.leave(run.log_path)

    def _close_gate(self, run: Run) -> None:
        if run.gate is not None:
            self._loop.unwatch(run.gate.fileno())
            run.gate.close()
            run.gate = None

    def _close_pipe(self, run: Run) -> None:
        if run.log_fd >= 0:
            if not run.is_journals:
                self._loop.unwatch(run.log_fd)
            os.close(run.log_fd)
            run.log_fd = -1

    def _close_pidfd(self, run: Run) -> None:
        if run.pidfd >= 0:
            self._loop.unwatch(run.pidfd)
            os.close(run.pidfd)
            run.pidfd = -1

    def _close_question(self, run: Run) -> None:
        if run.asking is not None:
            self._loop.unwatch(run.asking.fileno())
            run.asking.close()
            run.asking = None

    # Taking over from a keeper that died

    def _adopt(self, message: Message, fds: list[int]) -> None:
        """A nexusd that comes back to the keeper it had says this, too."""
        if message["run"] in self._runs:
            protocol.close_all(fds)
            return
        run = from_entry(message["entry"], running=message["running"], notices=message["notices"])
        self._take_over(run, *fds)

    def _take_over(self, run: Run, log_fd: int | None, notify_fd: int) -> None:
        """Not our child: a pidfd tells its end, and whoever inherited it knows the status."""
        self._take_in(run, log_fd, notify_fd)
        self._memory.run(run.remembered())
        try:
            run.pidfd = os.pidfd_open(run.pid)
        except ProcessLookupError:
            self._first_ended(run, None)
            return
        self._loop.watch(run.pidfd, lambda: self._first_ended(run, None))
        if not run.is_alive():  # asked with the pidfd in hand: from here on it is this process or none
            self._first_ended(run, None)

    def _kept_for_recovery(self, message: Message, fds: list[int]) -> None:
        if self._recovered or message["run"] in self._kept:
            protocol.close_all(fds)
        else:
            self._kept[message["run"]] = fds

    def _recover(self) -> None:
        """Runs that nobody handed over: their old keeper and nexusd died together; /proc has their log pipe."""
        self._recovered = True
        entries = self._memory.recall()
        for key, entry in entries.items():
            if key not in self._runs:
                self._recover_run(entry)
        for fds in self._kept.values():
            protocol.close_all(fds)
        self._kept.clear()
        if entries:
            self._probes.end_former()
        self._memory.write_anew()

    def _recover_run(self, entry: Message) -> None:
        try:
            run = from_memory(entry)
        except ValueError as error:
            _complain(f"{self._memory.path}: a run that can't be read: {error}")
            return
        if not run.pid and not recovery.find_process(run):
            return  # its keeper died before it had begun
        if not run.begun and not recovery.has_begun(run):
            self._leave_leaf(run)
            return  # the same, and the pid was known already: nexusd hears of neither, and begins again
        kept = self._kept.pop(run.key, None)
        pipe, notify = kept or (None, None)
        if pipe is None and run.is_alive():
            pipe = recovery.find_log_pipe(run)
        if run.is_journals and not kept:
            pipe = os.dup(self._null)  # the stream is the run's own; something is to be held in its place
        elif pipe is None and run.is_alive():
            _complain(f"{run.key}: its log pipe is out of reach")
        if run.is_alive():
            self._held |= recovery.find_listening(run, self._held, _complain)
        self._take_over(run, pipe, recovery.bind_again(run.notify_path) if notify is None else notify)
        if notify is None and not run.is_ready and run.ending is None and run.ended is None:
            self._ask_whether_ready(run)

    def _ask_whether_ready(self, run: Run) -> None:
        run.asking = recovery.ask_whether_ready(run)
        if run.asking is not None:
            self._loop.watch(run.asking.fileno(), lambda: self._answered(run))

    def _answered(self, run: Run) -> None:
        assert run.asking is not None
        is_ready = recovery.says_ready(run.asking)
        self._close_question(run)
        if is_ready and not run.is_ready:
            run.notices["READY"] = "1"
            self._tell_notices(run, {"READY": "1"}, got_ready=True)

    # Ends

    def _reap(self) -> None:
        """One reaper for children and for the orphans that the subreaper inherits."""
        self._ears[0].recv(4096)
        for pid, status in proctable.reap():
            run = self._by_pid.get(pid)
            if run is not None and run.is_child:
                self._first_ended(run, status)
            else:
                self._nursery.reaped(pid)
                self._probes.reaped(pid, status)

    def _first_ended(self, run: Run, status: int | None) -> None:
        """The first process of the run is gone: what it left behind goes too, then nexusd hears of it."""
        if run.gate is not None:
            self._gate_said(run)
        self._by_pid.pop(run.pid, None)
        self._close_pidfd(run)
        run.ending = {"status": status, "at": time.monotonic()}
        if run.is_child and not self._sweep.orphans() and not (run.leaf and leaf.is_populated(run.leaf)):
            self._ended(run)
        else:
            self._sweep.begin(run)

    def _ended(self, run: Run) -> None:
        """With its last words and bytes; a process that got away and goes on writing does not hold us here."""
        run.ended, run.ending = run.ending, None
        self._sweep.drop(run)
        self._leave_leaf(run)
        for _ in range(16):
            self._take_notices(run)
        drained = 0
        while drained < DRAIN_BYTES and (moved := self._move_log(run)):
            drained += moved
        assert run.ended is not None
        self._nexusd.tell({"say": "exited", "run": run.key, "refusal": run.refusal, **run.ended})

    def _leave_leaf(self, run: Run) -> None:
        if run.leaf:
            self._empty_leaves.add(run.leaf)
            self._remove_leaves()

    def _remove_leaves(self) -> None:
        """What the kernel does not give back yet, since a process is still ending in it, is tried again."""
        self._empty_leaves = {path for path in self._empty_leaves if not leaf.remove(path)}

    # Bytes

    def _move_log(self, run: Run) -> int:
        """One piece, so that a loud replica does not hold up the others. Returns its bytes; 0: none for now."""
        if run.log_fd < 0 or run.is_journals:
            return 0
        try:
            moved = self._logs.take(run.log_path, run.log_fd)
        except BlockingIOError:
            return 0
        if moved == 0:
            self._close_pipe(run)
        return moved

    def _take_notices(self, run: Run) -> None:
        was_ready = run.is_ready
        if notices := run.take_notices():
            self._tell_notices(run, notices, got_ready=run.is_ready and not was_ready)

    def _tell_notices(self, run: Run, notices: dict[str, str], got_ready: bool) -> None:
        if got_ready:  # there may be no nexusd to know it beside us
            self._memory.run(run.remembered())
        self._nexusd.tell({"say": "notify", "run": run.key, "notices": notices})


def _complain(text: str) -> None:
    """To its log. On a disk that is full it goes unsaid: nothing of what is told here may end the keeper."""
    with contextlib.suppress(OSError):
        os.write(2, f"nexus-keeper: {text}\n".encode(errors="backslashreplace"))


def main() -> None:
    """nexusd hands over the listening socket, so that it can connect before this program has begun."""
    parser = argparse.ArgumentParser(prog="nexus-keeper")
    parser.add_argument("--runtime", required=True)
    parser.add_argument("--listen-fd", type=int, required=True)
    parser.add_argument(
        "--files", type=int, required=True, help="open files of a run that has no limit of its own"
    )
    arguments = parser.parse_args()
    server = socket.socket(fileno=arguments.listen_fd)
    os.closerange(arguments.listen_fd + 1, os.sysconf("SC_OPEN_MAX"))  # what nexusd was started with
    title = proctable.Title()
    title.show("nexus-keeper", f"nexus-keeper {arguments.runtime}")
    Keeper(arguments.runtime, server, title, arguments.files).serve()


if __name__ == "__main__":
    main()
