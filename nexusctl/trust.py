"""Whom a path depends on: may anybody but root and this user decide what stands there?

What that is needed for is the caller's.
"""

from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Collection
from pathlib import Path

MOST_LINKS = 40  # as the kernel has it
BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def stranger(path: Path, own: Collection[Path]) -> str:
    """How others could change what stands at an absolute path, or where it leads to; empty if nobody could.

    Each part from / on is looked at, through links. What lies within `own` is accepted as it is: it runs already.
    """
    for _ in range(MOST_LINKS):
        if any(path.is_relative_to(one) for one in own) and ".." not in path.parts:
            return ""
        said, onward = _walked(path)
        if onward is None:
            return said
        path = onward
    return f"{path} leads in a circle"


def open_to_others(folder: Path, own: Collection[Path]) -> str:
    """Sticky or not: in a folder like /tmp anybody may put something new beside what is there."""
    real = Path(os.path.realpath(folder))
    if not real.exists() or any(real.is_relative_to(one) for one in own):
        return ""
    mode = real.stat().st_mode
    return f"others may write to {folder} ({stat.filemode(mode)})" if mode & BY_OTHERS else ""


def user(uid: int) -> str:
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"


def _walked(path: Path) -> tuple[str, Path | None]:
    """To the first fault, or to the first link and where it leads, or to the end of what is there."""
    at = Path("/")
    for index, part in enumerate(path.parts):
        at = (
            at.parent if part == ".." else at / part
        )  # no link is left in `at`, so its parent is the real one
        try:
            found = os.lstat(at)
        except FileNotFoundError:
            return "", None
        if said := _weakness(at, found):
            return said, None
        if stat.S_ISLNK(found.st_mode):
            return "", at.parent / os.readlink(at) / Path(*path.parts[index + 1 :])
    return "", None


def _weakness(path: Path, found: os.stat_result) -> str:
    if found.st_uid not in (0, os.geteuid()):
        return f"{path} belongs to {user(found.st_uid)}"
    is_sticky = stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX
    if stat.S_ISLNK(found.st_mode) or is_sticky or not found.st_mode & BY_OTHERS:
        return ""
    return f"others may write to {path} ({stat.filemode(found.st_mode)}, of {user(found.st_uid)})"
