"""live.py as a program: one question, its answer on stdout, an exit status, all of it in a hard time.

It runs every few seconds, so starting counts. It uses the C part of `socket`, reads no JSON where the answer is
worded as our daemon words it, and leaves without Python's farewell; errors are told the long way.
"""

from __future__ import annotations

import os
import sys
import time
from _socket import AF_UNIX, SOCK_STREAM, socket

from nexusctl.unreachable import (
    Unreachable,
    closed,
    default_socket,
    refuse_foreign_folder,
    unanswered,
    unreachable,
)

PATIENCE_S = 1.0
USAGE = "usage: live.py liveness|readiness|critical [--timeout SECONDS]\n"
QUESTIONS = {
    "liveness": ("check_liveness", "live"),
    "readiness": ("check_readiness", "ready"),
    "critical": ("check_critical_modules", "healthy"),
}
_HEAD, _TAIL = b'{"jsonrpc":"2.0","result":', b',"id":1}'
_LONGEST = 16 * 1024 * 1024


def main(arguments: list[str]) -> int:
    """0 for yes, 1 for no or no answer, 2 for a wrong argument."""
    asked, timeout = _read(arguments)
    if asked in ("-h", "--help"):
        return _told(1, USAGE.encode(), 0)
    if asked not in QUESTIONS or timeout is None:
        return _told(2, USAGE.encode(), 2)
    method, yes = QUESTIONS[asked]
    text, verdict = _asked(method, yes, timeout)
    return _told(1, text + b"\n", 0 if verdict else 1)


def _read(arguments: list[str]) -> tuple[str, float | None]:
    """The question and the time for it; None for one that makes no sense."""
    words, timeout = [], str(PATIENCE_S)
    rest = iter(arguments)
    for word in rest:
        if word == "--timeout":
            timeout = next(rest, "")
        elif word.startswith("--timeout="):
            timeout = word[len("--timeout=") :]
        else:
            words.append(word)
    try:
        seconds = float(timeout)
    except ValueError:
        seconds = 0.0
    return words[0] if len(words) == 1 else "", seconds if 0 < seconds <= 86_400 else None


def _asked(method: str, yes: str, timeout: float) -> tuple[bytes, bool]:
    """The answer as JSON, and whether it is a yes."""
    path, deadline = default_socket(), time.monotonic() + timeout
    try:
        refuse_foreign_folder(path)
        line = _line(path, method, deadline)
    except TimeoutError:
        return _no(method, unanswered(path, method, timeout))
    except OSError as error:
        return _no(method, unreachable(path, error))
    result = line[len(_HEAD) : -len(_TAIL)]
    is_ours = line.startswith(_HEAD) and line.endswith(_TAIL)
    if is_ours and result.startswith(b'{"%b":true,' % yes.encode()):
        return result, True
    return _read_in_full(line, path, method, yes)


def _line(path: str, method: str, deadline: float) -> bytes:
    """The daemon's answer. Raises OSError; TimeoutError at the deadline, whatever the daemon does until then."""
    connection = socket(AF_UNIX, SOCK_STREAM)
    _connect(connection, path, deadline)
    connection.settimeout(_left(deadline))
    connection.sendall(b'{"jsonrpc":"2.0","id":1,"method":"%b"}\n' % method.encode())
    received = b""
    while not received.endswith(b"\n"):
        connection.settimeout(_left(deadline))
        piece = connection.recv(1 << 16)
        received += piece
        if not piece or len(received) > _LONGEST:
            raise closed(path, method)
    return received[:-1]


def _connect(connection: socket, path: str, deadline: float) -> None:
    """Tried again while the daemon's queue of connections is full: Linux then says EAGAIN."""
    while True:
        connection.settimeout(_left(deadline))
        try:
            return connection.connect(path)
        except BlockingIOError:
            time.sleep(min(0.01, _left(deadline)))


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _read_in_full(line: bytes, path: str, method: str, yes: str) -> tuple[bytes, bool]:
    """A no, an error, or words that are not ours."""
    import json  # noqa: PLC0415  not for a yes

    from nexusctl.wire import RpcError, decode_message, error_of  # noqa: PLC0415

    try:
        message = decode_message(line, path)
        if error := error_of(message):
            raise error
    except (RpcError, Unreachable) as error:
        return _no(method, error)
    result = message.get("result")
    return json.dumps(result).encode(), isinstance(result, dict) and result.get(yes) is True


def _no(method: str, error: Exception) -> tuple[bytes, bool]:
    import json  # noqa: PLC0415

    from nexusctl.absent import absent_probe  # noqa: PLC0415

    return json.dumps(absent_probe(method, error)).encode(), False


def _told(descriptor: int, text: bytes, status: int) -> int:
    """Say it; the exit status holds also where nobody listens."""
    try:
        os.write(descriptor, text)
    except OSError as error:
        if descriptor == 1:
            _told(2, f"live.py: {error.strerror}\n".encode(), status)
    return status


def leave() -> None:
    """Run as a program, without the farewell that takes Python as long as the question itself."""
    os._exit(main(sys.argv[1:]))
