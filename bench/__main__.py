"""`python -m bench [NAME…] [--json FILE]`: runs the measures and prints their rows as a Markdown table."""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from bench import (
    audit,
    crash,
    idle,
    logs,
    modules,
    nexusctl,
    probes,
    programs,
    reload,
    scrape,
    startup,
    status,
)
from bench.processes import slowness
from bench.rows import HEAD, Row, lines

MEASURES: dict[str, Callable[[], list[Row]]] = {
    "status": status.measure,
    "nexusctl": nexusctl.measure,
    "probes": probes.measure,
    "startup": startup.measure,
    "crash": crash.measure,
    "programs": programs.measure,
    "modules": modules.measure,
    "idle": idle.measure,
    "logs": logs.measure,
    "audit": audit.measure,
    "reload": reload.measure,
    "scrape": scrape.measure,
}


def main() -> None:
    arguments = _parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leaves through every `finally`
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # what is installed has its bytecode beside it
    slow = slowness()
    print(f"{_machine()}; a bare Python starts {slow:.2f} times slower than where the aims were set\n")
    print("\n".join(HEAD), flush=True)
    rows: list[Row] = []
    for name in arguments.names or MEASURES:
        fresh = MEASURES[name]()
        rows += fresh
        print("\n".join(lines(fresh, slow)), flush=True)
    if arguments.json:
        told = {"machine": _machine(), "slowness": slow, "rows": [row.as_json(slow) for row in rows]}
        Path(arguments.json).write_text(json.dumps(told, indent=2) + "\n")


def _machine() -> str:
    return f"{os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="Measures nexusd beside bare programs."
    )
    parser.add_argument(
        "names", metavar="NAME", nargs="*", help=f"one of: {', '.join(MEASURES)}; all if none"
    )
    parser.add_argument("--json", metavar="FILE", help="write the rows there, too")
    return parser


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
