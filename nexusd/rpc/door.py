"""The way in for callers of this process: the same lines through the same dispatcher as on the socket, without one.

What they may do is what the socket would let this process's own user do.
"""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nexusd.rpc import codec
from nexusd.rpc.call import Call, outcome
from nexusd.rpc.peers import Peers

if TYPE_CHECKING:
    from nexusd.rpc.server import RpcServer  # slow to import: by whoever makes it

Params = Mapping[str, Any] | Sequence[Any] | None


class Door:
    """Open from the daemon's initialisation to its end; whoever comes first has the server made."""

    def __init__(self, make_server: Callable[[], "RpcServer"]) -> None:
        self._make_server = make_server
        self._making = threading.Lock()
        self._peers = Peers()
        self._server: RpcServer | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed_because = "this daemon has not been initialised"
        self._going: set[asyncio.Task[Any]] = set()

    def open(self) -> None:
        """Take calls from now on, in the loop that runs now."""
        self._loop = asyncio.get_running_loop()

    async def close(self, grace_s: float = 5.0) -> None:
        """Take no more; what is under way has `grace_s` to be answered, or is cancelled."""
        self._loop, self._closed_because = None, "nexusd has shut down"
        if self._going:
            _, late = await asyncio.wait(self._going, timeout=grace_s)
            for task in late:
                task.cancel()

    async def server(self) -> "RpcServer":
        # In a thread and not before: importing it takes as long as starting a hundred modules.
        if self._server is None:
            await asyncio.to_thread(self._made)
        return self._made()

    async def call(self, method: str, params: Params = None) -> Any:
        """The result, or CallFailed; ConnectionError while no daemon runs. From any loop."""
        request, loop = codec.request(method, params), self._open_loop()
        if asyncio.get_running_loop() is loop:
            return await self._call(request)
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._call(request), loop))

    def call_now(self, method: str, params: Params, timeout_s: float) -> Any:
        """The same without await: TimeoutError after `timeout_s`.

        In the thread of the daemon's own loop only what is answered in one pass, as all that reads is: whoever
        waited there for more would wait for himself. That is a RuntimeError.
        """
        request, loop = codec.request(method, params), self._open_loop()
        if _current_loop() is loop:
            return self._answer_at_once(request, method)
        return asyncio.run_coroutine_threadsafe(self._call(request), loop).result(timeout_s)

    def _open_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None or not self._loop.is_running():
            raise ConnectionError(self._closed_because)
        return self._loop

    async def _call(self, request: bytes) -> Any:
        """Who asked may lose patience; a command that has begun is carried through, as it is over the socket."""
        going = asyncio.get_running_loop().create_task(self._answer(request))
        self._going.add(going)
        going.add_done_callback(self._forget)
        return await asyncio.shield(going)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._going.discard(task)
        if not task.cancelled():
            task.exception()  # seen, also where nobody waits for it any more

    async def _answer(self, request: bytes) -> Any:
        server, call = await self.server(), self._own_call()
        answer = server.dispatcher.answer(request, call)
        try:
            return outcome(await answer if isinstance(answer, Coroutine) else answer)
        finally:
            call.closed()  # a subscription ends with its connection

    def _answer_at_once(self, request: bytes, method: str) -> Any:
        call = self._own_call()
        answer = self._made().dispatcher.answer(request, call)
        call.closed()
        if isinstance(answer, Coroutine):
            answer.close()
            raise RuntimeError(f"{method} takes a while, and this is the daemon's own thread: await it")
        return outcome(answer)

    def _made(self) -> "RpcServer":
        with self._making:
            if self._server is None:
                self._server = self._make_server()
            return self._server

    def _own_call(self) -> Call:
        return Call(self._peers.this_process(), _nowhere)


def _nowhere(_notification: bytes) -> None:
    """Where there is no connection, nothing can be sent after the answer."""


def _current_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
