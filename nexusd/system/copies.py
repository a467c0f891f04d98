"""Copies of the code in force, so that a rolling reload can go back although the files have changed.

Implements `ports.Copies`. Code is what a module's digest covers; all else in a copy is a link to the module's
folder. What is copied when is decided by who asks; one thread does it, a large module takes half a second.
"""

import asyncio
import logging
import os
import shutil
import stat
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from msgspec.structs import replace

from nexusd.domain.manifest import Definition
from nexusd.domain.module import Module
from nexusd.system.manifests import MANIFEST, code_files, read_module

log = logging.getLogger("nexusd.copies")

MOST_FILES = 2_000
MOST_BYTES = 16 * 2**20


class CodeCopies:
    def __init__(self, state: str) -> None:
        self._root = os.path.join(state, "code")
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="copies")
        self._last: Future[None] | None = None

    def keep(self, definition: Definition) -> None:
        """Nothing is kept of what is too large, or is on disk no more as the definition has it."""
        if not self.holds(definition) and not os.path.isdir(self._place(definition)):
            self._do(lambda: self._copy_or_say(definition))

    async def settled(self) -> None:
        """Returns when all that was asked for is done."""
        if self._last is not None:
            await asyncio.wrap_future(self._last)

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def kept(self, definition: Definition) -> Definition | None:
        place = self._place(definition)
        return replace(definition, folder=place) if os.path.isdir(place) else None

    def holds(self, definition: Definition) -> bool:
        """Whether this definition's folder is a copy, and is there."""
        return definition.folder == self._place(definition) and os.path.isdir(definition.folder)

    def tidy(self, modules: Iterable[Module]) -> None:
        """Remove the copies that none of all modules has in force or under way."""
        in_force = {self._place(definition) for module in modules for definition in _definitions(module)}
        self._do(lambda: self._remove_others(in_force))

    def _do(self, work: Callable[[], None]) -> None:
        self._last = self._thread.submit(work)

    def _remove_others(self, in_force: Collection[str]) -> None:
        if not os.path.isdir(self._root):
            return
        for entry in tuple(os.scandir(self._root)):
            if entry.path not in in_force:
                shutil.rmtree(entry.path, ignore_errors=True)

    def _copy_or_say(self, definition: Definition) -> None:
        if os.path.isdir(self._place(definition)):
            return  # of several replicas each asked for it
        try:
            self._copy(definition)
        except OSError as error:
            log.warning("no copy of the code of %s is kept: %s", definition.id, error)

    def _place(self, definition: Definition) -> str:
        return os.path.join(self._root, f"{definition.id.replace('/', '@')}@{definition.digest[:16]}")

    def _copy(self, definition: Definition) -> None:
        code = {*code_files(definition.folder, definition.manifest), f"{definition.folder}/{MANIFEST}"}
        if len(code) > MOST_FILES or sum(map(os.path.getsize, code)) > MOST_BYTES:
            raise OSError(f"it has more than {MOST_FILES} files or {MOST_BYTES >> 20} MiB")
        os.makedirs(self._root, mode=0o711, exist_ok=True)
        place = self._place(definition)
        fresh = f"{place}.new"
        shutil.rmtree(fresh, ignore_errors=True)
        _mirror(definition.folder, fresh, code)
        copied = read_module(Path(fresh), definition.id).definition
        if copied is None or copied.digest != definition.digest:
            shutil.rmtree(fresh)
            raise OSError("its files are others by now")
        os.rename(fresh, place)


def _definitions(module: Module) -> Iterable[Definition]:
    if module.definition is not None:
        yield module.definition
    if module.upgrade is not None:
        yield module.upgrade.definition


def _mirror(source: str, target: str, code: Collection[str]) -> None:
    """A folder of the same owner and mode with copies of the code and links to the rest.

    Ours alone until it is whole: nobody looks into it, or puts anything there, before that.
    """
    os.mkdir(target, 0o700)
    for entry in os.scandir(source):
        place = os.path.join(target, entry.name)
        if entry.path in code:
            _copy_file(entry.path, place)
        elif entry.is_dir(follow_symlinks=False) and any(one.startswith(f"{entry.path}/") for one in code):
            _mirror(entry.path, place, code)
        elif entry.name != "__pycache__":
            os.symlink(entry.path, place)
    folder = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _belong(os.stat(source), folder)
    finally:
        os.close(folder)


def _copy_file(source: str, target: str) -> None:
    """Of a link to code what it leads to; a fifo that has come into its place is not waited for."""
    with (
        open(os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as given,
        open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as copy,
    ):
        found = os.fstat(given.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise OSError(f"{source} is no file")
        shutil.copyfileobj(given, copy)
        _belong(found, copy.fileno())


def _belong(found: os.stat_result, descriptor: int) -> None:
    """The module's user must be able to read it, and nobody else who could not."""
    if os.getuid() == 0:
        os.fchown(descriptor, found.st_uid, found.st_gid)
    os.fchmod(descriptor, found.st_mode & 0o7777)
