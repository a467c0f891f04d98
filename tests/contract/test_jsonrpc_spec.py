"""Every example of section 7 of the JSON-RPC 2.0 specification, over a real Unix socket.

An error's `data` is free to the server, and the answers of a batch come in any order: neither is compared.
"""

import asyncio
import json

import msgspec
import pytest

from nexusd.rpc.call import Method, NoParams
from nexusd.rpc.dispatch import Dispatcher
from nexusd.rpc.server import RpcServer


class Subtract(msgspec.Struct):
    minuend: int
    subtrahend: int


def numbers(count):
    return msgspec.defstruct("Numbers", [f"n{index}" for index in range(count)])


TABLE = [
    Method("subtract", lambda call, given: given.minuend - given.subtrahend, "Subtracts.", Subtract),
    Method("sum", lambda call, given: sum(msgspec.structs.astuple(given)), "Adds.", numbers(3)),
    Method("update", lambda call, given: None, "Updates.", numbers(5)),
    Method("notify_hello", lambda call, given: None, "Greets.", numbers(1)),
    Method("notify_sum", lambda call, given: None, "Is told.", numbers(3)),
    Method("get_data", lambda call, given: ["hello", 5], "Data.", NoParams),
]

PARSE_ERROR = '{"jsonrpc": "2.0", "error": {"code": -32700, "message": "Parse error"}, "id": null}'
INVALID = '{"jsonrpc": "2.0", "error": {"code": -32600, "message": "Invalid Request"}, "id": null}'

EXAMPLES = {
    "positional parameters": (
        '{"jsonrpc": "2.0", "method": "subtract", "params": [42, 23], "id": 1}',
        '{"jsonrpc": "2.0", "result": 19, "id": 1}',
    ),
    "positional parameters the other way round": (
        '{"jsonrpc": "2.0", "method": "subtract", "params": [23, 42], "id": 2}',
        '{"jsonrpc": "2.0", "result": -19, "id": 2}',
    ),
    "named parameters": (
        '{"jsonrpc": "2.0", "method": "subtract", "params": {"subtrahend": 23, "minuend": 42}, "id": 3}',
        '{"jsonrpc": "2.0", "result": 19, "id": 3}',
    ),
    "named parameters in another order": (
        '{"jsonrpc": "2.0", "method": "subtract", "params": {"minuend": 42, "subtrahend": 23}, "id": 4}',
        '{"jsonrpc": "2.0", "result": 19, "id": 4}',
    ),
    "a notification": ('{"jsonrpc": "2.0", "method": "update", "params": [1,2,3,4,5]}', None),
    "a notification of an unknown method": ('{"jsonrpc": "2.0", "method": "foobar"}', None),
    "an unknown method": (
        '{"jsonrpc": "2.0", "method": "foobar", "id": "1"}',
        '{"jsonrpc": "2.0", "error": {"code": -32601, "message": "Method not found"}, "id": "1"}',
    ),
    "invalid JSON": ('{"jsonrpc": "2.0", "method": "foobar, "params": "bar", "baz]', PARSE_ERROR),
    "an invalid request": ('{"jsonrpc": "2.0", "method": 1, "params": "bar"}', INVALID),
    "a batch of invalid JSON": (
        '[ {"jsonrpc": "2.0", "method": "sum", "params": [1,2,4], "id": "1"}, {"jsonrpc": "2.0", "method" ]',
        PARSE_ERROR,
    ),
    "an empty batch": ("[]", INVALID),
    "an invalid batch that is not empty": ("[1]", f"[{INVALID}]"),
    "an invalid batch": ("[1,2,3]", f"[{INVALID}, {INVALID}, {INVALID}]"),
    "a batch": (
        """[
            {"jsonrpc": "2.0", "method": "sum", "params": [1,2,4], "id": "1"},
            {"jsonrpc": "2.0", "method": "notify_hello", "params": [7]},
            {"jsonrpc": "2.0", "method": "subtract", "params": [42,23], "id": "2"},
            {"foo": "boo"},
            {"jsonrpc": "2.0", "method": "foo.get", "params": {"name": "myself"}, "id": "5"},
            {"jsonrpc": "2.0", "method": "get_data", "id": "9"}
        ]""",
        f"""[
            {{"jsonrpc": "2.0", "result": 7, "id": "1"}},
            {{"jsonrpc": "2.0", "result": 19, "id": "2"}},
            {INVALID},
            {{"jsonrpc": "2.0", "error": {{"code": -32601, "message": "Method not found"}}, "id": "5"}},
            {{"jsonrpc": "2.0", "result": ["hello", 5], "id": "9"}}
        ]""",
    ),
    "a batch of notifications": (
        """[
            {"jsonrpc": "2.0", "method": "notify_sum", "params": [1,2,4]},
            {"jsonrpc": "2.0", "method": "notify_hello", "params": [7]}
        ]""",
        None,
    ),
}

LAST = b'{"jsonrpc": "2.0", "method": "get_data", "id": "last"}'


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_specification_s_example_holds(example, tmp_path):
    sent, expected = EXAMPLES[example]
    answers = asyncio.run(ask(tmp_path / "nexus.sock", sent))
    assert comparable(answers) == comparable([] if expected is None else [json.loads(expected)])


async def ask(path, message):
    """What comes back for one message, up to the answer of a request sent after it."""
    server = RpcServer(Dispatcher(TABLE, authorise=lambda caller, permission: None))
    await server.serve(path)
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(message.replace("\n", " ").encode() + b"\n")
    answers = []
    if message.startswith("["):  # a batch takes its time, and others may be answered before it
        writer.write_eof()
    else:
        writer.write(LAST + b"\n")
    while line := await reader.readline():
        answer = json.loads(line)
        if isinstance(answer, dict) and answer["id"] == "last":
            break
        answers.append(answer)
    writer.close()
    await server.close()
    return answers


def comparable(answers):
    return [
        sorted(map(without_data, answer)) if isinstance(answer, list) else without_data(answer)
        for answer in answers
    ]


def without_data(answer):
    if "error" in answer:
        answer["error"].pop("data", None)
    return json.dumps(answer, sort_keys=True)
