"""Sends a heartbeat every `interval_ms` to `target`, and keeps count over reloads.

Shows: configuration that changes while the module runs, metrics, health, and state that outlives a reload.
"""

import asyncio
import json
import os
import socket
import time
import urllib.request
from typing import Any

from prometheus_client import Counter

from nexusd.sdk import Module

SEND_TIMEOUT_S = 5.0


class HeartbeatClient(Module):
    """One background task sends; everything else only changes what it does next."""

    def __init__(self) -> None:
        self.count = 0
        self.last_error: str | None = None
        self.sent = Counter("heartbeats", "Heartbeats that were sent", registry=self.metrics)
        self.failed = Counter("heartbeat_failures", "Heartbeats that got lost", registry=self.metrics)

    async def start(self) -> None:
        check_target(self.config["target"])
        self.changed = asyncio.Event()
        self.background(self.beat(), name="beat")

    async def beat(self) -> None:
        while True:
            await self.send_one()
            await self.pause()

    async def send_one(self) -> None:
        """A heartbeat that cannot be sent is bad news, not the end of the module."""
        beat = {
            "module": self.module_id,
            "replica": self.replica,
            "count": self.count + 1,
            "time": time.time(),
        }
        try:
            # Sending may wait for a network, so it happens in a thread and the module stays responsive.
            await asyncio.to_thread(send, self.config["target"], json.dumps(beat).encode() + b"\n")
        except OSError as error:
            self.failed.inc()
            self.last_error = str(error)
            self.log.warning("heartbeat %d not sent: %s", self.count + 1, error)
        else:
            self.count += 1
            self.sent.inc()
            self.last_error = None
            self.status(f"{self.count} heartbeats sent")

    async def pause(self) -> None:
        """Wait for the interval, or less when the configuration changes meanwhile."""
        self.changed.clear()
        try:
            async with asyncio.timeout(self.config["interval_ms"] / 1000):
                await self.changed.wait()
        except TimeoutError:
            pass

    async def configure(self, key: str, value: Any) -> None:
        """nexusd has checked type and range already; what it cannot know is checked here."""
        if key == "target":
            check_target(value)
        self.changed.set()

    async def health(self) -> tuple[str, str] | None:
        return ("degraded", self.last_error) if self.last_error else None

    async def export_state(self) -> dict[str, int]:
        return {"count": self.count}

    async def import_state(self, state: dict[str, int]) -> None:
        self.count = state["count"]
        self.sent.inc(self.count)


def check_target(target: str) -> None:
    """Raise ValueError, which refuses the change, unless `send` knows this kind of target."""
    kind, _, rest = target.partition(":")
    if kind not in ("file", "unix", "udp", "http", "https") or not rest:
        raise ValueError(f"target {target!r} is none of file:PATH, unix:PATH, udp:HOST:PORT, http://...")
    if kind == "udp" and not rest.rpartition(":")[2].isdigit():
        raise ValueError(f"target {target!r} has no port: udp:HOST:PORT")


def send(target: str, line: bytes) -> None:
    """Deliver one heartbeat, or raise OSError. Runs in a thread."""
    kind, _, rest = target.partition(":")
    if kind == "file":
        # A relative path is beneath the temp folder.
        replace_file(os.path.join(os.environ.get("TMPDIR", "/tmp"), rest), line)
    elif kind == "unix":
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.settimeout(SEND_TIMEOUT_S)
            sock.sendto(line, rest)
    elif kind == "udp":
        host, _, port = rest.rpartition(":")
        family, _, _, _, address = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.sendto(line, address)
    else:
        request = urllib.request.Request(target, line, {"Content-Type": "application/json"}, method="POST")
        urllib.request.urlopen(request, timeout=SEND_TIMEOUT_S).close()


def replace_file(path: str, line: bytes) -> None:
    """A reader sees the last heartbeat or this one, never half of one."""
    beside = f"{path}.{os.getpid()}"
    with open(beside, "wb") as file:
        file.write(line)
    os.replace(beside, path)
