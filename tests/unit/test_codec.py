"""Bytes to messages and back, and what any line at all is answered with."""

import json
import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexusd.domain import errors
from nexusd.domain.access import Caller
from nexusd.rpc import codec
from nexusd.rpc.call import Call, Method
from nexusd.rpc.dispatch import Dispatcher


@pytest.mark.parametrize(
    "line",
    [
        b"NaN",
        b"[Infinity]",
        b"-Infinity",
        b"1e400",
        b"\xef\xbb\xbf{}",
        b'"\xff"',
        b'{"\xc0\xaf": 1}',
        b'"\\ud800"',
        b'"\xed\xa0\x80"',
        b"{} {}",
        b"[1,]",
        b'{"a":1',
        b"01",
        b"'a'",
        b"9" * 10_000,
        b"[" * 100_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
    ],
    ids=lambda line: repr(line[:12]),
)
def test_what_is_not_strict_json_is_refused(line):
    with pytest.raises(codec.Unparsable):
        codec.decode(line)


def test_of_a_repeated_key_the_last_one_counts():
    assert codec.decode(b'{"method":"a","method":"b"}') == {"method": "b"}


def test_a_carriage_return_at_the_end_is_white_space():
    assert codec.decode(b"{}\r") == {}


VALID = {"jsonrpc": "2.0", "method": "m"}


@pytest.mark.parametrize(
    "members", [{}, {"id": None}, {"id": 1.5}, {"id": "x"}, {"params": []}, {"params": {}}, {"other": 1}]
)
def test_a_request_may_have_an_id_parameters_and_members_unknown_to_us(members):
    assert codec.fault({**VALID, **members}) is None


@pytest.mark.parametrize(
    ("message", "names"),
    [
        (1, "object"),
        ([], "object"),
        ({}, "jsonrpc"),
        ({**VALID, "jsonrpc": "1.0"}, "jsonrpc"),
        ({**VALID, "jsonrpc": 2.0}, "jsonrpc"),
        ({"jsonrpc": "2.0"}, "method"),
        ({**VALID, "method": 1}, "method"),
        ({**VALID, "params": None}, "params"),
        ({**VALID, "params": "bar"}, "params"),
        ({**VALID, "id": True}, "id"),
        ({**VALID, "id": []}, "id"),
        ({**VALID, "id": {}}, "id"),
    ],
)
def test_a_faulty_envelope_is_told_by_the_member_at_fault(message, names):
    assert names in (codec.fault(message) or "")


@pytest.mark.parametrize(("found", "told"), [(7, 7), ("x", "x"), (None, None), (True, None), ([1], None)])
def test_an_id_is_told_back_where_it_is_one(found, told):
    assert codec.id_of({"id": found}) is told


@pytest.mark.parametrize("request_id", [0, -1, 2**70, 1.5, "", 'quoted " \u2028 text', None])
def test_an_answer_carries_the_id_it_was_asked_under(request_id):
    assert json.loads(codec.success(b"1", request_id))["id"] == request_id


def test_prepared_bytes_cannot_break_the_line():
    assert codec.encode({"a": msgspec.Raw(b'{\n"b": 1\n}')}).count(b"\n") == 0


def test_nan_in_a_result_becomes_null():
    assert codec.encode({"ratio": math.nan}) == b'{"ratio":null}'


def test_every_kind_of_error_has_a_code_of_its_own():
    kinds = {error.kind for error in errors.NexusError.__subclasses__()} | {errors.NexusError.kind}
    assert kinds <= codec.CODES.keys()
    assert len(set(codec.CODES.values())) == len(codec.CODES)


def test_our_errors_speak_in_sentences_and_the_specification_s_in_its_own_words():
    ours = json.loads(codec.refusal(errors.NoSuchModule("no such module: a/b", module_id="a/b", hint="x"), 3))
    assert ours["error"]["message"] == "no such module: a/b"
    assert ours["error"]["code"] == -32002
    assert ours["error"]["data"] == {
        "kind": "no_such_module",
        "module_id": "a/b",
        "reason": None,
        "hint": "x",
    }
    standard = json.loads(codec.refusal(errors.InvalidParams("lines: expected `int`"), 3))
    assert standard["error"]["message"] == "Invalid params"
    assert standard["error"]["data"]["reason"] == "lines: expected `int`"


_word = st.sampled_from(["", "a", "\u2028", "text", "module_id"])
_leaf = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _word
_json = _leaf | st.lists(_leaf, max_size=3) | st.dictionaries(_word, _leaf, max_size=3)
_almost_requests = st.fixed_dictionaries(
    {},
    optional={
        "jsonrpc": st.sampled_from(["2.0", 2]),
        "method": st.sampled_from(["echo", "nothing"]) | _json,
        "params": _json,
        "id": _json,
    },
)
_dispatcher = Dispatcher([Method("echo", lambda call, params: 1, "one")], authorise=lambda caller, name: None)
_call = Call(Caller(0, 0, "root"), lambda line: None)


@given(st.binary(max_size=60))
def test_no_line_of_bytes_whatever_brings_more_than_an_error(line):
    answer = _dispatcher.answer(line, _call)
    assert isinstance(answer, bytes)
    assert {"id", "error"} <= json.loads(answer).keys()


@given(_almost_requests)
def test_whatever_resembles_a_request_has_a_result_an_error_or_no_answer(message):
    answer = _dispatcher.answer(json.dumps(message).encode(), _call)
    if answer is None:
        assert "id" not in message
    else:
        assert isinstance(answer, bytes)
        told = json.loads(answer)
        assert ("result" in told) != ("error" in told)
        assert told["jsonrpc"] == "2.0"
