"""Roles, grants, and the security context that bounds them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexusd.domain.access import (
    READING,
    Caller,
    Grants,
    SecurityContext,
    authorise,
    authority,
    bounded,
    effective_permissions,
    permits,
)
from nexusd.domain.errors import PermissionDenied

ROOT = Caller(0, 0, "root")
ALICE = Caller(1000, 1000, "alice", frozenset({1000, 44}), frozenset({"alice", "nexus"}), pid=7)
BOB = Caller(1001, 1001, "bob", frozenset({1001}), frozenset({"bob"}))
ANYTHING = SecurityContext()


@pytest.mark.parametrize(
    ("granted", "permission", "expected"),
    [
        (["*"], "module.start", True),
        (["module.*"], "module.start", True),
        (["module.start"], "module.start", True),
        (["module.start"], "module.stop", False),
        (["module.*"], "modules.start", False),
        (["module.*"], "module", False),
        (["mod*"], "module.start", False),
        ([], "module.start", False),
    ],
)
def test_a_permission_is_held_by_itself_its_family_or_the_star(granted, permission, expected):
    assert permits(granted, permission) is expected


def test_root_and_the_daemon_s_own_user_are_admin():
    grants = Grants(daemon_uid=1001)
    assert grants.permissions_of(ROOT) == ("*",)
    assert grants.permissions_of(BOB) == ("*",)


def test_the_group_nexus_is_operator_and_a_stranger_is_nothing():
    assert Grants().roles_of(ALICE) == ("operator",)
    assert Grants().roles_of(BOB) == ()
    authorise(ALICE, "module.start", Grants(), ANYTHING)
    with pytest.raises(PermissionDenied):
        authorise(ALICE, "daemon.admin", Grants(), ANYTHING)


@pytest.mark.parametrize("key", ["bob", "1001"])
def test_a_user_is_granted_by_name_or_number(key):
    assert Grants(users={key: ("viewer",)}).roles_of(BOB) == ("viewer",)


@pytest.mark.parametrize("key", ["nexus", "44", "1000"])
def test_a_group_is_granted_by_name_or_number_the_primary_one_too(key):
    assert Grants(groups={key: ("viewer",)}).roles_of(ALICE) == ("viewer",)


def test_roles_of_the_configuration_add_to_the_built_in_ones():
    grants = Grants(roles={"chaos": ("chaos.trigger",)}, users={"bob": ("chaos", "viewer")})
    assert grants.permissions_of(BOB) == ("chaos.trigger", *READING)


def test_admin_cannot_be_redefined_so_root_is_never_locked_out():
    assert Grants(roles={"admin": ()}).permissions_of(ROOT) == ("*",)


def test_a_role_that_nobody_defined_is_reported_and_grants_nothing():
    grants = Grants(users={"bob": ("operater",)})
    assert grants.undefined_roles() == ("operater",)
    assert grants.permissions_of(BOB) == ()


def test_a_refusal_tells_who_lacked_what_and_who_could():
    with pytest.raises(PermissionDenied) as refused:
        authorise(BOB, "module.start", Grants(users={"bob": ("viewer",)}), ANYTHING)
    data = refused.value.data()
    assert data["permission"] == "module.start"
    assert data["principal"] == "bob"
    assert data["roles"] == ["viewer"]
    assert "admin, operator" in data["hint"]
    assert refused.value.message == "permission denied: bob does not hold module.start"


def test_the_security_context_bounds_even_root():
    context = SecurityContext(principal="aeon-orchestrator", roles=["aeon"], permissions=["module.start"])
    authorise(ROOT, "module.start", Grants(), context)
    with pytest.raises(PermissionDenied) as refused:
        authorise(ROOT, "module.stop", Grants(), context)
    assert "aeon-orchestrator" in refused.value.message


def test_the_security_context_bounds_commands_and_leaves_reading_to_the_roles():
    context = SecurityContext(permissions=["module.start"])
    authorise(ALICE, "status.read", Grants(), context)
    with pytest.raises(PermissionDenied):
        authorise(BOB, "status.read", Grants(), context)


@pytest.mark.parametrize(
    ("roles", "permissions", "permission", "is_held"),
    [
        (["operator"], ["chaos.trigger"], "module.heal", True),
        (["operator"], ["chaos.trigger"], "chaos.trigger", True),
        (["operator"], ["chaos.trigger"], "daemon.admin", False),
        (["operator"], None, "module.start", True),
        (["viewer"], None, "module.start", False),
        (["aeon"], ["module.start"], "module.stop", False),
        (["aeon"], None, "module.start", False),
        (["Operator"], None, "module.start", False),
        ([], None, "module.start", False),
        (None, ["module.start"], "module.stop", False),
        (["admin"], ["module.start"], "daemon.admin", True),
        (None, None, "daemon.admin", True),
    ],
)
def test_a_known_role_of_a_security_context_stands_for_its_permissions(
    roles, permissions, permission, is_held
):
    context = SecurityContext("aeon", roles, permissions)
    assert permits(context.held(), permission) is is_held
    assert permits(effective_permissions(ROOT, Grants(), context), permission) is is_held


def test_a_role_that_a_file_redefines_does_not_widen_a_security_context():
    grants = Grants(roles={"viewer": ("*",), "aeon": ("*",)})
    context = SecurityContext("aeon", ["viewer", "aeon"], ["module.start"])
    with pytest.raises(PermissionDenied):
        authorise(ROOT, "module.stop", grants, context)


def test_a_security_context_takes_lists_and_shows_itself_in_the_status():
    context = SecurityContext(principal="aeon", roles=["operator"], permissions=["module.*"])
    assert context.as_status() == {"principal": "aeon", "roles": ["operator"]}
    assert context == SecurityContext("aeon", ("operator",), ("module.*",))
    assert SecurityContext().as_status() == {"principal": "nexusd", "roles": ["admin"]}


def test_effective_permissions_are_the_narrower_of_each_pair():
    context = SecurityContext(permissions=["module.start", "daemon.*"])
    assert set(effective_permissions(ALICE, Grants(), context)) == {*READING, "module.start", "daemon.reload"}


def test_what_a_wider_permission_covers_is_not_said_again():
    assert effective_permissions(ROOT, Grants(), ANYTHING) == ("*",)
    grants = Grants(users={"bob": ("operator", "starter")}, roles={"starter": ("module.start",)})
    assert set(effective_permissions(BOB, grants, ANYTHING)) == {*READING, "module.*", "daemon.reload"}


def test_an_authority_remembers_what_it_allowed_and_refuses_each_time():
    allow = authority(Grants(), ANYTHING)
    for _ in range(2):
        allow(ALICE, "module.start")
        with pytest.raises(PermissionDenied):
            allow(BOB, "module.start")


def test_the_pid_plays_no_part_in_who_somebody_is():
    assert Caller(5, 5, "eve", pid=1) == Caller(5, 5, "eve", pid=2)


_patterns = st.lists(st.sampled_from(["*", "a.*", "a.x", "a.y", "b.*", "b.x"]), max_size=4)


@given(_patterns, _patterns, st.sampled_from(["a.x", "a.y", "a.z", "b.x", "b.y", "c.x"]))
def test_what_is_bounded_permits_exactly_what_both_sides_permit(granted, bound, permission):
    both = permits(granted, permission) and permits(bound, permission)
    assert permits(bounded(granted, bound), permission) is both
