"""The socket client, sync and async, against a fake daemon on a real Unix socket."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from nexusctl.client import AsyncClient, Client, PermissionDenied, RpcError, Unreachable, default_socket
from tests.fake_daemon import Connection, FakeDaemon, Params, Refusal

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "nexus.sock"


@pytest.fixture
def raw(path: Path) -> Iterator[Callable[[bytes], None]]:
    """Somebody at the socket who says the same thing to everyone and hangs up."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)

    def say(words: bytes) -> None:
        listener.bind(str(path))
        listener.listen()

        def once() -> None:
            accepted, _ = listener.accept()
            accepted.recv(1000)
            accepted.sendall(words)
            accepted.close()

        threading.Thread(target=once, daemon=True).start()

    yield say
    listener.close()


def refuse(params: Params, connection: Connection) -> Params:
    raise Refusal(-32001, "not allowed", kind="permission_denied")


def unreachable(path: Path, **options: Any) -> Unreachable:
    with Client(path, **options) as client, pytest.raises(Unreachable) as raised:
        client.call("get_status")
    return raised.value


def test_a_call_gives_the_result_and_an_error_its_class(path: Path) -> None:
    with (
        FakeDaemon(path, {"whoami": {"principal": "root"}, "shutdown": refuse}) as daemon,
        Client(path) as client,
    ):
        assert client.call("whoami") == {"principal": "root"}
        with pytest.raises(PermissionDenied, match="not allowed"):
            client.call("shutdown", {"a": 1})
        assert daemon.asked == [("whoami", {}), ("shutdown", {"a": 1})]


def hush(params: Params, connection: Connection) -> Params:
    connection.hush()
    return params


def test_what_a_daemon_on_its_way_out_did_not_read_is_said_again_to_the_next(path: Path) -> None:
    with FakeDaemon(path, {"stop_module": hush}) as daemon, Client(path) as client:
        for number in range(3):
            assert client.call("stop_module", {"n": number}) == {"n": number}
        assert [params["n"] for params in daemon.asked_for("stop_module")] == [0, 1, 2]


def test_the_async_client_says_it_again_too(path: Path) -> None:
    async def story() -> None:
        async with AsyncClient(path) as client:
            for number in range(3):
                assert await client.call("stop_module", {"n": number}) == {"n": number}

    with FakeDaemon(path, {"stop_module": hush}) as daemon:
        asyncio.run(story())
        assert [params["n"] for params in daemon.asked_for("stop_module")] == [0, 1, 2]


def test_a_subscription_that_ends_so_is_told_and_not_opened_anew_in_silence(path: Path) -> None:
    with FakeDaemon(path, {"subscribe_events": hush}) as daemon, Client(path) as client:
        client.subscribe()
        with pytest.raises(Unreachable, match="closed the connection"):
            client.call("stop_module")
        assert daemon.asked_for("stop_module") == []


def test_many_requests_are_under_way_at_once_and_told_as_they_come(path: Path) -> None:
    last_has_come = threading.Event()

    def answer(params: Params, connection: Connection) -> Params:
        if params["n"] == 2:
            connection.afterwards(last_has_come.set)
        else:
            assert last_has_come.wait(10)
        return params

    with FakeDaemon(path, {"echo": answer}), Client(path) as client:
        outcomes = list(client.call_many([("echo", {"n": n}) for n in range(3)]))
    assert outcomes[0] == (2, {"n": 2})
    assert sorted(outcomes[1:]) == [(0, {"n": 0}), (1, {"n": 1})]


def test_more_requests_than_the_daemon_takes_at_once_are_all_answered(path: Path) -> None:
    with FakeDaemon(path, {"echo": lambda params, connection: params}), Client(path) as client:
        outcomes = dict(client.call_many([("echo", {"n": n}) for n in range(200)]))
    assert outcomes == {n: {"n": n} for n in range(200)}


def test_a_call_amid_others_loses_none_of_their_answers(path: Path) -> None:
    with FakeDaemon(path, {"echo": lambda params, connection: params}), Client(path) as client:
        seen = []
        for place, _ in client.call_many([("echo", {"n": n}) for n in range(10)]):
            seen.append(place)
            assert client.call("echo", {"amid": place}) == {"amid": place}
    assert sorted(seen) == list(range(10))


def test_notifications_between_answers_reach_their_subscription(path: Path) -> None:
    def subscribe(params: Params, connection: Connection) -> Params:
        connection.notify("event", subscription=2, event={"seq": 0})
        connection.notify("event", subscription=1, event={"seq": 1})
        connection.afterwards(lambda: connection.notify("event", subscription=1, event={"seq": 2}))
        connection.afterwards(connection.close)
        return {"subscription": 1, "events": []}

    with FakeDaemon(path, {"subscribe_events": subscribe}), Client(path) as client:
        subscription = client.subscribe()
        events = iter(subscription)
        assert [next(events)["event"]["seq"], next(events)["event"]["seq"]] == [1, 2]
        with pytest.raises(Unreachable, match="closed the connection"):
            next(events)
        with pytest.raises(Unreachable, match="closed the connection"):
            subscription.next()


def test_a_late_answer_is_not_taken_for_the_next_one(path: Path) -> None:
    go_on = threading.Event()

    def slow(params: Params, connection: Connection) -> str:
        assert go_on.wait(10)
        return "late"

    with FakeDaemon(path, {"slow": slow, "quick": "quick"}), Client(path) as client:
        with pytest.raises(Unreachable, match=r"slow was not answered within 0.05 s") as raised:
            client.call("slow", timeout=0.05)
        assert raised.value.cause == "timed out"
        go_on.set()
        assert client.call("quick") == "quick"


def test_an_error_about_no_request_in_particular_ends_the_call(
    path: Path, raw: Callable[[bytes], None]
) -> None:
    raw(b'{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"parse error"}}\n')
    with Client(path) as client, pytest.raises(RpcError, match="parse error"):
        client.call("get_status")


def test_without_a_socket_there_is_no_daemon(path: Path) -> None:
    error = unreachable(path)
    assert (error.cause, str(error)) == ("no daemon", f"no daemon: {path} does not exist")


def test_a_socket_left_over_is_told_from_a_missing_one(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(path))
    error = unreachable(path)
    assert (error.cause, "left over" in str(error)) == ("no daemon", True)


def test_a_plain_file_is_not_a_socket(path: Path) -> None:
    path.write_text("x")
    error = unreachable(path)
    assert (error.cause, str(error)) == ("not our protocol", f"{path} is not a socket")


def test_a_datagram_socket_is_not_ours(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(path))
        assert unreachable(path).cause == "not our protocol"


def test_a_path_too_long_for_a_socket_says_so(tmp_path: Path) -> None:
    assert "at most 107 bytes" in str(unreachable(tmp_path / ("x" * 120)))


@pytest.mark.parametrize(
    "words",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"[1]\n",
        b'{"id":1,"result":2}\n',
        b'{"jsonrpc":"2.0","id":[1]}\n',
        b"\xff\xfe\n",
        b"[" * 100000 + b"\n",
    ],
)
def test_who_speaks_otherwise_is_not_our_daemon(
    path: Path, raw: Callable[[bytes], None], words: bytes
) -> None:
    raw(words)
    error = unreachable(path)
    assert error.cause == "not our protocol"
    assert "does not speak JSON-RPC 2.0" in str(error)


def test_who_hangs_up_without_a_word_is_told_from_silence(path: Path, raw: Callable[[bytes], None]) -> None:
    raw(b"")
    error = unreachable(path)
    assert (error.cause, "closed the connection before it answered get_status" in str(error)) == (
        "no daemon",
        True,
    )


def test_silence_is_a_time_out(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as silent:
        silent.bind(str(path))
        silent.listen()
        assert unreachable(path, timeout=0.05).cause == "timed out"


def test_a_full_queue_of_connections_is_waited_for_and_then_a_time_out(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as full:
        full.bind(str(path))
        full.listen(0)
        with Client(path) as first:
            first.connect()
            assert unreachable(path, timeout=0.05).cause == "timed out"


@contextmanager
def nobody() -> Iterator[None]:
    """For a while this process is another user, of no group of its own."""
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(65534)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
@pytest.mark.parametrize(("folder_mode", "seen"), [(0o755, "srw-rw----"), (0o700, "drwx------")])
def test_without_permission_it_says_who_you_are_and_what_the_socket_is(folder_mode: int, seen: str) -> None:
    with TemporaryDirectory(dir="/tmp") as folder, FakeDaemon(Path(folder, "s"), {}) as daemon:
        daemon.path.chmod(0o660)
        os.chmod(folder, folder_mode)
        with nobody():
            error = unreachable(daemon.path)
    told = str(error)
    assert error.cause == "no permission"
    assert told.startswith("you are ") and "(uid 65534), of group " in told
    assert f"is {seen} and belongs to root (uid 0), group root" in told


def test_the_socket_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXUS_SOCKET", "/named")
    assert default_socket() == "/named"
    monkeypatch.delenv("NEXUS_SOCKET")
    assert default_socket() == "/run/nexus.sock" or os.geteuid() != 0


@pytest.mark.skipif(os.path.exists("/run/nexus.sock"), reason="a daemon of the system runs here")
def test_an_ordinary_user_has_a_socket_of_his_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NEXUS_SOCKET", raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 1234)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1234")
    assert default_socket() == "/run/user/1234/nexus/nexus.sock"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert default_socket() == "/tmp/nexus-1234/nexus.sock"


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a folder away")
def test_a_folder_in_tmp_that_another_user_made_is_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path("/tmp/nexus-64123")
    folder.mkdir()
    try:
        os.chown(folder, 65534, 65534)
        monkeypatch.setattr(os, "geteuid", lambda: 64123)
        error = unreachable(folder / "nexus.sock")
    finally:
        folder.rmdir()
    assert error.cause == "no permission"
    assert "what listens there is not yours" in str(error)


def test_importing_the_client_imports_nothing_heavy() -> None:
    program = "import sys, nexusctl.client; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-S", "-c", program], cwd=ROOT, text=True).split()
    assert not {"asyncio", "click", "dataclasses", "typing", "nexusd", "subprocess"}.intersection(loaded)


def test_asynchronous_calls_share_a_connection_and_are_answered_in_any_order(path: Path) -> None:
    second_has_come = threading.Event()

    def answer(params: Params, connection: Connection) -> Params:
        if params["n"] == 2:
            connection.afterwards(second_has_come.set)
        else:
            assert second_has_come.wait(10)
        return params

    async def story() -> None:
        async with AsyncClient(path) as client:
            one, two = await asyncio.gather(client.call("echo", {"n": 1}), client.call("echo", {"n": 2}))
            assert (one, two) == ({"n": 1}, {"n": 2})
            with pytest.raises(PermissionDenied):
                await client.call("shutdown")
            outcomes = await client.call_many([("echo", {"n": 2}), ("shutdown", None)])
            assert outcomes[0] == {"n": 2} and isinstance(outcomes[1], PermissionDenied)

    with FakeDaemon(path, {"echo": answer, "shutdown": refuse}):
        asyncio.run(story())


def test_an_asynchronous_subscription_ends_with_its_connection(path: Path) -> None:
    def subscribe(params: Params, connection: Connection) -> Params:
        connection.notify("event", subscription=1, event={"seq": 1})
        connection.afterwards(lambda: connection.notify("event", subscription=1, event={"seq": 2}))
        connection.afterwards(connection.close)
        return {"subscription": 1, "events": []}

    async def story() -> list[int]:
        seen = []
        async with AsyncClient(path) as client:
            with pytest.raises(Unreachable, match="closed the connection"):
                async for came in await client.subscribe():
                    seen.append(came["event"]["seq"])
        return seen

    with FakeDaemon(path, {"subscribe_events": subscribe}):
        assert asyncio.run(story()) == [1, 2]


def test_an_asynchronous_client_tells_the_same_causes(path: Path, raw: Callable[[bytes], None]) -> None:
    async def cause(**options: Any) -> str:
        async with AsyncClient(path, **options) as client:
            with pytest.raises(Unreachable) as raised:
                await client.call("get_status")
        return raised.value.cause

    assert asyncio.run(cause()) == "no daemon"
    raw(b"SSH-2.0-OpenSSH\r\n")
    assert asyncio.run(cause()) == "not our protocol"
    assert asyncio.run(cause(timeout=0.05)) == "timed out"
