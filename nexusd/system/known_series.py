"""The series that each replica had at the last scrape: of the same ones again only the values are read.

prometheus_client's parser takes 30 µs for a line, this one. Whatever is not exactly as before is the parser's.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

from nexusd.system.metrics_text import is_possible, number_text

LONGEST = 16_384  # characters of a text that is remembered
LONGEST_NUMBER = 32

Key = tuple[str, int]  # module, replica's index


class Block(NamedTuple):
    """A replica's share of a family, as it stands on the page."""

    name: str
    kind: str
    help: str
    lines: Sequence[str]


class _Shape(NamedTuple):
    text: tuple[str, ...]  # what was said, line by line, without values
    blocks: list[Block]  # what stands on the page, without values
    suffixes: list[list[str]]  # of the names of its samples


class KnownSeries:
    def __init__(self) -> None:
        self._shapes: dict[Key, _Shape] = {}

    def again(self, key: Key, text: str) -> list[Block] | None:
        """What the parser would make of it; None: that has to be asked."""
        shape = self._shapes.get(key)
        return None if shape is None else _filled(shape, text)

    def learn(self, key: Key, text: str, blocks: list[Block]) -> None:
        """blocks: what the parser made of the text. Kept if the values alone lead from one to the other."""
        self._shapes.pop(key, None)
        if len(text) > LONGEST:
            return
        said, _ = _split(text)
        if not all(map(_is_plain, said)):
            return
        shaped = [one._replace(lines=tuple(map(_beginning, one.lines))) for one in blocks]
        shape = _Shape(said, shaped, [[_suffix(one, line) for line in one.lines] for one in shaped])
        if _filled(shape, text) == blocks:
            self._shapes[key] = shape

    def forget_all_but(self, keys: Collection[Key]) -> None:
        for key in self._shapes.keys() - keys:
            del self._shapes[key]


def _filled(shape: _Shape, text: str) -> list[Block] | None:
    said, values = _split(text)
    if said != shape.text or len(values) != sum(len(block.lines) for block in shape.blocks):
        return None
    try:
        told = iter(values)
        return [
            block._replace(
                lines=[
                    f"{beginning} {_number(next(told), suffix)}\n"
                    for beginning, suffix in zip(block.lines, suffixes, strict=True)
                ]
            )
            for block, suffixes in zip(shape.blocks, shape.suffixes, strict=True)
        ]
    except ValueError:
        return None


def _split(text: str) -> tuple[tuple[str, ...], list[str]]:
    """Its lines without the values of samples, and the values."""
    said, values = [], []
    for line in text.split("\n"):
        if line and line[0] != "#":
            line, _, value = line.rpartition(" ")
            values.append(value)
        said.append(line)
    return tuple(said), values


def _is_plain(line: str) -> bool:
    """Not a sample with a timestamp, whose value would stand before that."""
    return line[:1] == "#" or line[-1:] == "}" or " " not in line


def _beginning(line: str) -> str:
    return line.rpartition(" ")[0]


def _suffix(block: Block, beginning: str) -> str:
    return beginning.partition("{")[0].removeprefix(block.name)


def _number(value: str, suffix: str) -> str:
    """As the parser takes it. Raises ValueError for what only that can judge."""
    if "_" in value or len(value) > LONGEST_NUMBER:
        raise ValueError(value)
    number = float(value)
    if not is_possible(suffix, number):
        raise ValueError(value)
    return number_text(number)
