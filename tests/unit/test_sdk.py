"""The SDK without a host: what the author of a module finds in a test of his own."""

import asyncio
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nexusd.sdk import Module, Surroundings

ROOT = Path(__file__).parents[2]


class Quiet(Module):
    async def start(self) -> None:
        pass


class Stubborn(Module):
    """Has an `__init__` of its own, and does not call ours."""

    def __init__(self) -> None:
        self.seen = (self.module_id, self.replica, self.config)

    async def start(self) -> None:
        pass


def placed(kind: type[Module], **place: Any) -> Module:
    module = kind()
    module.settle(Surroundings(**place))
    return module


def test_a_module_under_test_needs_no_nexusd() -> None:
    module = Quiet()
    module.status("said to nobody")
    assert (module.config, module.sockets, module.replica, module.generation) == ({}, {}, 0, 1)


def test_two_modules_share_no_configuration() -> None:
    one, two = Quiet(), Quiet()
    one.config["key"] = 1
    assert two.config == {}


def test_attributes_are_there_before_an_init_that_calls_nobody() -> None:
    assert Stubborn().seen == ("local/module", 0, {})


def test_only_start_is_asked_for() -> None:
    async def live() -> Any:
        module = Quiet()
        await module.start()
        await module.configure("key", 1)
        await module.import_state({})
        await module.stop()
        return await module.health(), await module.export_state()

    assert asyncio.run(live()) == (None, None)


def test_a_module_without_start_says_so() -> None:
    with pytest.raises(NotImplementedError, match=r"Module has no start\(\)"):
        asyncio.run(Module().start())


def test_a_status_is_one_line() -> None:
    said: list[str] = []
    placed(Quiet, notify=lambda message: not said.append(message)).status("two\nlines  — here")
    assert said == ["STATUS=two lines — here"]


def test_a_module_without_metrics_does_not_import_prometheus() -> None:
    script = "import sys, nexusd.sdk as s; s.Module().exposition(); print('prometheus_client' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"


def test_metrics_are_the_modules_own_and_bear_no_creation_time() -> None:
    prometheus_client = pytest.importorskip("prometheus_client")
    module, other = Quiet(), Quiet()
    prometheus_client.Counter("beats", "Beats", registry=module.metrics).inc()
    assert "beats_total 1.0" in module.exposition()
    assert "_created" not in module.exposition()
    assert module.metrics is not other.metrics
    assert other.exposition() == ""


def test_the_failure_of_a_background_task_is_passed_on_with_its_name() -> None:
    failures: list[tuple[str, BaseException]] = []

    async def fail() -> None:
        raise LookupError("lost")

    async def live() -> None:
        module = placed(Quiet, task_failed=lambda name, error: failures.append((name, error)))
        await asyncio.wait({module.background(fail(), name="search")})
        assert module.tasks == set()

    asyncio.run(live())
    [(name, error)] = failures
    assert (name, str(error)) == ("search", "lost")


def test_a_background_task_that_ends_or_is_cancelled_is_no_failure() -> None:
    failures: list[str] = []

    async def live() -> None:
        module = placed(Quiet, task_failed=lambda name, _: failures.append(name))
        ended = module.background(asyncio.sleep(0))
        cancelled = module.background(asyncio.Event().wait())
        cancelled.cancel()
        await asyncio.wait({ended, cancelled})

    asyncio.run(live())
    assert failures == []


def test_without_a_host_the_failure_of_a_background_task_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        raise LookupError("lost")

    async def live() -> None:
        await asyncio.wait({Quiet().background(fail(), name="search")})

    with caplog.at_level(logging.ERROR):
        asyncio.run(live())
    assert "background task search failed" in caplog.text
