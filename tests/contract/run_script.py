"""Runs a script of the contract as it stands; each of its sleeps of a minute lasts until a line comes on stdin.

`run_script.py FILE`. The line may be `up` or `down`: then a daemon is started in this very process, in the script's
own loop, and attached; or shut down. At the end of stdin the script is left where it sleeps.
"""

from __future__ import annotations

import asyncio
import runpy
import sys
from typing import Any

patient_sleep = asyncio.sleep
running: dict[Any, asyncio.Task[int]] = {}


async def sleep(seconds: float) -> None:
    if seconds < 60:
        return await patient_sleep(seconds)
    print(f"-- sleeps for {seconds} s", flush=True)
    line = await asyncio.to_thread(sys.stdin.readline)
    if line == "up\n":
        await up()
    elif line == "down\n" or not line:
        await down()
    if not line:
        raise SystemExit(0)


async def up() -> None:
    from nexus import init_interfaces  # noqa: PLC0415  found where the script looks

    from nexus_v2_enterprise import UniversalDaemon  # noqa: PLC0415

    daemon = UniversalDaemon()
    await daemon.initialize()
    init_interfaces(daemon)
    await daemon.discover_and_load_modules()
    await daemon.start()
    running[daemon] = asyncio.create_task(daemon.run())


async def down() -> None:
    for daemon, task in running.items():
        await daemon.shutdown()
        await task
    running.clear()


asyncio.sleep = sleep  # type: ignore[assignment]
runpy.run_path(sys.argv[1], run_name="__main__")
