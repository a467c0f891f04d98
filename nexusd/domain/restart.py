"""When a replica that ended by itself is started again, and when it has been often enough.

Back-off as in systemd and supervisor trees: the first restart at once, then waits that grow; the count of
restarts in a window is bounded. Only arithmetic: time and chance are arguments.
"""

from nexusd.domain.manifest_sections import Backoff, Intensity


def wait_s(backoff: Backoff, restarts: int, chance: float) -> float:
    """Seconds before the next start, after `restarts` in a row; `chance` (0 to 1) places it in the jitter."""
    if restarts == 0:
        return float(backoff.first)
    # 64 doublings are past any maximum, and past what a float can hold soon after.
    grown = backoff.initial * backoff.factor ** min(restarts - 1, 64)
    spread = 1 + backoff.jitter * (2 * chance - 1)
    return float(min(grown * spread, backoff.max))


def recent(times: tuple[float, ...], intensity: Intensity, now: float) -> tuple[float, ...]:
    """The restarts that still count."""
    return tuple(at for at in times if now - at < intensity.within)


def is_spent(times: tuple[float, ...], intensity: Intensity, now: float) -> bool:
    """Whether one restart more would be one too many."""
    return len(recent(times, intensity, now)) >= intensity.restarts
