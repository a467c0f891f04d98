"""What the author of a Python module imports: the class Module.

How a module is loaded, started, asked and stopped is the host's affair (nexusd/keeper/host.py).
"""

import asyncio
import importlib
import logging
import socket
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from nexusd.connections import Answer, LineServer

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

HOOKS = ("start", "stop", "health", "configure", "export_state", "import_state")
Health = bool | str | tuple[str, str] | dict[str, str | None] | None


def _nobody_listens(message: str) -> bool:
    return True


def _log_failure(name: str, error: BaseException) -> None:
    logging.getLogger(__name__).error("background task %s failed", name, exc_info=error)


@dataclass(frozen=True)
class Surroundings:
    """What a replica finds around it. The defaults are those of a module under test, without nexusd."""

    module_id: str = "local/module"
    replica: int = 0
    generation: int = 1
    config: dict[str, Any] = field(default_factory=dict)
    sockets: dict[str, socket.socket] = field(default_factory=dict)
    log: logging.Logger = field(default_factory=lambda: logging.getLogger("module"))
    notify: Callable[[str], bool] = _nobody_listens
    task_failed: Callable[[str, BaseException], None] = _log_failure
    stop_timeout_s: float = 10.0


class Module:
    """A module of nexusd: write `start`, and the other hooks when you need them.

        from nexusd.sdk import Module

        class Clock(Module):
            async def start(self):
                self.background(self.tick(), name="tick")

            async def tick(self):
                while True:
                    self.log.info("it is %s", time.ctime())
                    await asyncio.sleep(self.config["interval_ms"] / 1000)

    Beside it lies `module.toml` with `[run] python = "clock:Clock"` and a `[config.interval_ms]` table.
    Each replica is a process of its own: block, crash or leak, and nobody else suffers.

    You find, already in `__init__`:

        self.config      dict of the current values, defaults filled in; `configure` keeps it up to date
        self.log         a logging.Logger; each record is a line of the module's log
        self.metrics     a prometheus_client registry: Counter("beats", "...", registry=self.metrics)
        self.sockets     listening sockets of the manifest's `listen`, by name; they survive reloads
        self.module_id   "vitals/clock";  self.replica  0, 1, 2...;  self.generation  counts reloads
        self.status(...)      one line for humans, shown by `nexusctl status`
        self.background(...)  a task that runs beside you; if it fails, the module fails
        self.serve_lines(...) answers connections line by line; a reload loses none of them
        self.stop_timeout_s   how long you may take to stop
        self.notify(...)      any other sd_notify message

    The order of a life: `import_state` (after a reload, if there is a state), `start`, then any number of
    `health`, `configure` and `export_state`; at the end `serve_lines` finishes what it is answering, the
    background tasks are cancelled and have ended, and then `stop` is called. `stop` is only called when
    `start` has returned. The process ends as soon as `stop` returns: threads are not waited for, `atexit` is
    not run.
    """

    config: dict[str, Any]
    log: logging.Logger
    sockets: dict[str, socket.socket]
    module_id: str
    replica: int
    generation: int
    notify: Callable[[str], bool]
    tasks: set[asyncio.Task[Any]]
    servers: dict[str, LineServer]
    stop_timeout_s: float
    _registry: "CollectorRegistry | None"

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Attributes are there before `__init__`, so that yours need not call ours."""
        module = super().__new__(cls)
        module.settle(Surroundings())
        return module

    # Hooks: yours to write.

    async def start(self) -> None:
        """Get ready to work, then return: only then the module counts as started. What goes on for ever
        belongs into `background`. An exception fails the start and is shown to whoever asked for it."""
        raise NotImplementedError(f"{type(self).__name__} has no start()")

    async def stop(self) -> None:
        """Finish what is in flight and let go. After the manifest's `[stop] timeout` comes SIGKILL."""

    async def health(self) -> Health:
        """None, True or "healthy": all is well. ("degraded", "why"), {"status": "unhealthy", "reason": "why"}: not so.
        False is unhealthy without a reason; so is an exception, with its text for a reason."""
        return None

    async def configure(self, key: str, value: Any) -> None:
        """A value has changed and stands in `self.config`. Raise to refuse it: the old one comes back."""

    async def export_state(self) -> Any:
        """What the next generation shall know, as JSON values; None for nothing. Called before a reload."""
        return None

    async def import_state(self, state: Any) -> None:
        """What the generation before exported. Called before `start`; an exception fails the start."""

    # What you may call.

    @property
    def metrics(self) -> "CollectorRegistry":
        """This module's own registry. A module without metrics does not pay for the import."""
        registry = self._registry
        if registry is None:
            prometheus = importlib.import_module("prometheus_client")
            prometheus.disable_created_metrics()
            registry = self._registry = prometheus.CollectorRegistry()
        return registry

    def status(self, text: str) -> None:
        """Say in one line what the module is doing; it replaces what was said before."""
        self.notify("STATUS=" + " ".join(text.split()))

    def background(self, coro: Coroutine[Any, Any, Any], *, name: str | None = None) -> asyncio.Task[Any]:
        """Run this beside the rest. It may end; if it fails, the module stops with exit status 1 and the
        restart policy decides. It is cancelled before `stop` is called: clean up in a `finally`."""
        task = asyncio.get_running_loop().create_task(coro, name=name)
        self.tasks.add(task)
        task.add_done_callback(self._task_ended)
        return task

    def serve_lines(self, answer: Answer, name: str, *, limit: int = 65536) -> None:
        """Accept connections on the listening socket of this name, and have `answer(line)`, a coroutine
        function, answer each line; both with their newline. What it raises ends the connection. When the
        module is reloaded gracefully or rolling, open connections go on with the next generation, between two
        lines; at any other stop they are closed when no line is being answered."""
        self.servers[name] = LineServer(self.sockets[name], answer, self.log, limit)

    # What the host calls.

    def settle(self, place: Surroundings) -> None:
        """Take these surroundings; the host does it once, before `__init__`."""
        self.module_id, self.replica, self.generation = place.module_id, place.replica, place.generation
        self.config, self.sockets, self.log = place.config, place.sockets, place.log
        self.notify, self._task_failed = place.notify, place.task_failed
        self.tasks = set()
        self.servers = {}
        self.stop_timeout_s = place.stop_timeout_s
        self._registry = None

    def exposition(self) -> str:
        """The metrics in Prometheus's text format; empty when `metrics` was never used."""
        if self._registry is None:
            return ""
        text: bytes = importlib.import_module("prometheus_client").generate_latest(self._registry)
        return text.decode()

    def _task_ended(self, task: asyncio.Task[Any]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._task_failed(task.get_name(), error)
