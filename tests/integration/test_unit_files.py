"""`nexusctl systemd` for packagers, and what stands in the files: whole, with this interpreter's paths."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from nexusctl.cli import nexusctl
from nexusctl.commands import systemd as commands
from nexusctl.unit_files import TEMPLATES, UNITS, UnitFile, unit_files

ROOT = Path(__file__).parents[2]


def systemd(*arguments: object) -> tuple[int, Any]:
    command = [sys.executable, "-m", "nexusctl", "-o", "json", "systemd", *map(str, arguments)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60, check=False)
    return ran.returncode, json.loads(ran.stdout) if ran.stdout else ran.stderr.decode()


def test_a_packagers_tree_gets_all_files_and_this_host_none(tmp_path: Path) -> None:
    status, done = systemd("install", "--root", tmp_path)
    assert (status, done["next"]) == (0, None)
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    units = {f"usr/lib/systemd/system/{name}" for name in UNITS}
    assert found == units | {"usr/lib/sysusers.d/nexus.conf", "usr/lib/tmpfiles.d/nexus.conf"}
    assert {str(tmp_path / one) for one in found} == set(done["files"])


def test_status_tells_what_is_missing_and_what_was_changed(tmp_path: Path) -> None:
    assert systemd("status", "--root", tmp_path)[0] == 3
    systemd("install", "--root", tmp_path)
    assert systemd("status", "--root", tmp_path)[0] == 0
    changed = tmp_path / "usr/lib/systemd/system/nexusd.service"
    changed.write_text("[Service]\n")
    status, shown = systemd("status", "--root", tmp_path)
    assert status == 3
    assert {one["state"] for one in shown["files"] if one["path"] == str(changed)} == {"different"}


def test_uninstall_removes_what_install_made_and_nothing_else(tmp_path: Path) -> None:
    systemd("install", "--unprivileged", "--root", tmp_path)
    units = tmp_path / "usr/lib/systemd/system"
    (units / "nexusd.service.d/mine.conf").write_text("[Service]\n")
    status, done = systemd("uninstall", "--root", tmp_path)
    assert (status, len(done["removed"])) == (0, len(UNITS) + 3)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["mine.conf"]


def test_a_place_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "usr").write_text("in the way")
    status, said = systemd("install", "--root", tmp_path)
    assert status == 1
    assert f"{tmp_path}/usr" in said


def test_a_systemctl_that_takes_too_long_is_told_and_ends_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = tmp_path / "systemctl"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setattr(commands, "PATIENCE_S", 0.1)
    assert commands._ran([str(slow), "stop"]) == ("failed", f"{slow} stop: not done within 0.1 s")


def test_the_drop_in_is_told_as_not_used_and_needed_only_where_it_is_there(tmp_path: Path) -> None:
    systemd("install", "--root", tmp_path)
    drop_in = tmp_path / "usr/lib/systemd/system/nexusd.service.d/unprivileged.conf"
    status, shown = systemd("status", "--root", tmp_path)
    assert (status, shown["files"][-1]) == (0, {"path": str(drop_in), "state": "not used"})
    systemd("install", "--unprivileged", "--root", tmp_path)
    status, shown = systemd("status", "--root", tmp_path)
    assert (status, shown["files"][-1]["state"]) == (0, "installed")
    drop_in.write_text("[Service]\n")
    assert systemd("status", "--root", tmp_path)[0] == 3


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host with nexusd installed, whose systemctl does what stands in `systemctl`."""

    def files(_root: Path | None, unprivileged: bool) -> list[UnitFile]:
        return unit_files(tmp_path, unprivileged)

    def ran(command: list[str]) -> tuple[str, str]:
        words = " ".join(command)
        refuses = (tmp_path / "refuses").exists() and "disable" in words
        return "failed" if refuses else "ran", words

    monkeypatch.setattr(commands, "unit_files", files)
    monkeypatch.setattr(commands, "_ran", ran)
    assert on_host("install")[0] == 0
    return tmp_path


def on_host(*arguments: str) -> tuple[int, Any]:
    ran = CliRunner().invoke(nexusctl, ["-o", "json", "systemd", *arguments], standalone_mode=False)
    return ran.return_value, json.loads(ran.stdout)


def installed(host: Path) -> set[str]:
    return {path.name for path in (host / "usr/lib/systemd/system").glob("*")}


def test_what_cannot_be_stopped_keeps_its_files_until_somebody_insists(host: Path) -> None:
    (host / "refuses").touch()
    status, done = on_host("uninstall")
    assert (status, done["removed"]) == (1, [])
    assert done["done"] == ["failed systemctl disable --now nexusd.socket nexusd.service nexus-health.timer"]
    assert installed(host) == set(UNITS)
    status, done = on_host("uninstall", "--force")
    assert (status, installed(host)) == (0, set())
    assert done["done"][0].startswith("failed") and done["done"][-1] == "ran systemctl daemon-reload"


def test_what_is_not_installed_is_not_stopped(host: Path) -> None:
    assert on_host("uninstall")[1]["done"][0].startswith("ran systemctl disable")
    assert on_host("uninstall") == (0, {"removed": [], "done": ["ran systemctl daemon-reload"], "next": None})


@pytest.mark.parametrize("name", [path.name for path in sorted(TEMPLATES.iterdir())])
def test_every_template_is_installed_and_no_placeholder_is_left(name: str) -> None:
    texts = [file.text for file in unit_files(None, unprivileged=True)]
    assert not [text for text in texts if "@NEXUS" in text]
    begun = (TEMPLATES / name).read_text().splitlines()[0]
    assert len([text for text in texts if text.startswith(begun)]) == 1


def test_the_folder_at_the_top_is_the_one_that_is_installed() -> None:
    assert (ROOT / "systemd").resolve() == TEMPLATES.resolve()
