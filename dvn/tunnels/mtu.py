"""The MTU a tunnel and its network can have, from the path that carries it.

What each transport adds to a packet of the network, in bytes:

    outer IP header    20 (RFC 791), 40 (RFC 8200)
    UDP                 8 (RFC 768)
    GRE                 4 (RFC 2784), and 4 for its key (RFC 2890)
    inner Ethernet     14, with gretap only
    WireGuard          32: type, receiver and counter 16, tag 16 (its paper, 5.4.6; it pads to 16
                       bytes, but never beyond its device's MTU)
    ESP, AES-GCM       34: SPI and sequence 8 (RFC 4303), IV 8 and tag 16 (RFC 4106), pad length
                       and next header 2, and padding to a multiple of 4

    plain      IP + GRE
    fou        IP + UDP + GRE
    wireguard  IP + UDP + WireGuard + inner IPv4 + GRE
    ipsec      IP + UDP + ESP around the GRE packet's inside: always as if behind a NAT (RFC 3948),
               so that a NAT that comes or goes changes nothing
"""

from __future__ import annotations

from collections.abc import Iterable

from dvn.checks.transports import may_become
from dvn.kernel.state import Host
from dvn.spec import Site, Tunnel, Underlay
from dvn.spec.fabric import fabric_outer, fabric_path
from dvn.spec.tunnel import Carried, TunnelType

IPV4_HEADER, IPV6_HEADER, UDP_HEADER = 20, 40, 8
GRE_HEADER, GRE_KEY, ETHERNET_HEADER = 4, 4, 14
WIREGUARD = 32
ESP_BEFORE, ESP_TRAILER, ESP_TAG, ESP_ALIGN = 16, 2, 16, 4
TCP_HEADER = 20
INTERNET_PATH = 1500
ETHERNET = 1500
LEAST = 1280  # below it the kernel has no IPv6 on a device (RFC 8200, 5)


def underlay_mtu(underlay: Underlay, host: Host) -> int:
    """Bytes an outer IP packet may have. A jumbo interface says nothing about the path behind it,
    so more than 1500 must be declared (`underlay.mtu`); EC2's internet gateway carries 1500."""
    if underlay.mtu is not None:
        return underlay.mtu
    link = host.links.get(underlay.interface)
    return min(link.mtu if link else INTERNET_PATH, INTERNET_PATH)


def inner_mtu(path: int, transport: Carried, version: int, kind: TunnelType = "gretap") -> int:
    """The largest packet of a network that a path for packets of `path` bytes carries whole.

    `version`: the outer IP's. The tunnel has a key.
    """
    outer = IPV4_HEADER if version == 4 else IPV6_HEADER
    gre = GRE_HEADER + GRE_KEY + (ETHERNET_HEADER if kind == "gretap" else 0)
    match transport:
        case "plain":
            return path - outer - gre
        case "fou":
            return path - outer - UDP_HEADER - gre
        case "wireguard":
            return wireguard_mtu(path, version) - IPV4_HEADER - gre
        case "ipsec":
            room = path - outer - UDP_HEADER - ESP_BEFORE - ESP_TAG
            return room - room % ESP_ALIGN - ESP_TRAILER - gre


def wireguard_mtu(path: int, version: int) -> int:
    """MTU of a WireGuard device whose packets travel in IP of that version."""
    return path - (IPV4_HEADER if version == 4 else IPV6_HEADER) - UDP_HEADER - WIREGUARD


def wireguard_device_mtu(underlay: Underlay, host: Host) -> int:
    """That of this host's device. Where the underlay has both families it fits IPv6, the narrower
    one: a peer may roam from one to the other."""
    return wireguard_mtu(underlay_mtu(underlay, host), _roaming(underlay))


def _roaming(underlay: Underlay) -> int:
    return max(address.version for address in underlay.address)


def tunnel_mtu(site: Site, host: Host, tunnel: Tunnel) -> int:
    """MTU of a tunnel: what the path carries, as far as is known.

    `auto` counts as the costliest of what it may become, so that a choice that changes does not
    change the MTU. A path that was measured (tunnels/paths.py) counts if it is narrower than what
    the underlay says. It is never below 1280: what then does not fit is sent in fragments.
    """
    return max(LEAST, whole_mtu(site, host, tunnel))


def whole_mtu(site: Site, host: Host, tunnel: Tunnel) -> int:
    """The same, as small as it may be: the largest packet that is not broken up."""
    if site.underlay is None:
        return ETHERNET
    path = underlay_mtu(site.underlay, host)
    if tunnel.beyond is not None:
        path = min(path, tunnel.beyond.path)
    measured = host.paths.get(tunnel.full_name)
    if measured is not None:
        path = min(path, measured)
    roaming = _roaming(site.underlay)
    outer = tunnel.remote.version if tunnel.remote else roaming
    return min(
        inner_mtu(path, name, roaming if name == "wireguard" else outer, tunnel.type)
        for name in may_become(tunnel)
    )


def network_mtu(site: Site, host: Host, tunnels: Iterable[Tunnel] = ()) -> int:
    """MTU of a network with these tunnels, which its bridge, machines and routers have.

    The narrowest of its declared tunnels, and never more than a lease's `plain` tunnel carries: a
    lease that comes or goes must not change the MTU under running connections. So it changes only
    when the file does, or when a path turns out to be narrower than it was thought to be.
    """
    if site.underlay is None:
        return ETHERNET
    version = min(address.version for address in site.underlay.address)
    base = max(LEAST, inner_mtu(underlay_mtu(site.underlay, host), "plain", version))
    if site.fabric is not None:
        base = min(base, fabric_mtu(site))
    return min([base, *(tunnel_mtu(site, host, t) for t in tunnels if not t.dynamic)])


def fabric_mtu(site: Site) -> int:
    """MTU of a network that spreads over hosts: the same on each of them, whoever has machines."""
    if site.fabric is None:
        return ETHERNET
    path = fabric_path(site) or INTERNET_PATH
    return max(LEAST, inner_mtu(path, site.fabric.transport, fabric_outer(site)))


def tcp_mss(mtu: int, version: int) -> int:
    """The largest TCP segment in a packet of `mtu` bytes without options (RFC 9293, 3.7.1)."""
    return mtu - (IPV4_HEADER if version == 4 else IPV6_HEADER) - TCP_HEADER
