"""What is wrong is refused with a clear error, and costs nobody else anything."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nexusctl.client import Client, RpcError
from tests.e2e.programs import OBEDIENT, SLEEPER
from tests.running_nexus import BOUND_S, Fifo, Nexus, is_alive, ticking, wait_gone

ONCE = 'autostart = false\n[restart]\npolicy = "never"\n[start]\ntimeout = "500ms"\n'

NOT_STARTABLE = {
    "missing": ('exec = ["./nothing"]', "cannot execute .*/nothing: No such file or directory"),
    "not-executable": ('exec = ["./plain"]', "cannot execute .*/plain: Permission denied"),
    "folder": ('exec = ["./folder"]', "cannot execute .*/folder: it is a directory"),
    "no-interpreter": (
        'exec = ["./orphaned"]',
        "cannot execute .*/orphaned: the interpreter in its first line is not",
    ),
    "no-format": ('exec = ["./garbage"]', "cannot execute .*/garbage: Exec format error"),
    "not-in-path": (
        'exec = ["no-such-program"]',
        "cannot execute no-such-program: not found in PATH|No such file",
    ),
    "no-user": ('exec = ["/bin/true"]\nuser = "nobody-knows"', "there is no user 'nobody-knows'"),
    "no-group": ('exec = ["/bin/true"]\ngroup = "nobody-knows"', "there is no group 'nobody-knows'"),
    "no-environment-file": (
        'exec = ["/bin/true"]\nenvironment_file = "env"',
        "No such file or directory: .*/env",
    ),
    "no-directory": (
        'exec = ["/bin/true"]\ndirectory = "nowhere"',
        r"directory\): No such file or directory: .*/nowhere",
    ),
    "no-cold-python": (
        'python = "m:M"\ninterpreter = "/no/python"',
        "cannot execute /no/python: No such file",
    ),
}


def test_a_program_that_cannot_be_executed_is_told_with_the_reason(nexus: Nexus) -> None:
    nexus.add_program("a/fine", SLEEPER)
    for name, (run, _) in NOT_STARTABLE.items():
        folder = nexus.add_module(f"a/{name}", f"{ONCE}[run]\n{run}\n", {"plain": "echo", "garbage": "#!"})
        (folder / "folder").mkdir()
        (folder / "orphaned").write_text("#!/no/such/interpreter\n")
        (folder / "orphaned").chmod(0o755)
        (folder / "garbage").write_bytes(b"\x00\x01\x02")
    fine = nexus.start().until_state("a/fine", "started")["instances"][0]["pid"]

    for name, (_, reason) in NOT_STARTABLE.items():
        with pytest.raises(RpcError, match=reason) as refused:
            nexus.call("start_module", module_id=f"a/{name}")
        assert refused.value.code == -32008, name
        assert nexus.status(f"a/{name}")["state"] == "failed", name
    assert nexus.pid_of("a/fine") == fine


BROKEN = {
    "syntax": ("class It(:\n", "SyntaxError"),
    "import": ("import no_such_package\n", "ModuleNotFoundError: No module named 'no_such_package'"),
    "no-class": ("class Other: pass\n", "no class It"),
    "no-module-at-all": ("class It: pass\n", "start"),
    "raises": (
        "class It(Module):\n    async def start(self):\n        raise RuntimeError('no luck today')\n",
        "no luck today",
    ),
    "exits": (
        "class It(Module):\n    async def start(self):\n        raise SystemExit(5)\n",
        "exit status 5",
    ),
    "never-returns": (
        "import asyncio\nclass It(Module):\n    async def start(self):\n        await asyncio.sleep(1000)\n",
        "0.5 s",
    ),
    "blocks": (
        "import time\nclass It(Module):\n    async def start(self):\n        time.sleep(1000)\n",
        "not ready within 0.5 s",
    ),
}


def test_a_python_module_that_is_broken_says_why(nexus: Nexus) -> None:
    for name, (code, _) in BROKEN.items():
        nexus.add_python(
            f"a/{name}", f"from nexusd.sdk import Module\n{code}", ONCE + '[stop]\ntimeout = "300ms"\n'
        )
    nexus.start()
    for name, (_, reason) in BROKEN.items():
        with pytest.raises(RpcError) as refused:
            nexus.call("start_module", module_id=f"a/{name}")
        assert refused.value.code == -32008, name
        told = json.dumps([refused.value.message, refused.value.data])
        assert reason in told, (name, told)
        assert nexus.status(f"a/{name}")["state"] == "failed", name


KEYS = """
[config.interval_ms]
type = "int"
default = 1000
min = 100
max = 60000
"""

REFUSED: list[tuple[str, Any, int, str]] = [
    ("no_such_method", {}, -32601, "no_such_method"),
    ("start_module", {}, -32602, "module_id"),
    ("start_module", {"module_id": 5}, -32602, "module_id"),
    ("start_module", {"module_id": "a/one", "wiat": True}, -32602, "wiat"),
    ("start_module", {"module_id": "a/one", "wait": "yes"}, -32602, "wait"),
    ("start_module", {"module_id": "a/one", "timeout": -1}, -32602, "timeout"),
    ("start_module", ["a/one", False, True, 5, "more"], -32602, ""),
    ("start_module", {"module_id": "a/onee"}, -32002, "no such module: a/onee"),
    ("reload_module", {"module_id": "a/one", "strategy": "gently"}, -32602, "strategy"),
    ("configure", {"module_id": "a/one", "key": "intervall_ms", "value": 1}, -32004, "intervall_ms"),
    ("configure", {"module_id": "a/one", "key": "interval_ms", "value": "soon"}, -32004, "int"),
    ("configure", {"module_id": "a/one", "key": "interval_ms", "value": 99}, -32004, "100"),
    ("configure", {"module_id": "a/one", "key": "interval_ms", "value": 60001}, -32004, "60000"),
    ("configure", {"module_id": "a/one", "key": "interval_ms", "value": None}, -32004, "interval_ms"),
    ("configure", {"module_id": "a/one", "key": "interval_ms", "value": [1]}, -32004, "interval_ms"),
    ("get_config", {"module_id": "a/one", "key": "intervall_ms"}, -32004, "intervall_ms"),
    ("get_logs", {"module_id": "a/one", "lines": -1}, -32602, "lines"),
    ("get_logs", {"module_id": "a/one", "replica": 7}, -32602, "replica 7"),
    ("subscribe_events", {"since": -1}, -32602, "since"),
    ("get_history", {"limit": 10**9}, -32602, "limit"),
]


def test_a_wrong_request_is_refused_by_name_and_changes_nothing(nexus: Nexus) -> None:
    nexus.add_program("a/one", SLEEPER, KEYS)
    before = nexus.start().until_state("a/one", "started")
    for method, params, code, told in REFUSED:
        with pytest.raises(RpcError) as refused:
            nexus.client.call(method, params)
        assert refused.value.code == code, (method, params, refused.value.message)
        assert told in json.dumps([refused.value.message, refused.value.data]), (method, refused.value.data)
    after = nexus.status("a/one")
    assert (after["instances"][0]["pid"], after["config"]) == (
        before["instances"][0]["pid"],
        before["config"],
    )


WEIRD_IDS = [
    "",
    "..",
    "../../etc",
    "a/../one",
    "a/one\0",
    "a/ one",
    "a b/c",
    "a/" + "x" * 300,
    "/a/one",
    "a/one/",
    "☃/☃",
]
ABOUT_A_MODULE: dict[str, dict[str, Any]] = {
    **{name: {} for name in ("get_status", "start_module", "stop_module", "restart_module", "reload_module")},
    **{name: {} for name in ("get_config", "get_logs", "subscribe_events", "get_history")},
    "configure": {"key": "k", "value": 1},
}


def test_an_id_that_is_none_is_refused_by_every_method(nexus: Nexus) -> None:
    nexus.add_program("a/one", SLEEPER)
    nexus.start().until_state("a/one", "started")
    files = sorted(nexus.home.rglob("*"))
    for method, more in ABOUT_A_MODULE.items():
        for weird in WEIRD_IDS:
            with pytest.raises(RpcError) as refused:
                nexus.client.call(method, {"module_id": weird, **more})
            assert refused.value.code in (-32002, -32602), (method, weird, refused.value.message)
    assert sorted(nexus.home.rglob("*")) == files
    assert nexus.status("a/one")["state"] == "started"


def test_malformed_json_and_a_message_that_is_too_long_are_answered_and_others_served(nexus: Nexus) -> None:
    nexus.start()
    for line, code in [
        (b"{nonsense\n", -32700),
        (b"[]\n", -32600),
        (b'"text"\n', -32600),
        (b"\xff\xfe\n", -32700),
    ]:
        assert json.loads(_said(nexus, line))["error"]["code"] == code, line
    long = b'{"jsonrpc":"2.0","id":1,"method":"whoami","params":{"x":"' + b"x" * (1 << 20) + b'"}}\n'
    assert json.loads(_said(nexus, long))["error"]["code"] in (-32600, -32700)
    assert nexus.call("whoami")["principal"]


def test_a_connection_has_a_bounded_number_of_subscriptions(nexus: Nexus) -> None:
    nexus.start()
    with Client(nexus.socket, timeout=BOUND_S) as client:
        outcomes = [outcome for _, outcome in client.call_many([("subscribe_events", None)] * 1025)]
        refused = [outcome for outcome in outcomes if isinstance(outcome, RpcError)]
        assert [error.code for error in refused] == [-32007]
    with nexus.events():  # of another connection
        pass


def _said(nexus: Nexus, line: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(BOUND_S)
        sock.connect(str(nexus.socket))
        try:
            sock.sendall(line)
        except OSError:  # refused before all of it was sent; the answer is there all the same
            pass
        with sock.makefile("rb") as answers:
            return answers.readline()


def test_a_configured_value_that_the_manifest_no_longer_allows_gives_way_to_the_default(nexus: Nexus) -> None:
    nexus.add_program("a/one", SLEEPER, KEYS)
    nexus.start()
    nexus.call("configure", module_id="a/one", key="interval_ms", value=50000)
    nexus.add_program("a/one", SLEEPER, KEYS.replace("60000", "5000"))
    nexus.restart()
    assert nexus.status("a/one")["config"] == {"interval_ms": 1000}


# Disks


@pytest.fixture
def small_disk(nexus: Nexus) -> Iterator[Path]:
    """A file system of 1 MiB as the state folder."""
    if os.getuid() != 0:
        pytest.skip("only root can mount")
    nexus.state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "nexus-test", nexus.state], check=True)
    yield nexus.state
    if nexus.process is not None and nexus.process.poll() is None:
        nexus.kill(15)
    subprocess.run(["umount", nexus.state], check=True)


def _fill(folder: Path) -> Path:
    filler = folder / "filler"
    with open(filler, "wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            pass
    return filler


def test_a_full_disk_refuses_a_value_but_keeps_nobody_from_starting_and_stopping(
    nexus: Nexus, small_disk: Path
) -> None:
    nexus.add_program("a/one", SLEEPER, KEYS)
    nexus.start().until_state("a/one", "started")
    filler = _fill(small_disk)

    with pytest.raises(RpcError, match="disk") as refused:
        for value in range(2000, 4000):  # SQLite may have room in hand for some
            nexus.call("configure", module_id="a/one", key="interval_ms", value=value)
    assert refused.value.code == -32003
    assert nexus.status("a/one")["config"]["interval_ms"] in (1000, value - 1)

    stopped = nexus.call("stop_module", module_id="a/one")
    assert stopped["stopped"]
    assert "after a restart of nexusd the former wish holds" in stopped["warning"]
    assert nexus.call("start_module", module_id="a/one")["started"]
    filler.unlink()
    assert nexus.call("configure", module_id="a/one", key="interval_ms", value=5000)["value"] == 5000


def test_a_log_that_the_disk_does_not_take_is_told_in_the_status_and_blocks_nobody(nexus: Nexus) -> None:
    nexus.add_program("a/one", "#!/bin/sh\nseq 1 1000\nexec sleep 1000\n")
    nexus.logs.mkdir(exist_ok=True)
    (nexus.logs / "a").write_text("a file where the module's folder of logs should be")
    nexus.start().until_state("a/one", "started")
    for _ in ticking(BOUND_S, "nobody told of it"):
        if any("/a/one/0.log: " in warning for warning in nexus.status()["warnings"]):
            break
    assert "warning: " in nexus.ctl("status").stdout


def test_a_read_only_state_folder_keeps_nexusd_from_starting_and_is_named(
    nexus: Nexus, small_disk: Path
) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    nexus.launch()
    assert nexus.wait() == 1
    assert re.search(f"{small_disk}/nexus.*ead-only|ead-only.*{small_disk}/nexus", nexus.log())


@pytest.mark.parametrize("damage", ["garbage", "torn"])
def test_a_damaged_database_is_set_aside_whole_and_said_to_be(nexus: Nexus, damage: str) -> None:
    nexus.add_program("a/one", SLEEPER, KEYS)
    nexus.start()
    nexus.call("configure", module_id="a/one", key="interval_ms", value=5000)
    nexus.kill(15)
    database = nexus.state / "nexus.db"
    content = database.read_bytes()
    damaged = (
        b"nothing of SQLite's" * 500
        if damage == "garbage"
        else content[:4096] + b"\xff" * (len(content) - 4096)
    )
    database.write_bytes(damaged)

    nexus.start()
    (aside,) = nexus.state.glob("nexus.db.damaged-*")
    assert aside.read_bytes() == damaged
    assert nexus.status()["warnings"] == [f"the database was damaged and is set aside: {aside}"]
    assert nexus.until_state("a/one", "started")["config"] == {"interval_ms": 1000}


# Folders that change


def test_a_manifest_that_turns_bad_while_it_runs_leaves_the_last_good_one_in_force(nexus: Nexus) -> None:
    folder = nexus.add_program("a/one", SLEEPER)
    nexus.start()
    pid = nexus.until_state("a/one", "started")["instances"][0]["pid"]

    (folder / "module.toml").write_text('replica = 3\n[run]\nexec = ["./program"]\n')
    assert nexus.call("reload_daemon")["invalid"] == ["a/one"]
    with pytest.raises(RpcError, match="its manifest has faults, the one in force stays") as refused:
        nexus.call("reload_module", module_id="a/one")
    assert "replica" in refused.value.data["reason"]
    status = nexus.status("a/one")
    assert (status["state"], status["instances"][0]["pid"]) == ("started", pid)
    assert status["faults"][0]["hint"]
    with pytest.raises(RpcError, match="cannot restart a/one: its manifest has faults"):
        nexus.call("restart_module", module_id="a/one")  # it could be the old manifest with new code
    assert nexus.pid_of("a/one") == pid

    (folder / "module.toml").write_text('version = "2.0"\n[run]\nexec = ["./program"]\n')
    assert nexus.call("reload_module", module_id="a/one")["changed"]
    status = nexus.status("a/one")
    assert (status["version"], status["faults"], status["reason"]) == ("2.0", [], None)


def test_a_module_whose_folder_is_deleted_while_it_runs_goes_on_until_it_is_stopped(nexus: Nexus) -> None:
    folder = nexus.add_program("a/one", SLEEPER)
    nexus.start()
    pid = nexus.until_state("a/one", "started")["instances"][0]["pid"]
    folder.rename(nexus.home / "elsewhere")

    assert nexus.call("reload_daemon")["removed"] == ["a/one"]
    assert nexus.pid_of("a/one") == pid
    with pytest.raises(RpcError, match="cannot reload a/one"):
        nexus.call("reload_module", module_id="a/one")
    assert is_alive(pid)
    nexus.call("stop_module", module_id="a/one")
    nexus.call("reload_daemon")
    assert nexus.status()["modules"]["items"] == []


# A nexusd that, once it has read the manifests, waits at the gate while there is a file "hold".
HELD_READER = """
import os
from nexusd import __main__, catalogue
read = catalogue.discover
def held(paths):
    found = read(paths)
    if os.path.exists(os.environ["E2E_HOME"] + "/hold"):
        with open(os.environ["BELL"], "a") as bell:
            print("read", file=bell)
        os.read(os.open(os.environ["GATE"], os.O_RDONLY), 3)
    return found
catalogue.discover = held
__main__.main()
"""


@contextmanager
def _reload_held(nexus: Nexus, gate: Fifo) -> Iterator[Future[Any]]:
    """A reload_daemon that has read the folders, and puts what it found in force after the block."""
    (nexus.home / "hold").touch()
    with ThreadPoolExecutor(1) as thread, Client(nexus.socket, timeout=BOUND_S) as client:
        reload = thread.submit(client.call, "reload_daemon")
        assert nexus.bell.hear() == "read"
        (nexus.home / "hold").unlink()
        try:
            yield reload
        finally:
            gate.say()
            wait([reload], BOUND_S)


def test_a_module_that_is_restarted_during_a_reload_is_not_put_back(nexus: Nexus, gate: Fifo) -> None:
    nexus.program = [sys.executable, "-c", HELD_READER]
    folder = nexus.add_program("a/one", SLEEPER)
    nexus.start().until_state("a/one", "started")
    folder.rename(nexus.home / "elsewhere")
    with _reload_held(nexus, gate) as reload:
        (nexus.home / "elsewhere").rename(folder)
        nexus.call("restart_module", module_id="a/one")
        pid = nexus.pid_of("a/one")
    assert reload.result()["removed"] == ["a/one"]
    assert nexus.pid_of("a/one") == pid
    assert nexus.call("stop_module", module_id="a/one")["stopped"]
    assert not is_alive(pid)


def test_reloads_at_once_start_a_new_module_once(nexus: Nexus, gate: Fifo) -> None:
    nexus.program = [sys.executable, "-c", HELD_READER]
    nexus.start()
    nexus.add_program("a/one", SLEEPER)
    with Client(nexus.socket, timeout=BOUND_S) as client, ThreadPoolExecutor(1) as thread:
        with _reload_held(nexus, gate) as reload:
            second = thread.submit(client.call, "reload_daemon")
        wait([second], BOUND_S)
    assert [*reload.result()["added"], *second.result()["added"]] == ["a/one"]
    pid = nexus.until_state("a/one", "started")["instances"][0]["pid"]
    assert [other for other, line in nexus.processes().items() if line.startswith("sleep")] == [pid]


def test_a_reload_on_the_way_does_not_keep_nexusd_from_leaving(nexus: Nexus, gate: Fifo) -> None:
    nexus.program = [sys.executable, "-c", HELD_READER]
    nexus.start()
    nexus.add_program("a/one", SLEEPER)
    with _reload_held(nexus, gate) as reload:
        assert nexus.call("shutdown")["shutting_down"]
    with pytest.raises(RpcError, match="shutting down"):
        reload.result()
    assert nexus.wait() == 0


def test_new_code_that_is_broken_does_not_end_the_old(nexus: Nexus) -> None:
    folder = nexus.add_program("a/one", SLEEPER)
    nexus.start()
    pid = nexus.until_state("a/one", "started")["instances"][0]["pid"]
    (folder / "program").write_text("#!/no/interpreter\n")
    with pytest.raises(
        RpcError, match=r"a/one was not reloaded: .*the interpreter in its first line"
    ) as refused:
        nexus.call("reload_module", module_id="a/one")
    assert refused.value.code == -32008
    assert nexus.pid_of("a/one") == pid


# Others in the way


def _second(nexus: Nexus, **folders: Path) -> subprocess.CompletedProcess[str]:
    """Another nexusd, with these folders in common with the first."""
    places = {
        name: nexus.home / f"second-{name}" for name in ("runtime", "state", "logs", "socket")
    } | folders
    options = [f"--{name}={place}" for name, place in places.items()]
    command = [*nexus.program, f"--config={nexus.settings}", f"--modules={nexus.modules}", *options]
    return subprocess.run(command, env=nexus.environment, capture_output=True, text=True, timeout=BOUND_S)


def test_a_second_nexusd_is_refused_and_the_first_unharmed(nexus: Nexus) -> None:
    nexus.add_program("a/one", SLEEPER)
    nexus.start()
    pid = nexus.until_state("a/one", "started")["instances"][0]["pid"]

    same_socket = _second(nexus, socket=nexus.socket)
    assert same_socket.returncode == 1
    assert f"another nexusd answers on {nexus.socket} (pid {nexus.pid})" in same_socket.stderr
    same_runtime = _second(nexus, runtime=nexus.runtime)
    assert same_runtime.returncode == 1
    assert f"another nexusd (pid {nexus.pid}) uses {nexus.runtime}" in same_runtime.stderr
    same_state = _second(nexus, state=nexus.state)
    assert same_state.returncode == 1
    assert f"another nexusd (pid {nexus.pid}) uses {nexus.state}" in same_state.stderr

    assert nexus.pid_of("a/one") == pid
    sleepers = [one for one, line in nexus.processes().items() if line.startswith("sleep ")]
    assert sleepers == [pid]


def test_a_file_in_the_socket_s_place_is_not_deleted(nexus: Nexus) -> None:
    nexus.socket.write_text("precious")
    nexus.launch()
    assert nexus.wait() == 1
    assert "is in the way: it is not a socket" in nexus.log()
    assert nexus.socket.read_text() == "precious"
    nexus.socket.unlink()


def test_an_address_that_another_program_has_is_named_and_free_later(nexus: Nexus) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        nexus.add_program("a/one", SLEEPER, ONCE, f'listen = ["tcp:127.0.0.1:{port}"]')
        nexus.start()
        with pytest.raises(RpcError, match=f"cannot listen on tcp:127.0.0.1:{port}: Address already in use"):
            nexus.call("start_module", module_id="a/one")
    assert nexus.call("start_module", module_id="a/one")["started"]


def test_a_faulty_nexusd_toml_is_told_with_all_its_faults_and_exit_status_2(nexus: Nexus) -> None:
    nexus.settings.write_text('sockett = "x"\n[api]\nbatch = "many"\n')
    nexus.launch()
    assert nexus.wait() == 2
    assert "sockett" in nexus.log() and "batch" in nexus.log()


def test_a_crash_that_floods_the_log_is_told_by_its_last_lines(nexus: Nexus, gate: Fifo) -> None:
    program = '#!/bin/sh\ni=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo "line $i"; done\nexit 9\n'
    nexus.add_program("a/one", program, ONCE, 'ready = "notify"')
    nexus.start()
    with pytest.raises(RpcError) as refused:
        nexus.call("start_module", module_id="a/one")
    assert refused.value.data["log"] == [f"line {number}" for number in range(2991, 3001)]
    assert refused.value.data["exit"]["code"] == 9


def test_output_that_is_no_text_does_no_harm(nexus: Nexus) -> None:
    program = "#!/bin/sh\nprintf '\\377\\376\\000 \\033[2J no newline'\nexec sleep 1000\n"
    nexus.add_program("a/one", program)
    nexus.start()
    pid = nexus.until_state("a/one", "started")["instances"][0]["pid"]
    nexus.call("stop_module", module_id="a/one")
    wait_gone(pid)
    (line,) = nexus.call("get_logs", module_id="a/one")["lines"]
    assert line["line"].endswith("no newline")


def test_a_notification_of_garbage_does_no_harm(nexus: Nexus, gate: Fifo) -> None:
    program = OBEDIENT.replace(
        "import os\n",
        "import os, socket\n"
        "with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:\n"
        "    for text in (b'', b'\\xff\\xfe', b'=', b'READY', b'x' * 5000, b'STATUS=' + b'\\xff' * 99):\n"
        "        s.sendto(text, os.environ['NOTIFY_SOCKET'])\n",
    )
    nexus.add_program("a/one", program)
    nexus.start()
    nexus.bell.hear()
    nexus.until_state("a/one", "started")
    assert nexus.ctl("status", "a/one").returncode == 0
