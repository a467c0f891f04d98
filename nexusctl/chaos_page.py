"""An experiment's report, a plan and a list of experiments as an operator reads them. Pure: values in, lines out."""

from __future__ import annotations

from nexusctl.output import Page, clean, columns, fitting, moment, pairs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

COLOURS = {"recovered": "green", "gave up": "red", "not recovered": "red"}
OF_TARGETS = ("REPLICA", "PID", "DETECTED", "RECOVERED", "NOTICED")
OF_LIST = ("ID", "MODULE", "OUTCOME", "DETECTED", "RECOVERED", "INJECTED", "BY")


def report_lines(report: dict[str, Any], page: Page) -> list[str]:
    """Verdict first, then what happened to whom, then the circumstances."""
    verdict = report["verdict"]
    head = f"{clean(report['id'])}  {clean(report['experiment'])} of {clean(report['module_id'])}: "
    if verdict is None:
        first = [head + page.paint(f"under way ({clean(report['phase'])})", "cyan")]
    else:
        outcome = page.paint(clean(verdict["outcome"]), COLOURS.get(verdict["outcome"], "yellow"))
        first = [head + outcome, f"  {clean(verdict['reason'])}"]
    table = [f"  {line}" for line in columns(_targets(report["targets"]), page, frozenset({1}))]
    return [*first, "", *table, "", *pairs(_circumstances(report), width=page.width)]


def plan_lines(plan: dict[str, Any], page: Page) -> list[str]:
    names = [f"{clean(one['replica'])} (pid {one['pid']})" for one in plan["targets"]]
    would = f"{clean(plan['signal'])} to {', '.join(names)}"
    repeat = f"the same again: --seed {plan['seed']}"
    return [f"{clean(plan['experiment'])} of {clean(plan['module_id'])} would send {would}", f"  {repeat}"]


def list_lines(experiments: Sequence[dict[str, Any]], page: Page) -> list[str]:
    if not experiments:
        return ["no experiments yet"]
    return fitting([OF_LIST, *map(_row, experiments)], page, frozenset({3, 4}), least=5)


def lasted(seconds: float | None) -> str:
    """Short times to the millisecond; a dash where it never happened."""
    if seconds is None:
        return "-"
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _targets(targets: Sequence[dict[str, Any]]) -> list[Sequence[str]]:
    rows = [
        (
            clean(one["replica"]),
            str(one["pid"]),
            lasted(one["detected_s"]),
            lasted(one["recovered_s"]),
            clean(one["noticed"] or "-"),
        )
        for one in targets
    ]
    return [OF_TARGETS, *rows]


def _circumstances(report: dict[str, Any]) -> list[tuple[str, str]]:
    injected = f"{clean(report['signal'])} at {moment(report['injected_at'])}"
    return [
        ("injected", injected if report["injected_at"] else "-"),
        ("rollback", clean(report["rollback"] or "-")),
        ("steady before", _steadiness(report["steady_before"])),
        ("steady after", _steadiness(report["steady_after"])),
        ("replicas, seed", f"{clean(report['replicas'])}, {report['seed']}"),
        ("duration", lasted(report["duration_s"])),
        ("requested by", clean(report["requested_by"])),
        *([("warning", clean(report["warning"]))] if report.get("warning") else []),
    ]


def _steadiness(found: dict[str, Any] | None) -> str:
    if found is None:
        return "-"
    count = f"{found['replicas']['ready']}/{found['replicas']['wanted']} ready"
    told = f"{'yes' if found['steady'] else 'no'}: {found['state']}, {count}, {found['health']}"
    return clean("; ".join([told, *found["reasons"]]))


def _row(one: dict[str, Any]) -> Sequence[str]:
    verdict = one["verdict"]
    return (
        clean(one["id"]),
        clean(one["module_id"]),
        clean(verdict["outcome"] if verdict else "under way"),
        lasted(one["detected_s"]),
        lasted(one["recovered_s"]),
        moment(one["injected_at"]),
        clean(one["requested_by"]),
    )
