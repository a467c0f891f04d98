"""A page of metrics as text: families, each with its head once and its lines, in Prometheus's format or OpenMetrics.

prometheus_client writes the heads, chooses the format and formats numbers. The lines are written here: its encoder
takes 10 to 20 µs for each, and 500 modules have some 15,000.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.utils import floatToGoString

from nexusd.domain.counts import Spread

METRIC_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
LABEL_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_END = b"# EOF\n"
_SUFFIXES = {
    "counter": ("_total", "_created"),
    "gauge": ("",),
    "unknown": ("",),
    "summary": ("", "_sum", "_count", "_created"),
    "histogram": ("_bucket", "_sum", "_count", "_created"),
}
TYPES = frozenset(_SUFFIXES)


class Format(NamedTuple):
    content_type: str
    encode: Callable[[Any], bytes]

    @property
    def is_open_metrics(self) -> bool:
        return self.content_type.startswith("application/openmetrics-text")


def chosen(accept: str) -> Format:
    """The format that a client's Accept header asks for."""
    encode, content_type = choose_encoder(accept)
    return Format(content_type, encode)


class Family:
    """The lines of one family, from wherever they come."""

    __slots__ = ("help", "kind", "lines", "name")

    def __init__(self, name: str, kind: str, help: str) -> None:
        """name: without `_total`, as OpenMetrics has it."""
        self.name = name
        self.kind = kind
        self.help = help
        self.lines: list[str] = []

    @property
    def sample_names(self) -> set[str]:
        return {self.name, *(self.name + suffix for suffix in _SUFFIXES[self.kind])}


class Page:
    """Families by name. A name belongs to the family that took it first."""

    def __init__(self) -> None:
        self._families: dict[str, Family] = {}
        self._owners: dict[str, str] = {}

    def family(self, name: str, kind: str, help: str) -> Family | None:
        """The one of that name, made if need be; None where name or type contradict what is there."""
        found = self._families.get(name)
        if found is not None:
            return found if found.kind == kind else None
        made = Family(name, kind, help)
        if any(one in self._owners for one in made.sample_names):
            return None
        self._owners |= dict.fromkeys(made.sample_names, name)
        self._families[name] = made
        return made

    def parts(self, form: Format) -> Iterator[bytes]:
        """The text, a head or the lines of a family at a time."""
        for family in self._families.values():
            if family.lines:
                yield _head(family, form)
                yield "".join(family.lines).encode()
        if form.is_open_metrics:
            yield _END


class _Alone:
    """A family without samples, as prometheus_client wants it."""

    def __init__(self, family: Family) -> None:
        self._metric = Metric(family.name, family.help, family.kind)

    def collect(self) -> Iterator[Metric]:
        yield self._metric


def _head(family: Family, form: Format) -> bytes:
    return form.encode(_Alone(family)).removesuffix(_END)


def labels_text(labels: Mapping[str, str]) -> str:
    """What stands between the braces."""
    return ",".join([f'{name}="{escaped(labels[name])}"' for name in sorted(labels)])


def escaped(value: str) -> str:
    if value.isalnum():
        return value
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def number_text(value: float) -> str:
    """As Go writes it: 0.25, 1e+07, +Inf."""
    return str(floatToGoString(value))  # type: ignore[no-untyped-call]


def line(name: str, labels: str, value: float) -> str:
    number = number_text(value)
    return f"{name}{{{labels}}} {number}\n" if labels else f"{name} {number}\n"


def is_possible(suffix: str, value: float) -> bool:
    """Whether OpenMetrics has such a value in a sample that is named like its family and this."""
    match suffix:
        case "_bucket" | "_count":
            return value >= 0 and float(value).is_integer()
        case "_total":
            return value >= 0
        case "_sum":
            return not math.isnan(value)
    return True


def spread_lines(name: str, labels: str, spread: Spread) -> Iterable[str]:
    """A histogram's lines: counts up to each bound, then their number and sum."""
    comma = "," if labels else ""
    reached = 0
    for bound, count in zip((*spread.bounds, float("inf")), spread.numbers, strict=True):
        reached += count
        yield line(f"{name}_bucket", f'le="{number_text(bound)}"{comma}{labels}', reached)
    yield line(f"{name}_count", labels, reached)
    yield line(f"{name}_sum", labels, spread.total)
