"""The rows of the table that keep modules as they should be: how many replicas, healing, values by default.

What they do stands in `nexusd.scaling`, `nexusd.healing` and `nexusd.configuring`.
"""

from typing import Annotated, Any

from msgspec import Meta, Struct

from nexusd.operations import Operations
from nexusd.reach import Patience
from nexusd.rpc.call import Call, Method
from nexusd.rpc.parameters import ModuleId, Timeout


class Scale(Struct, frozen=True, forbid_unknown_fields=True):
    module_id: ModuleId
    replicas: Annotated[int, Meta(description="0 to the manifest's max_replicas")]
    wait: bool = True
    timeout: Timeout = None


class Heal(Struct, frozen=True, forbid_unknown_fields=True):
    module_id: Annotated[ModuleId | None, Meta(description="All modules without it")] = None
    wait: bool = True
    timeout: Timeout = None


class UnsetConfig(Struct, frozen=True, forbid_unknown_fields=True):
    module_id: ModuleId
    key: str


class Upkeep:
    def __init__(self, operations: Operations) -> None:
        self._operations = operations
        self.methods = [
            Method("scale_module", self.scale, "Set the number of replicas", Scale, "module.scale", True),
            Method(
                "trigger_healing",
                self.heal,
                "Start anew what is failed or unhealthy, and is to run",
                Heal,
                "module.heal",
                True,
            ),
            Method(
                "unset_config",
                self.unset_config,
                "Take a configuration value back to the manifest's default",
                UnsetConfig,
                "module.configure",
                True,
            ),
        ]

    async def scale(self, _call: Call, params: Scale) -> dict[str, Any]:
        patience = Patience(params.wait, params.timeout)
        return await self._operations.scale(params.module_id, params.replicas, patience)

    async def heal(self, _call: Call, params: Heal) -> dict[str, Any]:
        return await self._operations.heal(params.module_id, Patience(params.wait, params.timeout))

    async def unset_config(self, _call: Call, params: UnsetConfig) -> dict[str, Any]:
        return await self._operations.unset_config(params.module_id, params.key)
