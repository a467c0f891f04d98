"""Addresses as they stand in a manifest: what `listen` and the health checks name.

Reads text only; whether anybody answers there is for others.
"""

from typing import Final
from urllib.parse import urlsplit

from msgspec import Struct

# sun_path holds 108 bytes, the last of them NUL.
LONGEST_SOCKET_PATH = 107

LISTEN_EXPECTED: Final = '"tcp:HOST:PORT" or "unix:/path", with an optional "name=" before it'
HOST_PORT_EXPECTED: Final = '"HOST:PORT", such as "127.0.0.1:8080" or "[::1]:8080"'
URL_EXPECTED: Final = 'an "http://HOST[:PORT]/…" URL'
SOCKET_PATH_EXPECTED: Final = f"the path of a socket, at most {LONGEST_SOCKET_PATH} bytes"


class Listen(Struct, frozen=True):
    """One listening socket: either `host` and `port`, or `path`. `name` is None where none was given."""

    name: str | None
    host: str | None = None
    port: int | None = None
    path: str | None = None


def parse_listen(entry: str) -> Listen:
    """The socket that an entry of `listen` asks for; ValueError when it can't be read."""
    name, given, address = entry.partition("=") if _is_named(entry) else ("", "", entry)
    # systemd's LISTEN_FDNAMES is separated by colons.
    if given and (not name or ":" in name or not name.isprintable()):
        raise ValueError(LISTEN_EXPECTED)
    family, _, rest = address.partition(":")
    if family == "tcp":
        host, port = parse_host_port(rest, lowest=0)
        return Listen(name or None, host=host, port=port)
    if family == "unix" and rest.startswith("/"):
        return Listen(name or None, path=parse_socket_path(rest))
    raise ValueError(LISTEN_EXPECTED)


def parse_host_port(text: str, *, lowest: int = 1) -> tuple[str, int]:
    """Host (an IPv6 address without its brackets) and port; ValueError when it can't be read."""
    host, _, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    if not _is_host(host, bracketed) or not (port.isascii() and port.isdigit() and len(port) <= 5):
        raise ValueError(HOST_PORT_EXPECTED)
    if not lowest <= int(port) <= 65_535:
        raise ValueError(HOST_PORT_EXPECTED)
    return host, int(port)


def parse_socket_path(path: str) -> str:
    """The path itself; ValueError when no socket can have it."""
    if not path or "\0" in path or len(path.encode("utf-8", "replace")) > LONGEST_SOCKET_PATH:
        raise ValueError(SOCKET_PATH_EXPECTED)
    return path


def parse_http_url(url: str) -> str:
    """The URL itself; ValueError when it is not one that can be asked."""
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname or not url.isprintable() or " " in url:
        raise ValueError(URL_EXPECTED)
    # A password would stand in status, events and logs.
    if parts.port == 0 or parts.username is not None:
        raise ValueError(URL_EXPECTED)
    return url


def _is_named(entry: str) -> bool:
    """Whether the entry begins with `name=`: a path may hold an equals sign too."""
    before, equals, _ = entry.partition("=")
    return bool(equals) and not before.startswith(("tcp:", "unix:"))


def _is_host(host: str, bracketed: bool) -> bool:
    plain = host.isprintable() and not any(character in host for character in " []/@")
    return bool(host) and plain and (bracketed == (":" in host))
