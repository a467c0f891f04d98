"""NexusClient and AsyncNexusClient against real daemons and fake ones: methods, time-outs, coming back, events."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from aeon_interface import AsyncNexusClient, NexusClient, PermissionDenied, RpcError, Unreachable
from nexusctl.client import Client
from nexusctl.nexus_client import REPEATS
from tests.e2e.programs import SLEEPER
from tests.fake_daemon import Connection, FakeDaemon, Params, Refusal
from tests.running_nexus import BOUND_S, Nexus


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "nexus.sock"


def hangs_up(params: Params, connection: Connection) -> Params:
    connection.close()
    return {}


def test_the_methods_send_what_was_given_and_nothing_else(path: Path) -> None:
    answers: dict[str, Any] = {"get_status": {}, "start_module": {}, "configure": {}}
    with FakeDaemon(path, answers) as daemon, NexusClient(path) as client:
        client.get_status()
        client.get_status("a/b")
        client.start_module("a/b", wait=False)
        client.configure("a/b", "key", None)
    assert daemon.asked == [
        ("get_status", {}),
        ("get_status", {"module_id": "a/b"}),
        ("start_module", {"module_id": "a/b", "wait": False}),
        ("configure", {"module_id": "a/b", "key": "key", "value": None}),
    ]


def test_what_reads_is_asked_again_when_the_daemon_goes_in_the_middle_of_it(path: Path) -> None:
    """Also when the next one goes, too; and not for ever."""
    answered: list[int] = []

    def at_the_third_time(params: Params, connection: Connection) -> Params:
        answered.append(1)
        return {"running": True} if len(answered) % 3 == 0 else hangs_up(params, connection)

    async def main() -> None:
        async with AsyncNexusClient(path) as client:
            assert await client.get_status() == {"running": True}

    with FakeDaemon(path, {"get_status": at_the_third_time, "whoami": hangs_up}) as daemon:
        with NexusClient(path) as client:
            assert client.get_status() == {"running": True}
            with pytest.raises(Unreachable, match="closed the connection"):
                client.whoami()
        asyncio.run(main())
        assert len(daemon.asked_for("whoami")) == 1 + REPEATS


def test_a_command_is_never_carried_out_twice(path: Path) -> None:
    async def main() -> None:
        async with AsyncNexusClient(path) as client:
            await client.whoami()
            with pytest.raises(Unreachable, match="closed the connection"):
                await client.restart_module("a/b")

    with FakeDaemon(path, {"whoami": {"uid": 0}, "restart_module": hangs_up}) as daemon:
        with NexusClient(path) as client:
            client.whoami()
            with pytest.raises(Unreachable, match="closed the connection"):
                client.restart_module("a/b")
        asyncio.run(main())
        assert len(daemon.asked_for("restart_module")) == 2


def test_a_command_reaches_the_next_daemon_after_a_restart_between_two_calls(path: Path) -> None:
    async def main() -> None:
        client, answers = AsyncNexusClient(path), {"stop_module": {"stopped": True}}
        with FakeDaemon(path, answers):
            await client.stop_module("a/b")
        path.unlink()
        with FakeDaemon(path, answers) as second:
            assert (await client.stop_module("a/b"))["stopped"] is True
            assert len(second.asked) == 1
            await client.close()

    asyncio.run(main())
    path.unlink()
    client, answers = NexusClient(path), {"stop_module": {"stopped": True}}
    with FakeDaemon(path, answers):
        client.stop_module("a/b")
    path.unlink()
    with FakeDaemon(path, answers) as second:
        assert client.stop_module("a/b")["stopped"] is True
        assert len(second.asked) == 1
        client.close()


def test_a_subscription_tells_of_the_daemons_end_instead_of_waiting_for_the_next(path: Path) -> None:
    with FakeDaemon(path, {"subscribe_events": {"subscription": 1, "events": []}, "whoami": {}}):
        client = Client(path)
        subscription = client.subscribe()
    with pytest.raises(Unreachable):
        subscription.next(BOUND_S)
    client.close()


def test_the_time_for_a_call_is_the_time_for_all_of_it(path: Path) -> None:
    """Connecting, sending and waiting together."""
    silent = threading.Event()
    with FakeDaemon(path, {"get_status": lambda *_: silent.wait(BOUND_S)}):
        began = time.monotonic()
        with NexusClient(path, timeout=0.2) as client, pytest.raises(Unreachable, match=r"within 0\.2 s"):
            client.get_status()
        assert time.monotonic() - began < 2
        silent.set()


def test_errors_have_their_classes(path: Path) -> None:
    def no(*_: object) -> Params:
        raise Refusal(-32001, "not allowed", kind="permission_denied")

    def none(*_: object) -> Params:
        raise Refusal(-32002, "no such module: a/b", kind="no_such_module")

    with FakeDaemon(path, {"shutdown": no, "get_logs": none}), NexusClient(path) as client:
        with pytest.raises(PermissionError) as refused:
            client.shutdown()
        assert isinstance(refused.value, PermissionDenied)
        with pytest.raises(RpcError, match="no such module") as missing:
            client.get_logs("a/b")
        assert missing.value.kind == "no_such_module"


@pytest.mark.skipif(os.geteuid() != 0, reason="root may enter anywhere; to become another user takes root")
def test_a_socket_that_lets_nobody_in_raises_permission_error(path: Path) -> None:
    with FakeDaemon(path, {}):
        path.chmod(0o600)
        path.parent.chmod(0o755)
        pid = os.fork()
        if pid == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            try:
                NexusClient(path).whoami()
            except PermissionError:
                os._exit(7)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


def test_many_requests_of_many_tasks_are_under_way_at_once_on_one_connection(path: Path) -> None:
    all_here = threading.Barrier(20, timeout=BOUND_S)

    def meet(params: Params, connection: Connection) -> Params:
        all_here.wait()
        return params

    async def main() -> list[Any]:
        async with AsyncNexusClient(path) as client:
            return await asyncio.gather(*(client.get_logs("a/b", lines=n) for n in range(20)))

    with FakeDaemon(path, {"get_logs": meet}):
        assert [one["lines"] for one in asyncio.run(main())] == list(range(20))


def test_events_go_on_where_they_were_after_a_kill_and_a_clean_restart(nexus: Nexus) -> None:
    """What happened while nobody listened is told when the next daemon is up; nothing is told twice."""
    nexus.add_program("a/one", SLEEPER)
    nexus.start().until_state("a/one", "started")

    async def main() -> list[dict[str, Any]]:
        seen: list[dict[str, Any]] = []
        async with AsyncNexusClient(nexus.socket) as client:
            events = client.events("a/one", since=0)

            async def until(state: str) -> None:
                async with asyncio.timeout(BOUND_S):
                    async for event in events:
                        seen.append(event)
                        if (event["kind"], event["to"]) == ("module.state", state):
                            return

            await until("started")
            await asyncio.to_thread(nexus.call, "stop_module", module_id="a/one")
            await until("stopped")
            await asyncio.to_thread(nexus.kill, signal.SIGKILL)
            await asyncio.to_thread(nexus.start)
            await asyncio.to_thread(nexus.call, "start_module", module_id="a/one")
            await until("started")
            await asyncio.to_thread(nexus.restart)
            await asyncio.to_thread(nexus.call, "stop_module", module_id="a/one")
            await until("stopped")  # by the shutdown, while nobody listened
            await until("started")
            await until("stopped")
        return seen

    seen = asyncio.run(main())
    told = [(event["seq"], event["time"]) for event in seen]
    assert len(told) == len(set(told))
    assert [event["time"] for event in seen] == sorted(event["time"] for event in seen)


def test_events_from_now_on_leave_out_what_was_before_and_nothing_after(path: Path) -> None:
    """The daemon goes right after the subscription; the next one gives a lost number to another event."""
    one, two, new_two, three = (
        {"seq": seq, "time": at} for seq, at in ((1, 1.0), (2, 2.0), (2, 3.0), (3, 4.0))
    )

    def first_life(params: Params, connection: Connection) -> Params:
        assert params == {"since": 1}
        connection.afterwards(connection.close)
        return {"subscription": 1, "events": [two]}

    def second_life(params: Params, connection: Connection) -> Params:
        assert params == {"since": 1}
        for event in (new_two, three):
            connection.notify("event", subscription=1, event=event)
        return {"subscription": 1, "events": [new_two]}

    def history(params: Params, connection: Connection) -> Params:
        return {"events": [two] if params["limit"] == 1 else [one, new_two]}

    async def main() -> list[Any]:
        seen: list[Any] = []
        async with AsyncNexusClient(path) as client, asyncio.timeout(BOUND_S):
            async for event in client.events():
                seen.append(event)
                if len(seen) == 2:
                    return seen
        raise AssertionError("the events ended")

    lives = iter((first_life, second_life))
    answers = {"get_history": history, "subscribe_events": lambda *asked: next(lives)(*asked)}
    with FakeDaemon(path, answers):
        assert asyncio.run(main()) == [new_two, three]


def test_events_end_with_an_error_where_waiting_is_in_vain(path: Path) -> None:
    path.write_text("no socket")

    async def main() -> None:
        async with AsyncNexusClient(path) as client:
            async for _ in client.events():
                raise AssertionError("there is nobody to tell of one")

    with pytest.raises(Unreachable, match="is not a socket"):
        asyncio.run(main())
