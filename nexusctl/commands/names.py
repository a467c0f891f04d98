"""A command that is not there, and what it is called here: a mistyped name, or the word of another tool."""

from __future__ import annotations

from difflib import get_close_matches
from typing import NoReturn

import click

ELSEWHERE = {
    "ps": "status or modules",
    "list": "status or modules",
    "ls": "status or modules",
    "show": "status",
    "log": "logs",
    "tail": "logs",
    "enable": "start",
    "disable": "stop",
    "kill": "stop",
    "update": "reload",
    "replicas": "scale",
    "repair": "heal",
    "fix": "heal",
    "set": "config set",
    "get": "config get",
    "help": "--help",
    "version": "--version",
}
OF_GROUP = {
    "config": {"show": "get", "list": "get", "ls": "get", "help": "--help"},
    "chaos": {
        "start": "run",
        "trigger": "run",
        "get": "show",
        "status": "show",
        "ls": "list",
        "stop": "abort",
    },
}
NEVER_GUESSED = frozenset({"shutdown"})  # too much ends with it for a slip of the finger


class Commands(click.Group):
    """A group whose error for an unknown command names the one that was meant."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        word = args[0]
        if self.get_command(ctx, word) is None and not word.startswith("-") and not ctx.resilient_parsing:
            self._refuse(ctx, word)
        return super().resolve_command(ctx, args)

    def _refuse(self, context: click.Context, word: str) -> NoReturn:
        elsewhere = OF_GROUP.get(context.info_name or "", {}) if context.parent else ELSEWHERE
        guessed = sorted(set(self.commands) - NEVER_GUESSED)
        begun = [one for one in guessed if one.startswith(word)]
        close = begun if len(begun) == 1 else get_close_matches(word, guessed, n=1)
        meant = elsewhere.get(word) or next(iter(close), None)
        raise click.UsageError(
            f"no such command: {word}" + (f"; did you mean {meant}?" if meant else ""), context
        )
