"""Many modules asked at once on real sockets: who is waited for, and what an answer that is none counts as."""

import asyncio
import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nexusd.system import module_questions
from nexusd.system.module_questions import Answer, Key, ModuleQuestions, Target

KEY: Key = ("mesh/one", 0, 1)
BOUND_S = 20.0
SOON_S = 0.05


class Module:
    """A control socket; each connection is answered with the next of `answers`, or with nothing at all."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answers: list[bytes] = []
        self.asked: list[bytes] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(16)
        self._open: list[socket.socket] = []

    def serve(self) -> "Module":
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def _serve(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(peer)
            with contextlib.suppress(OSError):  # who asked has hung up
                self.asked.append(peer.recv(4096))
                if self.answers:
                    peer.sendall(self.answers.pop(0))

    def close(self) -> None:
        self._listener.close()
        for peer in self._open:
            peer.close()


@pytest.fixture
def module(tmp_path: Path) -> Iterator[Module]:
    module = Module(tmp_path / "s")
    yield module
    module.close()


def result(text: str) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": 1, "result": {"text": text}}).encode() + b"\n"


def error(code: int) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": 1, "error": {"code": code, "message": "no"}}).encode() + b"\n"


def ask(
    questions: ModuleQuestions,
    module: Module,
    bound_s: float = BOUND_S,
    expected: bool = True,
    everybody: bool = False,
) -> list[Answer]:
    targets = [Target(KEY, str(module.path), expected)]
    return asyncio.run(questions.answers(targets, time.monotonic() + bound_s, everybody=everybody))


def test_a_module_is_asked_in_the_words_of_the_module_protocol(module: Module) -> None:
    module.serve().answers = [result("a 1\n")]
    assert ask(ModuleQuestions(), module) == [Answer(KEY, "a 1\n")]
    assert json.loads(module.asked[0]) == {"jsonrpc": "2.0", "id": 1, "method": "metrics", "params": {}}


def test_hundreds_are_asked_in_one_round(tmp_path: Path) -> None:
    modules = [Module(tmp_path / f"{number}") for number in range(300)]
    for module in modules:
        module.serve().answers = [result(f"a {module.path.name}\n")]
    targets = [Target(("m/m", number, 1), str(one.path), True) for number, one in enumerate(modules)]
    answers = asyncio.run(ModuleQuestions().answers(targets, time.monotonic() + BOUND_S))
    assert sorted(answers) == [Answer(("m/m", number, 1), f"a {number}\n") for number in range(300)]
    for module in modules:
        module.close()


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        (result(""), Answer(KEY, "")),
        (error(-32601), Answer(KEY)),
        (error(-32603), Answer(KEY, failure="refused")),
        (b"nonsense\n", Answer(KEY, failure="unparsable")),
        (b'{"result":{"text":7}}\n', Answer(KEY, failure="unparsable")),
        (b'{"result":{"text":"\xff"}}\n', Answer(KEY, failure="unparsable")),
        (b"{}\n", Answer(KEY, failure="refused")),
        (b'{"result":' + b"[" * 5000 + b"\n", Answer(KEY, failure="unparsable")),
        (result("a" * (module_questions.LONGEST_ANSWER + 1)), Answer(KEY, failure="too_large")),
    ],
)
def test_an_answer_is_taken_for_what_it_is(module: Module, said: bytes, answer: Answer) -> None:
    module.serve().answers = [said]
    assert ask(ModuleQuestions(), module) == [answer]


def test_who_has_no_metrics_is_left_alone_for_a_while(
    module: Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    module.serve().answers = [result(""), result("a 1\n"), result("a 2\n")]
    questions = ModuleQuestions()
    ask(questions, module)
    assert ask(questions, module) == []
    assert len(module.asked) == 1
    monkeypatch.setattr(questions._standings[KEY], "rests_until", 0.0)
    assert ask(questions, module) == []  # asked, and not waited for
    while not questions._beside[0].read():
        threading.Event().wait(0.001)
    assert ask(questions, module) == [Answer(KEY, "a 2\n")]


def test_all_are_asked_when_one_module_is_meant(module: Module) -> None:
    module.serve().answers = [result(""), result("a 1\n")]
    questions = ModuleQuestions()
    ask(questions, module)
    assert ask(questions, module, everybody=True) == [Answer(KEY, "a 1\n")]


def test_a_module_that_hangs_holds_up_one_scrape_and_is_counted_at_the_next(module: Module) -> None:
    questions = ModuleQuestions()
    began = time.monotonic()
    assert ask(questions, module, SOON_S) == [Answer(KEY)]
    assert time.monotonic() - began >= SOON_S
    assert ask(questions, module) == [Answer(KEY, failure="silent")]
    assert ask(questions, module) == []


def test_an_answer_that_comes_late_is_no_fault(module: Module) -> None:
    questions = ModuleQuestions()
    ask(questions, module, SOON_S)
    module.answers = [result("late 1\n"), result("a 1\n")]
    module.serve()
    while not questions._beside[0].read():
        threading.Event().wait(0.001)
    assert ask(questions, module) == [Answer(KEY, "a 1\n")]


def test_a_program_that_never_looks_at_its_control_socket_is_no_fault(module: Module) -> None:
    questions = ModuleQuestions()
    for _ in range(40):  # more than its backlog takes
        assert ask(questions, module, 0.0, expected=False, everybody=True) == [Answer(KEY)]


def test_a_module_that_spoke_once_and_hangs_now_is_a_fault(module: Module) -> None:
    module.serve().answers = [result("a 1\n")]
    questions = ModuleQuestions()
    assert ask(questions, module, expected=False)[0].text
    ask(questions, module, SOON_S, expected=False)
    assert ask(questions, module, expected=False) == [Answer(KEY, failure="silent")]


def test_those_who_hang_hold_up_nobody_else(tmp_path: Path) -> None:
    modules = [Module(tmp_path / f"{number}") for number in range(100)]
    modules[-1].serve().answers = [result("a 1\n")]
    targets = [Target(("m/m", number, 1), str(one.path), True) for number, one in enumerate(modules)]
    answers = asyncio.run(ModuleQuestions().answers(targets, time.monotonic() + 1.0))
    assert Answer(("m/m", 99, 1), "a 1\n") in answers
    assert len(answers) == 100
    for module in modules:
        module.close()


def test_who_could_not_be_asked_in_time_is_said_to_be_late(module: Module) -> None:
    targets = [Target(("m/m", number, 1), str(module.path), True) for number in range(9)]
    answers = asyncio.run(ModuleQuestions().answers(targets, deadline=0.0))
    assert [one.failure for one in sorted(answers)] == [None] * 8 + ["too_late"]


def test_a_round_leaves_nothing_open(module: Module) -> None:
    module.serve().answers = [result("a 1\n")]
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        ask(ModuleQuestions(), module, SOON_S, everybody=True)
    module.close()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_a_socket_that_is_not_there_is_told_at_once(tmp_path: Path) -> None:
    targets = [Target(KEY, str(tmp_path / "none"), True)]
    answers = asyncio.run(ModuleQuestions().answers(targets, time.monotonic() + BOUND_S))
    assert answers == [Answer(KEY, failure="silent")]
