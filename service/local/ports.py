"""Addresses to listen on: whether one is free, and its form for clients."""

import socket


def is_free(host: str, port: int) -> bool:
    """Return whether no program listens there."""
    try:
        listener(host, port).close()
    except OSError:
        return False
    return True


def listener(host: str, port: int) -> socket.socket:
    """Listen there.

    Raises:
        OSError: it is in use, or not an address of this machine.
    """
    return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)


def reachable(host: str) -> str:
    """Turn an address to listen on into one to call."""
    local = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104
    return local.get(host) or (f"[{host}]" if ":" in host else host)
