"""Runs a block of the contract as it stands and prints every value it binds, as a JSON array of [name, value].

`run_block.py MODE FILE`: over the socket (`socket`), with a daemon of this process attached (`inside`), or a block
that is the start of a daemon itself (`start`): it is shut down once it runs and has been asked.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import sys
from pathlib import Path
from typing import Any

Bound = list[tuple[str, Any]]


class Names(dict[str, Any]):
    """The block's names; what they were bound to is kept even where another value follows."""

    def __init__(self) -> None:
        super().__init__(__name__="__main__")
        self.bound: Bound = []

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, value)
        self.bound.append((name, value))


async def run(code: str, names: Names) -> None:
    compiled = compile(code, "block", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    coming = eval(compiled, {}, names)
    if inspect.isawaitable(coming):
        await coming


async def run_inside(code: str, names: Names) -> None:
    from aeon.interfaces.python.nexus import get_status, init_interfaces  # noqa: PLC0415

    from nexus_v2_enterprise import UniversalDaemon  # noqa: PLC0415  the socket's side needs none of it

    daemon = UniversalDaemon()
    await daemon.initialize()
    init_interfaces(daemon)
    await daemon.discover_and_load_modules()
    await daemon.start()
    running = asyncio.create_task(daemon.run())
    while (figures := (await get_status())["health"]["statistics"])["healthy"] < figures["total"]:
        await asyncio.sleep(0.01)
    await run(code, names)
    await daemon.shutdown()
    await running


async def run_start(code: str, names: Names) -> None:
    """A block that ends with `await daemon.run()`."""
    running = asyncio.create_task(run(code, names))
    from aeon.interfaces.python.nexus import check_liveness  # noqa: PLC0415

    while not ((live := await check_liveness())["live"] and live["daemon_running"]):
        assert not running.done(), running.exception()
        await asyncio.sleep(0.01)
    names["asked"] = live
    await names["daemon"].shutdown()
    await running


def told(bound: Bound) -> str:
    return json.dumps([(name, value) for name, value in bound if isinstance(value, dict | list | str)])


if __name__ == "__main__":
    mode, path = sys.argv[1:]
    names = Names()
    asyncio.run(
        {"socket": run, "inside": run_inside, "start": run_start}[mode](Path(path).read_text(), names)
    )
    print(told(names.bound))
