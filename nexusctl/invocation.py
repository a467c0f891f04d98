"""One run of nexusctl: where the daemon is, in which form the answer is wanted, how long it may take."""

from __future__ import annotations

import sys

from nexusctl.client import Client, RpcError, default_socket
from nexusctl.complaint import complain
from nexusctl.exits import INTERRUPTED
from nexusctl.output import Page, compact, indented, page_of
from nexusctl.unreachable import Unreachable
from nexusctl.wire import READ_TIMEOUT_S

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

ACTION_TIMEOUT_S = 60.0
GRACE_S = 5.0  # the daemon tells of a time-out itself; this much later we no longer believe that it will


class Invocation:
    """The options that every command has. Reads get 5 s and actions 60 s unless --timeout says otherwise."""

    def __init__(
        self, socket: str | None = None, output: str = "table", timeout: float | None = None
    ) -> None:
        self.socket = socket or default_socket()
        self.output = output
        self.timeout = timeout

    def client(self, timeout: float | None = None) -> Client:
        return Client(self.socket, self.read_timeout if timeout is None else timeout)

    @property
    def read_timeout(self) -> float:
        return READ_TIMEOUT_S if self.timeout is None else self.timeout

    @property
    def action_timeout(self) -> float:
        return ACTION_TIMEOUT_S if self.timeout is None else self.timeout

    @property
    def page(self) -> Page:
        return page_of(sys.stdout)

    @property
    def is_json(self) -> bool:
        return self.output in ("json", "jsonl")

    def show(self, value: object, text: Callable[[], str], name: str | None = None) -> None:
        """Print one result in the form that was asked for; `text` makes the table form."""
        if self.output == "json":
            print(indented(value))
        elif self.output == "jsonl":
            print(compact(value))
        elif self.output == "name" and name is not None:
            print(name)
        else:
            print(text())


def guarded(invocation: Invocation, command: Callable[..., int], *arguments: Any) -> int:
    """Run a command; an error of the daemon or of the way to it becomes a complaint and an exit status.

    Ctrl-C is taken here as well, since click would print a line about it.
    """
    try:
        return command(invocation, *arguments)
    except (RpcError, Unreachable) as error:
        sys.stdout.flush()
        return complain(error, invocation.output)
    except KeyboardInterrupt:
        return INTERRUPTED
