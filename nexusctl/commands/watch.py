"""`logs` and `events`: what modules print and what happened to them, as it was or as it comes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import click

from nexusctl.client import Client, RpcError
from nexusctl.commands.options import answers, module_argument
from nexusctl.complaint import complain
from nexusctl.exits import DONE, worst
from nexusctl.invocation import Invocation
from nexusctl.output import clean, compact, folded, indented, moment
from nexusctl.selection import is_single, selected, with_near_match

OF_A_CHANGE = 3  # events of one change, of which one says all
MOST_EVENTS = 10_000  # that the daemon tells at once
COLOURS = ("cyan", "yellow", "green", "blue")
follow_option = click.option("-f", "--follow", is_flag=True, help="Go on with what comes, until Ctrl-C.")


def lines_option(default: int, what: str) -> Callable[[Any], Any]:
    return click.option(
        "-n",
        "--lines",
        metavar="N",
        type=click.IntRange(min=0),
        default=default,
        show_default=True,
        help=f"How many {what}.",
    )


@click.command()
@module_argument()
@follow_option
@lines_option(100, "lines of each module")
@answers
def logs(invocation: Invocation, modules: tuple[str, ...], follow: bool, lines: int) -> int:
    """Show the last lines that modules printed. MODULE#1 is the replica 1 alone.

    With more than one replica each line begins with the replica's name. Ctrl-C ends -f with exit status 0.
    """
    with invocation.client() as client:
        words = selected(client, modules)
        answers, statuses = _ask_for_logs(invocation, client, words, follow, lines)
        if invocation.output == "json" and not follow:
            print(indented(answers[0] if is_single(modules) and answers else answers))
            return worst(statuses)
        in_files = _say_what_is_in_the_journal(answers, follow)
        writer = _LineWriter(invocation, named=len(words) > 1 or _has_replicas(client, words[0], answers))
        writer.write(line for answer in answers for line in answer["lines"])
        if follow and in_files:
            until_interrupted(lambda: _follow_logs(client, writer))
    return worst(statuses)


def _say_what_is_in_the_journal(answers: Sequence[dict[str, Any]], follow: bool) -> bool:
    """Where to look, on stderr: what is printed stays log lines. Returns whether any module logs to files."""
    names = [answer["journal"] for answer in answers if answer.get("journal")]
    for name in names:
        option = "-f " if follow else ""
        print(
            f"{name.removeprefix('nexus/')} logs to the journal: journalctl {option}-t {name}",
            file=sys.stderr,
        )
    return len(names) < len(answers)


def _ask_for_logs(
    invocation: Invocation, client: Client, words: Sequence[str], follow: bool, lines: int
) -> tuple[list[dict[str, Any]], list[int]]:
    """The answers in the order of the words; a module without one is complained about."""
    requests = [("get_logs", {**_target(word), "lines": lines, "follow": follow}) for word in words]
    outcomes = dict(client.call_many(requests))
    answers, statuses = [], [DONE]
    for place, word in enumerate(words):
        outcome = outcomes[place]
        if isinstance(outcome, RpcError):
            error = with_near_match(client, outcome)
            statuses.append(complain(error, invocation.output, "read the log of", word))
        else:
            answers.append(outcome)
    return answers, statuses


def _target(word: str) -> dict[str, Any]:
    module_id, _, number = word.partition("#")
    if not number.isdecimal():
        return {"module_id": word}
    return {"module_id": module_id, "replica": int(number)}


def _has_replicas(client: Client, word: str, answers: Sequence[dict[str, Any]]) -> bool:
    """Whether lines of more than one replica are to be told apart."""
    if "replica" in _target(word):
        return False
    if len({line["replica"] for answer in answers for line in answer["lines"]}) > 1:
        return True
    try:
        return len(client.call("get_status", {"module_id": word}).get("instances") or []) > 1
    except RpcError:
        return False


class _LineWriter:
    """Prints log lines as they are, after the replica's name where there are several."""

    def __init__(self, invocation: Invocation, named: bool) -> None:
        self._invocation = invocation
        self._named = named
        self._page = invocation.page
        self._colours: dict[str, str] = {}

    def write(self, lines: Iterable[dict[str, str]]) -> None:
        for line in lines:
            print(self._text(line["replica"], line["line"]))
        sys.stdout.flush()

    def _text(self, replica: str, line: str) -> str:
        if self._invocation.is_json:
            return compact({"replica": replica, "line": line})
        if not self._named:
            return line
        colour = self._colours.setdefault(replica, COLOURS[len(self._colours) % len(COLOURS)])
        return f"{self._page.paint(f'{replica} |', colour)} {line}"


def _follow_logs(client: Client, writer: _LineWriter) -> None:
    while True:
        came = client.next_notification()
        writer.write({"replica": came["replica"], "line": _bare(line)} for line in came.get("lines", []))


def _bare(line: Any) -> str:
    return str(line["line"]) if isinstance(line, dict) else str(line)


def until_interrupted(forever: Callable[[], None]) -> None:
    """Ctrl-C is how one ends following: that is no failure."""
    try:
        forever()
    except KeyboardInterrupt:
        return


@click.command()
@module_argument(required=False)
@follow_option
@lines_option(20, "past events")
@click.option("-a", "--all", "everything", is_flag=True, help="Also what only repeats another line.")
@answers
def events(
    invocation: Invocation, modules: tuple[str, ...], follow: bool, lines: int, everything: bool
) -> int:
    """Show what happened to modules and to the daemon. Ctrl-C ends -f with exit status 0.

    What a module's new state says already, its health and its one replica repeat: with -a, and as JSON, they are
    shown, too.
    """
    calm = not (everything or invocation.is_json)
    with invocation.client() as client:
        ids = selected(client, modules)
        past = _past_events(client, ids, lines, calm)
        if invocation.output == "json" and not follow:
            print(indented(past))
            return DONE
        _write_events(invocation, past)
        if follow:
            after = {"since": past[-1]["seq"]} if past else {}
            until_interrupted(lambda: _follow_events(invocation, client, ids, after, calm))
    return DONE


def _past_events(client: Client, ids: Sequence[str], limit: int, calm: bool) -> list[dict[str, Any]]:
    """The last `limit` events of these modules together (of all, if none is named), oldest first."""
    if not limit:
        return []
    asked = min(limit * OF_A_CHANGE, MOST_EVENTS) if calm else limit
    params = [{"module_id": one} for one in ids] or [{}]
    found: dict[int, dict[str, Any]] = {}
    for _, outcome in client.call_many([("get_history", {**one, "limit": asked}) for one in params]):
        if isinstance(outcome, RpcError):
            raise with_near_match(client, outcome)
        found.update((event["seq"], event) for event in outcome["events"] if _is_shown(event, calm))
    return [found[seq] for seq in sorted(found)][-limit:]


def _is_shown(event: dict[str, Any], calm: bool) -> bool:
    return not (calm and event.get("minor"))


def _follow_events(
    invocation: Invocation, client: Client, ids: Sequence[str], after: dict[str, int], calm: bool
) -> None:
    one = {"module_id": ids[0]} if len(ids) == 1 else {}
    subscription = client.subscribe("subscribe_events", {**one, **after})
    last = after.get("since", 0)
    kept = subscription.first.get("events", []) if after else []
    while True:
        fresh = [
            event for event in kept if event["seq"] > last and (not ids or event.get("module_id") in ids)
        ]
        _write_events(invocation, [event for event in fresh if _is_shown(event, calm)])
        last = max([last, *(event["seq"] for event in fresh)])
        kept = [subscription.next()["event"]]


def _write_events(invocation: Invocation, found: Iterable[dict[str, Any]]) -> None:
    page = invocation.page
    for event in found:
        if invocation.is_json:
            print(compact(event))
        elif invocation.output == "name":
            print(event.get("replica") or event.get("module_id") or "nexusd")
        else:
            concerned = clean(event.get("replica") or event.get("module_id") or "nexusd")
            told = f"{page.paint(moment(event['time']), 'dim')}  {concerned}  {_happened(event, page.state)}"
            print(*folded(told, page), sep="\n")
    sys.stdout.flush()


def _happened(event: dict[str, Any], paint: Callable[[str], str]) -> str:
    before, to = clean(event.get("from") or ""), clean(event.get("to") or "")
    what = [clean(event["kind"])] if not to or not event["kind"].endswith(".state") else []
    what += [f"{before} -> {paint(to)}" if before else paint(to)] if to else []
    reason = f": {clean(event['reason'])}" if event.get("reason") else ""
    return " ".join(what) + reason
