"""Which modules there are: the folders on disk, judged, put into the fleet, and held against it later.

It starts and stops nothing but what appears or comes back; reading manifests is `system.manifests`'s.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from nexusd.domain.access import SecurityContext, permits
from nexusd.domain.events import Load, Put, Want
from nexusd.domain.fleet import circle_with, graph_of
from nexusd.domain.graph import cycles
from nexusd.domain.manifest import Definition, Fault
from nexusd.domain.module import Module, count_with
from nexusd.supervisor import Supervisor
from nexusd.system.keeper_news import Former
from nexusd.system.manifests import MANIFEST, Found, discover, missing_paths, read_module
from nexusd.system.store import StoredModule


class Catalogue:
    def __init__(
        self,
        paths: Sequence[str],
        supervisor: Supervisor,
        context: SecurityContext,
        stored: Callable[[], Mapping[str, StoredModule]],
        restored: Callable[[str], Former | None],
        warn: Callable[[str], None],
        is_copy: Callable[[Definition], bool],
    ) -> None:
        self.paths = tuple(paths)
        self._supervisor = supervisor
        self._context = context
        self._read_stored = stored
        self._stored = stored()
        self._restored = restored
        self._warn = warn
        self._is_copy = is_copy

    async def discover(self) -> list[Found]:
        """In a thread: it reads and hashes files."""
        found = await asyncio.to_thread(discover, self.paths)
        for fault in await asyncio.to_thread(missing_paths, self.paths):
            self._warn(str(fault))
        return judged(found, self._context)

    def load(self, found: Iterable[Found]) -> None:
        """Put what was found into the fleet, with what a former nexusd left of it."""
        self._supervisor.handle(Load(tuple(self._module(one) for one in found)))

    def start_wanted(self) -> None:
        """Start what is to run and was never asked to before."""
        modules = self._supervisor.fleet.modules.values()
        fresh = tuple(module.id for module in modules if self._is_to_be_started(module))
        if fresh:
            self._supervisor.handle(Want(fresh, True))

    def refresh(self, folders: Iterable[Found]) -> dict[str, Any]:
        """Hold the fleet against what lies on disk now. What runs goes on; a changed module waits for its reload.

        Nothing awaits in here: a module that moved meanwhile would be put back to where it was.
        """
        self._stored = self._read_stored()
        before = dict(self._supervisor.fleet.modules)
        found = {one.id: one for one in folders}
        added = [one for one in found if one not in before]
        self.load(found[module_id] for module_id in added)
        changed = [one for one in found if one in before and self._refresh(found[one])]
        removed = [one for one in before if one not in found and self._miss(one)]
        self.start_wanted()
        faults = {one: [str(fault) for fault in found[one].faults] for one in found if found[one].faults}
        running_on = [one for one in removed if one in self._supervisor.fleet.modules]
        told = {"added": added, "changed": changed, "removed": removed, "running_on": running_on}
        return {**told, "invalid": list(faults), "faults": faults}

    async def reread(self, module: Module) -> Definition | None:
        found = await asyncio.to_thread(read_module, Path(module.folder), module.id)
        found = _fit_to_load(found, self._context)
        if found.definition is None and module.id in self._supervisor.fleet.modules:
            self._refresh(found)
        return found.definition

    def _module(self, found: Found) -> Module:
        """As it lies on disk, with what the operator once said and what a former nexusd left running."""
        former = self._restored(found.id)
        definition = found.definition or (former.definition if former else None)
        now = time.monotonic()
        module = Module(found.id, found.folder, definition, now, faults=found.faults)
        if definition is None:
            return module
        stored = self._stored.get(found.id, StoredModule())
        in_force = self._in_force(former, found.folder) if former else definition
        manifest = in_force.manifest
        count = manifest.replicas if stored.count is None else min(stored.count, manifest.max_replicas)
        module = replace(module, count=count, configured=stored.configured)
        if former is not None:
            module = replace(
                module,
                definition=in_force,
                wanted=self._wish(found.id, definition),
                asked=True,
                generation=former.generation,
                since=former.since,
                replicas=former.replicas,
                pending=definition if former.definition.digest != definition.digest else None,
            )
        elif stored.started is False:
            module = replace(module, asked=True)
        return module

    def _in_force(self, former: Former, folder: str) -> Definition:
        """With its code where it lies now: in the module's folder, or in a copy that a rolling reload left."""
        if self._is_copy(former.definition):
            return former.definition
        return replace(former.definition, folder=folder)

    def _is_to_be_started(self, module: Module) -> bool:
        return module.definition is not None and not module.asked and self._wish(module.id, module.definition)

    def _wish(self, module_id: str, definition: Definition) -> bool:
        """What the operator last said; what the manifest says where nobody ever said anything."""
        stored = self._stored.get(module_id)
        asked = stored.started if stored else None
        return definition.manifest.autostart if asked is None else asked

    def _refresh(self, found: Found) -> bool:
        """Hold a module in the fleet against its folder; True when the folder has something new."""
        module = self._supervisor.fleet.modules[found.id]
        if module.definition is None:
            if found.definition is not None:
                self._supervisor.handle(Put(found.id, self._module(found)))
            elif found.faults != module.faults:
                self._supervisor.handle(Put(found.id, replace(module, faults=found.faults)))
            return found.definition is not None
        is_new = found.definition is not None and found.definition.digest != module.definition.digest
        pending = found.definition if is_new else None
        fresh = replace(module, pending=pending, faults=found.faults, gone=False)
        if pending and not module.is_active and not circle_with(self._supervisor.fleet, module, pending):
            count = count_with(module, pending)
            fresh = replace(fresh, definition=pending, count=count, pending=None)
            fresh = replace(fresh, generation=module.generation + 1)
        if fresh != module:
            self._supervisor.handle(Put(found.id, fresh))
        return is_new

    def _miss(self, module_id: str) -> bool:
        """A module whose folder is gone: dropped, or kept as it is while it runs."""
        module = self._supervisor.fleet.modules[module_id]
        if module.is_active or module.wanted:
            if not module.gone:
                self._supervisor.handle(Put(module.id, replace(module, gone=True)))
            return not module.gone
        self._supervisor.handle(Put(module.id, None))
        return True


def judged(found: list[Found], context: SecurityContext) -> list[Found]:
    """What was found, with the faults that no manifest shows by itself: circles, permissions."""
    return [_fit_to_load(one, context) for one in _without_cycles(found)]


def _fit_to_load(found: Found, context: SecurityContext) -> Found:
    """A module may ask for permissions; where the daemon's security context lacks one it is not loaded."""
    if found.definition is None:
        return found
    manifest, file = found.definition.manifest, f"{found.folder}/{MANIFEST}"
    faults = []
    held = context.held()
    missing = [one for one in manifest.permissions if not permits(held, one)]
    if missing:
        holder = f"permissions that {context.principal} holds"
        faults.append(Fault(file, "permissions", holder, ", ".join(missing)))
    return replace(found, definition=None, faults=tuple(faults)) if faults else found


def _without_cycles(found: list[Found]) -> list[Found]:
    """Modules that wait for each other in a circle could never start: each is told the whole circle."""
    modules = [Module(one.id, one.folder, one.definition, 0.0) for one in found]
    circle_of: dict[str, tuple[str, ...]] = {}
    for circle in cycles(graph_of(modules)):
        for module_id in circle:
            circle_of.setdefault(module_id, circle)
    return [_in_circle(one, circle_of[one.id]) if one.id in circle_of else one for one in found]


def _in_circle(found: Found, circle: tuple[str, ...]) -> Found:
    fault = Fault(f"{found.folder}/{MANIFEST}", "requires", "no circle of modules", " → ".join(circle))
    return replace(found, definition=None, faults=(*found.faults, fault))
