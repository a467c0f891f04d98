"""The modules that `nexusctl new` writes are whole: their manifests parse, their programs run and stop."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import subprocess
import tomllib
from pathlib import Path

import pytest

from nexusctl.cli import run_command
from nexusctl.commands.new import folder_of_ones_own
from nexusctl.module_files import exec_module, is_module_id, python_module
from nexusctl.reference import PAGE, with_generated_part
from nexusd.domain.manifest import parse_manifest
from nexusd.sdk import Module, Surroundings

IDS = ["vitals/my-module", "a/9lives", "x/class", "Mesh/a.b_c"]


@pytest.mark.parametrize("module_id", IDS)
@pytest.mark.parametrize("write", [python_module, exec_module])
def test_the_manifest_of_a_new_module_has_no_fault(module_id: str, write: object) -> None:
    raw = tomllib.loads(write(module_id)["module.toml"])  # type: ignore[operator]
    assert parse_manifest(raw, module_id=module_id, file="module.toml").config["interval_ms"].default == 1000


@pytest.mark.parametrize("module_id", IDS)
def test_a_new_python_module_starts(tmp_path: Path, module_id: str) -> None:
    files = python_module(module_id)
    file, _, name = tomllib.loads(files["module.toml"])["run"]["python"].partition(":")
    (tmp_path / f"{file}.py").write_text(files[f"{file}.py"])
    spec = importlib.util.spec_from_file_location("one_new_module", tmp_path / f"{file}.py")
    assert spec and spec.loader
    code = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(code)
    module: Module = getattr(code, name)()
    module.settle(Surroundings(config={"interval_ms": 100}))

    async def live() -> int:
        await module.start()
        running = len(module.tasks)
        for task in module.tasks:
            task.cancel()
        return running

    assert asyncio.run(live()) == 1


def test_a_new_program_speaks_and_stops_when_told(tmp_path: Path) -> None:
    assert run_command(["new", "vitals/beat", "--exec", "--into", str(tmp_path)]) == 0
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"interval_ms": 100}))
    environment = {**os.environ, "NEXUS_CONFIG": str(config)}
    folder = tmp_path / "vitals" / "beat"
    with subprocess.Popen(
        ["./run"], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout is not None
        assert [program.stdout.readline(), program.stdout.readline()] == ["alive\n", "alive\n"]
        program.terminate()
        assert program.wait(10) == 0


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert run_command(["new", "a/b", "--into", str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"nexusctl: {tmp_path}/a/b is there already\n"
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_a_new_module_is_to_be_moved_where_its_author_may_write(tmp_path: Path) -> None:
    mine, examples = tmp_path / "mine", tmp_path / "examples" / "modules"
    mine.mkdir()
    examples.mkdir(parents=True)
    assert folder_of_ones_own([str(examples), "/nowhere/modules", str(mine)]) == str(mine)
    assert folder_of_ones_own([str(mine), str(examples)]) == str(mine)
    assert folder_of_ones_own([str(examples)]) == str(examples)


@pytest.mark.parametrize("word", ["", "a", "a/b/c", "../x", "a/..", "a/b..c", "-a/b", "a/b\n"])
def test_what_is_no_module_id_is_a_usage_error(word: str) -> None:
    assert not is_module_id(word)
    assert run_command(["new", "--", word]) == 2


def test_check_is_nexusds_own_under_this_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []
    monkeypatch.setattr("os.execve", lambda program, command, environment: calls.append([program, *command]))
    run_command(["check", "/one", "/two"])
    assert calls[0][2:] == ["-P", "-m", "nexusd", "check", "/one", "/two"]


def test_check_gives_the_faults_as_json_where_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []
    monkeypatch.setattr("os.execve", lambda program, command, environment: calls.append(command))
    run_command(["check", "-o", "json", "/one"])
    run_command(["-o", "jsonl", "check"])
    assert [call[4:] for call in calls] == [["check", "--json", "/one"], ["check", "--json"]]


def test_the_reference_says_what_the_commands_say() -> None:
    page = PAGE.read_text()
    assert page == with_generated_part(page)
