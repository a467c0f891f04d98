"""What the daemon has counted since it began: fed on the event loop, copied for each scrape.

An observer of the supervisor, of API calls, of the keeper's answers and of the loop itself; it shows nothing.
Beside it: where else a scrape's facts come from.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from nexusd.domain.counts import Pinged, Ready, Restarted, Spread, counted, empty
from nexusd.domain.fleet import Fleet

STARTS_S = empty(0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0)
RELOADS_S = STARTS_S
CALLS_S = empty(0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0)
ROUND_TRIPS_S = empty(0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0)
LAGS_S = empty(0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0)


@dataclass(slots=True)
class Figures:
    """Values are never changed, only replaced: a copy of the dicts is a copy of all."""

    restarts: Counter[tuple[str, int, str]] = field(default_factory=Counter)  # module, index, reason
    starts: dict[str, Spread] = field(default_factory=dict)
    reloads: dict[tuple[str, str], Spread] = field(default_factory=dict)  # module, outcome
    requests: Counter[tuple[str, str]] = field(default_factory=Counter)  # method, outcome
    latencies: dict[str, Spread] = field(default_factory=dict)
    round_trips: Spread = ROUND_TRIPS_S
    lags: Spread = LAGS_S
    watchdog_pings: int = 0

    def observe(self, before: Fleet, after: Fleet, touched: frozenset[str]) -> None:
        for module_id in touched:
            former, module = before.modules.get(module_id), after.modules.get(module_id)
            if module is None:
                self._forget(module_id)
            elif former is not None:
                for count in counted(former, module):
                    self._add(module_id, count)

    def called(self, method: str, outcome: str, elapsed_s: float) -> None:
        """outcome: "ok", or the kind of the error."""
        self.requests[method, outcome] += 1
        self.latencies[method] = self.latencies.get(method, CALLS_S).with_value(elapsed_s)

    def reloaded(self, module_id: str, outcome: str, elapsed_s: float) -> None:
        key = module_id, outcome
        self.reloads[key] = self.reloads.get(key, RELOADS_S).with_value(elapsed_s)

    def took_round_trip(self, seconds: float) -> None:
        self.round_trips = self.round_trips.with_value(seconds)

    def lagged(self, seconds: float) -> None:
        self.lags = self.lags.with_value(seconds)

    def copy(self) -> "Figures":
        return replace(
            self,
            restarts=Counter(self.restarts),
            starts=dict(self.starts),
            reloads=dict(self.reloads),
            requests=Counter(self.requests),
            latencies=dict(self.latencies),
        )

    def _add(self, module_id: str, count: Restarted | Ready | Pinged) -> None:
        match count:
            case Restarted(index, reason):
                self.restarts[module_id, index, reason] += 1
            case Ready(seconds):
                self.starts[module_id] = self.starts.get(module_id, STARTS_S).with_value(seconds)
            case Pinged():
                self.watchdog_pings += 1

    def _forget(self, module_id: str) -> None:
        """A module that is gone, and perhaps comes back as another, leaves no figures behind."""
        self.starts.pop(module_id, None)
        for restarts in [key for key in self.restarts if key[0] == module_id]:
            del self.restarts[restarts]
        for reloads in [key for key in self.reloads if key[0] == module_id]:
            del self.reloads[reloads]


class Keeper(Protocol):
    """The keeper's client, as far as figures go."""

    @property
    def connected(self) -> bool: ...
    def processes(self) -> dict[str, tuple[int, int, str | None]]: ...
    def journal(self, run: str, /) -> str | None: ...
    def log_bytes(self, patience_s: float) -> Awaitable[Mapping[str, int]]: ...


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the facts come from; all of it is asked on the event loop."""

    version: str
    started_at: float
    fleet: Callable[[], Fleet]
    figures: Figures
    keeper: Keeper
    log_path: Callable[[str], str]
    control_path: Callable[[str], str]
    connections: Callable[[], int]
    audit_lines: Callable[[], int]
    most_unhealthy: Callable[[], float]  # share of modules, at which the daemon still counts as ready
