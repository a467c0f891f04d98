"""A replica for tests: a host in a child process, with the environment that the keeper would give it."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
HOST = ROOT / "nexusd" / "keeper" / "host.py"
PATIENCE_S = 20.0

# Lays out descriptors as the keeper does: 3 and up, the control socket last; then is the host or executes it
_LAUNCH = """
import os, signal, sys
way, fds, *argv = sys.argv[1:]
aside = [os.dup2(int(fd), 200 + n) for n, fd in enumerate(fds.split())]
for n, fd in enumerate(aside):
    os.dup2(fd, 3 + n)
os.closerange(3 + len(aside), 300)
os.environ["NEXUS_CONTROL_FD"] = str(2 + len(aside))
os.environ["LISTEN_PID"] = str(os.getpid())
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
if way == "exec":
    os.execv(argv[0], argv)
from nexusd.keeper import host
host.warm()
host.run(*argv[-2:])
"""


class Connection:
    """A connection to a control socket."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE_S)
        self.socket.connect(path)
        self.lines = self.socket.makefile("rb")

    def send(self, line: bytes) -> None:
        self.socket.sendall(line)

    def receive(self) -> Any:
        line = self.lines.readline()
        return json.loads(line) if line else None

    def ask(self, method: str, **params: Any) -> Any:
        request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        self.send(json.dumps(request).encode() + b"\n")
        return self.receive()

    def close(self) -> None:
        self.lines.close()
        self.socket.close()


class Hosted:
    """One running replica; leaving the `with` block ends it whatever it does."""

    def __init__(
        self,
        folder: Path,
        python: str | None = None,
        *,
        argv: tuple[str, ...] = (),
        config: dict[str, Any] | None = None,
        state: Any = None,
        warm: bool = False,
        listen: dict[str, socket.socket] | None = None,
        **environment: str,
    ) -> None:
        self._closing = contextlib.ExitStack()
        self.runtime = Path(self._closing.enter_context(tempfile.TemporaryDirectory(prefix="nx")))
        self.notify = self._open(socket.SOCK_DGRAM, "notify")
        self.notify.settimeout(PATIENCE_S)
        control = self._open(socket.SOCK_STREAM, "control")
        control.listen()
        listen = listen or {}
        self.log_path = self.runtime / "log"
        self.write_config(config or {})
        (self.runtime / "state.json").write_text(json.dumps(state))
        fds = [sock.fileno() for sock in (*listen.values(), control)]
        host = (sys.executable, str(HOST), python or "", str(folder))
        launch = (sys.executable, "-c", _LAUNCH, "fork" if warm else "exec", " ".join(map(str, fds)))
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                (*launch, *(argv or host)),
                cwd=folder if folder.is_dir() else None,
                env={
                    "PATH": os.defpath,
                    "PYTHONPATH": str(ROOT) if warm else "",
                    "NEXUS_MODULE_ID": "test/module",
                    "NEXUS_REPLICA": "2",
                    "NEXUS_GENERATION": "3",
                    "NEXUS_RUN": "r1",
                    "NEXUS_CONFIG": str(self.runtime / "config.json"),
                    "NOTIFY_SOCKET": str(self.runtime / "notify"),
                    "TMPDIR": str(self.runtime),
                    **({"NEXUS_FORMER_STATE": str(self.runtime / "state.json")} if state is not None else {}),
                    **(
                        {"LISTEN_FDS": str(len(listen)), "LISTEN_FDNAMES": ":".join(listen)} if listen else {}
                    ),
                    **environment,
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=fds,
            )
        control.close()

    def _open(self, kind: socket.SocketKind, name: str) -> socket.socket:
        sock = self._closing.enter_context(socket.socket(socket.AF_UNIX, kind))
        sock.bind(str(self.runtime / name))
        return sock

    def __enter__(self) -> "Hosted":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self._closing.close()

    def write_config(self, values: dict[str, Any]) -> None:
        (self.runtime / "config.json").write_text(json.dumps(values))

    def expect(self, beginning: str) -> str:
        """The first message from here on that begins so."""
        while not (message := self.notify.recv(4096).decode()).startswith(beginning):
            pass
        return message

    def ready(self) -> "Hosted":
        self.expect("READY=1")
        return self

    def connect(self) -> Connection:
        return self._closing.enter_context(contextlib.closing(Connection(str(self.runtime / "control"))))

    def ask(self, method: str, **params: Any) -> Any:
        return self.connect().ask(method, **params)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def exit_status(self) -> int:
        """How it ends by itself; negative: the signal that killed it."""
        return self.process.wait(PATIENCE_S)

    def stop(self) -> int:
        self.signal(signal.SIGTERM)
        return self.exit_status()

    def log(self) -> str:
        return self.log_path.read_text()
