"""Asks an HTTP server once: its status, and a piece of what it says beside it. Bounded in time by the caller.

Small on purpose: GET, no redirects followed, no TLS, nothing kept of the body but the beginning of a complaint.
"""

import asyncio
from http import HTTPStatus
from urllib.parse import quote, urlsplit

HEAD_BYTES = 1 << 15
BODY_BYTES = 1 << 16  # what is read at most, so that the server need not see its answer refused
DRAIN_S = 0.2
WORDS = 80  # of a bad answer's body

_PORT = 80


class NoAnswer(Exception):
    """What came, if anything, was no answer of an HTTP server."""


async def status_of(url: str) -> tuple[int, str]:
    """The status, and of a bad one the first words of the body. Raises OSError, NoAnswer."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    reader, writer = await asyncio.open_connection(host, parts.port or _PORT, limit=HEAD_BYTES)
    try:
        writer.write(_request(parts.netloc.rpartition("@")[2], parts.path, parts.query))
        status, length = await _head(reader)
        body = await _body(reader, length)
        return status, "" if status < 400 else _words(body)
    finally:
        writer.close()


def _request(host: str, path: str, query: str) -> bytes:
    target = quote(path or "/", safe="/%:@!$&'()*+,;=~-._") + (
        f"?{quote(query, safe='%/?:@!$&*+,;=~-._')}" if query else ""
    )
    name = host.encode("idna").decode() if not host.isascii() else host
    lines = (
        f"GET {target} HTTP/1.1",
        f"Host: {name}",
        "User-Agent: nexusd",
        "Accept: */*",
        "Connection: close",
    )
    return "\r\n".join((*lines, "", "")).encode()


async def _head(reader: asyncio.StreamReader) -> tuple[int, int]:
    """Status and length of the body; interim answers (1xx) are passed over."""
    while True:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            raise NoAnswer(f"its answer's head is longer than {HEAD_BYTES} bytes") from None
        except asyncio.IncompleteReadError as error:
            said = error.partial[:WORDS].decode(errors="replace")
            raise NoAnswer(f"it hung up after {said!r}" if said else "it hung up without an answer") from None
        first, *fields = head.decode("latin-1").split("\r\n")
        status = _status(first)
        if status >= 200:
            return status, _length(fields)


def _status(line: str) -> int:
    version, _, rest = line.partition(" ")
    code = rest[:3]
    if not version.startswith("HTTP/1.") or not (code.isascii() and code.isdigit() and len(code) == 3):
        raise NoAnswer(f"it does not speak HTTP/1: it said {line[:WORDS]!r}")
    return int(code)


def _length(fields: list[str]) -> int:
    for field in fields:
        name, _, value = field.partition(":")
        if name.strip().lower() == "content-length" and value.strip().isascii() and value.strip().isdigit():
            return min(int(value.strip()[:18]), BODY_BYTES)
    return BODY_BYTES


async def _body(reader: asyncio.StreamReader, length: int) -> bytes:
    """As much as comes soon. The verdict stands already: a body that trickles or has no end does not change it."""
    body = b""
    try:
        async with asyncio.timeout(DRAIN_S):
            while len(body) < length and (piece := await reader.read(length - len(body))):
                body += piece
    except (TimeoutError, OSError):
        pass
    return body


def _words(body: bytes) -> str:
    """Quoted and cut; of a page for browsers nothing, since it begins with what says nothing."""
    text = " ".join(body[: 4 * WORDS].decode(errors="replace").split())
    if not text or text.startswith("<"):
        return ""
    return f'"{text}"' if len(text) <= WORDS else f'"{text[:WORDS]}…"'


def phrase(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)
