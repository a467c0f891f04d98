"""Long work on the event loop, a piece at a time: all else has its turn in between. What the work is, others decide."""

import asyncio
import time
from collections.abc import Iterable
from typing import TypeVar

PIECE_S = 0.0005

T = TypeVar("T")


class Pieces:
    """To be asked after each step whether it is others' turn; a step should take microseconds."""

    def __init__(self) -> None:
        self._until = time.monotonic() + PIECE_S

    async def step(self) -> None:
        if time.monotonic() >= self._until:
            await asyncio.sleep(0)
            self._until = time.monotonic() + PIECE_S


async def in_pieces(work: Iterable[T]) -> list[T]:
    """All that it yields. What was done before it counts as a piece of its own."""
    await asyncio.sleep(0)
    done = []
    pieces = Pieces()
    for step in work:
        done.append(step)
        await pieces.step()
    return done
