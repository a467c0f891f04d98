"""nexusd's own metrics: what a fleet looks like on the page, and that Prometheus's own tools are content with it."""

import os
import re
import time
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import parser
from prometheus_client.openmetrics import parser as open_metrics
from prometheus_client.samples import Sample

from nexusd.domain import events
from nexusd.domain.events import Put, Renewal, Scale
from nexusd.system import exposition
from nexusd.system.exposition import Facts, ModuleWriter, write_daemon
from nexusd.system.families import FAMILIES, tables
from nexusd.system.figures import Figures
from nexusd.system.metrics_text import Page, chosen
from nexusd.system.usage import usage
from tests.fakes import Rehearsal, definition, module
from tests.promtool import promtool

ONE, TWO = "vitals/one", "mesh/two"
DOCS = Path(__file__).parents[2] / "docs"


class House(Rehearsal):
    """A fleet, its figures and its page."""

    def __init__(self, **manifest: Any) -> None:
        super().__init__(module(ONE, critical=True), module(TWO, **manifest))
        self.figures = Figures()
        self.writer = ModuleWriter(lambda name: f"/log/{name}")
        self.processes: dict[str, tuple[int, int, str | None]] = {}
        self.errors: dict[tuple[str, str], int] = {}
        self.failed: list[str] = []

    def change(self, event: Any) -> Any:
        before = self.fleet
        actions = super().change(event)
        if hasattr(self, "figures"):
            self.figures.observe(
                before, self.fleet, frozenset(self.fleet.modules) | frozenset(before.modules)
            )
        return actions

    def text(self, accept: str = "") -> str:
        facts = Facts(
            self.now,
            "2.0.0",
            0.0,
            self.fleet,
            self.figures.copy(),
            self.processes,
            {f"/log/{ONE}#0": 4711},
            True,
            3,
            7,
            self.errors,
        )
        page = Page()
        write_daemon(page, facts, is_ready=True)
        self.failed = list(filter(None, self.writer.write(page, facts, self.fleet.modules.values())))
        return b"".join(page.parts(chosen(accept))).decode()

    def values(self, name: str, **labels: str) -> list[Sample]:
        families = parser.text_string_to_metric_families(self.text())
        samples = [sample for family in families for sample in family.samples if sample.name == name]
        return [one for one in samples if labels.items() <= one.labels.items()]

    def value(self, name: str, **labels: str) -> float:
        (sample,) = self.values(name, **labels)
        return sample.value

    def busy(self) -> "House":
        """Something of every family."""
        pid = os.getpid()
        self.want(ONE, TWO)
        for one in (ONE, TWO):
            self.news(one, events.Spawned, pid)
        self.pass_time(2)
        self.ready(ONE, TWO)
        self.exits(TWO)
        self.processes[self.replica(ONE).run or ""] = (pid, start_ticks(pid), None)
        self.figures.called("get_status", "ok", 0.002)
        self.figures.reloaded(ONE, "ok", 0.5)
        self.figures.took_round_trip(0.0004)
        self.figures.lagged(0.0)
        self.errors[TWO, "unparsable"] = 2
        return self


def start_ticks(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


@pytest.fixture
def house() -> House:
    return House().busy()


def test_promtool_is_content_with_every_family(house: House) -> None:
    text = house.text()
    told = set(re.findall(r"^# TYPE (nexus_\S+)", text, flags=re.MULTILINE))
    assert told == set(FAMILIES)
    assert promtool("check", "metrics", text=text.encode()) == ""


def test_both_formats_say_the_same(house: House) -> None:
    plain = parser.text_string_to_metric_families(house.text())
    opened = open_metrics.text_string_to_metric_families(house.text("application/openmetrics-text"))

    def told(families: Any) -> list[tuple[str, str, str, list[Any]]]:
        return [
            (one.name, one.type, one.documentation, [(s.name, s.labels) for s in one.samples])
            for one in families
            if one.name.startswith("nexus_")
        ]

    assert told(plain) == told(opened)


def test_every_series_has_the_labels_that_the_table_says(house: House) -> None:
    for family in parser.text_string_to_metric_families(house.text()):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        if name in FAMILIES:
            for sample in family.samples:
                assert set(sample.labels) - {"le"} == set(FAMILIES[name].labels)
                assert "pid" not in sample.labels


def test_a_module_is_in_one_state_and_of_one_health(house: House) -> None:
    states = house.values("nexus_module_state", module=ONE)
    assert [one.labels["state"] for one in states if one.value] == ["started"]
    assert len(states) == 8
    assert house.value("nexus_module_state", module=TWO, state="started") == 0.0
    assert house.value("nexus_module_health", module=ONE, health="healthy") == 1.0
    assert house.value("nexus_replica_state", module=ONE, replica="0", state="started") == 1.0


def test_a_start_and_a_restart_are_on_the_page(house: House) -> None:
    assert house.value("nexus_module_start_duration_seconds_sum", module=ONE) == 2.0
    assert house.value("nexus_replica_restarts_total", module=TWO, replica="0", reason="exit") == 1.0
    assert {one.value for one in house.values("nexus_replica_restarts_total", module=ONE)} == {0.0}
    assert house.value("nexus_replica_uptime_seconds", module=ONE) == 0.0
    house.pass_time(5)
    assert house.value("nexus_replica_uptime_seconds", module=ONE) == 5.0


def test_what_changes_between_two_scrapes_is_said_anew_and_the_rest_stays(house: House) -> None:
    before = house.text()
    assert house.text() == before or "process_" in before
    house.exits(ONE)
    assert house.value("nexus_module_replicas_ready", module=ONE) == 0.0
    assert house.value("nexus_replica_restarts_total", module=ONE, reason="exit") == 1.0


def test_a_module_that_is_gone_leaves_nothing_behind(house: House) -> None:
    house.apply(Put(TWO, None))
    assert TWO not in house.text()
    house.apply(Put(TWO, module(TWO)))
    assert house.values("nexus_replica_restarts_total", module=TWO) == []  # it has no replica yet


def test_a_reason_for_a_restart_is_there_before_the_first_one(house: House) -> None:
    house.want(ONE)
    assert house.value("nexus_replica_restarts_total", module=ONE, replica="0", reason="exit") == 0.0
    house.exits(ONE)
    assert house.value("nexus_replica_restarts_total", module=ONE, replica="0", reason="exit") == 1.0


def test_a_counted_reason_stays_when_a_new_manifest_rules_it_out(house: House) -> None:
    house.apply(Renewal(TWO, definition(TWO, restart={"policy": "never"})))
    counted = house.values("nexus_replica_restarts_total", module=TWO)
    assert {one.labels["reason"]: one.value for one in counted} == {"command": 0.0, "exit": 1.0}


def test_a_replica_that_is_gone_is_gone_from_the_page() -> None:
    house = House(replicas=2, max_replicas=2).busy()
    assert house.values("nexus_replica_state", module=TWO, replica="1")
    house.apply(Scale(TWO, 1))
    assert house.values("nexus_replica_state", module=TWO, replica="1") == []
    assert house.values("nexus_replica_restarts_total", module=TWO, replica="1") == []
    assert house.values("nexus_replica_state", module=TWO, replica="0")


def test_during_a_graceful_reload_each_series_is_there_once() -> None:
    house = House().busy()
    found = house.module(ONE).definition
    assert found is not None
    house.apply(Renewal(ONE, found, beside=True))
    series = [line.rpartition(" ")[0] for line in house.text().splitlines() if not line.startswith("#")]
    assert len(house.module(ONE).replicas) == 2
    assert len(series) == len(set(series))


def test_a_defect_in_one_row_leaves_the_others(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(replica: Any, *rest: Any) -> Any:
        if replica.module_id == TWO:
            raise ZeroDivisionError
        return healthy(replica, *rest)

    healthy = exposition._moving
    monkeypatch.setattr(exposition, "_moving", broken)
    assert house.values("nexus_module_state", module=TWO) == []
    assert house.value("nexus_module_state", module=ONE, state="started") == 1.0
    assert house.failed == [TWO]


def test_a_process_is_told_by_what_the_kernel_says_of_it(house: House) -> None:
    pid = os.getpid()
    used = usage(pid, start_ticks(pid))
    assert used is not None
    assert used.threads >= 1
    assert abs(used.cpu_s - time.process_time()) < 0.5
    assert 1_000_000 < used.resident_bytes < 10_000_000_000
    assert used.open_fds is not None and abs(used.open_fds - len(os.listdir("/proc/self/fd"))) < 3
    assert house.value("nexus_replica_resident_memory_bytes", module=ONE, replica="0") > 1_000_000
    assert house.value("nexus_replica_log_bytes_total", module=ONE, replica="0") == 4711


def test_another_process_with_the_same_pid_is_not_taken_for_it() -> None:
    pid = os.getpid()
    assert usage(pid, start_ticks(pid) + 1) is None
    assert usage(2**22 + 1, 1) is None


def test_the_page_of_the_docs_is_what_the_table_says() -> None:
    page = (DOCS / "metrics.md").read_text(encoding="utf-8")
    assert page.endswith(tables()), "run: python docs/generate.py"
