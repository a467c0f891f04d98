"""Every role and every permission over a real socket: the kernel says who calls, the grants what they may."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from nexusctl.wire import error_of
from nexusd.domain.access import READING, Grants, SecurityContext, authority, permits
from nexusd.rpc import peers
from nexusd.rpc.call import Call, Method
from nexusd.rpc.dispatch import Dispatcher
from nexusd.rpc.server import RpcServer

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root can call as other users")

PERMISSIONS = (
    *READING,
    *("module.start", "module.stop", "module.reload", "module.scale", "module.configure", "module.heal"),
    *("chaos.trigger", "daemon.reload", "daemon.admin", "audit.read"),
)
STRANGER, VIEWER, OPERATOR, BY_GROUP, BY_OTHER_GROUP = 60001, 60002, 60003, 60004, 60005
GRANTS = Grants(
    roles={"deployer": ("module.reload", "daemon.reload")},
    users={str(VIEWER): ("viewer",), str(OPERATOR): ("operator",)},
    groups={str(BY_GROUP): ("deployer",), "7777": ("viewer", "deployer")},
)
HOLDS: Mapping[int, tuple[str, ...]] = {
    0: ("*",),
    STRANGER: (),
    VIEWER: READING,
    OPERATOR: (*READING, "module.*", "daemon.reload"),
    BY_GROUP: ("module.reload", "daemon.reload"),
    BY_OTHER_GROUP: (*READING, "module.reload", "daemon.reload"),
}
AEON = SecurityContext(
    principal="aeon-orchestrator",
    roles=["aeon", "operator"],
    permissions=["module.reload", "module.start", "module.stop", "module.configure", "chaos.trigger"],
)

Answers = list[dict[str, Any]]


def whoami(call: Call, _: object) -> list[Any]:
    return [call.caller.principal, call.caller.uid, call.caller.gid]


TABLE = [
    Method("whoami", whoami, "Who."),
    *(Method(one, lambda call, given: "done", "Does.", permission=one) for one in PERMISSIONS),
    Method("both", lambda call, given: "done", "Does.", permission="module.reload", also="module.stop"),
]


@pytest.fixture
def users(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of the numbers belongs to a user with a name and a further group, as /etc/group would have it."""
    known = peers.pwd.getpwuid
    named = peers.pwd.struct_passwd(("carol", "x", BY_OTHER_GROUP, BY_OTHER_GROUP, "", "/", "/bin/sh"))
    monkeypatch.setattr(peers.pwd, "getpwuid", lambda uid: named if uid == BY_OTHER_GROUP else known(uid))
    real = os.getgrouplist
    groups = lambda user, gid: [gid, 7777] if user == "carol" else real(user, gid)  # noqa: E731
    monkeypatch.setattr(peers.os, "getgrouplist", groups)


def ask(path: Path, uid: int, methods: tuple[str, ...]) -> Answers:
    """The answers that a process of this user gets. It is a child: to change one's uid is for good."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            with open(writing, "w") as told:
                json.dump(_asked(str(path), methods), told)
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading) as answered:
        text = answered.read()
    os.waitpid(child, 0)
    found: Answers = json.loads(text)
    return found


def _asked(path: str, methods: tuple[str, ...]) -> Answers:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        for number, method in enumerate(methods):
            sock.sendall(json.dumps({"jsonrpc": "2.0", "id": number, "method": method}).encode() + b"\n")
        sock.shutdown(socket.SHUT_WR)
        with sock.makefile("rb") as answers:
            return [json.loads(line) for line in answers]


def answers(home: Path, uid: int, context: SecurityContext, *methods: str) -> Answers:
    async def main() -> Answers:
        server = RpcServer(Dispatcher(TABLE, authorise=authority(GRANTS, context)), mode=0o666)
        await server.serve(home / "nexus.sock")
        try:
            return await asyncio.to_thread(ask, home / "nexus.sock", uid, methods)
        finally:
            await server.close(grace_s=1)

    return asyncio.run(asyncio.wait_for(main(), 30))


@pytest.fixture
def home() -> Iterator[Path]:
    """Other users pass through it."""
    home = Path(tempfile.mkdtemp(prefix="nx-", dir="/tmp"))
    home.chmod(0o755)
    yield home
    shutil.rmtree(home)


@pytest.mark.parametrize("uid", HOLDS)
def test_each_user_may_what_its_roles_hold_and_nothing_else(uid: int, home: Path, users: None) -> None:
    told = dict(zip(PERMISSIONS, answers(home, uid, SecurityContext(), *PERMISSIONS), strict=True))
    may = {permission for permission, answer in told.items() if "result" in answer}
    assert may == {one for one in PERMISSIONS if permits(HOLDS[uid], one)}
    for permission in set(PERMISSIONS) - may:
        error = told[permission]["error"]
        assert (error["code"], error["data"]["kind"]) == (-32001, "permission_denied")
        assert error["data"]["permission"] == permission
        assert "ask root for a role that holds it (admin" in error["data"]["hint"]


@pytest.mark.parametrize("uid", [0, OPERATOR, VIEWER])
def test_a_security_context_bounds_everybody_and_leaves_reading_alone(
    uid: int, home: Path, users: None
) -> None:
    told = dict(zip(PERMISSIONS, answers(home, uid, AEON, *PERMISSIONS), strict=True))
    may = {permission for permission, answer in told.items() if "result" in answer}
    held = {one for one in PERMISSIONS if permits(HOLDS[uid], one)}
    assert may == {one for one in held if permits((*HOLDS[OPERATOR], *AEON.permissions), one)}
    assert {"daemon.admin", "audit.read"}.isdisjoint(may)
    for permission in held - may:
        assert "aeon-orchestrator" in told[permission]["error"]["message"]


def test_of_two_permissions_that_are_needed_the_missing_one_is_named(home: Path, users: None) -> None:
    (told,) = answers(home, BY_GROUP, SecurityContext(), "both")
    assert told["error"]["data"]["permission"] == "module.stop"
    (told,) = answers(home, OPERATOR, SecurityContext(), "both")
    assert told["result"] == "done"


def test_the_kernel_s_word_counts_and_a_user_without_a_name_is_its_number(home: Path) -> None:
    (answer,) = answers(home, STRANGER, SecurityContext(), "whoami")
    assert answer["result"] == [str(STRANGER), STRANGER, STRANGER]


def test_a_refusal_is_a_permission_error_in_python(home: Path) -> None:
    (answer,) = answers(home, STRANGER, SecurityContext(), "module.stop")
    assert isinstance(error_of(answer), PermissionError)
