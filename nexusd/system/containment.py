"""What holds the processes of a run together and its limits in force: a leaf of the cgroup tree, or walk and rlimits.

Implements `ports.Containment`. It says what is, as the keeper and the kernel tell it, not what was wished.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from nexusd.domain.manifest import Manifest
from nexusd.system import cgroups
from nexusd.system.cgroups import NotDelegated, Tree


class Containment:
    def __init__(self, tree: Tree | None, reason: str | None, leaf_of: Callable[[str], str | None]) -> None:
        """reason: why there is no tree. leaf_of: the leaf that a run was born in, as its keeper tells."""
        self.tree = tree
        self.reason = reason
        self.leaf_of = leaf_of

    def described(self) -> str:
        return self.tree.described() if self.tree else f"without cgroups: {self.reason}"

    @property
    def possible(self) -> frozenset[str]:
        """The limits that a leaf would hold."""
        return cgroups.possible(self.tree.controllers) if self.tree else frozenset()

    def held(self, run: str) -> frozenset[str]:
        """The limits that the run's leaf holds."""
        leaf = self.leaf_of(run)
        return cgroups.held(leaf) if leaf else frozenset()

    def launch(self, run: str, manifest: Manifest) -> dict[str, Any]:
        """What the keeper is told of a new run's leaf; nothing where there are none."""
        if self.tree is None:
            return {}
        limits = cgroups.limits(manifest, self.tree.controllers)
        return {"leaf": {"path": self.tree.leaf(run), "limits": limits}}

    def rlimits(self, wanted: Mapping[str, int]) -> dict[str, int]:
        """Of the limits that a process itself can have those that no leaf holds."""
        return {name: value for name, value in wanted.items() if name not in self.possible}

    def tidy(self, runs: Iterable[str]) -> None:
        """Remove the empty leaves that none of these runs has, or is being given just now."""
        if self.tree is not None:
            self.tree.remove_unused({self.tree.leaf(run) for run in runs})


def contain(wanted: str, leaf_of: Callable[[str], str | None]) -> Containment:
    """wanted: `auto` or `off`, as nexusd.toml has it."""
    if wanted == "off":
        return Containment(None, 'cgroups = "off" in nexusd.toml', leaf_of)
    try:
        return Containment(cgroups.lay_out(cgroups.find()), None, leaf_of)
    except NotDelegated as why:
        return Containment(None, str(why), leaf_of)
