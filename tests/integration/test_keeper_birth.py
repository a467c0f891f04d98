"""What a run finds when its own code begins: descriptors, environment, limits, user, signals. All of it promised."""

import json
import os
import pwd
import signal
import socket
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kept import Kept, await_end

LOOK = """
import json, os, resource, signal, stat, sys
listed = os.listdir("/proc/self/fd")  # with the descriptor of the listing, which is closed again
fds = {fd: os.readlink(f"/proc/self/fd/{fd}") for fd in listed if os.path.lexists(f"/proc/self/fd/{fd}")}
with open("/proc/self/status") as file:
    status = dict(line.split(":\\t", 1) for line in file)
umask = os.umask(0)
seen = {
    "fds": fds, "environment": dict(os.environ), "pid": os.getpid(), "sid": os.getsid(0), "cwd": os.getcwd(),
    "umask": umask, "uids": os.getresuid(), "gids": os.getresgid(), "groups": sorted(os.getgroups()),
    "files": resource.getrlimit(resource.RLIMIT_NOFILE), "memory": resource.getrlimit(resource.RLIMIT_DATA),
    "ignored": int(status["SigIgn"], 16), "blocked": int(status["SigBlk"], 16), "argv": sys.argv,
    "title": open("/proc/self/cmdline").read().rstrip("\\0"), "comm": open("/proc/self/comm").read().strip(),
}
print(json.dumps(seen), flush=True)
"""
MODULE = f"""
import os
SEEN = {LOOK!r}
environment = dict(os.environ)  # before the host takes its own variables out
from nexusd.sdk import Module
class Look(Module):
    async def start(self):
        exec(SEEN)
        self.finish()
    def finish(self):
        os._exit(0)
"""
PYTHON = (
    "/usr/bin/python3" if os.path.exists("/usr/bin/python3") else sys.executable
)  # others may read it, too
PYTHON_IGNORES = {signal.SIGPIPE, signal.SIGXFSZ}


@pytest.fixture
def kept() -> Iterator[Kept]:
    with Kept() as kept:
        (kept.home / "look.py").write_text(LOOK)
        (kept.home / "module.py").write_text(MODULE)
        (kept.home / "config.json").write_text("{}")
        yield kept


@pytest.fixture(params=["spawned", "forked", "warm", "spare"])
def way(request: pytest.FixtureRequest) -> str:
    """A program by posix_spawn, one by fork and exec, a Python module in a child forked for it or before."""
    return str(request.param)


def is_program(way: str) -> bool:
    return way in ("spawned", "forked")


def look(kept: Kept, way: str, key: str = "one", **more: Any) -> dict[str, Any]:
    if way == "forked":
        more["limits"] = {"memory": 1 << 40, **more.get("limits", {})}
    if way == "spare":
        kept.await_spare()
    if is_program(way):
        kept.run(key, PYTHON, "look.py", **more)
    else:
        kept.run(key, python="module:Look", folder=str(kept.home), **more)
    seen: dict[str, Any] = json.loads(kept.log(key))
    return seen


def names(mask: int) -> set[int]:
    """The signals of a mask of proc(5); without the two that the C library keeps for itself."""
    return {number for number in signal.valid_signals() if mask >> (number - 1) & 1}


def test_no_descriptor_is_open_but_the_promised_ones(kept: Kept, way: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        inodes = [os.fstat(sock.fileno()).st_ino for sock in (one, two)]
        kept.kept.hold("a", os.dup(one.fileno()))
        kept.kept.hold("b", os.dup(two.fileno()))
        fds = look(kept, way, listening=["b", "a"])["fds"]
    assert fds["0"] == "/dev/null"
    assert fds["1"] == fds["2"] and fds["1"].startswith("pipe:")
    assert [fds["3"], fds["4"]] == [f"socket:[{inode}]" for inode in reversed(inodes)]
    others = set(fds) - {"0", "1", "2", "3", "4", "5"}
    # The host's own: its event loop's epoll and socket pair, its notify socket.
    assert len(others) == (0 if is_program(way) else 4)


def test_other_runs_and_what_nexusd_was_started_with_do_not_show(kept: Kept, way: str) -> None:
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    kept.start("other", "/bin/sleep", "1000")
    kept.replace_keeper()  # it is started with the inheritable descriptor
    fds = look(kept, way)["fds"]
    os.close(writing)
    assert os.read(reading, 1) == b""
    os.close(reading)
    assert len(fds) == (4 if is_program(way) else 8)


def test_the_sockets_are_numbered_and_addressed_to_the_process_itself(kept: Kept) -> None:
    with socket.create_server(("127.0.0.1", 0)) as one:
        kept.kept.hold("a", os.dup(one.fileno()))
    seen = look(kept, "spawned", listening=["a"], environment={"LISTEN_FDNAMES": "web"})
    found = seen["environment"]
    assert (found["LISTEN_FDS"], found["LISTEN_PID"], found["LISTEN_FDNAMES"]) == (
        "1",
        str(seen["pid"]),
        "web",
    )
    assert found["NEXUS_CONTROL_FD"] == "4"
    seen = look(kept, "spawned", key="two")
    assert not [name for name in seen["environment"] if name.startswith("LISTEN_")]
    assert seen["environment"]["NEXUS_CONTROL_FD"] == "3"


def test_the_host_knows_sockets_by_name_and_those_without_one_by_address(kept: Kept) -> None:
    code = "from nexusd.sdk import Module\nclass Look(Module):\n    async def start(self):\n"
    code += "        self.status(' '.join(self.sockets))\n"
    (kept.home / "module.py").write_text(code)
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        kept.kept.hold("a", os.dup(one.fileno()))
        kept.kept.hold("b", os.dup(two.fileno()))
        address = f"tcp:127.0.0.1:{two.getsockname()[1]}"
    names = {"LISTEN_FDNAMES": "web:unknown"}
    more: dict[str, Any] = {"python": "module:Look", "folder": str(kept.home), "environment": names}
    kept.spawn("one", listening=["a", "b"], **more)
    assert kept.until("notify", "one")["notices"]["STATUS"] == f"web {address}"


def test_the_control_socket_listens_at_its_path(kept: Kept) -> None:
    kept.start("one", "/bin/sleep", "1000")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(kept.path("one", "control")))
    assert kept.path("one", "control").stat().st_mode & 0o777 == 0o600


def test_the_environment_is_the_one_that_was_given_and_nothing_of_nexusds(
    kept: Kept, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (
        "NOTIFY_SOCKET",
        "WATCHDOG_USEC",
        "WATCHDOG_PID",
        "LISTEN_FDS",
        "LISTEN_PID",
        "LISTEN_FDNAMES",
    ):
        monkeypatch.setenv(name, "nexusd's own")
    monkeypatch.setenv("OF_NEXUSD", "too")
    kept.replace_keeper()
    seen = look(kept, way, environment={"MINE": "é\n="})["environment"]
    given = kept.launch("one")["environment"] | {"MINE": "é\n=", "NEXUS_CONTROL_FD": "3"}
    if not is_program(way):  # what concerns the host only is not for the module's children
        given = {
            name: value for name, value in given.items() if name not in ("NOTIFY_SOCKET", "NEXUS_CONTROL_FD")
        }
    else:
        seen.pop("LC_CTYPE", None)  # Python's own doing (PEP 538)
    assert seen == given


def test_each_run_has_a_session_of_its_own_and_a_title(kept: Kept, way: str) -> None:
    seen = look(kept, way)
    assert seen["sid"] == seen["pid"]
    if not is_program(way):
        assert (seen["title"], seen["comm"]) == ("nexus: test/module#0", "module#0")


def test_no_signal_is_blocked_or_ignored_whatever_nexusd_was_started_with(kept: Kept, way: str) -> None:
    former = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGQUIT, signal.SIGHUP)}
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        kept.replace_keeper()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
        for number, handler in former.items():
            signal.signal(number, handler)
    seen = look(kept, way)
    assert names(seen["blocked"]) == set()
    assert names(seen["ignored"]) == PYTHON_IGNORES  # by this very Python, not by us
    assert names(int(kept.sh("two", "grep SigIgn /proc/self/status").split()[1], 16)) == set()


def test_folder_and_umask_are_as_promised(kept: Kept, way: str) -> None:
    (kept.home / "sub").mkdir()
    more = {"directory": str(kept.home / "sub")} if not is_program(way) else {}
    seen = look(kept, way, **more)
    assert seen["cwd"] == str(kept.home / ("sub" if not is_program(way) else ""))
    assert seen["umask"] == 0o022


def test_limits_hold_in_the_run_and_the_soft_one_is_what_nexusd_was_started_with(
    kept: Kept, way: str
) -> None:
    soft, hard = kept.kept.soft_files, look(kept, way)["files"][1]
    assert look(kept, way, key="two")["files"] == [soft, hard]
    seen = look(kept, way, key="three", limits={"files": 64, "memory": 512 << 20})
    assert (seen["files"], seen["memory"]) == ([64, hard], [512 << 20, 512 << 20])


def test_a_run_that_wants_more_memory_than_it_may_have_fails_and_others_do_not(kept: Kept) -> None:
    greedy = "print(len(bytearray(300 << 20)))"
    exited = kept.run("one", PYTHON, "-c", greedy, limits={"memory": 100 << 20})
    assert os.waitstatus_to_exitcode(exited["status"]) == 1 and "MemoryError" in kept.log("one")
    kept.run("two", PYTHON, "-c", greedy)
    assert kept.log("two") == f"{300 << 20}\n"


@pytest.mark.skipif(os.getuid() != 0, reason="takes two users")
def test_user_group_and_supplementary_groups_are_changed(kept: Kept) -> None:
    kept.home.chmod(0o755)
    seen = look(kept, "spawned", user={"uid": 65534, "gid": 12345, "groups": [12345, 777]})
    assert (seen["uids"], seen["gids"], seen["groups"]) == ([65534] * 3, [12345] * 3, [777, 12345])
    assert kept.path("one", "notify").parent.stat().st_uid == 0


@pytest.mark.skipif(os.getuid() != 0, reason="takes two users")
def test_the_sockets_of_a_run_belong_to_its_user_alone(kept: Kept) -> None:
    kept.home.chmod(0o711)
    (kept.home / "r").chmod(0o711)
    send = (
        "import os, socket; s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM);"
        "s.sendto(b'READY=1', os.environ['NOTIFY_SOCKET'])"
    )
    kept.spawn("one", PYTHON, "-c", send, user={"uid": 65534, "gid": 65534, "groups": []}, directory="/")
    for kind in ("notify", "control"):
        found = kept.path("one", kind).stat()
        assert (found.st_uid, found.st_mode & 0o777) == (65534, 0o600)
    assert kept.until("notify", "one")["notices"] == {"READY": "1"}


def test_a_user_that_we_may_not_become_is_a_refusal(kept: Kept) -> None:
    """The keeper is not root here."""
    if os.getuid() != 0:
        other = {"uid": 0, "gid": 0, "groups": []}
        assert kept.run("one", "/bin/true", user=other)["refusal"]["step"] == "user"
        return
    if not _others_may_run(sys.executable):
        pytest.skip("other users cannot run this Python")
    nobody = pwd.getpwuid(65534)
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(nobody.pw_gid, nobody.pw_gid, nobody.pw_gid)
            os.setresuid(nobody.pw_uid, nobody.pw_uid, nobody.pw_uid)
            with Kept() as humble:
                refusal = humble.run("one", "/bin/true", user={"uid": 0, "gid": 0, "groups": []})["refusal"]
            os._exit(0 if (refusal["step"], refusal["errno"]) == ("user", 1) else 1)
        finally:
            traceback.print_exc()
            os._exit(2)
    await_end(child)
    assert os.waitpid(child, 0)[1] == 0


def _others_may_run(program: str) -> bool:
    return all(
        os.stat(place).st_mode & 0o001 for place in (program, *Path(os.path.realpath(program)).parents)
    )


def test_a_warm_module_that_cannot_be_told_its_environment_is_a_refusal(kept: Kept) -> None:
    exited = kept.run("one", python="module:Look", folder=str(kept.home), environment={"BAD": "a\0b"})
    assert exited["refusal"]["step"] == "exec" and "null byte" in exited["refusal"]["reason"]


def test_the_host_starts_warm_and_code_is_read_anew_each_time(kept: Kept) -> None:
    code = "import os\nfrom nexusd.sdk import Module\nclass Look(Module):\n    async def start(self): os._exit({})\n"
    for status in (3, 4):
        Path(kept.home / "module.py").write_text(code.format(status))
        exited = kept.run("one", python="module:Look", folder=str(kept.home))
        assert os.waitstatus_to_exitcode(exited["status"]) == status
