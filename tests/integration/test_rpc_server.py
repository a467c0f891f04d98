"""The API socket as clients meet it: requests, pushes, who is calling, the socket's file, the end."""

import asyncio
import json
import os
import shutil
import socket
import stat
import tempfile
import threading
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from nexusd.domain.access import Caller, Grants, SecurityContext, authority
from nexusd.domain.errors import NoSuchModule, NotPossible
from nexusd.rpc import discover, endpoint
from nexusd.rpc.call import Call, Method
from nexusd.rpc.dispatch import Dispatcher
from nexusd.rpc.peers import Peers
from nexusd.rpc.server import Limits, RpcServer


class Logs(msgspec.Struct):
    module_id: str
    lines: int = 100


class House:
    """A few handlers, and the events by which a test waits for them."""

    def __init__(self):
        self.begun = asyncio.Event()
        self.go_on = asyncio.Event()
        self.gone = asyncio.Event()
        self.subscriber = None

    def table(self):
        return [
            Method("ping", lambda call, given: "pong", "Answers."),
            Method("logs", lambda call, given: [given.module_id, given.lines], "Logs.", Logs),
            Method("whoami", lambda call, given: [call.caller.user, call.caller.uid], "Who."),
            Method("stop", lambda call, given: "stopped", "Stops.", permission="module.stop"),
            Method("missing", self.missing, "Refuses."),
            Method("secret", self.secret, "Breaks."),
            Method("strange", lambda call, given: object(), "No JSON."),
            Method("unspeakable", self.unspeakable, "An error that JSON cannot hold."),
            Method("prepared", lambda call, given: msgspec.Raw(b'{\n"a": 1\n}'), "Raw."),
            Method("wait", self.wait, "Waits."),
            Method("cancelled", self.cancelled, "Awaits what is cancelled."),
            Method("subscribe", self.subscribe, "Pushes."),
        ]

    def missing(self, call, given):
        raise NoSuchModule("no such module: a/b", module_id="a/b")

    def secret(self, call, given):
        raise RuntimeError("the password is hunter2")

    def unspeakable(self, call, given):
        raise NotPossible("no", thing=object())

    async def wait(self, call, given):
        self.begun.set()
        await self.go_on.wait()
        return "waited"

    async def cancelled(self, call, given):
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    def subscribe(self, call, given):
        self.subscriber = call
        call.on_close(self.gone.set)
        return {"subscription": 1}


class Client:
    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    def send(self, *messages):
        lines = [each if isinstance(each, bytes) else json.dumps(each).encode() + b"\n" for each in messages]
        self.writer.write(b"".join(lines))

    async def read(self):
        line = await self.reader.readline()
        return json.loads(line) if line else None

    async def call(self, method, params=(), request_id=1):
        self.send(request(method, params, request_id))
        return await self.read()

    async def error(self, method, params=()):
        return (await self.call(method, params))["error"]


def request(method, params=(), request_id=1):
    return {"jsonrpc": "2.0", "method": method, "params": params, "id": request_id}


@asynccontextmanager
async def served(path, *, house=None, observers=(), grants=None, **options):
    house = house or House()
    allow = authority(grants or Grants(daemon_uid=os.getuid()), SecurityContext())
    server = RpcServer(Dispatcher(house.table(), authorise=allow, observers=observers), **options)
    await server.serve(path)
    try:
        yield server, house
    finally:
        await server.close(grace_s=1)


async def connected(path):
    return Client(*await asyncio.open_unix_connection(path))


@pytest.fixture
def told(tmp_path):
    """Runs a story against a server; the story gets a client, the house and the server."""

    def run(story, **options):
        async def main():
            path = tmp_path / "nexus.sock"
            async with served(path, **options) as (server, house):
                client = await connected(path)
                await story(client, house, server)
                client.writer.close()

        asyncio.run(asyncio.wait_for(main(), 30))

    return run


# Requests


def test_parameters_go_by_name_or_by_position(told):
    async def story(client, house, server):
        assert (await client.call("logs", {"module_id": "a/b", "lines": 3}))["result"] == ["a/b", 3]
        assert (await client.call("logs", ["a/b"]))["result"] == ["a/b", 100]

    told(story)


@pytest.mark.parametrize(
    ("params", "reason", "hint"),
    [
        ({}, "missing parameter `module_id`", None),
        ({"modul_id": "a/b"}, "unknown parameter 'modul_id'", "did you mean 'module_id'?"),
        ({"zzz": 1}, "unknown parameter 'zzz'", "logs takes: module_id, lines"),
        ({"module_id": "a/b", "lines": "many"}, "lines: expected `int`, got `str`", None),
        (["a/b", 1, 2], "logs takes at most 2 parameters, got 3", None),
    ],
)
def test_a_wrong_parameter_is_named(told, params, reason, hint):
    async def story(client, house, server):
        error = await client.error("logs", params)
        assert (error["code"], error["message"]) == (-32602, "Invalid params")
        assert (error["data"]["kind"], error["data"]["reason"]) == ("invalid_params", reason)
        assert error["data"]["hint"] == hint

    told(story)


def test_a_mistyped_method_names_its_near_match(told):
    async def story(client, house, server):
        error = await client.error("whoam")
        assert (error["code"], error["message"]) == (-32601, "Method not found")
        assert error["data"]["hint"] == "did you mean 'whoami'?"
        assert "rpc.discover" in (await client.error("zzz"))["data"]["hint"]

    told(story)


def test_an_error_of_ours_keeps_its_words_code_and_data(told):
    async def story(client, house, server):
        error = await client.error("missing")
        assert (error["code"], error["message"]) == (-32002, "no such module: a/b")
        assert error["data"]["module_id"] == "a/b"

    told(story)


def test_a_defect_leaks_nothing_and_is_logged_once_under_its_id(told, caplog):
    async def story(client, house, server):
        error = await client.error("secret")
        assert (error["code"], error["message"]) == (-32603, "Internal error")
        assert "hunter2" not in json.dumps(error)
        (record,) = caplog.records
        assert error["data"]["error_id"] in record.message
        assert "hunter2" in caplog.text

    told(story)


@pytest.mark.parametrize("method", ["strange", "unspeakable", "cancelled"])
def test_every_request_is_answered_even_where_the_handler_makes_that_hard(told, method):
    async def story(client, house, server):
        assert (await client.error(method))["code"] == -32603
        assert (await client.call("ping"))["result"] == "pong"

    told(story)


def test_prepared_bytes_stay_on_one_line(told):
    async def story(client, house, server):
        assert (await client.call("prepared"))["result"] == {"a": 1}

    told(story)


def test_carriage_returns_blank_lines_and_a_missing_last_newline_are_no_offence(told):
    async def story(client, house, server):
        line = json.dumps(request("ping")).encode()
        client.send(b"\n \r\n" + line + b"\r\n\n" + line)
        client.writer.write_eof()
        assert [(await client.read())["result"] for _ in range(2)] == ["pong", "pong"]
        assert await client.read() is None

    told(story)


def test_a_message_cut_anywhere_is_put_together_again(told):
    async def story(client, house, server):
        whole = json.dumps(request("logs", ["a/b"])).encode() + b"\n"
        for place in range(1, len(whole)):
            client.send(whole[:place])
            await client.writer.drain()
            await asyncio.sleep(0)
            client.send(whole[place:])
            assert (await client.read())["result"] == ["a/b", 100]

    told(story)


def test_garbage_is_answered_and_the_connection_goes_on(told):
    async def story(client, house, server):
        client.send(b"[" * 50_000 + b"\n", b"\xff\n", b'\xef\xbb\xbf{"jsonrpc":"2.0"}\n', b"NaN\n")
        for _ in range(4):
            answer = await client.read()
            assert (answer["error"]["code"], answer["id"]) == (-32700, None)
        assert (await client.call("ping"))["result"] == "pong"

    told(story)


def test_a_slow_request_does_not_hold_up_a_quick_one(told):
    async def story(client, house, server):
        client.send(request("wait", request_id="slow"), request("ping", request_id="quick"))
        assert (await client.read())["id"] == "quick"
        house.go_on.set()
        assert await client.read() == {"jsonrpc": "2.0", "result": "waited", "id": "slow"}

    told(story)


def test_each_element_of_a_batch_is_answered_for_itself_and_in_order(told):
    async def story(client, house, server):
        house.go_on.set()
        bad = {**request("ping"), "jsonrpc": "1.0", "id": "bad"}
        client.send([request("wait", request_id=1), bad, request("secret", request_id=2), request("ping")])
        answers = await client.read()
        assert [answer["id"] for answer in answers] == [1, "bad", 2, 1]
        assert [answer.get("error", {}).get("code") for answer in answers] == [None, -32600, -32603, None]

    told(story)


def test_who_closes_the_writing_side_is_still_answered(told):
    async def story(client, house, server):
        client.send(request("wait"))
        client.writer.write_eof()
        await house.begun.wait()
        house.go_on.set()
        assert (await client.read())["result"] == "waited"
        assert await client.read() is None

    told(story)


# Pushes


def test_a_subscriber_is_sent_lines_until_it_leaves(told):
    async def story(client, house, server):
        assert (await client.call("subscribe"))["result"] == {"subscription": 1}
        house.subscriber.push({"jsonrpc": "2.0", "method": "event", "params": {}})
        house.subscriber.push(b'{"prepared":true}')
        assert (await client.read())["method"] == "event"
        assert await client.read() == {"prepared": True}
        client.writer.close()
        await house.gone.wait()
        house.subscriber.push(b"{}")  # to nobody: in silence

    told(story)


def test_who_subscribes_after_the_end_is_told_at_once():
    call, told = Call(Caller(0, 0, "root"), lambda line: None), []
    call.closed()
    call.on_close(lambda: told.append("gone"))
    assert told == ["gone"]


# Who is calling, and what is observed


class Notes:
    """An observer that refuses what it is told to."""

    def __init__(self, refuse=()):
        self.refuse, self.notes = refuse, []

    def admit(self, call, method, params):
        if method.name in self.refuse:
            raise NotPossible("the audit log cannot be written")

    def done(self, ended):
        call, method, params, error, elapsed_s = ended
        self.notes.append((call.caller.uid, method.name, dict(params), error and error.kind, elapsed_s >= 0))


def test_the_observer_sees_every_call_by_the_names_of_its_parameters(told):
    notes = Notes(refuse=["stop"])

    async def story(client, house, server):
        await client.call("logs", ["a/b"])
        assert (await client.error("stop"))["code"] == -32003
        await client.error("logs", {"x": 1})
        await client.error("secret")
        uid = os.getuid()
        assert notes.notes == [
            (uid, "logs", {"module_id": "a/b"}, None, True),
            (uid, "stop", {}, "not_possible", True),
            (uid, "logs", {"x": 1}, "invalid_params", True),
            (uid, "secret", {}, "internal", True),
        ]

    told(story, observers=[notes])


class Strangers(Peers):
    def caller(self, sock):
        return Caller(4242, 4242, "mallory", frozenset({4242}))


def test_a_stranger_may_call_what_is_open_and_nothing_else(told):
    async def story(client, house, server):
        assert (await client.call("ping"))["result"] == "pong"
        error = await client.error("stop")
        assert error["code"] == -32001
        assert error["data"]["permission"] == "module.stop"
        assert error["data"]["principal"] == "mallory"
        assert error["data"]["roles"] == []
        assert "operator" in error["data"]["hint"]

    told(story, peers=Strangers())


def test_permission_is_asked_before_parameters_are_looked_at(told):
    async def story(client, house, server):
        assert (await client.error("stop", {"x": 1}))["code"] == -32001

    told(story, peers=Strangers())


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_the_kernel_tells_who_connects():
    async def main(path):
        async with served(path, mode=0o666):
            with socket.socket(socket.AF_UNIX) as sock:
                os.seteuid(65534)
                try:
                    sock.connect(os.fspath(path))
                finally:
                    os.seteuid(0)
                client = Client(*await asyncio.open_unix_connection(sock=sock))
                assert (await client.call("whoami"))["result"][1] == 65534
                assert (await client.error("stop"))["code"] == -32001
                client.writer.close()
                await client.writer.wait_closed()

    with tempfile.TemporaryDirectory() as folder:  # tmp_path lies in folders that others cannot enter
        os.chmod(folder, 0o755)
        asyncio.run(asyncio.wait_for(main(Path(folder) / "nexus.sock"), 30))


def test_names_are_looked_up_once_for_many_connections(monkeypatch):
    asked = []
    real = os.getgrouplist
    monkeypatch.setattr(os, "getgrouplist", lambda *given: asked.append(given) or real(*given))
    peers, (left, right) = Peers(), socket.socketpair()
    with left, right:
        callers = {peers.caller(left) for _ in range(100)}
    assert len(callers) == 1
    assert len(asked) == 1
    assert callers.pop().uid == os.getuid()


def test_a_uid_without_a_name_is_its_number(monkeypatch):
    def nobody(uid):
        raise KeyError(uid)

    monkeypatch.setattr("pwd.getpwuid", nobody)
    left, right = socket.socketpair()
    with left, right:
        assert Peers().caller(left).principal == str(os.getuid())


def test_the_api_describes_itself():
    rows = [
        Method("logs", print, "Logs.", Logs, permission="logs.read"),
        Method("shutdown", print, "Ends.", audited=True),
    ]
    document = discover.document(rows, title="nexusd", version="2")
    logs, shutdown = document["methods"]
    assert document["info"] == {"title": "nexusd", "version": "2"}
    assert [(each["name"], each["required"]) for each in logs["params"]] == [
        ("module_id", True),
        ("lines", False),
    ]
    assert logs["params"][1]["schema"] == {"type": "integer", "default": 100}
    assert (logs["x-permission"], logs["x-permissions"]) == ("logs.read", ["logs.read"])
    assert shutdown["params"] == []
    assert document["components"]["errors"]["busy"]["code"] == -32007
    json.dumps(document)


# The socket's file


def test_the_socket_is_for_its_owner_and_group_from_the_first_moment(tmp_path):
    path = tmp_path / "nexus.sock"
    bound = endpoint.bind(path)
    with bound.sock:
        assert stat.S_IMODE(path.stat().st_mode) == 0o660


def test_two_servers_do_not_share_a_path_and_the_second_is_told_who_is_there(tmp_path):
    path = tmp_path / "nexus.sock"

    async def main():
        async with served(path):
            with pytest.raises(NotPossible, match=rf"another nexusd answers on .* \(pid {os.getpid()}\)"):
                async with served(path):
                    pass
            client = await connected(path)
            assert (await client.call("ping"))["result"] == "pong"
            client.writer.close()

    asyncio.run(asyncio.wait_for(main(), 30))


def test_what_a_dead_daemon_left_is_cleared_away(tmp_path):
    path = tmp_path / "nexus.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(os.fspath(path))
        dead.listen()
    with endpoint.bind(path).sock, socket.socket(socket.AF_UNIX) as client:
        client.connect(os.fspath(path))


def test_of_many_who_want_a_stale_path_exactly_one_gets_it(tmp_path):
    path = tmp_path / "nexus.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(os.fspath(path))
    bound, refused, barrier = [], [], threading.Barrier(8)

    def want():
        barrier.wait()
        try:
            bound.append(endpoint.bind(path))
        except NotPossible as error:
            refused.append(error)

    threads = [threading.Thread(target=want) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(bound), len(refused)) == (1, 7)
    bound[0].sock.close()


@pytest.mark.parametrize("kind", ["file", "folder", "symlink"])
def test_what_is_not_a_socket_is_left_where_it_is(tmp_path, kind):
    path = tmp_path / "nexus.sock"
    if kind == "file":
        path.write_text("precious")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NotPossible, match="not a socket"):
        endpoint.bind(path)
    assert os.path.lexists(path)


def test_a_path_that_the_kernel_cannot_hold_is_refused_in_words(tmp_path):
    with pytest.raises(NotPossible, match="too long") as refused:
        endpoint.bind(tmp_path / ("x" * 108))
    assert "107" in (refused.value.reason or "")


def test_a_missing_folder_is_told_as_such(tmp_path):
    with pytest.raises(NotPossible, match="No such file or directory"):
        endpoint.bind(tmp_path / "missing" / "nexus.sock")


def test_the_file_goes_with_the_server_unless_it_is_another_s_by_then(tmp_path):
    path = tmp_path / "nexus.sock"

    async def main():
        async with served(path):
            assert path.exists()
        assert not path.exists()
        async with served(path):
            path.unlink()
            path.write_text("another's")
        assert path.read_text() == "another's"

    asyncio.run(asyncio.wait_for(main(), 30))


def test_a_folder_deleted_meanwhile_does_not_keep_the_server_from_closing(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()

    async def main():
        async with served(folder / "nexus.sock") as (server, _):
            shutil.rmtree(folder)
        assert server.connections == 0

    asyncio.run(asyncio.wait_for(main(), 30))


def test_a_socket_that_systemd_made_is_served_and_its_file_left(tmp_path):
    path = tmp_path / "nexus.sock"

    async def main():
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(os.fspath(path))
            listening.listen()
            server = RpcServer(Dispatcher(House().table(), authorise=lambda caller, name: None))
            server.adopt(listening)
            client = await connected(path)
            assert (await client.call("ping"))["result"] == "pong"
            await server.close()
            assert await client.read() is None
            client.writer.close()
        assert path.exists()

    asyncio.run(asyncio.wait_for(main(), 30))


# The end


def test_a_request_in_flight_is_answered_before_the_server_closes(told):
    async def story(client, house, server):
        client.send(request("wait"))
        await house.begun.wait()
        closing = asyncio.create_task(server.close(grace_s=20))
        await asyncio.sleep(0)
        client.send(request("ping", request_id="late"))
        assert (await client.read())["id"] == "late"
        house.go_on.set()
        assert (await client.read())["result"] == "waited"
        assert await client.read() is None
        await closing
        assert server.connections == 0

    told(story)


def test_who_was_let_in_at_the_last_moment_is_answered(told):
    async def story(client, house, server):
        with socket.socket(socket.AF_UNIX) as late:
            late.settimeout(10)
            late.connect(client.writer.get_extra_info("peername"))
            late.sendall(json.dumps(request("ping")).encode() + b"\n")
            for _ in range(
                2
            ):  # the pass of the loop that accepts it, and the one that would make it a connection
                await asyncio.sleep(0)
            await server.close(grace_s=20)
            assert json.loads(late.recv(1000))["result"] == "pong"
            assert late.recv(1000) == b""

    told(story)


def test_who_has_not_said_a_word_yet_is_heard_once(told):
    async def story(client, house, server):
        closing = asyncio.create_task(server.close(grace_s=20))
        await asyncio.sleep(0)
        assert (await client.call("ping"))["result"] == "pong"
        assert await client.read() is None
        await closing

    told(story)


def test_what_was_sent_before_a_connection_is_closed_is_answered_and_what_comes_later_fails_in_the_client(
    tmp_path,
):
    """Clients in threads ask as fast as they can: each request is answered, or could not be sent."""
    path = tmp_path / "nexus.sock"
    ended = []

    def ask(all_are_answered):
        line = json.dumps(request("ping")).encode() + b"\n"
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(os.fspath(path))
            sock.sendall(line)
            assert sock.recv(1000)
            all_are_answered.wait(30)
            with pytest.raises(BrokenPipeError):
                while True:
                    sock.sendall(line)
                    assert sock.recv(1000), "heard, and not answered"
            ended.append("not heard")

    async def main():
        async with served(path) as (server, _):
            all_are_answered = threading.Barrier(5)
            asking = [asyncio.create_task(asyncio.to_thread(ask, all_are_answered)) for _ in range(4)]
            await asyncio.to_thread(all_are_answered.wait, 30)
            await server.close(grace_s=20)
            await asyncio.gather(*asking)

    for _ in range(20):
        asyncio.run(asyncio.wait_for(main(), 60))
    assert len(ended) == 80


def test_half_a_request_is_not_carried_out_when_the_server_closes(told):
    async def story(client, house, server):
        await client.call("ping")
        client.send(json.dumps(request("ping")).encode())  # all of it but the end of the line
        await client.writer.drain()
        await server.close(grace_s=20)
        assert await client.read() is None

    told(story)


def test_a_client_that_never_pauses_cannot_keep_the_server_from_closing(told):
    async def story(client, house, server):
        client.send(*(request("wait", request_id=number) for number in range(3)))
        await house.begun.wait()
        closing = asyncio.create_task(server.close(grace_s=20))
        with pytest.raises(ConnectionError):
            while True:
                client.send(request("ping"))
                await client.writer.drain()
                await client.read()
        house.go_on.set()
        await closing

    told(story)


def test_a_request_that_outlasts_the_grace_is_cut_off(told):
    async def story(client, house, server):
        client.send(request("wait"))
        await house.begun.wait()
        await server.close(grace_s=0)
        assert await client.read() is None
        assert not server.tasks

    told(story)


def test_a_client_that_does_not_read_cannot_keep_the_server_from_closing(told):
    async def story(client, house, server):
        await client.call("subscribe")
        house.subscriber.push(b"x" * 4_000_000)
        await server.close(grace_s=0)
        assert server.connections == 0

    told(story)


# Handed over


async def handed_over(server, path, house):
    """To a second server, as the next nexusd has it: listening socket, connections, what was read of them."""
    clients = await server.hand_over(1)
    following = RpcServer(server.dispatcher)
    following.adopt(server._endpoints[0].sock.dup())
    for number, rest in clients:
        await following.take_in(socket.socket(fileno=number), rest)
    return following, clients


def test_every_request_of_a_connection_is_answered_once_and_in_order_by_one_or_the_other(told, tmp_path):
    async def story(client, house, server):
        client.send(request("wait", request_id="slow"), *(request("ping", request_id=n) for n in range(500)))
        client.writer.write(b'{"jsonrpc": "2.0", "method": "pi')
        await client.writer.drain()
        await house.begun.wait()
        house.go_on.set()
        following, clients = await handed_over(server, tmp_path, house)
        assert [bool(rest) for _, rest in clients] == [True]
        client.writer.write(b'ng", "id": "last"}\n')
        ids = [(await client.read())["id"] for _ in range(502)]
        assert [one for one in ids if one != "slow"] == [*range(500), "last"]
        assert ids.count("slow") == 1
        assert (await client.call("whoami"))["result"][1] == os.getuid()
        await following.close()

    told(story, limits=Limits(in_flight=1))


def test_who_connects_meanwhile_waits_and_is_answered_by_the_next(told, tmp_path):
    async def story(client, house, server):
        server.hold()
        late = await connected(tmp_path / "nexus.sock")
        late.send(request("ping"))
        client.send(request("ping"))
        following, _ = await handed_over(server, tmp_path, house)
        assert (await late.read())["result"] == "pong"
        assert (await client.read())["result"] == "pong"
        assert following.connections == 2
        late.writer.close()
        await following.close()

    told(story)


def test_who_has_subscribed_sees_the_end_and_knows_that_it_has_to_come_back(told, tmp_path):
    async def story(client, house, server):
        await client.call("subscribe")
        following, clients = await handed_over(server, tmp_path, house)
        assert clients == []
        assert await client.read() is None
        assert house.gone.is_set()
        await following.close()

    told(story)


def test_one_that_has_said_all_and_waits_is_answered_by_the_next(told, tmp_path):
    async def story(client, house, server):
        server.hold()
        client.send(request("ping"))
        client.writer.write_eof()
        following, _ = await handed_over(server, tmp_path, house)
        assert (await client.read())["result"] == "pong"
        assert await client.read() is None
        await following.close()

    told(story)
