"""The arguments that AEON's status.py and command.py share. live.py reads its own: argparse is slow to import."""

from __future__ import annotations

import argparse

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


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds <= LONGEST_S:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and {LONGEST_S:.0f} seconds")
    return seconds
