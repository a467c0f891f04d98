"""Makes pages of metrics: facts of one moment, then text in pieces between other work, one page at a time.

Implements `ports.MetricsPages`. Scrapes that come while one of the same kind is under way share its page.
All of it happens on the event loop, as a thread's system calls and the loop's would wait for each other. Only a
module's own words are parsed in a thread: of one that says as much as it may prometheus_client takes a second.
"""

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

from nexusd.domain import health
from nexusd.domain.fleet import Fleet
from nexusd.domain.module import Module
from nexusd.domain.replica import Replica, Started
from nexusd.system.exposition import Facts, ModuleWriter, write_daemon
from nexusd.system.figures import Sources
from nexusd.system.known_series import Block, KnownSeries
from nexusd.system.metrics_text import Format, Page, chosen
from nexusd.system.module_metrics import Merging, Told, least_first
from nexusd.system.module_questions import Answer, Key, ModuleQuestions, Target
from nexusd.system.pieces import Pieces, in_pieces

MODULES_S = 1.0  # for the modules to answer
MERGING_S = 2.0  # for their answers to be taken over
COUNT_S = 0.25  # for the keeper to count bytes
SWITCH_S = 0.0005


class Scrapes:
    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        # Whoever parses gives the interpreter's lock to the event loop after this time; by default after 5 ms.
        sys.setswitchinterval(SWITCH_S)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="metrics")
        self._questions = ModuleQuestions()
        self._modules = ModuleWriter(sources.log_path)
        self._known = KnownSeries()
        self._judged: tuple[Fleet | None, float, bool] = None, 0.0, True
        self._errors: Counter[tuple[str, str]] = Counter()
        self._under_way: dict[tuple[str, str | None], asyncio.Task[bytes]] = {}
        self._one_at_a_time = asyncio.Lock()

    async def page(
        self, accept: str = "", module_id: str | None = None, patience_s: float = MODULES_S
    ) -> tuple[str, bytes]:
        """Content type and text: of all there is, or of one module only."""
        form = chosen(accept)
        key = (form.content_type, module_id)
        task = self._under_way.get(key)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._make(form, module_id, patience_s))
            self._under_way[key] = task
            task.add_done_callback(lambda _: self._under_way.pop(key, None))
        return form.content_type, await asyncio.shield(task)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _make(self, form: Format, module_id: str | None, patience_s: float) -> bytes:
        async with self._one_at_a_time:
            return await self._written(await self._facts(), form, module_id, min(patience_s, MODULES_S))

    async def _facts(self) -> Facts:
        sources = self._sources
        written = await sources.keeper.log_bytes(COUNT_S)
        return Facts(
            time.monotonic(),
            sources.version,
            sources.started_at,
            sources.fleet(),
            sources.figures.copy(),
            sources.keeper.processes(),
            written,
            sources.keeper.connected,
            sources.connections(),
            sources.audit_lines(),
            Counter(self._errors),
        )

    async def _written(self, facts: Facts, form: Format, module_id: str | None, patience_s: float) -> bytes:
        page = Page()
        deadline = time.monotonic() + patience_s
        modules = facts.fleet.modules.values() if module_id is None else _one(facts.fleet, module_id)
        targets = await in_pieces(self._targets(modules))
        async with asyncio.TaskGroup() as tasks:  # the modules think while their lines are written
            asking = self._questions.answers(targets, deadline, everybody=module_id is not None)
            answers = tasks.create_task(asking)
            if module_id is None:
                self._known.forget_all_but({target.key[:2] for target in targets})
                is_ready = self._is_ready(facts.fleet)
                await asyncio.sleep(0)
                write_daemon(page, facts, is_ready)
            for failed in filter(None, await in_pieces(self._modules.write(page, facts, modules))):
                self._errors[failed, "defect"] += 1
        await self._merge(page, answers.result(), deadline + MERGING_S)
        return b"".join(await in_pieces(page.parts(form)))

    def _is_ready(self, fleet: Fleet) -> bool:
        """Looked at again when anything has changed."""
        share = self._sources.most_unhealthy()
        if fleet is not self._judged[0] or share != self._judged[1]:
            self._judged = fleet, share, health.readiness(fleet.modules.values(), share).ready
        return self._judged[2]

    def _targets(self, modules: Iterable[Module]) -> Iterator[Target]:
        for module in modules:
            for replica in module.current:
                if isinstance(replica.state, Started):
                    yield self._target(module, replica, replica.state.run)

    def _target(self, module: Module, replica: Replica, run: str) -> Target:
        is_python = module.definition_of(replica).manifest.run.python is not None
        return Target((module.id, *replica.key), self._sources.control_path(run), is_python)

    async def _merge(self, page: Page, answers: list[Answer], deadline: float) -> None:
        merging = Merging(page, deadline, self._known)
        told = []
        for (module_id, index, _), text, failure in sorted(answers, key=_place):
            if failure is not None:
                merging.errors[module_id, failure] += 1
            elif text:
                told.append(Told(module_id, index, text))
        await asyncio.sleep(0)
        await in_pieces(merging.take(await self._read(merging, least_first(told))))
        self._errors += merging.errors

    async def _read(self, merging: Merging, told: list[Told]) -> list[tuple[Told, list[Block]]]:
        read = []
        pieces, loop = Pieces(), asyncio.get_running_loop()
        for one in told:
            blocks = merging.reread(one)
            if blocks is None:
                blocks = await loop.run_in_executor(self._thread, merging.parse, one)
            read.append((one, blocks))
            await pieces.step()
        return read


def _place(answer: Answer) -> Key:
    """The same order at each scrape. A replica may have two: what it failed to say before, and what it says now."""
    return answer.key


def _one(fleet: Fleet, module_id: str) -> list[Module]:
    return [fleet.modules[module_id]] if module_id in fleet.modules else []
