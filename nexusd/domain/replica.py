"""One process of a module as the domain knows it: its state, what belongs to that, what it has behind it.

How it gets from state to state is `lifecycle`'s.
"""

import signal

from msgspec import Struct

from nexusd.domain.checks import Tallies


class Exit(Struct, frozen=True):
    """How a process ended. `cause` is set when it never was the module's own code that ended."""

    code: int | None = None
    signal: int | None = None
    cause: str | None = None

    @property
    def is_clean(self) -> bool:
        return self.code == 0 and self.cause is None

    @property
    def signal_name(self) -> str | None:
        if self.signal is None:
            return None
        try:
            return signal.Signals(self.signal).name
        except ValueError:  # the real-time signals between SIGRTMIN and SIGRTMAX have no names
            return f"signal {self.signal}"

    @property
    def description(self) -> str:
        if self.cause is not None:
            return self.cause
        if self.signal is not None:
            return f"killed by {self.signal_name}"
        return "status unknown" if self.code is None else f"exit status {self.code}"


# States. What belongs to a state stands in it; a state with a `run` has a process.


class Stopped(Struct, frozen=True, tag="stopped"):
    """Not running, and nothing will start it but a command."""


class Waiting(Struct, frozen=True, tag="waiting"):
    """To be started as soon as the fleet admits it."""

    obstacle: str | None = None
    lasting: bool = False  # whether waiting alone will not remove the obstacle


class Starting(Struct, frozen=True, tag="starting"):
    run: str
    deadline: float
    pid: int | None = None
    announced: bool = False  # it said READY=1; a check has yet to pass


class Started(Struct, frozen=True, tag="started"):
    run: str
    pid: int | None
    deadline: float | None = None  # of the module's watchdog
    probation: float | None = None  # monotonic seconds until which it has to run before it is trusted


class Stopping(Struct, frozen=True, tag="stopping"):
    run: str
    pid: int | None
    deadline: float
    killed: bool = False
    failure: str | None = None  # why it had to go, when nobody asked for it


class Stuck(Struct, frozen=True, tag="stuck"):
    """SIGKILLed and still there: the kernel holds it in an uninterruptible call."""

    run: str
    pid: int | None
    failure: str | None = None


class Backoff(Struct, frozen=True, tag="backoff"):
    deadline: float


class Failed(Struct, frozen=True, tag="failed"):
    """Given up on, until an operator or healing acts."""


State = Stopped | Waiting | Starting | Started | Stopping | Stuck | Backoff | Failed
Alive = Starting | Started | Stopping | Stuck


class History(Struct, frozen=True):
    """What a replica has behind it."""

    restarts: int = 0  # by itself, ever
    in_a_row: int = 0  # since it last ran long enough, or was started by hand
    times: tuple[float, ...] = ()  # of the restarts that count against the intensity
    last_exit: Exit | None = None
    last_exit_at: float | None = None


class Replica(Struct, frozen=True):
    module_id: str
    index: int
    generation: int
    since: float  # monotonic seconds at which the state was entered
    wanted: bool = False
    state: State = Stopped()
    history: History = History()
    reason: str | None = None
    status_text: str | None = None
    checks: Tallies = {}  # of the present run

    @property
    def name(self) -> str:
        return f"{self.module_id}#{self.index}"

    @property
    def key(self) -> tuple[int, int]:
        return self.index, self.generation

    @property
    def run(self) -> str | None:
        return self.state.run if isinstance(self.state, Alive) else None

    @property
    def pid(self) -> int | None:
        return self.state.pid if isinstance(self.state, Alive) else None

    @property
    def deadline(self) -> float | None:
        ends = (getattr(self.state, "deadline", None), getattr(self.state, "probation", None))
        return min((end for end in ends if end is not None), default=None)

    @property
    def state_name(self) -> str:
        return str(self.state.__struct_config__.tag)
