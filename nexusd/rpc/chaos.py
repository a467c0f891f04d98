"""The methods of experiments: rows of the table, each asking the conductor and nobody else."""

import secrets
from typing import Annotated, Any

from msgspec import Meta, Struct

from nexusd.chaos import Conductor
from nexusd.domain.chaos import MOST_SEED, experiment_of
from nexusd.operations import Operations
from nexusd.rpc.call import Call, Method

MODULE_ID = Meta(max_length=200, description="GROUP/NAME")
Timeout = Annotated[float, Meta(gt=0, le=86_400, description="Seconds to wait for the report")] | None
Duration = Annotated[
    float | str | None, Meta(description="How long frozen, or how long watched at most: 10 or 10s; up to 1h")
]
Replicas = Annotated[
    int | str, Meta(description="How many: a number, or a percentage such as 50%, rounded up")
]
ExperimentId = Annotated[str, Meta(max_length=200, description="As trigger_chaos answered it: freeze-3")]


class Trigger(Struct, frozen=True, forbid_unknown_fields=True):
    experiment: Annotated[str, Meta(max_length=64, description="kill, terminate or freeze")]
    module_id: Annotated[str, MODULE_ID]
    replicas: Replicas = 1
    duration: Duration = None
    seed: Annotated[int, Meta(ge=0, le=MOST_SEED, description="Who is hit; drawn if not given")] | None = None
    dry_run: bool = False
    wait: bool = True
    timeout: Timeout = None


class Abort(Struct, frozen=True, forbid_unknown_fields=True):
    id: ExperimentId | None = None
    module_id: Annotated[str, MODULE_ID] | None = None
    timeout: Timeout = None


class List(Struct, frozen=True, forbid_unknown_fields=True):
    module_id: Annotated[str, MODULE_ID] | None = None
    limit: Annotated[int, Meta(ge=1, le=1000)] = 50


class Get(Struct, frozen=True, forbid_unknown_fields=True):
    id: ExperimentId
    wait: bool = False
    timeout: Timeout = None


class ChaosMethods:
    def __init__(self, operations: Operations, conductor: Conductor) -> None:
        self._operations = operations
        self._conductor = conductor
        self.methods = [
            Method(
                "trigger_chaos", self.trigger, "Disturb a module on purpose", Trigger, "chaos.trigger", True
            ),
            Method(
                "abort_chaos", self.abort, "Roll an experiment back at once", Abort, "chaos.trigger", True
            ),
            Method("list_chaos", self.list, "The last experiments, oldest first", List, "chaos.trigger"),
            Method("get_chaos", self.get, "The report of one experiment", Get, "chaos.trigger"),
        ]

    async def trigger(self, call: Call, params: Trigger) -> dict[str, Any]:
        self._operations.module(params.module_id)
        seed = secrets.randbits(32) if params.seed is None else params.seed
        experiment = experiment_of(
            params.experiment, params.module_id, params.replicas, params.duration, seed
        )
        if params.dry_run:
            return self._conductor.plan(experiment)
        started = await self._conductor.begin(experiment, call.caller.principal)
        if not params.wait:
            return self._conductor.register.report(started)
        return await self._conductor.finished(started, params.timeout)

    async def abort(self, call: Call, params: Abort) -> dict[str, Any]:
        which = params.id or params.module_id
        aborted = self._conductor.abort(which, f"aborted by {call.caller.principal}")
        return await self._conductor.finished(aborted, params.timeout)

    def list(self, _call: Call, params: List) -> dict[str, Any]:
        if params.module_id is not None:
            self._operations.module(params.module_id)
        return {"experiments": self._conductor.register.reports(params.module_id)[-params.limit :]}

    async def get(self, _call: Call, params: Get) -> dict[str, Any]:
        if params.wait:
            return await self._conductor.finished(params.id, params.timeout)
        return self._conductor.register.report(params.id)
