"""The delegated part of the cgroup tree against the kernel: found or refused, laid out, read, given back."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nexusd.domain.manifest import parse_manifest
from nexusd.keeper import leaf
from nexusd.system import cgroups
from nexusd.system.cgroups import NotDelegated, Place
from tests.own_cgroup import delegated, entered

RUN = "mesh/echo#0@1~9f3a1c2b"
FIND = "from nexusd.system.cgroups import find, lay_out\nprint(find().root)\nprint(lay_out(find()))\n"


@pytest.fixture
def cgroup() -> Iterator[Path]:
    with delegated() as place:
        yield place


def inside(cgroup: Path, code: str) -> subprocess.CompletedProcess[str]:
    command = entered(cgroup, sys.executable, "-c", code)
    return subprocess.run(command, capture_output=True, text=True, timeout=30, cwd=Path(__file__).parents[2])


def tree(tmp_path: Path, own: str, mounts: str) -> tuple[str, str]:
    """Files with what /proc/self/cgroup and /proc/self/mountinfo say."""
    for name, text in (("cgroup", own), ("mountinfo", mounts)):
        (tmp_path / name).write_text(text)
    return str(tmp_path / "cgroup"), str(tmp_path / "mountinfo")


def mount(point: Path | str, top: str = "/") -> str:
    return f"36 25 0:30 {top} {point} rw,nosuid shared:9 - cgroup2 cgroup2 rw\n"


def mark(folder: Path) -> None:
    try:
        os.setxattr(folder, "user.delegate", b"1")
    except OSError:
        pytest.skip("this file system has no attributes of users")


def marked(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("cgroup.kill", "cgroup.procs", "cgroup.subtree_control", "cgroup.controllers"):
        (folder / name).touch()
    mark(folder)
    return folder


def test_a_process_finds_what_is_delegated_to_it_and_moves_into_a_leaf(cgroup: Path) -> None:
    told = inside(cgroup, FIND + "print(open('/proc/self/cgroup').read())")
    assert told.stdout.splitlines()[0] == str(cgroup), told.stderr
    assert f"/{cgroup.name}/daemon" in told.stdout
    assert (cgroup / "modules").is_dir()


@pytest.mark.parametrize("name", ["daemon", "subgroup"])
def test_a_process_that_begins_in_a_leaf_finds_the_same_and_stays_there(cgroup: Path, name: str) -> None:
    (cgroup / name).mkdir()
    told = inside(cgroup / name, FIND + "print(open('/proc/self/cgroup').read())").stdout
    assert told.splitlines()[0] == str(cgroup)
    assert f"/{cgroup.name}/{name}\n" in told


@pytest.mark.parametrize(("name", "expected"), [("", False), ("daemon", False), ("subgroup", True)])
def test_controllers_are_on_only_where_the_next_daemon_can_be_started_again(
    tmp_path: Path, name: str, expected: bool
) -> None:
    root = tmp_path / "nexusd.service"
    (root / "modules").mkdir(parents=True)
    for folder, file, text in (
        (root, "cgroup.controllers", "cpuset cpu pids"),
        (root, "cgroup.subtree_control", ""),
        (root / "modules", "cgroup.subtree_control", ""),
    ):
        (folder / file).write_text(text)
    tree = cgroups.lay_out(Place(str(root), str(root / name) if name else str(root)))
    # In a plain file what is written last stands: the kernel would have added it to the rest.
    assert (root / "cgroup.subtree_control").read_text() == ("+pids" if expected else "")
    assert tree.root == str(root)


def test_an_unmarked_cgroup_is_not_ours_even_for_root(cgroup: Path) -> None:
    os.removexattr(cgroup, "user.delegate")
    told = inside(cgroup, FIND)
    assert "NotDelegated: its cgroup is not delegated" in told.stderr
    assert not (cgroup / "modules").exists()


NOT_OURS = {
    "version 1 alone": ("4:memory:/user\n", "", "no cgroup version 2"),
    "not mounted": ("0::/user\n", "", "is mounted"),
    "mounted from elsewhere": ("0::/user/a\n", mount("/x", "/other"), "is mounted"),
    "the root, as in a container": ("0::/\n", mount("/sys/fs/cgroup"), "not delegated"),
}


@pytest.mark.parametrize("name", NOT_OURS)
def test_the_reason_is_told_where_there_is_nothing_to_rule(tmp_path: Path, name: str) -> None:
    own, mounts, reason = NOT_OURS[name]
    with pytest.raises(NotDelegated, match=reason):
        cgroups.find(*tree(tmp_path, own, mounts))


def test_a_unit_does_not_take_what_is_delegated_to_the_systemd_above_it(tmp_path: Path) -> None:
    marked(tmp_path / "user@1000.service")
    (tmp_path / "user@1000.service" / "mine.service").mkdir()
    with pytest.raises(NotDelegated, match="not delegated"):
        cgroups.find(*tree(tmp_path, "0::/user@1000.service/mine.service\n", mount(tmp_path)))


def test_a_mount_of_a_part_and_blanks_in_its_place_are_understood(tmp_path: Path) -> None:
    place = marked(tmp_path / "a place" / "nexusd.service")
    told = tree(tmp_path, "0::/pod/nexusd.service\n", mount(f"{tmp_path}/a\\040place", "/pod"))
    assert cgroups.find(*told) == Place(str(place), str(place))


def test_a_kernel_without_cgroup_kill_is_named(tmp_path: Path) -> None:
    place = marked(tmp_path / "nexusd.service")
    (place / "cgroup.kill").unlink()
    with pytest.raises(NotDelegated, match=r"cgroup\.kill"):
        cgroups.find(*tree(tmp_path, "0::/nexusd.service\n", mount(tmp_path)))


def test_a_leaf_is_named_for_its_run_and_never_like_a_file_of_the_kernels() -> None:
    assert cgroups.leaf_name(RUN) == "mesh:echo#0~9f3a1c2b"
    assert ":" in cgroups.leaf_name("cgroup.procs/memory.max#0@1~00000000")


LIMITS = {
    "all": (
        {"memory": "64M", "cpu": 1.5, "tasks": 9, "files": 100},
        {"memory.max": str(64 << 20), "memory.oom.group": "1", "cpu.max": "150000 100000", "pids.max": "9"},
    ),
    "none": ({}, {}),
    "a processor's thousandth": ({"cpu": 0.001}, {"cpu.max": "1000 100000"}),
}


@pytest.mark.parametrize("name", LIMITS)
def test_limits_are_written_as_the_kernel_wants_them(name: str) -> None:
    raw, files = LIMITS[name]
    manifest = parse_manifest({"run": {"exec": ["x"]}, "limits": raw}, module_id="a/b", file="f")
    assert cgroups.limits(manifest, cgroups.CONTROLLERS) == files
    assert cgroups.limits(manifest, ()) == {}


def test_what_the_kernel_holds_is_read_back_from_it(tmp_path: Path) -> None:
    for name, text in {"memory.max": "1000\n", "cpu.max": "max 100000\n", "pids.max": "max\n"}.items():
        (tmp_path / name).write_text(text)
    assert cgroups.held(str(tmp_path)) == {"memory"}
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert cgroups.held(str(tmp_path)) == {"memory", "cpu"}
    assert cgroups.held(str(tmp_path / "gone")) == frozenset()


def test_a_leaf_counts_what_its_processes_used_also_those_that_have_ended(cgroup: Path) -> None:
    busy = "import time\nwhile time.process_time() < 0.2: pass"
    assert inside(cgroup, busy).returncode == 0
    used = cgroups.used(str(cgroup))
    assert used is not None
    assert 0.2 <= used.cpu_s < 5
    assert (used.memory_bytes is None) == (not (cgroup / "memory.current").exists())
    assert cgroups.used(str(cgroup / "gone")) is None


def test_a_leaf_is_made_with_its_limits_written(cgroup: Path) -> None:
    place = cgroup / "leaf"
    leaf.make({"path": str(place), "limits": {"cgroup.max.depth": "3"}})  # a file that needs no controller
    assert (place / "cgroup.max.depth").read_text() == "3\n"


def test_a_leaf_that_refuses_a_limit_is_not_left_behind(cgroup: Path) -> None:
    place = cgroup / "leaf"
    with pytest.raises(OSError, match="nonsense"):
        leaf.make({"path": str(place), "limits": {"nonsense.max": "1"}})
    assert not place.exists()


def test_a_leaf_is_given_back_with_what_its_processes_made_below_it(cgroup: Path) -> None:
    place = cgroup / "leaf"
    (place / "own" / "deeper").mkdir(parents=True)
    with subprocess.Popen(entered(place / "own" / "deeper", "sleep", "1000")) as sleeper:
        while not leaf.is_populated(str(place)):
            assert sleeper.poll() is None
        assert leaf.pids(str(place)) == [sleeper.pid]
        assert not leaf.remove(str(place))
        leaf.kill(str(place))
        assert sleeper.wait(10) == -9
    assert leaf.remove(str(place))
    assert not place.exists()
    assert (leaf.pids(str(place)), leaf.is_populated(str(place))) == ([], False)
    leaf.kill(str(place))
