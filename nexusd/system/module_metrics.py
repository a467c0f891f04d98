"""Modules' own metrics on nexusd's page: parsed, labelled with module and replica, merged; what is wrong is counted.

Asking for them is `module_questions`'. Whatever a module says, the rest of the page stays as it is.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, TextIO, cast

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_fd_to_metric_families

from nexusd.system.metrics_text import LABEL_NAME, METRIC_NAME, TYPES, Page, labels_text, line

MOST_SAMPLES = 10_000  # of one replica
MOST_FAMILIES = 1000  # the head of each costs as much as several samples
LONGEST_LINE = 16_384
MODULE_SAMPLES = 20_000  # of all replicas of a module
MODULE_S = 1.0  # of the processor: a host that has much else to do is no fault of the module
MODULES_BYTES = 8 << 20  # of the page, what all modules together may take
RESERVED = "nexus_"
UNDOCUMENTED = "Its module does not say what it means"
_GIVEN = ("module", "replica")


class Refused(Exception):
    """A reason in one word, which becomes a label."""


class Told(NamedTuple):
    """What a replica says of itself."""

    module_id: str
    replica: int
    text: str


class _Block(NamedTuple):
    """A replica's share of a family."""

    metric: Metric
    lines: list[str]


class _Budget:
    """What is left of a module's share."""

    def __init__(self) -> None:
        self.samples = MODULE_SAMPLES
        self.seconds = MODULE_S


class Merging:
    """Of one scrape. `errors` counts by module and reason."""

    def __init__(self, page: Page, deadline: float) -> None:
        """deadline: monotonic seconds, after which no further text is looked at."""
        self._page = page
        self._deadline = deadline
        self._room = MODULES_BYTES
        self._budgets: defaultdict[str, _Budget] = defaultdict(_Budget)
        self.errors: Counter[tuple[str, str]] = Counter()
        self._seen: set[tuple[str, str]] = set()

    def merge(self, told: Iterable[Told]) -> None:
        """Take over what can be taken. A text that cannot be read to its end is left out as a whole.

        Whoever says little is read first, so that those who say too much cost nobody else anything; a name belongs
        to the first in the order of modules all the same, or it would change hands from scrape to scrape.
        """
        read = [(one.module_id, one.replica, self._read(one)) for one in _least_first(told)]
        for module_id, _, blocks in sorted(read, key=lambda one: one[:2]):
            for block in blocks:
                if not self._take(block):
                    self.errors[module_id, "conflict"] += 1

    def _read(self, told: Told) -> list[_Block]:
        budget, began = self._budgets[told.module_id], time.thread_time()
        try:
            return self._within(budget, told, began + budget.seconds)
        except Refused as refused:
            self.errors[told.module_id, str(refused)] += 1
            return []
        finally:
            budget.seconds -= time.thread_time() - began

    def _within(self, budget: _Budget, told: Told, until: float) -> list[_Block]:
        families = _parsed(self._lines(told.text, budget, until))
        blocks = self._blocks(families, told)
        size = sum(len(block.metric.documentation) + sum(map(len, block.lines)) for block in blocks)
        if len({one.name for one in families}) > MOST_FAMILIES or size > self._room:
            raise Refused("too_large")
        self._room -= size
        return blocks

    def _lines(self, text: str, budget: _Budget, until: float) -> Iterator[str]:
        left = MOST_SAMPLES
        text.encode()  # half of a surrogate pair would spoil the whole page
        for told in text.split("\n"):
            is_sample = not told.startswith("#")
            left -= is_sample
            budget.samples -= is_sample
            if left < 0 or budget.samples < 0 or len(told) > LONGEST_LINE:
                raise Refused("too_large")
            if time.monotonic() > self._deadline or time.thread_time() > until:
                raise Refused("too_late")
            yield told

    def _blocks(self, families: Iterable[Metric], told: Told) -> list[_Block]:
        self._seen = set()
        blocks = []
        for metric in families:
            try:
                blocks.append(self._block(metric, {"module": told.module_id, "replica": str(told.replica)}))
            except Refused as refused:
                self.errors[told.module_id, str(refused)] += 1
        return blocks

    def _block(self, metric: Metric, given: Mapping[str, str]) -> _Block:
        twice = metric.type == "counter" and metric.name.endswith("_total")
        if metric.type not in TYPES or twice or not METRIC_NAME.fullmatch(metric.name):
            raise Refused("invalid")
        if metric.name.startswith(RESERVED):
            raise Refused("conflict")
        return _Block(metric, self._written(metric, given))

    def _take(self, block: _Block) -> bool:
        """False when another has the name."""
        metric = block.metric
        family = self._page.family(metric.name, metric.type, metric.documentation or UNDOCUMENTED)
        if family is not None:
            family.lines += block.lines
        return family is not None

    def _written(self, metric: Metric, given: Mapping[str, str]) -> list[str]:
        """Each series once, without timestamps: they are as of now."""
        lines = []
        for sample in metric.samples:
            if sample.name.endswith("_created") and metric.type != "gauge":
                continue
            labels = labels_text(_relabelled(sample.labels, given))
            if (sample.name, labels) in self._seen:
                raise Refused("duplicate")
            self._seen.add((sample.name, labels))
            lines.append(line(sample.name, labels, sample.value))
        return lines


def _least_first(told: Iterable[Told]) -> list[Told]:
    """By how much their module has said up to and with them, the shortest first: of many replicas each costs more."""
    said: Counter[str] = Counter()
    costs = []
    for one in sorted(told, key=lambda one: (len(one.text), one.module_id, one.replica)):
        said[one.module_id] += len(one.text)
        costs.append((said[one.module_id], one))
    return [one for _, one in sorted(costs)]


def _parsed(lines: Iterator[str]) -> list[Metric]:
    try:
        return list(text_fd_to_metric_families(cast(TextIO, lines)))
    except Refused:
        raise
    # The border to a module's words: the parser raises whatever its slicing and splitting raise.
    except Exception:
        raise Refused("unparsable") from None


def _relabelled(labels: Mapping[str, str], given: Mapping[str, str]) -> dict[str, str]:
    """A label of the module's own that is named like one of ours is exported_…, as Prometheus does it."""
    if not all(LABEL_NAME.fullmatch(name) and not name.startswith("__") for name in labels):
        raise Refused("invalid")
    told = {name: value for name, value in labels.items() if name not in _GIVEN}
    for name in _GIVEN:
        if name in labels:
            fresh = f"exported_{name}"
            while fresh in told:
                fresh = f"exported_{fresh}"
            told[fresh] = labels[name]
    return {**told, **given}
