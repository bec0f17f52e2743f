"""The MTU a tunnel and its network can have, from the path that carries it.

GRE with a key around Ethernet costs 42 bytes on IPv4: outer IPv4 header 20 (RFC 791), GRE header 4
(RFC 2784), key 4 (RFC 2890), inner Ethernet header 14. 1500 - 42 = 1458.
"""

from __future__ import annotations

from dvn.kernel.state import Host
from dvn.spec import Site, Underlay

IPV4_HEADER, GRE_HEADER, GRE_KEY, ETHERNET_HEADER = 20, 4, 4, 14
KEYED_GRETAP = IPV4_HEADER + GRE_HEADER + GRE_KEY + ETHERNET_HEADER
TCP_HEADER, IPV6_HEADER = 20, 40
INTERNET_PATH = 1500
ETHERNET = 1500


def underlay_mtu(underlay: Underlay, host: Host) -> int:
    """Bytes an outer IP packet may have. A jumbo interface says nothing about the path behind it,
    so more than 1500 must be declared (`underlay.mtu`); EC2's internet gateway carries 1500."""
    if underlay.mtu is not None:
        return underlay.mtu
    link = host.links.get(underlay.interface)
    return min(link.mtu if link else INTERNET_PATH, INTERNET_PATH)


def network_mtu(site: Site, host: Host) -> int:
    """MTU of tunnels and bridges alike.

    The same with and without a tunnel in the network: a lease that comes or goes must not change
    the MTU under running connections.
    """
    if site.underlay is None:
        return ETHERNET
    return underlay_mtu(site.underlay, host) - KEYED_GRETAP


def tcp_mss(mtu: int, version: int) -> int:
    """The largest TCP segment in a packet of `mtu` bytes without options (RFC 9293, 3.7.1)."""
    return mtu - (IPV4_HEADER if version == 4 else IPV6_HEADER) - TCP_HEADER
