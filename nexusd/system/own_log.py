"""nexusd's own log: lines for people on a terminal, JSON on request."""

import json
import logging
import sys
import time
from typing import TextIO

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
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


_PRIORITY = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3, "CRITICAL": 2}


class _Journal(logging.Formatter):
    """journald takes the level from a prefix `<n>` (sd-daemon(3)) and stamps the line itself."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record).replace("\n", "\n ")
        return f"<{_PRIORITY.get(record.levelname, 6)}>{text}"


_FORMATS: dict[LogFormat, type[logging.Formatter]] = {"text": _Text, "json": _Json, "journal": _Journal}


def log_to(stream: TextIO = sys.stderr, log_format: LogFormat = "text") -> None:
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_FORMATS[log_format]())
    root = logging.getLogger("nexusd")
    root.handlers[:] = [handler]
    root.propagate = False
    # No line of ours shows who wrote it, in which thread; finding that out takes half of a line's time.
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    root.setLevel(logging.INFO)
