"""The entry of nexusctl: a plain `status` or `health` is answered at once, all else goes to cli.py.

Importing click takes longer than asking the daemon, and monitoring asks every few seconds.
"""

from __future__ import annotations

import os
import sys

from nexusctl.exits import INTERRUPTED, PIPE_CLOSED
from nexusctl.health import show_health
from nexusctl.invocation import Invocation, guarded
from nexusctl.output import FORMATS
from nexusctl.status import show_status

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

OPTIONS = {"--socket": "socket", "-o": "output", "--output": "output"}
HEALTH_OPTIONS = {**OPTIONS, "--timeout": "timeout"}
FLAGS = {"-v": "verbose", "--verbose": "verbose", "--perfdata": "perfdata"}


def plain_status(arguments: list[str]) -> tuple[dict[str, str], list[str]] | None:
    """The options and the modules of a plain `status`; None for whatever click had better read."""
    plain = plain_options(arguments, OPTIONS)
    return (plain[0], plain[1][1:]) if plain is not None and plain[1][:1] == ["status"] else None


def plain_options(arguments: list[str], known: dict[str, str]) -> tuple[dict[str, str], list[str]] | None:
    """Options, each with its value, and words; None where there is anything else."""
    options: dict[str, str] = {}
    words: list[str] = []
    rest = iter(arguments)
    for word in rest:
        if word in known:
            options[known[word]] = next(rest, "")
        elif word.startswith("-") or not word:
            return None
        else:
            words.append(word)
    is_sound = options.get("output", "table") in FORMATS and options.get("socket") != ""
    return (options, words) if is_sound and "_NEXUSCTL_COMPLETE" not in os.environ else None


def plain_health(arguments: list[str]) -> tuple[dict[str, str], set[str]] | None:
    """The options and flags of a plain `health`; None for whatever click had better read."""
    flags = {FLAGS[word] for word in arguments if word in FLAGS}
    plain = plain_options([word for word in arguments if word not in FLAGS], HEALTH_OPTIONS)
    if plain is None or plain[1] != ["health"]:
        return None
    try:
        is_time = float(plain[0].get("timeout", "1")) > 0
    except ValueError:
        return None
    return (plain[0], flags) if is_time else None


def run(arguments: list[str]) -> int:
    health = plain_health(arguments)
    if health is not None:
        options, flags = health
        timeout = float(options["timeout"]) if "timeout" in options else None
        invocation = Invocation(options.get("socket"), options.get("output", "table"), timeout)
        return guarded(invocation, show_health, "verbose" in flags, "perfdata" in flags)
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
