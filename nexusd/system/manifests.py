"""The modules that lie on disk: which folders hold one, what their manifests say, and a digest of their code.

Never raises for what it finds: a file that can't be used is a fault like any other. Runs nothing.
"""

import errno
import hashlib
import os
import re
import stat
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from nexusd.domain.fields import Fault, printable
from nexusd.domain.manifest import Definition, InvalidManifest, Manifest, parse_manifest

MANIFEST: Final = "module.toml"
LARGEST_MANIFEST: Final = 2**20
_PIECE: Final = 2**16
_DEEPEST: Final = 100  # folders in folders; code lies in none deeper, and copies of it are made by recursion
# tomllib takes time by the square of the parts of a key: 13 s for 40 kB of "a.a.a…". A match begins with a
# word, so that the search itself takes no such time.
_DEEP_KEY: Final = re.compile(r"""(?<![\w-])(?:(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){32}""")


class Found(Struct, frozen=True):
    """A folder with a module.toml: its definition, or the faults that keep it from having one."""

    id: str
    folder: str
    definition: Definition | None
    faults: tuple[Fault, ...]


def discover(paths: Sequence[str | Path]) -> list[Found]:
    """Every module in PATH/GROUP/NAME, sorted by id; of two with the same id the one of the earlier path."""
    first: dict[str, str] = {}
    for module_id, folder in _module_folders(paths):
        first.setdefault(module_id, folder)
    return [_read(folder, module_id) for module_id, folder in sorted(first.items())]


def shadowed(paths: Sequence[str | Path]) -> list[Found]:
    """The folders that `discover` passes over since an earlier path holds their id, each with that fault."""
    first: dict[str, str] = {}
    return sorted(
        (
            _shadow(module_id, folder, first[module_id])
            for module_id, folder in _module_folders(paths)
            if first.setdefault(module_id, folder) != folder
        ),
        key=lambda found: (found.id, found.folder),
    )


def missing_paths(paths: Sequence[str | Path]) -> tuple[Fault, ...]:
    """A fault for each module path, or group folder in one, that is missing or can't be listed."""
    places = [os.fspath(path) for path in paths]
    groups = [group for place in places for group in _subfolders(place)]
    judged = ((place, _why_not_listed(place)) for place in [*places, *groups])
    return tuple(_file_fault(place, "a folder of modules", why) for place, why in judged if why)


def read_module(folder: Path, module_id: str) -> Found:
    """What one folder holds, as the module of this id."""
    return _read(os.path.abspath(folder), module_id)


def _read(place: str, module_id: str) -> Found:
    name, shown_place = printable(module_id), printable(place)
    file = f"{place}/{MANIFEST}"
    try:
        content = _manifest_bytes(file)
        if shown_place != place:
            raise _Unusable("a folder whose name is printable UTF-8", shown_place)
        manifest = parse_manifest(_tables(content), module_id=module_id, file=file)
    except _Unusable as unusable:
        return Found(name, shown_place, None, (_file_fault(file, unusable.expected, unusable.found),))
    except InvalidManifest as invalid:
        return Found(name, shown_place, None, invalid.faults)
    definition = Definition(module_id, place, manifest, _digest(place, content, manifest))
    return Found(name, place, definition, ())


class _Unusable(Exception):
    """A module.toml of which nothing can be read."""

    def __init__(self, expected: str, found: str) -> None:
        super().__init__(expected, found)
        self.expected = expected
        self.found = found


def _module_folders(paths: Sequence[str | Path]) -> Iterator[tuple[str, str]]:
    """Ids and folders, path by path. A path that is given twice is looked at once."""
    # By the real path, under the given one: a link may point elsewhere tomorrow.
    once = {os.path.realpath(path): os.path.abspath(path) for path in reversed(paths)}
    for path in reversed(once.values()):
        for group in _subfolders(path):
            for folder in _subfolders(group):
                # lexists: a dangling link is a fault to tell, not a folder to pass over.
                if os.path.lexists(f"{folder}/{MANIFEST}"):
                    yield f"{os.path.basename(group)}/{os.path.basename(folder)}", folder


def _subfolders(folder: str) -> list[str]:
    """Folders in a folder, links to folders too; neither hidden ones nor __pycache__."""
    try:
        with os.scandir(folder) as entries:
            return [entry.path for entry in entries if _is_counted(entry.name) and _leads_to_folder(entry)]
    except OSError:
        # Told by missing_paths.
        return []


def _is_counted(name: str) -> bool:
    return not name.startswith(".") and name != "__pycache__"


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        # A link that leads to itself (ELOOP).
        return False


def _why_not_listed(place: str) -> str | None:
    try:
        os.scandir(place).close()
    except OSError as error:
        return _reason(error)
    return None


def _shadow(module_id: str, folder: str, winner: str) -> Found:
    expected = "an id that no earlier path holds"
    found = f"{printable(module_id)}, which is {printable(winner)}"
    fault = _file_fault(os.path.join(folder, MANIFEST), expected, found)
    return Found(printable(module_id), printable(folder), None, (fault,))


def _file_fault(file: str, expected: str, found: str) -> Fault:
    return Fault(file=printable(file), key="", expected=expected, found=found)


def _manifest_bytes(file: str) -> bytes:
    content = b""
    try:
        for piece in _pieces(file):
            content += piece
            if len(content) > LARGEST_MANIFEST:
                raise _Unusable("a file of at most 1 MiB", "a larger one")
    except OSError as error:
        raise _Unusable("a readable file", _reason(error)) from None
    return content


def _pieces(file: str) -> Iterator[bytes]:
    # O_NONBLOCK: a FIFO of that name must not stop the daemon.
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise _Unusable("a regular file", "a folder or a device")
        while piece := os.read(descriptor, _PIECE):
            yield piece
    finally:
        os.close(descriptor)


def _tables(content: bytes) -> dict[str, Any]:
    try:
        text = content.decode("utf-8")
        if _DEEP_KEY.search(text):
            raise _Unusable("keys of at most 32 parts", "a longer one")
        return tomllib.loads(text)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise _Unusable("UTF-8 text", f"byte 0x{content[error.start]:02x} in line {line}") from None
    except RecursionError:
        raise _Unusable("TOML", "tables or lists nested too deeply") from None
    except ValueError as error:
        # Not only TOMLDecodeError: tomllib lets through what int() says of a number of 5,000 digits.
        raise _Unusable("TOML", printable(str(error))) from None


def _reason(error: OSError) -> str:
    return "no such file" if error.errno == errno.ENOENT else os.strerror(error.errno or errno.EIO).lower()


def _digest(folder: str, content: bytes, manifest: Manifest) -> str:
    """SHA-256 of the manifest and of the code: *.py, and what `exec` names in the folder."""
    total = hashlib.sha256(content)
    for file in sorted(code_files(folder, manifest)):
        name = os.fsencode(file.removeprefix(folder))
        total.update(b"\0%s\0%s" % (name, _file_digest(file)))
    return total.hexdigest()


class TooMuch(Exception):
    """A folder that holds more than the caller wants to look at."""


def code_files(folder: str, manifest: Manifest, most_entries: int | None = None) -> set[str]:
    """What counts as the module's code, beside its manifest. Raises TooMuch."""
    return {*_python_files(folder, most_entries), *_named_files(folder, manifest.run.exec or ())}


def _python_files(folder: str, most_entries: int | None) -> Iterator[str]:
    """Neither links to folders nor virtual environments are followed: they are not the module's code.

    Without recursion: a program can nest folders deeper than Python can call.
    """
    waiting, left = [folder], most_entries
    while waiting:
        entries = _entries(waiting.pop(), left)
        if left is not None:
            left -= len(entries)
            if left < 0:
                raise TooMuch
        if any(entry.name == "pyvenv.cfg" for entry in entries):
            continue
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                if entry.path.count(os.sep) <= folder.count(os.sep) + _DEEPEST:
                    waiting.append(entry.path)
            elif entry.name.endswith(".py"):
                yield entry.path


def _entries(folder: str, left: int | None) -> list[os.DirEntry[str]]:
    """Those that count, of the first few if `left` bounds them."""
    try:
        with os.scandir(folder) as listing:
            looked_at = islice(listing, None if left is None else left + 1)
            return [entry for entry in looked_at if _is_counted(entry.name)]
    except OSError:
        return []


def _named_files(folder: str, command: Iterable[str]) -> Iterator[str]:
    for word in command:
        file = os.path.normpath(os.path.join(folder, word))
        if file.startswith(folder + os.sep) and os.path.isfile(file):
            yield file


def _file_digest(file: str) -> bytes:
    """Of a file that can't be read, what is wrong with it: once it can be, the digest changes."""
    digest = hashlib.sha256()
    try:
        for piece in _pieces(file):
            digest.update(piece)
    except _Unusable as unusable:
        return unusable.found.encode()
    except OSError as error:
        return _reason(error).encode()
    return digest.digest()
