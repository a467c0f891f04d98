"""A real systemd as PID 1 of a container made from the running system: booted once for a run, entered, ended.

An overlay over the root of this machine, in a mount namespace of its own: nothing of this machine is changed, and
nothing is left mounted, however the tests end.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import click

T = TypeVar("T")
BOUND_S = 30.0
PROGRAMS = "/opt/nexus"
REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("nexusd", "nexusctl")
NEEDED = ("systemd-nspawn", "nsenter", "unshare", "mount", "systemctl")
# What the image would start besides, and what would go on the network or wait for a terminal.
MASKED = (
    *(
        "postgresql.service",
        "prometheus.service",
        "getty.target",
        "console-getty.service",
        "systemd-networkd.service",
    ),
    *(
        "systemd-timesyncd.service",
        "systemd-firstboot.service",
        "systemd-logind.service",
        "e2scrub_reap.service",
    ),
    *(
        "systemd-machine-id-commit.service",
        "systemd-networkd.socket",
        "systemd-resolved.service",
        "cron.service",
    ),
    *(
        "apt-daily.timer",
        "apt-daily-upgrade.timer",
        "dpkg-db-backup.timer",
        "e2scrub_all.timer",
        "fstrim.timer",
    ),
    "man-db.timer",
)

# Arguments: a folder, the cgroup to boot in or "", the interpreter's own folder, further binds, then units to mask.
_BOOT = """
set -eu
home=$1 group=$2 interpreter=$3 binds=$4
shift 4
[ -z "$group" ] || echo $$ >"$group/cgroup.procs"
mount -t tmpfs tmpfs "$home/upper"
mkdir "$home/upper/u" "$home/upper/w"
mount -t overlay overlay -o "lowerdir=/,upperdir=$home/upper/u,workdir=$home/upper/w" "$home/root"
etc=$home/root/etc
mkdir -p "$etc/systemd/system"
for unit; do ln -sf /dev/null "$etc/systemd/system/$unit"; done
echo nexus-test >"$etc/hostname"
rm -f "$etc/machine-id" "$etc/fstab" "$etc/resolv.conf"
echo 0123456789abcdef0123456789abcdef >"$etc/machine-id"
mkdir -p "$home/root/opt/nexus"
cp -R "$home/opt/." "$home/root/opt/nexus"
until [ "$interpreter" = / ]; do # for users other than root
    chmod a+x "$home/root$interpreter"
    interpreter=$(dirname "$interpreter")
done
rm -rf "$home/root/var/log/journal" "$home/root/etc/nexus" "$home/root/var/lib/nexus" "$home/root/run/nexus"
exec systemd-nspawn --quiet --directory="$home/root" --register=no --keep-unit --boot --console=pipe \\
    --private-network --system-call-filter=pidfd_getfd $binds </dev/null
"""


class CannotBoot(Exception):
    """This machine can't boot a systemd; why."""


def missing() -> str | None:
    """What this machine lacks to boot one; None: nothing that is known before it is tried."""
    if os.getuid() != 0:
        return "only root can boot a systemd"
    absent = [name for name in NEEDED if shutil.which(name) is None]
    if absent:
        return f"{', '.join(absent)} is missing; on Debian: apt-get install systemd-container"
    return None


class Machine:
    """The booted system. Paths are as it sees them; `path` leads there from outside."""

    def __init__(self) -> None:
        if (lack := missing()) is not None:
            raise CannotBoot(lack)
        self._home = Path(tempfile.mkdtemp(prefix="nx-boot-", dir="/tmp"))
        for name in ("upper", "root"):
            (self._home / name).mkdir()
        self._group = _own_group()
        self._console = self._home / "console"
        self._nspawn: subprocess.Popen[bytes] | None = None
        self.pid = 0
        try:
            self.boot_s = self._boot()
        except BaseException:
            self.close()
            raise

    def _boot(self) -> float:
        begun = time.monotonic()
        command = ["unshare", "--mount", "sh", "-c", _BOOT, "boot"]
        command += [str(self._home), self._group or "", sys.base_prefix, " ".join(self._install()), *MASKED]
        environment = {**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"}
        with open(self._console, "wb") as console:
            self._nspawn = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=console, stderr=console, env=environment
            )
        self.pid = self.await_("systemd is PID 1 of a namespace", self._find_systemd)
        self.await_("its manager answers", self._is_up)
        return time.monotonic() - begun

    def _install(self) -> list[str]:
        """An installation in PROGRAMS, of this tree and what it needs; where they lie may be hidden from services.

        This tree is copied, so that its bytecode is kept: a start that compiles takes twice as long.
        """
        opt, version = self._home / "opt", f"python{sys.version_info.major}.{sys.version_info.minor}"
        packages = opt / "lib" / version / "site-packages"
        for folder in (packages, opt / "bin", opt / "deps"):
            folder.mkdir(parents=True)
        for package in PACKAGES:
            shutil.copytree(REPOSITORY / package, opt / "src" / package)
        base = Path(sys.base_prefix) / "bin"
        (opt / "pyvenv.cfg").write_text(f"home = {base}\ninclude-system-site-packages = false\n")
        (opt / "bin" / "python").symlink_to(base / version)
        (packages / "nexus.pth").write_text(f"{PROGRAMS}/src\n{PROGRAMS}/deps\n")
        for name in ("nexusd", "nexusctl"):
            script = opt / "bin" / name
            script.write_text(f"#!{PROGRAMS}/bin/python\nfrom {name}.__main__ import main\nmain()\n")
            script.chmod(0o755)
        is_on_root = os.stat(sys.base_prefix).st_dev == os.stat("/").st_dev
        kept = [] if is_on_root else [f"--bind-ro={sys.base_prefix}"]
        return [f"--bind-ro={Path(click.__file__).parents[1]}:{PROGRAMS}/deps", *kept]

    def _find_systemd(self) -> int:
        assert self._nspawn is not None
        if self._nspawn.poll() is not None:
            raise CannotBoot(f"systemd-nspawn left with {self._nspawn.returncode}: {self.console()}")
        for pid in _children(self._nspawn.pid):
            try:
                name = Path(f"/proc/{pid}/comm").read_text().strip()
            except OSError:  # it was one of nspawn's own, on its way
                continue
            if name == "systemd":
                return pid
        return 0

    def _is_up(self) -> bool:
        state = self.try_run("systemctl", "is-system-running").stdout.strip()
        return state in ("running", "degraded")

    def console(self) -> str:
        return self._console.read_text(errors="replace")[-2000:]

    # What is done in it

    def try_run(
        self, *command: object, text: str = "", bound_s: float = BOUND_S
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in it, as root."""
        entered = ["nsenter", "-t", str(self.pid), "-a", "--wd=/", *map(str, command)]
        environment = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LC_ALL": "C.UTF-8",
        }
        return subprocess.run(
            entered, input=text, capture_output=True, text=True, timeout=bound_s, env=environment, check=False
        )

    def run(self, *command: object, bound_s: float = BOUND_S) -> str:
        ran = self.try_run(*command, bound_s=bound_s)
        assert ran.returncode == 0, f"{command}: {ran.returncode}\n{ran.stdout}{ran.stderr}{self.journal()}"
        return ran.stdout.strip()

    def path(self, path: str | Path) -> Path:
        return Path(f"/proc/{self.pid}/root{path}")

    def shown(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.run("systemctl", "show", unit, f"--property={name}", "--value")

    def journal(self, lines: int = 40) -> str:
        return "\n" + self.try_run("journalctl", "--no-pager", "-n", lines, "-o", "short-monotonic").stdout

    @contextmanager
    def debugged(self) -> Iterator[Callable[[str], str]]:
        """Meanwhile systemd logs each word that it hears, and each change of a state: of a unit, with its own words."""
        last = self.run("journalctl", "--no-pager", "-n", "1", "-o", "cat", "--show-cursor").splitlines()[-1]
        after = f"--after-cursor={last.removeprefix('-- cursor: ')}"
        self.run("systemctl", "log-level", "debug")
        try:
            yield lambda unit: self.run("journalctl", "--no-pager", "-o", "cat", after, "-u", unit)
        finally:
            self.run("systemctl", "log-level", "info")

    def await_(self, what: str, look: Callable[[], T], bound_s: float = BOUND_S) -> T:
        """What `look` sees as soon as it sees something; systemd's states have no event to wait for from outside."""
        until = time.monotonic() + bound_s
        while not (seen := look()):
            if time.monotonic() > until:
                raise AssertionError(f"not within {bound_s:g} s: {what}\n{self.console()}{self.journal()}")
            time.sleep(0.02)
        return seen

    def await_active(self, unit: str, state: str = "active", bound_s: float = BOUND_S) -> None:
        self.await_(f"{unit} is {state}", lambda: self.shown(unit, "ActiveState") == state, bound_s)

    # Its end

    def close(self) -> None:
        if self._nspawn is not None and self._nspawn.poll() is None:
            if self.pid:
                os.kill(
                    self.pid, signal.SIGKILL
                )  # PID 1 of a namespace takes all of it along, and its mounts
            else:
                self._nspawn.kill()
            self._nspawn.wait(BOUND_S)
        shutil.rmtree(self._home, ignore_errors=True)
        if self._group is not None:
            _remove_groups(Path(self._group))


def _own_group() -> str | None:
    """A control group (v2) for this run: nspawn would share `payload` with any other that runs now."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind, *_ = line.split()
        if kind == "cgroup2":
            group = Path(place) / f"nexus-test-{os.getpid()}"
            try:
                group.mkdir()
            except OSError:
                return None
            return str(group)
    return None


def _remove_groups(group: Path) -> None:
    for folder, _, _ in os.walk(group, topdown=False):
        try:
            os.rmdir(folder)
        except OSError:
            return


def _children(pid: int) -> Sequence[int]:
    try:
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
