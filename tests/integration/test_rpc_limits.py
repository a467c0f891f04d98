"""What one client may ask of the daemon, and what becomes of one that asks for more."""

import asyncio
import json
import os
import resource
import socket

import msgspec
import pytest

from nexusd.domain.access import Caller
from nexusd.rpc.call import Method
from nexusd.rpc.dispatch import Dispatcher
from nexusd.rpc.peers import Peers
from nexusd.rpc.server import Limits, RpcServer


class Size(msgspec.Struct):
    size: int


class House:
    """Handlers, and the events by which a test waits for them."""

    def __init__(self):
        self.calls = 0
        self.waiting = []
        self.two_wait = asyncio.Event()
        self.subscriber = None
        self.gone = asyncio.Event()

    def table(self):
        return [
            Method("ping", self.ping, "Answers."),
            Method("big", self.big, "Answers at length.", Size),
            Method("wait", self.wait, "Waits for its turn."),
            Method("subscribe", self.subscribe, "Pushes."),
        ]

    def ping(self, call, given):
        self.calls += 1
        return "pong"

    def big(self, call, given):
        self.calls += 1
        return "x" * given.size

    async def wait(self, call, given):
        self.calls += 1
        turn = asyncio.Event()
        self.waiting.append(turn)
        if len(self.waiting) >= 2:
            self.two_wait.set()
        await turn.wait()
        return "waited"

    def subscribe(self, call, given):
        self.subscriber = call
        call.on_close(self.gone.set)
        return True


class Client:
    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    async def read(self):
        line = await self.reader.readline()
        return json.loads(line) if line else None

    async def call(self, method, params=(), request_id=1):
        self.writer.write(request(method, params, request_id))
        return await self.read()


def request(method, params=(), request_id=1):
    message = {"jsonrpc": "2.0", "method": method, "params": params, "id": request_id}
    return json.dumps(message).encode() + b"\n"


@pytest.fixture
def told(tmp_path):
    """Runs a story against a server with these limits; it gets a way to connect, the house, the server."""

    def run(story, peers=None, **limits):
        async def main():
            path, house = tmp_path / "nexus.sock", House()
            dispatcher = Dispatcher(house.table(), authorise=lambda caller, name: None)
            server = RpcServer(dispatcher, Limits(**limits), peers=peers)
            await server.serve(path)
            clients = []

            async def connect():
                clients.append(Client(*await asyncio.open_unix_connection(path, limit=8 * 1024 * 1024)))
                return clients[-1]

            try:
                await story(connect, house, server)
            finally:
                for client in clients:
                    client.writer.close()
                await server.close(grace_s=0)

        asyncio.run(asyncio.wait_for(main(), 60))

    return run


def reason(answer):
    return answer["error"]["code"], answer["error"]["data"]["reason"]


# Size


def test_a_message_as_long_as_allowed_is_answered(told):
    async def story(connect, house, server):
        client = await connect()
        line = request("ping").rstrip()
        client.writer.write(line + b" " * (200 - len(line)) + b"\n")
        assert (await client.read())["result"] == "pong"

    told(story, message_bytes=200)


@pytest.mark.parametrize("end", [b"", b"\n"], ids=["without end", "complete"])
def test_a_longer_message_is_refused_after_what_came_before_it_and_ends_the_connection(told, end):
    async def story(connect, house, server):
        client = await connect()
        client.writer.write(request("ping") + b"x" * 201 + end + request("ping"))
        assert (await client.read())["result"] == "pong"
        assert reason(await client.read()) == (-32600, "a message longer than 200 bytes")
        assert await client.read() is None
        assert house.calls == 1

    told(story, message_bytes=200)


def test_who_sends_megabytes_in_one_go_still_gets_to_read_the_reason(told):
    async def story(connect, house, server):
        client = await connect()
        client.writer.write(b"x" * 4_000_000)
        await client.writer.drain()
        assert reason(await client.read())[0] == -32600

    told(story)


def test_a_refused_client_that_does_not_close_is_cut_off(told):
    async def story(connect, house, server):
        client = await connect()
        client.writer.write(b"x" * 201)
        await client.read()
        with pytest.raises(ConnectionError):
            while True:
                client.writer.write(b"x")
                await client.writer.drain()
                await asyncio.sleep(0)

    told(story, message_bytes=200, request_timeout_s=0.05)


@pytest.mark.parametrize(("count", "refused"), [(3, False), (4, True)])
def test_a_batch_has_its_bound(told, count, refused):
    async def story(connect, house, server):
        client = await connect()
        client.writer.write(b"[" + b",".join([request("ping").rstrip()] * count) + b"]\n")
        answer = await client.read()
        if refused:
            assert reason(answer) == (-32600, "a batch of 4 requests; at most 3 are taken")
            assert house.calls == 0
        else:
            assert [each["result"] for each in answer] == ["pong"] * 3

    told(story, batch=3)


# Number


def test_requests_beyond_the_bound_wait_unread_and_none_is_lost(told):
    async def story(connect, house, server):
        client, other = await connect(), await connect()
        client.writer.write(b"".join(request("wait", request_id=number) for number in range(50)))
        await house.two_wait.wait()
        for _ in range(3):
            assert (await other.call("ping"))["result"] == "pong"
        assert house.calls == 2 + 3
        seen = set()
        while len(seen) < 50:
            house.waiting.pop().set()
            seen.add((await client.read())["id"])
        assert seen == set(range(50))

    told(story, in_flight=2)


def test_the_connection_too_many_is_told_so_and_room_made_is_used(told):
    async def story(connect, house, server):
        first, second = await connect(), await connect()
        assert (await first.call("subscribe"))["result"] is True
        assert (await second.call("ping"))["result"] == "pong"
        third = await connect()
        refusal = await third.read()
        assert (refusal["error"]["code"], refusal["error"]["data"]["kind"]) == (-32007, "busy")
        assert refusal["id"] is None
        assert await third.read() is None
        first.writer.close()
        await house.gone.wait()
        assert (await (await connect()).call("ping"))["result"] == "pong"

    told(story, connections=2)


class SomeUsers(Peers):
    """Who connects is, one after the other, one of these."""

    def __init__(self, *uids: int) -> None:
        super().__init__()
        self.uids = list(uids)

    def caller(self, sock: socket.socket) -> Caller:
        uid = self.uids.pop(0)
        return Caller(uid, uid, f"user {uid}")


async def is_taken(connect) -> bool:
    """Whether a new connection is answered; one that is refused is told so by itself."""
    client = await connect()
    client.writer.write(request("ping"))
    told = await client.read()
    assert "result" in told or "no more are taken" in told["error"]["message"]
    return "result" in told


def test_no_user_can_keep_the_others_out_and_all_of_them_not_root(told):
    viewer, other, third, root, own = 60001, 60002, 60003, 0, os.getuid()
    callers = [*[viewer] * 5, *[other] * 4, third, *[root] * 2, own]

    async def story(connect, house, server):
        assert [await is_taken(connect) for _ in range(5)] == [True, True, True, True, False]
        assert [await is_taken(connect) for _ in range(4)] == [True, True, True, False]
        assert [await is_taken(connect) for _ in range(3)] == [False, True, False]
        assert not await is_taken(connect)

    told(story, connections=8, peers=SomeUsers(*callers))


def test_a_user_s_connection_that_ends_makes_room_for_another_of_the_same_user(told):
    async def story(connect, house, server):
        first = await connect()
        assert (await first.call("subscribe"))["result"] is True
        assert await is_taken(connect)
        assert not await is_taken(connect)
        first.writer.close()
        await house.gone.wait()
        assert await is_taken(connect)

    told(story, connections=4, peers=SomeUsers(*[60001] * 4))


def test_two_thousand_connections_at_once_are_all_answered(told):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4_200:
        pytest.skip(f"needs 4,200 descriptors, {hard} are allowed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4_200), hard))

    async def story(connect, house, server):
        clients = []
        for _ in range(10):  # asyncio mistakes a full backlog for a connection made
            some = await asyncio.gather(*(connect() for _ in range(200)))
            clients += some
            assert all(answer["result"] for answer in await asyncio.gather(*(c.call("ping") for c in some)))
        assert server.connections == 2_000
        answers = await asyncio.gather(*(client.call("ping") for client in clients))
        assert [answer["result"] for answer in answers] == ["pong"] * 2_000

    try:
        told(story, connections=2_000)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# Time


def test_half_a_request_is_waited_for_only_so_long_while_an_idle_client_may_stay(told):
    async def story(connect, house, server):
        idle, slow = await connect(), await connect()
        assert (await idle.call("ping"))["result"] == "pong"
        slow.writer.write(request("ping") + b'{"jsonrpc":')
        assert (await slow.read())["result"] == "pong"
        assert reason(await slow.read()) == (-32600, "no complete line within 0.05 s")
        assert await slow.read() is None
        assert (await idle.call("ping"))["result"] == "pong"

    told(story, request_timeout_s=0.05)


def test_dripping_bytes_win_no_time(told):
    async def story(connect, house, server):
        client = await connect()

        async def drip():
            while True:
                client.writer.write(b" ")
                await asyncio.sleep(0)

        dripping = asyncio.create_task(drip())
        assert "no complete line" in reason(await client.read())[1]
        dripping.cancel()

    told(story, request_timeout_s=0.05)


def test_a_half_line_behind_a_full_house_is_not_on_the_clock(told):
    """The second request cannot be completed while the server does not read: no fault of its sender."""

    async def story(connect, house, server):
        client, clock = await connect(), await connect()
        client.writer.write(request("wait") + b'{"jsonrpc":')
        clock.writer.write(b"half a line, too")
        assert "no complete line" in reason(await clock.read())[1]
        house.waiting.pop().set()
        assert (await client.read())["result"] == "waited"
        client.writer.write(b'"2.0","method":"ping","id":2}\n')
        assert (await client.read())["result"] == "pong"

    told(story, in_flight=1, request_timeout_s=0.05)


# Output


def test_a_subscriber_that_does_not_read_is_dropped(told):
    async def story(connect, house, server):
        client, other = await connect(), await connect()
        await client.call("subscribe")
        client.writer.transport.pause_reading()
        pushed = 0
        while not house.gone.is_set():
            house.subscriber.push(b"x" * 10_000)
            pushed += 1
            await asyncio.sleep(0)
        assert pushed < 200
        assert (await other.call("ping"))["result"] == "pong"

    told(story, unsent_bytes=100_000)


def test_who_asks_without_reading_is_kept_waiting_and_loses_nothing(told):
    async def story(connect, house, server):
        client, other = await connect(), await connect()
        client.writer.transport.pause_reading()
        client.writer.write(b"".join(request("big", [10_000], number) for number in range(500)))
        while (before := house.calls) < 20 or (await other.call("ping"), house.calls)[1] > before + 1:
            await asyncio.sleep(0)
        assert house.calls < 250
        client.writer.transport.resume_reading()
        assert [(await client.read())["id"] for _ in range(500)] == list(range(500))

    told(story, unsent_bytes=100_000)


def test_one_answer_may_be_longer_than_the_bound_for_who_reads_it(told):
    async def story(connect, house, server):
        client = await connect()
        assert len((await client.call("big", [3_000_000]))["result"]) == 3_000_000

    told(story, unsent_bytes=100_000)


def test_a_flood_on_one_connection_lets_others_through(told):
    async def story(connect, house, server):
        flood, other = await connect(), await connect()
        flood.writer.write(request("ping") * 20_000)
        assert (await flood.read())["result"] == "pong"
        assert (await other.call("ping"))["result"] == "pong"
        assert house.calls < 20_000
        for _ in range(19_999):
            assert (await flood.read())["result"] == "pong"

    told(story)


def test_the_defaults_are_the_documented_ones():
    assert Limits() == Limits(
        message_bytes=2**20,
        batch=100,
        in_flight=64,
        connections=1024,
        user_share=0.5,
        request_timeout_s=10.0,
        unsent_bytes=2**20,
    )


@pytest.mark.parametrize("says_all_first", [False, True])
def test_a_client_that_hangs_up_frees_its_slot_and_what_it_asked_for_goes_on(told, says_all_first):
    async def story(connect, house, server):
        client = await connect()
        await client.call("subscribe")
        for _ in range(2):
            client.writer.write(request("wait"))
        await house.two_wait.wait()
        if says_all_first:
            client.writer.write_eof()
            assert await (await connect()).call("ping") is not None  # by now it has been seen
            assert not house.gone.is_set()
        client.writer.close()
        await house.gone.wait()
        assert server.connections == (1 if says_all_first else 0)
        assert len(server.tasks) == 2
        for turn in house.waiting:
            turn.set()
        done, _ = await asyncio.wait(tuple(server.tasks))
        assert all(json.loads(task.result())["result"] == "waited" for task in done)

    told(story)


def test_a_client_that_has_only_said_all_gets_its_answer(told):
    async def story(connect, house, server):
        client = await connect()
        for number in range(2):
            client.writer.write(request("wait", request_id=number))
        client.writer.write_eof()
        await house.two_wait.wait()
        for turn in house.waiting:
            turn.set()
        assert {(await client.read())["id"] for _ in range(2)} == {0, 1}
        assert await client.read() is None

    told(story)
