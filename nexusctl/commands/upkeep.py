"""scale and heal on the command line. How several are carried out at once: actions.py."""

from __future__ import annotations

from typing import Any

import click

from nexusctl.actions import Action, carry_out
from nexusctl.commands.lifecycle import no_wait
from nexusctl.commands.options import answers, module_argument
from nexusctl.exits import DONE, FAILED
from nexusctl.invocation import GRACE_S, Invocation
from nexusctl.output import Page, clean, folded


@click.command()
@module_argument(several=False)
@click.argument("replicas", type=int, metavar="N")
@no_wait
@answers
def scale(invocation: Invocation, module: str, replicas: int, no_wait: bool) -> int:
    """Set how many replicas a module has, and wait until they are ready.

    From 0 to the manifest's max_replicas. The number is kept over restarts of nexusd.
    """
    action = Action("scale", "scale_module", _scaled, {"replicas": replicas}, not no_wait)
    return carry_out(invocation, action, [module])


def _scaled(result: dict[str, Any]) -> str:
    now, state = result["replicas"], result["state"]
    number = f"{now} replica" if now == 1 else f"{now} replicas"
    then = "" if state == "started" or now == 0 else f"; it is {state}, they start with it"
    if not result["changed"]:
        return f"has {number} already{then}"
    return f"scaled from {result['previous']} to {number}{then}"


@click.command()
@module_argument(required=False)
@no_wait
@answers
def heal(invocation: Invocation, modules: tuple[str, ...], no_wait: bool) -> int:
    """Start anew what is failed or unhealthy, and say whether it helped.

    Of all modules, or of each MODULE with what it requires. What was stopped by hand stays stopped.
    """
    if modules:
        action = Action("heal", "trigger_healing", _healed, {}, not no_wait, _status)
        return carry_out(invocation, action, modules)
    patience = invocation.action_timeout
    wait = {"wait": not no_wait, **({} if no_wait else {"timeout": patience})}
    with invocation.client(patience + GRACE_S) as client:
        result = client.call("trigger_healing", wait)
    invocation.show(result, lambda: _all_healed(result, invocation.page), "\n".join(result["healed"]))
    return _status(result)


def _status(result: dict[str, Any]) -> int:
    """Without having waited nobody knows, and nothing is wrong yet."""
    return FAILED if result["helped"] is False else DONE


def _healed(result: dict[str, Any]) -> str:
    """Of the module that was named, then of those that it requires."""
    name = f"{result['module_id']} "
    own = [part.removeprefix(name) for part in _parts(result) if part.startswith(name)]
    others = [part for part in _parts(result) if not part.startswith(name)]
    return "; ".join([*(own or ["needs no healing"]), *others])


def _all_healed(result: dict[str, Any], page: Page) -> str:
    told = [*_parts(result), clean(result["message"])]
    return "\n".join(part for line in told for part in folded(line, page))


def _parts(result: dict[str, Any]) -> list[str]:
    """Of each module what was done to it, or why nothing was."""
    how = "being started anew" if result["helped"] is None else "not healed"
    return [
        *(f"{one} healed" for one in result["healed"]),
        *(f"{one} {how}: {clean(why)}" for one, why in result["not_healed"].items()),
        *(f"{one} left alone: {clean(why)}" for one, why in result["skipped"].items()),
    ]
