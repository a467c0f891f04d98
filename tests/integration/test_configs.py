"""The effective configuration as files: for the module's user alone, of living generations only."""

import json
import stat
from pathlib import Path

import pytest
from msgspec.structs import replace

from nexusd.domain.errors import NotPossible
from nexusd.domain.module import Module
from nexusd.system.configs import ConfigFiles
from tests.fakes import definition

KEY = {"rate": {"type": "int", "default": 10}}


@pytest.fixture
def configs(tmp_path: Path) -> ConfigFiles:
    (tmp_path / "config").mkdir()
    return ConfigFiles(str(tmp_path))


def write(configs: ConfigFiles, generation: int = 1, configured: int | None = None, **run: str) -> Path:
    found = definition("a/one", config=KEY, run={"exec": ["./run"], **run})
    values = {} if configured is None else {"rate": configured}
    return Path(configs.write(Module("a/one", "/a/one", found, 0.0, configured=values), found, generation))


def test_what_was_configured_lies_over_the_defaults_for_its_owner_alone(configs: ConfigFiles) -> None:
    assert json.loads(write(configs).read_text()) == {"rate": 10}
    path = write(configs, configured=20)
    assert json.loads(path.read_text()) == {"rate": 20}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_files_of_generations_that_are_no_more_are_removed(configs: ConfigFiles) -> None:
    first, second = write(configs, 1), write(configs, 2)
    neighbour = first.with_name("a@one.2.1.json")
    neighbour.write_text("{}")
    found = definition("a/one")
    configs.tidy([replace(Module("a/one", "/a/one", found, 0.0), generation=2)])
    assert (first.exists(), second.exists(), neighbour.exists()) == (False, True, True)


def test_modules_without_keys_share_a_file_that_says_so(configs: ConfigFiles) -> None:
    found = definition("a/one", run={"exec": ["./run"], "user": "nobody"})
    path = Path(configs.write(Module("a/one", "/a/one", found, 0.0), found, 1))
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("{}", 0o444)
    other = definition("a/two", run={"exec": ["./run"]})
    assert configs.write(Module("a/two", "/a/two", other, 0.0), other, 3) == str(path)


def test_a_user_that_the_host_does_not_know_is_told_in_words(configs: ConfigFiles) -> None:
    with pytest.raises(NotPossible, match=r"cannot write .*a@one\.1\.json: there is no user 'nobody-knows'"):
        write(configs, user="nobody-knows")


def test_a_folder_that_is_gone_is_told_in_words(configs: ConfigFiles, tmp_path: Path) -> None:
    (tmp_path / "config").rmdir()
    with pytest.raises(NotPossible, match="No such file or directory"):
        write(configs)
