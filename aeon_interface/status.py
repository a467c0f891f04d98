#!/usr/bin/env python3
"""AEON's reading view of nexusd. A daemon that is down is an answer: `running` false, and what was last known.

`status.py [MODULE] [--timeout SECONDS]` prints it and exits 0 when the daemon runs, 1 when not.
"""

from __future__ import annotations

import os
import sys

sys.path.append(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))  # where nexusctl lies beside us

from nexusctl.absent import absent_module, absent_status, remembered
from nexusctl.attachment import ask, ask_now
from nexusctl.client import RpcError, Unreachable
from nexusctl.exits import DENIED, DONE, FAILED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

TIMEOUT_S = 5.0
GLANCE_S = 1.0


async def get_status(module_id: str | None = None, timeout: float = TIMEOUT_S) -> dict[str, Any]:
    """The daemon's status, or a module's. Raises RpcError for a module that is not there, PermissionError."""
    try:
        return remembered(module_id, await ask("get_status", _params(module_id), timeout))
    except Unreachable as error:
        return _absent(module_id, error)


def get_status_now(module_id: str | None = None, timeout: float = TIMEOUT_S) -> dict[str, Any]:
    """get_status for scripts, without asyncio."""
    try:
        return remembered(module_id, ask_now("get_status", _params(module_id), timeout))
    except Unreachable as error:
        return _absent(module_id, error)


class StatusInterface:
    """The same as methods of an object. Those without `async` block, for a second at the most."""

    async def get_status(self) -> dict[str, Any]:
        return await get_status()

    async def get_module_status(self, module_id: str) -> dict[str, Any]:
        return await get_status(module_id)

    def get_capability_level(self) -> str:
        return str(get_status_now(timeout=GLANCE_S)["level"])

    def get_features(self) -> dict[str, bool]:
        return dict(get_status_now(timeout=GLANCE_S)["features"])


def _params(module_id: str | None) -> dict[str, str] | None:
    return None if module_id is None else {"module_id": module_id}


def _absent(module_id: str | None, error: Unreachable) -> dict[str, Any]:
    """A daemon that may not be asked is not down: that is raised."""
    if isinstance(error, PermissionError):
        raise error
    return absent_status(error) if module_id is None else absent_module(module_id, error)


def main(arguments: list[str]) -> int:
    import json  # noqa: PLC0415  nothing of this for those who import the file

    from nexusctl.shim_arguments import parser  # noqa: PLC0415

    expected = parser("status.py", "Print the status of nexusd, or of one module.", TIMEOUT_S)
    expected.add_argument("module", nargs="?", metavar="MODULE")
    given = expected.parse_args(arguments)
    try:
        status = get_status_now(given.module, given.timeout)
    except (RpcError, PermissionError) as error:
        print(f"status.py: {error}", file=sys.stderr)
        return DENIED if isinstance(error, PermissionError) else FAILED
    print(json.dumps(status, indent=2))
    return DONE if status.get("running", True) else FAILED


if __name__ == "__main__":
    from nexusctl.shim_arguments import leave

    leave(main)
