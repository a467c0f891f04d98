"""reexec on the command line: asks for it, waits for the nexusd that comes, holds its modules against those before."""

from __future__ import annotations

import time
from typing import Any

import click

from nexusctl.client import Client, RpcError
from nexusctl.commands.options import answers
from nexusctl.complaint import PREFIX, tell
from nexusctl.exits import DONE, FAILED
from nexusctl.invocation import GRACE_S, Invocation
from nexusctl.output import clean
from nexusctl.selection import ids_of
from nexusctl.unreachable import NO_DAEMON, SHUT_DOWN, TIMED_OUT, Unreachable, unanswered

PAUSE_S = 0.02  # between two looks whether the one that answers is another by now

Processes = dict[str, dict[str, int]]  # pids of replicas by the module's id


@click.command()
@click.option(
    "--force",
    is_flag=True,
    help="Even while a command, a reload or an experiment is under way, which it cuts short.",
)
@answers
def reexec(invocation: Invocation, force: bool) -> int:
    """Replace the running nexusd by the installed one. Modules are not touched.

    The new one is tried first; where it would not work nothing is done. Clients wait meanwhile, for some tenths of a
    second. The pid stays the same.
    """
    until = time.monotonic() + invocation.action_timeout
    limit = {} if invocation.timeout is None else {"timeout": invocation.timeout}
    with invocation.client(invocation.action_timeout + GRACE_S) as client:
        former = client.call("get_status")
        before = _processes(client, former)
        result = client.call("reexec", {"force": force, **limit})
    begun = time.monotonic()
    status, after = _successor(invocation, former.get("instance", ""), until)
    took_ms = round((time.monotonic() - begun) * 1000)
    touched = [one for one, pids in before.items() if not pids.items() <= after.get(one, {}).items()]
    told = {**result, "milliseconds": took_ms, "untouched": len(before) - len(touched), "touched": touched}
    failure = (status.get("replaced") or {}).get("failure")
    if failure is not None:
        what = f"{clean(result['to'])} could not be executed, {clean(status['version'])} goes on"
        tell([f"{PREFIX}nexusd {what}: {clean(failure)}"])
        return FAILED
    invocation.show(told, lambda: _line(told), "nexusd")
    if touched:
        tell(
            [
                f"{PREFIX}other processes than before: {', '.join(touched)}",
                f"next: nexusctl events {touched[0]}",
            ]
        )
    return FAILED if touched else DONE


def _line(told: dict[str, Any]) -> str:
    untouched = told["untouched"]
    modules = f"{untouched} module{'s' * (untouched != 1)} untouched"
    return f"reexec: {clean(told['from'])} -> {clean(told['to'])} in {told['milliseconds']} ms, {modules}"


def _successor(invocation: Invocation, former: str, until: float) -> tuple[dict[str, Any], Processes]:
    """The status of the next nexusd and its modules' processes; Unreachable when it has not answered by then."""
    while (left := until - time.monotonic()) > 0:
        try:
            with invocation.client(left) as client:
                status = client.call("get_status")
                if status["instance"] != former:
                    return status, _processes(client, status)
        except Unreachable as error:
            if error.cause == TIMED_OUT:
                break
            if error.cause not in (NO_DAEMON, SHUT_DOWN) or until - time.monotonic() < 2 * PAUSE_S:
                raise
        time.sleep(PAUSE_S)
    raise unanswered(invocation.socket, "reexec", invocation.action_timeout)


def _processes(client: Client, status: dict[str, Any]) -> Processes:
    """Of modules that were dropped meanwhile nothing is told."""
    requests = [("get_status", {"module_id": one}) for one in ids_of(status)]
    return {
        shown["id"]: {one["name"]: one["pid"] for one in shown["instances"] if one["pid"] is not None}
        for _, shown in client.call_many(requests)
        if not isinstance(shown, RpcError)
    }
