"""nexusd's own metrics: from one moment's facts to the lines of a page. Touches no live object.

Which metrics there are stands in `families`. Most of what is said of a module is the same at the next scrape: its
lines are kept until it changes, and only what moves by itself is written anew.
"""

import logging
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple, get_args

from prometheus_client import ProcessCollector

from nexusd.domain import health
from nexusd.domain.counts import Spread, possible
from nexusd.domain.fleet import Fleet
from nexusd.domain.health import Health
from nexusd.domain.module import Module, ModuleState
from nexusd.domain.replica import Replica, Started, State
from nexusd.system.families import FAMILIES
from nexusd.system.figures import Figures
from nexusd.system.metrics_text import Page, escaped, labels_text, line, spread_lines
from nexusd.system.usage import usage

log = logging.getLogger("nexusd.metrics")

REPLICA_STATES = tuple(sorted(str(state.__struct_config__.tag) for state in get_args(State)))
_MOVING = (
    "nexus_replica_uptime_seconds",
    "nexus_replica_log_bytes_total",
    "nexus_replica_cpu_seconds_total",
    "nexus_replica_resident_memory_bytes",
    "nexus_replica_threads",
    "nexus_replica_open_fds",
)
_PROCESS = ProcessCollector(registry=None)


class Facts(NamedTuple):
    """One moment, gathered on the event loop."""

    now: float  # monotonic seconds
    version: str
    started_at: float
    fleet: Fleet
    figures: Figures
    processes: Mapping[str, tuple[int, int, str | None]]  # pid, start time, cgroup by run
    log_bytes: Mapping[str, int]  # by path
    keeper_connected: bool
    connections: int
    audit_lines: int | None
    scrape_errors: Mapping[tuple[str, str], int]  # module, reason


class Sheet:
    """A page being written with nexusd's own families."""

    def __init__(self, page: Page) -> None:
        self.lines: dict[str, list[str]] = {}
        for name, kind, help, _ in FAMILIES.values():
            family = page.family(name.removesuffix("_total") if kind == "counter" else name, kind, help)
            assert family is not None  # the table is the first to take its names
            self.lines[name] = family.lines

    def put(self, name: str, labels: str, value: float) -> None:
        self.lines[name].append(line(name, labels, value))

    def put_spread(self, name: str, labels: str, spread: Spread) -> None:
        self.lines[name].extend(spread_lines(name, labels, spread))


def write_daemon(page: Page, facts: Facts, is_ready: bool) -> None:
    sheet, figures = Sheet(page), facts.figures
    versions = {"python": platform.python_version(), "version": facts.version}
    sheet.put("nexus_build_info", labels_text(versions), 1)
    sheet.put("nexus_daemon_uptime_seconds", "", facts.now - facts.started_at)
    sheet.put("nexus_ready", "", is_ready)
    sheet.put("nexus_keeper_connected", "", facts.keeper_connected)
    sheet.put_spread("nexus_keeper_round_trip_seconds", "", figures.round_trips)
    sheet.put_spread("nexus_event_loop_lag_seconds", "", figures.lags)
    sheet.put("nexus_rpc_connections", "", facts.connections)
    sheet.put("nexus_watchdog_pings_total", "", figures.watchdog_pings)
    if facts.audit_lines is not None:
        sheet.put("nexus_audit_lines_total", "", facts.audit_lines)
    for (method, outcome), count in figures.requests.items():
        sheet.put("nexus_rpc_requests_total", labels_text({"method": method, "outcome": outcome}), count)
    for method, spread in figures.latencies.items():
        sheet.put_spread("nexus_rpc_request_duration_seconds", labels_text({"method": method}), spread)
    _write_process(page)


def _write_process(page: Page) -> None:
    """nexusd's own process, under the names that all Prometheus clients have for it."""
    for metric in _PROCESS.collect():
        family = page.family(metric.name, metric.type, metric.documentation)
        if family is not None:
            told = (line(one.name, labels_text(one.labels), one.value) for one in metric.samples)
            family.lines += told


class _Counted(NamedTuple):
    """What was counted of one module."""

    starts: Spread | None = None
    reloads: tuple[tuple[str, Spread], ...] = ()  # by outcome
    restarts: tuple[tuple[int, str, int], ...] = ()  # replica, reason, number
    errors: tuple[tuple[str, int], ...] = ()  # by reason


_NOTHING = _Counted()


class _Said(NamedTuple):
    """What the lasting lines of a module say; what is equal has equal lines."""

    state: str
    health: str
    wanted: bool
    critical: bool
    generation: int
    replicas_wanted: int
    replicas_ready: int
    replicas: tuple[tuple[int, str], ...]  # index, state
    reasons: tuple[str, ...]  # why they may be restarted
    counted: _Counted


class _Row(NamedTuple):
    module: Module
    said: _Said
    lasting: tuple[tuple[str, str], ...]  # family, lines
    moving: tuple[tuple[Replica, str, tuple[str, ...]], ...]  # path of the log, how each line begins


class ModuleWriter:
    """Of one page after the other."""

    def __init__(self, log_path: Callable[[str], str]) -> None:
        self._log_path = log_path
        self._rows: dict[str, _Row] = {}

    def write(self, page: Page, facts: Facts, modules: Iterable[Module]) -> Iterator[str | None]:
        """A module at a time. Yields the id of each of which nothing can be told, for the others None: a defect in
        one row leaves the others."""
        lines, counted = Sheet(page).lines, _by_module(facts)
        yield None
        for module in modules:
            try:
                told = self._told(module, counted.get(module.id, _NOTHING), facts)
            except Exception:
                log.exception("the metrics of %s cannot be told", module.id)
                yield module.id
                continue
            for name, text in told:
                lines[name].append(text)
            yield None
        for module_id in self._rows.keys() - facts.fleet.modules.keys():
            del self._rows[module_id]

    def _told(self, module: Module, counted: _Counted, facts: Facts) -> list[tuple[str, str]]:
        row = self._rows[module.id] = self._row(module, counted)
        told = list(row.lasting)
        for replica, path, beginnings in row.moving:
            values = _moving(replica, path, facts)
            told += [
                (name, f"{start}{value}\n")
                for name, start, value in zip(_MOVING, beginnings, values, strict=True)
                if value is not None
            ]
        return told

    def _row(self, module: Module, counted: _Counted) -> _Row:
        """The one that is there, if nothing has changed; or at least its lines, if they would be the same."""
        row = self._rows.get(module.id)
        if row is not None and row.module is module and row.said.counted == counted:
            return row
        said = _said(module, counted)
        lasting = row.lasting if row is not None and row.said == said else _lasting(module.id, said)
        return _Row(module, said, lasting, tuple(map(self._beginnings, module.current)))

    def _beginnings(self, replica: Replica) -> tuple[Replica, str, tuple[str, ...]]:
        labels = f'module="{escaped(replica.module_id)}",replica="{replica.index}"'
        return replica, self._log_path(replica.name), tuple(f"{name}{{{labels}}} " for name in _MOVING)


def _by_module(facts: Facts) -> dict[str, _Counted]:
    found: dict[str, _Counted] = {}

    def of(module_id: str) -> _Counted:
        return found.get(module_id, _NOTHING)

    for module_id, starts in facts.figures.starts.items():
        found[module_id] = _Counted(starts)
    for (module_id, outcome), spread in facts.figures.reloads.items():
        one = of(module_id)
        found[module_id] = one._replace(reloads=(*one.reloads, (outcome, spread)))
    for (module_id, index, reason), number in facts.figures.restarts.items():
        one = of(module_id)
        found[module_id] = one._replace(restarts=(*one.restarts, (index, reason, number)))
    for (module_id, reason), number in facts.scrape_errors.items():
        one = of(module_id)
        found[module_id] = one._replace(errors=(*one.errors, (reason, number)))
    return found


def _said(module: Module, counted: _Counted) -> _Said:
    return _Said(
        str(module.state),
        str(health.health_of(module)[0]),
        module.wanted,
        module.definition is not None and module.definition.manifest.critical,
        module.generation,
        module.count,
        module.ready,
        tuple((replica.index, replica.state_name) for replica in module.current),
        () if module.definition is None else possible(module.definition.manifest),
        counted,
    )


def _lasting(module_id: str, said: _Said) -> tuple[tuple[str, str], ...]:
    labels, counted = f'module="{escaped(module_id)}"', said.counted
    lines = [
        ("nexus_module_state", _set_lines("nexus_module_state", labels, "state", said.state, ModuleState)),
        ("nexus_module_health", _set_lines("nexus_module_health", labels, "health", said.health, Health)),
        *(
            (name, line(name, labels, value))
            for name, value in (
                ("nexus_module_wanted", said.wanted),
                ("nexus_module_critical", said.critical),
                ("nexus_module_generation", said.generation),
                ("nexus_module_replicas_wanted", said.replicas_wanted),
                ("nexus_module_replicas_ready", said.replicas_ready),
            )
        ),
    ]
    if counted.starts is not None:
        name = "nexus_module_start_duration_seconds"
        lines.append((name, "".join(spread_lines(name, labels, counted.starts))))
    for outcome, spread in counted.reloads:
        name = "nexus_module_reload_duration_seconds"
        lines.append((name, "".join(spread_lines(name, f'{labels},outcome="{outcome}"', spread))))
    for reason, number in counted.errors:
        name = "nexus_module_scrape_errors_total"
        lines.append((name, line(name, f'{labels},reason="{reason}"', number)))
    return (*lines, *_replica_lines(labels, said))


def _replica_lines(module_labels: str, said: _Said) -> Iterator[tuple[str, str]]:
    for index, state in said.replicas:
        name, labels = "nexus_replica_state", f'{module_labels},replica="{index}"'
        yield name, _set_lines(name, labels, "state", state, REPLICA_STATES)
        yield from _restart_lines(module_labels, index, said)


def _restart_lines(module_labels: str, index: int, said: _Said) -> Iterator[tuple[str, str]]:
    """Of what has happened and of what may: a counter whose first value is not 0 has an increase that nobody sees."""
    name = "nexus_replica_restarts_total"
    counted = {reason: number for at, reason, number in said.counted.restarts if at == index}
    for reason, number in {**dict.fromkeys(said.reasons, 0), **counted}.items():
        yield name, line(name, f'{module_labels},reason="{reason}",replica="{index}"', number)


def _set_lines(name: str, labels: str, label: str, chosen: str, among: Iterable[str]) -> str:
    """1 for the one, 0 for all others."""
    return "".join(line(name, f'{labels},{label}="{one}"', one == chosen) for one in among)


def _moving(replica: Replica, log_path: str, facts: Facts) -> tuple[float | None, ...]:
    """A value for each of _MOVING; None where there is none."""
    uptime_s = facts.now - replica.since if isinstance(replica.state, Started) else None
    process = facts.processes.get(replica.run or "")
    used = None if process is None else usage(*process)
    return uptime_s, facts.log_bytes.get(log_path), *(used or (None, None, None, None))
