"""A disk without room: nexusd comes back on it with all that runs, says so, and is whole again when there is room."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nexusctl.client import RpcError
from tests.e2e.programs import SLEEPER
from tests.running_nexus import Nexus, ticking

SIZE = 2 << 20
AUTOMATIC = '[config.pace]\ntype = "int"\ndefault = 1\napply = "restart"\n'


@pytest.fixture
def crowded() -> Iterator[Nexus]:
    """A nexusd whose state, logs and runtime lie on one small disk, with one module of each wish."""
    if os.getuid() != 0:
        pytest.skip("mounting takes root")
    nexus = Nexus()
    disk = nexus.home / "disk"
    disk.mkdir()
    if subprocess.call(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(disk)]):
        pytest.skip("cannot mount here")
    nexus.runtime, nexus.state, nexus.logs = (disk / name for name in ("run", "state", "logs"))
    try:
        nexus.add_program("a/one", SLEEPER, AUTOMATIC)
        nexus.add_program("a/by-hand", SLEEPER, "autostart = false\n")
        nexus.add_program("a/stopped", SLEEPER)
        nexus.start()
        nexus.call("start_module", module_id="a/by-hand")
        nexus.call("stop_module", module_id="a/stopped")
        nexus.call("configure", module_id="a/one", key="pace", value=7)
        nexus.until_state("a/one", "started")
        yield nexus
    finally:
        ballast(nexus).unlink(missing_ok=True)
        try:
            nexus.close()
        finally:
            subprocess.call(["umount", "-l", str(disk)])


def ballast(nexus: Nexus) -> Path:
    return nexus.home / "disk" / "ballast"


def fill(nexus: Nexus) -> None:
    with pytest.raises(OSError), open(ballast(nexus), "wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)


def states(nexus: Nexus) -> dict[str, str]:
    return {one["id"]: one["state"] for one in nexus.status()["modules"]["items"]}


def command_in_vain(nexus: Nexus) -> list[RpcError]:
    """Refused every time; the audit log takes a few lines more, to the end of its last block."""
    refusals: list[RpcError] = []
    while not (refusals and "the audit log cannot be written" in refusals[-1].message):
        with pytest.raises(RpcError) as refused:
            nexus.call("configure", module_id="a/one", key="pace", value=8)
        refusals.append(refused.value)
        assert len(refusals) < 100
    return refusals


@pytest.mark.parametrize("death", ["nexusd alone", "nexusd and keeper"])
def test_a_nexusd_that_was_killed_on_a_full_disk_comes_back_with_all_that_runs(
    crowded: Nexus, death: str
) -> None:
    before, pids = states(crowded), [crowded.pid_of(one) for one in ("a/one", "a/by-hand")]
    fill(crowded)
    crowded.kill() if death == "nexusd alone" else crowded.kill_both()
    crowded.start()
    assert states(crowded) == before == {"a/one": "started", "a/by-hand": "started", "a/stopped": "stopped"}
    assert [crowded.pid_of(one) for one in ("a/one", "a/by-hand")] == pids
    assert any("full" in warning and "nexus.db" in warning for warning in crowded.status()["warnings"])

    assert crowded.call("get_config", module_id="a/one", key="pace")["config"]["pace"]["value"] == 7
    refusals = command_in_vain(crowded)
    assert all("No space left on device" in one.message for one in refusals[:-1])  # the configuration file's
    assert "No space left on device" in refusals[-1].data["reason"]
    assert crowded.pid_of("a/one") == pids[0]


def test_it_is_whole_again_by_itself_when_there_is_room(crowded: Nexus) -> None:
    fill(crowded)
    crowded.kill()
    crowded.start()
    command_in_vain(crowded)
    ballast(crowded).unlink()
    for _ in ticking(20.0, "the warnings stay"):
        if not crowded.status()["warnings"]:
            break
    crowded.call("stop_module", module_id="a/one")
    crowded.restart()
    assert states(crowded) == {"a/one": "stopped", "a/by-hand": "started", "a/stopped": "stopped"}
    assert crowded.ctl("audit", "verify").returncode == 0
    gaps = [one for one in crowded.call("get_audit")["records"] if one["method"] == "nexusd.gap"]
    assert gaps and all("No space left on device" in gap["params"]["reason"] for gap in gaps)


def test_a_disk_that_fills_up_meanwhile_stands_among_the_warnings_until_there_is_room(crowded: Nexus) -> None:
    fill(crowded)
    command_in_vain(crowded)
    assert any("audit log cannot be written" in warning for warning in crowded.status()["warnings"])
    ballast(crowded).unlink()
    for _ in ticking(20.0, "the warnings stay"):
        if not crowded.status()["warnings"]:
            break
    crowded.call("stop_module", module_id="a/one")
