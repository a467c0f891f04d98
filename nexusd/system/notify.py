"""What systemd gave nexusd in its environment, taken out of it; and the way to tell systemd something (sd_notify(3)).

Words only: what is said, and when, is decided in `herald`. Where there is no systemd, nothing is said.
"""

import logging
import os
import socket
from collections import deque
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field

from sdnotify import SystemdNotifier

from nexusd.domain.replacing import Command
from nexusd.system import handover
from nexusd.system.fdstore import readable
from nexusd.system.handover import Handover

log = logging.getLogger("nexusd.systemd")

# For nexusd alone: to a module they mean something else, or a place in which it has no business.
_OURS = (
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    "FDSTORE",
    "INVOCATION_ID",
    "JOURNAL_STREAM",
    "SYSTEMD_EXEC_PID",
    "RUNTIME_DIRECTORY",
    "STATE_DIRECTORY",
    "LOGS_DIRECTORY",
    "CONFIGURATION_DIRECTORY",
)
_MOST_UNSAID = 64
_FIRST_FD = 3  # SD_LISTEN_FDS_START


@dataclass(frozen=True, slots=True)
class Given:
    """What a service manager gave: nothing of it by default, as for a daemon within another program."""

    variables: Mapping[str, str] = field(default_factory=dict)  # as they were, for who replaces this process
    watchdog_s: float | None = None
    api: socket.socket | None = None  # for the API, listening already
    handed: Handover | None = None  # by the nexusd that this process was before
    command: Command | None = None  # how this process was started; None: it is another program
    stored: Mapping[str, int] = field(default_factory=dict)  # what a former nexusd gave to be kept, by name

    def again(self) -> dict[str, str]:
        """The variables for who replaces this process, to whom its socket is descriptor 3 as it was to us."""
        left = {name: text for name, text in self.variables.items() if not name.startswith("LISTEN_")}
        if self.api is None:
            return left
        return {**left, "LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}


def take(environment: MutableMapping[str, str]) -> Given:
    """Take it out of the environment, so that no child is given it. To be called before anything is started."""
    handed = handover.taken(environment)
    found = {name: environment.pop(name) for name in _OURS if name in environment}
    api, stored = _handed_over(found)
    return Given(found, _watchdog_s(found), api, handed, stored=stored)


def _watchdog_s(found: Mapping[str, str]) -> float | None:
    if found.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    text = found.get("WATCHDOG_USEC", "")
    return int(text) / 1_000_000 if text.isdecimal() and int(text) else None


def _handed_over(found: Mapping[str, str]) -> tuple[socket.socket | None, dict[str, int]]:
    """The one listening Unix stream socket of a socket unit, and what was kept, by name; anything else is closed."""
    if found.get("LISTEN_PID") != str(os.getpid()) or not found.get("LISTEN_FDS", "").isdecimal():
        return None, {}
    api, stored = None, {}
    count = int(found["LISTEN_FDS"])
    names = [readable(name) for name in found.get("LISTEN_FDNAMES", "").split(":")]
    for number, name in enumerate((names + [""] * count)[:count], _FIRST_FD):
        os.set_inheritable(number, False)
        if "=" in name and name not in stored:
            stored[name] = number
        elif "=" in name:
            os.close(number)
        elif api is None and _listens(number):
            api = socket.socket(fileno=number)
        else:
            log.warning("descriptor %d from systemd is no Unix socket to listen on, or a second one", number)
            os.close(number)
    stored = {name: os.dup(number) if number == _FIRST_FD else number for name, number in stored.items()}
    return api and _as_the_first(api), stored


def _as_the_first(sock: socket.socket) -> socket.socket:
    """There was room for it: what came before it was closed."""
    if sock.fileno() == _FIRST_FD:
        return sock
    os.dup2(sock.fileno(), _FIRST_FD, inheritable=False)
    sock.close()
    return socket.socket(fileno=_FIRST_FD)


def _listens(number: int) -> bool:
    try:
        sock = socket.socket(fileno=number)
    except OSError:
        return False
    is_stream = (sock.family, sock.type) == (socket.AF_UNIX, socket.SOCK_STREAM)
    listens = bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    sock.detach()
    return is_stream and listens


class Notifier:
    """sdnotify with its weak spots covered.

    It would swallow every error, lose what is not latin-1, wait where nobody reads, and never connect again. What
    systemd does not take at once is kept, in order, and said with the next word.
    """

    def __init__(self, address: str) -> None:
        """address: NOTIFY_SOCKET; empty where nobody listens."""
        self._address = address
        self._unsaid: deque[str] = deque(maxlen=_MOST_UNSAID)
        self._notifier: SystemdNotifier | None = None
        self._is_in_trouble = False

    @property
    def is_heard(self) -> bool:
        return bool(self._address)

    def say(self, *words: str) -> None:
        """`READY=1` and the like; words of one call belong together."""
        if not self._address:
            return
        self._unsaid.append("\n".join(" ".join(word.splitlines()) for word in words))
        self.flush()

    def flush(self) -> None:
        """Say what could not be said before."""
        try:
            while self._unsaid:
                self._send(self._unsaid[0])
                self._unsaid.popleft()
        except OSError as error:
            self._notifier = None  # systemd may have made its socket anew
            if not self._is_in_trouble:
                log.warning("systemd cannot be told anything: %s", error.strerror)
            self._is_in_trouble = True
        else:
            self._is_in_trouble = False

    def _send(self, text: str) -> None:
        if self._notifier is None:
            self._notifier = _connected(self._address)
        # It encodes as latin-1, systemd reads UTF-8: these characters are the bytes that it is to send.
        self._notifier.notify(text.encode("utf-8", "replace").decode("latin-1"))


def _connected(address: str) -> SystemdNotifier:
    """It reads the variable itself, which is there for this moment only. Raises OSError."""
    os.environ["NOTIFY_SOCKET"] = address
    try:
        notifier = SystemdNotifier(debug=True)
    finally:
        del os.environ["NOTIFY_SOCKET"]
    notifier.socket.setblocking(False)
    return notifier
