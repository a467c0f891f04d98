"""The unit files of nexusd: which there are, where each belongs, made with the paths of this interpreter; removed.

What systemd is told afterwards is the command's (`commands/systemd.py`).
"""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TEMPLATES = Path(__file__).with_name("units")
UNITS = (
    "nexusd.service",
    "nexusd.socket",
    "nexusd-sweep.service",
    "nexus-health.service",
    "nexus-health.timer",
)
DROP_IN = "nexusd.service.d/unprivileged.conf"
THERE, DIFFERENT, MISSING = "installed", "different", "missing"


@dataclass(frozen=True)
class UnitFile:
    """One file: its place, and what is to stand in it."""

    path: Path
    text: str

    @property
    def state(self) -> str:
        try:
            return THERE if self.path.read_text() == self.text else DIFFERENT
        except OSError:
            return MISSING


def unit_files(root: Path | None, unprivileged: bool) -> list[UnitFile]:
    """In a packager's tree below `usr/lib`; on this host in /etc, where an administrator's files belong."""
    units, snippets = _folders(root)
    names = {name: units / name for name in UNITS}
    names |= {f"{kind}.conf": snippets / f"{kind}.d" / "nexus.conf" for kind in ("sysusers", "tmpfiles")}
    if unprivileged:
        names["unprivileged.conf"] = units / DROP_IN
    return [UnitFile(path, _filled_in((TEMPLATES / name).read_text())) for name, path in names.items()]


def _folders(root: Path | None) -> tuple[Path, Path]:
    if root is None:
        return Path("/etc/systemd/system"), Path("/etc")
    return root / "usr/lib/systemd/system", root / "usr/lib"


def _filled_in(template: str) -> str:
    return template.replace("@NEXUSD@", _program("nexusd")).replace("@NEXUSCTL@", _program("nexusctl"))


def _program(name: str) -> str:
    """The installed program of this interpreter, else its package. -P: not from the folder it is started in."""
    script = os.path.join(sysconfig.get_path("scripts"), name)
    words = [script] if os.access(script, os.X_OK) else [sys.executable, "-P", "-m", name]
    return " ".join(_quoted(word) for word in words)


def _quoted(word: str) -> str:
    """As systemd.service(5) reads a command line: % and $ are doubled."""
    word = word.replace("%", "%%").replace("$", "$$")
    return (
        '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"' if set(word) & set(" \t\"'\\;") else word
    )


def write(file: UnitFile) -> None:
    """As a whole or not at all: systemd may read it at any moment."""
    file.path.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.path.with_name(f".{file.path.name}.new")
    fresh.write_text(file.text)
    fresh.chmod(0o644)
    fresh.replace(file.path)


def remove(file: UnitFile) -> bool:
    """Whether it was there. A folder of drop-ins goes with its last file."""
    if not file.path.exists():
        return False
    file.path.unlink()
    if file.path.parent.suffix == ".d" and file.path.parent.parent.name == "system":
        left: Iterator[Path] = file.path.parent.iterdir()
        if next(left, None) is None:
            file.path.parent.rmdir()
    return True
