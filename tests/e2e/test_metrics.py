"""What Prometheus and Kubernetes find at the metrics port of a real nexusd."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import threading

import pytest
from prometheus_client import parser
from prometheus_client.openmetrics import parser as open_metrics
from prometheus_client.samples import Sample

from tests.e2e.programs import OBEDIENT, SLEEPER
from tests.promtool import promtool
from tests.running_nexus import BOUND_S, INTERPRETER, Fifo, Nexus, ticking

OPEN_METRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
COUNTING = """
from prometheus_client import Counter, Gauge
from nexusd.sdk import Module

class It(Module):
    async def start(self):
        Counter("beats", "Beats", ["module"], registry=self.metrics).labels("its own").inc(7)
        Gauge("replica_number", "Which one it is", registry=self.metrics).set(self.replica)
"""
HANGING = """
from nexusd.sdk import Module

class It(Module):
    async def start(self):
        pass

    def exposition(self):
        import threading
        threading.Event().wait()
"""
RAISING = """
from prometheus_client import Gauge
from nexusd.sdk import Module

class It(Module):
    async def start(self):
        Gauge("broken", "Broken", registry=self.metrics).set_function(lambda: 1 / 0)
"""
# In another language, as far as nexusd can tell: it answers on its control socket, with a text of its own.
ANSWERING = (
    INTERPRETER
    + """
import json, os, socket
listener = socket.socket(fileno=int(os.environ["NEXUS_CONTROL_FD"]))
while True:
    peer, _ = listener.accept()
    with peer, peer.makefile("rw") as file:
        for line in file:
            request = json.loads(line)
            text = os.environ["TEXT"]
            file.write(json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": {"text": text}}) + chr(10))
            file.flush()
"""
)


@pytest.fixture
def scraped(nexus: Nexus) -> Nexus:
    """A nexusd that serves metrics at a port which the kernel chooses."""
    nexus.settings.write_text('[metrics]\nlisten = "127.0.0.1:0"\n')
    return nexus


def port_of(nexus: Nexus) -> int:
    for _ in ticking(BOUND_S, "metrics are not served"):
        if found := re.findall(r"metrics on 127\.0\.0\.1 port (\d+)", nexus.log()):
            return int(found[-1])
        threading.Event().wait(0.01)
    raise AssertionError("unreachable")


def get(nexus: Nexus, path: str = "/metrics", **headers: str) -> tuple[int, str, str]:
    """Status, content type and body."""
    connection = http.client.HTTPConnection("127.0.0.1", port_of(nexus), timeout=BOUND_S)
    connection.request(
        "GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()}
    )
    response = connection.getresponse()
    body = response.read().decode()
    connection.close()
    return response.status, response.headers["Content-Type"], body


def samples(text: str, name: str, **labels: str) -> list[Sample]:
    found = (one for family in parser.text_string_to_metric_families(text) for one in family.samples)
    return [one for one in found if one.name == name and labels.items() <= one.labels.items()]


def value(text: str, name: str, **labels: str) -> float:
    (sample,) = samples(text, name, **labels)
    return sample.value


def test_prometheus_gets_what_it_asks_for_and_its_tools_are_content(scraped: Nexus, gate: Fifo) -> None:
    scraped.add_program("a/one", OBEDIENT)
    scraped.add_python("a/two", COUNTING, "replicas = 2\n")
    scraped.start().until_state("a/two", "started")
    scraped.bell.hear()

    status, content_type, text = get(scraped)
    assert (status, content_type) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert promtool("check", "metrics", text=text.encode()) == ""
    status, content_type, opened = get(scraped, accept=OPEN_METRICS)
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    assert {one.name for one in open_metrics.text_string_to_metric_families(opened)} >= {
        "beats",
        "nexus_ready",
    }


def test_a_replica_is_told_with_what_it_uses(scraped: Nexus, gate: Fifo) -> None:
    scraped.add_program(
        "a/one", OBEDIENT.replace("said =", "os.write(1, b'x' * 12345 + bytes([10])); said =")
    )
    scraped.start().until_state("a/one", "started")
    scraped.bell.hear()
    for _ in ticking(BOUND_S, "its output is not counted"):
        text = get(scraped)[2]
        found = samples(text, "nexus_replica_log_bytes_total", module="a/one", replica="0")
        if [one.value for one in found] == [12346]:
            break
    assert value(text, "nexus_replica_resident_memory_bytes", module="a/one") > 1_000_000
    assert value(text, "nexus_replica_open_fds", module="a/one") >= 3
    assert value(text, "nexus_replica_threads", module="a/one") == 1
    assert value(text, "nexus_replica_cpu_seconds_total", module="a/one") >= 0
    assert value(text, "nexus_replica_uptime_seconds", module="a/one") > 0
    assert value(text, "nexus_module_start_duration_seconds_count", module="a/one") == 1

    gate.say("3")
    scraped.bell.hear()
    scraped.until("a/one", lambda status: status["restarts"] == 1 and status["state"] == "started")
    text = get(scraped)[2]
    assert value(text, "nexus_replica_restarts_total", module="a/one", reason="exit") == 1
    assert value(text, "nexus_replica_log_bytes_total", module="a/one", replica="0") >= 12346


def test_modules_own_metrics_are_merged_under_their_names(scraped: Nexus) -> None:
    scraped.add_python("a/one", COUNTING, "replicas = 2\n")
    scraped.add_python("a/two", COUNTING)
    scraped.start()
    for module_id in ("a/one", "a/two"):
        scraped.until_state(module_id, "started")
    text = get(scraped)[2]
    assert text.count("# TYPE beats_total counter") == 1
    assert {one.value for one in samples(text, "replica_number", module="a/one")} == {0.0, 1.0}
    assert value(text, "beats_total", module="a/two", exported_module="its own", replica="0") == 7.0


def test_a_program_in_another_language_may_have_metrics_too(scraped: Nexus) -> None:
    scraped.add_program("a/one", ANSWERING, run='environment = { TEXT = "lines_total 5\\n" }')
    scraped.start().until_state("a/one", "started")
    assert value(get(scraped)[2], "lines_total", module="a/one", replica="0") == 5.0


def test_broken_modules_break_nothing_and_are_counted(scraped: Nexus) -> None:
    scraped.add_python("a/good", COUNTING)
    scraped.add_python("a/raising", RAISING)
    scraped.add_python("a/hanging", HANGING)
    scraped.add_program("a/silent", SLEEPER)
    scraped.add_program("a/lying", ANSWERING, run='environment = { TEXT = "no { sense" }')
    scraped.start()
    for name in ("good", "raising", "hanging", "silent", "lying"):
        scraped.until_state(f"a/{name}", "started")
    for _ in ticking(BOUND_S, "the silence is not counted"):
        status, _, text = get(scraped)
        assert status == 200
        assert value(text, "beats_total", module="a/good") == 7.0
        errors = {
            (one.labels["module"], one.labels["reason"])
            for one in samples(text, "nexus_module_scrape_errors_total")
        }
        if ("a/hanging", "silent") in errors:
            break
    assert errors == {("a/raising", "refused"), ("a/hanging", "silent"), ("a/lying", "unparsable")}
    assert promtool("check", "metrics", text=text.encode()) == ""
    os.kill(scraped.pid_of("a/hanging"), signal.SIGKILL)  # it would not stop in time


def test_a_storm_of_scrapes_is_answered(scraped: Nexus) -> None:
    scraped.add_python("a/one", COUNTING)
    scraped.start().until_state("a/one", "started")
    port_of(scraped)
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(get(scraped)[0])) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [200] * 20


def test_the_daemon_counts_its_calls_and_its_keepers_answers(scraped: Nexus) -> None:
    scraped.start()
    scraped.call("whoami")
    assert scraped.ctl("start", "a/none").returncode == 4
    for _ in ticking(BOUND_S, "no round trip to the keeper, or no lag, is told"):
        text = get(scraped)[2]
        if value(text, "nexus_keeper_round_trip_seconds_count") and value(
            text, "nexus_event_loop_lag_seconds_count"
        ):
            break
        threading.Event().wait(0.1)
    assert value(text, "nexus_rpc_requests_total", method="whoami", outcome="ok") == 1
    assert value(text, "nexus_rpc_requests_total", method="start_module", outcome="no_such_module") == 1
    assert value(text, "nexus_rpc_request_duration_seconds_count", method="whoami") == 1
    assert value(text, "nexus_rpc_connections") >= 1
    assert value(text, "nexus_keeper_connected") == 1
    assert value(text, "nexus_audit_lines_total") >= 1
    assert value(text, "nexus_build_info", version="2.0.0") == 1
    assert value(text, "process_open_fds") > 3


def test_reloads_are_timed_by_their_outcome(scraped: Nexus) -> None:
    folder = scraped.add_python("a/one", COUNTING)
    scraped.start().until_state("a/one", "started")
    assert scraped.ctl("reload", "a/one").returncode == 0
    (folder / "module_code.py").write_text("raise SystemExit(1)")
    assert scraped.ctl("reload", "a/one").returncode == 1
    assert scraped.ctl("reload", "a/none").returncode == 4
    text = get(scraped)[2]
    found = samples(text, "nexus_module_reload_duration_seconds_count")
    assert {(one.labels["module"], one.labels["outcome"]): one.value for one in found} == {
        ("a/one", "ok"): 1.0,
        ("a/one", "start_failed"): 1.0,
    }
    assert value(text, "beats_total", module="a/one") == 7.0


def test_probes_are_answered_and_readiness_turns(scraped: Nexus, gate: Fifo) -> None:
    scraped.add_program("a/one", OBEDIENT, 'critical = true\n[restart]\npolicy = "never"\n')
    scraped.start()
    scraped.bell.hear()
    scraped.until_state("a/one", "started")
    status, content_type, body = get(scraped, "/livez")
    assert (status, content_type, json.loads(body)["live"]) == (200, "application/json", True)
    status, _, body = get(scraped, "/readyz")
    assert (status, json.loads(body)["ready"]) == (200, True)
    gate.say("1")
    scraped.until_state("a/one", "failed")
    status, _, body = get(scraped, "/readyz")
    assert status == 503
    assert json.loads(body)["reasons"][0].startswith("critical module a/one")
    assert value(get(scraped)[2], "nexus_ready") == 0
    assert get(scraped, "/nothing")[0] == 404


def test_get_metrics_and_nexusctl_print_the_same_text(scraped: Nexus) -> None:
    scraped.add_python("a/one", COUNTING)
    scraped.add_python("a/two", COUNTING)
    scraped.start().until_state("a/two", "started")
    scraped.until_state("a/one", "started")
    (row,) = (one for one in scraped.call("rpc.discover")["methods"] if one["name"] == "get_metrics")
    assert row["x-permission"] == "metrics.read"
    told = scraped.call("get_metrics")
    assert told["content_type"] == "text/plain; version=0.0.4; charset=utf-8"
    printed = scraped.ctl("metrics")
    assert printed.returncode == 0
    assert promtool("check", "metrics", text=printed.stdout.encode()) == ""
    one = scraped.ctl("metrics", "a/one").stdout
    assert value(one, "beats_total", module="a/one") == 7.0
    assert "a/two" not in one and "nexus_ready" not in one
    assert scraped.ctl("metrics", "a/none").returncode == 4


def test_a_port_that_is_taken_is_told_loudly_and_nexusd_goes_on(nexus: Nexus) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        nexus.settings.write_text(f'[metrics]\nlisten = "127.0.0.1:{port}"\n')
        nexus.add_program("a/one", SLEEPER)
        nexus.start().until_state("a/one", "started")
        for _ in ticking(BOUND_S, "nobody is told"):
            if warnings := nexus.status()["warnings"]:
                break
    assert warnings == [f"metrics are not served: 127.0.0.1 port {port}: Address already in use"]
    assert f"127.0.0.1 port {port}: Address already in use; tried again every 10 s" in nexus.log()


def test_no_port_is_opened_when_metrics_are_off_and_get_metrics_works(nexus: Nexus) -> None:
    nexus.start()
    assert "nexus_ready 1.0" in nexus.call("get_metrics")["text"]
    assert "metrics on" not in nexus.log()
