"""The part of the cgroup tree (version 2) that is delegated to nexusd: whether there is one, and how it is laid out.

    DELEGATED/daemon                          nexusd, its keeper, check programs; or where nexusd was started, if
                                              that was below DELEGATED (DelegateSubgroup= of systemd 254)
    DELEGATED/modules/mesh:echo#0~9f3a1c2b    one leaf for each run

Processes live in leaves alone, as the kernel wants it where controllers are on (cgroups(7)). The keeper fills the
leaves (nexusd/keeper/leaf.py); what of the limits holds is read back from the kernel, never assumed.
"""

import errno
import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from nexusd.domain import runs
from nexusd.domain.manifest import Manifest

OWN_LEAF, MODULES = "daemon", "modules"
# systemd marks what it delegates (Delegate=); the first can be read by any user (systemd's CGROUP_DELEGATION).
MARKS = ("user.delegate", "trusted.delegate")
CONTROLLERS = ("cpu", "memory", "pids")
_UNITS = (".service", ".scope", ".slice")
_PERIOD_US = 100_000  # the kernel's own default for cpu.max
_LIMIT_FILES = {"memory": "memory.max", "cpu": "cpu.max", "tasks": "pids.max"}
_CONTROLLER_OF = {"memory": "memory", "cpu": "cpu", "tasks": "pids"}


class NotDelegated(Exception):
    """There is no part of the tree that nexusd may rule; the text says why."""


class Place(NamedTuple):
    """The folder that is delegated to this process, and the one that it is in: the same, or below."""

    root: str
    own: str


class Used(NamedTuple):
    """What a leaf has used, in all its processes. memory: None without the memory controller."""

    cpu_s: float
    memory_bytes: int | None


@dataclass(frozen=True, slots=True)
class Tree:
    """A delegated part, laid out; controllers: those that leaves have."""

    root: str
    controllers: frozenset[str]

    def leaf(self, run: str) -> str:
        return os.path.join(self.root, MODULES, leaf_name(run))

    def described(self) -> str:
        limits = ", ".join(sorted(possible(self.controllers)))
        return f"in cgroups below {self.root}, which hold {f'the limits {limits}' if limits else 'no limits'}"

    def remove_unused(self, in_use: Collection[str]) -> None:
        """What keepers that were killed left. One that somebody lives in stays: it is not ours to judge."""
        folder = os.path.join(self.root, MODULES)
        for entry in tuple(os.scandir(folder)):
            if entry.is_dir() and entry.path not in in_use:
                _remove(entry.path)


def leaf_name(run: str) -> str:
    """Colon and tilde keep it apart from the kernel's files, which share the folder."""
    key = runs.parse(run)
    return f"{key.module_id.replace('/', ':')}#{key.index}~{key.token}"


def limits(manifest: Manifest, controllers: Collection[str]) -> dict[str, str]:
    """What to write to which file of a leaf, as far as the controllers are there."""
    wanted, texts = manifest.limits, {}
    if wanted.memory is not None and "memory" in controllers:
        texts = {"memory.max": str(int(wanted.memory)), "memory.oom.group": "1"}
    if wanted.cpu is not None and "cpu" in controllers:
        texts["cpu.max"] = f"{max(1000, round(wanted.cpu * _PERIOD_US))} {_PERIOD_US}"  # 1 ms is the least
    if wanted.tasks is not None and "pids" in controllers:
        texts["pids.max"] = str(wanted.tasks)
    return texts


def possible(controllers: Collection[str]) -> frozenset[str]:
    """The limits that leaves can hold."""
    return frozenset(name for name, controller in _CONTROLLER_OF.items() if controller in controllers)


def held(leaf: str) -> frozenset[str]:
    """The limits that the kernel holds for this leaf now, as it says itself."""
    texts = {name: _read(os.path.join(leaf, file)) for name, file in _LIMIT_FILES.items()}
    return frozenset(name for name, text in texts.items() if text and not text.startswith("max"))


def used(leaf: str) -> Used | None:
    """None when the leaf is gone."""
    fields = dict(line.split() for line in _read(os.path.join(leaf, "cpu.stat")).splitlines())
    if "usage_usec" not in fields:
        return None
    memory = _read(os.path.join(leaf, "memory.current"))
    return Used(int(fields["usage_usec"]) / 1e6, int(memory) if memory else None)


def find(own: str = "/proc/self/cgroup", mounts: str = "/proc/self/mountinfo") -> Place:
    """Raises NotDelegated."""
    folder, top = _own_folder(own, mounts)
    path = folder
    if not _is_marked(path):
        # It may be in a leaf of the delegated part already: a former nexusd's, or DelegateSubgroup=. A unit never
        # is: what is delegated above it is the user's systemd's (user@1000.service).
        if path == top or path.endswith(_UNITS) or not _is_marked(os.path.dirname(path)):
            raise NotDelegated("its cgroup is not delegated to it (systemd: Delegate=yes)")
        path = os.path.dirname(path)
    if not os.path.exists(os.path.join(path, "cgroup.kill")):
        raise NotDelegated("the kernel has no cgroup.kill (Linux 5.14) here")
    for name in ("", "cgroup.procs", "cgroup.subtree_control"):
        if not os.access(os.path.join(path, name), os.W_OK):
            raise NotDelegated(f"{os.path.join(path, name)} is not writable for uid {os.getuid()}")
    return Place(path, folder)


def lay_out(place: Place) -> Tree:
    """Move into a leaf, make the folder of the modules' leaves, switch controllers on. Raises NotDelegated.

    Controllers only where this process was started in a leaf: with them on, the kernel lets nobody into the inner
    node, and systemd could not start the next nexusd there while modules run (EBUSY, 219/CGROUP).
    """
    root, ours = place.root, os.path.join(place.root, OWN_LEAF)
    is_in_leaf_of_another = place.own not in (root, ours)
    try:
        for folder in (place.own if is_in_leaf_of_another else ours, os.path.join(root, MODULES)):
            os.makedirs(folder, exist_ok=True)
        _move_all(root, place.own if is_in_leaf_of_another else ours)
        there = _read(os.path.join(root, "cgroup.controllers")).split() if is_in_leaf_of_another else []
        for folder in (root, os.path.join(root, MODULES)):
            _switch_on([one for one in CONTROLLERS if one in there], folder)
    except OSError as error:
        raise NotDelegated(f"{error.filename or root}: {error.strerror}") from error
    on = _read(os.path.join(root, MODULES, "cgroup.subtree_control")).split()
    return Tree(root, frozenset(on) & frozenset(CONTROLLERS))


def _own_folder(own: str, mounts: str) -> tuple[str, str]:
    """Of this process, and where the tree that it sees is mounted."""
    line = next((line for line in _read(own).splitlines() if line.startswith("0::/")), None)
    if line is None:
        raise NotDelegated("this host has no cgroup version 2")
    path = line[3:]
    for mount in _read(mounts).splitlines():
        before, _, after = mount.partition(" - ")
        if after.split()[:1] == ["cgroup2"]:
            top, point = (_unescaped(text) for text in before.split()[3:5])
            if path == top or path.startswith(top.rstrip("/") + "/"):
                return os.path.normpath(point + "/" + path[len(top.rstrip("/")) :]), os.path.normpath(point)
    raise NotDelegated("no cgroup version 2 that holds this process is mounted")


def _unescaped(text: str) -> str:
    """mountinfo has blanks and the like as octal numbers (proc(5))."""
    return text.encode().decode("unicode_escape") if "\\" in text else text


def _is_marked(path: str) -> bool:
    for mark in MARKS:
        try:
            if os.getxattr(path, mark) == b"1":
                return True
        except OSError:  # it has none, or it is not ours to read
            continue
    return False


def _move_all(source: str, target: str) -> None:
    """One by one; those that are forked meanwhile are found in the next round."""
    while pids := _read(os.path.join(source, "cgroup.procs")).split():
        for pid in pids:
            try:
                _write(os.path.join(target, "cgroup.procs"), pid)
            except OSError as error:
                if error.errno != errno.ESRCH:
                    raise


def _switch_on(controllers: Iterable[str], folder: str) -> None:
    """Each for itself: one that can't be had does not keep others from being used."""
    for name in controllers:
        try:
            _write(os.path.join(folder, "cgroup.subtree_control"), f"+{name}")
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM):
                raise


def _remove(path: str) -> None:
    for folder, _, _ in os.walk(path, topdown=False):
        try:
            os.rmdir(folder)
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.ENOENT):
                raise
            return


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error
    finally:
        os.close(descriptor)


def _read(path: str) -> str:
    """Empty when it is not there."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError:  # ENOENT, or ENODEV: its folder was removed meanwhile
        return ""
