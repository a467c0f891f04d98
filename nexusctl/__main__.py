"""The entry of nexusctl: a plain `status` is answered at once, all else goes to cli.py.

Importing click takes longer than asking the daemon, and monitoring asks for the status every few seconds.
"""

from __future__ import annotations

import os
import sys

from nexusctl.exits import INTERRUPTED, PIPE_CLOSED
from nexusctl.invocation import Invocation, guarded
from nexusctl.output import FORMATS
from nexusctl.status import show_status

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

OPTIONS = {"--socket": "socket", "-o": "output", "--output": "output"}


def plain_status(arguments: list[str]) -> tuple[dict[str, str], list[str]] | None:
    """The options and the modules of a plain `status`; None for whatever click had better read."""
    options: dict[str, str] = {}
    words: list[str] = []
    rest = iter(arguments)
    for word in rest:
        if word in OPTIONS:
            options[OPTIONS[word]] = next(rest, "")
        elif word.startswith("-") or not word:
            return None
        else:
            words.append(word)
    known = options.get("output", "table") in FORMATS and options.get("socket") != ""
    if words[:1] != ["status"] or not known or "_NEXUSCTL_COMPLETE" in os.environ:
        return None
    return options, words[1:]


def run(arguments: list[str]) -> int:
    plain = plain_status(arguments)
    if plain is not None:
        options, modules = plain
        invocation = Invocation(options.get("socket"), options.get("output", "table"))
        return guarded(invocation, show_status, modules)
    from nexusctl.cli import run_command  # noqa: PLC0415  see the head of this file

    return run_command(arguments)


def main() -> NoReturn:
    try:
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
        status = run(sys.argv[1:])
        sys.stdout.flush()
    except KeyboardInterrupt:
        status = INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the flush at exit would complain
        status = PIPE_CLOSED
    sys.exit(status)


if __name__ == "__main__":
    main()
