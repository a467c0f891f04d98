"""`status` and `modules` on the command line. A plain `status` does not come this way: see __main__.py."""

from __future__ import annotations

from typing import Any

import click

from nexusctl.commands.options import answers, module_argument
from nexusctl.exits import DONE
from nexusctl.invocation import Invocation
from nexusctl.output import compact, fitting, indented
from nexusctl.selection import matching, no_match
from nexusctl.status import show_status


@click.command()
@module_argument(required=False)
@answers
def status(invocation: Invocation, modules: tuple[str, ...]) -> int:
    """Show how the daemon and its modules are.

    One MODULE is shown in full. The exit status is 0 if every MODULE named runs, 3 if one does not.
    """
    return show_status(invocation, modules)


@click.command()
@module_argument(required=False)
@answers
def modules(invocation: Invocation, modules: tuple[str, ...]) -> int:
    """List the modules that were found, whether they run or not."""
    with invocation.client() as client:
        told = client.call("get_status")
    items = {item["id"]: item for item in told["modules"]["items"]}
    chosen = matching(modules, list(items)) if modules else sorted(items)
    unknown = [one for one in chosen if one not in items]
    if unknown:
        raise no_match(unknown[0], list(items), told.get("module_paths") or ())
    _print_list(invocation, [items[one] for one in chosen])
    return DONE


def _print_list(invocation: Invocation, items: list[dict[str, Any]]) -> None:
    if invocation.output == "json":
        print(indented(items))
        return
    if invocation.output == "table":
        heading = ("MODULE", "VERSION", "GENERATION", "WANTED", "STATE", "CRITICAL")
        rows = [_row(item) for item in items]
        print(*fitting([heading, *rows], invocation.page, frozenset({2})), sep="\n")
        return
    for item in items:
        print(compact(item) if invocation.output == "jsonl" else item["id"])


def _row(item: dict[str, Any]) -> tuple[str, ...]:
    critical = "yes" if item.get("critical") else "no"
    version, generation = str(item.get("version") or "-"), str(item.get("generation", "-"))
    return item["id"], version, generation, item["wanted"], item["state"], critical
