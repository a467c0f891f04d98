"""What README.md and CONTRIBUTING.md tell people to type exists, and what they link to is there."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from nexusctl.cli import nexusctl
from nexusctl.exits import MEANINGS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = ("README.md", "CONTRIBUTING.md", "ARCHITECTURE.md", "CHANGELOG.md")


def dev_lines() -> Iterator[str]:
    """Every `./dev …` of the pages, without comments."""
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for line in re.findall(r"(?:^|`|\$ |=\S+ )\./dev ([^`\n]+)", text, flags=re.MULTILINE):
            yield line.partition("  #")[0].strip()


def nexusctl_lines() -> Iterator[str]:
    """Every command line of nexusctl, those of the table included, the optional part of each taken as given."""
    yield from (line.removeprefix("ctl ") for line in dev_lines() if line.startswith("ctl "))
    for row in re.findall(r"^\| `nexusctl (.+?) \|", README, flags=re.MULTILINE):
        for line in re.findall(r"(?:^|`)([^`]+?)`", row):
            if line != ", ":
                yield re.sub(r"[\[\]]", "", line)


@pytest.mark.parametrize("line", sorted(set(nexusctl_lines())))
def test_a_command_of_the_readme_is_one_that_nexusctl_takes(line: str) -> None:
    words = shlex.split(line.replace("SHELL", "bash"))
    if words in (["stop"], ["restart"]):
        words.append("MODULE")
    group = nexusctl.make_context("nexusctl", words)
    assert isinstance(nexusctl, click.Group)
    command: click.Command = nexusctl
    context = group
    while isinstance(command, click.Group):
        name, found, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        assert name is not None and found is not None
        command, context = found, found.make_context(name, rest, parent=context)


def test_every_command_of_nexusctl_is_in_the_readme() -> None:
    told = {word for line in nexusctl_lines() for word in line.split()}
    assert set(nexusctl.commands) - told == set()


def test_the_words_of_dev_are_those_it_knows() -> None:
    script = (ROOT / "dev").read_text(encoding="utf-8")
    known = set(re.findall(r"^(\w+)\)", script.split("case $command in")[1], flags=re.MULTILINE))
    assert {line.split()[0] for line in dev_lines()} <= known
    assert set(re.findall(r"^\$0 (\w+)", script, flags=re.MULTILINE)) == known


def test_the_exit_statuses_are_those_of_nexusctl() -> None:
    table = README.split("| exit status | meaning |")[1].split("\n\n")[0]
    told = dict(re.findall(r"^\| (\d+) \| (.+) \|$", table, flags=re.MULTILINE))
    assert told == {str(status): meaning.replace("|", r"\|") for status, meaning in MEANINGS.items()}


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_is_there(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    named = set(re.findall(r"\]\(([^)#:]+)\)", text))
    named |= set(re.findall(r"`((?:docs|tests|examples|nexusd|nexusctl|\.ci)/[\w./-]+)`", text))
    assert {path for path in named if not (ROOT / path).exists()} == set()
