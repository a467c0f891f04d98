"""The key of a run: which replica it is a process of, and a token that no other run has.

`vitals/heartbeat-client#0@1~9f3a1c2b`: module, index, generation, token. Keys outlive nexusd in the keeper.
"""

import re

from msgspec import Struct

_KEY = re.compile(r"(?P<module>[^#@~]+)#(?P<index>\d+)@(?P<generation>\d+)~(?P<token>\w+)")


class RunKey(Struct, frozen=True):
    module_id: str
    index: int
    generation: int
    token: str

    def text(self) -> str:
        return f"{self.module_id}#{self.index}@{self.generation}~{self.token}"


def journal_identifier(module_id: str) -> str:
    """What `journalctl -t` finds the output of the module's replicas by."""
    return f"nexus/{module_id}"


def replica_name(key: str) -> str:
    """What people call the replica whose process it is."""
    return key.partition("@")[0]


def token(key: str) -> str:
    return key.rpartition("~")[2]


def parse(key: str) -> RunKey:
    """Raises ValueError for what is no key of ours."""
    match = _KEY.fullmatch(key)
    if match is None:
        raise ValueError(f"not a run: {key!r}")
    return RunKey(match["module"], int(match["index"]), int(match["generation"]), match["token"])
