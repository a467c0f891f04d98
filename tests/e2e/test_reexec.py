"""nexusctl reexec: another nexusd takes over in the same process; no module, no client and no line is lost by it."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nexusctl.async_nexus_client import AsyncNexusClient
from nexusctl.client import Client, RpcError, Unreachable
from tests.e2e.programs import COUNTER, OBEDIENT, READY_LATER, SLEEPER, TOLD_LATE, TOLD_LATE_KEYS
from tests.running_nexus import BOUND_S, Fifo, Nexus, Status, is_alive

ROOT = Path(__file__).resolve().parents[2]
NOBODY = 65534
ON_PATH = [sys.executable, "-P", "-m", "nexusd"]  # not from the folder it is called in
BACKING_OFF = '[restart]\nbackoff = { first = "1h", initial = "1h", max = "1h", jitter = 0.0 }\n'


class Site:
    """Where nexusd is installed; another version takes its place as an upgrade would, at once."""

    def __init__(self, nexus: Nexus) -> None:
        self.nexus = nexus
        self.place = nexus.home / "site"
        nexus.program = ON_PATH
        nexus.environment["PYTHONPATH"] = str(self.place)
        self.install("2.0.0")

    def install(self, version: str, change: Callable[[Path], None] = lambda _: None) -> None:
        fresh = self.nexus.home / f"site-{version}"
        for package in ("nexusd", "nexusctl"):
            shutil.copytree(ROOT / package, fresh / package)
        (fresh / "nexusd" / "__init__.py").write_text(f'__version__ = "{version}"\n')
        change(fresh)
        link = self.nexus.home / "site.new"
        link.symlink_to(fresh)
        link.replace(self.place)


@pytest.fixture
def site(nexus: Nexus) -> Site:
    return Site(nexus)


class Asking:
    """Clients that ask all the time, each in its own way; what they were told, and the longest wait."""

    def __init__(self, *ways: Callable[[], Iterator[Any]]) -> None:
        self.told: list[Any] = []
        self.faults: list[str] = []
        self.longest_s = 0.0
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(way,)) for way in ways]

    def _ask(self, way: Callable[[], Iterator[Any]]) -> None:
        try:
            answers = way()
            while not self._over.is_set():
                begun = time.monotonic()
                self.told.append(next(answers))
                self.longest_s = max(self.longest_s, time.monotonic() - begun)
        except (RpcError, Unreachable, OSError, ValueError, StopIteration) as error:
            self.faults.append(repr(error))

    def __enter__(self) -> Asking:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(BOUND_S)


def on_one_connection(nexus: Nexus) -> Callable[[], Iterator[Any]]:
    def way() -> Iterator[Any]:
        with Client(nexus.socket, timeout=BOUND_S) as client:
            while True:
                yield client.call("get_status")["version"]

    return way


def on_a_new_one_each_time(nexus: Nexus) -> Callable[[], Iterator[Any]]:
    def way() -> Iterator[Any]:
        while True:
            with Client(nexus.socket, timeout=BOUND_S) as client:
                yield client.call("get_status")["version"]

    return way


def of_the_metrics(port: int) -> Callable[[], Iterator[Any]]:
    def way() -> Iterator[Any]:
        while True:
            with socket.create_connection(("127.0.0.1", port), BOUND_S) as sock:
                sock.sendall(b"GET /livez HTTP/1.1\r\n\r\n")
                answer = b"".join(iter(lambda: sock.recv(65536), b""))
            if not answer.startswith(b"HTTP/1.1 200"):
                raise ValueError(answer)
            yield answer[:12]

    return way


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


def instances(nexus: Nexus, ids: list[str]) -> dict[str, tuple[Any, ...]]:
    """What must not change: process, restarts, state, when that began and, to a tenth, when the next attempt is."""
    found = {}
    for one in ids:
        for replica in nexus.status(one)["instances"]:
            known = [replica[name] for name in ("pid", "restarts", "state", "generation")]
            found[replica["name"]] = (*known, replica["last_exit"] and replica["last_exit"]["description"])
    return found


def since(nexus: Nexus, ids: list[str]) -> list[float]:
    return [one["since"] for module_id in ids for one in nexus.status(module_id)["instances"]]


def kinds(nexus: Nexus) -> list[str]:
    return [event["kind"] for event in nexus.call("get_history", limit=100)["events"]]


def test_fifteen_modules_in_all_states_and_their_clients_see_nothing_of_a_new_version(
    nexus: Nexus, site: Site, gate: Fifo
) -> None:
    port = free_port()
    nexus.settings.write_text(f'[metrics]\nlisten = "127.0.0.1:{port}"\n')
    ids = [f"a/m{number:02}" for number in range(10)]
    for module_id in ids:
        nexus.add_program(module_id, SLEEPER)
    nexus.add_program("b/counter", COUNTER, '[log]\nmax_size = "64k"\nfiles = 500\n')
    nexus.add_program("b/starting", READY_LATER, run='ready = "notify"')
    nexus.add_program("b/backing-off", "#!/bin/sh\nexit 3\n", BACKING_OFF)
    nexus.add_program("b/stopped", SLEEPER)
    nexus.add_python(
        "b/python", "from nexusd.sdk import Module\nclass It(Module):\n    async def start(self): pass\n"
    )
    ids += ["b/counter", "b/starting", "b/backing-off", "b/stopped", "b/python"]
    nexus.start()
    assert nexus.bell.hear() == "begun"
    nexus.until_state("b/backing-off", "backoff")
    nexus.until_state("b/python", "started")
    nexus.call("stop_module", module_id="b/stopped")
    nexus.wait_log("b/counter", "line ")
    before, began, pid, keeper = instances(nexus, ids), since(nexus, ids), nexus.pid, nexus.keeper_pid
    next_attempt = time.time() + nexus.replica("b/backing-off")["next_attempt_in_s"]

    site.install("2.1.0")
    ways = [on_one_connection(nexus), on_a_new_one_each_time(nexus), of_the_metrics(port)]
    with Asking(*ways) as asking:
        ran = nexus.ctl("-o", "json", "reexec")
        assert ran.returncode == 0, ran.stderr
        told = json.loads(ran.stdout)
        assert nexus.call("get_status")["version"] == "2.1.0"
    assert asking.faults == []
    assert {"2.0.0", "2.1.0", b"HTTP/1.1 200"} == set(asking.told)

    assert (told["from"], told["to"], told["keeper"]) == ("2.0.0", "2.1.0", "stays")
    assert (told["untouched"], told["touched"]) == (15, [])
    assert (nexus.status()["pid"], nexus.keeper_pid, nexus.status()["replaced"]) == (
        pid,
        keeper,
        {"from": "2.0.0", "failure": None},
    )
    assert instances(nexus, ids) == before
    assert since(nexus, ids) == pytest.approx(began, abs=0.2)
    assert time.time() + nexus.replica("b/backing-off")["next_attempt_in_s"] == pytest.approx(
        next_attempt, abs=0.3
    )
    gate.say()
    assert nexus.until_state("b/starting", "started")["instances"][0]["pid"] == before["b/starting#0"][0]

    last = int(nexus.log_lines("b/counter")[-2].split()[1])
    nexus.wait_log("b/counter", f"line {last + 500}")
    nexus.call("stop_module", module_id="b/counter")
    *numbered, end = nexus.log_lines("b/counter")
    assert end == f"end {len(numbered)}"
    assert numbered == [f"line {number}" for number in range(len(numbered))]
    assert [one for one in kinds(nexus) if one.startswith("daemon.")] == [
        "daemon.reexec",
        "daemon.taken_over",
    ]
    verdict = nexus.call("verify_audit")
    assert (verdict["whole"], verdict["findings"]) == (True, [])


def commanding(nexus: Nexus, module_id: str) -> Callable[[], Iterator[Any]]:
    def way() -> Iterator[Any]:
        with Client(nexus.socket, timeout=BOUND_S) as client:
            while True:
                yield client.call("stop_module", {"module_id": module_id})["changed"]
                yield client.call("start_module", {"module_id": module_id})["changed"]

    return way


def test_commands_that_never_cease_are_each_carried_out_once(nexus: Nexus) -> None:
    for module_id in ("a/one", "a/two"):
        nexus.add_program(module_id, SLEEPER)
    nexus.start().until_state("a/one", "started")
    nexus.until_state("a/two", "started")
    with Asking(commanding(nexus, "a/one"), commanding(nexus, "a/two")) as asking:
        for _ in range(3):
            instance = nexus.status()["instance"]
            nexus.call("reexec", force=True)
            assert nexus.status()["instance"] != instance
    assert asking.faults == []
    assert set(asking.told) == {True}  # one that was carried out twice would have changed nothing
    outcomes = {one["outcome"] for one in nexus.call("get_audit", limit=10_000)["records"]}
    assert outcomes == {"begun", "ok"}


def test_the_line_says_from_where_to_where_and_that_nothing_was_touched(nexus: Nexus, site: Site) -> None:
    nexus.add_program("a/one", SLEEPER)
    nexus.start().until_state("a/one", "started")
    site.install("3.0.0")
    ran = nexus.ctl("reexec")
    assert (ran.returncode, ran.stderr) == (0, "")
    words = ran.stdout.split()
    assert words[:4] == ["reexec:", "2.0.0", "->", "3.0.0"]
    assert words[6:] == ["ms,", "1", "module", "untouched"]


def test_a_console_script_that_was_replaced_names_the_interpreter_and_its_installation(
    nexus: Nexus, site: Site
) -> None:
    """Both versions stay on disk; the link in bin leads to another one."""
    nexus.environment.pop("PYTHONPATH")
    script = nexus.home / "nexusd"

    def installed(version: str) -> Path:
        own = nexus.home / f"bin-{version}" / "nexusd"
        own.parent.mkdir()
        interpreter = own.parent / "python"
        subprocess.run(
            [sys.executable, "-m", "venv", "--without-pip", "--symlinks", own.parent.parent / f"v-{version}"],
            check=True,
        )
        interpreter = own.parent.parent / f"v-{version}" / "bin" / "python"
        packages = next((own.parent.parent / f"v-{version}" / "lib").glob("python*")) / "site-packages"
        (packages / "x.pth").write_text(f"{nexus.home}/site-{version}\n{Path(pytest.__file__).parents[1]}\n")
        own.write_text(f"#!{interpreter} -P\nfrom nexusd.__main__ import main\nmain()\n")
        own.chmod(0o755)
        return own

    script.symlink_to(installed("2.0.0"))
    nexus.program = [str(script)]
    nexus.add_program("a/one", SLEEPER)
    nexus.start().until_state("a/one", "started")
    pid = nexus.pid_of("a/one")

    site.install("2.2.0")
    second = nexus.home / "second"
    second.symlink_to(installed("2.2.0"))
    second.replace(script)
    assert nexus.call("reexec")["to"] == "2.2.0"
    assert (nexus.status()["version"], nexus.pid_of("a/one")) == ("2.2.0", pid)


def breaks(name: str, text: str) -> Callable[[Path], None]:
    def change(fresh: Path) -> None:
        path = fresh / "nexusd" / name
        path.write_text(path.read_text() + text)

    return change


BROKEN = {
    "a syntax error": (breaks("pages.py", "\ndef (:\n"), "SyntaxError: invalid syntax"),
    "a missing import": (breaks("keeper/host.py", "\nimport nosuch\n"), "No module named 'nosuch'"),
    "tables of a newer one": (
        breaks("system/database.py", "\nVERSION = 0\n"),
        "is of a newer nexusd: its tables are 1, not 0",
    ),
    "another handover": (breaks("domain/replacing.py", "\nFORMAT = 9\n"), "takes over in another way"),
    "notes that it cannot read": (
        breaks("system/keeper_news.py", "\ndef read_note(name, text):\n    raise ValueError\n"),
        "cannot read what is remembered of",
    ),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_version_that_would_not_work_is_refused_and_nothing_changes(
    nexus: Nexus, site: Site, how: str
) -> None:
    nexus.add_program("a/one", SLEEPER)
    nexus.start().until_state("a/one", "started")
    before = (nexus.status()["instance"], nexus.pid_of("a/one"))
    change, said = BROKEN[how]
    site.install("2.1.0", change)

    ran = nexus.ctl("reexec")

    assert ran.returncode == 1
    assert "nexusd is not replaced: " in ran.stderr
    assert said in ran.stderr
    assert (nexus.status()["instance"], nexus.pid_of("a/one")) == before
    assert not list(nexus.runtime.glob("successor*"))
    site.install("2.1.1")
    assert nexus.ctl("reexec").returncode == 0


@pytest.mark.parametrize(("settings", "said"), [("[api]\nbatch = 0\n", "api.batch"), ("[metrics", "TOML")])
def test_a_configuration_that_it_could_not_start_with_is_refused(
    nexus: Nexus, settings: str, said: str
) -> None:
    nexus.start()
    instance = nexus.status()["instance"]
    nexus.settings.write_text(settings)
    ran = nexus.ctl("reexec")
    assert (ran.returncode, nexus.status()["instance"]) == (1, instance)
    assert said in ran.stderr


def test_other_folders_would_mean_other_modules_and_are_refused(nexus: Nexus) -> None:
    start = nexus.command

    def without_state() -> list[str]:
        return [one for one in start() if not one.startswith("--state")]

    nexus.command = without_state  # type: ignore[method-assign]
    nexus.settings.write_text(f'state = "{nexus.state}"\n[metrics]\nlisten = "off"\n')
    nexus.start()
    nexus.settings.write_text(f'state = "{nexus.home}/other"\n[metrics]\nlisten = "off"\n')
    with pytest.raises(RpcError, match=f"its state would be {nexus.home}/other, and is {nexus.state}"):
        nexus.call("reexec")


def test_one_that_comes_to_no_end_is_given_up_after_the_time_that_was_given(nexus: Nexus, site: Site) -> None:
    nexus.start()
    site.install("2.1.0", breaks("pages.py", "\nimport time\ntime.sleep(1000)\n"))
    ran = nexus.ctl("--timeout", "3", "reexec")
    assert ran.returncode == 1
    assert "it was tried for 3 s and came to no end" in ran.stderr


def test_of_two_at_once_one_is_refused(nexus: Nexus) -> None:
    instance = nexus.start().status()["instance"]
    told = dict(nexus.client.call_many([("reexec", None), ("reexec", None)]))
    refused = [one for one in told.values() if isinstance(one, RpcError)]
    assert [one.code for one in refused] == [-32007]
    assert nexus.status()["instance"] != instance
    assert kinds(nexus).count("daemon.taken_over") == 1


def test_one_after_the_other_leaves_no_descriptor_behind(nexus: Nexus) -> None:
    nexus.add_program("a/one", SLEEPER)
    nexus.start().until_state("a/one", "started")
    open_files = []
    for _ in range(3):
        nexus.call("reexec")
        nexus.status()
        open_files.append(len(os.listdir(f"/proc/{nexus.pid}/fd")))
    assert open_files[2] <= open_files[0]


@pytest.mark.skipif(os.getuid() != 0, reason="needs root")
def test_who_may_not_is_told_so_and_it_is_in_the_audit_log(nexus: Nexus) -> None:
    common = '[metrics]\nlisten = "off"\n[api]\ngroup = "nogroup"\n'
    nexus.settings.write_text(common + '[access.users]\nnobody = ["operator"]\n')
    instance = nexus.start().status()["instance"]
    ran = nexus.ctl("reexec", uid=NOBODY)
    assert ran.returncode == 77
    assert "does not hold daemon.admin" in ran.stderr
    denied = [json.loads(json.dumps(one)) for one in nexus.call("get_audit")["records"]]
    assert [(one["method"], one["principal"]) for one in denied if one["outcome"] == "denied"] == [
        ("reexec", "nobody")
    ]
    assert nexus.ctl("reexec").returncode == 0
    methods = [(one["method"], one["outcome"]) for one in nexus.call("get_audit")["records"]]
    assert methods[-4:] == [
        ("reexec", "begun"),
        ("reexec", "ok"),
        ("nexusd.stop", "ok"),
        ("nexusd.start", "ok"),
    ]
    assert nexus.status()["instance"] != instance


def reloading(nexus: Nexus, gate: Fifo) -> int:
    """A module whose next generation does not get ready; the pid of the one in force."""
    ready = 'ready = "notify"'
    nexus.add_program("a/one", READY_LATER, run=ready)
    nexus.start()
    nexus.bell.hear()
    gate.say()
    nexus.bell.hear()
    pid: int = nexus.until_state("a/one", "started")["instances"][0]["pid"]
    nexus.add_program("a/one", READY_LATER + "# newer\n", run=ready)
    nexus.call("reload_module", module_id="a/one", wait=False)
    assert nexus.bell.hear() == "begun"
    return pid


def test_a_reload_under_way_stands_in_the_way_and_is_named(nexus: Nexus, gate: Fifo) -> None:
    reloading(nexus, gate)
    instance = nexus.status()["instance"]
    ran = nexus.ctl("reexec")
    assert ran.returncode == 1
    assert "a reload of a/one" in ran.stderr
    assert "nexusctl reexec --force" in ran.stderr
    assert nexus.status()["instance"] == instance
    gate.say()
    nexus.until("a/one", lambda status: len(status["instances"]) == 1)
    assert nexus.ctl("reexec").returncode == 0


def test_by_force_a_reload_is_cut_short_and_the_generation_in_force_goes_on(nexus: Nexus, gate: Fifo) -> None:
    pid = reloading(nexus, gate)
    ran = nexus.ctl("reexec", "--force")
    assert nexus.status()["replaced"] is not None, ran.stderr
    status = nexus.until("a/one", lambda status: len(status["instances"]) == 1)
    assert (status["state"], status["instances"][0]["pid"]) == ("started", pid)


def test_a_value_that_a_module_is_to_hear_of_once_it_is_started_stands_in_the_way(
    nexus: Nexus, gate: Fifo
) -> None:
    nexus.add_python("a/one", TOLD_LATE, TOLD_LATE_KEYS)
    nexus.start()
    assert nexus.bell.hear() == "begun"
    nexus.call("configure", module_id="a/one", key="rate", value=7)
    ran = nexus.ctl("reexec")
    assert ran.returncode == 1 and "a value that a/one#0 is to hear of once it is started" in ran.stderr
    gate.say()
    assert nexus.bell.hear() == "rate 7"
    nexus.call("configure", module_id="a/one", key="rate", value=8)  # one after the other
    assert nexus.ctl("reexec").returncode == 0


def test_a_command_that_somebody_waits_for_stands_in_the_way(nexus: Nexus, gate: Fifo) -> None:
    nexus.add_program("a/one", READY_LATER, "autostart = false\n", run='ready = "notify"')
    nexus.start()
    waiting = threading.Thread(target=lambda: nexus.ctl("start", "a/one"))
    waiting.start()
    assert nexus.bell.hear() == "begun"
    with pytest.raises(
        RpcError, match=r"under way: start_module a/one \(root\)" if os.getuid() == 0 else ""
    ) as told:
        nexus.call("reexec")
    assert told.value.code == -32007
    gate.say()
    waiting.join(BOUND_S)
    assert nexus.call("reexec")["reexec"]


def test_by_force_what_is_frozen_is_rolled_back_by_the_next_one(nexus: Nexus) -> None:
    nexus.add_program("a/one", SLEEPER, "[chaos]\nallow = true\n")
    nexus.start().until_state("a/one", "started")
    pid = nexus.pid_of("a/one")
    nexus.call("trigger_chaos", experiment="freeze", module_id="a/one", duration=600, wait=False)
    with pytest.raises(RpcError, match="freeze-1 of a/one"):
        nexus.call("reexec")
    nexus.call("reexec", force=True)
    with nexus.events() as events:
        if not any(one["kind"] == "chaos.ended" for one in nexus.history("a/one")):
            events.find(lambda event: event["kind"] == "chaos.ended")
    assert nexus.pid_of("a/one") == pid
    assert Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T"


# A nexusd in whose system execve fails; the trial does not meet it.
NO_EXEC = """
import errno, os
from nexusd import __main__
def fail(*_):
    raise OSError(errno.E2BIG, os.strerror(errno.E2BIG))
os.execve = fail
__main__.main()
"""


def test_a_jump_that_fails_leaves_the_same_nexusd_at_work_and_is_told_loudly(
    nexus: Nexus, gate: Fifo
) -> None:
    nexus.program = [sys.executable, "-c", NO_EXEC]
    nexus.add_program("a/one", OBEDIENT)
    nexus.start()
    nexus.bell.hear()
    pid, keeper = nexus.pid_of("a/one"), nexus.keeper_pid
    with Asking(on_one_connection(nexus), on_a_new_one_each_time(nexus)) as asking:
        ran = nexus.ctl("reexec")
    assert asking.faults == []
    assert ran.returncode == 1
    assert "Argument list too long" in ran.stderr
    assert "daemon.reexec_failed" in kinds(nexus)
    assert any("Argument list too long" in one for one in nexus.status()["warnings"])
    assert "critical" in nexus.log()
    assert (nexus.pid_of("a/one"), nexus.keeper_pid) == (pid, keeper)
    gate.say("3")
    nexus.bell.hear()
    nexus.until("a/one", lambda status: status["restarts"] == 1 and status["state"] == "started")


@pytest.mark.parametrize("after_s", [0.0, 0.02, 0.05, 0.1, 0.2, 0.4])
def test_a_signal_to_end_that_comes_in_between_ends_the_next_one_in_good_order(
    nexus: Nexus, after_s: float
) -> None:
    nexus.add_program("a/one", SLEEPER)
    nexus.start().until_state("a/one", "started")
    pid = nexus.pid_of("a/one")
    nexus.call("reexec")
    threading.Event().wait(after_s)  # somewhere between the two: the moment is what the test is about
    os.kill(nexus.pid, signal.SIGTERM)
    assert nexus.wait() == 0
    assert not is_alive(pid)
    assert "a/one stopping → stopped" in nexus.log()


def other_protocol(fresh: Path) -> None:
    path = fresh / "nexusd" / "keeper" / "protocol.py"
    path.write_text(path.read_text().replace("VERSION = ", "VERSION = 100 + "))


def test_a_keeper_that_speaks_otherwise_is_replaced_and_its_modules_go_on(nexus: Nexus, site: Site) -> None:
    nexus.add_program("a/one", SLEEPER, "replicas = 2\n")
    nexus.start().until_state("a/one", "started")
    before, keeper = instances(nexus, ["a/one"]), nexus.keeper_pid
    site.install("4.0.0", other_protocol)
    assert nexus.call("reexec")["keeper"] == "is replaced"
    assert (nexus.status()["version"], nexus.keeper_pid != keeper) == ("4.0.0", True)
    assert instances(nexus, ["a/one"]) == before


def test_who_follows_events_goes_on_where_he_was(nexus: Nexus) -> None:
    nexus.add_program("a/one", SLEEPER)
    nexus.start().until_state("a/one", "started")

    async def story() -> list[Status]:
        heard: list[Status] = []
        async with AsyncNexusClient(nexus.socket, timeout=BOUND_S) as client, asyncio.timeout(BOUND_S):
            events = client.events(since=0)
            async for event in events:
                heard.append(event)
                if len(heard) == 1:
                    await client.call("reexec")
                if event["kind"] == "daemon.taken_over":
                    await client.call("stop_module", {"module_id": "a/one"})
                if event["to"] == "stopped":
                    return heard
        raise AssertionError("it ended")

    seqs = [event["seq"] for event in asyncio.run(story())]
    assert seqs == list(range(seqs[0], seqs[0] + len(seqs)))


def test_another_nexusd_cannot_slip_in_meanwhile(nexus: Nexus) -> None:
    """The locks are handed over like the sockets."""
    nexus.start()
    lock = f"{nexus.runtime}/nexusd.lock"
    with Asking(_nobody_gets(lock)) as asking:
        nexus.call("reexec")
        nexus.status()
    assert asking.faults == []
    assert Path(lock).read_text() == f"{nexus.pid}\n"


def _nobody_gets(path: str) -> Callable[[], Iterator[Any]]:
    def way() -> Iterator[Any]:
        with open(path) as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    yield "held"
                else:
                    raise ValueError("the lock was free")

    return way
