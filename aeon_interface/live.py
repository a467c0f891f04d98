#!/usr/bin/env python3
"""AEON's probes of nexusd: does it live, can it accept work, are the critical modules healthy?

`live.py liveness|readiness|critical [--timeout SECONDS]` prints the answer and exits 0 for yes, 1 for no.
"""

from __future__ import annotations

import os
import sys

sys.path.append(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))  # where nexusctl lies beside us

if __name__ == "__main__":
    from nexusctl.probe import leave

    leave()

from nexusctl.absent import absent_probe
from nexusctl.attachment import ask, ask_now
from nexusctl.client import RpcError, Unreachable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

TIMEOUT_S = 1.0


async def check_liveness(timeout: float = TIMEOUT_S) -> dict[str, Any]:
    """`live`, `timestamp`, `daemon_running`. A daemon that gives no answer in time is an answer: `error` says why."""
    return await _probe("check_liveness", timeout)


async def check_readiness(timeout: float = TIMEOUT_S) -> dict[str, Any]:
    """`ready`, `timestamp`, `details`, `reasons`; as above."""
    return await _probe("check_readiness", timeout)


async def check_critical_modules(timeout: float = TIMEOUT_S) -> dict[str, Any]:
    """`healthy`, `timestamp`, `details`, `modules`; as above."""
    return await _probe("check_critical_modules", timeout)


def check_liveness_now(timeout: float = TIMEOUT_S) -> dict[str, Any]:
    """check_liveness for scripts, without asyncio; so are the two below."""
    return _probe_now("check_liveness", timeout)


def check_readiness_now(timeout: float = TIMEOUT_S) -> dict[str, Any]:
    return _probe_now("check_readiness", timeout)


def check_critical_modules_now(timeout: float = TIMEOUT_S) -> dict[str, Any]:
    return _probe_now("check_critical_modules", timeout)


class LivenessProbe:
    """The three as methods of an object."""

    async def check_liveness(self) -> dict[str, Any]:
        return await check_liveness()

    async def check_readiness(self) -> dict[str, Any]:
        return await check_readiness()

    async def check_critical_modules(self) -> dict[str, Any]:
        return await check_critical_modules()


async def _probe(method: str, timeout: float) -> dict[str, Any]:
    try:
        return dict(await ask(method, None, timeout))
    except (RpcError, Unreachable) as error:
        return absent_probe(method, error)


def _probe_now(method: str, timeout: float) -> dict[str, Any]:
    try:
        return dict(ask_now(method, None, timeout))
    except (RpcError, Unreachable) as error:
        return absent_probe(method, error)
