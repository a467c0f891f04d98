"""What can happen to a replica and to the fleet, and what may have to be done then.

Which follows from which is decided by `lifecycle` and `fleet`.
"""

from typing import NamedTuple

from msgspec import Struct

from nexusd.domain import checks
from nexusd.domain.checks import Purpose
from nexusd.domain.manifest import Definition
from nexusd.domain.module import Module
from nexusd.domain.replica import Exit, Replica

# Events of a replica


class Start(Struct, frozen=True):
    """It is wanted. Clears what failed attempts it has behind it."""


class Stop(Struct, frozen=True):
    """It is no longer wanted."""


class Renew(Struct, frozen=True):
    """Stop it and start it again; what does not run is just started."""


class Hold(Struct, frozen=True):
    """The fleet does not admit it yet, and says why."""

    obstacle: str
    lasting: bool


class Admit(Struct, frozen=True):
    run: str


class Spawned(Struct, frozen=True):
    run: str
    pid: int
    running: bool = False  # whether the module's own code has been reached, too


class Running(Struct, frozen=True):
    """The module's own code has been reached."""

    run: str


class Ready(Struct, frozen=True):
    run: str


class Pinged(Struct, frozen=True):
    """WATCHDOG=1"""

    run: str


class Said(Struct, frozen=True):
    """STATUS=, for people."""

    run: str
    text: str


class Checked(Struct, frozen=True):
    """A health check has come to its end."""

    run: str
    purpose: Purpose
    said: checks.Said


class NeverSpawned(Struct, frozen=True):
    """The wish to spawn it was lost with nexusd or the keeper."""

    run: str


class Exited(Struct, frozen=True):
    run: str
    exit: Exit


class Expired(Struct, frozen=True):
    """The deadline of the present state has passed."""


Event = (
    Start
    | Stop
    | Renew
    | Hold
    | Admit
    | Spawned
    | Running
    | Ready
    | Pinged
    | Said
    | Checked
    | NeverSpawned
    | Exited
    | Expired
)


# Actions on a replica


class Spawn(Struct, frozen=True):
    run: str


class Terminate(Struct, frozen=True):
    run: str
    signal: int


class Kill(Struct, frozen=True):
    run: str


class Forget(Struct, frozen=True):
    run: str


Action = Spawn | Terminate | Kill | Forget


# Events of the fleet


class Put(Struct, frozen=True):
    """A module was loaded, changed or, None, is to be dropped."""

    module_id: str
    module: Module | None


class Load(Struct, frozen=True):
    """These modules are new, all at once: the relations between them are worked out once."""

    modules: tuple[Module, ...]


class Want(Struct, frozen=True):
    """These modules are to run, or not to: together, so that none is stopped before its dependents."""

    module_ids: tuple[str, ...]
    started: bool


class Renewal(Struct, frozen=True):
    """Every replica is stopped and started again; with a definition, as a new generation, if it is to run.

    Beside: the new generation is started first, and the old one stopped when all of the new one is ready.
    """

    module_id: str
    definition: Definition | None = None
    beside: bool = False
    index: int | None = None  # of the one replica that is meant; only without a definition


class Roll(Struct, frozen=True):
    """A new generation, replica by replica. At the first failure all go back to `former`: the definition in
    force, with its code where nobody changes it.
    """

    module_id: str
    definition: Definition
    former: Definition


class Scale(Struct, frozen=True):
    module_id: str
    count: int


class News(Struct, frozen=True):
    """Something happened to one replica."""

    module_id: str
    key: tuple[int, int]
    event: Event


FleetEvent = Put | Load | Want | Renewal | Roll | Scale | News


# What the fleet wants done


class Order(NamedTuple):
    """What is to be done to a replica's process."""

    replica: Replica
    action: Action

    @property
    def module_id(self) -> str:
        return self.replica.module_id


class GiveUp(NamedTuple):
    """A replica of this module has failed for good."""

    module_id: str
