"""`nexusd sweep`: ends what a nexusd that hung, or was dead, left running when its service was stopped.

The keeper alone is asked: all at once and with one time-out, since nobody is there who knows their order and their own.
"""

import asyncio
import os
import signal
from typing import Any

from nexusd.config import Config
from nexusd.domain.errors import NotPossible
from nexusd.keeper.client import KeeperClient
from nexusd.system.folders import lock_folder

WELCOME_S = 10.0
TERM_S = 10.0  # until SIGKILL follows SIGTERM, as `[stop] timeout` has it where a module says nothing
KILL_S = 10.0  # a process in the hands of the kernel may take that long


async def sweep(config: Config) -> int:
    """How many runs were ended. Raises NotPossible where a nexusd lives, or where something can't be ended."""
    traces = ("keeper.sock", "keeper.journal")
    if config.daemon.on_stop == "leave-modules":
        return 0
    if not any(os.path.exists(os.path.join(config.runtime, name)) for name in traces):
        return 0
    lock = lock_folder(config.runtime)
    try:
        return await _Sweep(config).run()
    finally:
        os.close(lock)


class _Sweep:
    def __init__(self, config: Config) -> None:
        self._keeper = KeeperClient(config.runtime, os.path.join(config.logs, "keeper.log"), self._hear)
        self._running: set[str] = set()
        self._welcomed = asyncio.Event()
        self._ended = asyncio.Event()

    async def run(self) -> int:
        self._keeper.open()
        try:
            async with asyncio.timeout(WELCOME_S):
                await self._welcomed.wait()
        except TimeoutError:
            raise NotPossible(f"the keeper has not answered for {WELCOME_S:g} s") from None
        count = len(self._running)
        for key in self._running:
            self._keeper.signal(key, signal.SIGTERM)
            self._keeper.signal(key, signal.SIGCONT)
        if not await self._are_gone(TERM_S):
            for key in self._running:
                self._keeper.kill(key)
            if not await self._are_gone(KILL_S):
                raise NotPossible(f"still there after SIGKILL: {', '.join(sorted(self._running))}")
        known = self._keeper.keys()
        for key in known:
            self._keeper.forget(key)
        self._keeper.dismiss()
        return count

    def _hear(self, message: dict[str, Any]) -> None:
        match message["say"]:
            case "run" if message["ended"] is None:
                self._running.add(message["run"])
            case "exited":
                self._running.discard(message["run"])
                self._ended.set()
            case "welcome":
                self._welcomed.set()

    async def _are_gone(self, patience_s: float) -> bool:
        try:
            async with asyncio.timeout(patience_s):
                while self._running:
                    self._ended.clear()
                    await self._ended.wait()
        except TimeoutError:
            return False
        return True
