"""What all commands share: --socket, -o and --timeout, before or after its name; how errors end."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from nexusctl.client import Client, RpcError
from nexusctl.invocation import Invocation, guarded
from nexusctl.output import FORMATS
from nexusctl.selection import known_ids
from nexusctl.unreachable import Unreachable, default_socket

F = TypeVar("F", bound=Callable[..., Any])
COMPLETION_PATIENCE_S = 0.5


class SocketOption(click.Option):
    """Its help names the socket that would be asked now."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        record = super().get_help_record(ctx)
        return record and (record[0], f"{record[1]}  [now: {_nearest(ctx, 'socket') or default_socket()}]")


SOCKET = click.option("--socket", cls=SocketOption, metavar="PATH", help="The daemon's socket.")
OUTPUT = click.option(
    "-o",
    "--output",
    type=click.Choice(FORMATS),
    metavar="FORMAT",
    help=f"{', '.join(FORMATS)}.  [default: table]",
)
TIMEOUT = click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="How long to wait.  [default: 5 for questions, 60 for actions]",
)


def shared_options(function: F) -> F:
    for option in reversed((SOCKET, OUTPUT, TIMEOUT)):
        function = option(function)
    return function


def answers(function: Callable[..., int]) -> Callable[..., int]:
    """Make a function of (Invocation, …) a command: its errors are told and become its exit status."""

    @shared_options
    @click.pass_context
    @functools.wraps(function)
    def command(context: click.Context, /, **given: Any) -> int:
        invocation = Invocation(**{name: _nearest(context, name) for name in ("socket", "output", "timeout")})
        own = {name: value for name, value in given.items() if name not in ("socket", "output", "timeout")}
        return guarded(invocation, functools.partial(function, **own))

    return command


def _nearest(context: click.Context, option: str) -> Any:
    """What was said after the command's name, else before it, else the default."""
    at: click.Context | None = context
    while at is not None:
        if (value := at.params.get(option)) is not None:
            return value
        at = at.parent
    return "table" if option == "output" else None


def complete_modules(context: click.Context, parameter: click.Parameter, incomplete: str) -> Sequence[str]:
    """The ids of the running daemon; nothing, quietly, if there is none."""
    try:
        with Client(_nearest(context, "socket"), COMPLETION_PATIENCE_S) as client:
            return [one for one in known_ids(client) if one.startswith(incomplete)]
    except (RpcError, Unreachable):
        return []


def complete_keys(context: click.Context, parameter: click.Parameter, incomplete: str) -> Sequence[str]:
    """The configuration keys of the module named before."""
    try:
        with Client(_nearest(context, "socket"), COMPLETION_PATIENCE_S) as client:
            entries = client.call("get_config", {"module_id": context.params.get("module")})["config"]
            return [key for key in entries if key.startswith(incomplete)]
    except (RpcError, Unreachable):
        return []


def module_argument(required: bool = True, several: bool = True) -> Callable[[F], F]:
    """MODULE, or MODULE... as `modules`, with completion."""
    name, count = ("modules", -1) if several else ("module", 1)
    metavar = ("MODULE" if required else "[MODULE]") + ("..." if several else "")
    return click.argument(
        name, nargs=count, required=required, metavar=metavar, shell_complete=complete_modules
    )
