"""Where AEON looks for nexusd's files, as links to ours: which are missing, making them, undoing exactly that.

What is said about it is the command's (commands/aeon.py), whom a path depends on is trust.py's.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nexusctl import aeon_record
from nexusctl.trust import open_to_others, stranger

HERE = Path(os.path.realpath(__file__)).parents[1]  # where nexusctl and its neighbours lie
NEIGHBOURS = ("aeon_interface", "nexusctl", "nexusd", "nexus_v2_enterprise.py")
INTERFACES = ("__init__.py", "status.py", "live.py", "command.py")
PROGRAMS = ("status.py", "live.py", "command.py")
DAEMON = "nexus_v2_enterprise.py"
IMPORTED = (
    "__init__",
    "__pycache__",
    "interfaces",
    "python",
    "nexus",
    "nexus_v2_enterprise",
)  # with any suffix

THERE, MISSING, OUTDATED, TAKEN = "there", "missing", "outdated", "taken"


@dataclass(frozen=True, slots=True)
class Link:
    path: Path
    target: Path

    def state(self, made: Mapping[str, str]) -> str:
        """OUTDATED: we made it, and it leads elsewhere; TAKEN: something else stands there, not ours to touch."""
        if not os.path.lexists(self.path):
            return MISSING
        if os.path.realpath(self.path) == os.path.realpath(self.target):
            return THERE
        return OUTDATED if _is_as_made(str(self.path), made) else TAKEN


@dataclass(frozen=True, slots=True)
class Layout:
    """The places below one prefix, `/aeon` as a rule."""

    prefix: Path
    here: Path = HERE

    @property
    def interfaces(self) -> Path:
        return self.prefix / "interfaces" / "python"

    @property
    def runtime(self) -> Path:
        return self.prefix / "runtime" / "python"

    @property
    def tree(self) -> Path:
        return self.runtime / "nexus"

    @property
    def has_daemon(self) -> bool:
        """nexusctl and the interfaces may have been installed without nexusd."""
        return (self._source / "nexusd").exists() and (self._source / DAEMON).exists()

    @property
    def _source(self) -> Path:
        """A tree that was copied there stands for itself."""
        is_copied = (self.tree / "nexusctl").is_dir() and not (self.tree / "nexusctl").is_symlink()
        return self.tree if is_copied else self.here

    def made(self) -> dict[str, str]:
        """The links that we made here, with their targets."""
        return self.record().links

    def programs(self) -> list[Path]:
        return [self.interfaces / "nexus" / name for name in PROGRAMS]

    def links(self) -> list[Link]:
        names = [name for name in NEIGHBOURS if (self._source / name).exists()]
        links = [Link(self.tree / name, self.here / name) for name in names if self._source != self.tree]
        if self.has_daemon:
            links.append(Link(self.runtime / DAEMON, self.tree / DAEMON))
        interfaces = self.interfaces / "nexus"
        links += [Link(interfaces / name, self.tree / "aeon_interface" / name) for name in INTERFACES]
        return links

    @property
    def record_path(self) -> Path:
        return self.prefix / aeon_record.NAME

    def record(self) -> aeon_record.Record:
        """What we made below the prefix; that, and nothing else, is ours to undo. Raises BadRecord, OSError."""
        places = self._places()
        folders = {str(folder) for place in places for folder in place.parents} - {"/"}
        return aeon_record.read(self.record_path, {str(place) for place in places}, folders)

    def stranger(self) -> str:
        """How others could lead us elsewhere by the folders that we work in; empty if nobody could."""
        own = self._own
        faults = (stranger(one, own) or open_to_others(one, own) for one in self._folders())
        return next(filter(None, faults), "")

    def foreign_code(self) -> str:
        """As `stranger`, for all that a trial would run. Our own links are judged by their state instead."""
        made = self.made()
        faults = (stranger(one, self._own) for one in self._code() if not _is_as_made(str(one), made))
        return next(filter(None, faults), "")

    @property
    def _own(self) -> list[Path]:
        """The installation, but not all that lies beside it: that may well be the prefix."""
        return [self.here / name for name in NEIGHBOURS]

    def _places(self) -> list[Path]:
        """Where any installation of ours may make a link here."""
        return [
            *(self.tree / name for name in NEIGHBOURS),
            self.runtime / DAEMON,
            *(self.interfaces / "nexus" / name for name in INTERFACES),
        ]

    def _folders(self) -> list[Path]:
        """The prefix and those below it, outer ones first."""
        found = {one for place in self._places() for one in place.parents if one.is_relative_to(self.prefix)}
        return sorted(found)

    def _code(self) -> Iterable[Path]:
        for folder in self._folders():
            yield from (one for one in _entries(folder) if one.name.split(".")[0] in IMPORTED)
        yield from _all_below(Path(os.path.realpath(self.interfaces / "nexus")))
        for folder in self._folders():
            yield from _all_below(folder / "__pycache__")
        for name in NEIGHBOURS:
            yield self.tree / name
            yield from _all_below(self.tree / name)


def make(layout: Layout, links: Sequence[Link]) -> None:
    """The folders and links that are missing or outdated, written down before they are made. Raises OSError."""
    if not links:
        return
    folders = _missing_folders(link.path.parent for link in links)
    _make_folders(folder for folder in folders if layout.prefix.is_relative_to(folder))
    record = layout.record()
    for link in links:
        if _is_as_made(str(link.path), record.links):
            link.path.unlink()  # outdated
    made = record.links | {str(link.path): str(link.target) for link in links}
    made_folders = [str(folder) for folder in folders if str(folder) not in record.folders]
    aeon_record.write(layout.record_path, aeon_record.Record(made, record.folders + made_folders))
    _make_folders(folder for folder in folders if not layout.prefix.is_relative_to(folder))
    for link in links:
        link.path.symlink_to(link.target)  # fails where something has come to stand meanwhile


def make_executable(layout: Layout) -> None:
    """The programs behind our links: pip installs them without the bit. Others' files stay, and are told of."""
    for path in layout.programs():
        if not os.access(path, os.X_OK):
            with suppress(PermissionError):
                mode = os.stat(path).st_mode
                os.chmod(path, mode | (mode & 0o444) >> 2)


def undo(layout: Layout) -> tuple[list[str], list[str]]:
    """Remove what `make` made: what was removed, and what was left since it is no longer as it was made."""
    record = layout.record()
    links, folders = record.links, record.folders
    removed, left = [], []
    for path in links:
        if _is_as_made(path, links):
            os.unlink(path)
            removed.append(path)
        elif os.path.lexists(path):
            left.append(path)
    layout.record_path.unlink(missing_ok=True)
    for folder in sorted(folders, key=len, reverse=True):
        if Path(folder).is_relative_to(layout.prefix):
            _sweep(Path(folder))
        (removed if _remove_if_empty(folder) else left).append(folder)
    return removed, left


def _is_as_made(path: str, made: Mapping[str, str]) -> bool:
    return os.path.islink(path) and os.readlink(path) == made.get(path)


def _remove_if_empty(folder: str) -> bool:
    """False where others have put something there."""
    try:
        os.rmdir(folder)
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.ENOTDIR):
            raise
        return False
    return True


def _sweep(folder: Path) -> None:
    """Bytecode that Python left beside the links: it is nobody's, and made anew when it is needed."""
    cache = folder / "__pycache__"
    if cache.is_dir() and not cache.is_symlink() and all(one.suffix == ".pyc" for one in cache.iterdir()):
        for one in cache.iterdir():
            one.unlink()
        cache.rmdir()


def _make_folders(folders: Iterable[Path]) -> None:
    """For us alone to write to, whatever the umask; fails where something has come to stand meanwhile."""
    for folder in folders:
        folder.mkdir(mode=0o755)


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _all_below(folder: Path) -> Iterable[Path]:
    """Links are named, not followed."""
    if folder.is_symlink():
        return
    for one in _entries(folder):
        yield one
        yield from _all_below(one)


def _missing_folders(folders: Iterable[Path]) -> list[Path]:
    """Those that do not exist yet, outer ones first."""
    missing: dict[Path, None] = {}
    for folder in folders:
        missing |= {one: None for one in reversed([folder, *folder.parents]) if not one.exists()}
    return list(missing)
