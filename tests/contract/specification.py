"""The contract with AEON, a copy of its text byte for byte, and the code blocks in it."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

PATH = Path(__file__).with_name("aeon_interface_specification.md")
TEXT = PATH.read_text(encoding="utf-8")
_FENCE = re.compile(r"^( *)```(\w+)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    language: str
    heading: str
    code: str


def _blocks() -> list[Block]:
    plain = _FENCE.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), TEXT)  # a comment in code is no heading
    headings = [(found.start(), found[1]) for found in _HEADING.finditer(plain)]
    return [
        Block(
            found[2],
            [text for start, text in headings if start < found.start()][-1],
            textwrap.dedent(found[3]),
        )
        for found in _FENCE.finditer(TEXT)
    ]


BLOCKS = _blocks()


def block(language: str, word: str) -> Block:
    """The one block of that language with this word in it."""
    found = [one for one in BLOCKS if one.language == language and word in one.code]
    assert len(found) == 1, f"{len(found)} blocks of {language} with {word!r}"
    return found[0]
