"""Experiments: what may be asked for, what a steady state is, and which replicas are hit.

Pure: chance is an argument. How one goes on stands in `trial`; who sends the signals is `nexusd.chaos`.
"""

import math
import signal
from collections.abc import Callable, Sequence
from enum import StrEnum

from msgspec import Struct

from nexusd.domain.errors import InvalidParams, NotPossible
from nexusd.domain.fields import near_match
from nexusd.domain.health import Health
from nexusd.domain.module import Module, ModuleState
from nexusd.domain.replica import Replica
from nexusd.domain.units import Seconds

LONGEST_S = 3600.0
MOST_SEED = 2**63 - 1

Sample = Callable[[Sequence[Replica], int], list[Replica]]


class Kind(StrEnum):
    KILL = "kill"
    TERMINATE = "terminate"
    FREEZE = "freeze"

    @property
    def signal(self) -> signal.Signals:
        return _SIGNALS[self]


_SIGNALS = {Kind.KILL: signal.SIGKILL, Kind.TERMINATE: signal.SIGTERM, Kind.FREEZE: signal.SIGSTOP}
DEFAULT_S = {Kind.KILL: 60.0, Kind.TERMINATE: 60.0, Kind.FREEZE: 10.0}


class Share(Struct, frozen=True):
    """How many of the running replicas: a number, or a percentage of them."""

    amount: int
    is_percentage: bool = False

    def of(self, running: int) -> int:
        """A percentage is rounded up."""
        return math.ceil(self.amount * running / 100) if self.is_percentage else self.amount

    def __str__(self) -> str:
        return f"{self.amount}%" if self.is_percentage else str(self.amount)


class Experiment(Struct, frozen=True):
    """What was asked for, checked. duration_s: how long frozen; how long watched at most, for the others."""

    kind: Kind
    module_id: str
    share: Share
    duration_s: float
    seed: int


def experiment_of(
    kind: str, module_id: str, replicas: int | str, duration: float | str | None, seed: int
) -> Experiment:
    """Raises InvalidParams for what is no experiment."""
    known = _kind(kind)
    return Experiment(known, module_id, share_of(replicas), _duration(duration, known), seed)


def _kind(word: str) -> Kind:
    if word in [*Kind]:
        return Kind(word)
    near = near_match(word, Kind)
    hint = f"did you mean {near}?" if near else None
    raise InvalidParams(f"no such experiment: {word}; there are {', '.join(Kind)}", hint=hint)


def share_of(said: int | str) -> Share:
    """1, "1" or "50%". Raises InvalidParams."""
    text = str(said).strip()
    digits = text.removesuffix("%")
    amount = int(digits) if digits.isdecimal() and digits.isascii() and len(digits) < 5 else 0
    share = Share(amount, text.endswith("%"))
    if amount < 1 or (share.is_percentage and amount > 100):
        raise InvalidParams(
            f'replicas: expected a number from 1 or a percentage such as "50%", found {said!r}'
        )
    return share


def _duration(said: float | str | None, kind: Kind) -> float:
    if said is None:
        return DEFAULT_S[kind]
    try:
        seconds = float(Seconds.parse(float(said) if _is_number(said) else said))
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= LONGEST_S:
        raise InvalidParams(f'duration: expected one above 0 and up to 1h, such as "10s", found {said!r}')
    return seconds


def _is_number(said: float | str) -> bool:
    """On a command line seconds may come without their unit."""
    return isinstance(said, str) and said.isascii() and said.replace(".", "", 1).isdigit()


# Whom it hits


class Target(Struct, frozen=True):
    """One replica that is hit, and what was seen of it since."""

    name: str
    index: int
    run: str
    pid: int | None
    detected_at: float | None = None
    noticed: str | None = None  # what nexusd noticed
    recovered_at: float | None = None
    pid_after: int | None = None


def targets(experiment: Experiment, module: Module, view: "View", sample: Sample) -> tuple[Target, ...]:
    """Raises NotPossible where the manifest does not allow it, or where recovery could not be told."""
    _refuse_unless_allowed(module)
    steady = steadiness(view)
    if not steady.is_steady:
        raise NotPossible(
            f"{module.id} is not in its steady state, so its recovery could not be told",
            module_id=module.id,
            reason="; ".join(steady.reasons),
            hint=f"nexusctl status {module.id}",
        )
    running = sorted(module.current, key=lambda replica: replica.index)
    count = experiment.share.of(len(running))
    if not running or count > len(running):
        raise NotPossible(
            f"{module.id} has {len(running)} running replicas, not {count}", module_id=module.id
        )
    chosen = sorted(sample(running, count), key=lambda replica: replica.index)
    return tuple(Target(one.name, one.index, one.run, one.pid) for one in chosen if one.run is not None)


def _refuse_unless_allowed(module: Module) -> None:
    if module.definition is not None and module.definition.manifest.chaos.allow:
        return
    manifest = f"{module.folder}/module.toml"
    raise NotPossible(
        f"{module.id} allows no experiments",
        module_id=module.id,
        reason=f"{manifest} has no [chaos] allow = true",
        hint=f"add to {manifest}: [chaos] allow = true; then nexusctl reload {module.id}",
    )


# What is seen


class View(Struct, frozen=True):
    """The module as it is at a moment. stopped: runs that are held by SIGSTOP, as far as that was asked."""

    module: Module | None
    health: Health = Health.UNHEALTHY
    reasons: tuple[str, ...] = ()
    stopped: frozenset[str] = frozenset()
    in_a_hurry: bool = False  # nexusd is leaving: nothing is waited for but the rollback itself
    calm_s: float = math.inf  # how long none of its replicas has changed its state


class Steadiness(Struct, frozen=True):
    """Steady: the module is started with all its replicas, nothing is under way, and it is healthy."""

    is_steady: bool
    state: str
    wanted: int
    ready: int
    health: str
    reasons: tuple[str, ...]


def steadiness(view: View) -> Steadiness:
    module = view.module
    if module is None:
        return Steadiness(False, "gone", 0, 0, str(view.health), ("the module is gone",))
    against = tuple(_against(module, view))
    return Steadiness(not against, str(module.state), module.count, module.ready, str(view.health), against)


def _against(module: Module, view: View) -> list[str]:
    found = []
    if module.state is not ModuleState.STARTED:
        found.append(f"it is {module.state}" + (f": {module.reason}" if module.reason else ""))
    elif view.health is not Health.HEALTHY:
        found += [f"it is {view.health}: {reason}" for reason in view.reasons or ("no reason given",)]
    if not module.wanted:
        found.append("it is not wanted")
    if module.upgrade is not None:
        found.append("it is being reloaded")
    return found
