"""What the daemon says of itself to those who ask. Gathered by the daemon, shown by the methods."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nexusd.domain.access import Grants, SecurityContext
from nexusd.domain.health import MOST_UNHEALTHY


@dataclass(frozen=True, slots=True)
class Identity:
    """What may change is asked for anew."""

    version: str
    pid: int
    started_at: float  # monotonic seconds
    context: SecurityContext
    grants: Callable[[], Grants]
    keeper: Callable[[], Mapping[str, Any]]
    warnings: Callable[[], list[str]]
    module_paths: Callable[[], Sequence[str]]
    is_running: Callable[[], bool]  # it has started; before, only its own process can ask
    instance: str  # of this nexusd alone: its pid may be that of the one before
    replaced: Mapping[str, Any] | None  # which nexusd it has taken over from, in the same process
    most_unhealthy: Callable[[], float] = lambda: MOST_UNHEALTHY
