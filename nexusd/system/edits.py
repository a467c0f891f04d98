"""Whether a module's files are others than those it was read from, looked at when somebody asks for its status.

Implements `ports.Edits`. Files are read only when their place, size or times have changed since the last look.
"""

import os
from pathlib import Path
from typing import NamedTuple

from nexusd.domain.manifest import Manifest
from nexusd.domain.module import Module
from nexusd.system.manifests import MANIFEST, TooMuch, code_files, read_module

MOST_ENTRIES = 2_000  # of the folder, whatever they are: 10 ms to list them
MOST_FILES = 200
MOST_BYTES = 2 * 2**20  # to read more would hold the loop: `nexusctl reload` reads it in a thread, and tells

_Marks = tuple[tuple[str, int, int, int], ...]


class _Look(NamedTuple):
    marks: _Marks
    digest: str | None  # None: a manifest with faults


class Edits:
    def __init__(self) -> None:
        self._looks: dict[str, _Look] = {}

    def are_there(self, module: Module) -> bool:
        """Of a module that runs a copy of its code: whether its folder has something else than that."""
        if module.definition is None or module.gone:
            return False
        try:
            marks = _marks(module.folder, module.definition.manifest)
        except TooMuch:
            return module.pending is not None
        look = self._looks.get(module.id)
        if look is None or look.marks != marks:
            found = read_module(Path(module.folder), module.id).definition
            look = self._looks[module.id] = _Look(marks, found.digest if found else None)
        return look.digest != module.definition.digest


def _marks(folder: str, manifest: Manifest) -> _Marks:
    """What a change of a file shows by, without reading it. Raises TooMuch."""
    files = [os.path.join(folder, MANIFEST), *sorted(code_files(folder, manifest, MOST_ENTRIES))]
    if len(files) > MOST_FILES:
        raise TooMuch
    marks = tuple(_mark(file) for file in files)
    if sum(size for _, size, _, _ in marks) > MOST_BYTES:
        raise TooMuch
    return marks


def _mark(file: str) -> tuple[str, int, int, int]:
    try:
        found = os.stat(file)
    except OSError:
        return file, 0, 0, 0
    return file, found.st_size, found.st_ino, found.st_ctime_ns
