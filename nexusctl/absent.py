"""What AEON is told of a daemon that gives no answer: not live, not ready, and what was last known of it.

The daemon being down is an ordinary case, so each answer has the fields that it has when the daemon is up.
"""

from __future__ import annotations

import time

from nexusctl.unreachable import TIMED_OUT, Unreachable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_NOTHING_KNOWN: dict[str, Any] = {
    "level": "level-14.5-basic",
    "security": {"principal": None, "roles": []},
    "features": {"cluster": False, "tracing": False, "compliance": False},
    "modules": {"total_discovered": 0, "total_loaded": 0, "by_state": {}, "items": []},
}
_last_known: dict[str, dict[str, Any]] = {}  # by module id; the daemon's own under ""


def remembered(module_id: str | None, status: dict[str, Any]) -> dict[str, Any]:
    """A status as the daemon told it, kept for when it tells none."""
    _last_known[module_id or ""] = status
    return status


def absent_status(error: Unreachable) -> dict[str, Any]:
    """The daemon's status: `running` is false, `error` says why, every module that was known is unhealthy."""
    last = _last_known.get("", _NOTHING_KNOWN)
    modules = last["modules"]
    rows = [_unhealthy(row, error) for row in modules.get("items", ())]
    # Where nothing was ever heard the daemon itself is the one thing known to be unwell; never a total of 0.
    total = modules["total_loaded"] or 1
    return {
        **last,
        "running": False,
        "error": str(error),
        "pid": None,
        "uptime_seconds": 0.0,
        "keeper": {"pid": None, "connected": False},
        "modules": {**modules, "items": rows},
        "health": {"statistics": {"total": total, "healthy": 0, "degraded": 0, "unhealthy": total}},
    }


def absent_module(module_id: str, error: Unreachable) -> dict[str, Any]:
    rows = _last_known.get("", _NOTHING_KNOWN)["modules"].get("items", ())
    row = next((row for row in rows if row["id"] == module_id), {"id": module_id})
    known = _unhealthy(_last_known.get(module_id, row), error)
    return {**known, "running": False, "error": str(error), "state": "unknown"}


def absent_probe(method: str, error: Exception) -> dict[str, Any]:
    """The answer to check_liveness, check_readiness or check_critical_modules."""
    why = {"timestamp": time.time(), "error": str(error)}
    if method == "check_liveness":
        # One that has not answered in time is there all the same: it hangs, or is much too busy.
        is_there = not isinstance(error, Unreachable) or error.cause == TIMED_OUT
        return {"live": False, "daemon_running": is_there, **why}
    if method == "check_readiness":
        counts = {"total_modules": 0, "healthy_modules": 0, "unhealthy_modules": 0, "health_ratio": 0.0}
        return {"ready": False, "details": counts, "reasons": [str(error)], **why}
    return {"healthy": False, "details": {"total": 0, "healthy": 0}, "modules": {}, **why}


def _unhealthy(row: dict[str, Any], error: Unreachable) -> dict[str, Any]:
    return {**row, "health": "unhealthy", "reason": str(error)}
