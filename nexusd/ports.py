"""What the supervisor and the commands need of the world, in their words. Adapters stand in `nexusd.system`."""

from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from nexusd.domain.audit import Entry
from nexusd.domain.chain import Verdict
from nexusd.domain.checks import Purpose, Said
from nexusd.domain.fleet import Fleet
from nexusd.domain.manifest import Definition
from nexusd.domain.module import Module
from nexusd.domain.replica import Replica

Observer = Callable[[Fleet, Fleet, frozenset[str]], None]  # before, after, ids of modules that were touched


class Clock(Protocol):
    def now(self) -> float:
        """Monotonic seconds, comparable between processes of one boot."""

    def wake_at(self, deadline: float | None) -> None:
        """Have the supervisor's deadlines looked at then; None: not needed. Replaces the former wish."""


class Processes(Protocol):
    """The replicas' processes. What happens to them comes back as news to the supervisor."""

    def spawn(self, run: str, replica: Replica, module: Module) -> None:
        """Raises OSError or NexusError when it can't even be tried."""

    def terminate(self, run: str, signal: int) -> None: ...

    def kill(self, run: str) -> None: ...

    def forget(self, run: str) -> None: ...

    def remember(self, module_id: str, module: Module | None) -> None:
        """Keep what a later nexusd needs to go on from here."""


class Store(Protocol):
    """What must survive a reboot. Each raises NotPossible when the disk does not take it."""

    def save_wanted(self, wanted: Mapping[str, bool]) -> Awaitable[None]: ...

    def save_count(self, module_id: str, count: int) -> Awaitable[None]: ...

    def save_value(self, module_id: str, key: str, value: Any) -> Awaitable[None]: ...

    def forget_value(self, module_id: str, key: str) -> Awaitable[None]: ...


class Edits(Protocol):
    def are_there(self, module: Module) -> bool: ...


class StoredExperiment(NamedTuple):
    number: int
    report: dict[str, Any]
    lease: str | None  # what is to be undone; None: nothing


class ExperimentStore(Protocol):
    def save_experiment(self, number: int, report: Mapping[str, Any], lease: str | None) -> Awaitable[None]:
        """Kept, power cut or not, once this returns. Raises NotPossible when the disk does not take it."""


class Hands(Protocol):
    """What an experiment needs to reach processes: the keeper."""

    @property
    def connected(self) -> bool: ...

    def signal(self, run: str, number: int, /) -> None:
        """To every process of the run; to one that is gone it does nothing."""


class Control(Protocol):
    """A module's own answers, on its control socket."""

    def ask(self, run: str, method: str, params: Mapping[str, Any], timeout_s: float) -> Awaitable[Any]:
        """Raises TimedOut when it is silent, NotPossible when it has no control socket, BadValue when it refuses."""


class Programs(Protocol):
    """Check programs, run beside a replica as its user, in its folder and environment."""

    def check(
        self, run: str, replica: Replica, module: Module, argv: Sequence[str], timeout_s: float
    ) -> Awaitable[Mapping[str, Any] | None]:
        """How it ended (`probed` in nexusd/keeper/protocol.py); None: nothing is known. Raises OSError, ValueError."""


class Seen(NamedTuple):
    """What the last check for a purpose came to."""

    at: float  # monotonic seconds
    took_s: float
    said: Said


class CheckResults(Protocol):
    def last(self, run: str) -> Mapping[Purpose, Seen]:
        """The last check of a run for each purpose, as far as this nexusd has asked."""


class Containment(Protocol):
    """What holds the processes of a run together, and which limits are in force."""

    @property
    def reason(self) -> str | None:
        """Why runs that begin now get no cgroup; None: they do."""

    @property
    def possible(self) -> frozenset[str]:
        """The limits that the cgroup of a run that begins now would hold."""

    @property
    def leaf_of(self) -> Callable[[str], str | None]:
        """The cgroup of a run; None: it has none."""

    def held(self, run: str) -> frozenset[str]:
        """The limits that the run's cgroup holds, as the kernel says."""


class Logs(Protocol):
    def path(self, replica_name: str) -> str: ...

    def tail(self, replica_name: str, lines: int, /) -> list[str]:
        """The last lines of a replica's output; empty when there is none."""


class Outputs(Protocol):
    def journal(self, run: str, /) -> str | None:
        """What journald calls the output of a run; None: it goes to its log file."""


class LogFeed(Protocol):
    """Logs that are followed: each of the `files` costs a descriptor until `close`."""

    @property
    def files(self) -> int: ...

    def run(self) -> Coroutine[Any, Any, None]:
        """Pushes each replica's new lines until cancelled."""

    def close(self) -> None: ...


class LogReader(Logs, Protocol):
    def tail(self, replica_name: str, lines: int, room: int = ..., /) -> list[str]:
        """At most `room` bytes, those that came last. Raises Busy, as `follow` does, when no descriptor is free."""

    def follow(self, replica_names: Iterable[str], push: Callable[[str, list[str]], None]) -> LogFeed:
        """Each replica's new lines from the call on."""


class EventSource(Protocol):
    """What has happened and what happens. An event is the JSON object that the API shows."""

    def last(self, most: int, module_id: str | None = None) -> list[dict[str, Any]]: ...

    def since(self, seq: int, module_id: str | None = None) -> list[dict[str, Any]]: ...

    def subscribe(self, subscriber: Callable[[dict[str, Any]], None]) -> Callable[[], None]:
        """Returns the way out."""


class Configs(Protocol):
    def write(self, module: Module, definition: Definition, generation: int) -> str:
        """Put the effective configuration into the file that that generation's processes read, and name it.

        Raises NotPossible.
        """

    def path(self, definition: Definition, generation: int) -> str:
        """The file that was named."""

    def hand_over(self, module: Module, states: Mapping[int, Any]) -> None:
        """Keep what each replica, by index, exported for the next generation. Raises NotPossible."""

    def former_state(self, replica: Replica) -> str | None:
        """The file with what its predecessor exported for this replica."""

    def tidy(self, modules: Iterable[Module]) -> None:
        """Remove what belongs to generations that these modules have no more."""


class AuditLog(Protocol):
    """Where every command leaves its lines, each chained to the one before it."""

    @property
    def lines(self) -> int:
        """How many were written since nexusd was started."""

    def begin(self, entry: Entry) -> Awaitable[int]:
        """Done when the line is safe, with its number. Raises NotPossible: then the command must not run."""

    def add(self, entry: Entry) -> None:
        """A line about what has happened already."""

    def records(self, most: int, since: int, module_id: str | None) -> Awaitable[list[bytes]]:
        """The last lines with a number greater than `since`, oldest first."""

    def verify(self, anchors: Mapping[int, str]) -> Awaitable[Verdict]:
        """`anchors`: hashes of records that were noted elsewhere."""

    def subscribe(self, subscriber: Callable[[bytes], None]) -> Callable[[], None]:
        """Called with each line from now on; returns the way out."""


class Copies(Protocol):
    def keep(self, definition: Definition) -> None:
        """Copy its code, unless that was done or the files are another definition's by now."""

    async def settled(self) -> None:
        """Returns when what was to be copied is copied."""

    def kept(self, definition: Definition) -> Definition | None:
        """The same definition with its code where nobody changes it; None when there is no copy."""

    def tidy(self, modules: Iterable[Module]) -> None:
        """Remove the copies that none of all modules needs."""


class MetricsPages(Protocol):
    async def page(
        self, accept: str = "", module_id: str | None = None, patience_s: float = 1.0
    ) -> tuple[str, bytes]:
        """Content type and text in the form that an Accept header asks for; patience_s: for modules to answer."""


class Replaceable(Protocol):
    async def reexec(self, force: bool, timeout_s: float | None) -> dict[str, Any]:
        """Try the installed nexusd; when this returns, it is about to take this one's place.

        Raises Busy, NotPossible, ShuttingDown: then nothing has happened.
        """


class Daemon(Protocol):
    """What a command may ask of the daemon as a whole."""

    async def reload(self) -> dict[str, Any]:
        """Read configuration and manifests again: ids that were added, changed, removed, …; and faults by id."""

    def shut_down(self) -> None: ...
