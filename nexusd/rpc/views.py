"""The fleet as the API shows it. Field names and types are the contract; fields are added, never changed.

A module's row is encoded once and kept until the module changes, since everybody asks for status all the time.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec

from nexusd.domain import health, runs, settings
from nexusd.domain.checks import Plan, Purpose, Tally, described, plan_of
from nexusd.domain.fleet import Fleet
from nexusd.domain.graph import Graph
from nexusd.domain.manifest import ConfigKey
from nexusd.domain.module import Module
from nexusd.domain.replica import Backoff, Replica, Started
from nexusd.domain.units import unit_number
from nexusd.outcomes import exit_shown
from nexusd.ports import Containment, Edits, Outputs, Seen
from nexusd.rpc import containment

FEATURES = {"cluster": False, "tracing": False, "compliance": False}
_LEVELS = {
    (False, False, False): "level-14.5-basic",
    (True, False, False): "level-18-enterprise",
    (True, True, False): "level-20-enterprise",
    (True, True, True): "level-23-enterprise",
}

LastChecks = Callable[[str], Mapping[Purpose, Seen]]

_encode = msgspec.json.Encoder(enc_hook=unit_number).encode


def level(features: Mapping[str, bool]) -> str:
    """The name that AEON has for what is switched on; in between, the nearest one below."""
    cluster, tracing, compliance = features["cluster"], features["tracing"], features["compliance"]
    return _LEVELS[(cluster, cluster and tracing, cluster and tracing and compliance)]


def epoch(monotonic: float) -> float:
    """The wall-clock time of a moment on the monotonic clock, as the wall clock stands now."""
    return round(time.time() - (time.monotonic() - monotonic), 3)


def summary(module: Module) -> dict[str, Any]:
    manifest = module.definition.manifest if module.definition else None
    word, reasons = health.health_of(module)
    return {
        "id": module.id,
        "state": str(module.state),
        "wanted": "started" if module.wanted else "stopped",
        "health": str(word),
        "health_reasons": list(reasons),
        "version": manifest.version if manifest else None,
        "generation": module.generation,
        "critical": manifest.critical if manifest else False,
        "replicas": {"wanted": module.count, "ready": module.ready},
        "since": epoch(module.since),
        "restarts": sum(replica.history.restarts for replica in module.current),
        "reason": module.reason,
    }


def detail(
    module: Module,
    graph: Graph,
    log_path: Callable[[str], str],
    last_checks: LastChecks,
    held_by: Containment,
    edits: Edits,
) -> dict[str, Any]:
    """Everything there is to say of one module."""
    faults = [msgspec.structs.asdict(fault) for fault in module.faults]
    shown = {**summary(module), "folder": module.folder, "faults": faults}
    is_edited = module.pending is not None or edits.are_there(module)
    shown |= {"uptime_seconds": _module_uptime(module), "pending_reload": is_edited}
    refused = module.refused
    shown["refused_reload"] = {"reason": refused.reason, "at": epoch(refused.at)} if refused else None
    shown["instances"] = [
        {
            **_instance(replica, log_path(replica.name)),
            **_health(module, replica, last_checks),
            "cgroup": held_by.leaf_of(replica.run) if replica.run is not None else None,
        }
        for replica in module.replicas
    ]
    shown["required_by"] = list(graph.required_by.get(module.id, ()))
    shown |= {
        "limits": containment.limits(module, held_by),
        "containment": containment.shown(module, held_by),
    }
    return {**shown, **_from_manifest(module)}


def _from_manifest(module: Module) -> dict[str, Any]:
    if module.definition is None:
        blank: dict[str, Any] = {"description": "", "requires": [], "after": [], "permissions": []}
        return {**blank, "config": {}}
    manifest = module.definition.manifest
    effective = settings.effective(manifest, module.configured)
    return {
        "description": manifest.description,
        "requires": list(manifest.requires),
        "after": list(manifest.after),
        "permissions": list(manifest.permissions),
        "config": settings.masked(manifest, effective),
    }


def setting(key: ConfigKey, value: Any, configured: bool) -> dict[str, Any]:
    """A configuration key with its value, a secret one masked."""
    hidden = settings.MASK if key.secret else None
    return {
        "value": hidden or value,
        "default": hidden or key.default,
        "type": key.type,
        "min": key.min,
        "max": key.max,
        "choices": None if key.secret else key.choices,
        "apply": key.apply,
        "secret": key.secret,
        "source": "configured" if configured else "default",
        "description": key.description,
    }


def _module_uptime(module: Module) -> float | None:
    since = [replica.since for replica in module.current if isinstance(replica.state, Started)]
    return round(time.monotonic() - min(since), 3) if since else None


def _instance(replica: Replica, log: str) -> dict[str, Any]:
    history, now = replica.history, time.monotonic()
    started = isinstance(replica.state, Started)
    exit = exit_shown(history.last_exit)
    if exit is not None and history.last_exit_at is not None:
        exit["at"] = epoch(history.last_exit_at)
    waits = isinstance(replica.state, Backoff) and replica.deadline is not None
    return {
        "name": replica.name,
        "index": replica.index,
        "generation": replica.generation,
        "state": replica.state_name,
        "ready": started,
        "pid": replica.pid,
        "since": epoch(replica.since),
        "uptime_seconds": round(now - replica.since, 3) if started else None,
        "restarts": history.restarts,
        "status_text": replica.status_text,
        "reason": replica.reason,
        "last_exit": exit,
        "next_attempt_in_s": max(0.0, round((replica.deadline or now) - now, 3)) if waits else None,
        "log": log,
    }


def _health(module: Module, replica: Replica, last_checks: LastChecks) -> dict[str, Any]:
    """What its checks make of a replica, and what each of them said last."""
    plan = plan_of(module.definition_of(replica).manifest)
    word, reason = health.health_of_replica(replica, plan)
    seen = last_checks(replica.run) if replica.run is not None else {}
    asked = plan.checks if replica.run is not None else {}
    checks = [
        _check(plan, purpose, replica.checks.get(purpose, Tally()), seen.get(purpose)) for purpose in asked
    ]
    return {"health": str(word), "health_reason": reason, "checks": checks}


def _check(plan: Plan, purpose: Purpose, tally: Tally, seen: Seen | None) -> dict[str, Any]:
    """verdict: what counts, after several checks in a row; result: what the last one said."""
    return {
        "purpose": str(purpose),
        "check": described(plan.checks[purpose]),
        "verdict": tally.verdict,
        "failures": tally.failures,
        "result": seen.said.word if seen else None,
        "reason": seen.said.reason if seen else tally.reason,
        "at": epoch(seen.at) if seen else None,
        "took_seconds": round(seen.took_s, 4) if seen else None,
    }


class _Row(NamedTuple):
    """What the page needs of one module, worked out when the module changed."""

    module: Module
    encoded: bytes
    state: str
    health: health.Health


class StatusPage:
    """The daemon's status with a row for each module; only what changed since the last call is made anew."""

    def __init__(self) -> None:
        self._rows: dict[str, _Row] = {}
        self._fleet: Fleet | None = None
        self._parts: dict[str, Any] = {}

    def parts(self, fleet: Fleet) -> dict[str, Any]:
        """`modules` and `health` of the answer, encoded."""
        if fleet is not self._fleet:
            self._rows = {
                module_id: self._row(fleet.modules[module_id]) for module_id in sorted(fleet.modules)
            }
            self._parts = {"modules": self._modules(), "health": self._health()}
            self._fleet = fleet
        return self._parts

    def _row(self, module: Module) -> _Row:
        known = self._rows.get(module.id)
        if known is not None and known.module is module:
            return known
        row = summary(module)
        return _Row(module, _encode(row), row["state"], health.Health(row["health"]))

    def _modules(self) -> msgspec.Raw:
        rows = self._rows.values()
        head = {
            "total_discovered": len(rows),
            "total_loaded": sum(row.module.definition is not None for row in rows),
            "by_state": dict(sorted(Counter(row.state for row in rows).items())),
        }
        items = b",".join(row.encoded for row in rows)
        return msgspec.Raw(_encode(head)[:-1] + b',"items":[' + items + b"]}")

    def _health(self) -> msgspec.Raw:
        loaded = (row.health for row in self._rows.values() if row.module.definition is not None)
        return msgspec.Raw(_encode({"statistics": health.counted(loaded)}))


def journal(module: Module, outputs: Outputs) -> str | None:
    """What `journalctl -t` finds the module's output by, if that is where it goes."""
    running = [replica.run for replica in module.replicas if replica.run is not None]
    if running:
        return next(filter(None, map(outputs.journal, running)), None)
    wanted = module.definition is not None and module.definition.manifest.log.target == "journal"
    return runs.journal_identifier(module.id) if wanted else None
