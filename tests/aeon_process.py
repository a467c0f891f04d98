"""A process that uses AEON's interface and tells what came of it: `socket` beside a daemon, `inside` with its own.

Asked over the Unix socket $ASK, one JSON object a line: {"name": "get_status", "args": [], "kwargs": {}}. A name
may have a dot, as StatusInterface.get_features. `@up`, `@down` and `@quit` are about its own daemon and itself.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import aeon_interface
from nexus_v2_enterprise import SecurityContext, UniversalDaemon


class Own:
    """The daemon of this process, if it has one."""

    def __init__(self) -> None:
        self.running: asyncio.Task[int] | None = None
        self.over = asyncio.Event()

    async def up(self, start: bool = True) -> None:
        context = json.loads(os.environ.get("CONTEXT", "{}"))
        self.daemon = UniversalDaemon(SecurityContext(**context))
        await self.daemon.initialize()
        aeon_interface.init_interfaces(self.daemon)
        if start:
            await self.go_on()

    async def go_on(self) -> None:
        await self.daemon.discover_and_load_modules()
        await self.daemon.start()
        self.running = asyncio.create_task(self._run())

    async def _run(self) -> int:
        status = await self.daemon.run()
        if self.running is not None:
            self.over.set()  # by a signal
        return status

    async def down(self) -> None:
        running, self.running = self.running, None
        if running is not None:
            await self.daemon.shutdown()
            await running


def found(name: str) -> Callable[..., Any]:
    outer, _, inner = name.partition(".")
    thing = getattr(aeon_interface, outer)
    method: Callable[..., Any] = getattr(thing(), inner) if inner else thing
    return method


async def answer(own: Own, asked: dict[str, Any]) -> dict[str, Any]:
    local = {"@up": own.up, "@go_on": own.go_on, "@down": own.down, "@quit": own.over.set}
    try:
        called = (local.get(asked["name"]) or found(asked["name"]))(*asked["args"], **asked["kwargs"])
        return {"result": await called if inspect.isawaitable(called) else called}
    except Exception as error:
        return {"raised": [one.__name__ for one in type(error).__mro__], "text": str(error)}


async def main(mode: str) -> None:
    own = Own()
    if mode == "inside":
        await own.up()
    else:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, own.over.set)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(json.dumps(await answer(own, json.loads(line))).encode() + b"\n")
        writer.close()

    listening = await asyncio.start_unix_server(serve, os.environ["ASK"], limit=1 << 24)
    await own.over.wait()
    listening.close()
    await own.down()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
