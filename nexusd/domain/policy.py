"""What a manifest says of one replica's life, worked out once: its signals, its times, its checks."""

import signal

from msgspec import Struct

from nexusd.domain import checks
from nexusd.domain.checks import NO_CHECKS, Plan
from nexusd.domain.manifest_sections import Manifest, Restart

PROBATION_S = 1.0  # how long a program must run before it counts as better than the one it is to replace


class Policy(Struct, frozen=True):
    """What the manifest says of starting, stopping and restarting one replica."""

    ready_when_running: bool
    start_timeout_s: float
    stop_timeout_s: float
    stop_signal: int
    watchdog_s: float | None
    restart: Restart
    checks: Plan = NO_CHECKS
    probation_s: float | None = None


def policy_of(manifest: Manifest, *, on_probation: bool = False) -> Policy:
    """On probation: nothing but its running speaks for a program without READY=1 and without checks."""
    plan = checks.plan_of(manifest)
    says_nothing = manifest.run.ready == "started" and not plan.lasting
    return Policy(
        manifest.run.ready == "started",
        manifest.start.timeout,
        manifest.stop.timeout,
        signal.Signals[manifest.stop.signal],
        manifest.health.watchdog,
        manifest.restart,
        plan,
        PROBATION_S if on_probation and says_nothing else None,
    )
