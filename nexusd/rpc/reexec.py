"""The row of the table that has nexusd replaced. How it is done stands in `nexusd.reexec`."""

from typing import Annotated, Any

from msgspec import Meta, Struct

from nexusd.ports import Replaceable
from nexusd.rpc.call import Call, Method
from nexusd.rpc.parameters import Timeout


class Reexec(Struct, frozen=True, forbid_unknown_fields=True):
    force: Annotated[bool, Meta(description="Cut short what is under way")] = False
    timeout: Timeout = None


class Replacing:
    def __init__(self, daemon: Replaceable) -> None:
        self._daemon = daemon
        self.methods = [
            Method(
                "reexec",
                self.reexec,
                "Replace nexusd by the installed one, modules untouched",
                Reexec,
                "daemon.admin",
                True,
            )
        ]

    async def reexec(self, _call: Call, params: Reexec) -> dict[str, Any]:
        return await self._daemon.reexec(params.force, params.timeout)
