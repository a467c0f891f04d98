"""The pages of the metrics port: /metrics, /livez, /readyz. How they get to a client is `system.http`'s."""

import asyncio
import gc
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from nexusd.ports import MetricsPages
from nexusd.system.figures import Sources
from nexusd.system.http import Handler, Request, Response

if TYPE_CHECKING:
    from nexusd.system.scrapes import Scrapes

LONG = ("/metrics",)
TIMEOUT_HEADER = "x-prometheus-scrape-timeout-seconds"
_SHARE = 0.5  # of the time that Prometheus has, what modules may take of it

Check = Callable[[], Mapping[str, Any]]


class PagesOnDemand:
    """Implements `ports.MetricsPages`. prometheus_client is imported when the first page is asked for, in a thread:
    it takes as long as all that the API socket needs, and a start has better things to do."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._scrapes: Scrapes | None = None
        self._loading = asyncio.Lock()

    async def page(
        self, accept: str = "", module_id: str | None = None, patience_s: float = 1.0
    ) -> tuple[str, bytes]:
        async with self._loading:
            is_first = self._scrapes is None
            if self._scrapes is None:
                self._scrapes = await asyncio.to_thread(self._load)
        page = await self._scrapes.page(accept, module_id, patience_s)
        if is_first:
            gc.freeze()  # as after the start: what was imported, and what is kept of each module, stays
        return page

    def close(self) -> None:
        if self._scrapes is not None:
            self._scrapes.close()

    def _load(self) -> "Scrapes":
        from nexusd.system.scrapes import Scrapes  # noqa: PLC0415

        return Scrapes(self._sources)


def routes(pages: MetricsPages, check_liveness: Check, check_readiness: Check) -> dict[str, Handler]:
    async def metrics(request: Request) -> Response:
        content_type, text = await _page(pages, request)
        return Response(text, content_type)

    async def livez(_request: Request) -> Response:
        return _judged(check_liveness(), "live")

    async def readyz(_request: Request) -> Response:
        return _judged(check_readiness(), "ready")

    return {"/metrics": metrics, "/livez": livez, "/readyz": readyz}


def _page(pages: MetricsPages, request: Request) -> Awaitable[tuple[str, bytes]]:
    accept = request.headers.get("accept", "")
    try:
        patience_s = float(request.headers[TIMEOUT_HEADER]) * _SHARE
    except (KeyError, ValueError):
        return pages.page(accept)
    return pages.page(accept, patience_s=patience_s) if 0 < patience_s < 3600 else pages.page(accept)


def _judged(said: Mapping[str, Any], verdict: str) -> Response:
    status = 200 if said[verdict] else 503
    return Response(json.dumps(said).encode() + b"\n", "application/json", status)
