"""A secret value goes through everything that can happen to it, and is found nowhere that others can read."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nexusctl.client import RpcError
from tests.running_nexus import BOUND_S, Nexus

SECRETS = [f"correct-horse-{number}" for number in range(9)]

MANIFEST = """
[restart]
policy = "never"
[config.password]
type = "str"
default = "none"
secret = true
apply = "live"
[config.token]
type = "str"
default = "none"
secret = true
apply = "restart"
[config.pin]
type = "int"
default = 1234
max = 9999
secret = true
apply = "live"
"""

# Quotes every value it is given, as careless modules do.
CARELESS = """
from nexusd.sdk import Module

class It(Module):
    async def start(self):
        if self.config["token"] != "none":
            raise ValueError(f"no such token: {self.config['token']}")

    async def configure(self, key, value):
        raise ValueError(f"{value} is not what I want")

    async def export_state(self):
        return {"password": self.config["password"]}
"""
KEPT = (
    'autostart = true\n[config.password]\ntype = "str"\ndefault = "none"\nsecret = true\napply = "restart"\n'
)


def refused(nexus: Nexus, method: str, **params: object) -> str:
    """All that the answer says."""
    with pytest.raises(RpcError) as raised:
        nexus.call(method, **params)
    return json.dumps([str(raised.value), raised.value.data])


def tell_secrets(nexus: Nexus) -> str:
    """Hand each secret in by another way; what was answered."""
    said = [
        refused(nexus, "configure", module_id="a/careless", key="password", value=SECRETS[0]),
        refused(nexus, "configure", module_id="a/careless", key="pasword", value=SECRETS[1]),
        refused(nexus, "configure", module_id="a/careless", key="password", valeu=SECRETS[2]),
        refused(nexus, "configure", module_id="a/nobody", key="password", value=SECRETS[3]),
        refused(nexus, "configure", module_id="a/careless", key="pin", value=SECRETS[4]),
        json.dumps(nexus.call("configure", module_id="a/kept", key="password", value=SECRETS[5])),
    ]
    command = [*nexus.ctl_command("config", "set", "a/kept", "password", "-")]
    ran = subprocess.run(
        command,
        input=SECRETS[6],
        env={**nexus.environment, "NEXUS_SOCKET": str(nexus.socket)},
        capture_output=True,
        text=True,
        timeout=BOUND_S,
    )
    assert ran.returncode == 0, ran.stderr
    said.append(ran.stdout + ran.stderr)
    said.append(json.dumps(nexus.call("configure", module_id="a/careless", key="token", value=SECRETS[7])))
    nexus.until_state("a/careless", "failed")
    said.append(refused(nexus, "start_module", module_id="a/careless"))
    said.append(nexus.ctl("start", "a/careless").stderr)
    return "\n".join(said)


def everything_said(nexus: Nexus) -> str:
    """All that the API has to say, but the modules' own logs."""
    said = [nexus.call(method) for method in ("get_status", "whoami", "rpc.discover", "verify_audit")]
    said += [nexus.call(method, limit=10_000) for method in ("get_history", "get_audit")]
    for module_id in ("a/careless", "a/kept"):
        said += [nexus.call(method, module_id=module_id) for method in ("get_status", "get_config")]
    return json.dumps(said)


def files_with(nexus: Nexus, secret: bytes) -> Iterator[Path]:
    for folder in (nexus.runtime, nexus.state, nexus.logs):
        for path in folder.rglob("*"):
            if path.is_file() and secret in path.read_bytes():
                yield path


def test_a_secret_is_nowhere_that_others_can_read(nexus: Nexus) -> None:
    nexus.add_python("a/careless", CARELESS, MANIFEST)
    nexus.add_program("a/kept", "#!/bin/sh\nexec sleep 1000\n", KEPT)
    nexus.start()
    nexus.until_state("a/careless", "started")
    said = [tell_secrets(nexus)]

    nexus.call("reload_module", module_id="a/kept", strategy="immediate")
    os.kill(nexus.pid_of("a/kept"), signal.SIGKILL)
    nexus.until("a/kept", lambda status: status["restarts"] == 1 and status["state"] == "started")
    said.append(everything_said(nexus))
    nexus.kill()
    nexus.start()
    nexus.kill_both()
    nexus.start()
    nexus.until_state("a/kept", "started")
    said.append(everything_said(nexus))
    for pid in nexus.processes():
        said += [Path(f"/proc/{pid}/{name}").read_text(errors="replace") for name in ("cmdline", "environ")]

    text = "\n".join([*said, nexus.log()])
    assert "********" in text
    assert [secret for secret in SECRETS if secret in text] == []
    own_logs = (nexus.logs / "a").resolve()
    for secret in SECRETS:
        holding = [path for path in files_with(nexus, secret.encode()) if not path.is_relative_to(own_logs)]
        assert [path for path in holding if path.stat().st_mode & 0o077] == []
        names = {path.relative_to(nexus.home).parts[:2] for path in holding}
        assert names <= {("run", "config"), ("state", "nexus.db"), ("state", "nexus.db-wal")}
    assert any(files_with(nexus, SECRETS[6].encode()))  # else it was looked for in the wrong place


def test_what_nexusd_keeps_for_itself_is_for_its_owner_alone(nexus: Nexus) -> None:
    nexus.add_program("a/kept", "#!/bin/sh\nexec sleep 1000\n", KEPT)
    nexus.start().until_state("a/kept", "started")
    nexus.call("configure", module_id="a/kept", key="password", value=SECRETS[0])
    private = [
        *(nexus.state / name for name in ("nexus.db", "nexus.db-wal", "audit.head", "nexusd.lock")),
        *(nexus.runtime / name for name in ("keeper.journal", "keeper.sock", "nexusd.lock")),
        *(nexus.runtime / "config").glob("*.json"),
        *(nexus.logs / "audit").iterdir(),
        nexus.logs / "audit",
    ]
    assert {path: oct(path.stat().st_mode & 0o077) for path in private if path.stat().st_mode & 0o077} == {}
