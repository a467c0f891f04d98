"""Modules' own metrics on one page: labelled, merged; what is broken is left out and counted."""

import itertools
import time
from collections import Counter
from collections.abc import Iterable, Iterator

import pytest
from prometheus_client import parser
from prometheus_client.openmetrics import parser as open_metrics

from nexusd.system import module_metrics
from nexusd.system.known_series import Block, KnownSeries
from nexusd.system.metrics_text import Page, chosen
from nexusd.system.module_metrics import Merging, Told, least_first
from tests.promtool import promtool

ONE, TWO = "mesh/one", "mesh/two"
OPEN_METRICS = "application/openmetrics-text; version=1.0.0"
GOOD = """\
# HELP beats_total Beats
# TYPE beats_total counter
beats_total{kind="a"} 3.0
"""


def _numbered(told: Iterable[tuple[str, str]]) -> Iterator[tuple[int, tuple[str, str]]]:
    """A module that speaks more than once does so by several replicas."""
    indexes: Counter[str] = Counter()
    for one in told:
        yield indexes[one[0]], one
        indexes[one[0]] += 1


class Merged:
    """A page, and what was said to it."""

    def __init__(
        self, *told: tuple[str, str], deadline: float | None = None, known: KnownSeries | None = None
    ) -> None:
        self.page = Page()
        deadline = time.monotonic() + 60 if deadline is None else deadline
        self.merging = Merging(self.page, deadline, known or KnownSeries())
        self.parsed: list[str] = []
        texts = [Told(module_id, index, text) for index, (module_id, text) in _numbered(told)]
        for _ in self.merging.take([(one, self._read(one)) for one in least_first(texts)]):
            pass

    def _read(self, told: Told) -> list[Block]:
        again = self.merging.reread(told)
        if again is not None:
            return again
        self.parsed.append(told.module_id)
        return self.merging.parse(told)

    def text(self, accept: str = "") -> str:
        return b"".join(self.page.parts(chosen(accept))).decode()

    @property
    def errors(self) -> dict[tuple[str, str], int]:
        return dict(self.merging.errors)


def test_a_family_of_several_modules_has_one_head_and_their_names_as_labels() -> None:
    merged = Merged((ONE, GOOD), (TWO, GOOD))
    assert merged.text() == (
        "# HELP beats_total Beats\n"
        "# TYPE beats_total counter\n"
        'beats_total{kind="a",module="mesh/one",replica="0"} 3.0\n'
        'beats_total{kind="a",module="mesh/two",replica="0"} 3.0\n'
    )
    assert merged.errors == {}


def test_open_metrics_names_the_family_and_ends() -> None:
    text = Merged((ONE, GOOD)).text(OPEN_METRICS)
    assert "# TYPE beats counter\n" in text
    assert text.endswith("# EOF\n")
    (family,) = open_metrics.text_string_to_metric_families(text)
    assert family.samples[0].labels == {"kind": "a", "module": ONE, "replica": "0"}


def test_labels_that_are_named_like_ours_are_exported_as_prometheus_does_it() -> None:
    merged = Merged((ONE, 'a{module="x",replica="9",exported_module="y"} 1\n'))
    labels = (
        'exported_exported_module="x",exported_module="y",exported_replica="9",module="mesh/one",replica="0"'
    )
    assert f"a{{{labels}}} 1.0\n" in merged.text()


def test_of_two_types_of_one_name_the_later_is_left_out() -> None:
    merged = Merged(
        (ONE, GOOD), (TWO, "# TYPE beats_total gauge\nbeats_total 1\n# TYPE fine gauge\nfine 1\n")
    )
    assert TWO not in merged.text().split("# TYPE fine")[0]
    assert 'fine{module="mesh/two",replica="0"} 1.0' in merged.text()
    assert merged.errors == {(TWO, "conflict"): 1}


def test_a_sample_of_one_family_is_no_family_of_another() -> None:
    histogram = '# TYPE h histogram\nh_bucket{le="+Inf"} 1\nh_count 1\nh_sum 1\n'
    merged = Merged((ONE, histogram), (TWO, "# TYPE h_count gauge\nh_count 5\n"))
    assert merged.errors == {(TWO, "conflict"): 1}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("no { sense", "unparsable"),
        ("a 1\nb\n", "unparsable"),
        ("# TYPE a nonsense\na 1\n", "unparsable"),
        ("# TYPE a stateset\na 1\n", "invalid"),
        ('a{b="\ud800"} 1\n', "unparsable"),
        ("a 1\na 2\n", "duplicate"),
        ("# TYPE a gauge\na 1\na 1\n", "duplicate"),
        ('{"with.dots"} 1\n', "invalid"),
        ('a{"with.dots"="x"} 1\n', "invalid"),
        ('a{__name__="x"} 1\n', "unparsable"),
        ("# TYPE a_total_total counter\na_total_total 1\n", "invalid"),
        ("nexus_ready 0\n", "conflict"),
        ("# TYPE a gauge\na " + "9" * 400 + "\n", "invalid"),
        ("# TYPE a_total counter\na_total NaN\n", "invalid"),
        ("# TYPE a counter\na -1\n", "invalid"),
        ('# TYPE a histogram\na_bucket{le="+Inf"} NaN\na_count 1\na_sum 1\n', "invalid"),
        ('# TYPE a histogram\na_bucket{le="+Inf"} 1.5\na_count 1.5\na_sum 1\n', "invalid"),
        ("# TYPE a summary\na_count 1\na_sum NaN\n", "invalid"),
    ],
)
def test_what_a_module_gets_wrong_is_counted_and_spoils_nothing(text: str, reason: str) -> None:
    merged = Merged((ONE, GOOD), (TWO, text), ("mesh/three", GOOD))
    assert merged.errors == {(TWO, reason): 1}
    assert merged.text().count("beats_total{") == 2
    promtool("check", "metrics", text=merged.text().encode())
    list(open_metrics.text_string_to_metric_families(merged.text(OPEN_METRICS)))


def test_more_samples_than_anybody_wants_are_left_out() -> None:
    text = "".join(f'a{{n="{n}"}} 1\n' for n in range(module_metrics.MOST_SAMPLES + 1))
    merged = Merged((ONE, text), (TWO, GOOD))
    assert merged.errors == {(ONE, "too_large"): 1}
    assert merged.text().count("\n") == 3


def test_when_the_time_is_over_no_long_text_is_looked_at() -> None:
    text = "".join(f'a{{n="{n}"}} 1\n' for n in range(200))
    assert Merged((ONE, text), deadline=0.0).errors == {(ONE, "too_late"): 1}


def samples(name: str, number: int) -> str:
    return "".join(f'{name}{{n="{n}"}} 1\n' for n in range(number))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line takes a tenth of a millisecond."""
    ticks = itertools.count()
    for name in ("monotonic", "thread_time"):
        monkeypatch.setattr(module_metrics.time, name, lambda: next(ticks) * 0.00005)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_metrics, "MODULE_S", 60.0)


@pytest.mark.usefixtures("clock")
def test_modules_that_say_too_much_cost_those_that_say_little_nothing() -> None:
    noisy = [(f"loud/m{number:02}", samples(f"noise{number}", 4000)) for number in range(17)]
    merged = Merged(*noisy, (ONE, GOOD), deadline=2.0)
    assert f'beats_total{{kind="a",module="{ONE}",replica="0"}} 3.0\n' in merged.text()
    assert (ONE, "too_late") not in merged.errors
    assert ("loud/m16", "too_late") in merged.errors


@pytest.mark.usefixtures("clock")
def test_a_module_that_takes_long_uses_up_its_own_time_only() -> None:
    slow = "# a remark\n" * 12000
    merged = Merged((ONE, slow), (ONE, GOOD), (TWO, slow[: len(slow) // 2] + GOOD), deadline=60.0)
    assert merged.errors == {(ONE, "too_late"): 1}
    assert merged.text().count("beats_total{") == 2


@pytest.mark.usefixtures("patient")
def test_replicas_share_the_samples_of_their_module_and_those_that_say_least_are_read() -> None:
    loud = [(ONE, samples("a", 9000)) for _ in range(3)]
    merged = Merged(*loud, (ONE, GOOD), (TWO, GOOD))
    assert merged.errors == {(ONE, "too_large"): 1}
    assert f'beats_total{{kind="a",module="{ONE}",replica="3"}} 3.0\n' in merged.text()


@pytest.mark.parametrize(
    "text",
    [
        "# HELP a " + "x" * module_metrics.LONGEST_LINE + "\na 1\n",
        'a{b="' + "x" * module_metrics.LONGEST_LINE + '"} 1\n',
        "".join(f"m{number} 1\n" for number in range(module_metrics.MOST_FAMILIES + 1)),
    ],
    ids=["help", "label", "families"],
)
def test_what_would_swell_the_page_is_too_large(text: str) -> None:
    merged = Merged((ONE, text), (TWO, GOOD))
    assert merged.errors == {(ONE, "too_large"): 1}
    assert merged.text().count("\n") == 3


def test_all_modules_together_have_a_bound_on_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_metrics, "MODULES_BYTES", 10_000)
    merged = Merged(*((f"loud/m{number}", samples("a", 100)) for number in range(10)), (TWO, GOOD))
    assert len(merged.text()) < 10_200
    assert set(merged.errors.values()) == {1}
    assert {reason for _, reason in merged.errors} == {"too_large"}
    assert "beats_total{" in merged.text()


def test_a_name_is_the_first_modules_whoever_is_read_first() -> None:
    merged = Merged((ONE, "# TYPE a gauge\n" + samples("a", 100)), (TWO, "# TYPE a counter\na_total 1\n"))
    assert merged.errors == {(TWO, "conflict"): 1}


def test_timestamps_and_creation_times_are_left_out() -> None:
    text = "# TYPE a_total counter\na_total 1 1700000000000\n# TYPE s summary\ns_sum 1\ns_count 1\n"
    assert 'a_total{module="mesh/one",replica="0"} 1.0\n' in Merged((ONE, text)).text()


@pytest.mark.parametrize("accept", ["", OPEN_METRICS])
def test_values_and_labels_of_all_kinds_come_through_unchanged(accept: str) -> None:
    labels = 'x="back\\\\slash \\"quote\\" line\\nend ü \u2028",y=""'
    text = "".join(
        f"{name}{{{labels}}} {value}\n"
        for name, value in zip("abcd", ("NaN", "+Inf", "1e-9", "-7"), strict=True)
    )
    merged = Merged((ONE, text)).text(accept)
    parse = open_metrics if accept else parser
    found = {
        sample.name: sample
        for family in parse.text_string_to_metric_families(merged)
        for sample in family.samples
    }
    assert found["a"].labels["x"] == 'back\\slash "quote" line\nend ü \u2028'
    assert [str(found[name].value) for name in "abcd"] == ["nan", "inf", "1e-09", "-7.0"]


HISTOGRAM = """\
# HELP job_seconds Seconds
# TYPE job_seconds histogram
job_seconds_bucket{kind="a b",le="1.0"} %s
job_seconds_bucket{kind="a b",le="+Inf"} 5
job_seconds_count{kind="a b"} 5
job_seconds_sum{kind="a b"} 7.5
plain %s
"""


def test_series_that_are_known_are_read_without_the_parser_and_say_the_same() -> None:
    known = KnownSeries()
    Merged((ONE, HISTOGRAM % (3, "-7")), (TWO, GOOD), known=known)
    for values in ((4, "1e-9"), (5, "+Inf"), (5, "12345678901234567890"), (5, "nan")):
        text = HISTOGRAM % values
        again = Merged((ONE, text), (TWO, GOOD), known=known)
        assert again.parsed == []
        assert again.text() == Merged((ONE, text), (TWO, GOOD)).text()
        assert again.errors == {}


@pytest.mark.parametrize(
    "text",
    [
        GOOD.replace('kind="a"', 'kind="b"'),
        GOOD.replace("counter", "gauge"),
        GOOD.replace("HELP beats_total Beats", "HELP beats_total Others"),
        GOOD + "more 1\n",
        GOOD.rpartition("beats_total{")[0],
        GOOD.replace("3.0", "3.0 1700000000000"),
        GOOD.replace("3.0", "1_0"),
        GOOD.replace("3.0", "three"),
        GOOD.replace("} 3.0", "}"),
        GOOD.replace("3.0", "9" * 400),
        GOOD.replace("3.0", "NaN"),
        GOOD.replace("3.0", "-1"),
        "",
    ],
)
def test_whatever_else_has_changed_is_parsed_anew(text: str) -> None:
    known = KnownSeries()
    Merged((ONE, GOOD), known=known)
    again, fresh = Merged((ONE, text), known=known), Merged((ONE, text))
    assert again.parsed == [ONE]
    assert (again.text(), again.errors) == (fresh.text(), fresh.errors)


@pytest.mark.parametrize("value", ["NaN", "-1", "1.5"])
def test_a_known_series_takes_no_value_that_its_type_does_not_have(value: str) -> None:
    known = KnownSeries()
    Merged((ONE, HISTOGRAM % (3, 1)), known=known)
    again = Merged((ONE, HISTOGRAM % (value, 1)), known=known)
    assert again.errors == {(ONE, "invalid"): 1}
    assert "job_seconds" not in again.text()


@pytest.mark.parametrize(
    "text",
    [
        "a 5 5\n",
        'a{b="c"} 5 5\n',
        "a 1\nnexus_a 1\n",
        "# TYPE s summary\ns_sum 1\ns_count 1\ns_created 1\n",
        "a 1\na 2\n",
        'a{n="' + "x" * 5000 + '"} 1\n' + 'b{n="' + "x" * 15000 + '"} 1\n',
    ],
    ids=["timestamp", "labels-and-timestamp", "conflict", "created", "duplicate", "long"],
)
def test_what_the_values_alone_do_not_lead_to_is_always_parsed(text: str) -> None:
    known = KnownSeries()
    first, again = Merged((ONE, text), known=known), Merged((ONE, text), known=known)
    assert again.parsed == [ONE]
    assert (again.text(), again.errors) == (first.text(), first.errors)


def test_known_series_are_bounded_like_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    known = KnownSeries()
    texts = [(f"loud/m{number}", samples("a", 100)) for number in range(10)]
    Merged(*texts, known=known)
    monkeypatch.setattr(module_metrics, "MODULES_BYTES", 10_000)
    again = Merged(*texts, (TWO, GOOD), known=known)
    assert len(again.text()) < 10_200
    assert {reason for _, reason in again.errors} == {"too_large"}
    assert "beats_total{" in again.text()


def test_the_series_of_a_replica_that_is_gone_are_forgotten() -> None:
    known = KnownSeries()
    Merged((ONE, GOOD), (TWO, GOOD), known=known)
    known.forget_all_but({(TWO, 0)})
    assert Merged((ONE, GOOD), (TWO, GOOD), known=known).parsed == [ONE]
