"""How much of the logs is read for clients: files followed by one connection and by all, lines of one answer.

Where the files are and how they are read is the log reader's; how a client is told, the handler's.
"""

import asyncio
import resource
from collections.abc import Callable, Sequence

from nexusd.domain.errors import Busy, InvalidParams
from nexusd.ports import LogFeed, LogReader
from nexusd.rpc.call import Call

MOST_LINES = 10_000  # of a replica
MOST_ANSWERED = 50_000  # lines of one answer, over all replicas
ANSWER_BYTES = 16 << 20  # shared by the replicas of one answer
MOST_OF_ONE = 512  # files that one connection follows
MOST_OF_ALL = 2048
_SHARE = 4  # of the open files that the kernel allows, followed logs may have one in so many
_READERS = 2  # answers that are read at once

Push = Callable[[str, list[str]], None]


class Following:
    """The reading and following of logs for all connections of a daemon."""

    def __init__(self, logs: LogReader) -> None:
        self._logs = logs
        self._held: dict[Call, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._turns = asyncio.Semaphore(_READERS)

    async def last_lines(self, names: Sequence[str], lines: int) -> list[dict[str, str]]:
        """In a thread: 200 replicas are as many files, and their lines megabytes. Raises InvalidParams."""
        if len(names) * lines > MOST_ANSWERED:
            raise InvalidParams(
                f"{lines} lines of {len(names)} replicas are more than the {MOST_ANSWERED} of one answer",
                hint=f"ask for one `replica`, or for at most {MOST_ANSWERED // len(names)} `lines`",
            )
        if lines == 0:
            return []
        async with self._turns:
            return await asyncio.to_thread(self._read, names, lines)

    def _read(self, names: Sequence[str], lines: int) -> list[dict[str, str]]:
        room = ANSWER_BYTES // max(1, len(names))
        return [
            {"replica": name, "line": line} for name in names for line in self._logs.tail(name, lines, room)
        ]

    def open(self, call: Call, names: Sequence[str], push: Push) -> LogFeed:
        """What comes from now on, not pushed before `start`. Raises Busy."""
        mine, of_all = self._held.get(call, 0), sum(self._held.values())
        _refuse_beyond(mine + len(names), MOST_OF_ONE, "a connection follows")
        _refuse_beyond(of_all + len(names), most_of_all(), "all connections together follow")
        feed = self._logs.follow(names, push)
        self._held[call] = mine + len(names)
        return feed

    def start(self, call: Call, feed: LogFeed) -> None:
        """Push until the connection ends."""
        task = asyncio.get_running_loop().create_task(feed.run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # Not in the task itself: one that is cancelled before its first step runs none of its code.
        task.add_done_callback(lambda _: self.end(call, feed))
        call.on_close(lambda: _cancel(task))

    def end(self, call: Call, feed: LogFeed) -> None:
        feed.close()
        self._held[call] -= feed.files
        if not self._held[call]:
            del self._held[call]


def most_of_all() -> int:
    """Asked for anew: the limit is raised while the daemon comes up."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_OF_ALL if soft == resource.RLIM_INFINITY else min(MOST_OF_ALL, soft // _SHARE)


def _refuse_beyond(wanted: int, most: int, who: str) -> None:
    if wanted > most:
        hint = "name a `replica`, or close connections that follow: that ends it"
        raise Busy(f"{who} at most {most} log files, and that would be {wanted}", hint=hint)


def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
