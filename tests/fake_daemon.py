"""A daemon for the tests of nexusctl: a real Unix socket, answers written by the test, no modules."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

Params = dict[str, Any]
Answer = Callable[[Params, "Connection"], Params]


class Refusal(Exception):
    """Raised by an answer: becomes the error object."""

    def __init__(self, code: int, message: str, **data: Any) -> None:
        super().__init__(message)
        self.error = {"code": code, "message": message, "data": data}


class Connection:
    """What an answer may do with the connection it was asked on, besides answering."""

    def __init__(self, accepted: socket.socket) -> None:
        self._socket = accepted
        self._lock = threading.Lock()
        self._afterwards: list[Callable[[], None]] = []

    def send(self, message: Params) -> None:
        with self._lock:
            self._socket.sendall(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")

    def notify(self, method: str, **params: Any) -> None:
        self.send({"method": method, "params": params})

    def afterwards(self, act: Callable[[], None]) -> None:
        """Do this when the answer has been sent."""
        self._afterwards.append(act)

    def answered(self) -> None:
        for act in self._afterwards:
            act()
        self._afterwards.clear()

    def hush(self) -> None:
        """Read no more, as nexusd does before it closes a connection."""
        self._socket.shutdown(socket.SHUT_RD)

    def close(self) -> None:
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._socket.close()


class FakeDaemon:
    """`answers` maps a method to a result, or to a function of (params, connection) that makes one.

    Each request runs in a thread of its own, so that an answer may wait for another request.
    """

    def __init__(self, path: Path, answers: dict[str, Any]) -> None:
        self.path = path
        self.answers = answers
        self.asked: list[tuple[str, Params]] = []
        self._connections: list[Connection] = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> FakeDaemon:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        try:
            self._listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._listener.close()
        for connection in self._connections:
            connection.close()

    def asked_for(self, method: str) -> list[Params]:
        return [params for name, params in self.asked if name == method]

    def _accept(self) -> None:
        while True:
            try:
                accepted, _ = self._listener.accept()
            except OSError:
                return
            connection = Connection(accepted)
            self._connections.append(connection)
            threading.Thread(target=self._serve, args=(accepted, connection), daemon=True).start()

    def _serve(self, accepted: socket.socket, connection: Connection) -> None:
        try:
            for line in accepted.makefile("rb"):
                request = json.loads(line)
                self.asked.append((request["method"], request.get("params") or {}))
                threading.Thread(target=self._answer, args=(request, connection), daemon=True).start()
        except OSError:
            return

    def _answer(self, request: Params, connection: Connection) -> None:
        message = {"id": request["id"], **self._outcome(request, connection)}
        try:
            connection.send(message)
            connection.answered()
        except OSError:
            return

    def _outcome(self, request: Params, connection: Connection) -> Params:
        method = request["method"]
        if method not in self.answers:
            refusal = Refusal(-32601, f"no such method: {method}", kind="method_not_found")
            return {"error": refusal.error}
        answer = self.answers[method]
        try:
            return {"result": answer(request.get("params") or {}, connection) if callable(answer) else answer}
        except Refusal as refusal:
            return {"error": refusal.error}


def summary(module_id: str, state: str = "started", **other: Any) -> Params:
    """A module as the list of `get_status` has it."""
    health = {"started": "healthy", "stopped": "degraded"}.get(state, "unhealthy")
    wanted = "stopped" if state in ("stopped", "loaded") else "started"
    ready = 1 if state == "started" else 0
    return {
        "id": module_id,
        "state": state,
        "wanted": wanted,
        "health": health,
        "version": "2.0.0",
        "generation": 1,
        "critical": False,
        "replicas": {"wanted": 1, "ready": ready},
        "since": 1735689600.0,
        "restarts": 0,
        "reason": None,
        **other,
    }


def replica(module_id: str, index: int = 0, **other: Any) -> Params:
    """A replica as `get_status` of one module has it."""
    return {
        "name": f"{module_id}#{index}",
        "index": index,
        "generation": 1,
        "state": "started",
        "ready": True,
        "pid": 4711 + index,
        "since": 1735689600.0,
        "uptime_seconds": 93784.0,
        "restarts": 0,
        "status_text": None,
        "last_exit": None,
        "next_attempt_in_s": None,
        "log": f"/var/log/nexus/{module_id}#{index}.log",
        **other,
    }


def detail(module_id: str, state: str = "started", **other: Any) -> Params:
    """A module as `get_status` of it alone has it."""
    return {
        **summary(module_id, state),
        "description": f"The module {module_id}",
        "folder": f"/etc/nexus/modules/{module_id}",
        "requires": [],
        "required_by": [],
        "after": [],
        "permissions": [],
        "uptime_seconds": 93784.0 if state == "started" else None,
        "pending_reload": False,
        "refused_reload": None,
        "instances": [],
        "config": {},
        "health_reasons": [],
        "faults": [],
        "limits": {"enforced_by": "none"},
        **other,
    }


def status(items: list[Params], **other: Any) -> Params:
    """`get_status` of the daemon."""
    health = [item["health"] for item in items]
    states = [item["state"] for item in items]
    return {
        "running": True,
        "version": "2.0.0",
        "level": "level-14.5-basic",
        "pid": 1,
        "uptime_seconds": 273845.5,
        "security": {"principal": "root", "roles": ["admin"]},
        "features": {"cluster": False, "tracing": False, "compliance": False},
        "modules": {
            "total_discovered": len(items),
            "total_loaded": len(items),
            "by_state": {state: states.count(state) for state in states},
            "items": items,
        },
        "health": {
            "statistics": {
                "total": len(items),
                "healthy": health.count("healthy"),
                "degraded": health.count("degraded"),
                "unhealthy": health.count("unhealthy"),
            }
        },
        "keeper": {"pid": 7, "connected": True},
        "module_paths": ["/etc/nexus/modules"],
        "warnings": [],
        **other,
    }


def status_of(items: list[Params], details: list[Params] | None = None) -> Answer:
    """An answer to `get_status`, with and without module_id."""
    pages = {one["id"]: one for one in details or []}

    def answer(params: Params, connection: Connection) -> Params:
        module_id = params.get("module_id")
        if module_id is None:
            return status(items)
        if module_id not in pages:
            raise Refusal(-32002, f"no such module: {module_id}", kind="no_such_module", module_id=module_id)
        return pages[module_id]

    return answer
