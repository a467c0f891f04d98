"""`status`: ask, show, answer with an exit status. Without click, so that it starts in little time."""

from __future__ import annotations

import time

from nexusctl.client import RpcError
from nexusctl.complaint import complain
from nexusctl.exits import DONE, NOT_RUNNING, worst
from nexusctl.output import compact, indented
from nexusctl.selection import NO_SUCH_MODULE, is_single, matching, no_match, with_near_match
from nexusctl.status_page import fleet_page, module_page

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from nexusctl.client import Client
    from nexusctl.invocation import Invocation


def show_status(invocation: Invocation, words: Sequence[str]) -> int:
    """The daemon and all modules; one module in full; or the table of those that several words mean."""
    with invocation.client() as client:
        if not words:
            return _show_daemon(invocation, client.call("get_status"))
        if is_single(words):
            return _show_module(invocation, client, words[0])
        return _show_some(invocation, client.call("get_status"), words)


def run_status(item: dict[str, Any]) -> int:
    """The exit status that a module's state means, whether it is wanted to run or not."""
    return DONE if item["state"] == "started" else NOT_RUNNING


def _show_daemon(invocation: Invocation, status: dict[str, Any]) -> int:
    if invocation.output == "json":
        print(indented(status))
    else:
        _show_items(invocation, status, status["modules"]["items"])
    return DONE


def _show_some(invocation: Invocation, status: dict[str, Any], words: Sequence[str]) -> int:
    """Ids that are not there are complained about one by one, the others shown."""
    items = {item["id"]: item for item in status["modules"]["items"]}
    chosen = matching([word.partition("#")[0] for word in words], list(items))
    found = [items[one] for one in chosen if one in items]
    if invocation.output == "json":
        print(indented(found))
    elif found:
        _show_items(invocation, status, found)
    paths = status.get("module_paths") or ()
    unknown = [no_match(one, list(items), paths) for one in chosen if one not in items]
    missing = [complain(error, invocation.output) for error in unknown]
    return worst([*map(run_status, found), *missing])


def _show_items(invocation: Invocation, status: dict[str, Any], items: Sequence[dict[str, Any]]) -> None:
    ordered = sorted(items, key=lambda item: tuple(item["id"].partition("/")))
    if invocation.output == "jsonl":
        print(*map(compact, ordered), sep="\n", end="\n" if ordered else "")
    elif invocation.output == "name":
        print(*(item["id"] for item in ordered), sep="\n", end="\n" if ordered else "")
    else:
        print(*fleet_page(status, ordered, invocation.page, time.time()), sep="\n")


def _show_module(invocation: Invocation, client: Client, word: str) -> int:
    """MODULE#INDEX shows the module with this replica alone."""
    module_id, mark, index = word.partition("#")
    try:
        detail = client.call("get_status", {"module_id": module_id})
    except RpcError as error:
        raise with_near_match(client, error) from None
    if mark:
        detail["instances"] = [_replica(detail, index)]
    page = invocation.page
    invocation.show(detail, lambda: "\n".join(module_page(detail, page, time.time())), module_id)
    return run_status(detail)


def _replica(detail: dict[str, Any], index: str) -> dict[str, Any]:
    replicas = {str(one["index"]): one for one in detail.get("instances") or []}
    if index not in replicas:
        there = f"it has {', '.join(f'#{one}' for one in replicas)}" if replicas else "it has none now"
        data = {
            "kind": "no_such_module",
            "module_id": detail["id"],
            "hint": f"nexusctl status {detail['id']}",
        }
        raise RpcError(NO_SUCH_MODULE, f"{detail['id']} has no replica #{index}; {there}", data)
    found: dict[str, Any] = replicas[index]
    return found
