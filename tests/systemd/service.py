"""nexusd as a service of the booted system: its modules, its commands, and who runs for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from nexusctl.client import Client
from nexusctl.nexus_client import NexusClient
from nexusctl.selection import ids_of
from tests.systemd.booted import BOUND_S, PROGRAMS, Machine

UNIT = "nexusd.service"
NEXUSCTL = f"{PROGRAMS}/bin/nexusctl"
MODULES = Path("/etc/nexus/modules")
SOCKET = Path("/run/nexus.sock")
UNITS = Path("/etc/systemd/system")
STANDING = "#!/bin/sh\nexec sleep 100000\n"

GROUP = Path("/sys/fs/cgroup/system.slice/nexusd.service")

Status = dict[str, Any]


class Service:
    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        if not machine.path(UNITS / UNIT).exists():
            machine.run(NEXUSCTL, "systemd", "install")
        self.configure("")

    def configure(self, text: str) -> None:
        self.write("/etc/nexus/nexusd.toml", '[metrics]\nlisten = "off"\n' + text)

    def drop_in(self, text: str) -> None:
        self.write(UNITS / f"{UNIT}.d" / "test.conf", text)
        self.machine.run("systemctl", "daemon-reload")

    def write(self, path: str | Path, text: str, mode: int = 0o644) -> None:
        place = self.machine.path(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
        place.chmod(mode)

    def module(
        self,
        module_id: str,
        program: str = STANDING,
        manifest: str = "",
        ready: str = "started",
        run: str = "",
    ) -> None:
        self.write(MODULES / module_id / "run", program, 0o755)
        self.write(
            MODULES / module_id / "module.toml",
            f'{manifest}\n[run]\nexec = ["./run"]\nready = "{ready}"\n{run}\n',
        )

    def upgrade(self, version: str, broken: str = "") -> None:
        """Install another version in the place of the one that runs, as pip would: its scripts stay as they are."""
        opt, fresh = self.machine.path(PROGRAMS), self.machine.path(f"{PROGRAMS}/{version}")
        self.machine.run(
            "sh", "-c", f"mkdir {PROGRAMS}/{version} && cp -R {PROGRAMS}/src/nexus* {PROGRAMS}/{version}"
        )
        (fresh / "nexusd" / "__init__.py").write_text(f'__version__ = "{version}"\n{broken}')
        (pth,) = opt.glob("lib/python*/site-packages/nexus.pth")
        pth.write_text(f"{PROGRAMS}/{version}\n{PROGRAMS}/src\n{PROGRAMS}/deps\n")

    def downgrade(self) -> None:
        """Back to what the machine was booted with."""
        (pth,) = self.machine.path(PROGRAMS).glob("lib/python*/site-packages/nexus.pth")
        pth.write_text(f"{PROGRAMS}/src\n{PROGRAMS}/deps\n")

    def start(self, bound_s: float = BOUND_S) -> Service:
        self.machine.run("systemctl", "start", UNIT, bound_s=bound_s)
        return self

    def systemctl(self, *arguments: str) -> str:
        return self.machine.run("systemctl", *arguments)

    def nexusctl(self, *arguments: str) -> str:
        return self.machine.run(NEXUSCTL, *arguments)

    def call(self, method: str, timeout_s: float = BOUND_S, **params: Any) -> Any:
        with self.client(timeout_s) as client:
            return client.call(method, params)

    def read(self, method: str, **params: Any) -> Any:
        """As one asks who is prepared for the death of a nexusd that has taken the request."""
        with NexusClient(self.machine.path(SOCKET), BOUND_S) as client:
            return client.call(method, params)

    def client(self, timeout_s: float = BOUND_S) -> Client:
        return Client(self.machine.path(SOCKET), timeout_s)

    def status(self) -> Status:
        found: Status = self.call("get_status")
        return found

    # Who runs, by the pids of the booted system

    @property
    def main_pid(self) -> int:
        return int(self.machine.shown(UNIT, "MainPID"))

    @property
    def keeper_pid(self) -> int:
        pid: int = self.status()["keeper"]["pid"]
        return pid

    def replicas(self) -> dict[str, tuple[int, int]]:
        """pid and restarts of each replica."""
        return {one["name"]: (one["pid"], one["restarts"]) for one in self._instances()}

    def began(self) -> dict[str, float]:
        """When each replica was started, as nexusd says."""
        return {one["name"]: one["since"] for one in self._instances()}

    def _instances(self) -> Iterator[Status]:
        with self.client() as client:
            for module_id in ids_of(client.call("get_status")):
                yield from client.call("get_status", {"module_id": module_id})["instances"]

    def kill(self, pid: int, number: int = 9) -> None:
        self.machine.run("kill", f"-{number}", pid)

    def processes(self) -> list[int]:
        """Every process in the service's control group, by the pids of this machine."""
        found: list[int] = []
        for file in self.machine.path(GROUP).rglob("cgroup.procs"):
            with suppress(OSError):  # the group has gone meanwhile
                found += map(int, file.read_text().split())
        return found

    def processes_named(self, *names: str) -> list[int]:
        """Those of the service whose first thread has one of these names, by the pids of this machine."""
        return [pid for pid in self.processes() if _name_of(pid) in names]

    def modules_running(self) -> Counter[str]:
        """How many processes each module has, as the kernel knows it."""
        return Counter(filter(None, map(_module_of, self.processes())))

    def copies(self, command: str) -> int:
        """How many processes have exactly this command line."""
        return len(self.machine.try_run("pgrep", "-xf", command).stdout.split())

    def await_other_main(self, former: int) -> None:
        self.machine.await_("another nexusd has been started", lambda: self.main_pid not in (0, former))

    def await_keeper(self) -> None:
        self.machine.await_("the keeper is connected", lambda: self.read("get_status")["keeper"]["connected"])

    def close(self) -> None:
        """Whatever it left is ended, and its files are removed, but for the units as they were installed."""
        machine = self.machine
        machine.try_run("systemctl", "stop", UNIT, "nexusd.socket", "nexus-health.timer")
        with suppress(OSError):  # the group has gone with its last process
            (machine.path(GROUP) / "cgroup.kill").write_text("1")
        machine.try_run("systemctl", "reset-failed")
        machine.run("rm", "-rf", "/etc/nexus", "/var/lib/nexus", "/var/log/nexus", "/run/nexus")
        if machine.path(UNITS / f"{UNIT}.d").exists():
            machine.run("rm", "-r", UNITS / f"{UNIT}.d")
            machine.run("systemctl", "daemon-reload")


def _name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:  # it has ended
        return ""


def _module_of(pid: int) -> str:
    """The id of the module that a process belongs to; empty when to none."""
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:  # it has ended
        return ""
    found = [one for one in environment.split(b"\0") if one.startswith(b"NEXUS_MODULE_ID=")]
    return found[0].partition(b"=")[2].decode() if found else ""
