"""Modules' own metrics on nexusd's page: parsed, labelled with module and replica, merged; what is wrong is counted.

Asking for them is `module_questions`'. Whatever a module says, the rest of the page stays as it is.
"""

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TextIO, cast

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_fd_to_metric_families

from nexusd.system.metrics_text import LABEL_NAME, METRIC_NAME, TYPES, Page, labels_text, line

MOST_SAMPLES = 10_000  # of one replica
RESERVED = "nexus_"
UNDOCUMENTED = "Its module does not say what it means"
_GIVEN = ("module", "replica")


class Refused(Exception):
    """A reason in one word, which becomes a label."""


class Merging:
    """Of one scrape. `errors` counts by module and reason."""

    def __init__(self, page: Page, deadline: float) -> None:
        """deadline: monotonic seconds, after which no further text is looked at."""
        self._page = page
        self._deadline = deadline
        self.errors: Counter[tuple[str, str]] = Counter()
        self._seen: set[tuple[str, str]] = set()

    def add(self, module_id: str, index: int, text: str) -> None:
        """Take over what can be taken. A text that cannot be read to its end is left out as a whole."""
        self._seen = set()
        try:
            families = list(text_fd_to_metric_families(cast(TextIO, self._lines(text))))
        except Refused as refused:
            self.errors[module_id, str(refused)] += 1
            return
        # The border to a module's words: the parser raises whatever its slicing and splitting raise.
        except Exception:
            self.errors[module_id, "unparsable"] += 1
            return
        for metric in families:
            try:
                self._take(metric, {"module": module_id, "replica": str(index)})
            except Refused as refused:
                self.errors[module_id, str(refused)] += 1

    def _lines(self, text: str) -> Iterator[str]:
        samples = 0
        text.encode()  # half of a surrogate pair would spoil the whole page
        for told in text.split("\n"):
            samples += not told.startswith("#")
            if samples > MOST_SAMPLES:
                raise Refused("too_large")
            if samples % 64 == 0 and time.monotonic() > self._deadline:
                raise Refused("too_late")
            yield told

    def _take(self, metric: Metric, given: Mapping[str, str]) -> None:
        twice = metric.type == "counter" and metric.name.endswith("_total")
        if metric.type not in TYPES or twice or not METRIC_NAME.fullmatch(metric.name):
            raise Refused("invalid")
        if metric.name.startswith(RESERVED):
            raise Refused("conflict")
        lines = self._written(metric, given)
        family = self._page.family(metric.name, metric.type, metric.documentation or UNDOCUMENTED)
        if family is None:
            raise Refused("conflict")
        family.lines += lines

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
