"""What an operator said holds over restarts of nexusd; what was configured reaches the module; secrets stay secret."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from nexusctl.client import RpcError
from tests.e2e.programs import SLEEPER
from tests.running_nexus import Nexus

KEYS = """
[config.live]
type = "int"
default = 1
max = 100
apply = "live"

[config.renewed]
type = "int"
default = 1
apply = "reload"

[config.restarted]
type = "str"
default = "one"
apply = "restart"

[config.password]
type = "str"
default = "initial-secret"
apply = "live"
secret = true

[config.pin]
type = "int"
default = 1234
secret = true
"""

# Rings with its whole configuration when it starts and when it is told a value; has its own idea of what is odd.
TELLS = """
import json, os
from nexusd.sdk import Module
class It(Module):
    async def start(self):
        self.ring("started")
    async def configure(self, key, value):
        if value == 13:
            raise ValueError("13 brings bad luck")
        self.ring(key)
    def ring(self, why):
        with open(os.environ["BELL"], "a") as bell:
            print(json.dumps([why, self.config]), file=bell)
"""


@pytest.fixture
def told(nexus: Nexus) -> Nexus:
    """A nexusd whose one module has rung its start."""
    nexus.add_python("a/one", TELLS, KEYS)
    nexus.start().until_state("a/one", "started")
    assert json.loads(nexus.bell.hear())[0] == "started"
    return nexus


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_what_was_stopped_by_hand_stays_stopped_and_what_was_started_is_started(
    nexus: Nexus, end: int
) -> None:
    nexus.add_program("a/automatic", SLEEPER)
    nexus.add_program("a/by-hand", SLEEPER, "autostart = false\n")
    nexus.start().until_state("a/automatic", "started")
    nexus.call("stop_module", module_id="a/automatic")
    nexus.call("start_module", module_id="a/by-hand")

    for _ in range(2):
        nexus.kill(end)
        nexus.start().until_state("a/by-hand", "started")
        status = nexus.status("a/automatic")
        assert (status["state"], status["wanted"], status["health"]) == ("stopped", "stopped", "degraded")


def test_a_configured_value_reaches_the_module_at_once_and_after_every_restart(told: Nexus) -> None:
    pid = told.pid_of("a/one")
    answer = told.call("configure", module_id="a/one", key="live", value=7)
    assert (answer["previous"], answer["value"], answer["applied"]) == (1, 7, "live")
    assert json.loads(told.bell.hear()) == ["live", _config(live=7)]
    assert told.pid_of("a/one") == pid

    told.call("restart_module", module_id="a/one")
    assert json.loads(told.bell.hear()) == ["started", _config(live=7)]
    told.restart().until_state("a/one", "started")
    assert json.loads(told.bell.hear()) == ["started", _config(live=7)]
    told.kill()
    told.start()
    assert told.call("get_config", module_id="a/one", key="live")["config"]["live"]["source"] == "configured"


def _config(**changed: object) -> dict[str, object]:
    default = {"live": 1, "renewed": 1, "restarted": "one", "password": "initial-secret", "pin": 1234}
    return {**default, **changed}


def test_a_value_that_the_module_refuses_changes_nothing(told: Nexus) -> None:
    with pytest.raises(RpcError, match="13 brings bad luck") as refused:
        told.call("configure", module_id="a/one", key="live", value=13)
    assert refused.value.code == -32004
    assert told.status("a/one")["config"]["live"] == 1
    assert told.call("get_config", module_id="a/one", key="live")["config"]["live"]["source"] == "default"

    told.call("restart_module", module_id="a/one")
    assert json.loads(told.bell.hear()) == ["started", _config()]


def test_apply_says_how_a_value_takes_effect(told: Nexus) -> None:
    pid, generation = told.pid_of("a/one"), told.status("a/one")["generation"]
    assert told.call("configure", module_id="a/one", key="restarted", value="two")["applied"] == "restart"
    assert json.loads(told.bell.hear()) == ["started", _config(restarted="two")]
    after = told.until(
        "a/one", lambda status: status["state"] == "started" and status["instances"][0]["pid"] != pid
    )
    assert after["generation"] == generation

    assert told.call("configure", module_id="a/one", key="renewed", value=2)["applied"] == "reload"
    assert json.loads(told.bell.hear()) == ["started", _config(restarted="two", renewed=2)]
    told.until_state("a/one", "started")

    told.call("stop_module", module_id="a/one")
    assert told.call("configure", module_id="a/one", key="live", value=9)["applied"] == "stored"
    told.call("start_module", module_id="a/one")
    assert json.loads(told.bell.hear()) == ["started", _config(restarted="two", renewed=2, live=9)]


def test_config_unset_takes_a_value_back_to_the_default_over_restarts_too(told: Nexus) -> None:
    told.call("configure", module_id="a/one", key="live", value=5)
    told.bell.hear()
    done = told.ctl("config", "unset", "a/one", "live")
    assert (done.returncode, done.stdout) == (0, "a/one live: 5 -> 1 (the default), applied at once\n")
    assert json.loads(told.bell.hear())[1]["live"] == 1
    again = told.ctl("config", "unset", "a/one", "live")
    assert again.stdout == "a/one live: 1, which is the default already\n"
    told.restart().until_state("a/one", "started")
    assert json.loads(told.bell.hear())[1]["live"] == 1
    assert told.call("get_config", module_id="a/one", key="live")["config"]["live"]["source"] == "default"
    assert told.ctl("config", "unset", "a/one", "lve").returncode != 0


def test_a_secret_is_shown_nowhere_and_reaches_the_module(told: Nexus) -> None:
    secret = "hunter2-of-the-test"
    seen = [told.call("configure", module_id="a/one", key="password", value=secret)]
    assert json.loads(told.bell.hear()) == ["password", _config(password=secret)]
    seen += [told.status("a/one"), told.status(), told.call("get_config", module_id="a/one")]
    seen += [told.call("get_history"), told.call("get_logs", module_id="a/one")]
    with pytest.raises(RpcError) as refused:
        told.call("configure", module_id="a/one", key="pin", value=secret)
    seen.append([refused.value.message, refused.value.data])
    for command in (
        ["config", "get", "a/one"],
        ["config", "get", "a/one", "password"],
        ["status", "a/one", "-o", "json"],
    ):
        ran = told.ctl(*command)
        seen.append([ran.stdout, ran.stderr])
    told.restart()
    seen += [told.status("a/one"), told.call("get_history")]

    shown = json.dumps(seen)
    assert secret not in shown and "initial-secret" not in shown and "1234" not in shown
    assert secret not in told.log()
    assert json.loads(told.bell.hear()) == ["started", _config(password=secret)]


def test_nobody_else_may_read_the_files_that_hold_values(told: Nexus) -> None:
    holding = [*told.state.glob("nexus.db*"), *(told.runtime / "config").iterdir()]
    assert holding
    assert [
        path for path in holding if path.stat().st_mode & 0o077 and _parents_let_in(path, told.home)
    ] == []


def _parents_let_in(path: Path, home: Path) -> bool:
    return all(folder.stat().st_mode & 0o001 for folder in path.parents if folder.is_relative_to(home))
