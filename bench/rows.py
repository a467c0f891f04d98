"""A measured figure beside its reference, and the table they make. What is measured the other files decide.

Aims were set on one machine. On another an aim is scaled by what stands beside the result, where that is known
of the first machine too, else by how long a bare Python takes to start.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

BARE_PYTHON_THERE_MS = 9.3  # `python -c pass` where the aims were set
_RATES = ("calls/s", "MB/s")
_TIMES = ("ms", "s")


@dataclass(frozen=True, slots=True)
class Figure:
    what: str
    value: float
    unit: str

    def __str__(self) -> str:
        return f"{shown(self.value)} {self.unit}"


@dataclass(frozen=True, slots=True)
class Aim:
    """In the unit of the result. `beside` is what the reference took where the aim was set, if that is known."""

    value: float
    beside: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    measure: str
    result: Figure
    beside: Figure
    aim: Aim | None = None

    @property
    def ratio(self) -> float:
        return self.result.value / self.beside.value if self.beside.value else 0.0

    def aim_here(self, slowness: float) -> float | None:
        """The aim for this machine; slowness is how many times longer it takes for the same work."""
        if self.aim is None:
            return None
        if self.aim.beside is not None:
            return self.aim.value * self.beside.value / self.aim.beside
        if self.result.unit in _TIMES:
            return self.aim.value * slowness
        return self.aim.value / slowness if self.result.unit in _RATES else self.aim.value

    def is_met(self, slowness: float) -> bool | None:
        aim = self.aim_here(slowness)
        if aim is None:
            return None
        return self.result.value >= aim if self.result.unit in _RATES else self.result.value <= aim

    def as_json(self, slowness: float) -> dict[str, Any]:
        return {
            "measure": self.measure,
            "value": self.result.value,
            "unit": self.result.unit,
            "beside": self.beside.what,
            "beside_value": self.beside.value,
            "beside_unit": self.beside.unit,
            "ratio": self.ratio,
            "aim": self.aim.value if self.aim else None,
            "aim_here": self.aim_here(slowness),
            "met": self.is_met(slowness),
        }


def shown(value: float) -> str:
    """Three digits that count."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def lines(rows: Iterable[Row], slowness: float) -> list[str]:
    """The rows of a Markdown table."""
    return [f"| {' | '.join(_cells(row, slowness))} |" for row in rows]


HEAD = ["| measure | result | beside it | ratio | aim here | |", "|---|---|---|---|---|---|"]


def _cells(row: Row, slowness: float) -> tuple[str, ...]:
    aim = row.aim_here(slowness)
    verdict = {None: "", True: "met", False: "missed"}[row.is_met(slowness)]
    sign = "≥" if row.result.unit in _RATES else "≤"
    aimed = "" if aim is None else f"{sign} {shown(aim)} {row.result.unit}"
    beside = f"{row.beside}, {row.beside.what}"
    return row.measure, str(row.result), beside, shown(row.ratio), aimed, verdict
