"""Asks a module on its control socket: JSON-RPC 2.0, one object a line (docs/module-protocol.md).

Implements `ports.Control`. One connection for each question: questions are rare, and a module may be reloaded.
"""

import asyncio
import json
import socket
from collections.abc import Callable, Mapping
from typing import Any

from nexusd.domain.errors import BadValue, NotPossible, TimedOut
from nexusd.domain.runs import replica_name

LONGEST_ANSWER = 1 << 20
ACCEPT_S = 0.05


class ControlSockets:
    def __init__(self, socket_path: Callable[[str, str], str]) -> None:
        self._socket_path = socket_path

    async def ask(self, run: str, method: str, params: Mapping[str, Any], timeout_s: float) -> Any:
        name = replica_name(run)
        try:
            async with asyncio.timeout(timeout_s):
                return await self._ask(self._socket_path(run, "control"), method, params)
        except TimeoutError:
            raise TimedOut(f"{name}: no answer to {method} within {timeout_s:g} s") from None
        except OSError as error:
            raise NotPossible(f"{name}: its control socket is out of reach: {error.strerror}") from error
        except ValueError:  # the reader's limit
            raise NotPossible(
                f"{name}: its answer to {method} is longer than {LONGEST_ANSWER} bytes"
            ) from None

    async def _ask(self, path: str, method: str, params: Mapping[str, Any]) -> Any:
        sock = await _connected(path)
        reader, writer = await asyncio.open_unix_connection(sock=sock, limit=LONGEST_ANSWER)
        try:
            request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": dict(params)}
            writer.write(json.dumps(request).encode() + b"\n")
            return _result(await reader.readline(), method)
        finally:
            writer.close()


async def _connected(path: str) -> socket.socket:
    """As long as too many wait for a module that does not accept, it is tried again: nothing tells when.

    asyncio would take such a socket for a connected one.
    """
    while True:
        sock = socket.socket(socket.AF_UNIX)
        sock.setblocking(False)
        try:
            sock.connect(path)
            return sock
        except BlockingIOError:
            sock.close()
            await asyncio.sleep(ACCEPT_S)
        except OSError:
            sock.close()
            raise


def _result(line: bytes, method: str) -> Any:
    if not line:
        raise NotPossible(f"the module hung up on {method}")
    try:
        answer = json.loads(line)
        json.dumps(answer, ensure_ascii=False).encode()  # half a character could be told to nobody
        if "result" in answer:
            return answer["result"]
        error = answer["error"]
        message = str(error["message"])
        reason = str((error.get("data") or {}).get("reason") or message)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise NotPossible(f"the module's answer to {method} is no JSON-RPC answer") from None
    if error.get("code") == -32601:
        raise NotPossible(f"the module does not answer {method}", reason=message)
    raise BadValue(f"the module refused: {reason}", reason=reason)
