"""Greets everybody on the bus and logs what it hears there.

Shows: a module that requires another: when `start` runs, substrate/bus is ready. It may still go away later.
"""

import asyncio
import os
import socket

from nexusd.sdk import Module

LONGEST = 65536


class Greeter(Module):
    """Speaks in a background task, listens in a callback."""

    def __init__(self) -> None:
        self.trouble: str | None = None

    async def start(self) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.socket.bind("")  # Linux finds a free name (unix(7), autobind)
        self.bus = os.path.join(os.environ.get("TMPDIR", "/tmp"), self.config["bus"])  # as the bus finds it
        self.socket.sendto(b"subscribe", self.bus)  # if this fails, so does the start
        asyncio.get_running_loop().add_reader(self.socket, self.hear)
        self.background(self.greet(), name="greet")

    async def greet(self) -> None:
        while True:
            self.say("subscribe")  # again each time: a bus that crashed has forgotten us
            self.say(f"publish {self.config['greeting']} from {self.module_id}#{self.replica}")
            await asyncio.sleep(self.config["interval_ms"] / 1000)

    def say(self, message: str) -> None:
        try:
            self.socket.sendto(os.fsencode(message), self.bus)
            self.trouble = None
        except OSError as error:  # the bus is being restarted, or its queue is full
            self.trouble = f"the bus does not answer: {error}"

    def hear(self) -> None:
        self.log.info("heard: %s", os.fsdecode(self.socket.recv(LONGEST)))

    async def health(self) -> tuple[str, str] | None:
        return ("degraded", self.trouble) if self.trouble else None
