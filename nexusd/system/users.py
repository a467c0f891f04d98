"""Who a module runs as: the user and group that its manifest names, as the host knows them."""

import grp
import os
import pwd

from msgspec import Struct


class User(Struct, frozen=True):
    uid: int
    gid: int
    groups: tuple[int, ...]  # the supplementary ones
    name: str | None = None  # None: nexusd's own user goes on, with another group
    home: str | None = None


def look_up(user: str | None, group: str | None) -> User | None:
    """None when the manifest names neither. Raises ValueError for one that this host does not know."""
    gid = _gid(group) if group is not None else None
    if user is None:
        return None if gid is None else User(os.getuid(), gid, (gid,))
    entry = _entry(user)
    gid = entry.pw_gid if gid is None else gid
    groups = tuple(os.getgrouplist(entry.pw_name, gid))
    return User(entry.pw_uid, gid, groups, entry.pw_name, entry.pw_dir)


def uid_of(user: str) -> int:
    """Raises ValueError for a user that this host does not know."""
    return _entry(user).pw_uid


def _entry(user: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwuid(int(user)) if user.isdigit() else pwd.getpwnam(user)
    except (KeyError, OverflowError):
        raise ValueError(f"there is no user {user!r}") from None


def _gid(group: str) -> int:
    try:
        return grp.getgrgid(int(group)).gr_gid if group.isdigit() else grp.getgrnam(group).gr_gid
    except (KeyError, OverflowError):
        raise ValueError(f"there is no group {group!r}") from None
