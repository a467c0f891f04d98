"""Asks all modules for their metrics, on their control sockets, a few at a time.

It decides who is waited for: a replica that had nothing to say is asked again now and then, and holds up nobody.
"""

import asyncio
import contextlib
import selectors
import socket
import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from nexusd.domain.decoding import prepare
from nexusd.system.pieces import in_pieces

LONGEST_ANSWER = 1 << 20
REST_S = 30.0  # how long a replica that had nothing to say is left alone
MOST_BESIDE = 20  # of those, how many are asked at one scrape
AT_ONCE = 8  # hundreds that answer at the same time would leave nexusd no processor
SLOW_S = 0.005  # nobody has answered for so long: twice as many are asked beside them
METHOD_NOT_FOUND = -32601
_REQUEST = b'{"jsonrpc":"2.0","id":1,"method":"metrics","params":{}}\n'
_PIECE = 1 << 16

Key = tuple[str, int, int]  # module, replica's index, generation


class Target(NamedTuple):
    key: Key
    path: str  # of the control socket
    expected: bool  # whether it is sure to have a control socket that answers: a module on our SDK


class Answer(NamedTuple):
    """text, or why there is none, in one word; neither: it has no metrics."""

    key: Key
    text: str | None = None
    failure: str | None = None


@dataclass(slots=True)
class _Standing:
    speaks: bool
    rests_until: float


class _Question:
    """One connection with what has come on it so far."""

    def __init__(self, target: Target, sock: socket.socket) -> None:
        self.target = target
        self.received = bytearray()
        self.sock = sock

    def read(self) -> bool:
        """Whether the answer is complete, for good or ill."""
        try:
            while len(self.received) <= LONGEST_ANSWER:
                piece = self.sock.recv(_PIECE)
                self.received += piece
                if not piece:
                    return True
        except BlockingIOError:
            return self.received.endswith(b"\n")
        except OSError:
            pass
        return True


class ModuleQuestions:
    """One round after the other."""

    def __init__(self) -> None:
        self._standings: dict[Key, _Standing] = {}
        self._beside: list[_Question] = []

    async def answers(
        self, targets: Collection[Target], deadline: float, *, everybody: bool = False
    ) -> list[Answer]:
        """What came in time, and what failed. everybody: also who had nothing to say is asked, and waited for."""
        found: list[Answer | None] = []
        if not everybody:
            found += await in_pieces(self._hear_beside())
            self._forget_all_but({target.key for target in targets})
        due = deque(filter(None, await in_pieces(self._due(targets, everybody))))
        at_once = AT_ONCE
        with contextlib.closing(selectors.EpollSelector()) as waiting:
            found += await in_pieces(self._ask(waiting, due, at_once))
            while waiting.get_map() and (left_s := deadline - time.monotonic()) > 0:
                await _readable(waiting, min(left_s, SLOW_S) if due else left_s)
                heard = await in_pieces(self._hear(waiting))
                if not heard:
                    at_once *= 2
                found += heard
                found += await in_pieces(self._ask(waiting, due, len(heard) or at_once))
            late = [key.data for key in waiting.get_map().values()]
        found += (Answer(target.key, failure="too_late") for target in due)
        found += (self._late(question, everybody) for question in late)
        return [answer for answer in found if answer is not None]

    def _due(self, targets: Iterable[Target], everybody: bool) -> Iterator[Target | None]:
        """Those who are waited for; some of the others are asked without that."""
        now, beside = time.monotonic(), 0
        for target in targets:
            standing = self._standings.get(target.key)
            if everybody or standing is None or standing.speaks:
                yield target
                continue
            if standing.rests_until <= now and beside < MOST_BESIDE:
                beside += 1
                self._ask_beside(target)
            yield None

    def _ask(
        self, waiting: selectors.EpollSelector, due: deque[Target], count: int
    ) -> Iterator[Answer | None]:
        """So many more; yields the answer of those who cannot be asked."""
        while due and count:
            target = due.popleft()
            question = _asked(target)
            if question is None:
                yield self._no_answer(target)
                continue
            waiting.register(question.sock, selectors.EVENT_READ, question)
            count -= 1
            yield None

    def _hear(self, waiting: selectors.EpollSelector) -> Iterator[Answer]:
        for key, _ in waiting.select(0):
            question = key.data
            if question.read():
                waiting.unregister(question.sock)
                yield self._heard(question)

    def _late(self, question: _Question, everybody: bool) -> Answer:
        """An overloaded host is no fault of the module: the next scrape looks whether its answer has come."""
        if everybody:
            return self._unheard(question)
        self._beside.append(question)
        self._stand(question.target, speaks=self._speaks(question.target))
        return Answer(question.target.key)

    def _ask_beside(self, target: Target) -> None:
        """Its answer is looked for at the next scrape."""
        if (question := _asked(target)) is not None:
            self._beside.append(question)
        else:
            self._no_answer(target)

    def _hear_beside(self) -> Iterator[Answer | None]:
        """Whoever has something to say now is asked again, in this round."""
        while self._beside:
            question = self._beside.pop()
            answer = self._heard(question) if question.read() else self._unheard(question)
            yield answer if answer.failure is not None else None

    def _heard(self, question: _Question) -> Answer:
        question.sock.close()
        answer = _read(question)
        self._stand(question.target, speaks=bool(answer.text) or answer.failure is not None)
        return answer

    def _unheard(self, question: _Question) -> Answer:
        question.sock.close()
        return self._no_answer(question.target)

    def _no_answer(self, target: Target) -> Answer:
        """A fault of those only who are sure to speak, or once did."""
        is_fault = target.expected or self._speaks(target)
        self._stand(target, speaks=False)
        return Answer(target.key, failure="silent" if is_fault else None)

    def _speaks(self, target: Target) -> bool:
        standing = self._standings.get(target.key)
        return standing is not None and standing.speaks

    def _stand(self, target: Target, *, speaks: bool) -> None:
        self._standings[target.key] = _Standing(speaks, time.monotonic() + REST_S)

    def _forget_all_but(self, keys: set[Key]) -> None:
        for key in self._standings.keys() - keys:
            del self._standings[key]


async def _readable(selector: selectors.EpollSelector, patience_s: float) -> None:
    """Returns when one of them can be read, or patience is over. An epoll is itself a file to wait for (epoll(7))."""
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(selector.fileno(), ready.set)
    try:
        async with asyncio.timeout(patience_s):
            await ready.wait()
    except TimeoutError:
        pass
    finally:
        loop.remove_reader(selector.fileno())


def _asked(target: Target) -> _Question | None:
    """None: nobody is there, too many are waiting already, or no descriptor is free."""
    try:
        sock = socket.socket(socket.AF_UNIX)
    except OSError:
        return None
    try:
        sock.setblocking(False)
        sock.connect(target.path)
        sock.send(_REQUEST)
    except OSError:
        sock.close()
        return None
    return _Question(target, sock)


class _Metrics(msgspec.Struct):
    text: str = ""


class _Message(msgspec.Struct):
    result: _Metrics | None = None
    error: dict[str, Any] = {}


prepare(_Message)


def _read(question: _Question) -> Answer:
    key = question.target.key
    if not question.received:  # it hung up, or ended: that is told elsewhere
        return Answer(key)
    if len(question.received) > LONGEST_ANSWER:
        return Answer(key, failure="too_large")
    try:
        message = msgspec.json.decode(question.received, type=_Message)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Answer(key, failure="unparsable")
    if message.result is not None:
        return Answer(key, text=message.result.text)
    # A module in another language need not have the method; any other error is one.
    return Answer(key, failure=None if message.error.get("code") == METHOD_NOT_FOUND else "refused")
