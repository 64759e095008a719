"""Where a server listens, and who may reach it: found out before anything slow, and without torch."""

import ipaddress
import socket
from collections.abc import Sequence


class ServeError(ValueError):
    """A server that cannot be started as asked; one line that says what to do."""


def open_socket(host: str, port: int) -> socket.socket:
    """Take a port, before anything slow; nobody can connect yet.

    Raises:
        ServeError: there is no such host, or the port is taken.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise ServeError(f"there is no address {host!r} to listen at ({error}): give another --host") from None
    taken = socket.socket(family, kind, protocol)
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(address)
    except OSError as error:
        taken.close()
        raise ServeError(
            f"port {port} of {host} cannot be had ({error.strerror}): give another --port, or --host"
        ) from None
    return taken


def check_keys(host: str, keys: Sequence[str], no_key: bool) -> None:
    """Refuse to serve others without a key, unless that is said.

    Raises:
        ServeError: a key lacks, or is none.
    """
    if keys and no_key:
        raise ServeError("--api-key and --no-key contradict each other: leave one out")
    for key in keys:
        if not (key.isascii() and key.isprintable() and " " not in key and len(key) >= 8):
            raise ServeError(
                "a key must be at least 8 printable ASCII characters without spaces: give another --api-key"
            )
    if not keys and not no_key and not _is_loopback(host):
        raise ServeError(
            f"{host} can be reached from other machines: give --api-key KEY, or --no-key to serve whoever comes"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
