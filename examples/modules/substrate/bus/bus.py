"""A small message bus: who sends `subscribe` gets whatever anybody sends as `publish TEXT`.

Shows: a module that others require, and a state that outlives a reload: no subscriber has to come again.
"""

import asyncio
import contextlib
import os
import socket

from nexusd.sdk import Module

LONGEST = 65536


class Bus(Module):
    """One socket, one set of addresses."""

    def __init__(self) -> None:
        self.subscribers: set[str] = set()

    async def start(self) -> None:
        path = os.path.join(os.environ.get("TMPDIR", "/tmp"), self.config["path"])  # an absolute one stays
        # A former run's file is in the way. Not removed on stop: it may be our successor's by then.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.socket.bind(path)
        asyncio.get_running_loop().add_reader(self.socket, self.receive)

    def receive(self) -> None:
        message, address = self.socket.recvfrom(LONGEST)
        sender = os.fsdecode(address or b"")
        word, _, text = message.partition(b" ")
        if word == b"publish":
            self.publish(text)
        elif word == b"subscribe" and sender:
            self.subscribers.add(sender)
            self.status(f"{len(self.subscribers)} subscribers")
        else:
            self.log.warning("not understood: %r", message[:80])

    def publish(self, text: bytes) -> None:
        for subscriber in list(self.subscribers):
            try:
                self.socket.sendto(text, subscriber)
            except BlockingIOError:
                self.log.warning("a subscriber does not read; it misses a message")
            except OSError:  # its socket is gone, and so is it
                self.subscribers.discard(subscriber)

    async def export_state(self) -> list[str]:
        return sorted(self.subscribers)

    async def import_state(self, state: list[str]) -> None:
        self.subscribers = set(state)
