"""The keeper's journal: what it says after a crash, a full disk, and a long life."""

import errno
import json
import os
import resource
import signal
from pathlib import Path
from typing import Any

import pytest

from nexusd.keeper import journal as journal_file
from nexusd.keeper.journal import Journal


def entry(key: str, pid: int = 1) -> dict[str, Any]:
    return {"key": key, "pid": pid}


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(str(tmp_path / "keeper.journal"), "this boot")


def test_a_journal_that_is_not_there_says_nothing(journal: Journal) -> None:
    assert journal.read() == ({}, {})


def test_what_was_written_is_read_by_the_next_keeper(journal: Journal) -> None:
    journal.run(entry("one"))
    journal.run(entry("two"))
    journal.note("test/module", "wanted\nin two lines")
    journal.note("test/other", "not for long")
    journal.gone("one")
    journal.note("test/other", None)
    assert Journal(journal.path, "this boot").read() == (
        {"two": entry("two")},
        {"test/module": "wanted\nin two lines"},
    )


def test_the_last_word_on_a_run_counts(journal: Journal) -> None:
    journal.run(entry("one", pid=1))
    journal.run(entry("one", pid=2))
    assert journal.read()[0] == {"one": entry("one", pid=2)}


def test_a_line_that_was_cut_by_a_crash_is_passed_over(journal: Journal) -> None:
    journal.run(entry("one"))
    journal.run(entry("two"))
    whole = Path(journal.path).read_bytes()
    for end in range(len(whole) // 2 + 1, len(whole) - 1):
        Path(journal.path).write_bytes(whole[:end])
        assert journal.read() == ({"one": entry("one")}, {})


@pytest.mark.parametrize(
    "noise", [b"5\n", b"null\n", b"[]\n", b'{"run": 5}\n', b'{"note": "x"}\n', b"\xff\n{\n"]
)
def test_lines_that_are_not_ours_are_passed_over(journal: Journal, noise: bytes) -> None:
    journal.run(entry("one"))
    Path(journal.path).write_bytes(noise + Path(journal.path).read_bytes() + noise)
    assert journal.read() == ({"one": entry("one")}, {})


def test_rewriting_leaves_the_present_state_and_goes_on(journal: Journal) -> None:
    for number in range(100):
        journal.run(entry(f"n{number}"))
        journal.gone(f"n{number}")
    journal.rewrite({"one": entry("one")}, {"test/module": "wanted"})
    journal.run(entry("two"))
    assert journal.read() == ({"one": entry("one"), "two": entry("two")}, {"test/module": "wanted"})
    assert Path(journal.path).read_bytes().count(b"\n") == 3


def test_it_says_when_it_has_become_long(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_file, "COMPACT_BYTES", 100)
    journal.run(entry("one"))
    assert not journal.is_long
    journal.run(entry("x" * 100))
    assert journal.is_long
    journal.rewrite({}, {})
    journal.run(entry("one"))
    assert not journal.is_long


def test_it_is_for_its_owner_alone(journal: Journal) -> None:
    journal.run(entry("one"))
    assert os.stat(journal.path).st_mode & 0o777 == 0o600
    journal.rewrite({}, {})
    assert os.stat(journal.path).st_mode & 0o777 == 0o600


def test_a_line_that_does_not_fit_spoils_no_other(journal: Journal) -> None:
    journal.run(entry("one"))
    size = os.stat(journal.path).st_size
    with limited_to(size + 10), pytest.raises(OSError):
        journal.run(entry("two"))
    journal.run(entry("three"))
    assert journal.read()[0].keys() == {"one", "three"}
    assert all(json.loads(line) for line in Path(journal.path).read_text().splitlines())


def test_a_rewrite_that_does_not_fit_leaves_what_was(journal: Journal) -> None:
    journal.run(entry("one"))
    with limited_to(10), pytest.raises(OSError) as caught:
        journal.rewrite({"two": entry("two")}, {})
    assert caught.value.errno == errno.EFBIG
    assert journal.read()[0].keys() == {"one"}


class limited_to:
    """No file may grow beyond so many bytes (setrlimit(2), RLIMIT_FSIZE): a write that crosses it is cut."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __enter__(self) -> None:
        self.former = resource.getrlimit(resource.RLIMIT_FSIZE)
        self.handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.former[1]))

    def __exit__(self, *_: object) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self.former)
        signal.signal(signal.SIGXFSZ, self.handler)


def test_removing_it_twice_is_no_fault(journal: Journal) -> None:
    journal.run(entry("one"))
    journal.remove()
    journal.remove()
    assert not os.path.exists(journal.path)
