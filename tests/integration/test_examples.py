"""The example modules do what their folders promise, each in a host of its own."""

import http.server
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hosted import PATIENCE_S, ROOT, Hosted

from nexusd.domain.settings import effective
from nexusd.system.manifests import discover

EXAMPLES = {found.id: found for found in discover([ROOT / "examples" / "modules"])}


def host(module_id: str, config: dict[str, Any] | None = None, **more: Any) -> Hosted:
    """The example with the configuration that nexusd would give it."""
    definition = EXAMPLES[module_id].definition
    assert definition is not None
    values = effective(definition.manifest, config or {})
    return Hosted(Path(definition.folder), definition.manifest.run.python, config=values, **more)


@pytest.mark.parametrize("module_id", EXAMPLES)
def test_every_example_has_a_manifest_without_faults(module_id: str) -> None:
    assert EXAMPLES[module_id].faults == ()


# vitals/heartbeat-client


def test_heartbeats_are_counted_over_a_reload() -> None:
    with host("vitals/heartbeat-client", {"interval_ms": 100}) as module:
        module.ready().expect("STATUS=2 heartbeats sent")
        state = module.ask("export_state")["result"]
        assert "heartbeats_total" in module.ask("metrics")["result"]["text"]
        beat = json.loads((module.runtime / "nexus-heartbeat.json").read_text())
        assert (beat["module"], beat["replica"]) == ("test/module", 2)
        assert module.stop() == 0
    with host("vitals/heartbeat-client", state=state) as module:
        assert module.expect("STATUS=") == f"STATUS={state['count'] + 1} heartbeats sent"


def test_a_new_interval_counts_at_once() -> None:
    with host("vitals/heartbeat-client", {"interval_ms": 60000}) as module:
        module.ready().expect("STATUS=1 heartbeats sent")
        assert module.ask("configure", key="interval_ms", value=100)["result"] == {"applied": True}
        module.expect("STATUS=3 heartbeats sent")


def test_a_target_that_nobody_can_reach_degrades_and_a_nonsense_target_is_refused() -> None:
    with host("vitals/heartbeat-client", {"interval_ms": 100, "target": "unix:/nowhere/at/all"}) as module:
        control = module.ready().connect()
        while (health := control.ask("health")["result"])["status"] == "healthy":
            pass
        assert health["status"] == "degraded"
        refusal = control.ask("configure", key="target", value="pigeon:home")["error"]
        assert refusal["code"] == -32004
        assert refusal["message"].startswith("target 'pigeon:home' is none of file:PATH")


@pytest.mark.parametrize("kind", ["unix", "udp"])
def test_heartbeats_reach_a_datagram_socket(kind: str, tmp_path: Path) -> None:
    family = socket.AF_UNIX if kind == "unix" else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as receiver:
        receiver.settimeout(PATIENCE_S)
        receiver.bind(str(tmp_path / "s") if kind == "unix" else ("127.0.0.1", 0))
        where = str(tmp_path / "s") if kind == "unix" else f"127.0.0.1:{receiver.getsockname()[1]}"
        with host("vitals/heartbeat-client", {"target": f"{kind}:{where}"}):
            assert json.loads(receiver.recv(1000))["count"] == 1


def test_heartbeats_are_posted_to_a_web_server() -> None:
    bodies: list[bytes] = []

    class Receiver(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Receiver) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        with host(
            "vitals/heartbeat-client", {"target": f"http://127.0.0.1:{server.server_port}/beat"}
        ) as module:
            module.expect("STATUS=1 heartbeats sent")
        thread.join()
    assert json.loads(bodies[0])["count"] == 1


# mesh/echo


@pytest.fixture
def listening() -> Any:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


def connect(listening: socket.socket) -> socket.socket:
    return socket.create_connection(listening.getsockname(), timeout=PATIENCE_S)


def test_echo_answers_lines_and_counts_them(listening: socket.socket) -> None:
    with host("mesh/echo", listen={"echo": listening}) as module, connect(listening) as client:
        client.sendall(b"one\ntwo\n")
        answers = client.makefile("rb")
        assert [answers.readline(), answers.readline()] == [b"one\n", b"two\n"]
        assert "echo_lines_total 2.0" in module.ask("metrics")["result"]["text"]


def test_echo_ends_connections_on_stop_and_the_next_generation_takes_those_that_wait(
    listening: socket.socket,
) -> None:
    with host("mesh/echo", listen={"echo": listening}) as module, connect(listening) as client:
        client.sendall(b"one\n")
        assert client.recv(10) == b"one\n"
        assert module.ready().stop() == 0
        assert client.recv(10) == b""
        with connect(listening) as early:  # nobody runs, and yet nobody is refused
            early.sendall(b"patience\n")
            with host("mesh/echo", listen={"echo": listening}):
                assert early.recv(10) == b"patience\n"


# cortex/exec-demo


def test_the_shell_program_ticks_and_dies_of_sigterm() -> None:
    definition = EXAMPLES["cortex/exec-demo"].definition
    assert definition is not None
    program = subprocess.Popen(
        definition.manifest.run.exec, cwd=definition.folder, stdout=subprocess.PIPE, start_new_session=True
    )
    with program:
        assert program.stdout is not None
        assert program.stdout.readline() == b"tick 1\n"
        os.killpg(program.pid, signal.SIGTERM)
        assert program.wait(PATIENCE_S) == -signal.SIGTERM


# substrate/flaky


def test_flaky_crashes_when_it_said_it_would() -> None:
    with host("substrate/flaky", {"after_s": 0.0}) as module:
        said = module.ready().expect("STATUS=")
        assert said.startswith("STATUS=background task 'crash': flaky.py line ")
        assert said.endswith("RuntimeError: crashed on purpose")
        assert module.exit_status() == 1


# substrate/bus and mesh/greeter


def test_the_greeter_hears_its_own_greeting_over_the_bus_even_after_the_bus_was_reloaded(
    tmp_path: Path,
) -> None:
    path = str(tmp_path / "bus")
    assert EXAMPLES["mesh/greeter"].definition.manifest.requires == ("substrate/bus",)  # type: ignore[union-attr]
    with host("substrate/bus", {"path": path}) as bus:
        bus.ready()
        with host("mesh/greeter", {"bus": path, "interval_ms": 60000}) as greeter:
            greeter.ready()
            bus.expect("STATUS=1 subscribers")
            state = bus.ask("export_state")["result"]
            assert bus.stop() == 0
            with host("substrate/bus", {"path": path}, state=state) as successor:
                successor.ready()
                with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as speaker:
                    speaker.sendto(b"publish good news", path)
                while "heard: good news" not in greeter.log():
                    assert greeter.process.poll() is None
                assert "heard: hello from test/module#2" in greeter.log()


# docs/module-protocol.md


def program_of_the_document(language: str, folder: Path) -> str:
    text = (ROOT / "docs" / "module-protocol.md").read_text()
    program = folder / "program"
    program.write_text(text.partition(f"```{language}\n")[2].partition("```")[0])
    return str(program)


@pytest.mark.skipif(not shutil.which("systemd-notify"), reason="the program needs systemd-notify")
def test_the_documents_shell_program_is_a_good_module(tmp_path: Path) -> None:
    argv = ("/bin/sh", program_of_the_document("sh", tmp_path))
    with Hosted(tmp_path, argv=argv, config={"interval_s": 0.1}) as module:
        assert set(module.notify.recv(100).decode().splitlines()) == {"READY=1", "STATUS=every 0.1 s"}
        module.expect("WATCHDOG=1")
        module.write_config({"interval_s": 0.2})
        module.signal(signal.SIGHUP)
        while "every 0.2 s" not in module.log():
            module.expect("WATCHDOG=1")
        module.signal(signal.SIGTERM)
        module.expect("STOPPING=1")
        module.expect("BARRIER=1")  # systemd-notify waits until this is read
        assert module.exit_status() == 0


def test_the_documents_python_program_is_a_good_module(tmp_path: Path) -> None:
    argv = (sys.executable, program_of_the_document("python", tmp_path))
    with Hosted(tmp_path, argv=argv) as module:
        module.ready()
        control = module.connect()
        assert control.ask("health")["result"] == {"status": "healthy", "reason": None}
        assert control.ask("configure", key="a", value=1)["error"]["code"] == -32601
        assert module.stop() == 0
