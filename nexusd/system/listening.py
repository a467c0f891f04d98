"""Opens the listening sockets that manifests ask for. Who holds and shares them is the keeper's."""

import os
import socket
import stat

from nexusd.domain.addresses import Listen, parse_listen

BACKLOG = 4096


def socket_name(module_id: str, entry: str) -> str:
    """The name under which the keeper holds the socket."""
    return f"{module_id} {entry}"


def open_socket(entry: str) -> int:
    """A listening descriptor for an entry of `listen`. Raises OSError that names the entry."""
    try:
        return _open(parse_listen(entry)).detach()
    except OSError as error:
        raise OSError(error.errno, f"cannot listen on {entry}: {error.strerror or error}") from error


def _open(address: Listen) -> socket.socket:
    if address.path is not None:
        return _open_unix(address.path)
    family, kind, protocol, _, place = socket.getaddrinfo(
        address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(place)
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def _open_unix(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    try:
        _clear_stale(path)
        sock.bind(path)
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def _clear_stale(path: str) -> None:
    """Remove a socket that nobody listens on; whatever else stands there makes bind fail, as it should."""
    if not os.path.exists(path) or not stat.S_ISSOCK(os.stat(path).st_mode):
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)  # somebody who listens and does not accept must not hold us up
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        except OSError:
            pass  # it lives, or is of another kind: bind says so
