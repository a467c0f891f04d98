"""An observer that knows which commands somebody waits for: they stand in the way of a replacement of nexusd."""

from collections.abc import Mapping
from typing import Any

from nexusd.domain.replacing import Commanded
from nexusd.rpc.call import Call, Ended, Method


class CommandsUnderWay:
    def __init__(self) -> None:
        self._begun: dict[int, Commanded] = {}  # by the identity of the call's parameters, which are its own

    @property
    def all(self) -> list[Commanded]:
        return list(self._begun.values())

    def admit(self, call: Call, method: Method, params: Mapping[str, Any]) -> None:
        if method.audited and method.name != "reexec":
            self._begun[id(params)] = Commanded(method.name, params.get("module_id"), call.caller.principal)

    def done(self, ended: Ended) -> None:
        self._begun.pop(id(ended.params), None)
