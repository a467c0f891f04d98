"""Which module requires or follows which: the order of starting and stopping, and what stands in its way.

Pure relations between ids; whether a module runs is the fleet's to know.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Graph:
    """`requires` and `after` as the manifests have them, and both turned round."""

    requires: Mapping[str, tuple[str, ...]]
    after: Mapping[str, tuple[str, ...]]
    required_by: Mapping[str, tuple[str, ...]] = field(init=False)
    before: Mapping[str, tuple[str, ...]] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "required_by", _turned_round(self.requires))
        object.__setattr__(self, "before", _turned_round(self.after))

    def neighbours(self, module_id: str) -> Iterable[str]:
        """Whom a change of this module may concern."""
        for relation in (self.requires, self.after, self.required_by, self.before):
            yield from relation.get(module_id, ())


def _turned_round(relation: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    turned: dict[str, list[str]] = {}
    for one, others in relation.items():
        for other in others:
            turned.setdefault(other, []).append(one)
    return {one: tuple(sorted(others)) for one, others in turned.items()}


def closure(relation: Mapping[str, tuple[str, ...]], starts: Iterable[str]) -> set[str]:
    """All that can be reached from `starts`, without the starts themselves unless a cycle leads back."""
    found: set[str] = set()
    queue = [other for one in starts for other in relation.get(one, ())]
    while queue:
        one = queue.pop()
        if one not in found:
            found.add(one)
            queue.extend(relation.get(one, ()))
    return found


def cycles(graph: Graph) -> list[tuple[str, ...]]:
    """Cycles in full and closed, ("a/x", "b/y", "a/x"), none twice; without the modules of these there is none.

    Found by depth-first search: of cycles that share modules some may not be among them.
    """
    follows = {
        one: tuple(dict.fromkeys((*graph.requires.get(one, ()), *graph.after.get(one, ()))))
        for one in {*graph.requires, *graph.after}
    }
    done: set[str] = set()
    found: list[tuple[str, ...]] = []
    for start in sorted(follows):
        if start not in done:
            found.extend(_cycles_from(start, follows, done))
    return found


def _cycles_from(
    start: str, follows: Mapping[str, tuple[str, ...]], done: set[str]
) -> Iterable[tuple[str, ...]]:
    path: list[str] = [start]
    on_path = {start}
    branches = [iter(follows.get(start, ()))]
    while branches:
        following = next(branches[-1], None)
        if following is None:
            branches.pop()
            left = path.pop()
            on_path.discard(left)
            done.add(left)
        elif following in on_path:
            yield (*path[path.index(following) :], following)
        elif following not in done:
            path.append(following)
            on_path.add(following)
            branches.append(iter(follows.get(following, ())))
