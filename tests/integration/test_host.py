"""The host with real processes: how a Python module is loaded, started, asked and stopped."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest
from hosted import PATIENCE_S, ROOT, Hosted

HEAD = "import asyncio, os\nfrom nexusd.sdk import Module\n"


def write(folder: Path, body: str, file: str = "thing.py") -> Path:
    (folder / file).write_text(HEAD + dedent(body))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(
        tmp_path,
        """
        class Thing(Module):
            async def start(self):
                self.seen = []

            async def configure(self, key, value):
                if value == "bad":
                    raise ValueError("bad is not good")
                self.status(f"{key} is {self.config[key]}")

            async def health(self):
                return eval(self.config["health"])

            async def export_state(self):
                return eval(self.config["state"])
        """,
    )


@pytest.mark.parametrize("warm", [False, True])
def test_a_module_gets_ready_and_stops_when_told(folder: Path, warm: bool) -> None:
    with Hosted(folder, "thing:Thing", warm=warm) as module:
        assert module.notify.recv(100) == b"READY=1"
        module.signal(signal.SIGTERM)
        assert module.notify.recv(100) == b"STOPPING=1"
        assert module.exit_status() == 0
        assert module.log() == ""


FAILURES = {
    "missing file": (None, "there is no thing.py in "),
    "syntax error": ("x = (1,\ny = 2\n", "thing.py line 3: '(' was never closed"),
    "import error": ("import nowhere\n", "thing.py line 3: ModuleNotFoundError: No module named 'nowhere'"),
    "no class": ("class Thong(Module): pass\n", "thing.py has no class Thing"),
    "no module": ("class Thing: pass\n", "thing.py: Thing is not a subclass of nexusd.sdk.Module"),
    "init raises": (
        "class Thing(Module):\n    def __init__(self): 1 / 0\n    async def start(self): pass\n",
        "thing.py line 4: ZeroDivisionError: division by zero",
    ),
    "start raises": (
        "class Thing(Module):\n    async def start(self):\n        raise OSError('no\\nluck')\n",
        "thing.py line 5: OSError: no luck",
    ),
    "start cancels itself": (
        "class Thing(Module):\n    async def start(self): raise asyncio.CancelledError\n",
        "thing.py line 4: CancelledError",
    ),
    "no start": ("class Thing(Module): pass\n", "NotImplementedError: Thing has no start()"),
    "not async": (
        "class Thing(Module):\n    def start(self): pass\n",
        "thing.py: Thing.start must be written `async def start`",
    ),
}


@pytest.mark.parametrize(("code", "status"), FAILURES.values(), ids=FAILURES)
def test_a_failed_start_says_why_in_one_line(tmp_path: Path, code: str | None, status: str) -> None:
    if code is not None:
        (tmp_path / "thing.py").write_text(HEAD + code)
    with Hosted(tmp_path, "thing:Thing") as module:
        said = module.expect("STATUS=")
        assert said.startswith(f"STATUS={status}")
        assert "\n" not in said
        assert module.exit_status() == 1
        assert "READY" not in said
        log = module.log()
        assert status.rpartition(": ")[2].split()[0] in log
        assert "keeper/" not in log and "importlib" not in log


def test_a_name_of_pythons_own_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "class Thing(Module): pass", "queue.py")
    with Hosted(tmp_path, "queue:Thing") as module:
        assert module.expect("STATUS=").startswith("STATUS=queue.py has the name of a Python module")
        assert module.exit_status() == 1


def test_a_malformed_configuration_fails_the_start(folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    with Hosted(folder, "thing:Thing", NEXUS_CONFIG=str(broken)) as module:
        assert "JSONDecodeError" in module.expect("STATUS=")
        assert module.exit_status() == 1


def test_new_code_is_new_code_even_when_size_and_mtime_are_the_same(tmp_path: Path) -> None:
    (tmp_path / "pack").mkdir()
    helper = tmp_path / "pack" / "helper.py"
    write(
        tmp_path,
        "import pack.helper\nclass Thing(Module):\n    async def start(self): self.status(pack.helper.W)",
    )
    for word in ("old", "new"):
        helper.write_text(f"W = {word!r}\n")
        os.utime(helper, (1_000_000_000, 1_000_000_000))
        # The second time this finds its cache of the old code fresh enough, as any import would.
        subprocess.run([sys.executable, "-m", "compileall", "-q", str(tmp_path)], check=True)
        with Hosted(tmp_path, "thing:Thing") as module:
            assert module.expect("STATUS=") == f"STATUS={word}"


def test_no_bytecode_is_written_beside_a_module_but_other_imports_keep_their_caches(tmp_path: Path) -> None:
    library, folder = tmp_path / "library", tmp_path / "module"
    library.mkdir()
    folder.mkdir()
    (library / "third.py").write_text("")
    (folder / "near.py").write_text("")
    write(folder, "import near, third\nclass Thing(Module):\n    async def start(self): pass")
    with Hosted(folder, "thing:Thing", PYTHONPATH=str(library)) as module:
        module.ready()
    assert (library / "__pycache__").exists()
    assert not (folder / "__pycache__").exists()


def test_what_a_module_finds_around_it(tmp_path: Path) -> None:
    write(
        tmp_path,
        """
        class Thing(Module):
            def __init__(self):
                self.found = [self.module_id, self.replica, self.generation, self.config]

            async def start(self):
                self.log.warning("two\\nlines")
                print("printed")
                self.status(repr(self.found))
        """,
    )
    with Hosted(tmp_path, "thing:Thing", config={"a": 1}) as module:
        assert module.expect("STATUS=") == "STATUS=['test/module', 2, 3, {'a': 1}]"
        module.ready()
        warning, printed = module.log().splitlines()
        assert warning.endswith(r" WARNING thing: two\nlines")
        assert printed == "printed"


def test_children_of_a_module_inherit_neither_its_sockets_nor_its_notify_socket(tmp_path: Path) -> None:
    write(
        tmp_path,
        """
        import json, subprocess
        SHOW = "import os, json; print(json.dumps([sorted(os.environ), sorted(os.listdir('/proc/self/fd'))]))"

        class Thing(Module):
            async def start(self):
                import sys
                self.status(subprocess.check_output([sys.executable, "-c", SHOW], text=True, close_fds=False))
        """,
    )
    web = socket.create_server(("127.0.0.1", 0))
    with web, Hosted(tmp_path, "thing:Thing", listen={"web": web}, WATCHDOG_USEC="60000000") as module:
        names, fds = json.loads(module.expect("STATUS=").removeprefix("STATUS="))
    assert "NEXUS_MODULE_ID" in names
    assert not [
        name for name in names if name.startswith(("LISTEN_", "NOTIFY_", "WATCHDOG_", "NEXUS_CONTROL"))
    ]
    assert fds == ["0", "1", "2", "3"]  # 3: the listing itself


def test_listening_sockets_come_by_name_or_by_address(tmp_path: Path) -> None:
    write(tmp_path, "class Thing(Module):\n    async def start(self): self.status(' '.join(self.sockets))")
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        addresses = [f"tcp:127.0.0.1:{sock.getsockname()[1]}" for sock in (one, two)]
        with Hosted(tmp_path, "thing:Thing", listen={"web": one, "admin": two}) as module:
            assert module.expect("STATUS=") == "STATUS=web admin"
        with Hosted(tmp_path, "thing:Thing", listen=dict(zip(addresses, (one, two), strict=True))) as module:
            assert module.expect("STATUS=") == "STATUS=" + " ".join(addresses)


def test_the_watchdog_is_fed_from_the_loop(folder: Path) -> None:
    with Hosted(folder, "thing:Thing", WATCHDOG_USEC="40000") as module:
        for _ in range(4):
            module.expect("WATCHDOG=1")


def test_a_hanging_module_that_is_aborted_shows_where_it_hung(tmp_path: Path) -> None:
    hang = "self.status('hanging'); os.read(os.pipe()[0], 1)"
    code = f"class Thing(Module):\n    async def start(self):\n        {hang}"
    with Hosted(write(tmp_path, code), "thing:Thing") as module:
        module.expect("STATUS=hanging")
        module.signal(signal.SIGABRT)
        assert module.exit_status() == -signal.SIGABRT
        assert 'thing.py", line 5 in start' in module.log()


def test_ready_is_told_again_until_it_is_heard(folder: Path) -> None:
    module = Hosted(folder, "thing:Thing")
    with module, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as crowd:
        crowd.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                crowd.sendto(b"STATUS=crowd", str(module.runtime / "notify"))
        assert module.ask("metrics")["result"] == {"text": ""}  # it is ready, and could not say so
        module.ready()


# Stopping.

ORDERLY = """
    class Thing(Module):
        async def start(self):
            self.background(self.work())

        async def work(self):
            try:
                await asyncio.Event().wait()
            finally:
                self.status("work ended")

        async def stop(self):
            self.go = asyncio.Event()
            self.status("stopping")
            await self.go.wait()

        async def configure(self, key, value):
            self.go.set()
"""


def test_background_tasks_end_before_stop_and_a_second_sigterm_does_nothing_more(tmp_path: Path) -> None:
    with Hosted(write(tmp_path, ORDERLY), "thing:Thing") as module:
        module.ready()
        control = module.connect()
        assert control.ask("health")["result"]["status"] == "healthy"
        module.signal(signal.SIGINT)
        assert [module.notify.recv(100) for _ in range(3)] == [
            b"STOPPING=1",
            b"STATUS=work ended",
            b"STATUS=stopping",
        ]
        module.signal(signal.SIGTERM)
        assert control.ask("configure", key="go", value=1)["result"] == {"applied": True}
        assert module.exit_status() == 0


def test_a_start_that_is_told_to_stop_is_cancelled_and_stop_is_not_called(tmp_path: Path) -> None:
    write(
        tmp_path,
        """
        class Thing(Module):
            async def start(self):
                self.status("starting")
                await asyncio.Event().wait()

            async def stop(self):
                self.status("stop was called")
        """,
    )
    with Hosted(tmp_path, "thing:Thing") as module:
        module.expect("STATUS=starting")
        assert module.stop() == 0
        assert module.notify.recv(100) == b"STOPPING=1"
        module.notify.setblocking(False)
        with pytest.raises(BlockingIOError):
            module.notify.recv(100)


def test_a_failed_background_task_ends_the_module_after_stop(tmp_path: Path) -> None:
    write(
        tmp_path,
        """
        class Thing(Module):
            async def start(self):
                self.background(self.work(), name="work")

            async def work(self):
                raise LookupError("lost")

            async def stop(self):
                self.status("stop was called")
        """,
    )
    with Hosted(tmp_path, "thing:Thing") as module:
        assert module.expect("STATUS=") == "STATUS=background task 'work': thing.py line 9: LookupError: lost"
        assert module.expect("STATUS=") == "STATUS=stop was called"
        assert module.exit_status() == 1
        assert "LookupError: lost" in module.log()


def test_a_stop_that_raises_is_told(tmp_path: Path) -> None:
    hooks = "async def start(self): pass\n    async def stop(self): raise OSError('stuck')"
    code = f"class Thing(Module):\n    {hooks}"
    with Hosted(write(tmp_path, code), "thing:Thing") as module:
        assert module.ready().stop() == 1
        assert module.expect("STATUS=") == "STATUS=thing.py line 5: OSError: stuck"


def test_sys_exit_means_what_it_says(tmp_path: Path) -> None:
    code = "import sys\nclass Thing(Module):\n    async def start(self): sys.exit(7)"
    with Hosted(write(tmp_path, code), "thing:Thing") as module:
        assert module.exit_status() == 7


def test_a_thread_that_is_stuck_does_not_hold_a_stopped_module(tmp_path: Path) -> None:
    write(
        tmp_path,
        """
        import threading
        class Thing(Module):
            async def start(self):
                threading.Thread(target=threading.Event().wait).start()
        """,
    )
    with Hosted(tmp_path, "thing:Thing") as module:
        assert module.ready().stop() == 0


def test_writing_to_a_closed_pipe_is_an_exception_not_a_death(tmp_path: Path) -> None:
    write(
        tmp_path,
        """
        class Thing(Module):
            async def start(self):
                reading, writing = os.pipe()
                os.close(reading)
                os.write(writing, b"x")
        """,
    )
    with Hosted(tmp_path, "thing:Thing") as module:
        assert "BrokenPipeError" in module.expect("STATUS=")
        assert module.exit_status() == 1


def test_a_forked_host_never_returns_into_its_parents_code(folder: Path) -> None:
    script = """
import os, sys
from nexusd.keeper import host
host.warm()
pid = os.fork()
try:
    if pid == 0:
        host.run("nothing:Nothing", sys.argv[1])
finally:
    print("returned in", "child" if pid == 0 else "parent", flush=True)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    command = [sys.executable, "-c", script, str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    assert done.stdout.splitlines() == ["returned in parent", "1"]


# State and configuration.


def test_state_is_imported_before_start(tmp_path: Path) -> None:
    write(
        tmp_path,
        """
        class Thing(Module):
            count = 0

            async def import_state(self, state):
                self.count = state["count"]

            async def start(self):
                self.count += 1

            async def export_state(self):
                return {"count": self.count}
        """,
    )
    with Hosted(tmp_path, "thing:Thing", state={"count": 41}) as module:
        assert module.ready().ask("export_state")["result"] == {"count": 42}
    with Hosted(tmp_path, "thing:Thing", NEXUS_FORMER_STATE=str(tmp_path / "gone")) as module:
        assert module.ready().ask("export_state")["result"] == {"count": 1}
        assert "WARNING thing: no state to import" in module.log()


def test_sighup_applies_what_differs_in_the_configuration(folder: Path) -> None:
    with Hosted(folder, "thing:Thing", config={"a": 1, "b": 1, "c": 1, "health": "None"}) as module:
        module.ready()
        module.write_config({"a": 1, "b": "bad", "c": 2})
        module.signal(signal.SIGHUP)
        assert module.expect("RELOADING=1").partition("\n")[2].startswith("MONOTONIC_USEC=")
        assert module.expect("STATUS=") == "STATUS=c is 2"
        module.ready()
        assert "ERROR thing: refused b, the old value stays: thing.py line" in module.log()
        assert module.ask("health")["result"]["status"] == "healthy"


def test_a_refused_value_leaves_the_old_one_in_place(folder: Path) -> None:
    with Hosted(folder, "thing:Thing", config={"health": "('degraded', dict(self.config))"}) as module:
        control = module.ready().connect()
        before = control.ask("health")
        assert control.ask("configure", key="new", value="bad")["error"] == {
            "code": -32004,
            "message": "bad is not good",
            "data": {"kind": "bad_value"},
        }
        assert control.ask("health") == before
        assert control.ask("configure", key="new", value=[1])["result"] == {"applied": True}
        assert "[1]" in control.ask("health")["result"]["reason"]


# The control socket.


def test_a_raising_hook_is_an_error_and_the_module_lives(folder: Path) -> None:
    with Hosted(folder, "thing:Thing", config={"health": "1 / 0", "state": "{1, 2}"}) as module:
        control = module.ready().connect()
        health = control.ask("health")["result"]
        assert health["status"] == "unhealthy"
        assert "ZeroDivisionError: division by zero" in health["reason"]
        assert control.ask("export_state")["error"]["code"] == -32603
        assert control.ask("metrics")["result"] == {"text": ""}


def test_a_line_that_is_too_long_ends_its_connection_only(folder: Path) -> None:
    with Hosted(folder, "thing:Thing") as module:
        control = module.ready().connect()
        with contextlib.suppress(OSError):  # it may hang up while we are still talking
            control.send(b"x" * (1024 * 1024 + 1))
            assert control.receive()["error"]["code"] == -32600
            assert control.receive() is None
        assert module.ask("metrics")["result"] == {"text": ""}


def test_who_hangs_up_withdraws_the_question(tmp_path: Path) -> None:
    write(
        tmp_path,
        """
        class Thing(Module):
            async def start(self): pass

            async def health(self):
                self.status("asked")
                try:
                    await asyncio.Event().wait()
                finally:
                    self.status("withdrawn")
        """,
    )
    with Hosted(tmp_path, "thing:Thing") as module:
        control = module.ready().connect()
        control.send(b'{"jsonrpc":"2.0","id":1,"method":"health"}\n')
        module.expect("STATUS=asked")
        control.close()
        module.expect("STATUS=withdrawn")
