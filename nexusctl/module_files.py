"""The files of a new module, as text. What a manifest may say is nexusd's to decide, not this file's."""

from __future__ import annotations

import keyword
import re

PART = r"[A-Za-z0-9](?!\S*\.\.)[A-Za-z0-9_.-]{0,63}"  # as the daemon takes it
MODULE_ID = re.compile(f"{PART}/{PART}")

MANIFEST = """\
version = "0.1.0"
description = "{description}"

[run]
{run}

[config.interval_ms]
type = "int"
default = 1000
min = 100
apply = "{apply}"
description = "Milliseconds between two lines in the log"
"""

PYTHON = '''\
"""{module_id}: says every interval that it is alive. Replace `work` with your own."""

import asyncio

from nexusd.sdk import Module


class {name}(Module):
    async def start(self) -> None:
        self.background(self.work(), name="work")

    async def work(self) -> None:
        while True:
            self.log.info("alive")
            await asyncio.sleep(self.config["interval_ms"] / 1000)
'''

SHELL = """\
#!/bin/sh
# {module_id}: says every interval that it is alive. Replace the loop with your own.
# NEXUS_CONFIG names a JSON file with the configuration; what is printed goes into the log.

trap 'exit 0' TERM

interval_ms=$(sed 's/.*"interval_ms": *\\([0-9]*\\).*/\\1/' "$NEXUS_CONFIG")
while :; do
    echo alive
    sleep "$(echo "$interval_ms" | awk '{{ print $1 / 1000 }}')" &
    wait $!
done
"""


def is_module_id(text: str) -> bool:
    return MODULE_ID.fullmatch(text) is not None


def python_module(module_id: str) -> dict[str, str]:
    file = re.sub(r"[-.]", "_", module_id.partition("/")[2])
    file = f"module_{file}" if file[0].isdigit() or keyword.iskeyword(file) else file
    name = "".join(part[:1].upper() + part[1:] for part in file.split("_"))
    run = f'python = "{file}:{name}"'
    manifest = MANIFEST.format(run=run, apply="live", description="Says that it is alive")
    return {"module.toml": manifest, f"{file}.py": PYTHON.format(module_id=module_id, name=name)}


def exec_module(module_id: str) -> dict[str, str]:
    run = 'exec = ["./run"]'
    manifest = MANIFEST.format(run=run, apply="restart", description="Says that it is alive")
    return {"module.toml": manifest, "run": SHELL.format(module_id=module_id)}
