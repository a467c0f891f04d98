"""What an edit of a module's files is, and what is none."""

import os
from pathlib import Path

import pytest
from msgspec.structs import replace

from nexusd.domain.module import Module
from nexusd.system import edits
from nexusd.system.edits import Edits
from nexusd.system.manifests import read_module

MANIFEST = '[run]\npython = "code:It"\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "module.toml").write_text(MANIFEST)
    (tmp_path / "code.py").write_text("one = 1\n")
    return tmp_path


def module(folder: Path) -> Module:
    return Module("a/one", str(folder), read_module(folder, "a/one").definition, 0.0)


@pytest.mark.parametrize("name", ["module.toml", "code.py", "new.py"])
def test_another_text_is_one_until_it_is_taken_back(folder: Path, name: str) -> None:
    one, looked_at = module(folder), Edits()
    assert not looked_at.are_there(one)
    before = (folder / name).read_text() if (folder / name).exists() else None
    (folder / name).write_text(f"{before or ''}# more\n")
    assert looked_at.are_there(one)
    (folder / name).unlink() if before is None else (folder / name).write_text(before)
    assert not looked_at.are_there(one)


def test_a_touch_and_a_file_that_is_no_code_are_none(folder: Path) -> None:
    one, looked_at = module(folder), Edits()
    os.utime(folder / "code.py", (1, 1))
    (folder / "data.txt").write_text("data")
    assert not looked_at.are_there(one)


def test_a_manifest_with_faults_and_one_that_is_gone_are_edits(folder: Path) -> None:
    one, looked_at = module(folder), Edits()
    (folder / "module.toml").write_text("[run]\n")
    assert looked_at.are_there(one)
    (folder / "module.toml").unlink()
    assert looked_at.are_there(one)


def test_nothing_is_read_again_while_nothing_has_changed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, looked_at = module(folder), Edits()
    looked_at.are_there(one)
    monkeypatch.setattr(edits, "read_module", None)
    assert not looked_at.are_there(one)


def test_what_would_take_long_is_as_the_last_reload_found_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = module(folder)
    monkeypatch.setattr(edits, "MOST_BYTES", 10)
    (folder / "code.py").write_text("two = 2\n")
    assert not Edits().are_there(one)
    assert Edits().are_there(replace(one, pending=one.definition))


def test_of_a_folder_with_more_than_is_listed_at_once_only_a_known_edit_is_told(folder: Path) -> None:
    one, looked_at = module(folder), Edits()
    (folder / "code.py").write_text("two = 2\n")
    assert looked_at.are_there(one)
    (folder / "data").mkdir()
    for number in range(edits.MOST_ENTRIES):
        (folder / "data" / str(number)).touch()
    assert not looked_at.are_there(one)
    assert looked_at.are_there(replace(one, pending=read_module(folder, "a/one").definition))
