"""`get_metrics`, and the observer that counts every call. What the page says is made elsewhere."""

from collections.abc import Mapping
from typing import Any, Protocol

from nexusd.operations import Operations
from nexusd.ports import MetricsPages
from nexusd.rpc.call import Call, Ended, Method
from nexusd.rpc.parameters import OneModule

# The outcomes of a reload that was tried; whatever else can go wrong kept it from being tried.
_FAILED = ("start_failed", "timed_out", "dependency_failed")


class Metrics:
    def __init__(self, pages: MetricsPages, operations: Operations) -> None:
        self._pages = pages
        self._operations = operations
        self.methods = [
            Method(
                "get_metrics",
                self.get_metrics,
                "Metrics in Prometheus's text format, of all or of one module",
                OneModule,
                "metrics.read",
            )
        ]

    async def get_metrics(self, _call: Call, params: OneModule) -> dict[str, str]:
        if params.module_id is not None:
            self._operations.module(params.module_id)
        content_type, text = await self._pages.page(module_id=params.module_id)
        return {"content_type": content_type, "text": text.decode()}


class Counted(Protocol):
    """Who keeps the figures."""

    def called(self, method: str, outcome: str, elapsed_s: float) -> None: ...
    def reloaded(self, module_id: str, outcome: str, elapsed_s: float) -> None: ...


class CallCounter:
    """An observer of the dispatcher: methods and kinds of errors are few, so both are labels."""

    def __init__(self, figures: Counted) -> None:
        self._figures = figures

    def admit(self, _call: Call, _method: Method, _params: Mapping[str, Any]) -> None:
        """Counted when it is done."""

    def done(self, ended: Ended) -> None:
        outcome = "ok" if ended.error is None else ended.error.kind
        self._figures.called(ended.method.name, outcome, ended.elapsed_s)
        if ended.method.name == "reload_module" and ended.params.get("wait", True):
            self._count_reload(ended.params.get("module_id"), outcome, ended.elapsed_s)

    def _count_reload(self, module_id: object, outcome: str, elapsed_s: float) -> None:
        if isinstance(module_id, str) and outcome in ("ok", *_FAILED):
            self._figures.reloaded(module_id, outcome, elapsed_s)
