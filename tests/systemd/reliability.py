"""What was measured when nexusd was killed, as the table of docs/reliability.md; and who asks the API all the while."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from nexusctl.nexus_client import NexusClient
from nexusctl.unreachable import Unreachable
from nexusctl.wire import RpcError
from tests.systemd.booted import BOUND_S

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"
_BEGIN, _END = "<!-- measured -->\n", "<!-- end of what was measured -->\n"
_HEAD = (
    "fault",
    "times",
    "state of the modules",
    "promised",
    "longest wait of a request: median, worst",
    "modules restarted",
    "lines lost",
)


class Asker:
    """Somebody who asks the API without pause, and how long each request had to wait."""

    def __init__(self, path: Path) -> None:
        self._client = NexusClient(path, timeout=BOUND_S)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self.waits: list[tuple[float, float]] = []  # when it was answered, how long that took
        self.failures: list[str] = []

    def __enter__(self) -> Asker:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(2 * BOUND_S)
        self._client.close()

    def _ask(self) -> None:
        while not self._over.is_set():
            begun = time.monotonic()
            try:
                self._client.get_status()
            except (Unreachable, RpcError) as error:
                self.failures.append(str(error))
            ended = time.monotonic()
            self.waits.append((ended, ended - begun))
            self._over.wait(0.005)

    def longest_since(self, begun: float) -> float:
        return max((wait for ended, wait in self.waits if ended >= begun), default=0.0)


@dataclass
class Faults:
    """All faults of one kind."""

    name: str
    promised: str
    scenes: list[str] = field(default_factory=list)
    waits_s: list[float] = field(default_factory=list)

    def row(self, restarted: int, lost: int) -> tuple[str, ...]:
        found = Counter(self.scenes)
        scenes = ", ".join(f"{scene} {found[scene]}" for scene in sorted(found))
        waits = f"{1000 * median(self.waits_s):.0f} ms, {1000 * max(self.waits_s):.0f} ms"
        return self.name, str(len(self.scenes)), scenes, self.promised, waits, str(restarted), str(lost)


def table(rows: Iterable[tuple[str, ...]]) -> str:
    lines = [_HEAD, tuple("---" for _ in _HEAD), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write(measured: str, document: Path = DOCUMENT) -> None:
    text = document.read_text()
    before, rest = text.split(_BEGIN)
    _, after = rest.split(_END)
    document.write_text(f"{before}{_BEGIN}{measured}{_END}{after}")


def claims(text: str) -> list[tuple[str, str, str, str]]:
    """Of each row in a text: fault, promise, modules restarted and lines lost. The rest differs from run to run."""
    cells = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return [(row[0], row[3], row[5], row[6]) for row in cells[2:] if len(row) == len(_HEAD)]
