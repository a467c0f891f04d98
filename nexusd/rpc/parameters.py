"""The parameters of the methods: each a frozen class, whose fields are checked and told by `rpc.discover`."""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from nexusd.rpc.following import MOST_LINES

Timeout = Annotated[float, Meta(gt=0, le=86_400, description="Seconds to wait for the outcome")] | None
ModuleId = Annotated[str, Meta(max_length=200, description="GROUP/NAME")]


class OneModule(Struct, frozen=True, forbid_unknown_fields=True):
    module_id: ModuleId | None = None


class Start(Struct, frozen=True, forbid_unknown_fields=True):
    module_id: ModuleId
    wait: bool = True
    timeout: Timeout = None


class Restart(Struct, frozen=True, forbid_unknown_fields=True):
    module_id: ModuleId
    replica: Annotated[int, Meta(ge=0, description="Only this one; the others go on")] | None = None
    wait: bool = True
    timeout: Timeout = None


class Stop(Struct, frozen=True, forbid_unknown_fields=True):
    module_id: ModuleId
    cascade: bool = False
    wait: bool = True
    timeout: Timeout = None


class Reload(Struct, frozen=True, forbid_unknown_fields=True):
    module_id: ModuleId
    strategy: Literal["graceful", "rolling", "immediate", "signal"] | None = None
    wait: bool = True
    timeout: Timeout = None


class Configure(Struct, frozen=True, forbid_unknown_fields=True):
    module_id: ModuleId
    key: str
    value: Any


class GetConfig(Struct, frozen=True, forbid_unknown_fields=True):
    module_id: ModuleId
    key: str | None = None


class GetLogs(Struct, frozen=True, forbid_unknown_fields=True):
    module_id: ModuleId
    lines: Annotated[int, Meta(ge=0, le=MOST_LINES)] = 100
    follow: bool = False
    replica: Annotated[int, Meta(ge=0)] | None = None


class SubscribeEvents(Struct, frozen=True, forbid_unknown_fields=True):
    module_id: ModuleId | None = None
    since: Annotated[int, Meta(ge=0, description="Only events with a greater seq; 0 for all kept")] | None = (
        None
    )


class GetHistory(Struct, frozen=True, forbid_unknown_fields=True):
    module_id: ModuleId | None = None
    limit: Annotated[int, Meta(ge=1, le=10_000)] = 100
