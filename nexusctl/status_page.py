"""The status as an operator reads it: a table of modules, a page about one. Nothing is asked here."""

from __future__ import annotations

from nexusctl.output import GAP, clean, clipped, columns, moment, pairs, span, value_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from nexusctl.output import Page

    Item = dict[str, Any]

HEADING = ("MODULE", "STATE", "HEALTH", "REPLICAS", "UPTIME", "RESTARTS")
RIGHT = frozenset({3, 5})
NARROWEST_NOTE = 24


def fleet_page(status: Item, items: Sequence[Item], page: Page, now: float) -> list[str]:
    """A line about the daemon, its warnings, then a line for each module."""
    told = [
        _daemon_line(status, page),
        *(page.paint(f"warning: {clean(w)}", "yellow") for w in _warnings(status)),
    ]
    if not items:
        return [*told, "", "no modules", "next: nexusctl new GROUP/NAME --into DIR"]
    reasons = [clean(item.get("reason") or "") for item in items]
    table = _fitting([HEADING, *(_row(item, now) for item in items)], page)
    return [*told, "", *_beside_or_below(table, "REASON", reasons, page)]


def _fitting(rows: list[tuple[str, ...]], page: Page) -> list[str]:
    """The table, without its last columns where the ids are too long for all of them."""
    while page.width is not None and len(rows[0]) > 3 and _table_width(rows) > page.width:
        rows = [row[:-1] for row in rows]
    return columns(rows, page, RIGHT)


def _table_width(rows: list[tuple[str, ...]]) -> int:
    return sum(max(map(len, column)) + len(GAP) for column in zip(*rows, strict=True)) - len(GAP)


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


def _beside_or_below(table: list[str], title: str, notes: list[str], page: Page) -> list[str]:
    """A last column of notes if a legible part of it fits in the width, else each note below its row."""
    if not any(notes):
        return table
    plain = [_visible(line) for line in table]
    left = max(map(len, plain)) + len(GAP)
    if page.width is not None and page.width - left < NARROWEST_NOTE:
        below = [[f"    {clipped(note, page.width - 6)}"] if note else [] for note in ["", *notes]]
        return [part for line, note in zip(table, below, strict=True) for part in (line, *note)]
    room = None if page.width is None else page.width - left
    texts = [page.paint(title, "dim"), *(clipped(note, room) for note in notes)]
    pads = [" " * (left - len(line)) for line in plain]
    rows = zip(table, pads, texts, strict=True)
    return [f"{line}{pad}{text}" if text else line for line, pad, text in rows]


def _visible(line: str) -> str:
    """The line without its colours."""
    first, *rest = line.split("\x1b[")
    return first + "".join(part.partition("m")[2] for part in rest)


def module_page(detail: Item, page: Page, now: float) -> list[str]:
    """All about one module: its state, facts, replicas, faults, and what to do next if something is wrong."""
    told = [_module_line(detail, page)]
    if detail.get("description"):
        told.append(f"  {clean(detail['description'])}")
    told += ["", *pairs(_facts(detail, now))]
    if detail.get("instances"):
        told += ["", *_replica_table(detail, page, now)]
    if detail.get("faults"):
        told += [
            "",
            f"  faults in {clean(detail['folder'])}:",
            *(_fault_line(fault, detail["folder"]) for fault in detail["faults"]),
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
        ("health", [clean(reason) for reason in detail.get("health_reasons") or []]),
        ("since", f"{moment(since)} ({span(now - since)})" if since else ""),
        ("version", clean(version)),
        ("critical", "yes" if detail.get("critical") else ""),
        ("restarts", str(detail["restarts"]) if detail.get("restarts") else ""),
        ("requires", listed(detail.get("requires") or [])),
        ("after", listed(detail.get("after") or [])),
        ("required by", listed(detail.get("required_by") or [])),
        ("permissions", listed(detail.get("permissions") or [])),
        ("limits", _limits(detail.get("limits") or {})),
        ("config", [f"{key} = {value_text(value)}" for key, value in (detail.get("config") or {}).items()]),
        ("folder", clean(detail.get("folder") or "")),
        ("reload", "the files have changed since they were loaded" if detail.get("pending_reload") else ""),
    ]
    return [(name, value) for name, value in facts if value]


def _limits(limits: Item) -> str:
    given = [
        f"{name} {_amount(name, value)}" for name, value in limits.items() if name != "enforced_by" and value
    ]
    return f"{', '.join(given)} (by {limits.get('enforced_by', '?')})" if given else ""


def _amount(name: str, value: object) -> str:
    """Memory in MiB; everything else as it is."""
    return f"{value / 2**20:g} MiB" if name == "memory" and isinstance(value, int) else value_text(value)


def _replica_table(detail: Item, page: Page, now: float) -> list[str]:
    rows: list[tuple[str, ...]] = [("REPLICA", "STATE", "PID", "UPTIME", "RESTARTS", "LAST EXIT")]
    rows += [_replica_row(one, now) for one in detail["instances"]]
    notes = [
        ", ".join(filter(None, (clean(one.get("status_text") or ""), _next_attempt(one))))
        for one in detail["instances"]
    ]
    table = columns(_without_empty_columns(rows), page, frozenset({4}))
    return [f"  {line}" for line in _beside_or_below(table, "STATUS", notes, page.narrower(2))]


def _replica_row(one: Item, now: float) -> tuple[str, ...]:
    state = "not ready" if one["state"] == "started" and not one["ready"] else one["state"]
    up, restarts = span(one["uptime_seconds"]), str(one["restarts"])
    return (
        f"#{one['index']}",
        state,
        str(one["pid"] or "-"),
        up,
        restarts,
        _last_exit(one.get("last_exit"), now),
    )


def _without_empty_columns(rows: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    kept = [i for i in range(len(rows[0])) if any(row[i] for row in rows[1:])]
    return [tuple(row[i] for i in kept) for row in rows]


def _last_exit(last: Item | None, now: float) -> str:
    return f"{clean(last['description'])}, {span(now - last['at'])} ago" if last else ""


def _next_attempt(one: Item) -> str:
    seconds = one.get("next_attempt_in_s")
    return "" if seconds is None else f"next attempt in {seconds:.1f}s"


def _fault_line(fault: Item, folder: str) -> str:
    hint = f"; {clean(fault['hint'])}" if fault.get("hint") else ""
    where = ": ".join(filter(None, (clean(fault["file"]).removeprefix(f"{folder}/"), clean(fault["key"]))))
    return f"    {where}: expected {clean(fault['expected'])}, found {clean(fault['found'])}{hint}"


def _modules_folder(detail: Item) -> str:
    """The folder that holds GROUP/NAME."""
    return clean(detail["folder"]).removesuffix(f"/{detail['id']}")


def next_step(detail: Item) -> str | None:
    """The command that an operator would type next, or none if all is as it should be."""
    module_id, state = detail["id"], detail["state"]
    if state == "invalid":
        return f"nexusctl check {_modules_folder(detail)}, and nexusctl reload once it is correct"
    if state in ("failed", "backoff"):
        return f"nexusctl logs {module_id}"
    if state in ("stopped", "loaded"):
        return f"nexusctl start {module_id}"
    if detail.get("pending_reload"):
        return f"nexusctl reload {module_id}"
    if state == "started" and detail["health"] != "healthy":
        return f"nexusctl logs {module_id}"
    return None
