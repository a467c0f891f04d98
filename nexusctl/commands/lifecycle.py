"""start, stop, restart and reload on the command line. How several are carried out at once: actions.py."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from nexusctl.actions import Action, carry_out
from nexusctl.commands.options import answers, module_argument
from nexusctl.exits import DONE
from nexusctl.invocation import GRACE_S, Invocation

F = TypeVar("F", bound=Callable[..., Any])
STRATEGIES = ("graceful", "rolling", "immediate", "signal")

no_wait = click.option("--no-wait", is_flag=True, help="Ask for it and return at once.")


def _changed(state: str) -> Callable[[dict[str, Any]], str]:
    def told(result: dict[str, Any]) -> str:
        if not result.get("changed", True):
            return f"was {state} already"
        also = ", ".join(result.get("also") or [])
        return f"{state}, and with it {also}" if also else state

    return told


def _reloaded(result: dict[str, Any]) -> str:
    what = "reloaded" if result.get("changed", True) else "reloaded, nothing had changed"
    return f"{what} ({result['strategy']}), generation {result['generation']}"


@click.command()
@module_argument()
@click.option("--cascade", is_flag=True, help="Start what it requires as well, even if stopped by hand.")
@no_wait
@answers
def start(invocation: Invocation, modules: tuple[str, ...], cascade: bool, no_wait: bool) -> int:
    """Start modules and wait until they are ready."""
    action = Action("start", "start_module", _changed("started"), {"cascade": cascade}, not no_wait)
    return carry_out(invocation, action, modules)


@click.command()
@module_argument()
@click.option("--cascade", is_flag=True, help="Stop the modules that require it as well.")
@no_wait
@answers
def stop(invocation: Invocation, modules: tuple[str, ...], cascade: bool, no_wait: bool) -> int:
    """Stop modules and wait until they have ended. They stay stopped, over a reboot too."""
    action = Action("stop", "stop_module", _changed("stopped"), {"cascade": cascade}, not no_wait)
    return carry_out(invocation, action, modules)


@click.command()
@module_argument()
@no_wait
@answers
def restart(invocation: Invocation, modules: tuple[str, ...], no_wait: bool) -> int:
    """Stop and start modules and wait until they are ready."""
    action = Action("restart", "restart_module", lambda result: "restarted", {}, not no_wait)
    return carry_out(invocation, action, modules)


@click.command()
@module_argument(required=False)
@click.option("--strategy", type=click.Choice(STRATEGIES), help="[default: as the module's manifest says]")
@no_wait
@answers
def reload(invocation: Invocation, modules: tuple[str, ...], strategy: str | None, no_wait: bool) -> int:
    """Load code and manifests anew.

    Of each MODULE; without one, the daemon's configuration and all manifests.
    """
    if not modules:
        if strategy or no_wait:
            raise click.UsageError("--strategy and --no-wait are for modules; name one")
        return _reload_daemon(invocation)
    chosen = {"strategy": strategy} if strategy else {}
    return carry_out(invocation, Action("reload", "reload_module", _reloaded, chosen, not no_wait), modules)


def _reload_daemon(invocation: Invocation) -> int:
    with invocation.client(invocation.action_timeout + GRACE_S) as client:
        result = client.call("reload_daemon")
    invocation.show(result, lambda: _daemon_reloaded(result), "nexusd")
    for one in result.get("invalid") or []:
        print(f"nexusctl: {one} is invalid\nnext: nexusctl status {one}", file=sys.stderr)
    return DONE


def _daemon_reloaded(result: dict[str, Any]) -> str:
    changes = [
        f"  {what}  {one}" for what in ("added", "changed", "removed") for one in result.get(what) or []
    ]
    return "\n".join(["nexusd reloaded" + ("" if changes else ", nothing had changed"), *changes])
