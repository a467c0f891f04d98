"""The stream on which journald takes a program's output line by line, as the program's own.

The words are those of sd_journal_stream_fd(3); what is written after them is the program's affair.
"""

import logging
import os
import socket

from nexusd.keeper.protocol import Message

CONNECT_S = 0.5  # journald accepts at once; a start is not held up by one that hangs
_PRIORITY = 6  # LOG_INFO, for lines that do not begin with one of their own, as in `<3>`
_SEND_BYTES = 8 << 20  # as systemd asks for: a burst does not wait for journald

log = logging.getLogger("nexusd.keeper")


def connect(folder: str, identifier: str) -> int:
    """The descriptor of a new stream. Raises OSError. folder: of journald's sockets."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.settimeout(CONNECT_S)
        sock.connect(f"{folder}/stdout")
        sock.shutdown(socket.SHUT_RD)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BYTES)
        # Identifier, unit (journald knows it), priority, prefixes are read, nothing is forwarded to others.
        sock.sendall(f"{identifier}\n\n{_PRIORITY}\n1\n0\n0\n0\n".encode())
        sock.setblocking(True)  # a program's output is
    except OSError:
        sock.close()
        raise
    return sock.detach()


def for_launch(launch: Message, folder: str) -> tuple[int, int] | None:
    """Where the run's output is to go to journald: its stream, held by both of us as a log pipe would be.

    None: to the log file, which is what becomes of it where journald is not there. The entry tells.
    """
    if (identifier := launch["log"].get("journal")) is None:
        return None
    try:
        stream = connect(folder, identifier)
    except OSError as error:
        log.warning("%s logs to its file: journald does not answer (%s)", identifier, error.strerror or error)
        del launch["log"]["journal"]
        return None
    found = os.fstat(stream)
    launch["environment"]["JOURNAL_STREAM"] = f"{found.st_dev}:{found.st_ino}"  # systemd.exec(5)
    return stream, os.dup(stream)
