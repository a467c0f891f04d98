"""What an audit line says: secrets masked, long values cut, outcomes in words."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nexusd.domain import audit
from nexusd.domain.access import Caller
from nexusd.domain.errors import NoSuchModule, PermissionDenied
from nexusd.domain.settings import MASK

ALICE = Caller(1000, 1000, "alice", pid=7)
CONFIGURE = ("module_id", "key", "value")


def is_secret(module_id: str, key: str) -> bool:
    return (module_id, key) != ("a/b", "interval_ms")


def shown(params: dict[str, Any], known: tuple[str, ...] = CONFIGURE, method: str = "configure") -> Any:
    return audit.fit_params(params, known, method, is_secret)


def test_a_value_is_shown_and_a_secret_one_is_masked() -> None:
    plain = {"module_id": "a/b", "key": "interval_ms", "value": 5}
    assert shown(plain) == plain
    assert shown({**plain, "key": "password", "value": "hunter2"})["value"] == MASK


@pytest.mark.parametrize(
    "params",
    [
        {"module_id": "a/b", "key": "pasword", "value": "hunter2"},
        {"module_id": "no/module", "key": "interval_ms", "value": "hunter2"},
        {"module_id": "a/b", "key": "interval_ms", "valeu": "hunter2"},
        {"key": "interval_ms", "value": "hunter2"},
        {"module_id": ["a/b"], "key": {"interval_ms": 1}, "value": "hunter2"},
    ],
)
def test_what_may_be_a_secret_under_a_mistyped_name_is_masked(params: dict[str, Any]) -> None:
    assert "hunter2" not in str(shown(params))


def test_a_long_value_is_cut_and_the_line_says_so() -> None:
    told = shown({"module_id": "a/b", "key": "interval_ms", "value": "x" * 1_000_000})
    assert told["value"] == "x" * 200 + "… (1000000 characters)"
    told = shown({"module_id": "a/b", "key": "interval_ms", "value": list(range(1000))})
    assert told["value"] == "(3891 bytes of JSON)"


def test_no_request_makes_a_line_of_more_than_a_few_pages() -> None:
    params = {f"{number}" + "ä" * 1000: "x" * 10_000 for number in range(1000)}
    content = audit.entry(ALICE, "configure", shown(params), time="now").content()
    assert len(content) < 16_384
    assert json.loads(content)["params"]["…"] == "984 more"


@pytest.mark.parametrize("value", [10**40, float("nan"), "\ud800", object(), None, True, 1.5, {"a": [1]}])
def test_whatever_the_value_there_is_a_line(value: object) -> None:
    told = shown({"module_id": "a/b", "key": "interval_ms", "value": value})
    assert json.loads(audit.entry(ALICE, "configure", told, time="now").content())


def test_the_line_of_the_end_names_the_one_of_the_begin_and_the_outcome() -> None:
    begun = audit.entry(ALICE, "stop_module", {"module_id": "a/b"}, time="then")
    ended = audit.ended(begun, 5, None, time="now", elapsed_s=0.01)
    assert json.loads(ended.content()) == {
        "time": "now",
        "principal": "alice",
        "uid": 1000,
        "pid": 7,
        "method": "stop_module",
        "params": {"module_id": "a/b"},
        "outcome": "ok",
        "duration_s": 0.01,
        "begun": 5,
    }


def test_an_error_is_told_by_its_kind_and_never_by_its_text() -> None:
    begun = audit.entry(ALICE, "stop_module", {}, time="then")
    failed = audit.ended(begun, 5, NoSuchModule("hunter2", reason="hunter2"), time="now", elapsed_s=0)
    assert (failed.outcome, failed.error) == ("error", "no_such_module")
    assert b"hunter2" not in failed.content()


def test_a_denial_names_the_permission_that_was_missing() -> None:
    asked = audit.entry(ALICE, "shutdown", {}, time="then")
    refusal = PermissionDenied("no", permission="daemon.admin")
    denied = audit.ended(asked, None, refusal, time="now", elapsed_s=0)
    assert (denied.outcome, denied.permission, denied.error) == ("denied", "daemon.admin", None)


def test_a_user_s_name_that_is_no_text_is_written_all_the_same() -> None:
    odd = audit.entry(Caller(5, 5, "j\udcf6rg"), "stop_module", {}, time="now")
    assert json.loads(odd.content())["principal"] == "j\\udcf6rg"
