"""Calls whoever waits for a descriptor: epoll, one thread. What there is to do is the keeper's."""

import select
from collections.abc import Callable

Ready = Callable[[], object]


class Loop:
    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._readers: dict[int, Ready] = {}
        self._writers: dict[int, Ready] = {}

    def watch(self, fd: int, ready: Ready) -> None:
        """Call `ready` whenever there is something to read, or the other side is gone."""
        self._epoll.register(fd, select.EPOLLIN)
        self._readers[fd] = ready

    def unwatch(self, fd: int) -> None:
        """To be called before the descriptor is closed."""
        self._epoll.unregister(fd)
        del self._readers[fd]
        self._writers.pop(fd, None)

    def when_writable(self, fd: int, ready: Ready | None) -> None:
        """Call `ready` whenever the descriptor, which is watched, can be written to; None: no longer."""
        if ready is None:
            if self._writers.pop(fd, None) is not None:
                self._epoll.modify(fd, select.EPOLLIN)
        else:
            self._writers[fd] = ready
            self._epoll.modify(fd, select.EPOLLIN | select.EPOLLOUT)

    def turn(self, patience_s: float | None) -> None:
        """One pass: wait for at most so long, then call each that is ready once."""
        ready = [(fd, mask, self._readers[fd]) for fd, mask in self._epoll.poll(patience_s)]
        for fd, mask, reader in ready:
            # What was closed earlier in this pass is not asked, nor what took its number since.
            if mask & select.EPOLLOUT and self._readers.get(fd) is reader and fd in self._writers:
                self._writers[fd]()
            if mask & ~select.EPOLLOUT and self._readers.get(fd) is reader:
                reader()
