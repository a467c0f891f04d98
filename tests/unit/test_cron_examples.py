"""The crontab and the units in examples/cron are well formed, and call nexusctl as it can be called."""

import configparser
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nexusctl.__main__ import plain_health

CRON = Path(__file__).parents[2] / "examples" / "cron"
# crontab(5): minute, hour, day of month, month, day of week
RANGES = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))


def entries() -> list[list[str]]:
    lines = (CRON / "crontab").read_text().splitlines()
    kept = [line for line in lines if line.strip() and not line.startswith("#")]
    return [line.split(None, 5) for line in kept if not re.match(r"[A-Z]+=", line)]


def is_within(field: str, lowest: int, highest: int) -> bool:
    for part in field.split(","):
        match = re.fullmatch(r"(?:\*|(\d+)(?:-(\d+))?)(?:/(\d+))?", part)
        if match is None:
            return False
        numbers = [int(number) for number in match.groups()[:2] if number is not None]
        if any(not lowest <= number <= highest for number in numbers) or numbers != sorted(numbers):
            return False
    return True


def test_every_line_of_the_crontab_has_five_fields_and_a_command() -> None:
    assert len(entries()) >= 2
    for entry in entries():
        assert len(entry) == 6
        assert all(is_within(field, *bounds) for field, bounds in zip(entry[:5], RANGES, strict=True)), entry
        assert "%" not in entry[5]  # cron would take it for the end of the line
    assert (CRON / "crontab").read_text().endswith("\n")  # cron ignores a last line without


@pytest.mark.parametrize("field", ["60", "*/x", "5-1", "", "1,,2", "a"])
def test_a_wrong_field_would_be_found(field: str) -> None:
    assert not is_within(field, 0, 59)


def test_each_of_them_is_a_command_of_nexusctl() -> None:
    service = configparser.ConfigParser()
    service.read(CRON / "nexus-health.service")
    commands = [shlex.split(entry[5]) for entry in entries()]
    commands.append(shlex.split(service["Service"]["ExecStart"]))
    for program, *arguments in commands:
        assert Path(program).name == "nexusctl"
        assert plain_health(arguments) is not None, arguments


def test_the_timer_starts_the_service_beside_it() -> None:
    timer = configparser.ConfigParser()
    timer.read(CRON / "nexus-health.timer")
    assert timer["Install"]["WantedBy"] == "timers.target"
    assert timer.get("Timer", "Unit", fallback="nexus-health.service") == "nexus-health.service"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not there to judge")
def test_systemd_finds_no_fault_with_the_units(tmp_path: Path) -> None:
    for name in ("nexus-health.service", "nexus-health.timer"):
        text = (CRON / name).read_text().replace("/opt/nexus/bin/nexusctl", sys.executable)
        (tmp_path / name).write_text(text)
    units = [str(tmp_path / name) for name in ("nexus-health.timer", "nexus-health.service")]
    told = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, timeout=60)
    assert (told.returncode, [line for line in told.stderr.splitlines() if "nexus-health" in line]) == (0, [])
