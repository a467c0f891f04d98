"""Works for `after_s` seconds, then crashes on purpose.

Shows: what becomes of an exception nobody caught: a traceback in the log, the reason in the status,
and a restart.
"""

import asyncio

from nexusd.sdk import Module


class Flaky(Module):
    """The failure of a background task is the failure of the module."""

    async def start(self) -> None:
        self.background(self.crash(self.config["after_s"]), name="crash")

    async def crash(self, after_s: float) -> None:
        self.log.info("crashing in %g s", after_s)
        await asyncio.sleep(after_s)
        raise RuntimeError("crashed on purpose")
