"""`nexusd check` refuses what the daemon would not load, and nothing else."""

from pathlib import Path

import pytest

from nexusd.__main__ import check
from nexusd.config import Options

PROGRAM = '[run]\nexec = ["/bin/true"]\n'
REFUSED = {
    "a circle": ('requires = ["a/two"]\n', "", "a/one → a/two → a/one"),
    "a circle of order": ('after = ["a/two"]\n', "", "a/one → a/two → a/one"),
    "ready by a check that is none": ("", 'ready = "health"\n', "a check in [health]"),
    "a check over TLS": ("", '[health]\ncheck = { http = "https://127.0.0.1/" }\n', "exec = "),
}


def module(folder: Path, name: str, head: str, tail: str = "") -> None:
    (folder / "a" / name).mkdir(parents=True)
    (folder / "a" / name / "module.toml").write_text(head + PROGRAM + tail)


def test_modules_without_faults_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module(tmp_path, "one", 'requires = ["a/two"]\npermissions = ["heartbeat.send"]\n')
    module(tmp_path, "two", "")
    assert check([str(tmp_path)], Options()) == 0
    assert capsys.readouterr().out == "2 modules, no faults\n"


@pytest.mark.parametrize("what", REFUSED)
def test_what_the_daemon_would_not_load_is_a_fault(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head, tail, words = REFUSED[what]
    module(tmp_path, "one", head, tail)
    module(tmp_path, "two", 'requires = ["a/one"]\n')
    assert check([str(tmp_path)], Options()) == 1
    told = capsys.readouterr().out
    assert f"{tmp_path}/a/one/module.toml: " in told
    assert words in told


def test_a_module_s_own_folder_is_checked_by_its_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module(tmp_path, "one", "")
    assert check([str(tmp_path / "a" / "one")], Options()) == 0
    assert capsys.readouterr().out == "1 module, no faults\n"
