"""UniversalDaemon: the order in which the parts come up and go down, and what a command asks of them all.

It decides nothing about modules (the supervisor's domain does) and nothing about requests (`rpc`); which part gets
which is `composition`'s.
"""

import asyncio
import gc
import logging
import os
import signal
import time
from collections.abc import Coroutine, Iterable
from pathlib import Path
from types import EllipsisType
from typing import Any

from nexusd import __version__
from nexusd.composition import Composition, Ground, Whole, api_server
from nexusd.config import Config, Options, read_config
from nexusd.domain import replacing
from nexusd.domain.access import SecurityContext
from nexusd.domain.errors import NexusError, NotPossible, ShuttingDown
from nexusd.domain.events import Want
from nexusd.domain.fleet import Fleet
from nexusd.domain.module import Module
from nexusd.domain.replica import Stuck
from nexusd.keeper import protocol
from nexusd.keeper.proctable import become_subreaper
from nexusd.place import Place, Successor
from nexusd.rpc.door import Door, Params
from nexusd.rpc.knock import knock
from nexusd.system.handover import (
    Handover,
    hold_signals_back,
    keep_for_successor,
    let_signals_come,
    without_threads,
)
from nexusd.system.notify import Given
from nexusd.terms import Terms

log = logging.getLogger("nexusd")

EXIT_GAVE_UP = 10
WELCOME_S = 30.0
_GRACE_S, _FORCED_S = 5.0, 1.0  # for what is in flight when another nexusd takes over


class UniversalDaemon:
    """One nexusd. Call initialize, discover_and_load_modules, start, run, in that order; shutdown ends run."""

    def __init__(
        self,
        security_context: SecurityContext | None = None,
        config: Config | None = None,
        given: Given | None = None,
    ) -> None:
        """given: by systemd, and by the nexusd that this process was before, see `system/notify.py`."""
        self.security_context = security_context or SecurityContext()
        self._given = given or Given()
        self.config = config or read_config(Options(), os.environ, os.getuid())
        self.exit_status = 0
        self._warnings: list[str] = []
        self._terms = Terms(self.config, self.security_context, self._warn)
        self._leaving = asyncio.Event()
        self._leaves_modules = False
        self._place = Place(self.config, self._given)
        self._successor: Successor | None = None
        self.handover: Handover | None = None  # when `run` has returned: for who takes this one's place
        self._reloading = asyncio.Lock()
        self._is_running = False
        self._whole = self._as_whole()
        self._door = Door(lambda: api_server(self._whole, self._parts))

    # Coming up

    async def initialize(self) -> None:
        """Folders, lock, store and keeper. Raises NotPossible, store.Unusable, OSError."""
        self._take_signals()
        become_subreaper()  # replicas whose keeper dies become ours, with their exit statuses
        self._place.lock()
        ground = Ground(self.config, self._given, self._hear)
        ground.open(self._warn)
        self._parts = Composition(self._whole, ground)
        self._terms.begin()
        if (handed := self._given.handed) is not None:
            self._parts.herald.takes_over(handed.was_ready)
        self._door.open()

    def _as_whole(self) -> Whole:
        return Whole(
            config=self.config,
            given=self._given,
            context=self.security_context,
            terms=self._terms,
            started_at=time.monotonic(),
            daemon=self,
            replaceable=self,
            warn=self._warn,
            warnings=self._all_warnings,
            gave_up=self._gave_up,
            cut_short=self._cut_short,
            is_running=lambda: self._is_running,
            is_leaving=self._is_leaving,
        )

    def _take_signals(self) -> None:
        """From the first moment on: a SIGTERM during the start ends what was started, too."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end_on_signal, number)
        loop.add_signal_handler(signal.SIGHUP, lambda: None)  # nothing is old yet; its default would end us
        let_signals_come()  # those that came while this one took the place of another

    async def discover_and_load_modules(
        self, paths: Iterable[str | Path] | EllipsisType | None = None
    ) -> None:
        """Find the modules and put them into the fleet; what a former nexusd left running is adopted.

        `paths` takes the place of the configured folders; `...`, as AEON's text has it, leaves those.
        """
        parts = self._parts
        if paths is not None and not isinstance(paths, EllipsisType):
            parts.catalogue.paths = tuple(os.path.abspath(path) for path in paths)
        found = await parts.catalogue.discover()
        if any(one.definition and one.definition.manifest.run.python for one in found):
            parts.keeper.warm()
        await self._hear_welcome()
        parts.catalogue.load(found)
        known = {one.id for one in found}
        for module_id in parts.news.forgotten(known):
            parts.processes.remember(module_id, None)

    async def _hear_welcome(self) -> None:
        try:
            async with asyncio.timeout(WELCOME_S):
                await self._parts.news.welcomed.wait()
        except TimeoutError:
            raise NotPossible(f"the keeper has not answered for {WELCOME_S:g} s") from None

    async def start(self) -> None:
        """Adopt what runs, start what is wanted, open the API socket."""
        config, parts = self.config, self._parts
        self._place.bind()  # first: where another nexusd answers, this one is refused before it has started anything
        self._set_modules_going()
        await self._place.serve(await self._door.server())
        self._is_running = True
        await self._place.take_over(parts.events.add, self._warn)
        parts.herald.serves(self._reach)
        gc.freeze()  # what was imported stays: a full collection that went through it would hold the loop for 20 ms
        parts.lag.start()
        parts.retries.start()
        self._place.serve_metrics(parts.web)
        log.info("modules run %s", parts.containment.described())
        count = len(parts.supervisor.fleet.modules)
        log.info("nexusd %s serves %s, %d modules", __version__, config.socket, count)

    def _set_modules_going(self) -> None:
        parts = self._parts
        parts.processes.holds_back = False
        parts.operations.tell_adopted()
        parts.news.begin()
        parts.clock.start()  # not before: a deadline that passed while nobody looked may have been met in time
        parts.chaos_clock.start()
        parts.chaos.restore(parts.store.experiments())
        parts.catalogue.start_wanted()
        self._clear_away()

    async def _reach(self, patience_s: float) -> str | None:
        """What the loop could not reach in one pass; None: keeper and API have answered.

        A keeper that is lost is being replaced, with growing pauses: another nexusd could do no more.
        """
        if self._successor is not None:
            return None  # what is asked on the API socket now, the next one answers
        keeper = self._parts.keeper
        if keeper.connected and not await keeper.answers(patience_s):
            return f"the keeper has not answered for {patience_s:g} s"
        if self._given.api is not None and not os.path.exists(self.config.socket):
            # systemd holds the socket: no other nexusd could mend that, so it is no reason to be replaced.
            self._warn_once(
                f"the file {self.config.socket} is gone: systemctl restart nexusd.socket nexusd.service makes it anew"
            )
            return None
        return await knock(self.config.socket, patience_s)

    def _warn_once(self, text: str) -> None:
        if text not in self._warnings:
            self._warn(text)

    def _clear_away(self) -> None:
        """What a nexusd that was killed left in the runtime folder: sockets and configurations of former runs."""
        parts = self._parts
        in_use = parts.keeper.socket_paths()
        for entry in tuple(os.scandir(os.path.join(self.config.runtime, "r"))):
            if entry.path not in in_use:
                os.unlink(entry.path)
        modules = parts.supervisor.fleet.modules.values()
        parts.containment.tidy(parts.keeper.keys())
        parts.configs.tidy(modules)
        parts.copies.tidy(modules)

    async def reload(self) -> dict[str, Any]:
        """Read nexusd.toml and all manifests again."""
        async with self._reloading:  # of two at once, the one that read first could have the last word
            self._refuse_when_leaving()
            with self._parts.herald.reloading():
                config = self._reload_config()
                found = await self._parts.catalogue.discover()
                self._refuse_when_leaving()  # a module that is started now would keep us from leaving
                told = self._parts.catalogue.refresh(found)
        self._parts.events.add("daemon.reloaded")
        return {**told, "config": config}

    def _is_leaving(self) -> bool:
        return self._leaving.is_set() and self._successor is None

    def _refuse_when_leaving(self) -> None:
        if self._is_leaving():
            raise ShuttingDown("nexusd is shutting down")

    async def reexec(self, force: bool, timeout_s: float | None) -> dict[str, Any]:
        """Have `run` end with a handover, once the installed nexusd has shown that it can take over."""
        self._refuse_when_leaving()
        report = await self._parts.replacement.try_out(force, timeout_s)
        self._refuse_when_leaving()
        hold_signals_back()
        self._successor = Successor(report.version, _FORCED_S if force else _GRACE_S, time.monotonic())
        self._leaves_modules = True
        self._place.hold()
        self._parts.events.add("daemon.reexec", reason=f"{__version__} → {report.version}")
        self._leaving.set()
        keeper = "stays" if report.keeper_protocol == protocol.VERSION else "is replaced"
        return {"reexec": True, "from": __version__, "to": report.version, "keeper": keeper}

    def _cut_short(self) -> list[str]:
        experiments = {one.trial.id: one.module_id for one in self._parts.chaos.register}
        untold = self._parts.operations.untold
        told = replacing.under_way(
            self._parts.supervisor.fleet, self._parts.under_way.all, experiments, untold
        )
        return [*told, *(["a reload of nexusd.toml"] if self._reloading.locked() and not told else [])]

    def _reload_config(self) -> dict[str, list[str]]:
        if (fresh := self._terms.fresh()) is None:
            return {"in_force": [], "waits_for_restart": []}
        self._warnings.clear()
        return self._terms.renew(fresh)

    # Callers in this process

    async def call(self, method: str, params: Params = None) -> Any:
        """What the API socket would answer this process's own user, within the bounds of the security context.

        Raises CallFailed, CallRefused (a PermissionError), and ConnectionError before `initialize` and at the end.
        """
        return await self._door.call(method, params)

    def call_now(self, method: str, params: Params = None, timeout_s: float = 5.0) -> Any:
        """The same without await: any method from another thread; in the daemon's own, what only reads."""
        return self._door.call_now(method, params, timeout_s)

    # Going on and going down

    async def run(self) -> int:
        """Until shutdown, a signal, or a module that the daemon must not outlive. Returns the exit status."""
        asyncio.get_running_loop().add_signal_handler(
            signal.SIGHUP, lambda: self._errand(self._reload_on_signal())
        )
        await self._leaving.wait()
        if self._successor is not None:
            self.handover = await self._hand_over(self._successor)
            return 0
        self._parts.herald.leave()
        await self._parts.chaos.leave()  # first: what is frozen does not hear that it is to stop
        if not self._leaves_modules:
            await self._stop_modules()
        await self._close()
        return self.exit_status

    def shut_down(self) -> None:
        """Have `run` stop all modules and return."""
        if not self._leaving.is_set():
            log.info("shutting down")
            self._leaving.set()

    def _end_on_signal(self, number: int) -> None:
        """`systemctl stop` and `restart` look alike from here: nexusd.toml says what they mean to the modules."""
        if self._successor is not None:
            keep_for_successor(number)
            return
        if self.config.daemon.on_stop == "leave-modules" and not self._leaving.is_set():
            log.info("the modules go on without nexusd")
            self._leaves_modules = True
        self.shut_down()

    async def shutdown(self) -> None:
        """The same for a caller in this process."""
        self.shut_down()

    def _errand(self, work: Coroutine[Any, Any, None]) -> None:
        self._task = asyncio.get_running_loop().create_task(work)

    async def _reload_on_signal(self) -> None:
        try:
            told = await self.reload()
        except NexusError as error:
            log.error("not reloaded: %s", f"{error}: {error.reason}" if error.reason else error)
            return
        log.info(
            "reloaded: %s",
            ", ".join(f"{len(told[what])} {what}" for what in ("added", "changed", "removed", "invalid")),
        )

    async def _stop_modules(self) -> None:
        """In reverse order of dependency; each has its own time-out, so this ends."""
        modules = self._parts.supervisor.fleet.modules
        ids = tuple(id for id, module in modules.items() if module.wanted or module.is_active)
        self._parts.supervisor.observers.append(self._stop_again)
        self._parts.supervisor.handle(Want(ids, False))
        await self._until_nothing_runs()

    async def _until_nothing_runs(self) -> None:
        supervisor = self._parts.supervisor
        await supervisor.until(supervisor.fleet.modules, _nothing_runs, None)

    def _stop_again(self, _before: Fleet, fleet: Fleet, touched: frozenset[str]) -> None:
        """What a command starts that was let in before we left: else it would run, and we would wait, for ever."""
        ids = tuple(id for id in touched if id in fleet.modules and fleet.modules[id].wanted)
        if ids:
            self._parts.supervisor.handle(Want(ids, False))

    async def _hand_over(self, successor: Successor) -> Handover:
        """Answer what is in flight, store what there is to store; the sockets go on listening."""
        parts = self._parts
        was_ready = parts.herald.hands_over(successor.version)
        self._look_no_more()
        handover = await self._place.give_over(successor, parts.web, was_ready, parts.keeper.soft_files)
        await self._close_inside()
        await without_threads()
        return handover

    async def _close(self) -> None:
        self._look_no_more()
        await self._place.leave(self._parts.web)
        await self._close_inside()
        self._place.unlock()

    def _look_no_more(self) -> None:
        self._parts.lag.stop()
        self._parts.retries.stop()
        self._parts.checks.close()

    async def _close_inside(self) -> None:
        parts = self._parts
        await self._door.close()
        if not self._leaves_modules:
            await self._until_nothing_runs()  # from here on no command can start anything
        self._is_running = False
        if self._leaves_modules:
            parts.keeper.close()
        else:
            parts.keeper.dismiss()
        await parts.events.flush()
        parts.store.close()
        parts.audit.close()
        parts.copies.close()
        parts.herald.close()
        parts.descriptors.close()

    def _hear(self, message: dict[str, object]) -> None:
        self._parts.news.hear(message)

    def _gave_up(self, module_id: str) -> None:
        definition = self._parts.supervisor.fleet.modules[module_id].definition
        is_vital = definition is not None and definition.manifest.on_give_up == "exit"
        if is_vital and not self._leaving.is_set():
            log.error("%s has failed for good, and nexusd is not to go on without it", module_id)
            self.exit_status = EXIT_GAVE_UP
            self.shut_down()

    def _all_warnings(self) -> list[str]:
        parts = self._parts
        web = [parts.web.trouble] if parts.web.trouble else []
        return [*self._warnings, *parts.keeper.troubles, *parts.store.troubles, *parts.audit.troubles, *web]

    def _warn(self, text: str) -> None:
        log.warning("%s", text)
        if text not in self._warnings:
            self._warnings.append(text)


def _nothing_runs(fleet: Fleet) -> bool:
    return not any(module.is_active and not _is_stuck(module) for module in fleet.modules.values())


def _is_stuck(module: Module) -> bool:
    running = (replica.state for replica in module.replicas if replica.run is not None)
    return all(isinstance(state, Stuck) for state in running)
