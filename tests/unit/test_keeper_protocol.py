"""The packets between nexusd and its keeper: whole or refused, with descriptors that nobody else gets."""

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexusd.keeper import process, protocol
from nexusd.keeper.protocol import MOST_FDS, PACKET_BYTES, Outbox, TooLong

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    one, two = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    one.setblocking(False)
    two.setblocking(False)
    with one, two:
        yield one, two


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_messages_arrive_one_by_one_in_order(pair: Pair) -> None:
    one, two = pair
    for number in range(3):
        protocol.send(one, protocol.encode({"say": "ping", "id": number}))
    assert [protocol.receive(two) for _ in range(3)] == [({"say": "ping", "id": n}, []) for n in range(3)]
    with pytest.raises(BlockingIOError):
        protocol.receive(two)


def test_descriptors_arrive_with_their_message_and_are_not_inherited(pair: Pair) -> None:
    one, two = pair
    reading, writing = os.pipe()
    protocol.send(one, b"{}", (reading, writing))
    received = protocol.receive(two)
    assert received is not None
    os.write(received[1][1], b"through")
    assert os.read(received[1][0], 10) == b"through"
    assert all(fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC for fd in received[1])
    protocol.close_all([reading, writing, *received[1]])


def test_the_end_of_the_other_side_is_none(pair: Pair) -> None:
    one, two = pair
    protocol.send(one, b'{"last": "words"}')
    one.close()
    assert protocol.receive(two) == ({"last": "words"}, [])
    assert protocol.receive(two) is None


def test_what_was_told_is_read_even_if_the_other_side_went_without_reading(pair: Pair) -> None:
    one, two = pair
    protocol.send(two, b'{"never": "read"}')
    protocol.send(one, b'{"last": "words"}')
    one.close()
    assert protocol.receive(two) == ({"last": "words"}, [])
    assert protocol.receive(two) is None


@pytest.mark.parametrize(
    "packet", [b"x" * (PACKET_BYTES + 1), b"no json", b"[]", b'"text"', b"\xff", b"[" * 100_000, b'{"a":']
)
def test_a_packet_that_is_no_message_is_an_error_and_its_descriptors_are_closed(
    pair: Pair, packet: bytes
) -> None:
    one, two = pair
    before = open_fds()
    protocol.send(one, packet, (one.fileno(),) * 3)
    with pytest.raises(ValueError, match="not a message"):
        protocol.receive(two)
    assert open_fds() == before
    protocol.send(one, b"{}")
    assert protocol.receive(two) == ({}, [])


def test_more_descriptors_than_are_taken_are_an_error_and_closed(pair: Pair) -> None:
    one, two = pair
    before = open_fds()
    protocol.send(one, b"{}", (one.fileno(),) * (MOST_FDS + 50))
    with pytest.raises(ValueError, match="cut short"):
        protocol.receive(two)
    assert open_fds() == before


def test_the_longest_packet_passes_and_a_longer_one_is_refused_before_it_is_sent(pair: Pair) -> None:
    one, two = pair
    room = PACKET_BYTES - len(protocol.encode({"say": "note", "text": ""}))
    message = {"say": "note", "text": "x" * room}
    protocol.send(one, protocol.encode(message))
    assert protocol.receive(two) == (message, [])
    with pytest.raises(TooLong, match="note: 200001 bytes, a packet takes 200000"):
        protocol.encode({"say": "note", "text": "x" * (room + 1)})


# The outbox


def test_what_the_reader_does_not_take_waits_in_order_with_descriptors_of_its_own(pair: Pair) -> None:
    one, two = pair
    before = open_fds()
    outbox = Outbox()
    for number in range(500):
        reading, writing = os.pipe()
        outbox.send(one, b'{"n": %d, "fill": "%s"}' % (number, b"x" * 1000), (reading,))
        os.write(writing, b"%d" % number)
        protocol.close_all((reading, writing))  # and their numbers are taken by the next ones
    assert outbox
    seen = []
    while len(seen) < 500:
        try:
            received = protocol.receive(two)
        except BlockingIOError:
            outbox.flush(one)
            continue
        assert received is not None
        message, (fd,) = received
        assert os.read(fd, 10) == b"%d" % message["n"]
        os.close(fd)
        seen.append(message["n"])
    assert seen == list(range(500)) and not outbox
    assert open_fds() == before


def test_clearing_the_outbox_closes_what_waits(pair: Pair) -> None:
    one, _ = pair
    before = open_fds()
    outbox = Outbox()
    for _ in range(500):
        outbox.send(one, b"{}" + b" " * 1000, (one.fileno(),))
    outbox.clear()
    assert not outbox
    two = pair[1]
    while _read(two):
        pass
    assert open_fds() == before


def _read(sock: socket.socket) -> bool:
    try:
        received = protocol.receive(sock)
    except BlockingIOError:
        return False
    assert received is not None
    protocol.close_all(received[1])
    return True


# Shapes


GOOD = {
    "kept": {"run": "r"},
    "adopt": {
        "run": "r",
        "running": True,
        "notices": {},
        "entry": {
            "key": "r",
            "pid": 1,
            "start_ticks": 1,
            "log": {"path": "p", "max_bytes": 1, "files": 1},
            "notify_path": "n",
            "control_path": "c",
        },
    },
    "hello": {},
    "spawn": {
        "run": "r",
        "launch": {
            "log": {"path": "p", "max_bytes": 1, "files": 1},
            "notify_path": "n",
            "control_path": "c",
            "environment": {},
            "directory": "/",
        },
    },
    "probe": {
        "id": 1,
        "timeout": 2.0,
        "launch": {"argv": ["/bin/true"], "environment": {}, "directory": "/"},
    },
    "signal": {"run": "r", "signal": 15},
    "kill": {"run": "r"},
    "forget": {"run": "r"},
    "note": {"name": "n", "text": None},
    "hold": {"name": "n"},
    "release": {"name": "n"},
    "warm": {},
    "ping": {"id": 1.5},
    "count": {},
    "leave": {},
}
FDS = {"adopt": [1, 2], "kept": [1, 2], "spawn": [1, 2, 3, 4], "hold": [1]}


@pytest.mark.parametrize("word", protocol.SHAPES)
def test_each_word_is_taken_in_its_shape_and_refused_without_any_part_of_it(word: str) -> None:
    message: dict[str, Any] = {"say": word, **GOOD[word]}
    protocol.check(message, FDS.get(word, []))
    for name in protocol.SHAPES[word].fields:
        lacking = {key: value for key, value in message.items() if key != name}
        with pytest.raises(ValueError, match=f"{word}: {name} is None"):
            protocol.check(lacking, FDS.get(word, []))
    with pytest.raises(ValueError, match="descriptors"):
        protocol.check(message, [1] * (MOST_FDS + 1))
    if word in FDS:
        with pytest.raises(ValueError, match="descriptors"):
            protocol.check(message, [])


def test_the_path_to_a_nested_fault_is_named() -> None:
    launch = {**GOOD["spawn"]["launch"], "log": {"path": "p", "max_bytes": "big", "files": 1}}  # type: ignore[dict-item]
    with pytest.raises(ValueError, match=r"spawn: launch\.log\.max_bytes is 'big'"):
        protocol.check({"say": "spawn", "run": "r", "launch": launch}, [1, 2, 3, 4])


def test_the_keeper_has_a_method_for_each_shape_and_no_other(tmp_path: Any) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.bind(str(tmp_path / "sock"))
        keeper = process.Keeper(str(tmp_path), server, None, 1024)
        assert keeper._words.keys() == protocol.SHAPES.keys()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(st.dictionaries(st.sampled_from(["say", "run", "launch", "entry", "name", "signal"]), JSON))
def test_whatever_a_message_holds_it_is_a_word_or_a_value_error(message: dict[str, Any]) -> None:
    try:
        protocol.check(json.loads(json.dumps(message)), [])
    except ValueError:
        return
    assert message["say"] in protocol.SHAPES
