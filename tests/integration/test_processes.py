"""Replicas as processes: what a launch consists of, and what the keeper's news of an end mean."""

import grp
import os
import pwd
import signal
import socket
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from nexusd.domain.manifest import Definition, parse_manifest
from nexusd.domain.module import Module
from nexusd.domain.replica import Exit, Replica
from nexusd.system.configs import ConfigFiles
from nexusd.system.containment import Containment
from nexusd.system.copies import CodeCopies
from nexusd.system.environment import read_environment
from nexusd.system.exits import exit_of
from nexusd.system.logs import LogFolder
from nexusd.system.notes import Note
from nexusd.system.processes import ReplicaProcesses

RUN = "test/one#2@3~aabb"
NOBODY = pwd.getpwuid(65534)


class FakeKeeper:
    """Implements `processes.Keeper`: remembers what it was asked, holds real descriptors."""

    def __init__(self) -> None:
        self.launches: dict[str, dict[str, Any]] = {}
        self.listening: dict[str, list[str]] = {}
        self.asked: list[tuple[Any, ...]] = []
        self.notes: dict[str, str | None] = {}
        self.held: dict[str, int] = {}

    def spawn(self, key: str, launch: dict[str, Any], listening: Iterable[str] = ()) -> None:
        self.launches[key] = launch
        self.listening[key] = list(listening)

    def signal(self, key: str, number: int, leader_only: bool = False) -> None:
        self.asked.append(("signal", key, number, leader_only))

    def kill(self, key: str) -> None:
        self.asked.append(("kill", key))

    def forget(self, key: str) -> None:
        self.asked.append(("forget", key))

    def note(self, name: str, text: str | None) -> None:
        self.notes[name] = text

    def hold(self, name: str, fd: int) -> None:
        self.held[name] = fd

    def release(self, name: str) -> None:
        os.close(self.held.pop(name))

    def holds(self, name: str) -> bool:
        return name in self.held

    def held_names(self) -> list[str]:
        return list(self.held)


@pytest.fixture
def keeper() -> Iterator[FakeKeeper]:
    keeper = FakeKeeper()
    yield keeper
    for name in keeper.held_names():
        keeper.release(name)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run" / "config").mkdir(parents=True)
    folder = tmp_path / "modules" / "test" / "one"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def processes(keeper: FakeKeeper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ReplicaProcesses:
    for name in (
        "NOTIFY_SOCKET",
        "WATCHDOG_USEC",
        "WATCHDOG_PID",
        "LISTEN_FDS",
        "LISTEN_PID",
        "NEXUS_SOCKET",
    ):
        monkeypatch.setenv(name, "nexusd's own")
    monkeypatch.setenv("INHERITED", "yes")
    runtime = str(tmp_path / "run")
    return ReplicaProcesses(
        keeper,
        runtime,
        LogFolder(str(tmp_path / "logs")),
        ConfigFiles(runtime),
        CodeCopies(str(tmp_path / "state")),
        "/host.py",
        Containment(None, "none here", lambda _run: None),
    )


def module_of(folder: Path, raw: dict[str, Any]) -> tuple[Module, Replica]:
    manifest = parse_manifest(
        {"run": {"exec": ["./server", "-v"]}, **raw}, module_id="test/one", file="module.toml"
    )
    definition = Definition("test/one", str(folder), manifest, "a digest")
    replica = Replica("test/one", 2, 3, 0.0)
    return Module(
        "test/one", str(folder), definition, 0.0, generation=3, replicas=(replica,), wanted=True
    ), replica


def launch(processes: ReplicaProcesses, keeper: FakeKeeper, folder: Path, **raw: Any) -> dict[str, Any]:
    module, replica = module_of(folder, raw)
    processes.spawn(RUN, replica, module)
    return keeper.launches[RUN]


# What is run


PROGRAMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "in the folder": ({"exec": ["./server", "-v"]}, {"argv": ["{folder}/./server", "-v"]}),
    "by its path": ({"exec": ["/bin/cat", "-"]}, {"argv": ["/bin/cat", "-"]}),
    "by its name": ({"exec": ["cat"]}, {"argv": ["cat"]}),
    "warm": ({"python": "one:One"}, {"python": "one:One", "folder": "{folder}"}),
    "cold": (
        {"python": "one:One", "interpreter": "/opt/bin/python"},
        {"argv": ["/opt/bin/python", "/host.py", "one:One", "{folder}"]},
    ),
}


@pytest.mark.parametrize("what", PROGRAMS)
def test_the_program(processes: ReplicaProcesses, keeper: FakeKeeper, folder: Path, what: str) -> None:
    run, wanted = PROGRAMS[what]
    got = launch(processes, keeper, folder, run=run)
    found = {name: got.get(name) for name in ("argv", "python", "folder") if name in got}
    assert found == msgspec.json.decode(
        msgspec.json.encode(wanted).replace(b"{folder}", str(folder).encode())
    )


def test_folder_log_and_sockets_have_their_places(
    processes: ReplicaProcesses, keeper: FakeKeeper, folder: Path, tmp_path: Path
) -> None:
    got = launch(
        processes,
        keeper,
        folder,
        run={"exec": ["./x"], "directory": "data"},
        log={"max_size": "1M", "files": 2},
    )
    assert got["directory"] == str(folder / "data")
    assert got["log"] == {"path": str(tmp_path / "logs/test/one/2.log"), "max_bytes": 1 << 20, "files": 2}
    assert got["notify_path"] == str(tmp_path / "run/r/aabb.notify")
    assert got["control_path"] == str(tmp_path / "run/r/aabb.control")
    assert processes.socket_path(RUN, "control") == got["control_path"]


# Its environment


def test_the_environment_tells_who_it_is_and_nothing_of_nexusds(
    processes: ReplicaProcesses, keeper: FakeKeeper, folder: Path, tmp_path: Path
) -> None:
    environment = launch(processes, keeper, folder)["environment"]
    own = {name: value for name, value in environment.items() if name.startswith(("NEXUS_", "NOTIFY_"))}
    assert own == {
        "NEXUS_MODULE_ID": "test/one",
        "NEXUS_REPLICA": "2",
        "NEXUS_GENERATION": "3",
        "NEXUS_STOP_TIMEOUT": "10",
        "NEXUS_RUN": RUN,
        "NEXUS_CONFIG": str(tmp_path / "run/config/none.json"),
        "NOTIFY_SOCKET": str(tmp_path / "run/r/aabb.notify"),
    }
    assert environment["INHERITED"] == "yes"
    assert not [name for name in environment if name.startswith(("WATCHDOG_", "LISTEN_"))]
    assert msgspec.json.decode(Path(own["NEXUS_CONFIG"]).read_bytes()) == {}


def test_the_manifests_variables_win_over_the_files_and_those_over_the_inherited(
    processes: ReplicaProcesses, keeper: FakeKeeper, folder: Path
) -> None:
    (folder / "env").write_text("INHERITED=file\nBOTH=file\nNEXUS_RUN=forged\n")
    run = {"exec": ["./x"], "environment_file": "env", "environment": {"BOTH": "manifest"}}
    environment = launch(processes, keeper, folder, run=run)["environment"]
    assert (environment["INHERITED"], environment["BOTH"], environment["NEXUS_RUN"]) == (
        "file",
        "manifest",
        RUN,
    )


def test_the_watchdogs_time_is_told_in_microseconds(
    processes: ReplicaProcesses, keeper: FakeKeeper, folder: Path
) -> None:
    got = launch(processes, keeper, folder, health={"watchdog": "1.5s"})
    assert got["environment"]["WATCHDOG_USEC"] == "1500000"


ENVIRONMENT_FILE = """
# a comment
; another
PLAIN=value
  SPACED = value with spaces  \n
EMPTY=
SINGLE='it is "quoted"'
DOUBLE="a = b # no comment"
HALF="open
URL=https://x/?a=b
LAST=first
LAST=last
"""


def test_an_environment_file_is_read_line_by_line(tmp_path: Path) -> None:
    (tmp_path / "env").write_text(ENVIRONMENT_FILE)
    assert read_environment(str(tmp_path / "env")) == {
        "PLAIN": "value",
        "SPACED": "value with spaces",
        "EMPTY": "",
        "SINGLE": 'it is "quoted"',
        "DOUBLE": "a = b # no comment",
        "HALF": '"open',
        "URL": "https://x/?a=b",
        "LAST": "last",
    }


@pytest.mark.parametrize("line", ["no sign", "=nothing before it", " = "])
def test_a_line_of_an_environment_file_that_is_none_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "env").write_text(f"FINE=1\n{line}\n")
    with pytest.raises(ValueError, match=f"{tmp_path}/env line 2: expected NAME=value"):
        read_environment(str(tmp_path / "env"))


def test_a_missing_environment_file_keeps_it_from_being_started(
    processes: ReplicaProcesses, keeper: FakeKeeper, folder: Path
) -> None:
    with pytest.raises(FileNotFoundError):
        launch(processes, keeper, folder, run={"exec": ["./x"], "environment_file": "gone"})
    assert keeper.launches == {}


# Its user


def test_without_user_and_group_nothing_is_changed(
    processes: ReplicaProcesses, keeper: FakeKeeper, folder: Path
) -> None:
    assert launch(processes, keeper, folder)["user"] is None


@pytest.mark.skipif(os.getuid() != 0, reason="gives files away")
@pytest.mark.parametrize("name", [NOBODY.pw_name, "65534"])
def test_a_user_is_looked_up_with_its_groups_and_home(
    processes: ReplicaProcesses, keeper: FakeKeeper, folder: Path, name: str
) -> None:
    keys = {"rate": {"type": "int", "default": 10}}
    got = launch(processes, keeper, folder, run={"exec": ["./x"], "user": name}, config=keys)
    assert got["user"]["uid"] == 65534 and got["user"]["gid"] == NOBODY.pw_gid
    assert NOBODY.pw_gid in got["user"]["groups"]
    assert (got["environment"]["USER"], got["environment"]["HOME"]) == (NOBODY.pw_name, NOBODY.pw_dir)
    assert os.stat(got["environment"]["NEXUS_CONFIG"]).st_uid == 65534


def test_a_python_module_of_another_user_is_not_forked_from_the_keepers_memory(
    processes: ReplicaProcesses, keeper: FakeKeeper, folder: Path
) -> None:
    got = launch(processes, keeper, folder, run={"python": "one:One", "group": "daemon"})
    assert "python" not in got and got["argv"] == [sys.executable, "/host.py", "one:One", str(folder)]


@pytest.mark.skipif(os.getuid() != 0, reason="gives files away")
def test_a_group_takes_the_place_of_the_users_own(
    processes: ReplicaProcesses, keeper: FakeKeeper, folder: Path
) -> None:
    got = launch(processes, keeper, folder, run={"exec": ["./x"], "user": NOBODY.pw_name, "group": "daemon"})
    assert got["user"]["gid"] == grp.getgrnam("daemon").gr_gid
    assert grp.getgrnam("daemon").gr_gid in got["user"]["groups"]


def test_a_group_alone_leaves_the_user_as_it_is(
    processes: ReplicaProcesses, keeper: FakeKeeper, folder: Path
) -> None:
    gid = grp.getgrnam("daemon").gr_gid
    got = launch(processes, keeper, folder, run={"exec": ["./x"], "group": "daemon"})
    assert got["user"] == {"uid": os.getuid(), "gid": gid, "groups": (gid,)}


@pytest.mark.parametrize(
    "who",
    [{"user": "no-such-user"}, {"group": "no-such-group"}, {"user": "4000000000"}, {"user": "99999999999"}],
)
def test_a_user_or_group_that_is_unknown_here_is_named(
    processes: ReplicaProcesses, keeper: FakeKeeper, folder: Path, who: dict[str, str]
) -> None:
    (kind, name), *_ = who.items()
    with pytest.raises(ValueError, match=f"there is no {kind} '{name}'"):
        launch(processes, keeper, folder, run={"exec": ["./x"], **who})
    assert keeper.launches == {}


def test_limits_are_those_that_rlimits_hold(
    processes: ReplicaProcesses, keeper: FakeKeeper, folder: Path
) -> None:
    got = launch(processes, keeper, folder, limits={"memory": "64M", "files": 100, "cpu": 1.0, "tasks": 5})
    assert got["limits"] == {"memory": 64 << 20, "files": 100}
    assert launch(processes, keeper, folder)["limits"] == {}


# Its listening sockets


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def test_sockets_are_opened_once_and_named_for_the_module(
    processes: ReplicaProcesses, keeper: FakeKeeper, folder: Path
) -> None:
    port = free_port()
    run = {"exec": ["./x"], "listen": [f"web=tcp:127.0.0.1:{port}", f"unix:{folder}/s"]}
    got = launch(processes, keeper, folder, run=run)
    first = dict(keeper.held)
    assert got["environment"]["LISTEN_FDNAMES"] == "web:unknown"
    assert keeper.listening[RUN] == [f"test/one web=tcp:127.0.0.1:{port}", f"test/one unix:{folder}/s"]
    launch(processes, keeper, folder, run=run)
    assert keeper.held == first


def test_a_socket_that_cannot_be_opened_keeps_it_from_being_started(
    processes: ReplicaProcesses, keeper: FakeKeeper, folder: Path
) -> None:
    with pytest.raises(OSError, match="cannot listen on unix:/nowhere/s"):
        launch(processes, keeper, folder, run={"exec": ["./x"], "listen": ["unix:/nowhere/s"]})
    assert keeper.launches == {}


def test_sockets_are_let_go_when_the_module_is_unwanted_or_names_them_no_more(
    processes: ReplicaProcesses, keeper: FakeKeeper, folder: Path
) -> None:
    entry = f"unix:{folder}/s"
    raw = {"run": {"exec": ["./x"], "listen": [entry]}}
    module, replica = module_of(folder, raw)
    processes.spawn(RUN, replica, module)
    keeper.hold("test/one unix:/former", os.open(os.devnull, os.O_RDONLY))
    keeper.hold("test/one-more x", os.open(os.devnull, os.O_RDONLY))
    processes.remember("test/one", module)
    assert keeper.held_names() == [f"test/one {entry}", "test/one-more x"]
    processes.remember("test/one", msgspec.structs.replace(module, wanted=False))
    assert keeper.held_names() == ["test/one-more x"]


# Notes


def test_a_note_holds_what_a_later_nexusd_needs(
    processes: ReplicaProcesses, keeper: FakeKeeper, folder: Path
) -> None:
    module, replica = module_of(folder, {})
    processes.remember("test/one", module)
    note = msgspec.json.decode(str(keeper.notes["test/one"]), type=Note)
    assert (note.generation, note.replicas) == (3, (replica,))
    assert '"digest":"a digest"' in str(keeper.notes["definition test/one"])
    processes.remember("test/one", None)
    assert set(keeper.notes.values()) == {None}


def test_signals_and_ends_are_passed_on(processes: ReplicaProcesses, keeper: FakeKeeper) -> None:
    processes.terminate(RUN, signal.SIGTERM)
    processes.signal_leader(RUN, signal.SIGHUP)
    processes.kill(RUN)
    processes.forget(RUN)
    assert keeper.asked == [
        ("signal", RUN, signal.SIGTERM, False),
        ("signal", RUN, signal.SIGCONT, False),  # one that is stopped would not hear it
        ("signal", RUN, signal.SIGHUP, True),
        ("kill", RUN),
        ("forget", RUN),
    ]


# Ends


def refusal(step: str, number: int | None, reason: str, about: str | None) -> dict[str, Any]:
    return {"step": step, "errno": number, "reason": reason, "about": about}


ENDS: list[tuple[int | None, dict[str, Any] | None, Exit, str]] = [
    (0, None, Exit(code=0), "exit status 0"),
    (7 << 8, None, Exit(code=7), "exit status 7"),
    (255 << 8, None, Exit(code=255), "exit status 255"),
    (signal.SIGSEGV, None, Exit(signal=11), "killed by SIGSEGV"),
    (signal.SIGABRT | 0x80, None, Exit(signal=6), "killed by SIGABRT"),  # with a core dump
    (40, None, Exit(signal=40), "killed by signal 40"),
    (None, None, Exit(), "status unknown"),
]


@pytest.mark.parametrize(("status", "refused", "exit", "text"), ENDS)
def test_a_wait_status_in_the_domains_terms(
    status: int | None, refused: dict[str, Any] | None, exit: Exit, text: str
) -> None:
    assert exit_of(status, refused) == exit
    assert exit.description == text


def test_what_never_ran_says_why(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/no/such/interpreter\n")
    missing, denied = "No such file or directory", "Permission denied"
    told = {
        "cannot execute /gone: No such file or directory": refusal("exec", 2, missing, "/gone"),
        "cannot execute cat: not found in PATH": refusal("exec", 2, "not found in PATH", "cat"),
        f"cannot execute {tmp_path}: it is a directory": refusal("exec", 13, denied, str(tmp_path)),
        f"cannot execute {script}: the interpreter in its first line is not there": refusal(
            "exec", 2, missing, str(script)
        ),
        "cannot be started (directory): No such file or directory: /gone": refusal(
            "directory", 2, missing, "/gone"
        ),
        "cannot be started (user): Operation not permitted": refusal(
            "user", 1, "Operation not permitted", None
        ),
        "cannot be started (fork): Resource temporarily unavailable": refusal(
            "fork", 11, "Resource temporarily unavailable", None
        ),
        "cannot be started (exec): ValueError: embedded null byte": refusal(
            "exec", None, "ValueError: embedded null byte", None
        ),
    }
    assert {exit_of(127 << 8, one).description: one for one in told.values()} == told
