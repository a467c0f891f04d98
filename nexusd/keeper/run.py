"""A run as the keeper knows it: one process of a module, from its fork until nexusd forgets it.

It holds what belongs to the run; what happens to it is decided in `process`.
"""

import os
import socket
from dataclasses import dataclass, field
from typing import Any

from nexusd.keeper import proctable
from nexusd.keeper.protocol import ENTRY, Message, check_fields

NOTICE_BYTES = 4096
_NOTICES_AT_ONCE = 64
# Of what sd_notify(3) knows: no module can fill our memory with words of its own.
_NOTICES = frozenset(("READY", "STATUS", "WATCHDOG", "RELOADING", "STOPPING", "MONOTONIC_USEC", "ERRNO"))
_ENTRY = (*ENTRY, "pipe", "listening", "leaf", "begun")


@dataclass(slots=True, eq=False)
class Run:
    key: str
    pid: int
    start_ticks: int
    log: Message  # path, max_bytes, files; journal where journald has it
    notify_path: str
    control_path: str
    pipe: int = 0  # inode of its log pipe
    listening: list[str] = field(
        default_factory=list
    )  # names of the sockets that it has from descriptor 3 up
    leaf: str = ""  # its cgroup, where it has one
    begun: bool = True  # whether its process was told what to be, or is about to run without being told
    is_child: bool = True
    log_fd: int = -1
    notify: socket.socket | None = None
    gate: socket.socket | None = None
    pidfd: int = -1
    asking: socket.socket | None = None  # whether it is ready, see `recovery`
    notices: dict[str, str] = field(default_factory=dict)  # the last of each kind
    refusal: Message | None = None
    running: bool = False
    # {"status": wait status or None when unknown, "at": monotonic seconds}: of its first process, then of all
    ending: Message | None = None
    ended: Message | None = None

    def entry(self) -> Message:
        """What another keeper needs to take it over."""
        return {name: getattr(self, name) for name in _ENTRY}

    def remembered(self) -> Message:
        """What the journal keeps: of all it has said the one word that it won't say again."""
        return {**self.entry(), "ready": self.is_ready}

    @property
    def is_ready(self) -> bool:
        return self.notices.get("READY") == "1"

    def told(self) -> Message:
        """The run as the table tells it."""
        return {
            "say": "run",
            "run": self.key,
            "entry": self.entry(),
            "running": self.running,
            "notices": self.notices,
            "ended": self.ended,
            "refusal": self.refusal,
        }

    @property
    def is_journals(self) -> bool:
        """Its output goes to journald; what is held in place of its log pipe is not to be touched."""
        return "journal" in self.log

    @property
    def log_path(self) -> str:
        return str(self.log["path"])

    def process(self) -> proctable.Stat:
        return proctable.Stat(self.pid, "", 0, 0, self.start_ticks)

    def is_alive(self) -> bool:
        found = proctable.stat(self.pid)
        return found is not None and found.start_ticks == self.start_ticks and found.state not in "ZX"

    def shared_fds(self) -> tuple[int, ...]:
        """What nexusd holds, too."""
        return (self.log_fd, self.notify.fileno()) if self.notify is not None and self.log_fd >= 0 else ()

    def take_notices(self) -> dict[str, str]:
        """What has come on the notify socket, the last of each kind; a bounded number, so that others have a turn."""
        fresh: dict[str, str] = {}
        assert self.notify is not None
        try:
            for _ in range(_NOTICES_AT_ONCE):
                fresh |= _notices(self.notify.recv(NOTICE_BYTES))
        except BlockingIOError:
            pass
        self.notices |= fresh
        return fresh


def unread_notices(fd: int) -> dict[str, str]:
    """What waits on a notify socket, the last of each kind."""
    found: dict[str, str] = {}
    with socket.socket(fileno=os.dup(fd)) as sock:
        sock.setblocking(False)
        try:
            while True:
                found |= _notices(sock.recv(NOTICE_BYTES))
        except BlockingIOError:
            return found


def _notices(datagram: bytes) -> dict[str, str]:
    pairs = (line.partition("=") for line in datagram.decode(errors="replace").splitlines())
    return {name: value for name, sign, value in pairs if sign and name in _NOTICES}


def from_entry(entry: Message, **more: Any) -> Run:
    """A run that an earlier keeper started. Raises ValueError for an entry that this version can't read."""
    check_fields("", entry, ENTRY)
    return Run(**{name: entry[name] for name in _ENTRY if name in entry}, is_child=False, **more)


def from_memory(remembered: Message) -> Run:
    """The same of what the journal kept."""
    notices = {"READY": "1"} if remembered.get("ready") is True else {}
    return from_entry(remembered, running=True, notices=notices)
