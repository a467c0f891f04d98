"""A view of this machine's files in which /aeon is a folder of the test's, for blocks that name it outright.

A mount namespace with a root of its own: nothing outside of it is touched, and it ends with its processes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PARTS = ("aeon_interface", "nexusctl", "nexusd", "nexus_v2_enterprise.py")

# $1 the new root, $2 what becomes /aeon, then the command.
_ENTER = """
set -e
root=$1 aeon=$2 here=$PWD
shift 2
mount -t tmpfs none "$root"
for one in /*; do
    if [ -L "$one" ]; then cp -P "$one" "$root"
    elif [ -d "$one" ] && [ "$one" != /aeon ]; then mkdir "$root$one"; mount --rbind "$one" "$root$one"
    fi
done
mkdir "$root/aeon"
mount --bind "$aeon" "$root/aeon"
exec chroot "$root" sh -c 'cd "$0"; exec "$@"' "$here" "$@"
"""


class World:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.aeon = folder / "aeon"
        self.aeon.mkdir(parents=True)
        self._root = folder / "root"
        self._root.mkdir()
        self.programs = folder / "bin"
        self.programs.mkdir()

    def has_python(self, interpreter: str) -> World:
        """`python` of the blocks is this one. A link would not do: a virtual environment is known by its place."""
        program = self.programs / "python"
        program.write_text(f'#!/bin/sh\nexec {interpreter} "$@"\n')
        program.chmod(0o755)
        return self

    def has_tree(self) -> World:
        """A plain copy of the packages where AEON has them, without pip."""
        tree = self.aeon / "runtime" / "python" / "nexus"
        tree.mkdir(parents=True)
        for name in PARTS:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, tree / name)
        return self

    def command(self, *command: str) -> list[str]:
        return [*_namespaces(), "sh", "-c", _ENTER, "sh", str(self._root), str(self.aeon), *command]

    def run(self, *command: str, bound_s: float = 60, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*command),
            env=self.environment(environment),
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=bound_s,
        )

    def environment(self, given: Mapping[str, str]) -> dict[str, str]:
        return {**os.environ, **given, "PATH": f"{self.programs}:{os.environ['PATH']}"}

    def bash(self, code: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return self.run("bash", "-c", code, **environment)


@cache
def _namespaces() -> tuple[str, ...]:
    own_user = () if os.geteuid() == 0 else ("--user", "--map-root-user")
    return ("unshare", *own_user, "--mount", "--propagation", "private")


def is_possible() -> bool:
    """Containers may forbid namespaces."""
    tried = subprocess.run([*_namespaces(), "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True)
    return tried.returncode == 0


def base_interpreter() -> str:
    """The one below a virtual environment: it has nothing installed that nexusd needs."""
    return os.path.realpath(sys.executable)
