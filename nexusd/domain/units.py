"""Durations and sizes as an operator writes them ("1m30s", "256M"), and as numbers inside.

Reads one value and refuses it with a ValueError; which key it belongs to is told by `nexusd.domain.fields`.
"""

import math
import re
from typing import Any, ClassVar, Self

# Ten years: far beyond any sensible time-out, and small enough that no timer of the kernel overflows.
LONGEST_S = 10 * 365 * 86_400
LARGEST_BYTES = 2**63 - 1

_NUMBER = r"(\d{1,12}(?:\.\d{1,9})?)"
_DURATION_UNITS = {"d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_DURATION = re.compile("".join(f"(?:{_NUMBER}{unit})?" for unit in _DURATION_UNITS), re.ASCII)
_SIZE_UNITS = {"k": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = re.compile(f"{_NUMBER}([kKMGT])", re.ASCII)


class Seconds(float):
    """A duration in seconds, zero or more."""

    expected: ClassVar[str] = 'a duration: "10s", "500ms", "1m30s", or a number of seconds'
    pattern: ClassVar[str] = "^(?=.)" + _DURATION.pattern + "$"

    @classmethod
    def parse(cls, value: object) -> Self:
        """The duration that a manifest's text or number means."""
        seconds = _duration(value) if isinstance(value, str) else _number(value)
        if seconds is None or not 0 <= seconds <= LONGEST_S:
            raise ValueError(f"Expected {cls.expected}")
        return cls(seconds)

    def text(self) -> str:
        """The duration as it would stand in a manifest."""
        amount, unit = (self * 1000, "ms") if 0 < self < 1 else (self, "s")
        return f"{amount:.9f}".rstrip("0").rstrip(".") + unit


class Size(int):
    """A size in bytes, at least one."""

    expected: ClassVar[str] = 'a size: "64k", "256M", "1G" (powers of 1024), or a number of bytes above 0'
    pattern: ClassVar[str] = "^" + _SIZE.pattern + "$"

    @classmethod
    def parse(cls, value: object) -> Self:
        """The size that a manifest's text or number means."""
        size = _size(value) if isinstance(value, str) else value
        if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= LARGEST_BYTES:
            raise ValueError(f"Expected {cls.expected}")
        return cls(size)

    def text(self) -> str:
        """The size as it would stand in a manifest."""
        for unit, factor in reversed(_SIZE_UNITS.items()):
            if self % factor == 0:
                return f"{self // factor}{unit}"
        return str(int(self))


def parse_unit(kind: type, value: Any) -> Any:
    """msgspec's `dec_hook`: how a field of a type it does not know is read."""
    if issubclass(kind, Seconds | Size):
        return kind.parse(value)
    raise NotImplementedError(f"no reader for {kind}")


def unit_number(value: object) -> float | int:
    """msgspec's `enc_hook`: a duration or a size as the plain number that JSON knows."""
    if isinstance(value, Seconds):
        return float(value)
    if isinstance(value, Size):
        return int(value)
    raise NotImplementedError(f"no number for {type(value)}")


def _duration(text: str) -> float | None:
    match = _DURATION.fullmatch(text)
    if match is None or not text:
        return None
    amounts = zip(match.groups(), _DURATION_UNITS.values(), strict=True)
    return math.fsum(float(amount) * factor for amount, factor in amounts if amount is not None)


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # Comparing before converting: float() of a huge integer raises OverflowError.
    return float(value) if 0 <= value <= LONGEST_S else None


def _size(text: str) -> int | None:
    match = _SIZE.fullmatch(text)
    if match is None:
        return None
    amount, unit = match.groups()
    return int(float(amount) * _SIZE_UNITS["k" if unit == "K" else unit])
