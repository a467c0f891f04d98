"""The status as an operator reads it: a table of modules, a page about one. Nothing is asked here."""

from __future__ import annotations

import shlex

from nexusctl.output import clean, fits, fitting, hanging, moment, pairs, span, value_text, with_notes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from nexusctl.output import Page

    Item = dict[str, Any]

HEADING = ("MODULE", "STATE", "HEALTH", "REPLICAS", "UPTIME", "RESTARTS")
RIGHT = frozenset({3, 5})
MOST_WELL = 3  # of so many replicas good checks are shown, too
LONGEST_EXIT = 32  # a longer description is a sentence, and has a line of its own

_HOLDERS = {"rlimits": "rlimits, each process"}


def fleet_page(status: Item, items: Sequence[Item], page: Page, now: float) -> list[str]:
    """A line about the daemon, its warnings, then a line for each module."""
    told = [
        _daemon_line(status, page),
        *(page.paint(f"warning: {clean(w)}", "yellow") for w in _warnings(status)),
    ]
    if not items:
        folder = shlex.quote(clean(next(iter(status.get("module_paths") or []), "DIR")))
        return [*told, "", "no modules", f"next: nexusctl new GROUP/NAME --into {folder}"]
    reasons = [clean(item.get("reason") or "") for item in items]
    table = fitting([HEADING, *(_row(item, now) for item in items)], page, RIGHT)
    return [*told, "", *with_notes(table, "REASON", reasons, page)]


def _daemon_line(status: Item, page: Page) -> str:
    statistics = status["health"]["statistics"]
    healthy = f"{statistics['healthy']}/{statistics['total']} modules healthy"
    colour = "green" if statistics["healthy"] == statistics["total"] else "yellow"
    name = page.paint(f"nexusd {clean(status['version'])}", "bold")
    return f"{name}, up {span(status['uptime_seconds'])}, {page.paint(healthy, colour)}"


def _warnings(status: Item) -> list[str]:
    keeper = status.get("keeper") or {}
    lost = [] if keeper.get("connected", True) else ["the keeper is not connected"]
    return lost + list(status.get("warnings") or [])


def _row(item: Item, now: float) -> tuple[str, ...]:
    replicas = f"{item['replicas']['ready']}/{item['replicas']['wanted']}"
    up = span(now - item["since"]) if item["state"] == "started" else "-"
    return item["id"], item["state"], item["health"], replicas, up, str(item["restarts"])


def module_page(detail: Item, page: Page, now: float) -> list[str]:
    """All about one module: its state, facts, replicas, faults, and what to do next if something is wrong."""
    told = [_module_line(detail, page)]
    if detail.get("description"):
        told += hanging("  ", clean(detail["description"]), page)
    told += ["", *pairs(_facts(detail, now), width=page.width)]
    if detail.get("instances"):
        told += ["", *_replica_table(detail, page, now)]
    if detail.get("faults"):
        told += [
            "",
            f"  faults in {clean(detail['folder'])}:",
            *(
                line
                for fault in detail["faults"]
                for line in hanging("    ", _fault_text(fault, detail["folder"]), page)
            ),
        ]
    step = next_step(detail)
    return [*told, "", f"next: {step}"] if step else told


def _module_line(detail: Item, page: Page) -> str:
    state = page.state(detail["state"])
    expected = detail["state"] == detail["wanted"]
    wanted = "" if expected or detail["state"] == "invalid" else f" ({detail['wanted']} is wanted)"
    return f"{page.paint(detail['id'], 'bold')}  {state}{wanted}, {page.state(detail['health'])}"


def _facts(detail: Item, now: float) -> list[tuple[str, Any]]:
    since = detail.get("since")
    version = f"{detail.get('version') or '-'}, generation {detail.get('generation', 0)}"
    listed = ", ".join
    facts = [
        ("reason", clean(detail.get("reason") or "")),
        ("health", _health_reasons(detail)),
        ("checks", _check_lines(detail, now)),
        ("reload", _reload_lines(detail, now)),
        ("since", f"{moment(since)} ({span(now - since)})" if since else ""),
        ("version", clean(version)),
        ("critical", "yes" if detail.get("critical") else ""),
        ("restarts", str(detail["restarts"]) if detail.get("restarts") else ""),
        ("requires", listed(detail.get("requires") or [])),
        ("after", listed(detail.get("after") or [])),
        ("required by", listed(detail.get("required_by") or [])),
        ("permissions", listed(detail.get("permissions") or [])),
        ("limits", _limits(detail.get("limits") or {})),
        ("processes", _containment(detail)),
        ("log", f"journalctl -t {clean(detail['journal'])}" if detail.get("journal") else ""),
        ("config", [f"{key} = {value_text(value)}" for key, value in (detail.get("config") or {}).items()]),
        ("folder", clean(detail.get("folder") or "")),
    ]
    return [(name, value) for name, value in facts if value]


def _health_reasons(detail: Item) -> list[str]:
    """Those that say more than the state and the reason do, which stand above them."""
    known = clean(detail.get("reason") or "")
    reasons = map(clean, detail.get("health_reasons") or [])
    return [one for one in reasons if one != detail["state"] and not _says_the_same(one, known)]


def _check_lines(detail: Item, now: float) -> list[str]:
    """What each check of each replica said last; of many replicas only what is not well."""
    replicas = detail.get("instances") or []
    told = []
    for one in replicas:
        for check in one.get("checks") or []:
            if len(replicas) <= MOST_WELL or check["verdict"] != "healthy":
                place = f"#{one['index']} " if len(replicas) > 1 else ""
                told.append(f"{place}{_check_line(check, now)}")
    return told


def _check_line(check: Item, now: float) -> str:
    """`readiness, http check http://…: unhealthy, connection refused, 3 times in a row, 2s ago`"""
    often = f"{check['failures']} times in a row" if check["failures"] > 1 else ""
    when = f"{span(now - check['at'])} ago" if check["at"] else ""
    said = (_standing(check), clean(check["reason"] or ""), often, when)
    return f"{check['purpose']}, {clean(check['check'])}: {', '.join(filter(None, said))}"


def _standing(check: Item) -> str:
    """The verdict, which the header counts; where the last answer was another one, both."""
    result, verdict = check["result"], check["verdict"]
    if not result or result == verdict:
        return clean(verdict or "not asked yet")
    last = "passing" if result == "healthy" else "failing"
    return f"{last}, still {clean(verdict)}" if verdict else f"{last}, no verdict yet"


def _says_the_same(one: str, other: str) -> bool:
    return bool(one and other) and (one in other or other in one)


def _reload_lines(detail: Item, now: float) -> list[str]:
    told = []
    if refused := detail.get("refused_reload"):
        told.append(f"refused {span(now - refused['at'])} ago: {clean(refused['reason'])}")
    if detail.get("pending_reload"):
        told.append(f"files have changed: nexusctl reload {detail['id']} applies them")
    return told


def _limits(limits: Item) -> str:
    """`memory 256 MiB (cgroup), tasks 64 (not enforced)`; a daemon of before tells one word for all."""
    told = []
    for name in ("memory", "cpu", "tasks", "files"):
        if value := limits.get(name):
            holder = (limits.get("by") or {}).get(name) or limits.get("enforced_by", "?")
            idle = name in (limits.get("not_enforced") or ())
            told.append(
                f"{name} {_amount(name, value)} ({'not enforced' if idle else _HOLDERS.get(holder, holder)})"
            )
    return ", ".join(told)


def _containment(detail: Item) -> str:
    """How the processes of the module are kept together, so that none is left when it is stopped."""
    held = detail.get("containment") or {}
    by = {"cgroup": "a cgroup for each replica", "walk": "found by a walk", "mixed": "some in cgroups"}
    words = by.get(held.get("by", ""), "")
    return f"{words}; {clean(held['reason'])}" if words and held.get("reason") else words


def _amount(name: str, value: object) -> str:
    """Memory in MiB; everything else as it is."""
    return f"{value / 2**20:g} MiB" if name == "memory" and isinstance(value, int) else value_text(value)


def _replica_table(detail: Item, page: Page, now: float) -> list[str]:
    """A row for each replica; what it says and an exit that takes a sentence stand below where they are long."""
    replicas = detail["instances"]
    exits = [_last_exit(one.get("last_exit"), now) for one in replicas]
    inner = page.narrower(2)
    shown = _replica_rows(replicas, exits)
    if not all(len(_exit_words(one)) <= LONGEST_EXIT for one in replicas) or not fits(shown, inner):
        exits = [""] * len(replicas)
        shown = _replica_rows(replicas, exits)
    notes = [_note(one, detail, now, not any(exits)) for one in replicas]
    numbers = frozenset(shown[0].index(name) for name in ("GENERATION", "RESTARTS") if name in shown[0])
    table = fitting(shown, inner, numbers)
    return [f"  {line}" for line in with_notes(table, "STATUS", notes, inner)]


def _replica_rows(replicas: Sequence[Item], exits: Sequence[str]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [
        ("REPLICA", "GENERATION", "STATE", "PID", "UPTIME", "RESTARTS", "LAST EXIT")
    ]
    is_mixed = len({one["generation"] for one in replicas}) > 1
    rows += [(*_replica_row(one, is_mixed), exit) for one, exit in zip(replicas, exits, strict=True)]
    return _without_empty_columns(rows)


def _replica_row(one: Item, with_generation: bool) -> tuple[str, ...]:
    generation = str(one["generation"]) if with_generation else ""
    state = "not ready" if one["state"] == "started" and not one["ready"] else one["state"]
    pid, up = str(one["pid"] or "-"), span(one["uptime_seconds"])
    return f"#{one['index']}", generation, state, pid, up, str(one["restarts"])


def _note(one: Item, detail: Item, now: float, with_exit: bool) -> str:
    """What the replica says, when it is tried again, how it ended; nothing that the reason says already."""
    reason = clean(detail.get("reason") or "")
    said = clean(one.get("status_text") or "")
    last = one.get("last_exit") if with_exit else None
    ended = _last_exit(last, now)
    if _says_the_same(_exit_words(one), reason) and last:
        ended = f"{span(now - last['at'])} ago"
    parts = (
        "" if _says_the_same(said, reason) else said,
        _next_attempt(one),
        f"last exit: {ended}" if ended else "",
    )
    return ", ".join(filter(None, parts))


def _exit_words(one: Item) -> str:
    return clean((one.get("last_exit") or {}).get("description") or "")


def _without_empty_columns(rows: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    kept = [i for i in range(len(rows[0])) if any(row[i] for row in rows[1:])]
    return [tuple(row[i] for i in kept) for row in rows]


def _last_exit(last: Item | None, now: float) -> str:
    return f"{clean(last['description'])}, {span(now - last['at'])} ago" if last else ""


def _next_attempt(one: Item) -> str:
    seconds = one.get("next_attempt_in_s")
    return "" if seconds is None else f"next attempt in {seconds:.1f}s"


def _fault_text(fault: Item, folder: str) -> str:
    hint = f"; {clean(fault['hint'])}" if fault.get("hint") else ""
    where = ": ".join(filter(None, (clean(fault["file"]).removeprefix(f"{folder}/"), clean(fault["key"]))))
    return f"{where}: expected {clean(fault['expected'])}, found {clean(fault['found'])}{hint}"


def _modules_folder(detail: Item) -> str:
    """The folder that holds GROUP/NAME."""
    return clean(detail["folder"]).removesuffix(f"/{detail['id']}")


def next_step(detail: Item) -> str | None:
    """The command that an operator would type next, or none if all is as it should be."""
    module_id, state = detail["id"], detail["state"]
    if state == "invalid":
        return f"nexusctl check {_modules_folder(detail)}, and nexusctl reload once it is correct"
    if state == "stopped" and detail["replicas"]["wanted"] == 0:
        return f"nexusctl scale {module_id} 1"
    if state in ("stopped", "loaded"):
        return f"nexusctl start {module_id}"
    if detail.get("refused_reload"):
        return f"correct it, then nexusctl reload {module_id}"
    if detail.get("pending_reload"):
        return f"nexusctl reload {module_id}"
    if state in ("failed", "backoff"):
        return f"nexusctl logs {module_id}; correct it, then nexusctl restart {module_id}"
    if state == "started" and detail["health"] != "healthy":
        return f"nexusctl logs {module_id}"
    return None
