"""What the audit log costs: a command that does nothing but be written down, and a long log that is proved."""

from __future__ import annotations

import json
import os
import socket
import statistics
import threading
import time
from pathlib import Path

from bench.daemon import nexusd
from bench.rows import Figure, Row
from nexusctl.client import Client
from nexusd.domain.chain import Head, Mark, head_text, sealed

TIMES = 2000
RECORDS = 100_000
_COMMAND = b'{"jsonrpc":"2.0","id":1,"method":"stop_module","params":{"module_id":"a/none"}}\n'
_QUESTION = b'{"jsonrpc":"2.0","id":1,"method":"get_status","params":{"module_id":"a/none"}}\n'
_LIVENESS = b'{"jsonrpc":"2.0","id":1,"method":"check_liveness"}\n'


def measure() -> list[Row]:
    with nexusd() as daemon:
        Path(daemon.folder / "logs" / "audit").mkdir(parents=True)
        _fill(daemon.folder)
        daemon.start()
        daemon.await_started(0)
        asked, commanded = (_round_trips_ms(daemon.socket, line) for line in (_QUESTION, _COMMAND))
        proof_s, pauses = _proof(daemon.socket)
        written = _writes_ms(daemon.folder / "bare")
    what = "append and fdatasync of as many bytes"
    return [
        _row("a command's two lines, p50", commanded[49] - asked[49], what, written[49]),
        _row("a command's two lines, p99", commanded[98] - asked[98], what, written[98]),
        Row(
            f"verify, {RECORDS} records",
            Figure("verify", proof_s, "s"),
            Figure("slowest liveness answer meanwhile", max(pauses), "s"),
        ),
    ]


def _row(name: str, ours: float, what: str, theirs: float) -> Row:
    return Row(name, Figure(name, ours, "ms"), Figure(what, theirs, "ms"))


def _fill(folder: Path) -> None:
    content = json.dumps({"method": "stop_module", "outcome": "ok", "principal": "root", "uid": 0}).encode()
    mark = Mark()
    with open(folder / "logs" / "audit" / "audit.000000000001.log", "wb") as file:
        for _ in range(RECORDS):
            line, mark = sealed(content, mark)
            file.write(line + b"\n")
    (folder / "state").mkdir()
    (folder / "state" / "audit.head").write_text(head_text(Head(mark)))


def _round_trips_ms(path: str, request: bytes, times: int = TIMES) -> list[float]:
    """The percentiles, from 1 to 99."""
    taken = []
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        for _ in range(times):
            began = time.perf_counter()
            sock.sendall(request)
            while not sock.recv(1 << 16).endswith(b"\n"):
                pass
            taken.append((time.perf_counter() - began) * 1000)
    return statistics.quantiles(taken, n=100)


def _proof(path: str) -> tuple[float, list[float]]:
    """How long it takes, and how long others waited for an answer meanwhile."""
    pauses: list[float] = [0.0]
    done = threading.Event()

    def keep_asking() -> None:
        while not done.is_set():
            pauses.append(max(_round_trips_ms(path, _LIVENESS, 100)) / 1000)

    asking = threading.Thread(target=keep_asking)
    with Client(path, timeout=120) as client:
        asking.start()
        began = time.perf_counter()
        told = client.call("verify_audit")
        taken = time.perf_counter() - began
    done.set()
    asking.join()
    assert told["whole"], told
    return taken, pauses


def _writes_ms(path: Path) -> list[float]:
    line = b"x" * 330 + b"\n"
    taken = []
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for _ in range(TIMES):
        began = time.perf_counter()
        os.write(descriptor, line)
        os.write(descriptor, line)
        os.fdatasync(descriptor)
        taken.append((time.perf_counter() - began) * 1000)
    os.close(descriptor)
    return statistics.quantiles(taken, n=100)
