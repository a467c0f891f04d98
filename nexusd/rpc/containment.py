"""What holds a module's processes together and which of its limits are in force, as the API shows it.

Told of the replicas that run, as the kernel has them; of a module without any, what its next one would have.
"""

from typing import Any

from nexusd.domain.module import Module
from nexusd.ports import Containment

_BY_RLIMITS = ("memory", "files")  # of each process, not of all together


def shown(module: Module, containment: Containment) -> dict[str, Any]:
    """`by`: cgroup (killed by cgroup.kill), walk (found one by one in /proc), or mixed while both are in use."""
    leaves = [containment.leaf_of(run) for run in _runs(module)]
    ways = {"cgroup" if leaf else "walk" for leaf in leaves} or {"walk" if containment.reason else "cgroup"}
    by = ways.pop() if len(ways) == 1 else "mixed"
    reason = None if by == "cgroup" else containment.reason or "started before cgroups were in force"
    return {"by": by, "reason": reason}


def limits(module: Module, containment: Containment) -> dict[str, Any]:
    """What is in force, not what was wished. `by` names for each limit what holds it in every replica."""
    if module.definition is None:
        return {"enforced_by": "none"}
    wish = module.definition.manifest.limits
    memory = int(wish.memory) if wish.memory is not None else None
    wanted = {"memory": memory, "cpu": wish.cpu, "tasks": wish.tasks, "files": wish.files}
    given = {name: value for name, value in wanted.items() if value is not None}
    held = [containment.held(run) for run in _runs(module)] or [containment.possible]
    by = {name: _holder(name, all(name in one for one in held)) for name in given}
    not_enforced = [name for name, holder in by.items() if holder == "none"]
    return {"enforced_by": _most(list(by.values())), **given, "by": by, "not_enforced": not_enforced}


def _runs(module: Module) -> list[str]:
    return [replica.run for replica in module.replicas if replica.run is not None]


def _holder(limit: str, is_in_every_leaf: bool) -> str:
    if is_in_every_leaf:
        return "cgroup"
    return "rlimits" if limit in _BY_RLIMITS else "none"


def _most(holders: list[str]) -> str:
    """One word for all of them; `by` has the rest."""
    return next((word for word in ("cgroup", "rlimits") if word in holders), "none")
