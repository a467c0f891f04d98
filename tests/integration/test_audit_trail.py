"""Calls and their lines: before the command, after it, for refusals, for reads if wanted; the methods to read them."""

from __future__ import annotations

import asyncio
import gc
import json
import warnings
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

import msgspec
import pytest

from nexusd.domain.access import Caller, Grants, SecurityContext, authority
from nexusd.domain.audit import Entry
from nexusd.domain.chain import Mark, Verdict, Verification, sealed
from nexusd.domain.errors import NoSuchModule, NotPossible
from nexusd.rpc import audit
from nexusd.rpc.audit import AuditReading, AuditTrail
from nexusd.rpc.call import Call, Method
from nexusd.rpc.dispatch import Dispatcher

ROOT = Caller(0, 0, "root", pid=1)
EVE = Caller(5, 5, "eve", pid=2)


class Log:
    """A log in memory that takes lines when the test says so."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.mark = Mark()
        self.asked, self.open = asyncio.Event(), asyncio.Event()
        self.open.set()
        self.full = False
        self.subscribers: list[Callable[[bytes], None]] = []

    async def begin(self, entry: Entry) -> int:
        self.asked.set()
        await self.open.wait()
        if self.full:
            raise NotPossible("the disk is full")
        self.add(entry)
        return self.mark.seq

    def add(self, entry: Entry) -> None:
        line, self.mark = sealed(entry.content(), self.mark)
        self.lines.append(line)
        for subscriber in self.subscribers:
            subscriber(line)

    async def records(self, most: int, since: int, module_id: str | None) -> list[bytes]:
        return self.lines[since:][-most:]

    async def verify(self, anchors: Mapping[int, str]) -> Verdict:
        verification = Verification(anchors=anchors)
        verification.read("audit.log", self.lines)
        return verification.verdict()

    def subscribe(self, subscriber: Callable[[bytes], None]) -> Callable[[], None]:
        self.subscribers.append(subscriber)
        return lambda: self.subscribers.remove(subscriber)

    def told(self) -> list[tuple[str, str]]:
        return [(line["method"], line["outcome"]) for line in map(json.loads, self.lines)]


class OneModule(msgspec.Struct):
    module_id: str = "a/b"


class House:
    def __init__(self, with_reads: bool = False) -> None:
        self.log = Log()
        self.ran: list[str] = []
        self.go_on = asyncio.Event()
        self.begun = asyncio.Event()
        self.pushed: list[Any] = []
        table = [
            Method("stop", self.stop, "Stops.", OneModule, "module.stop", True),
            Method("plain", self.plain, "Plain.", OneModule, "module.stop", True),
            Method("wait", self.wait, "Waits.", OneModule, "module.stop", True),
            Method("missing", self.missing, "Refuses.", OneModule, "module.stop", True),
            Method("status", self.plain, "Reads.", OneModule, "status.read"),
            *AuditReading(self.log).methods,
        ]
        trail = AuditTrail(self.log, lambda module_id, key: True, with_reads)
        allow = authority(Grants(), SecurityContext())
        self.dispatcher = Dispatcher(table, authorise=allow, observers=[trail])

    async def stop(self, call: Call, params: OneModule) -> str:
        self.ran.append("stop")
        return "stopped"

    def plain(self, call: Call, params: OneModule) -> str:
        self.ran.append("plain")
        return "done"

    async def wait(self, call: Call, params: OneModule) -> None:
        self.begun.set()
        await self.go_on.wait()

    async def missing(self, call: Call, params: OneModule) -> None:
        raise NoSuchModule("no such module")

    async def answer(self, method: str, caller: Caller = ROOT, **params: Any) -> Any:
        line = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()
        call = Call(caller, lambda pushed: self.pushed.append(json.loads(pushed)))
        answer = self.dispatcher.answer(line, call)
        answered = await answer if isinstance(answer, Awaitable) else answer
        assert answered is not None
        return json.loads(answered)


def tell(story: Callable[[House], Coroutine[Any, Any, None]], **options: Any) -> None:
    async def main() -> None:
        await story(House(**options))

    asyncio.run(asyncio.wait_for(main(), 20))


@pytest.mark.parametrize("method", ["stop", "plain"])
def test_a_command_runs_only_once_its_line_is_safe(method: str) -> None:
    async def story(house: House) -> None:
        house.log.open.clear()
        answering = asyncio.ensure_future(house.answer(method))
        await house.log.asked.wait()
        assert house.ran == []
        house.log.open.set()
        assert "result" in await answering
        assert house.ran == [method]
        assert house.log.told() == [(method, "begun"), (method, "ok")]

    tell(story)


def test_a_command_that_cannot_be_written_down_is_refused() -> None:
    async def story(house: House) -> None:
        house.log.full = True
        error = (await house.answer("stop"))["error"]
        assert (error["code"], error["data"]["kind"], house.ran) == (-32003, "not_possible", [])

    tell(story)


def test_a_failure_is_told_in_the_second_line() -> None:
    async def story(house: House) -> None:
        await house.answer("missing", module_id="a/c")
        first, second = map(json.loads, house.log.lines)
        assert (second["begun"], second["error"]) == (first["seq"], "no_such_module")
        assert second["params"] == {"module_id": "a/c"}

    tell(story)


def test_a_refused_call_has_one_line_a_read_too() -> None:
    async def story(house: House) -> None:
        for method in ("stop", "status", "get_audit"):
            assert (await house.answer(method, EVE))["error"]["code"] == -32001
        lines = [json.loads(line) for line in house.log.lines]
        assert [(line["outcome"], line["principal"], line["pid"]) for line in lines] == [
            ("denied", "eve", 2)
        ] * 3
        assert [line["permission"] for line in lines] == ["module.stop", "status.read", "audit.read"]
        await house.answer("stop", module="a/b")
        assert json.loads(house.log.lines[-1])["error"] == "invalid_params"

    tell(story)


@pytest.mark.parametrize(("with_reads", "told"), [(False, []), (True, [("status", "ok")])])
def test_reads_have_a_line_if_that_is_wanted(with_reads: bool, told: list[Any]) -> None:
    async def story(house: House) -> None:
        await house.answer("status")
        assert house.log.told() == told

    tell(story, with_reads=with_reads)


def test_a_command_that_is_cut_off_has_its_second_line() -> None:
    async def story(house: House) -> None:
        answering = asyncio.ensure_future(house.answer("wait"))
        await house.begun.wait()
        answering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await answering
        assert json.loads(house.log.lines[-1])["error"] == "shutting_down"

    tell(story)


def test_two_commands_at_once_are_not_mixed_up() -> None:
    async def story(house: House) -> None:
        waiting = asyncio.ensure_future(house.answer("wait", module_id="a/slow"))
        await house.begun.wait()
        await house.answer("stop", module_id="a/quick")
        house.go_on.set()
        await waiting
        lines = [json.loads(line) for line in house.log.lines]
        pairs = [(line.get("begun"), line["params"]["module_id"]) for line in lines]
        assert pairs == [(None, "a/slow"), (None, "a/quick"), (2, "a/quick"), (1, "a/slow")]

    tell(story)


def test_who_may_do_nothing_cannot_flood_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(house: House) -> None:
        loop = asyncio.get_running_loop()
        later: list[Callable[[], None]] = []
        monkeypatch.setattr(loop, "call_later", lambda _, tell: later.append(tell))
        for _ in range(audit.MOST_REFUSALS + 7):
            await house.answer("stop", EVE)
        await house.answer("stop", ROOT)
        assert house.log.told().count(("stop", "denied")) == audit.MOST_REFUSALS
        assert house.log.told()[-1] == ("stop", "ok")
        later.pop()()
        told = json.loads(house.log.lines[-1])
        assert (told["method"], told["uid"], told["params"]) == ("nexusd.refusals", 5, {"left_out": 7})
        await house.answer("stop", EVE)
        assert house.log.told()[-1] == ("stop", "denied")

    tell(story)


def test_the_log_is_read_followed_and_proved_over_the_api() -> None:
    async def story(house: House) -> None:
        await house.answer("stop")
        first = (await house.answer("get_audit", limit=1, follow=True))["result"]
        assert [record["outcome"] for record in first["records"]] == ["ok"]
        await house.answer("stop", module_id="a/c")
        pushed = [one["params"] for one in house.pushed]
        assert [one["subscription"] for one in pushed] == [first["subscription"]] * 2
        assert [one["record"]["outcome"] for one in pushed] == ["begun", "ok"]
        proof = (await house.answer("verify_audit"))["result"]
        assert (proof["whole"], proof["records"], proof["last"]["hash"]) == (True, 4, house.log.mark.hash)

    tell(story)


def test_findings_and_anchors_go_over_the_api() -> None:
    async def story(house: House) -> None:
        await house.answer("stop")
        proof = (await house.answer("verify_audit", anchors={"1": "f" * 64}))["result"]
        assert proof["findings"] == [
            {
                "file": "audit.log",
                "line": 1,
                "problem": "changed",
                "text": "record 1 is not the one whose hash was noted",
            }
        ]
        refused = await house.answer("verify_audit", anchors={"first": "f"})
        assert refused["error"]["code"] == -32602

    tell(story)


def test_an_admission_after_the_one_that_refused_is_not_begun() -> None:
    begun: list[str] = []

    class Watcher:
        def __init__(self, name: str, refuses: bool) -> None:
            self.name, self.refuses = name, refuses

        def admit(self, *_: object) -> Awaitable[None]:
            return self.take()

        async def take(self) -> None:
            begun.append(self.name)
            if self.refuses:
                raise NotPossible("no")

        def done(self, *_: object) -> None:
            begun.append(f"{self.name} is told")

    async def story(house: House) -> None:
        row = Method("stop", house.stop, "Stops.", OneModule, None, True)
        watchers = [Watcher("first", refuses=True), Watcher("second", refuses=False)]
        house.dispatcher = Dispatcher([row], authorise=lambda *_: None, observers=watchers)
        assert (await house.answer("stop"))["error"]["data"]["kind"] == "not_possible"
        assert house.ran == []
        gc.collect()

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        tell(story)
    assert begun == ["first", "first is told", "second is told"]
    assert [one for one in warned if "never awaited" in str(one.message)] == []
