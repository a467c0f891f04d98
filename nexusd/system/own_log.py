"""nexusd's own log: lines for people on a terminal, JSON on request, records with fields for journald.

`extra={"fields": {"module": …, "replica": …, "event": …}}` says what a line is about.
"""

import asyncio
import errno
import fcntl
import json
import logging
import os
import socket
import struct
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

from nexusd.config import LogFormat


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        text = f"{stamp}.{int(record.msecs):03d} {record.levelname.lower():<7} {record.getMessage()}"
        return text + (f"\n{self.formatException(record.exc_info)}" if record.exc_info else "")


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


_PRIORITY = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3, "CRITICAL": 2}


class _Prefixed(logging.Formatter):
    """journald takes the level from a prefix `<n>` (sd-daemon(3)) and stamps the line itself."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record).replace("\n", "\n ")
        return f"<{_PRIORITY.get(record.levelname, 6)}>{text}"


_FORMATS: dict[LogFormat, type[logging.Formatter]] = {"text": _Text, "json": _Json, "journal": _Prefixed}


def _fields(record: logging.LogRecord) -> Mapping[str, str]:
    """What the line is about, without what does not apply."""
    fields: Mapping[str, str | None] = getattr(record, "fields", {})
    return {name: value for name, value in fields.items() if value is not None}


class _ToJournald(logging.Handler):
    """Records with fields, by journald's own protocol (systemd's JOURNAL_NATIVE_PROTOCOL).

    It never waits: what journald does not take at once goes to stderr, with its level in front.
    """

    def __init__(self, path: str, otherwise: logging.Handler) -> None:
        super().__init__()
        self._path = path
        self._otherwise = otherwise
        self._text = logging.Formatter()
        self._socket = socket.socket(
            socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        )

    def emit(self, record: logging.LogRecord) -> None:
        said = {
            "MESSAGE": self._text.format(record),
            "PRIORITY": str(_PRIORITY.get(record.levelname, 6)),
            "SYSLOG_IDENTIFIER": "nexusd",
            "LOGGER": record.name,
            **{name.upper(): value for name, value in _fields(record).items()},
        }
        try:
            self._send(b"".join(_encoded(name, value) for name, value in said.items()))
        except OSError:  # journald is not there, or is behind
            self._otherwise.handle(record)

    def _send(self, datagram: bytes) -> None:
        try:
            self._socket.sendto(datagram, self._path)
        except OSError as error:
            if error.errno != errno.EMSGSIZE:
                raise
            _send_as_file(self._socket, datagram, self._path)

    def close(self) -> None:
        self._socket.close()
        super().close()


def _encoded(name: str, value: str) -> bytes:
    """A value of several lines goes with its length before it."""
    data = value.encode(errors="backslashreplace")
    if b"\n" not in data:
        return name.encode() + b"=" + data + b"\n"
    return name.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n"


def _send_as_file(sock: socket.socket, data: bytes, path: str) -> None:
    """What no datagram holds: in a sealed file in memory, whose descriptor is the message."""
    file = os.memfd_create("nexusd", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    try:
        os.write(file, data)
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, seals)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", file))]
        sock.sendmsg([b""], rights, 0, path)
    finally:
        os.close(file)


def log_to(
    stream: TextIO = sys.stderr, log_format: LogFormat = "text", journald: str = "/run/systemd/journal"
) -> None:
    """journald: the folder of its sockets."""
    handler: logging.Handler = logging.StreamHandler(stream)
    handler.setFormatter(_FORMATS[log_format]())
    if log_format == "journal":
        handler = _ToJournald(f"{journald}/socket", handler)
    root = logging.getLogger("nexusd")
    root.handlers[:] = [handler]
    root.propagate = False
    # No line of ours shows who wrote it, in which thread; finding that out takes half of a line's time.
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    root.setLevel(logging.INFO)


log = logging.getLogger("nexusd")
QUIET_S = 10.0
_OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class LoopComplaints:
    """asyncio's exception handler. A socket whose accept() finds no free descriptor is left alone for a second by
    asyncio, but told of with a traceback for each place in its backlog: here one line does for all.
    """

    def __init__(self) -> None:
        self._quiet_until = 0.0

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if "socket" in context and isinstance(error, OSError) and error.errno in _OUT_OF_RESOURCES:
            self._tell_of_accept(loop.time(), error)
        else:
            loop.default_exception_handler(context)

    def _tell_of_accept(self, now: float, error: OSError) -> None:
        if now >= self._quiet_until:
            self._quiet_until = now + QUIET_S
            log.error("no connection can be accepted, tried again every second: %s", error.strerror)
