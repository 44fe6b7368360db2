"""Who may talk to whom: NetworkPolicies evaluated as the Kubernetes API describes them.

A flow needs both ends' leave: the policies that select the sender for its way out, those that select the receiver for
its way in. A pod that no policy of a direction selects is open in that direction.
"""

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tests.deploy.manifests import Objects, of_kind, selects


@dataclass(frozen=True)
class Actor:
    """A pod, or a machine outside the cluster: then only its address counts."""

    name: str
    namespace: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    namespace_labels: dict[str, str] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)
    """Its named ports."""
    address: str = ""


def open_ports(
    policies: Objects, sender: Actor, receiver: Actor, ports: Iterable[int], protocol: str = "TCP"
) -> set[int]:
    """Return to which of these ports of the one the other may connect."""
    ways_out = _rules(policies, "Egress", sender, receiver)
    ways_in = _rules(policies, "Ingress", receiver, sender)
    return {
        port
        for port in ports
        if all(
            any(_is_port(rule.get("ports"), receiver, port, protocol) for rule in ways) for ways in (ways_out, ways_in)
        )
    }


def _rules(policies: Objects, direction: str, subject: Actor, other: Actor) -> list[dict[str, Any]]:
    """Return what lets flows pass between the two in a direction, as far as it is the subject's to say."""
    own = [
        policy["spec"]
        for policy in of_kind(policies, "NetworkPolicy")
        if policy["metadata"]["namespace"] == subject.namespace
        and direction in policy["spec"]["policyTypes"]
        and selects(policy["spec"]["podSelector"], subject.labels)
    ]
    if not own:
        return [{}]
    key, peers = ("egress", "to") if direction == "Egress" else ("ingress", "from")
    rules = [rule for spec in own for rule in spec.get(key, [])]
    return [rule for rule in rules if _is_peer(rule.get(peers), subject.namespace, other)]


def _is_peer(peers: list[dict[str, Any]] | None, namespace: str, other: Actor) -> bool:
    return not peers or any(_matches(peer, namespace, other) for peer in peers)


def _matches(peer: dict[str, Any], namespace: str, other: Actor) -> bool:
    if "ipBlock" in peer:
        return _is_within(peer["ipBlock"], other.address)
    if not other.namespace:
        return False
    if "namespaceSelector" in peer:
        if not selects(peer["namespaceSelector"], other.namespace_labels):
            return False
    elif other.namespace != namespace:
        return False
    return "podSelector" not in peer or selects(peer["podSelector"], other.labels)


def _is_within(block: dict[str, Any], address: str) -> bool:
    if not address:
        return False
    asked = ipaddress.ip_address(address)
    return asked in ipaddress.ip_network(block["cidr"]) and not any(
        asked in ipaddress.ip_network(excepted) for excepted in block.get("except", [])
    )


def _is_port(ports: list[dict[str, Any]] | None, receiver: Actor, port: int, protocol: str) -> bool:
    if not ports:
        return True
    for one in ports:
        first = receiver.ports.get(one["port"], -1) if isinstance(one.get("port"), str) else one.get("port", port)
        if one.get("protocol", "TCP") == protocol and first <= port <= one.get("endPort", first):
            return True
    return False
