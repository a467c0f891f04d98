"""start, stop, restart and reload on the command line. How several are carried out at once: actions.py."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import click

from nexusctl.actions import Action, carry_out
from nexusctl.client import RpcError
from nexusctl.commands.options import answers, module_argument
from nexusctl.complaint import PREFIX, tell
from nexusctl.exits import DONE, FAILED
from nexusctl.invocation import GRACE_S, Invocation
from nexusctl.output import clean
from nexusctl.unreachable import Unreachable

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


def _reloaded(invocation: Invocation, result: dict[str, Any]) -> str:
    how = f"({result['strategy']}), generation {result['generation']}"
    if result["strategy"] == "signal":
        return f"got its reload signal {how}"
    if result.get("changed", True):
        return f"reloaded {how}"
    state = _state_of(invocation, result["module_id"])
    if state == "started":
        return f"started anew from the same files {how}"
    return f"reloaded from the same files {how}" + (f"; it is {state}" if state else "")


def _state_of(invocation: Invocation, module_id: str) -> str | None:
    """Unknown to who may reload but not look."""
    try:
        with invocation.client() as client:
            return str(client.call("get_status", {"module_id": module_id})["state"])
    except (RpcError, Unreachable):
        return None


@click.command()
@module_argument()
@no_wait
@answers
def start(invocation: Invocation, modules: tuple[str, ...], no_wait: bool) -> int:
    """Start modules and wait until they are ready."""
    action = Action("start", "start_module", _changed("started"), {}, not no_wait)
    return carry_out(invocation, action, modules)


@click.command()
@module_argument()
@click.option("--cascade", is_flag=True, help="Stop the modules that require it as well.")
@no_wait
@answers
def stop(invocation: Invocation, modules: tuple[str, ...], cascade: bool, no_wait: bool) -> int:
    """Stop modules and wait until they have ended. They stay stopped, over a reboot too."""
    stopped: dict[str, None] = {}

    def told(result: dict[str, Any]) -> str:
        if result.get("also"):
            stopped.update(dict.fromkeys([result["module_id"], *result["also"]]))
        return _changed("stopped")(result)

    action = Action("stop", "stop_module", told, {"cascade": cascade}, not no_wait)
    status = carry_out(invocation, action, modules)
    if stopped:
        tell([f"next: nexusctl start {' '.join(map(clean, stopped))}  (all that was stopped)"])
    return status


@click.command()
@module_argument()
@click.option("--replica", type=click.IntRange(min=0), metavar="INDEX", help="Only this one.")
@no_wait
@answers
def restart(invocation: Invocation, modules: tuple[str, ...], replica: int | None, no_wait: bool) -> int:
    """Stop and start modules and wait until they are ready.

    MODULE#INDEX means one replica; the others are not touched.
    """
    action = Action("restart", "restart_module", lambda result: "restarted", {}, not no_wait, by_replica=True)
    words = modules if replica is None else [f"{module}#{replica}" for module in modules]
    return carry_out(invocation, action, words)


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
    told = partial(_reloaded, invocation)
    return carry_out(invocation, Action("reload", "reload_module", told, chosen, not no_wait), modules)


def _reload_daemon(invocation: Invocation) -> int:
    with invocation.client(invocation.action_timeout + GRACE_S) as client:
        result = client.call("reload_daemon")
    invocation.show(result, lambda: "\n".join(_daemon_reloaded(result)), "nexusd")
    if not invocation.is_json:
        sys.stdout.flush()
        tell(_to_be_done(result))
    return FAILED if result.get("invalid") else DONE


def _daemon_reloaded(result: dict[str, Any]) -> list[str]:
    changes = [
        *(f"  added  {one}" for one in result.get("added") or []),
        *(
            f"  changed  {one}  (nexusctl reload {one} puts it in force)"
            for one in result.get("changed") or []
        ),
        *(f"  removed  {one}" for one in result.get("removed") or []),
    ]
    config = result.get("config") or {}
    changes += [f"  [{one}] of nexusd.toml is in force" for one in config.get("in_force") or []]
    changes += [
        f"  {one} of nexusd.toml waits for a restart of nexusd"
        for one in config.get("waits_for_restart") or []
    ]
    unchanged = not changes and not result.get("invalid")
    return ["nexusd reloaded" + (", nothing had changed" if unchanged else ""), *changes]


def _to_be_done(result: dict[str, Any]) -> list[str]:
    """What is wrong on disk, each fault as `check` tells it, and what runs on although its files have gone."""
    told: list[str] = []
    faults = result.get("faults") or {}
    for one in result.get("invalid") or []:
        told += [f"{PREFIX}{one} is invalid", *(f"  {clean(fault)}" for fault in faults.get(one) or [])]
    if told:
        told.append("next: correct it, then nexusctl reload")
    for one in result.get("running_on") or []:
        told.append(f"next: nexusctl stop {one}  (it runs on until it is stopped)")
    return told
