"""nexusd at its own door: whether the API socket leads here and answers. What follows from it is the caller's."""

import asyncio
import os

_QUESTION = b'{"jsonrpc": "2.0", "method": "check_liveness", "id": 0}\n'


async def knock(path: str | os.PathLike[str], patience_s: float) -> str | None:
    """What is wrong with the way in, None if nothing. To be refused for want of room is an answer, too."""
    try:
        async with asyncio.timeout(patience_s):
            reader, writer = await asyncio.open_unix_connection(path)
            try:
                writer.write(_QUESTION)
                await reader.readline()
            finally:
                writer.transport.abort()
    except ConnectionResetError:
        return None
    except TimeoutError:
        return f"{path} has not answered for {patience_s:g} s"
    except OSError as error:
        return f"{path}: {error.strerror}"
    return None
