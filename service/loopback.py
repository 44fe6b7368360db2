"""Whether a request comes from a program on this machine: decided by the socket, never by what a header claims.

Headers can only speak against it: a proxy that passed it on, a web page that is open here.
"""

import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers

_OF_PROXIES = frozenset(
    {"forwarded", "via", "x-real-ip", "x-client-ip", "x-cluster-client-ip", "true-client-ip", "x-amzn-trace-id"}
)
_BY_PROXIES = ("x-forwarded", "x-original-", "x-envoy-", "cf-", "fly-")


def is_loopback(host: str) -> bool:
    """Tell whether a name or an address can only mean this machine."""
    if host.lower() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def is_forwarded(headers: Headers, version: str) -> bool:
    """Tell whether a proxy may have passed a request on.

    Args:
        headers: what proxies add is looked for.
        version: of HTTP. Proxies that add nothing speak 1.0 (nginx as it comes); clients of today do not.
    """
    return version == "1.0" or any(name in _OF_PROXIES or name.startswith(_BY_PROXIES) for name in headers)


def fault_of(headers: Headers) -> tuple[str, str] | None:
    """Return the code and the sentence of what a web page may be behind; None where none can be.

    A page's own name in Host: DNS rebinding. In Origin: it posts here, which needs no answer to do harm.
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
