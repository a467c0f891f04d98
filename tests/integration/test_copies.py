"""Copies of code: what they hold, when there is none, and that a module runs from one. With real files."""

import asyncio
import os
from pathlib import Path
from typing import IO

import pytest
from msgspec.structs import replace

from nexusd.domain.manifest import Definition
from nexusd.domain.module import Module
from nexusd.system import copies as code_copies
from nexusd.system.copies import CodeCopies
from nexusd.system.manifests import read_module

MANIFEST = '[run]\npython = "one:One"\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "modules" / "a" / "one"
    (folder / "parts").mkdir(parents=True)
    (folder / "data" / "deep").mkdir(parents=True)
    files = {
        "module.toml": MANIFEST,
        "one.py": "old",
        "parts/two.py": "old",
        "parts/text": "t",
        "data/deep/x": "x",
    }
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def copies(tmp_path: Path) -> CodeCopies:
    state = tmp_path / "state"
    state.mkdir()
    return CodeCopies(str(state))


def read(folder: Path) -> Definition:
    found = read_module(folder, "a/one").definition
    assert found is not None
    return found


def keep(copies: CodeCopies, definition: Definition) -> None:
    copies.keep(definition)
    asyncio.run(copies.settled())


def tidy(copies: CodeCopies, modules: list[Module]) -> None:
    copies.tidy(modules)
    asyncio.run(copies.settled())


def copied(copies: CodeCopies, definition: Definition) -> Path:
    kept = copies.kept(definition)
    assert kept is not None
    return Path(kept.folder)


def test_code_is_copied_and_all_else_is_linked(folder: Path, copies: CodeCopies) -> None:
    definition = read(folder)
    keep(copies, definition)
    for name in ("one.py", "parts/two.py"):
        (folder / name).write_text("new")
    (folder / "parts" / "text").write_text("new")
    copy = copied(copies, definition)
    assert (copy / "one.py").read_text() == (copy / "parts/two.py").read_text() == "old"
    assert (copy / "parts" / "text").read_text() == "new"
    assert (copy / "data").is_symlink() and (copy / "data/deep/x").read_text() == "x"


def test_a_copy_is_the_same_definition_elsewhere(folder: Path, copies: CodeCopies) -> None:
    definition = read(folder)
    keep(copies, definition)
    kept = copies.kept(definition)
    assert kept is not None and kept == replace(definition, folder=kept.folder)
    assert copies.holds(kept) and not copies.holds(definition)
    assert copies.kept(kept) == kept


def test_files_that_are_others_by_now_are_not_kept(folder: Path, copies: CodeCopies) -> None:
    definition = read(folder)
    (folder / "one.py").write_text("new")
    keep(copies, definition)
    assert copies.kept(definition) is None
    assert list((folder.parents[2] / "state" / "code").iterdir()) == []


def test_what_is_too_large_is_not_kept(
    folder: Path, copies: CodeCopies, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(code_copies, "MOST_BYTES", 10)
    keep(copies, read(folder))
    assert copies.kept(read(folder)) is None


def test_a_copy_is_no_more_open_to_others_than_the_folder(folder: Path, copies: CodeCopies) -> None:
    folder.chmod(0o700)
    (folder / "one.py").chmod(0o640)
    keep(copies, read(folder))
    copy = copied(copies, read(folder))
    assert (copy.stat().st_mode & 0o777, (copy / "one.py").stat().st_mode & 0o777) == (0o700, 0o640)


def test_a_copy_is_nobody_elses_while_it_is_made(
    folder: Path, copies: CodeCopies, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: set[int] = set()

    def look(given: IO[bytes], copy: IO[bytes]) -> None:
        modes.add(os.fstat(copy.fileno()).st_mode & 0o777)
        place = Path(f"/proc/self/fd/{copy.fileno()}").resolve()
        modes.add(place.parent.stat().st_mode & 0o777)
        copy.write(given.read())

    monkeypatch.setattr(code_copies.shutil, "copyfileobj", look)
    keep(copies, read(folder))
    assert copies.kept(read(folder)) is not None
    assert modes == {0o600, 0o700}


def test_what_has_become_a_fifo_meanwhile_is_neither_waited_for_nor_copied(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="is no file"):
        code_copies._copy_file(str(tmp_path / "fifo"), str(tmp_path / "copy"))


def test_copies_that_nobody_needs_are_removed(folder: Path, copies: CodeCopies) -> None:
    old = read(folder)
    keep(copies, old)
    (folder / "one.py").write_text("new")
    new = read(folder)
    keep(copies, new)
    tidy(copies, [Module("a/one", str(folder), new, 0.0)])
    assert copies.kept(old) is None and copies.kept(new) is not None


def test_what_a_program_is_made_of_is_code_too(folder: Path, copies: CodeCopies) -> None:
    (folder / "module.toml").write_text('[run]\nexec = ["./serve", "-v"]\n')
    (folder / "serve").write_text("#!/bin/sh\n")
    (folder / "serve").chmod(0o755)
    definition = read(folder)
    keep(copies, definition)
    copy = copied(copies, definition) / "serve"
    assert not copy.is_symlink() and os.access(copy, os.X_OK)
