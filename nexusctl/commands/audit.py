"""`audit tail` and `audit verify`: who commanded what, and whether the log of it is whole."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from datetime import datetime
from typing import Any

import click

from nexusctl.client import Client, RpcError
from nexusctl.commands.names import Commands
from nexusctl.commands.options import answers
from nexusctl.commands.watch import follow_option, lines_option, until_interrupted
from nexusctl.complaint import tell
from nexusctl.exits import DENIED, DONE, FAILED
from nexusctl.invocation import ACTION_TIMEOUT_S, Invocation
from nexusctl.output import clean, compact, folded, indented, moment, value_text
from nexusctl.selection import NO_SUCH_MODULE, is_pattern, with_near_match
from nexusd.domain.chain import Verification, head_of, in_order

MOST_RECORDS = 10_000  # that the daemon gives at once
OUTCOME_COLOURS = {"ok": "green", "begun": "cyan"}


@click.group(cls=Commands, no_args_is_help=False)
def audit() -> None:
    """Show who commanded what, and prove that nobody changed the log of it."""


@audit.command()
@click.argument("module", required=False)
@follow_option
@lines_option(20, "past records")
@answers
def tail(invocation: Invocation, module: str | None, follow: bool, lines: int) -> int:
    """Show the last records of the audit log, of all or of one MODULE. Ctrl-C ends -f with exit status 0.

    A command has a record before it runs and one when it has ended; the table shows the first only while there is
    no second. -o json gives the records as they stand.
    """
    if module is not None and is_pattern(module):
        raise click.UsageError(f"{module} is a pattern; the audit log is shown of all modules or of one")
    params = {"module_id": module} if module is not None else {}
    with invocation.client() as client:
        found = _last(client, params, lines, folded=not invocation.is_json) if lines else []
        if module is not None and not found:
            _refuse_unknown(client, module)
        if invocation.output == "json" and not follow:
            print(indented(found))
            return DONE
        _write(invocation, found)
        if follow:
            newest = found or client.call("get_audit", {"limit": 1})["records"]
            last = newest[-1]["seq"] if newest else 0
            until_interrupted(lambda: _follow(invocation, client, params, last))
    return DONE


def _last(client: Client, params: dict[str, Any], lines: int, folded: bool) -> list[dict[str, Any]]:
    """As many records as are to be shown, and those that will not be shown beside their second ones."""
    limit = min(2 * lines if folded else lines, MOST_RECORDS)
    records: list[dict[str, Any]] = client.call("get_audit", {**params, "limit": limit})["records"]
    ended = {record.get("begun") for record in records}
    shown = [record["seq"] for record in records if record["seq"] not in ended][-lines:]
    return [record for record in records if record["seq"] >= shown[0]] if shown and folded else records


def _refuse_unknown(client: Client, module: str) -> None:
    """Records of a module that is gone are shown; but no records of a mistyped one would pass for an answer."""
    if client.call("get_audit", {"module_id": module, "limit": 1})["records"]:
        return
    try:
        client.call("get_status", {"module_id": module})
    except RpcError as error:
        if error.code == NO_SUCH_MODULE:  # else: who may read the log need not be allowed to look at modules
            raise with_near_match(client, error) from None


def _follow(invocation: Invocation, client: Client, params: dict[str, Any], last: int) -> None:
    subscription = client.subscribe(
        "get_audit", {**params, "since": last, "limit": MOST_RECORDS, "follow": True}
    )
    fresh = subscription.first["records"]
    while True:
        _write(invocation, fresh)
        last = max([last, *(record["seq"] for record in fresh)])
        fresh = [record for record in [subscription.next()["record"]] if record["seq"] > last]


def _write(invocation: Invocation, records: Sequence[dict[str, Any]]) -> None:
    ended, page = {record.get("begun") for record in records}, invocation.page
    for record in records:
        if invocation.is_json:
            print(compact(record))
        elif record["seq"] not in ended:
            print(*folded(_row(record, page.paint), page), sep="\n")
    sys.stdout.flush()


def _row(record: dict[str, Any], paint: Callable[[str, str | None], str]) -> str:
    when = moment(datetime.fromisoformat(record["time"]).timestamp())
    outcome = clean(record["outcome"])
    what = " ".join([clean(record["method"]), *_params(record.get("params") or {})])
    told = [paint(when, "dim"), clean(record["principal"]), what, paint(outcome, _colour(outcome))]
    return "  ".join(told) + "".join(_more(record))


def _params(params: dict[str, Any]) -> Iterable[str]:
    for name, value in params.items():
        shown = value_text(value)
        yield shown if name == "module_id" else f"{clean(name)}={shown}"


def _more(record: dict[str, Any]) -> Iterable[str]:
    if record.get("error"):
        yield f": {clean(record['error'])}"
    if record.get("permission"):
        yield f": lacks {clean(record['permission'])}"
    if record.get("duration_s") is not None:
        yield f"  {record['duration_s'] * 1000:.0f} ms"


def _colour(outcome: str) -> str:
    return OUTCOME_COLOURS.get(outcome, "red")


def _anchors(_: click.Context, option: click.Parameter, given: Sequence[str]) -> dict[int, str]:
    """SEQ:HASH, as `audit verify` prints it, as numbers and hashes."""
    found = {}
    for value in given:
        seq, _colon, noted = value.partition(":")
        if not seq.isdecimal() or len(noted) != 64:
            told = f"{value} is not SEQ:HASH, a record's number and its 64 hexadecimal digits"
            raise click.BadParameter(told, param=option)
        found[int(seq)] = noted
    return found


@audit.command()
@click.argument("paths", nargs=-1, metavar="[FOLDER|FILE]...")
@click.option("--head", metavar="FILE", help="With paths: what nexusd noted of the end, its audit.head.")
@click.option(
    "--anchor",
    "anchors",
    metavar="SEQ:HASH",
    multiple=True,
    callback=_anchors,
    help="What an earlier `verify` printed.",
)
@answers
def verify(invocation: Invocation, paths: tuple[str, ...], head: str | None, anchors: dict[int, str]) -> int:
    """Prove that no record of the audit log was changed, removed, added or moved.

    The daemon is asked; with the log's FOLDER or its FILEs, oldest first, they are read here and no daemon is
    needed. Exit status 1 if something is found. The last line is worth noting elsewhere: an --anchor shows what
    even root could hide otherwise.
    """
    if paths:
        try:
            told = _verified_here(paths, head, anchors)
        except OSError as error:
            tell([f"nexusctl: {error.filename}: {error.strerror}"])
            return DENIED if isinstance(error, PermissionError) else FAILED
    else:
        patience = ACTION_TIMEOUT_S if invocation.timeout is None else invocation.timeout
        with invocation.client(patience) as client:
            told = client.call(
                "verify_audit", {"anchors": {str(seq): noted for seq, noted in anchors.items()}}
            )
    invocation.show(told, lambda: "\n".join(_verdict(told)))
    return DONE if told["whole"] else FAILED


def _verified_here(paths: Sequence[str], head_path: str | None, anchors: dict[int, str]) -> dict[str, Any]:
    head = None
    if head_path is not None:
        with open(head_path, encoding="ascii", errors="replace") as noted:
            head = head_of(noted.read())
        if head is None:
            raise click.UsageError(f"{head_path} is no head of an audit log")
    verification = Verification(head, anchors)
    with ExitStack() as stack:
        for file in [
            stack.enter_context(open(path, "rb")) for path in _files(paths)
        ]:  # all before any is read
            verification.read(file.name, (line.removesuffix(b"\n") for line in file))
    return {**verification.verdict().told(), "has_head": head is not None}


def _files(paths: Sequence[str]) -> Iterable[str]:
    for path in paths:
        if os.path.isdir(path):
            yield from (os.path.join(path, name) for name in in_order(os.listdir(path)))
        else:
            yield path


def _verdict(told: dict[str, Any]) -> Iterable[str]:
    for one in told["findings"]:
        yield f"{clean(one['file'])} line {one['line']}: {clean(one['text'])}"
    left_out = told["findings_total"] - len(told["findings"])
    if left_out:
        yield f"and {left_out} findings more"
    last = told["last"]
    span = f", {told['first']} to {last['seq']}" if last else ""
    yield f"{'whole' if told['whole'] else 'NOT whole'}: {told['records']} records{span}"
    if not told.get("has_head", True):
        yield "the end is not proved: --head names what nexusd noted of it"
    if told["after_head"]:
        yield f"{told['after_head']} records after the head: nexusd has not noted them, or did not write them"
    if last:
        yield f"last: {last['seq']}:{last['hash']}"
