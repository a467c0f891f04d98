"""Every command in the audit log: a line before it runs and one when it has ended; and the methods to read it.

What a line says is decided in `domain.audit`, how lines hang together in `domain.chain`.
"""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from nexusd.domain import audit
from nexusd.domain.access import Caller
from nexusd.domain.audit import Entry, IsSecret
from nexusd.domain.errors import Busy, InvalidParams, PermissionDenied
from nexusd.ports import AuditLog
from nexusd.rpc.call import Call, Ended, Method

MOST_REFUSALS = 100  # lines of one user in a second: nobody without rights may flood the log with refusals
MOST_FINDINGS = 100
MOST_SUBSCRIPTIONS = 16  # of a connection


@dataclass(slots=True)
class _Begun:
    entry: Entry
    seq: int | None = None  # None until the line is safe


class AuditTrail:
    """Observes every call. Commands are told of before and after; a refusal has one line; reads if wanted."""

    def __init__(self, log: AuditLog, is_secret: IsSecret, with_reads: bool = False) -> None:
        self._log = log
        self._is_secret = is_secret
        self._with_reads = with_reads
        self._begun: dict[int, _Begun] = {}  # by the identity of the call's parameters, which are its own
        self._refusals = _Refusals(log)

    def admit(self, call: Call, method: Method, params: Mapping[str, Any]) -> Awaitable[object] | None:
        if not method.audited:
            return None
        begun = self._begun[id(params)] = _Begun(self._entry(call, method, params))
        return self._begin(begun)

    async def _begin(self, begun: _Begun) -> None:
        begun.seq = await self._log.begin(begun.entry)

    def done(self, ended: Ended) -> None:
        call, method, params, error, elapsed_s = ended
        begun = self._begun.pop(id(params), None)
        is_refused = isinstance(error, PermissionDenied)
        if not (method.audited or is_refused or self._with_reads):
            return
        if error is not None and begun is None and not self._refusals.has_room(call.caller):
            return
        entry = begun.entry if begun else self._entry(call, method, params)
        seq = begun.seq if begun else None
        self._log.add(audit.ended(entry, seq, error, time=_now(), elapsed_s=elapsed_s))

    def _entry(self, call: Call, method: Method, params: Mapping[str, Any]) -> Entry:
        known = method.params.__struct_encode_fields__
        shown = audit.fit_params(params, known, method.name, self._is_secret)
        return audit.entry(call.caller, method.name, shown, time=_now())


class _Refusals:
    """Counts the refused calls of each user in one second, and tells in one line of those that had none."""

    def __init__(self, log: AuditLog) -> None:
        self._log = log
        self._counts: dict[int, int] = {}
        self._callers: dict[int, Caller] = {}

    def has_room(self, caller: Caller) -> bool:
        if not self._counts:
            asyncio.get_running_loop().call_later(1.0, self._tell)
        count = self._counts[caller.uid] = self._counts.get(caller.uid, 0) + 1
        self._callers[caller.uid] = caller
        return count <= MOST_REFUSALS

    def _tell(self) -> None:
        for uid, count in self._counts.items():
            if count > MOST_REFUSALS:
                told = audit.entry(
                    self._callers[uid],
                    "nexusd.refusals",
                    {"left_out": count - MOST_REFUSALS},
                    time=_now(),
                    outcome="denied",
                )
                self._log.add(told)
        self._counts.clear()
        self._callers.clear()


class GetAudit(Struct, frozen=True, forbid_unknown_fields=True):
    module_id: Annotated[str, Meta(max_length=200, description="GROUP/NAME")] | None = None
    since: Annotated[int, Meta(ge=0, description="Only records with a greater number")] = 0
    limit: Annotated[int, Meta(ge=1, le=10_000)] = 100
    follow: bool = False


class VerifyAudit(Struct, frozen=True, forbid_unknown_fields=True):
    anchors: Annotated[
        dict[str, str],
        Meta(max_length=100, description="Hashes of records, by number, that were noted elsewhere"),
    ] = {}


class AuditReading:
    """The methods about the log. A module that is gone can still be asked for."""

    def __init__(self, log: AuditLog) -> None:
        self._log = log
        self._numbers = itertools.count(-1, -1)  # below zero: never one of the other subscriptions
        self.methods = [
            Method("get_audit", self.get_audit, "The last records of the audit log", GetAudit, "audit.read"),
            Method(
                "verify_audit", self.verify_audit, "Whether the audit log is whole", VerifyAudit, "audit.read"
            ),
        ]

    async def get_audit(self, call: Call, params: GetAudit) -> dict[str, Any]:
        # Followed before the past is read: a record may come twice, none is missed.
        subscription = self._follow(call, params.module_id) if params.follow else None
        records = await self._log.records(params.limit, params.since, params.module_id)
        return {"records": [msgspec.Raw(line) for line in records], "subscription": subscription}

    def _follow(self, call: Call, module_id: str | None) -> int:
        if call.subscriptions >= MOST_SUBSCRIPTIONS:
            told = f"this connection has {MOST_SUBSCRIPTIONS} subscriptions, and gets no more"
            raise Busy(told, hint="close the connection: that ends them")
        number = next(self._numbers)

        def push(line: bytes) -> None:
            if module_id is None or _concerns(line, module_id):
                told = {"subscription": number, "record": msgspec.Raw(line)}
                call.push({"jsonrpc": "2.0", "method": "audit", "params": told})

        call.on_close(self._log.subscribe(push))
        return number

    async def verify_audit(self, _call: Call, params: VerifyAudit) -> dict[str, Any]:
        if not all(seq.isdecimal() and len(seq) < 19 for seq in params.anchors):
            raise InvalidParams("anchors: expected numbers of records, each with its hash")
        verdict = await self._log.verify({int(seq): noted for seq, noted in params.anchors.items()})
        return verdict.told(MOST_FINDINGS)


def _concerns(line: bytes, module_id: str) -> bool:
    params = msgspec.json.decode(line).get("params") or {}
    return bool(params.get("module_id") == module_id)


def _now() -> str:
    seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{nanoseconds // 1000:06d}Z"
