"""Where AEON looks for nexusd's files, as links to ours: which are missing, making them, undoing exactly that.

What is said about it is the command's (commands/aeon.py).
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

HERE = Path(os.path.realpath(__file__)).parents[1]  # where nexusctl and its neighbours lie
NEIGHBOURS = ("aeon_interface", "nexusctl", "nexusd", "nexus_v2_enterprise.py")
INTERFACES = ("__init__.py", "status.py", "live.py", "command.py")
PROGRAMS = ("status.py", "live.py", "command.py")
DAEMON = "nexus_v2_enterprise.py"
RECORD = ".nexusctl-aeon-link.json"  # what we made below a prefix, and nothing else, is ours to undo

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
        return _record(self)[0]

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


def make(layout: Layout, links: Sequence[Link]) -> None:
    """The folders and links that are missing or outdated, written down before they are made. Raises OSError."""
    if not links:
        return
    folders = _missing_folders(link.path.parent for link in links)
    layout.prefix.mkdir(parents=True, exist_ok=True)
    made_links, made_folders = _record(layout)
    for link in links:
        if _is_as_made(str(link.path), made_links):
            link.path.unlink()  # outdated
    made_links |= {str(link.path): str(link.target) for link in links}
    made_folders += [str(folder) for folder in folders if str(folder) not in made_folders]
    (layout.prefix / RECORD).write_text(
        json.dumps({"links": made_links, "folders": made_folders}, indent=2) + "\n"
    )
    for folder in folders:
        folder.mkdir(exist_ok=True)
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
    links, folders = _record(layout)
    removed, left = [], []
    for path in links:
        if _is_as_made(path, links):
            os.unlink(path)
            removed.append(path)
        elif os.path.lexists(path):
            left.append(path)
    (layout.prefix / RECORD).unlink(missing_ok=True)
    for folder in sorted(folders, key=len, reverse=True):
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
        if error.errno != errno.ENOTEMPTY:
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


def _record(layout: Layout) -> tuple[dict[str, str], list[str]]:
    try:
        record = json.loads((layout.prefix / RECORD).read_text())
    except FileNotFoundError:
        return {}, []
    return record["links"], record["folders"]


def _missing_folders(folders: Iterable[Path]) -> list[Path]:
    """Those that do not exist yet, outer ones first."""
    missing: dict[Path, None] = {}
    for folder in folders:
        missing |= {one: None for one in reversed([folder, *folder.parents]) if not one.exists()}
    return list(missing)
