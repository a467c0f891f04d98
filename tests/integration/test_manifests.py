"""Modules as they are found on a real disk."""

import os
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from nexusd.domain.units import unit_number
from nexusd.system.manifests import Found, discover, missing_paths, read_module, shadowed
from tests.fakes import definition

GOOD = '[run]\npython = "client:Client"\n'


def write_module(path: Path, module_id: str, text: str | bytes = GOOD) -> Path:
    folder = path / module_id
    folder.mkdir(parents=True)
    content = text if isinstance(text, bytes) else text.encode()
    (folder / "module.toml").write_bytes(content)
    return folder


def ids(found: list[Found]) -> list[str]:
    return [each.id for each in found]


def digest(folder: Path) -> str:
    definition = read_module(folder, "a/b").definition
    assert definition is not None
    return definition.digest


# What is found


def test_modules_are_found_in_group_and_name_sorted_by_id(tmp_path: Path):
    for module_id in ("vitals/z", "mesh/echo", "vitals/a"):
        write_module(tmp_path, module_id)
    found = discover([tmp_path])
    assert ids(found) == ["mesh/echo", "vitals/a", "vitals/z"]
    assert all(each.definition is not None and not each.faults for each in found)
    assert found[0].folder == str(tmp_path / "mesh/echo")


def test_a_folder_without_a_manifest_is_passed_over(tmp_path: Path):
    (tmp_path / "vitals/empty").mkdir(parents=True)
    (tmp_path / "README").write_text("")
    (tmp_path / "vitals/notes.txt").write_text("")
    write_module(tmp_path, "a/b/too-deep")
    assert discover([tmp_path]) == []


@pytest.mark.parametrize("module_id", [".git/x", "vitals/.x", "__pycache__/x", "vitals/__pycache__"])
def test_hidden_folders_and_caches_are_passed_over(tmp_path: Path, module_id: str):
    write_module(tmp_path, module_id)
    assert discover([tmp_path]) == []


def test_linked_folders_are_followed(tmp_path: Path):
    target = write_module(tmp_path, "elsewhere/x/y")
    (tmp_path / "path/vitals").mkdir(parents=True)
    (tmp_path / "path/vitals/linked").symlink_to(target)
    assert ids(discover([tmp_path / "path"])) == ["vitals/linked"]


def test_links_that_lead_in_circles_do_no_harm(tmp_path: Path):
    folder = write_module(tmp_path, "vitals/a")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "vitals/self").symlink_to("self")
    (folder / "inner").symlink_to(folder)
    assert ids(discover([tmp_path])) == ["vitals/a"]


def test_the_earlier_path_wins_and_the_later_folder_is_told_apart(tmp_path: Path):
    first, second = tmp_path / "first", tmp_path / "second"
    winner = write_module(first, "vitals/a")
    loser = write_module(second, "vitals/a")
    write_module(second, "vitals/b")
    assert [each.folder for each in discover([first, second])] == [str(winner), str(second / "vitals/b")]
    (shadow,) = shadowed([first, second])
    assert (shadow.id, shadow.folder, shadow.definition) == ("vitals/a", str(loser), None)
    assert str(winner) in shadow.faults[0].found


def test_a_path_given_twice_shadows_nothing(tmp_path: Path):
    write_module(tmp_path, "vitals/a")
    (tmp_path.parent / "again").symlink_to(tmp_path)
    paths = [tmp_path, tmp_path.parent / "again", f"{tmp_path}/"]
    assert ids(discover(paths)) == ["vitals/a"]
    assert shadowed(paths) == []
    assert discover(paths)[0].folder == str(tmp_path / "vitals/a")


def test_a_path_that_is_missing_is_told(tmp_path: Path):
    file = tmp_path / "file"
    file.write_text("")
    faults = missing_paths([tmp_path, tmp_path / "none", file])
    assert [(fault.file, fault.found) for fault in faults] == [
        (str(tmp_path / "none"), "no such file"),
        (str(file), "not a directory"),
    ]
    assert discover([tmp_path / "none", file]) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_group_that_can_not_be_listed_is_told(tmp_path: Path):
    group = tmp_path / "vitals"
    group.mkdir(mode=0o000)
    assert [fault.file for fault in missing_paths([tmp_path])] == [str(group)]
    group.chmod(0o700)


# What is wrong with a file is a fault


def the_fault(found: Found) -> tuple[str, str]:
    assert found.definition is None
    (fault,) = found.faults
    return fault.expected, fault.found


def test_one_faulty_module_keeps_no_other_from_being_found(tmp_path: Path):
    write_module(tmp_path, "vitals/bad", "oh no")
    write_module(tmp_path, "vitals/good")
    bad, good = discover([tmp_path])
    assert bad.faults and bad.definition is None
    assert good.definition is not None


def test_a_syntax_error_is_told_with_its_line(tmp_path: Path):
    expected, found = the_fault(read_module(write_module(tmp_path, "a/b", f"{GOOD}\nbroken"), "a/b"))
    assert expected == "TOML"
    assert "line 4" in found or "end of document" in found
    expected, found = the_fault(read_module(write_module(tmp_path, "a/c", "a = 1\nb 2\nc = 3"), "a/c"))
    assert "line 2" in found


def test_what_is_not_utf_8_is_told_with_its_line(tmp_path: Path):
    folder = write_module(tmp_path, "a/b", b'version = "1"\ndescription = "\xff"\n')
    assert the_fault(read_module(folder, "a/b")) == ("UTF-8 text", "byte 0xff in line 2")


def test_a_missing_manifest_is_told(tmp_path: Path):
    assert the_fault(read_module(tmp_path, "a/b")) == ("a readable file", "no such file")


def test_a_manifest_that_is_a_dangling_link_is_told(tmp_path: Path):
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/module.toml").symlink_to("nowhere")
    (found,) = discover([tmp_path])
    assert the_fault(found) == ("a readable file", "no such file")


def test_a_manifest_that_is_a_folder_is_told(tmp_path: Path):
    (tmp_path / "a/b/module.toml").mkdir(parents=True)
    (found,) = discover([tmp_path])
    assert the_fault(found)[0] == "a regular file"


def test_a_manifest_that_is_a_fifo_is_told_at_once(tmp_path: Path):
    (tmp_path / "a/b").mkdir(parents=True)
    os.mkfifo(tmp_path / "a/b/module.toml")
    (found,) = discover([tmp_path])
    assert the_fault(found)[0] == "a regular file"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_manifest_that_can_not_be_read_is_told(tmp_path: Path):
    folder = write_module(tmp_path, "a/b")
    (folder / "module.toml").chmod(0o000)
    assert the_fault(read_module(folder, "a/b")) == ("a readable file", "permission denied")


def test_a_manifest_of_ten_megabytes_is_told(tmp_path: Path):
    folder = write_module(tmp_path, "a/b", GOOD + "#" * 10_000_000)
    assert the_fault(read_module(folder, "a/b")) == ("a file of at most 1 MiB", "a larger one")


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 100_000,
        "a = " + "{a = " * 50_000,
        "a = " + "9" * 5_000,
        "a" + ".a" * 20_000 + " = 1",
        "[run]\nx = {'a'" + ' . "b"' * 20_000 + " = 1}",
        "\0",
        "a = 2020-13-45",
        "\ufeff[run]",
    ],
    ids=[
        "deep lists",
        "deep tables",
        "huge number",
        "deep key",
        "deep quoted key",
        "NUL",
        "no such date",
        "byte order mark",
    ],
)
def test_hostile_text_is_a_fault(tmp_path: Path, text: str):
    found = read_module(write_module(tmp_path, "a/b", text), "a/b")
    assert found.definition is None and found.faults


def test_a_string_of_many_dots_is_no_deep_key(tmp_path: Path):
    text = f'{GOOD}directory = "/{"x." * 30}{"." * 500}"'
    assert read_module(write_module(tmp_path, "a/b", text), "a/b").definition is not None


def test_all_faults_of_a_file_name_the_file(tmp_path: Path):
    folder = write_module(tmp_path, "a/b", "replicas = -1\ncritical = 3\n")
    faults = read_module(folder, "a/b").faults
    assert {fault.key for fault in faults} == {"replicas", "critical", "run"}
    assert {fault.file for fault in faults} == {str(folder / "module.toml")}


def test_a_folder_whose_name_is_no_id_is_told(tmp_path: Path):
    write_module(tmp_path, "vitals/my module")
    (found,) = discover([tmp_path])
    assert found.id == "vitals/my module"
    assert "GROUP/NAME" in found.faults[0].expected


def test_a_folder_whose_name_is_not_utf_8_is_told_in_text_that_can_be_sent(tmp_path: Path):
    folder = tmp_path / "vitals" / os.fsdecode(b"caf\xe9")
    folder.mkdir(parents=True)
    (folder / "module.toml").write_text(GOOD)
    (found,) = discover([tmp_path])
    assert found.definition is None
    for text in (found.id, found.folder, *map(str, found.faults)):
        text.encode("utf-8")


# What counts as changed


def test_the_digest_stays_while_nothing_changes(tmp_path: Path):
    folder = write_module(tmp_path, "a/b")
    (folder / "client.py").write_text("x = 1")
    before = digest(folder)
    os.utime(folder / "client.py", (1, 1))
    (folder / "data.json").write_text("{}")
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__/client.py").write_text("")
    (folder / "venv").mkdir()
    (folder / "venv/pyvenv.cfg").write_text("")
    (folder / "venv/x.py").write_text("")
    assert digest(folder) == before


def test_the_digest_changes_with_manifest_code_and_names(tmp_path: Path):
    folder = write_module(tmp_path, "a/b")
    seen = [digest(folder)]
    (folder / "module.toml").write_text(GOOD + "# a comment\n")
    seen.append(digest(folder))
    (folder / "client.py").write_text("x = 1")
    seen.append(digest(folder))
    (folder / "client.py").write_text("x = 2")
    seen.append(digest(folder))
    (folder / "part").mkdir()
    (folder / "client.py").rename(folder / "part/client.py")
    seen.append(digest(folder))
    assert len(set(seen)) == len(seen)


def test_the_digest_changes_with_the_program_that_is_run(tmp_path: Path):
    folder = write_module(tmp_path, "a/b", 'run.exec = ["/bin/sh", "./server.sh"]')
    (folder / "server.sh").write_text("exit 0")
    before = digest(folder)
    (folder / "server.sh").write_text("exit 1")
    assert digest(folder) != before


def test_files_outside_the_folder_are_no_code_of_the_module(tmp_path: Path):
    folder = write_module(tmp_path, "a/b", 'run.exec = ["../../outside"]')
    before = digest(folder)
    (tmp_path / "outside").write_text("x")
    assert digest(folder) == before


def test_code_that_can_not_be_read_changes_the_digest_and_raises_nothing(tmp_path: Path):
    folder = write_module(tmp_path, "a/b")
    before = digest(folder)
    os.mkfifo(folder / "pipe.py")
    (folder / "gone.py").symlink_to("nowhere")
    assert digest(folder) != before


def test_folders_nested_deeper_than_python_can_call_are_looked_into_to_a_depth(tmp_path: Path):
    folder = write_module(tmp_path, "a/b")
    before, here = digest(folder), os.open(folder, os.O_RDONLY)
    for depth in range(sys.getrecursionlimit() + 100):
        os.mkdir("d", dir_fd=here)
        deeper = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = deeper
        if depth in (99, 100):
            os.close(os.open("code.py", os.O_CREAT, dir_fd=here))
            assert (digest(folder) != before) == (depth == 99)
            (folder / "/".join("d" * (depth + 1)) / "code.py").unlink()
    os.close(here)
    try:
        assert digest(folder) == before
    finally:
        subprocess.run(["rm", "-r", folder / "d"], check=True)  # shutil.rmtree can't either


def test_five_hundred_modules_are_found_without_the_daemon_seeming_hung(tmp_path: Path):
    for number in range(500):
        folder = write_module(tmp_path, f"g{number % 5}/m{number}", f'version = "1.0"\n{GOOD}')
        (folder / "client.py").write_text("class Client: ...\n")
    begun = time.process_time()
    found = discover([tmp_path])
    # 0.1 s on two slow processors; the limit is wide, since it only guards against another order of growth.
    assert time.process_time() - begun < 1.5
    assert len(found) == 500


FIRST_READ_BY_EIGHT = """
import sys, threading
sys.setswitchinterval(1e-6)
import msgspec
from nexusd.domain.manifest import Definition
from nexusd.domain.units import parse_unit
everybody = threading.Barrier(8)
def read():
    everybody.wait()
    msgspec.json.decode(sys.argv[1], type=Definition, dec_hook=parse_unit)
threads = [threading.Thread(target=read) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def test_threads_that_read_definitions_for_the_first_time_at_once_do_not_crash() -> None:
    text = msgspec.json.encode(definition("a/one"), enc_hook=unit_number).decode()
    command = [sys.executable, "-c", FIRST_READ_BY_EIGHT, text]
    assert [subprocess.run(command, check=False).returncode for _ in range(8)] == [0] * 8
