"""`nexusctl aeon link`: makes what AEON looks for, shows that it works, undoes exactly that, overwrites nothing.

And it is led nowhere by what others control.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from nexusctl.aeon_record import NAME as RECORD
from nexusctl.trust import stranger

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("aeon_interface", "nexusctl", "nexusd", "nexus_v2_enterprise.py")
INTERFACES = ("__init__.py", "command.py", "live.py", "status.py")
NOBODY = 65534

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to others")


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


def of_nobody(path: Path) -> Path:
    os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    return path


def spy(file: Path) -> Path:
    """A program that tells that it was run."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"open({str(file) + '.was-run'!r}, 'w').close()\n")
    return file


def was_run(prefix: Path) -> bool:
    return any(prefix.rglob("*.was-run"))


def assert_refused(refused: subprocess.CompletedProcess[str], text: str) -> None:
    assert (refused.returncode, refused.stdout) == (1, "")
    assert f"nexusctl: {text}" in refused.stderr
    assert "nothing was done" in refused.stderr
    assert "Traceback" not in refused.stderr


@as_root
@pytest.mark.parametrize("options", [[], ["--check"], ["--undo"]], ids=str)
def test_root_touches_no_prefix_of_somebody_else(prefix: Path, options: list[str]) -> None:
    prefix.mkdir()
    spy(prefix / "runtime/python/nexus/aeon_interface/live.py")
    (prefix / "runtime/python/nexus/nexusctl").mkdir()
    of_nobody(prefix)
    before = everything(prefix)
    assert_refused(link(prefix, *options), f"{prefix} belongs to ")
    assert everything(prefix) == before


@as_root
@pytest.mark.parametrize("part", ["runtime/python/nexus", "interfaces", "interfaces/python/nexus"])
def test_root_names_the_folder_below_the_prefix_that_is_somebody_elses(prefix: Path, part: str) -> None:
    (prefix / part).mkdir(parents=True)
    of_nobody(prefix / part)
    assert_refused(link(prefix), f"{prefix / part} belongs to ")
    assert everything(prefix / part) == set()


@as_root
def test_a_prefix_within_a_folder_of_somebody_else_is_refused(prefix: Path) -> None:
    prefix.mkdir()
    of_nobody(prefix.parent)
    assert_refused(link(prefix), f"{prefix.parent} belongs to ")


@as_root
def test_a_link_to_a_place_of_somebody_else_is_not_followed(prefix: Path, tmp_path: Path) -> None:
    prefix.mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (prefix / "interfaces").symlink_to("../elsewhere")
    of_nobody(elsewhere)
    assert_refused(link(prefix), f"{elsewhere} belongs to ")
    assert everything(elsewhere) == set()


def test_a_folder_that_others_may_write_to_is_refused_and_a_sticky_one_above_is_fine(prefix: Path) -> None:
    prefix.mkdir()
    prefix.parent.chmod(0o777)
    assert_refused(link(prefix), f"others may write to {prefix.parent} (drwxrwxrwx")
    prefix.parent.chmod(0o1777)
    assert link(prefix).returncode == 0
    prefix.chmod(0o1777)
    assert_refused(link(prefix, "--undo"), f"others may write to {prefix} (drwxrwxrwt")


def test_what_anybody_has_put_beside_the_prefix_is_not_imported(prefix: Path) -> None:
    prefix.parent.chmod(0o1777)
    spy(prefix.parent / "json.py")
    spy(prefix.parent / "aeon.py")
    assert link(prefix).returncode == 0
    assert not was_run(prefix.parent)


@as_root
@pytest.mark.parametrize(
    "file",
    ["runtime/python/nexus/nexusctl/client.py", "interfaces/__init__.py", "interfaces/python/nexus/live.py"],
)
def test_code_of_somebody_else_is_not_run_in_a_prefix_of_root(prefix: Path, file: str) -> None:
    of_nobody(spy(prefix / file))
    assert_refused(link(prefix), f"{prefix / file} belongs to ")
    assert_refused(link(prefix, "--check"), f"{prefix / file} belongs to ")
    assert not was_run(prefix)


def test_check_does_not_run_what_is_taken(prefix: Path) -> None:
    file = spy(prefix / "interfaces/python/nexus/live.py")
    checked = link(prefix, "--check")
    assert (checked.returncode, f"taken    {file}" in checked.stdout) == (1, True)
    assert not was_run(prefix)


@as_root
def test_an_installation_beside_the_prefix_makes_the_prefix_no_safer(tmp_path: Path) -> None:
    for part in PARTS:
        (shutil.copytree if (ROOT / part).is_dir() else shutil.copy)(ROOT / part, tmp_path / part)
    (tmp_path / "aeon").mkdir()
    of_nobody(tmp_path / "aeon")
    assert_refused(link(tmp_path / "aeon", root=tmp_path), f"{tmp_path / 'aeon'} belongs to ")


def test_undo_believes_no_record_that_names_what_lies_elsewhere(prefix: Path, tmp_path: Path) -> None:
    prefix.mkdir()
    folder, a_link = tmp_path / "folder", tmp_path / "link"
    folder.mkdir()
    a_link.symlink_to("folder")
    for links, folders, named in (
        ({str(a_link): "folder"}, [], a_link),
        ({}, [str(folder)], folder),
        ({f"{prefix}/runtime/../../link": "folder"}, [], f"{prefix}/runtime/../../link"),
    ):
        (prefix / RECORD).write_text(json.dumps({"links": links, "folders": folders}))
        assert_refused(link(prefix, "--undo"), f"{prefix / RECORD} names {named}, ")
    assert (folder.is_dir(), a_link.is_symlink()) == (True, True)


@pytest.mark.parametrize("text", ["[1", "[]", "{}", '{"links": {"a": 1}, "folders": []}', "[" * 60000])
def test_a_record_that_makes_no_sense_is_said_in_one_line(prefix: Path, text: str) -> None:
    prefix.mkdir()
    (prefix / RECORD).write_text(text)
    refused = link(prefix)
    assert_refused(refused, f"{prefix / RECORD} is no record of nexusctl aeon link")
    assert len(refused.stderr.splitlines()) == 1


def test_a_record_that_is_no_file_of_ours_is_neither_read_nor_written(prefix: Path, tmp_path: Path) -> None:
    prefix.mkdir()
    record, elsewhere = prefix / RECORD, tmp_path / "elsewhere"
    record.symlink_to(elsewhere)
    assert_refused(link(prefix), f"{record} is not a regular file")
    assert not elsewhere.exists()
    elsewhere.write_text('{"links": {}, "folders": [], "mine": 1}')
    assert_refused(link(prefix), f"{record} is not a regular file")
    assert "mine" in elsewhere.read_text()
    record.unlink()
    os.mkfifo(record)
    assert_refused(link(prefix), f"{record} is not a regular file")
    record.unlink()
    record.write_text(" " * 70000)
    assert_refused(link(prefix), f"{record} has more than 65536 bytes")


@as_root
def test_root_believes_no_record_of_somebody_else(prefix: Path) -> None:
    prefix.mkdir()
    (prefix / RECORD).write_text('{"links": {}, "folders": []}')
    of_nobody(prefix / RECORD)
    assert_refused(link(prefix, "--undo"), f"{prefix / RECORD} belongs to ")


@as_root
def test_a_user_depends_on_himself_and_root_but_on_no_third(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: NOBODY)
    mine, of_third = of_nobody(tmp_path), tmp_path / "third"
    of_third.mkdir()
    assert stranger(of_third, []) == ""
    os.chown(of_third, NOBODY - 1, NOBODY)
    assert stranger(of_third / "aeon", []).startswith(f"{of_third} belongs to ")
    (mine / "link").symlink_to("third/../third")
    of_nobody(mine / "link")
    assert stranger(mine / "link" / "aeon", []).startswith(f"{of_third} belongs to ")
    (mine / "circle").symlink_to("circle")
    of_nobody(mine / "circle")
    assert "in a circle" in stranger(mine / "circle", [])


def test_what_is_made_is_for_others_to_read_only_whatever_the_umask(prefix: Path) -> None:
    former = os.umask(0)
    try:
        assert link(prefix).returncode == 0
    finally:
        os.umask(former)
    paths = [prefix, *prefix.rglob("*")]
    assert [path for path in paths if not path.is_symlink() and path.stat().st_mode & 0o022] == []
