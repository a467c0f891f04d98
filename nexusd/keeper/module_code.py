"""Loads a module's class, always from its source, and tells in one line what is wrong with it.

When that happens, and what becomes of the class, is the host's to decide.
"""

import inspect
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib.machinery import (
    EXTENSION_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    ModuleSpec,
    SourceFileLoader,
)
from importlib.util import module_from_spec
from types import CodeType, ModuleType, TracebackType
from typing import Any, TypeVar

_OURS = os.path.dirname(os.path.abspath(__file__))
_STATUS_LENGTH = 400
T = TypeVar("T")


class CannotLoad(Exception):
    """The manifest's `python` names nothing that can be run; the text says what is missing."""


class _FromSource(SourceFileLoader):
    """Neither reads nor writes bytecode. A cache is told from new code by size and whole seconds of mtime
    only, so an edit within a second, or a restored backup, would run as the code before."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


def _finder_for(folder: str) -> Callable[[str], FileFinder]:
    """A path hook for this folder alone; a virtual environment inside it keeps its caches."""

    def finder(path: str) -> FileFinder:
        if (path + os.sep).startswith(folder + os.sep) and "site-packages" not in path:
            return FileFinder(path, (ExtensionFileLoader, EXTENSION_SUFFIXES), (_FromSource, [".py"]))
        raise ImportError

    return finder


def load_class(target: str, folder: str, base: type[T], hooks: Sequence[str]) -> type[T]:
    """The subclass of `base` that `file:Class` names. Raises CannotLoad, or whatever the file raises."""
    name, _, attribute = target.partition(":")
    found = getattr(_load_file(name, folder), attribute, None)
    if not isinstance(found, type):
        raise CannotLoad(f"{name}.py has no class {attribute}")
    if not issubclass(found, base):
        raise CannotLoad(f"{name}.py: {attribute} is not a subclass of nexusd.sdk.{base.__name__}")
    for hook in hooks:
        if not inspect.iscoroutinefunction(getattr(found, hook)):
            raise CannotLoad(f"{name}.py: {attribute}.{hook} must be written `async def {hook}`")
    return found


def _load_file(name: str, folder: str) -> ModuleType:
    """`import name` with the folder first on the path, without the search, which costs a tenth of a start."""
    path = os.path.join(folder, f"{name}.py")
    if name in sys.stdlib_module_names or name in sys.modules:
        raise CannotLoad(f"{name}.py has the name of a Python module that is loaded already; rename it")
    if not os.path.isfile(path):
        raise CannotLoad(f"there is no {name}.py in {folder}")
    sys.path.insert(0, folder)
    sys.path_hooks.insert(0, _finder_for(folder))
    sys.path_importer_cache.pop(folder, None)
    loader = _FromSource(name, path)
    sys.modules[name] = module = module_from_spec(ModuleSpec(name, loader, origin=path))
    module.__file__ = path
    loader.exec_module(module)
    return module


def report(error: BaseException, folder: str, notify: Callable[[str], Any], doing: str = "") -> None:
    """A short STATUS= for whoever asked; the traceback, of the module's own frames, for the log."""
    short = doing + in_short(error, folder)
    notify("STATUS=" + " ".join(short.split())[:_STATUS_LENGTH])
    if isinstance(error, CannotLoad):
        sys.stderr.write(f"{short}\n")
        return
    error.__traceback__ = _without_machinery(error.__traceback__)
    sys.stderr.write(doing + "".join(traceback.format_exception(error)))


def in_short(error: BaseException, folder: str) -> str:
    """`heartbeat_client.py line 3: invalid syntax`: where in the module's own files, and what."""
    if isinstance(error, CannotLoad):
        return str(error)
    if isinstance(error, SyntaxError) and error.filename:
        return f"{_within(folder, error.filename)} line {error.lineno}: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename.startswith(folder + os.sep)]
    place = f"{_within(folder, own[-1].filename)} line {own[-1].lineno}: " if own else ""
    return f"{place}{type(error).__name__}: {error}".removesuffix(": ")


def _within(folder: str, path: str) -> str:
    return path.removeprefix(folder + os.sep)


def _without_machinery(tb: TracebackType | None) -> TracebackType | None:
    """The same traceback without the host's frames and those of the import system."""
    if tb is None:
        return None
    rest = _without_machinery(tb.tb_next)
    file = tb.tb_frame.f_code.co_filename
    if file.startswith(("<frozen importlib", _OURS)):
        return rest
    return TracebackType(rest, tb.tb_frame, tb.tb_lasti, tb.tb_lineno)
