"""start, stop, restart, reload, scale and heal for several modules: all asked for together, each told as it is done."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import click

from nexusctl.client import Client, RpcError
from nexusctl.complaint import complain
from nexusctl.exits import DONE, worst
from nexusctl.invocation import GRACE_S, Invocation
from nexusctl.output import compact, folded, indented
from nexusctl.progress import Progress
from nexusctl.selection import is_single, selected, with_near_match

Outcome = Any | RpcError


class Action(NamedTuple):
    """What is asked of each module, and how its result reads."""

    verb: str
    method: str
    told: Callable[[dict[str, Any]], str]
    params: dict[str, Any] = {}  # noqa: RUF012  never changed, only copied from
    waits: bool = True
    status: Callable[[dict[str, Any]], int] = lambda _result: DONE
    by_replica: bool = False  # whether MODULE#2 means one replica


def carry_out(invocation: Invocation, action: Action, words: Sequence[str]) -> int:
    """Ask for all, print each outcome as it comes. The worst of the outcomes is the exit status."""
    _refuse_replicas(action, words)
    with invocation.client() as client:
        ids = selected(client, words)
        results: list[Any] = []
        statuses: list[int] = []
        with Progress(invocation, list(map(_module_of, ids)) if action.waits else []) as progress:
            for module_id, outcome in _outcomes(invocation, action, client, ids):
                with progress.aside(_module_of(module_id)):
                    statuses.append(_tell(invocation, action, client, module_id, outcome, results))
    if invocation.output == "json" and results:
        print(indented(results[0] if is_single(words) else results))
    return worst(statuses)


def _refuse_replicas(action: Action, words: Sequence[str]) -> None:
    named = [word for word in words if "#" in word and not action.by_replica]
    if named:
        way = f"nexusctl restart {named[0]} restarts one replica"
        raise click.UsageError(f"{action.verb} takes whole modules only, not {named[0]}; {way}")


def _tell(
    invocation: Invocation,
    action: Action,
    client: Client,
    module_id: str,
    outcome: Outcome,
    results: list[Any],
) -> int:
    if isinstance(outcome, RpcError):
        error = with_near_match(client, outcome)
        return complain(error, invocation.output, action.verb, module_id)
    results.append(outcome)
    if invocation.output == "table":
        told = action.told(outcome) if action.waits else _asked(action, outcome)
        print(*folded(f"{module_id} {told}", invocation.page), sep="\n")
    elif invocation.output == "jsonl":
        print(compact(outcome))
    elif invocation.output == "name":
        print(module_id)
    sys.stdout.flush()
    return action.status(outcome)


def _asked(action: Action, outcome: dict[str, Any]) -> str:
    return f"is to {action.verb}, now {outcome.get('state', 'unknown')}"


def _outcomes(
    invocation: Invocation, action: Action, client: Client, ids: Sequence[str]
) -> Iterator[tuple[str, Outcome]]:
    """The outcomes as they come; what others in `ids` stood in the way of is asked for again after them."""
    left = list(ids)
    ended: set[str] = set()
    while left:
        refused: list[tuple[str, RpcError]] = []
        for module_id, outcome in _asked_together(invocation, action, client, left):
            if _stands_behind_others(outcome, ids):
                refused.append((module_id, outcome))
                continue
            if not isinstance(outcome, RpcError):
                ended.add(module_id)
            yield module_id, outcome
        left = [one for one, error in refused if ended.issuperset(error.data["required_by"])]
        yield from ((one, error) for one, error in refused if one not in left)


def _asked_together(
    invocation: Invocation, action: Action, client: Client, ids: Sequence[str]
) -> Iterator[tuple[str, Outcome]]:
    wait = {"wait": True, "timeout": invocation.action_timeout} if action.waits else {"wait": False}
    requests = [(action.method, {**_target(action, one), **action.params, **wait}) for one in ids]
    patience = invocation.action_timeout + GRACE_S if action.waits else invocation.read_timeout
    for place, outcome in client.call_many(requests, patience):
        yield ids[place], outcome


def _target(action: Action, word: str) -> dict[str, Any]:
    module_id, mark, index = word.partition("#")
    if action.by_replica and mark and index.isdecimal():
        return {"module_id": module_id, "replica": int(index)}
    return {"module_id": word}


def _module_of(word: str) -> str:
    return word.partition("#")[0]


def _stands_behind_others(outcome: Outcome, ids: Sequence[str]) -> bool:
    """Whether a stop was refused only because of modules that this very command stops as well."""
    required_by = (outcome.data.get("required_by") or []) if isinstance(outcome, RpcError) else []
    return bool(required_by) and set(ids).issuperset(required_by)
