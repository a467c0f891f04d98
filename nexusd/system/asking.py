"""One health check, carried out: over HTTP, to a socket, to the module itself, or by a program of its own.

It decides what an answer means; when it is asked, and what follows, is for others.
"""

import asyncio
import os
import re
from collections.abc import Mapping
from typing import Any

from nexusd.domain.addresses import parse_host_port
from nexusd.domain.checks import Said
from nexusd.domain.errors import NexusError
from nexusd.domain.manifest_sections import Check
from nexusd.domain.module import Module
from nexusd.domain.replica import Replica
from nexusd.ports import Control, Programs
from nexusd.system.exits import exit_of, refused
from nexusd.system.http_check import NoAnswer, phrase, status_of

GOOD = Said("healthy")
LONGEST_REASON = 300
_WORDS = ("healthy", "degraded", "unhealthy")


class Asking:
    def __init__(self, control: Control, programs: Programs) -> None:
        self._control = control
        self._programs = programs

    async def ask(self, check: Check, replica: Replica, module: Module, timeout_s: float) -> Said | None:
        """What the check came to, in time; None: it could not be carried out, and nothing is known."""
        try:
            if check.exec is not None:  # the keeper has the time
                return await self._program(check.exec, replica, module, timeout_s)
            async with asyncio.timeout(timeout_s):
                return await self._over_a_socket(check, replica, module, timeout_s)
        except TimeoutError:
            return Said("unhealthy", f"no answer within {timeout_s:g} s")
        except NoAnswer as error:
            return Said("unhealthy", str(error))
        except (OSError, ValueError) as error:
            return Said("unhealthy", _in_words(error))

    async def _over_a_socket(self, check: Check, replica: Replica, module: Module, timeout_s: float) -> Said:
        if check.http is not None:
            return await _http(check.http)
        if check.tcp is not None:
            _, writer = await asyncio.open_connection(*parse_host_port(check.tcp))
            writer.close()
            return GOOD
        if check.unix is not None:
            _, writer = await asyncio.open_unix_connection(os.path.join(module.folder, check.unix))
            writer.close()
            return GOOD
        return await self._module_itself(replica, timeout_s)

    async def _module_itself(self, replica: Replica, timeout_s: float) -> Said:
        try:
            answer = await self._control.ask(replica.run or "", "health", {}, timeout_s)
        except NexusError as error:
            return Said("unhealthy", str(error).removeprefix(f"{replica.name}: "))
        status = answer.get("status") if isinstance(answer, dict) else None
        if status not in _WORDS:
            return Said("unhealthy", f"its answer to health has no status: {answer!r:.80}")
        reason = answer.get("reason")
        if status == "healthy":
            return GOOD
        if not isinstance(reason, str) or not reason:
            reason = f"it says that it is {status}"
        return Said(status, reason if len(reason) <= LONGEST_REASON else f"{reason[:LONGEST_REASON]}…")

    async def _program(
        self, argv: tuple[str, ...], replica: Replica, module: Module, timeout_s: float
    ) -> Said | None:
        ended = await self._programs.check(replica.run or "", replica, module, argv, timeout_s)
        return None if ended is None else _outcome(ended, timeout_s)


async def _http(url: str) -> Said:
    status, words = await status_of(url)
    if 200 <= status < 400:
        return GOOD
    return Said("unhealthy", phrase(status) + (f": {words}" if words else ""))


def _outcome(ended: Mapping[str, Any], timeout_s: float) -> Said:
    """A program's end; its last line most likely says why."""
    if ended["refusal"] is not None:
        return Said("unhealthy", refused(ended["refusal"]))
    if ended["timed_out"]:
        return Said("unhealthy", f"not done within {timeout_s:g} s")
    if ended["flooded"]:
        return Said("unhealthy", "it writes without end")
    exit = exit_of(ended["status"], None)
    if exit.is_clean:
        return GOOD
    return Said("unhealthy", f"{exit.description}, {ended['line']}" if ended["line"] else exit.description)


def _in_words(error: Exception) -> str:
    """Without numbers and addresses: the check itself names its address."""
    if not isinstance(error, OSError):
        return str(error) or type(error).__name__
    # Where a name has several addresses asyncio puts their errors into one text.
    inside = re.search(r"\[Errno (\d+)\]", str(error))
    number = error.errno or (int(inside[1]) if inside else 0)
    return os.strerror(number).lower() if number > 0 else (error.strerror or str(error))
