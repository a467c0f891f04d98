"""nexusd.toml, the command line and the environment: which of them counts, and how faults are told."""

import json
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import msgspec
import pytest

from nexusd.config import (
    Access,
    Api,
    Config,
    File,
    Folders,
    InvalidConfig,
    Options,
    changed_since,
    folders,
    read_config,
)
from nexusd.domain.access import ROLES
from nexusd.domain.fields import Fault
from nexusd.domain.units import Size

PAGE = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text(encoding="utf-8")
USER = 1000
FOLDERS = ("socket", "runtime", "state", "logs")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "nexusd.toml"


def read(file: Path, text: str | None = None, *, uid: int = USER, **given: Any) -> Config:
    """The configuration with this file; `given` are environment variables."""
    if text is not None:
        file.write_text(text)
    return read_config(Options(config=str(file)), {"HOME": "/home/ada", **given}, uid)


def faults(file: Path, text: str) -> dict[str, Fault]:
    with pytest.raises(InvalidConfig) as caught:
        read(file, text)
    return {fault.key: fault for fault in caught.value.faults}


# What counts


@pytest.mark.parametrize("name", FOLDERS)
def test_the_command_line_counts_before_the_environment_before_the_file(name: str, file: Path) -> None:
    file.write_text(f'{name} = "/file"\n')
    variable = {f"NEXUS_{name.upper()}": "/environment"}
    option: dict[str, Any] = {name: "/option"}
    both = read_config(Options(config=str(file), **option), variable, USER)
    assert getattr(both, name) == "/option"
    assert getattr(read_config(Options(config=str(file)), variable, USER), name) == "/environment"
    assert getattr(read(file), name) == "/file"
    assert getattr(read(file, ""), name) == getattr(folders(USER, {"HOME": "/home/ada"}), name)


def test_module_folders_follow_the_same_order_and_none_is_added_to_another(file: Path) -> None:
    file.write_text('modules = ["/file", "/more"]\n')
    variable: dict[str, Any] = {"NEXUS_MODULES": "/one:/two"}
    options = Options(config=str(file), modules=("/option",))
    assert read_config(options, variable, USER).modules == ("/option",)
    assert read(file, **variable).modules == ("/one", "/two")
    assert read(file).modules == ("/file", "/more")
    assert read(file, "").modules == ("/home/ada/.config/nexus/modules",)


def test_the_log_format_has_no_variable(file: Path) -> None:
    assert read(file, "").log_format == "text"
    assert read(file, 'log_format = "json"', NEXUS_LOG_FORMAT="journal").log_format == "json"
    assert read_config(Options(config=str(file), log_format="journal"), {}, USER).log_format == "journal"


def test_relative_folders_are_taken_from_the_present_one(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = read(file, 'modules = ["mine"]\nlogs = "logs"', NEXUS_STATE="state")
    expected = ((f"{tmp_path}/mine",), f"{tmp_path}/logs", f"{tmp_path}/state")
    assert (config.modules, config.logs, config.state) == expected


def test_an_empty_variable_says_nothing(file: Path) -> None:
    config = read(file, "", NEXUS_SOCKET="", NEXUS_MODULES="", XDG_RUNTIME_DIR="", XDG_STATE_HOME="")
    assert config.socket == "/tmp/nexus-1000/nexus.sock"
    assert config.modules == ("/home/ada/.config/nexus/modules",)
    assert config.state == "/home/ada/.local/state/nexus"


# Folders of root and of others


def test_root_has_the_folders_of_the_system_whatever_xdg_says() -> None:
    variables = {"HOME": "/root", "XDG_RUNTIME_DIR": "/run/user/0", "XDG_STATE_HOME": "/elsewhere"}
    assert folders(0, variables) == folders(0, {})
    assert folders(0, {}).socket == "/run/nexus.sock"


def test_other_users_have_folders_of_their_own() -> None:
    variables = {name: f"${name}" for name in ("XDG_CONFIG_HOME", "XDG_RUNTIME_DIR", "XDG_STATE_HOME")}
    found = folders(USER, {"HOME": "/home/ada", **variables})
    assert found.config == "$XDG_CONFIG_HOME/nexus/nexusd.toml"
    assert found.socket == "$XDG_RUNTIME_DIR/nexus/nexus.sock"
    assert found.logs == "$XDG_STATE_HOME/nexus/logs"


def test_two_users_without_a_runtime_folder_do_not_meet() -> None:
    assert folders(1000, {}).runtime != folders(1001, {}).runtime


# The file


def test_without_a_file_everything_has_a_default(tmp_path: Path) -> None:
    config = read_config(Options(), {"HOME": str(tmp_path)}, USER)
    assert config.config_path == f"{tmp_path}/.config/nexus/nexusd.toml"
    assert (config.access, config.api) == (Access(), Api())


def test_a_file_that_was_asked_for_must_be_there(file: Path) -> None:
    for options, variables in (
        (Options(config=str(file)), {}),
        (Options(), {"NEXUS_CONFIG_FILE": str(file)}),
    ):
        with pytest.raises(InvalidConfig, match=r"nexusd\.toml: expected a file, found nothing"):
            read_config(options, variables, USER)


def test_the_command_line_names_the_file_before_the_environment_does(file: Path) -> None:
    assert read(file, "", NEXUS_CONFIG_FILE="/nowhere").config_path == str(file)


def test_all_faults_of_a_file_are_told_together(file: Path) -> None:
    found = faults(
        file,
        """
        sockets = "/run/nexus.sock"
        log_format = "xml"
        modules = "/etc/nexus/modules"
        [access.users]
        alice = "operator"
        [api]
        batch = "many"
        """,
    )
    assert sorted(found) == ["access.users.alice", "api.batch", "log_format", "modules", "sockets"]
    assert found["sockets"].hint == 'did you mean "socket"?'
    assert found["log_format"].expected == 'one of "text", "json", "journal"'
    assert (found["api.batch"].expected, found["api.batch"].found) == (
        "an integer from 1 to 100000",
        '"many"',
    )


def test_a_fault_names_its_file(file: Path) -> None:
    (fault,) = faults(file, "[api]\nbatch = true\n").values()
    assert str(fault) == f"{file}: api.batch: expected an integer from 1 to 100000, found true"


@pytest.mark.parametrize("text", [b"modules = [", b"a = 1\na = 2", b'logs = "\xff"'])
def test_a_file_that_is_no_toml_is_one_fault(text: bytes, file: Path) -> None:
    file.write_bytes(text)
    with pytest.raises(InvalidConfig, match="expected TOML"):
        read(file)


def test_a_folder_in_the_place_of_the_file_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="expected a readable file, found Is a directory"):
        read(tmp_path)


def test_a_table_of_groups_replaces_the_default_one(file: Path) -> None:
    assert read(file, "").access.groups == {"nexus": ("operator",)}
    assert read(file, '[access.groups]\nstaff = ["viewer"]').access.groups == {"staff": ("viewer",)}


# The page


def rows(heading: str) -> Iterator[list[str]]:
    """The rows of the tables below a heading of the page, without their heads."""
    part = re.split(r"^#+ ", PAGE.split(f"{heading}\n", 1)[1], flags=re.MULTILINE)[0]
    for table in re.findall(r"(?:^\|.*\n)+", part, flags=re.MULTILINE):
        for line in table.splitlines()[2:]:
            yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def plain(value: object) -> Any:
    return json.loads(msgspec.json.encode(value, enc_hook=Size.text))


@pytest.mark.parametrize("section", ["access", "api", "health", "metrics", "audit", "daemon"])
def test_the_page_has_every_key_with_its_default(section: str) -> None:
    (kind,) = (one.default for one in msgspec.structs.fields(File) if one.name == section)
    told = {
        row[0].strip("`"): json.loads(row[2].strip("`"))
        for row in rows(f"### `[{section}]`")
        if len(row) == 4
    }
    assert told == plain(kind)


def test_the_page_has_every_key_at_the_top() -> None:
    keys = {one.name for one in msgspec.structs.fields(File)} - {
        "access",
        "api",
        "health",
        "metrics",
        "audit",
        "daemon",
    }
    (line,) = (line for line in PAGE.splitlines() if line.endswith("see above."))
    assert set(re.findall(r"`(\w+)`", line)) == keys
    settings = {row[2].split("`")[1] for row in rows("# Configuration of nexusd") if "`" in row[2]}
    assert settings == keys


def test_the_page_tells_the_folders_as_they_are() -> None:
    told = {row[0]: [cell.strip("`") for cell in row[1:]] for row in rows("## Folders") if len(row) == 3}
    variables = {name: f"${name}" for name in ("XDG_CONFIG_HOME", "XDG_RUNTIME_DIR", "XDG_STATE_HOME")}
    root, other = folders(0, {}), folders(USER, variables)
    assert told == {one.name: [getattr(root, one.name), getattr(other, one.name)] for one in fields(Folders)}


def test_the_page_tells_what_the_roles_hold() -> None:
    told = {
        row[0].strip("`"): tuple(re.findall(r"`(.+?)`", row[1]))
        for row in rows("### `[access]`")
        if len(row) == 2
    }
    assert told == dict(ROLES)


def test_the_example_on_the_page_is_a_configuration(file: Path) -> None:
    config = read(file, PAGE.split("```toml\n")[1].split("```")[0])
    assert config.access.grants(0).undefined_roles() == ()


@pytest.mark.parametrize(
    ("listen", "address"),
    [
        ("127.0.0.1:9090", ("127.0.0.1", 9090)),
        ("[::1]:9100", ("::1", 9100)),
        ("localhost:0", ("localhost", 0)),
        ("0.0.0.0:65535", ("0.0.0.0", 65535)),
        ("off", None),
    ],
)
def test_metrics_are_served_where_the_file_says(
    listen: str, address: tuple[str, int] | None, file: Path
) -> None:
    assert read(file, f'[metrics]\nlisten = "{listen}"\n').metrics.address == address


@pytest.mark.parametrize(
    "listen", ["", "no", "9090", ":9090", "a:b", "::1:9090", "x:65536", "x:99999", "a/b:1", "off\\n"]
)
def test_a_place_for_metrics_that_is_none_is_a_fault(listen: str, file: Path) -> None:
    fault = faults(file, f'[metrics]\nlisten = "{listen}"\n')["metrics.listen"]
    assert fault.expected == '"HOST:PORT" or "off"'


def test_a_reload_tells_what_is_in_force_and_what_waits_for_a_restart(file: Path) -> None:
    start = read(file, "")
    now = read(file, 'modules = ["/srv/m"]\n[health]\nmost_unhealthy = 0.5\n')
    assert changed_since(start, start, now) == {"in_force": ["health"], "waits_for_restart": ["modules"]}
    assert changed_since(start, now, now) == {"in_force": [], "waits_for_restart": ["modules"]}
