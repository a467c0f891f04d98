"""Modules' own metrics on nexusd's page: parsed, labelled with module and replica, merged; what is wrong is counted.

Asking for them is `module_questions`'. Whatever a module says, the rest of the page stays as it is.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, TextIO, cast

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_fd_to_metric_families

from nexusd.system.known_series import Block, KnownSeries
from nexusd.system.metrics_text import LABEL_NAME, METRIC_NAME, TYPES, Page, is_possible, labels_text, line

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

    @property
    def key(self) -> tuple[str, int]:
        return self.module_id, self.replica


class _Budget:
    """What is left of a module's share."""

    def __init__(self) -> None:
        self.samples = MODULE_SAMPLES
        self.seconds = MODULE_S


class Merging:
    """Of one scrape. `errors` counts by module and reason.

    Each is read in the order of `least_first`; a name belongs to the first in the order of modules all the same, or
    it would change hands from scrape to scrape.
    """

    def __init__(self, page: Page, deadline: float, known: KnownSeries) -> None:
        """deadline: monotonic seconds, after which no further text is looked at."""
        self._page = page
        self._deadline = deadline
        self._known = known
        self._room = MODULES_BYTES
        self._budgets: defaultdict[str, _Budget] = defaultdict(_Budget)
        self.errors: Counter[tuple[str, str]] = Counter()
        self._seen: set[tuple[str, str]] = set()

    def reread(self, told: Told) -> list[Block] | None:
        """What can be taken over where the series are those of the last scrape; None: `parse` has to say."""
        blocks = self._known.again(told.key, told.text)
        if blocks is None or time.monotonic() > self._deadline:
            return None
        budget, samples, size = self._budgets[told.module_id], _samples(blocks), _size(blocks)
        if samples > budget.samples or size > self._room:
            return None
        budget.samples -= samples
        self._room -= size
        return blocks

    def parse(self, told: Told) -> list[Block]:
        """What can be taken over. A text that cannot be read to its end is left out as a whole."""
        budget, began = self._budgets[told.module_id], time.thread_time()
        try:
            return self._within(budget, told, began + budget.seconds)
        except Refused as refused:
            self.errors[told.module_id, str(refused)] += 1
            return []
        finally:
            budget.seconds -= time.thread_time() - began

    def take(self, read: Iterable[tuple[Told, list[Block]]]) -> Iterator[None]:
        """Put it on the page, a replica at a time."""
        for told, blocks in sorted(read, key=lambda one: one[0].key):
            for block in blocks:
                if not self._take(block):
                    self.errors[told.module_id, "conflict"] += 1
            yield

    def _within(self, budget: _Budget, told: Told, until: float) -> list[Block]:
        given = {"module": told.module_id, "replica": str(told.replica)}
        blocks, names, wrong = [], set(), []
        self._seen.clear()
        for metric in _parsed(self._lines(told.text, budget, until)):
            names.add(metric.name)
            try:
                blocks.append(self._block(metric, given))
            except Refused as refused:
                wrong.append(str(refused))
        if len(names) > MOST_FAMILIES or (size := _size(blocks)) > self._room:
            raise Refused("too_large")
        self._room -= size
        self.errors.update((told.module_id, reason) for reason in wrong)
        if not wrong:
            self._known.learn(told.key, told.text, blocks)
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

    def _block(self, metric: Metric, given: Mapping[str, str]) -> Block:
        twice = metric.type == "counter" and metric.name.endswith("_total")
        if metric.type not in TYPES or twice or not METRIC_NAME.fullmatch(metric.name):
            raise Refused("invalid")
        if metric.name.startswith(RESERVED):
            raise Refused("conflict")
        return Block(metric.name, metric.type, metric.documentation, self._written(metric, given))

    def _take(self, block: Block) -> bool:
        """False when another has the name."""
        family = self._page.family(block.name, block.kind, block.help or UNDOCUMENTED)
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
            try:
                lines.append(line(sample.name, labels, sample.value))
            except OverflowError:  # hundreds of digits: to the parser an int
                raise Refused("invalid") from None
            if not is_possible(sample.name.removeprefix(metric.name), sample.value):
                raise Refused("invalid")
        return lines


def least_first(told: Iterable[Told]) -> list[Told]:
    """The order in which to read: whoever says little first, so that those who say too much cost nobody else anything.

    By how much their module has said up to and with them: of many replicas each costs more.
    """
    said: Counter[str] = Counter()
    costs = []
    for one in sorted(told, key=lambda one: (len(one.text), one.key)):
        said[one.module_id] += len(one.text)
        costs.append((said[one.module_id], one))
    return [one for _, one in sorted(costs)]


def _samples(blocks: Iterable[Block]) -> int:
    return sum(len(block.lines) for block in blocks)


def _size(blocks: Iterable[Block]) -> int:
    return sum(len(block.help) + sum(map(len, block.lines)) for block in blocks)


def _parsed(lines: Iterator[str]) -> Iterator[Metric]:
    try:
        yield from text_fd_to_metric_families(cast(TextIO, lines))
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
