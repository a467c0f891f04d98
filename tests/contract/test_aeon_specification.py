"""The code blocks of AEON's specification, run as they stand: over the socket, and in the daemon's own process."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import aeon_interface
from nexus_v2_enterprise import SecurityContext, UniversalDaemon
from tests.contract.specification import BLOCKS, block
from tests.contract.world import World, base_interpreter, is_possible
from tests.fake_daemon import FakeDaemon
from tests.running_nexus import BOUND_S, Nexus

ROOT = Path(__file__).parents[2]
RUNNER = str(Path(__file__).with_name("run_block.py"))
HEARTBEAT = "vitals/heartbeat-client"
TYPES = {float: (int, float)}

pytestmark = pytest.mark.skipif(not is_possible(), reason="no mount namespaces here, so no /aeon of our own")


@pytest.fixture
def world(tmp_path: Path) -> World:
    """/aeon with a plain tree of the packages, and a Python that has nothing else installed."""
    return World(tmp_path / "world").has_python(base_interpreter()).has_tree()


@pytest.fixture
def linked(tmp_path: Path) -> World:
    """/aeon as `nexusctl aeon link` makes it, and the Python that has all that nexusd needs."""
    world = World(tmp_path / "world").has_python(sys.executable)
    done = world.run(sys.executable, "-m", "nexusctl", "aeon", "link", PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stdout + done.stderr
    return world


@pytest.fixture
def fleet(nexus: Nexus) -> Nexus:
    """The module that the specification speaks of."""
    example = ROOT / "examples" / "modules" / HEARTBEAT
    files = {path.name: path.read_text() for path in example.iterdir() if path.is_file()}
    nexus.add_module(HEARTBEAT, files.pop("module.toml"), files)
    return nexus


def set_up(world: World) -> None:
    """The specification's own two steps."""
    for code in ("ls -la /aeon/runtime/python/nexus\n", block("bash", "mkdir -p").code):
        done = world.bash(code)
        assert (done.returncode, done.stderr) == (0, "")


def environment(nexus: Nexus) -> dict[str, str]:
    folders = {"RUNTIME": nexus.runtime, "STATE": nexus.state, "LOGS": nexus.logs, "SOCKET": nexus.socket}
    return {
        **nexus.environment,
        **{f"NEXUS_{name}": str(folder) for name, folder in folders.items()},
        "NEXUS_MODULES": str(nexus.modules),
        "NEXUS_CONFIG_FILE": str(nexus.settings),
        "PYTHONPATH": f"/:/aeon/runtime/python:{ROOT}",
    }


def run_python(world: World, nexus: Nexus, mode: str, code: str) -> list[tuple[str, Any]]:
    path = world.folder / "block.py"
    path.write_text(code)
    done = world.run("python", RUNNER, mode, str(path), **environment(nexus))
    assert done.returncode == 0, done.stderr
    return [(name, value) for name, value in json.loads(done.stdout.splitlines()[-1])]


@pytest.fixture(params=["socket", "inside"])
def bound_by(request: pytest.FixtureRequest, linked: World, fleet: Nexus) -> Callable[[str], list[Any]]:
    """What a block binds to the names `status` and `result`, in order."""
    if request.param == "socket":
        fleet.start().until(HEARTBEAT, lambda status: status["health"] == "healthy")

    def values(code: str) -> list[Any]:
        bound = run_python(linked, fleet, request.param, code)
        return [value for name, value in bound if name in ("status", "result")]

    return values


def lacks(example: Any, found: Any, place: str = "") -> list[str]:
    """Where a field of an example is missing or of another type; more fields are allowed."""
    if not isinstance(found, TYPES.get(type(example), type(example))):
        return [f"{place} is {found!r}"]
    if not isinstance(example, dict) or place == ".modules.by_state":
        return []
    missing = [f"{place}.{name} is missing" for name in example.keys() - found.keys()]
    return missing + [
        one
        for name in example.keys() & found.keys()
        for one in lacks(example[name], found[name], f"{place}.{name}")
    ]


def example(word: str) -> Any:
    return json.loads(block("json", word).code)


def test_the_copy_of_the_specification_has_the_blocks_we_know() -> None:
    """A new text has to be looked through; its blocks are told by their first lines."""
    assert [one.language for one in BLOCKS].count("python") == 10
    assert [one.language for one in BLOCKS].count("bash") == 7
    assert [one.language for one in BLOCKS].count("json") == 4


def test_the_status_block_gives_the_daemons_status_and_the_modules(
    bound_by: Callable[[str], list[Any]],
) -> None:
    daemon, module = bound_by(block("python", "import get_status\n\n# Get full").code)
    assert lacks(example("total_discovered"), daemon) == []
    assert (module["id"], module["state"]) == (HEARTBEAT, "started")


def test_the_liveness_block_gives_liveness_and_readiness(bound_by: Callable[[str], list[Any]]) -> None:
    live, ready = bound_by(block("python", "import check_liveness, check_readiness").code)
    assert lacks(example('"live"'), live) == []
    assert lacks(example('"ready"'), ready) == []
    assert (live["live"], ready["ready"]) == (True, True)


def test_the_command_block_reloads_reads_metrics_and_configures(bound_by: Callable[[str], list[Any]]) -> None:
    reloaded, metrics, configured = bound_by(block("python", "import execute_command\n\n# Reload").code)
    assert lacks(example('"reloaded"'), reloaded) == []
    assert reloaded["result"].items() >= example('"reloaded"')["result"].items()
    assert (
        metrics["success"]
        and 'nexus_module_state{module="vitals/heartbeat-client"' in metrics["result"]["text"]
    )
    assert configured["result"].items() >= {"key": "interval_ms", "value": 5000}.items()


def test_the_setup_blocks_start_a_daemon_with_the_interface_attached(linked: World, fleet: Nexus) -> None:
    bound = run_python(linked, fleet, "start", block("python", "init_interfaces(daemon)").code)
    live = dict(bound)["asked"]
    assert (live["live"], live["daemon_running"]) == (True, True)


def test_the_security_block_makes_a_daemon_that_is_bound_by_its_context(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NEXUS_CONFIG_FILE", str(tmp_path / "nexusd.toml"))
    (tmp_path / "nexusd.toml").touch()
    names: dict[str, Any] = {"UniversalDaemon": UniversalDaemon}
    exec(block("python", "SecurityContext(").code, names)
    context = names["daemon"].security_context
    assert isinstance(context, SecurityContext)
    assert (context.principal, context.roles) == ("aeon-orchestrator", ("aeon", "operator"))
    assert "chaos.trigger" in context.permissions


def test_the_import_block_finds_the_daemon_in_a_plain_tree(linked: World) -> None:
    done = linked.run("python", "-c", block("python", "# Ensure path").code)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_shell_blocks_of_the_probes_tell_up_from_down(world: World, fleet: Nexus) -> None:
    """The blocks echo the first two statuses; the third is that of the whole block."""
    set_up(world)
    code = block("bash", "live.py liveness").code
    fleet.start().until_state(HEARTBEAT, "started")
    up = world.bash(code, **{**environment(fleet), "PYTHONPATH": ""})
    live, first, ready, second, critical = up.stdout.splitlines()
    assert (first, second, up.returncode, up.stderr) == ("0", "0", 0, "")
    assert (json.loads(live)["live"], json.loads(ready)["ready"]) == (True, True)
    assert json.loads(critical)["healthy"] is True

    fleet.kill()
    down = world.bash(code, **{**environment(fleet), "PYTHONPATH": ""})
    live, first, ready, second, critical = down.stdout.splitlines()
    assert (first, second, down.returncode, down.stderr) == ("1", "1", 1, "")
    assert lacks(example('"live"'), json.loads(live)) == []
    assert lacks(example('"ready"'), json.loads(ready)) == []


def test_the_shell_blocks_of_the_commands_print_their_answers(world: World, fleet: Nexus) -> None:
    set_up(world)
    fleet.start().until_state(HEARTBEAT, "started")
    code = block("bash", "command.py reload_module").code
    done = world.bash(code, **{**environment(fleet), "PYTHONPATH": ""})
    reloaded, _ = json.JSONDecoder().raw_decode(done.stdout)
    assert reloaded["result"].items() >= example('"reloaded"')["result"].items()


def test_the_shell_block_for_prometheus_leaves_a_file_with_the_bare_text(
    world: World, tmp_path: Path
) -> None:
    set_up(world)
    text = "# TYPE nexus_up gauge\nnexus_up 1.0\n"
    written = Path("/tmp/metrics.txt")  # as the block names it
    former = written.read_bytes() if written.exists() else None
    with FakeDaemon(tmp_path / "s", {"get_metrics": {"content_type": "text/plain", "text": text}}):
        done = world.bash(block("bash", "> /tmp/metrics.txt").code, NEXUS_SOCKET=str(tmp_path / "s"))
    try:
        assert (done.returncode, done.stderr, written.read_text()) == (0, "", text)
    finally:
        written.unlink()
        if former is not None:
            written.write_bytes(former)


def test_the_blocks_for_trouble_put_missing_links_back(world: World, fleet: Nexus) -> None:
    """In an empty folder: ln refuses to make a link twice."""
    fleet.start()
    (world.aeon / "interfaces" / "python" / "nexus").mkdir(parents=True)
    for word in ("# Check symlinks", "# Check permissions"):
        done = world.bash(block("bash", word).code)
        assert (done.returncode, done.stderr) == (0, "")
    live = world.run(
        "/aeon/interfaces/python/nexus/live.py", "liveness", **{**environment(fleet), "PYTHONPATH": ""}
    )
    assert (live.returncode, json.loads(live.stdout)["live"]) == (0, True)


@pytest.mark.parametrize("name", ["StatusInterface", "LivenessProbe", "CommandInterface"])
def test_the_classes_have_the_methods_of_the_reference(name: str) -> None:
    """The reference is written without bodies, which Python does not take: it is read, not run."""
    ours = getattr(aeon_interface, name)
    wanted = re.findall(r"(async )?def (\w+)\(([^)]*)\)", block("python", f"class {name}:").code)
    assert wanted
    for is_async, method, parameters in wanted:
        found = getattr(ours, method)
        assert asyncio.iscoroutinefunction(found) is bool(is_async)
        names = re.findall(r"(\w+):", parameters)
        assert list(inspect.signature(found).parameters) == ["self", *names]


# The orchestration script

SCRIPT = block("python", "monitor_and_orchestrate").code
LOOKS = """#!/bin/sh
[ ! -e "$E2E_HOME/broken" ] && exec sleep 1000
exit 1
"""


class Orchestration:
    """The script in a process of its own; its minute of sleep lasts until the test says so."""

    def __init__(self, world: World, nexus: Nexus) -> None:
        path = world.folder / "orchestration.py"
        path.write_text(SCRIPT, encoding="utf-8")
        given = {**environment(nexus), "PYTHONPATH": "/aeon/runtime/python", "PYTHONIOENCODING": "utf-8"}
        self._process = subprocess.Popen(
            world.command("python", str(ROOT / "tests" / "contract" / "run_script.py"), str(path)),
            env=world.environment(given),
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )

    def look(self) -> str:
        """What one round of it prints."""
        assert self._process.stdout is not None
        lines = []
        for line in self._process.stdout:
            if line == "-- sleeps for 60 s\n":
                return "".join(lines)
            lines.append(line)
        raise AssertionError(f"it ended with {self._process.wait(BOUND_S)}: {lines}")

    def next_look(self, first: str = "") -> str:
        """One more round, after its own daemon was brought `up` or `down`."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{first}\n")
        self._process.stdin.flush()
        return self.look()

    def end(self) -> int:
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self._process.wait(BOUND_S)


@pytest.fixture
def trio(nexus: Nexus) -> Nexus:
    """Three modules that end, and stay failed, while the file `broken` is there."""
    for number in range(3):
        nexus.add_program(f"a/{number}", LOOKS, '[restart]\npolicy = "never"\n')
    return nexus


def until_all(nexus: Nexus, state: str) -> None:
    for number in range(3):
        nexus.until_state(f"a/{number}", state)


def break_all(nexus: Nexus) -> None:
    (nexus.home / "broken").touch()
    for number in range(3):
        os.kill(nexus.pid_of(f"a/{number}"), signal.SIGKILL)
    until_all(nexus, "failed")


def test_the_orchestration_script_goes_through_down_up_degraded_and_back(world: World, trio: Nexus) -> None:
    set_up(world)
    script = Orchestration(world, trio)
    assert "High unhealthy ratio" in script.look()

    trio.start()
    until_all(trio, "started")
    assert "NEXUS healthy" in script.next_look()

    break_all(trio)
    assert "High unhealthy ratio" in script.next_look()

    trio.kill()
    assert "Healing failed" in script.next_look()

    (trio.home / "broken").unlink()
    trio.start()
    for number in range(3):
        trio.call("start_module", module_id=f"a/{number}")
    assert "NEXUS healthy" in script.next_look()
    assert script.end() == 0


def test_the_orchestration_script_does_so_in_the_daemons_own_process(linked: World, trio: Nexus) -> None:
    script = Orchestration(linked, trio)
    assert "High unhealthy ratio" in script.look()
    script.next_look("up")
    until_all(trio, "started")
    assert "NEXUS healthy" in script.next_look()

    break_all(trio)
    assert "High unhealthy ratio" in script.next_look()
    assert "Healing failed" in script.next_look("down")

    (trio.home / "broken").unlink()
    script.next_look("up")
    until_all(trio, "started")
    assert "NEXUS healthy" in script.next_look()
    assert script.end() == 0


def test_the_orchestration_script_heals_what_has_failed(world: World, trio: Nexus) -> None:
    set_up(world)
    trio.start()
    until_all(trio, "started")
    script = Orchestration(world, trio)
    assert "NEXUS healthy" in script.look()

    break_all(trio)
    (trio.home / "broken").unlink()
    assert "Healing triggered successfully" in script.next_look()
    assert {trio.status(f"a/{number}")["state"] for number in range(3)} == {"started"}
    assert "NEXUS healthy" in script.next_look()
    assert script.end() == 0
