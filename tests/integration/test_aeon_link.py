"""`nexusctl aeon link`: makes what AEON looks for, shows that it works, undoes exactly that, overwrites nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("aeon_interface", "nexusctl", "nexusd", "nexus_v2_enterprise.py")
INTERFACES = ("__init__.py", "command.py", "live.py", "status.py")


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    return tmp_path / "aeon"


def link(prefix: Path, *options: str, root: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nexusctl", "aeon", "link", "--prefix", str(prefix), *options],
        env={**os.environ, "PYTHONPATH": str(root)},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
    )


def python(*arguments: str, without_site: bool = True) -> subprocess.CompletedProcess[str]:
    """A Python that knows nothing of an installed nexusd."""
    options = ["-I", "-S"] if without_site else ["-I"]
    return subprocess.run(
        [sys.executable, *options, *arguments],
        env={**os.environ, "NEXUS_SOCKET": "/nowhere/nexus.sock"},
        capture_output=True,
        text=True,
        timeout=60,
    )


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def imported(folder: Path, module: str) -> str:
    code = f"import sys; sys.path.insert(0, {str(folder)!r}); from {module} import get_status, check_liveness_now\n"
    ran = python("-c", code + "print(check_liveness_now()['live'])")
    return ran.stdout + ran.stderr


def test_it_makes_the_links_and_says_so_and_all_ways_to_use_them_work(prefix: Path) -> None:
    made = link(prefix)
    assert (made.returncode, made.stderr) == (0, "")
    for name in INTERFACES:
        assert os.readlink(prefix / "interfaces/python/nexus" / name) == str(
            prefix / "runtime/python/nexus/aeon_interface" / name
        )
        assert f"made     {prefix}/interfaces/python/nexus/{name}" in made.stdout
    assert made.stdout.count("loads ") == 6
    assert imported(prefix / "interfaces/python", "nexus") == "False\n"
    assert imported(prefix.parent, "aeon.interfaces.python.nexus") == "False\n"
    live = python(str(prefix / "interfaces/python/nexus/live.py"), "liveness")
    assert (live.returncode, json.loads(live.stdout)["live"]) == (1, False)


def test_doing_it_twice_changes_nothing_and_undoing_it_leaves_nothing(prefix: Path) -> None:
    link(prefix)
    before = everything(prefix)
    again = link(prefix)
    assert (again.returncode, "made " in again.stdout, everything(prefix)) == (0, False, before)
    undone = link(prefix, "--undo")
    assert undone.returncode == 0
    assert not prefix.exists()
    assert link(prefix, "--undo").stdout == f"nothing below {prefix} was made by nexusctl aeon link\n"


def test_undo_leaves_what_was_there_before_and_what_others_have_put_there_since(prefix: Path) -> None:
    folder = prefix / "interfaces/python/nexus"
    folder.mkdir(parents=True)
    by_hand = folder / "live.py"
    by_hand.symlink_to(prefix / "runtime/python/nexus/aeon_interface/live.py")
    assert link(prefix).returncode == 0
    (prefix / "runtime/python/of_others.py").touch()
    changed = folder / "status.py"
    changed.unlink()
    changed.write_text("mine")

    undone = link(prefix, "--undo")
    assert f"left     {changed}" in undone.stdout
    assert everything(prefix) == {
        *("interfaces", "interfaces/python", "interfaces/python/nexus"),
        *("interfaces/python/nexus/live.py", "interfaces/python/nexus/status.py"),
        *("runtime", "runtime/python", "runtime/python/of_others.py"),
    }
    assert by_hand.is_symlink()


def test_it_makes_nothing_where_something_else_stands_in_the_way(prefix: Path) -> None:
    folder = prefix / "interfaces/python/nexus"
    folder.mkdir(parents=True)
    (folder / "live.py").write_text("of somebody else")
    (folder / "status.py").symlink_to("/nowhere")
    refused = link(prefix)
    assert refused.returncode == 1
    assert f"{folder}/live.py is there and does not lead to" in refused.stderr
    assert f"{folder}/status.py is there" in refused.stderr
    assert everything(folder) == {"live.py", "status.py"}
    assert not (prefix / "runtime").exists()


def test_links_of_our_own_follow_an_installation_that_has_moved(prefix: Path, tmp_path: Path) -> None:
    former = tmp_path / "former"
    former.mkdir()
    for part in PARTS:
        (shutil.copytree if (ROOT / part).is_dir() else shutil.copy)(ROOT / part, former / part)
    assert link(prefix, root=former).returncode == 0
    stale = link(prefix, "--check")
    assert (stale.returncode, f"outdated {prefix}/runtime/python/nexus/nexusctl" in stale.stdout) == (1, True)
    assert link(prefix).returncode == 0
    assert os.readlink(prefix / "runtime/python/nexus/nexusctl") == str(ROOT / "nexusctl")
    assert link(prefix, "--undo").returncode == 0
    assert not prefix.exists()


def test_check_changes_nothing_and_tells_what_is_missing_or_broken(prefix: Path) -> None:
    missing = link(prefix, "--check")
    assert (missing.returncode, prefix.exists()) == (1, False)
    assert f"missing  {prefix}/interfaces/python/nexus/live.py" in missing.stdout
    assert "Error" not in missing.stdout + missing.stderr
    assert missing.stderr.endswith(f"next: nexusctl aeon link --prefix {prefix}\n")
    link(prefix)
    assert link(prefix, "--check").returncode == 0
    (prefix / "runtime/python/nexus/nexusctl").unlink()
    broken = link(prefix, "--check", "-o", "json")
    told = json.loads(broken.stdout)
    assert broken.returncode == 1
    assert [one["path"] for one in told["links"] if one["state"] == "missing"] == [
        str(prefix / "runtime/python/nexus/nexusctl")
    ]


def plain_tree(prefix: Path, parts: Sequence[str]) -> Path:
    tree = prefix / "runtime/python/nexus"
    tree.mkdir(parents=True)
    for part in parts:
        (shutil.copytree if (ROOT / part).is_dir() else shutil.copy)(ROOT / part, tree / part)
    return tree


def test_a_copied_tree_is_used_as_it_is_and_without_nexusd_has_no_daemon_to_offer(prefix: Path) -> None:
    tree = plain_tree(prefix, ["aeon_interface", "nexusctl"])
    made = link(prefix, root=tree)
    assert made.returncode == 0, made.stdout + made.stderr
    assert made.stdout.count("made ") == 4
    assert "nexus_v2_enterprise" not in made.stdout
    assert imported(prefix / "interfaces/python", "nexus") == "False\n"


def test_a_copied_tree_with_nexusd_makes_the_daemon_importable_from_the_folder_above(prefix: Path) -> None:
    tree = plain_tree(prefix, PARTS)
    assert link(prefix, root=tree).returncode == 0
    code = f"import sys; sys.path.insert(0, {str(prefix / 'runtime/python')!r})\n"
    code += (
        "from nexus_v2_enterprise import UniversalDaemon, SecurityContext; print(UniversalDaemon.__name__)"
    )
    assert python("-c", code, without_site=False).stdout == "UniversalDaemon\n"


def test_the_programs_are_made_executable_as_pip_leaves_them_without_that(prefix: Path) -> None:
    tree = plain_tree(prefix, PARTS)
    program = tree / "aeon_interface" / "live.py"
    program.chmod(0o644)
    assert link(prefix, root=tree).returncode == 0
    assert program.stat().st_mode & 0o777 == 0o755
    program.chmod(0o644)
    checked = link(prefix, "--check", root=tree)
    assert (checked.returncode, f"not executable: chmod a+x {program}" in checked.stdout) == (1, True)


def test_several_names_of_the_interface_speak_to_the_same_daemon(prefix: Path) -> None:
    link(prefix)
    code = f"""
import sys
sys.path[:0] = [{str(prefix / "interfaces/python")!r}, {str(prefix.parent)!r}]
import nexus, aeon.interfaces.python.nexus as dotted
from nexus.live import check_liveness_now

class Daemon:
    def call_now(self, method, params, timeout_s):
        return {{"live": method}}

nexus.init_interfaces(Daemon())
print(nexus.get_status is dotted.get_status, check_liveness_now(), dotted.check_liveness_now())
"""
    told = {"live": "check_liveness"}
    assert python("-c", code).stdout == f"True {told} {told}\n"


def test_who_may_not_write_there_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused = link(tmp_path / "file" / "aeon")
    assert (refused.returncode, refused.stderr.startswith("nexusctl: ")) == (1, True)
