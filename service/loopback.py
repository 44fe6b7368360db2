"""Decides by the socket, never by a header, whether a request comes from a program on this machine.

Headers can only be evidence against it: of a proxy that forwarded it, or of a web page in a browser here.
"""

import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers

_OF_PROXIES = frozenset(
    {"forwarded", "via", "x-real-ip", "x-client-ip", "x-cluster-client-ip", "true-client-ip", "x-amzn-trace-id"}
)
_BY_PROXIES = ("x-forwarded", "x-original-", "x-envoy-", "cf-", "fly-")


def is_loopback(host: str) -> bool:
    """Return whether a name or an address can only mean this machine."""
    if host.lower() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def is_forwarded(headers: Headers, version: str) -> bool:
    """Return whether a proxy may have forwarded a request.

    Args:
        headers: are searched for those that proxies add.
        version: of HTTP. Proxies that add no header use 1.0 (nginx by default); today's clients do not.
    """
    return version == "1.0" or any(name in _OF_PROXIES or name.startswith(_BY_PROXIES) for name in headers)


def fault_of(headers: Headers) -> tuple[str, str] | None:
    """Return code and sentence if a web page may have sent the request; None if none can have.

    A foreign name in Host: DNS rebinding. In Origin: a page that posts here, which does harm even without the answer.
    """
    hosts = headers.getlist("host")
    if not hosts or not all(is_loopback(_host_of(f"//{host}")) for host in hosts):
        return "foreign_host", "this machine must be called by the name localhost or 127.0.0.1"
    if not all(is_loopback(_host_of(origin)) for origin in headers.getlist("origin")):
        return "foreign_origin", "a web page of another machine sent this"
    return None


def _host_of(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
