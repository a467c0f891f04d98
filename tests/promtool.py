"""promtool, Prometheus's own judge of metrics, rules and configurations: Debian's package prometheus has it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

BOUND_S = 60


def promtool(*arguments: str, text: bytes = b"", cwd: Path | None = None) -> str:
    """What it says when it is content. A machine that tests for others has to have it."""
    program = shutil.which("promtool")
    if program is None:
        missing = "promtool is missing; on Debian: apt-get install --no-install-recommends prometheus"
        assert not os.environ.get("CI"), missing
        pytest.skip(missing)
    ran = subprocess.run([program, *arguments], input=text, capture_output=True, timeout=BOUND_S, cwd=cwd)
    said = (ran.stdout + ran.stderr).decode()
    assert ran.returncode == 0, said
    return said
