"""Answers each line with the same line.

Shows: a listening socket that nexusd keeps over reloads, and connections that no reload ends.
"""

from prometheus_client import Counter

from nexusd.sdk import Module


class Echo(Module):
    async def start(self) -> None:
        self.lines = Counter("echo_lines", "Lines that were answered", registry=self.metrics)
        # Not bound here: the socket was listening before this process began, and is when it has ended.
        self.serve_lines(self.answer, "echo")

    async def answer(self, line: bytes) -> bytes:
        self.lines.inc()
        return line
