"""AEON's interface to nexusd: `get_status`, the probes, `execute_command`, and the clients of its socket.

May be imported under any name, and through links: the functions are the same, and so is what they speak to.
"""

from __future__ import annotations

import os
import sys

sys.path.append(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))  # where nexusctl lies beside us

from aeon_interface.command import (
    CommandInterface,
    execute_command,
    execute_command_now,
)
from aeon_interface.live import (
    LivenessProbe,
    check_critical_modules,
    check_critical_modules_now,
    check_liveness,
    check_liveness_now,
    check_readiness,
    check_readiness_now,
)
from aeon_interface.status import StatusInterface, get_status, get_status_now
from nexusctl.attachment import attach as init_interfaces
from nexusctl.client import PermissionDenied, RpcError, Unreachable
from nexusctl.nexus_client import NexusClient

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nexusctl.async_nexus_client import AsyncNexusClient

__all__ = [
    "AsyncNexusClient",
    "CommandInterface",
    "LivenessProbe",
    "NexusClient",
    "PermissionDenied",
    "RpcError",
    "StatusInterface",
    "Unreachable",
    "check_critical_modules",
    "check_critical_modules_now",
    "check_liveness",
    "check_liveness_now",
    "check_readiness",
    "check_readiness_now",
    "execute_command",
    "execute_command_now",
    "get_status",
    "get_status_now",
    "init_interfaces",
]


def __getattr__(name: str) -> object:
    if name == "AsyncNexusClient":
        from nexusctl import async_nexus_client  # noqa: PLC0415  asyncio is for those who await

        return async_nexus_client.AsyncNexusClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
