"""The example modules under a real nexusd: what the README's first command shows, and what each of them promises."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.running_nexus import BOUND_S, Nexus

HEARTBEAT = "vitals/heartbeat-client"
EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "modules"


@pytest.fixture
def examples(nexus: Nexus) -> Nexus:
    """All of them, with a free port and a folder for what they write."""
    shutil.copytree(EXAMPLES, nexus.modules, dirs_exist_ok=True)
    manifest = nexus.modules / "mesh" / "echo" / "module.toml"
    manifest.write_text(manifest.read_text().replace("127.0.0.1:7777", f"127.0.0.1:{_free_port()}"))
    nexus.environment["TMPDIR"] = str(nexus.home)
    return nexus.start()


def test_all_but_the_one_that_is_to_crash_are_started(examples: Nexus) -> None:
    for module_id in (
        "cortex/exec-demo",
        "mesh/echo",
        "mesh/greeter",
        "substrate/bus",
        "vitals/heartbeat-client",
    ):
        examples.until_state(module_id, "started")
    assert examples.status("substrate/flaky")["state"] == "loaded"
    assert "hello from mesh/greeter#0" in examples.wait_log("mesh/greeter", "hello from mesh/greeter#0")


def test_the_flaky_one_crashes_is_tried_again_and_says_why(examples: Nexus) -> None:
    examples.call("configure", module_id="substrate/flaky", key="after_s", value=0.0)
    examples.call("start_module", module_id="substrate/flaky", wait=False)
    examples.until("substrate/flaky", lambda status: status["restarts"] >= 2)
    assert "on purpose" in examples.status("substrate/flaky")["reason"]


@pytest.fixture
def beats(examples: Nexus) -> Iterator[socket.socket]:
    """Where the heartbeat client sends its heartbeats, ten a second, from now on."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as beats:
        beats.bind(str(examples.home / "beats"))
        beats.settimeout(BOUND_S)
        examples.until_state(HEARTBEAT, "started")
        examples.call("configure", module_id=HEARTBEAT, key="target", value=f"unix:{examples.home}/beats")
        examples.call("configure", module_id=HEARTBEAT, key="interval_ms", value=100)
        yield beats


@pytest.mark.parametrize("strategy", ["graceful", "immediate"])
def test_the_heartbeat_keeps_its_count_over_a_reload(
    examples: Nexus, beats: socket.socket, strategy: str
) -> None:
    counted = next(count for count in _counts(beats) if count >= 5)
    examples.call("reload_module", module_id=HEARTBEAT, strategy=strategy)
    assert all(count > counted for count, _ in zip(_counts(beats), range(30), strict=False))
    assert examples.status(HEARTBEAT)["generation"] == 2
    assert not list(examples.home.glob("**/*.state"))  # what was handed over is not left lying about


def test_a_replica_that_crashes_after_a_reload_does_not_take_up_an_old_state(
    examples: Nexus, beats: socket.socket
) -> None:
    assert next(count for count in _counts(beats) if count >= 5)
    examples.call("reload_module", module_id=HEARTBEAT)
    os.kill(examples.pid_of(HEARTBEAT), signal.SIGKILL)
    assert next(count for count in _counts(beats) if count < 5) == 1


def _counts(beats: socket.socket) -> Iterator[int]:
    while True:
        yield json.loads(beats.recv(4096))["count"]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
