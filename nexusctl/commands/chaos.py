"""`chaos run`, `list`, `show` and `abort`: experiments on modules, and what came of them."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from nexusctl.chaos_page import list_lines, plan_lines, report_lines
from nexusctl.commands.names import Commands
from nexusctl.commands.options import answers, module_argument
from nexusctl.exits import DONE, FAILED, INTERRUPTED
from nexusctl.invocation import GRACE_S, Invocation
from nexusctl.output import compact, indented
from nexusctl.progress import Progress

RECOVERY_S = 60.0  # beyond the experiment's own duration: nexusd ends it well before

Report = dict[str, Any]


@click.group(cls=Commands, no_args_is_help=False)
def chaos() -> None:
    """Disturb modules on purpose, and see whether they recover."""


@chaos.command("run")
@click.argument("experiment", metavar="EXPERIMENT")
@module_argument(several=False)
@click.option("--replicas", default="1", metavar="SHARE", help="How many to hit: 2, 50%.  [default: 1]")
@click.option("--duration", metavar="TIME", help="How long frozen, or watched at most: 10s, 5m; up to 1h.")
@click.option("--seed", type=click.IntRange(min=0), help="Hit the same replicas again.")
@click.option("--dry-run", is_flag=True, help="Show what would be hit, and touch nothing.")
@click.option("--no-wait", is_flag=True, help="Return once it has begun.")
@answers
def run(
    invocation: Invocation,
    experiment: str,
    module: str,
    replicas: str,
    duration: str | None,
    seed: int | None,
    dry_run: bool,
    no_wait: bool,
) -> int:
    """Carry out an EXPERIMENT and show its report: kill, terminate or freeze.

    The exit status is 0 when the module recovered. Ctrl-C aborts the experiment: what was frozen goes on.
    """
    params: Report = {"experiment": experiment, "module_id": module, "replicas": replicas, "wait": False}
    given = {"duration": duration, "seed": seed}
    params |= {name: value for name, value in given.items() if value is not None}
    if dry_run:
        return _plan(invocation, {**params, "dry_run": True})
    if not no_wait:
        return _carry_out(invocation, params)
    begun = _begin(invocation, params)
    told = f"{begun['id']} has begun; nexusctl chaos show {begun['id']}"
    invocation.show(begun, lambda: told, begun["id"])
    return DONE


@chaos.command("list")
@module_argument(required=False, several=False)
@click.option("-n", "--limit", type=click.IntRange(1, 1000), default=20, help="How many.  [default: 20]")
@answers
def list_(invocation: Invocation, module: str | None, limit: int) -> int:
    """Show the last experiments."""
    params: Report = {"limit": limit, **({"module_id": module} if module else {})}
    with invocation.client() as client:
        found = client.call("list_chaos", params)["experiments"]
    if invocation.output == "json":
        print(indented(found))
    elif invocation.output in ("jsonl", "name"):
        for one in found:
            print(one["id"] if invocation.output == "name" else compact(one))
    else:
        print(*list_lines(found, invocation.page), sep="\n")
    return DONE


@chaos.command("show")
@click.argument("experiment_id", metavar="ID")
@answers
def show(invocation: Invocation, experiment_id: str) -> int:
    """Show the report of an experiment, also while it is under way."""
    with invocation.client() as client:
        _show(invocation, client.call("get_chaos", {"id": experiment_id}))
    return DONE


@chaos.command("abort")
@click.argument("which", metavar="[ID|MODULE]", required=False)
@answers
def abort(invocation: Invocation, which: str | None) -> int:
    """Roll an experiment back at once; without a name, the only one there is.

    The exit status is 0 when the module is in its steady state afterwards.
    """
    report = _abort(invocation, which)
    _show(invocation, report)
    steady = report["steady_after"] or {}
    return DONE if steady.get("steady") else FAILED


def _plan(invocation: Invocation, params: Report) -> int:
    with invocation.client() as client:
        plan = client.call("trigger_chaos", params)
    names = "\n".join(one["replica"] for one in plan["targets"])
    invocation.show(plan, lambda: "\n".join(plan_lines(plan, invocation.page)), names)
    return DONE


def _begin(invocation: Invocation, params: Report) -> Report:
    with invocation.client(invocation.action_timeout) as client:
        begun: Report = client.call("trigger_chaos", params)
        return begun


def _carry_out(invocation: Invocation, params: Report) -> int:
    begun: Report | None = None
    was_interrupted = False
    with Progress(invocation, [params["module_id"]]) as progress:
        try:
            with _held_interrupts() as held:
                begun = _begin(invocation, params)
            if held:
                raise KeyboardInterrupt
            report = _finished(invocation, begun)
        except KeyboardInterrupt:
            if begun is None:
                raise
            report, was_interrupted = _abort(invocation, begun["id"]), True
        with progress.aside(begun["module_id"]):
            _show(invocation, report)
    if was_interrupted:
        return INTERRUPTED
    return DONE if report["verdict"]["recovered"] else FAILED


@contextmanager
def _held_interrupts() -> Iterator[list[int]]:
    """A Ctrl-C between the question and its answer would leave an experiment behind whose id nobody knows."""
    held: list[int] = []
    former = signal.signal(signal.SIGINT, lambda number, _frame: held.append(number))
    try:
        yield held
    finally:
        signal.signal(signal.SIGINT, former)


def _finished(invocation: Invocation, begun: Report) -> Report:
    patience = begun["duration_s"] + RECOVERY_S if invocation.timeout is None else invocation.timeout
    with invocation.client(patience + GRACE_S) as client:
        report: Report = client.call("get_chaos", {"id": begun["id"], "wait": True, "timeout": patience})
        return report


def _abort(invocation: Invocation, which: str | None) -> Report:
    named = {"module_id" if "/" in which else "id": which} if which else {}
    patience = invocation.action_timeout
    with invocation.client(patience + GRACE_S) as client:
        report: Report = client.call("abort_chaos", {**named, "timeout": patience})
        return report


def _show(invocation: Invocation, report: Report) -> None:
    invocation.show(report, lambda: "\n".join(report_lines(report, invocation.page)), report["id"])
    sys.stdout.flush()
