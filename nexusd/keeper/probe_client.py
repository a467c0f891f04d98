"""nexusd's side of check programs: one question to the keeper, one answer, or none when the keeper is lost.

What a program's exit means for a module is not decided here.
"""

import asyncio
import os
from collections.abc import Callable
from itertools import count

from nexusd.keeper.protocol import Message

GRACE_S = 5.0  # the keeper tells of a time-out itself; this much later nothing is expected of it any more


class ProbeClient:
    def __init__(self, say: Callable[[Message], None]) -> None:
        self._say = say
        # Not from 1: an answer to what a former nexusd asked may still come.
        self._numbers = count(int.from_bytes(os.urandom(6), "big"))
        self._asked: dict[int, asyncio.Future[Message | None]] = {}

    async def probe(self, launch: Message, timeout_s: float) -> Message | None:
        """How the program ended, as `probed` tells it; None: it was not run to its end, and nothing is known.

        launch: as of a run (`birth.fork`), with argv. Raises protocol.TooLong.
        """
        number = next(self._numbers)
        answer: asyncio.Future[Message | None] = asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        try:
            self._say({"say": "probe", "id": number, "launch": launch, "timeout": float(timeout_s)})
            async with asyncio.timeout(timeout_s + GRACE_S):
                return await answer
        except TimeoutError:
            return None
        finally:
            del self._asked[number]

    def heard(self, message: Message) -> None:
        answer = self._asked.get(message["id"])
        if answer is not None and not answer.done():
            answer.set_result(message)

    def lost(self) -> None:
        """The keeper is gone, and with it all that was under way."""
        for answer in self._asked.values():
            if not answer.done():
                answer.set_result(None)
