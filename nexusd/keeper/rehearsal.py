"""A module that does nothing, for the keeper to rehearse the life of one (`host.warm`)."""

from nexusd.sdk import Module


class Rehearsal(Module):
    async def start(self) -> None:
        pass
