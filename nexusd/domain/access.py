"""Who may do what: callers, roles, permissions, and the bound a daemon's own security context sets.

Pure: the names of users and groups come with the caller, found by `nexusd.rpc.peers`.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from nexusd.domain.errors import PermissionDenied

READING = ("status.read", "metrics.read", "logs.read", "events.read")

ROLES: Mapping[str, tuple[str, ...]] = {
    "admin": ("*",),
    "operator": (*READING, "module.*", "daemon.reload"),
    "viewer": READING,
}


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is at the other end, as the kernel told at connect(). The pid is for the audit line alone: callers
    that differ in nothing else are the same.
    """

    uid: int
    gid: int
    user: str
    groups: frozenset[int] = frozenset()
    group_names: frozenset[str] = frozenset()
    pid: int | None = field(default=None, compare=False)

    @property
    def principal(self) -> str:
        return self.user

    def all_group_keys(self) -> frozenset[str]:
        """Every way a grant may spell one of the caller's groups: by name or by number."""
        numbers = {str(gid) for gid in (self.gid, *self.groups)}
        return self.group_names | numbers


@dataclass(frozen=True, slots=True)
class SecurityContext:
    """What the daemon itself may be used for, whoever asks.

    It bounds commands. Reading (`READING`) is bounded by the caller's roles alone, so that a daemon
    that may only start modules can still be asked how they are.

    A role that nexusd has built in (`ROLES`) stands for its permissions, any other is a name. What nexusd.toml
    makes of roles is for users: it must not widen what a program was given. With nothing said it is everything.
    """

    principal: str = "nexusd"
    roles: Iterable[str] | None = None
    permissions: Iterable[str] | None = None

    def __post_init__(self) -> None:
        is_open = self.roles is None and self.permissions is None
        object.__setattr__(self, "roles", ("admin",) if is_open else tuple(self.roles or ()))
        object.__setattr__(self, "permissions", ("*",) if is_open else tuple(self.permissions or ()))

    def as_status(self) -> dict[str, object]:
        return {"principal": self.principal, "roles": list(self.roles or ())}

    def held(self) -> tuple[str, ...]:
        """What it was given by name, and what its roles stand for."""
        by_role = (permission for role in self.roles or () for permission in ROLES.get(role, ()))
        return tuple(dict.fromkeys((*(self.permissions or ()), *by_role)))

    def bound(self) -> tuple[str, ...]:
        return (*self.held(), *READING)


@dataclass(frozen=True, slots=True)
class Grants:
    """Which user and which group holds which roles; keys are names or numbers as text.

    `roles` adds to the built-in ones or replaces them, but for `admin`: root is never locked out.
    """

    roles: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    users: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: {"nexus": ("operator",)})
    daemon_uid: int = 0

    def all_roles(self) -> dict[str, tuple[str, ...]]:
        return {**ROLES, **self.roles, "admin": ROLES["admin"]}

    def roles_of(self, caller: Caller) -> tuple[str, ...]:
        own = ["admin"] if caller.uid in (0, self.daemon_uid) else []
        own += self.users.get(caller.user, ())
        own += self.users.get(str(caller.uid), ())
        if self.groups:
            for group in sorted(caller.all_group_keys() & self.groups.keys()):
                own += self.groups[group]
        return tuple(dict.fromkeys(own))

    def permissions_of(self, caller: Caller) -> tuple[str, ...]:
        roles = self.all_roles()
        held = (permission for role in self.roles_of(caller) for permission in roles.get(role, ()))
        return tuple(dict.fromkeys(held))

    def undefined_roles(self) -> tuple[str, ...]:
        """Roles that a user or group is given and nobody defined: a mistyped name, most likely."""
        given = {role for roles in (*self.users.values(), *self.groups.values()) for role in roles}
        return tuple(sorted(given - self.all_roles().keys()))


def permits(granted: Iterable[str], permission: str) -> bool:
    """Whether one of `granted` is the permission, `*`, or a family such as `module.*` around it."""
    return any(_covers(pattern, permission) for pattern in granted)


def bounded(granted: Iterable[str], bound: Iterable[str]) -> tuple[str, ...]:
    """What is permitted by both: of each pair of patterns the narrower one, where one covers the other. What a
    wider one of the result covers is not said again.
    """
    limits = tuple(bound)
    both = [
        mine if _covers(limit, mine) else limit
        for mine in granted
        for limit in limits
        if _covers(limit, mine) or _covers(mine, limit)
    ]
    return tuple(one for one in dict.fromkeys(both) if not any(_is_wider(other, one) for other in both))


def effective_permissions(caller: Caller, grants: Grants, context: SecurityContext) -> tuple[str, ...]:
    return bounded(grants.permissions_of(caller), context.bound())


def authorise(caller: Caller, permission: str, grants: Grants, context: SecurityContext) -> None:
    """Return in silence, or raise PermissionDenied with what would have been needed."""
    if not permits(grants.permissions_of(caller), permission):
        raise _denied(caller, permission, grants, _who_could(permission, grants))
    if not permits(context.bound(), permission):
        raise _denied(
            caller,
            permission,
            grants,
            "its security context was given with the daemon: SecurityContext(roles=…, permissions=…)",
            without=f"this daemon's security context ({context.principal})",
        )


def authority(grants: Grants, context: SecurityContext) -> Callable[[Caller, str], None]:
    """`authorise` with a memory: a user asks for the same thing over and over. Refusals are not kept."""

    @lru_cache(maxsize=1024)
    def allow(caller: Caller, permission: str) -> None:
        authorise(caller, permission, grants, context)

    return allow


def _covers(pattern: str, other: str) -> bool:
    if pattern in ("*", other):
        return True
    return pattern.endswith(".*") and other.startswith(pattern[:-1])


def _is_wider(pattern: str, other: str) -> bool:
    return pattern != other and _covers(pattern, other)


def _denied(
    caller: Caller, permission: str, grants: Grants, hint: str, without: str | None = None
) -> PermissionDenied:
    return PermissionDenied(
        f"permission denied: {without or caller.principal} does not hold {permission}",
        hint=hint,
        permission=permission,
        principal=caller.principal,
        roles=list(grants.roles_of(caller)),
    )


def _who_could(permission: str, grants: Grants) -> str:
    holding = sorted(name for name, held in grants.all_roles().items() if permits(held, permission))
    return f"ask root for a role that holds it ({', '.join(holding)}): [access] in nexusd.toml gives roles"
