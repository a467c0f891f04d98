"""What AEON's status.py and command.py share as programs: arguments, a quiet end. live.py has its own, quicker ones."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from nexusctl.exits import PIPE_CLOSED

LONGEST_S = 86_400.0


def parser(
    program: str, description: str, timeout: float | None, otherwise: str = ""
) -> argparse.ArgumentParser:
    """With --timeout. A wrong argument ends the program: usage on stderr, exit status 2."""
    arguments = argparse.ArgumentParser(prog=program, description=description, allow_abbrev=False)
    arguments.add_argument(
        "--timeout",
        type=_seconds,
        default=timeout,
        metavar="SECONDS",
        help=f"how long it may take at the most; {otherwise or f'{timeout:g} if not given'}",
    )
    return arguments


def leave(main: Callable[[list[str]], int]) -> NoReturn:
    """Run as a program; who read the output may have gone (`| head`)."""
    try:
        status = main(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the flush at exit would complain
        status = PIPE_CLOSED
    sys.exit(status)


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds <= LONGEST_S:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and {LONGEST_S:.0f} seconds")
    return seconds
