"""What may pass from a port to its neighbours, and what may not; for test_kernel_isolation.py.

`pinned` has a MAC address and addresses of its own, `free` has neither, `uplink` leads to the
site's switches. All are in one network, with one more port that listens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tests.dvn.frames import (
    ADVERT,
    ARP,
    BROADCAST,
    DESTINATION,
    FRAGMENT,
    ICMP,
    ICMPV6,
    IPV4,
    IPV6,
    QINQ,
    REPLY,
    SOLICIT,
    TCP,
    UDP,
    VLAN,
    arp,
    bootp,
    eth,
    icmp,
    ipv4,
    ipv6,
    nd,
    nd_mac,
    nd_nonce,
    options,
    part,
    tagged,
    tcp,
    udp,
)

SITE = """
site: cnaf
host: gw
tenants:
  cms:
    networks:
      farm:
        prefix: [10.9.0.0/24, "fd00:9::/64", 10.19.0.0/23, "fd00:19::/60"]
        vlan: {id: 101, uplink: lan0}
        ports:
        - {interface: pinned, mac: 02:00:00:00:00:01, address: [10.9.0.3, 10.9.0.4, "fd00:9::3"]}
        - {interface: free}
        - {interface: watch}
"""
OWN_MAC, FREE_MAC = "02:00:00:00:00:01", "02:00:00:00:00:02"
OWN, OWN_TOO, OWN6, OWN_LOCAL = "10.9.0.3", "10.9.0.4", "fd00:9::3", "fe80::ff:fe00:1"
FREE, FREE6, FREE_LOCAL = "10.9.0.77", "fd00:9::77", "fe80::77"
WIDE, WIDE6 = "10.19.1.77", "fd00:19:0:9::77"  # of prefixes that are not of the usual length
NEIGHBOUR, NEIGHBOUR6 = "10.9.0.50", "fd00:9::50"
GATEWAY, GATEWAY6 = "10.9.0.1", "fd00:9::1"
ELSEWHERE, ELSEWHERE6 = "192.0.2.7", "2001:db8::7"
ALL_NODES, SOLICITED = "ff02::1", "ff02::1:ff00:50"


@dataclass(frozen=True)
class Case:
    """`arrives` where the filters stand. `whole`: not shorter than it says, which br_netfilter
    drops."""

    name: str
    port: str
    frame: bytes
    arrives: bool
    whole: bool = True


@dataclass(frozen=True)
class Claim:
    """What a frame claims: who sends it, through which port, and whether that is allowed."""

    name: str
    port: str
    mac: str
    four: str
    six: str
    allowed: bool
    harmless: bool = False  # as the target of neighbour discovery or of a probe


def claims(gateway_mac: str, gateway_local: str) -> Iterator[Claim]:
    yield Claim("its own", "pinned", OWN_MAC, OWN, OWN6, True)
    yield Claim("its own, the second", "pinned", OWN_MAC, OWN_TOO, OWN_LOCAL, True)
    yield Claim("a link-local nobody has", "pinned", OWN_MAC, OWN, "fe80::1234", True)
    yield Claim("another of the prefix", "pinned", OWN_MAC, FREE, FREE6, False)
    yield Claim("any of the prefix", "free", FREE_MAC, FREE, FREE6, True)
    yield Claim("any of an unusual prefix", "free", FREE_MAC, WIDE, WIDE6, True)
    yield Claim("outside the prefix", "free", FREE_MAC, ELSEWHERE, ELSEWHERE6, False, True)
    yield Claim("outside the prefix", "pinned", OWN_MAC, ELSEWHERE, ELSEWHERE6, False)
    yield Claim("pinned to another port", "free", FREE_MAC, OWN, OWN6, False)
    yield Claim("pinned to another port", "free", FREE_MAC, OWN_TOO, OWN_LOCAL, False)
    yield Claim("pinned to another port", "uplink", FREE_MAC, OWN, OWN6, False)
    yield Claim("the gateway's", "free", FREE_MAC, GATEWAY, GATEWAY6, False)
    yield Claim("the gateway's", "pinned", OWN_MAC, GATEWAY, gateway_local, False)
    yield Claim("the gateway's", "uplink", FREE_MAC, GATEWAY, gateway_local, False)
    yield Claim("the network itself", "free", FREE_MAC, "10.9.0.0", "fd00:9::", False)
    yield Claim("broadcast", "free", FREE_MAC, "10.9.0.255", "fd00:9::", False)
    yield Claim("of the site", "uplink", FREE_MAC, ELSEWHERE, ELSEWHERE6, True)
    yield Claim("another's MAC", "free", OWN_MAC, FREE, FREE6, False)
    yield Claim("another's MAC", "uplink", OWN_MAC, FREE, FREE6, False)
    yield Claim("the gateway's MAC", "free", gateway_mac, FREE, FREE6, False)
    yield Claim("the gateway's MAC", "uplink", gateway_mac, FREE, FREE6, False)
    yield Claim("another MAC than its own", "pinned", FREE_MAC, OWN, OWN6, False)


def cases(gateway_mac: str, gateway_local: str) -> tuple[Case, ...]:
    found: list[Case] = []

    def add(
        what: str,
        port: str,
        arrives: bool,
        payload: bytes,
        kind: int,
        *,
        mac: str = "",
        to: str = "02:00:00:00:ff:ff",
    ) -> None:
        source = mac or (OWN_MAC if port == "pinned" else FREE_MAC)
        frame = eth(source, payload, kind, to)
        verdict = "passes" if arrives else "dropped"
        whole = what != "IPv4 cut short"
        found.append(Case(f"{verdict}: {port}: {what}", port, frame, arrives, whole))

    def n() -> int:
        return len(found) + 1

    # What every kind of packet claims by its source.
    for claim in claims(gateway_mac, gateway_local):
        port, ok, mac = claim.port, claim.allowed, claim.mac
        question = arp(n(), mac, claim.four, NEIGHBOUR)
        add(f"ARP request, {claim.name}", port, ok, question, ARP, mac=mac, to=BROADCAST)
        answer = arp(n(), mac, claim.four, NEIGHBOUR, REPLY)
        add(f"ARP reply, {claim.name}", port, ok, answer, ARP, mac=mac)
        packet = ipv4(n(), claim.four, NEIGHBOUR, UDP, udp(1, 2))
        add(f"IPv4, {claim.name}", port, ok, packet, IPV4, mac=mac)
        packet = ipv6(n(), claim.six, NEIGHBOUR6, UDP, udp(1, 2))
        add(f"IPv6 {claim.six}, {claim.name}", port, ok, packet, IPV6, mac=mac)
        packet = ipv4(n(), claim.four, NEIGHBOUR, TCP, tcp())
        add(f"TCP, {claim.name}", port, ok, packet, IPV4, mac=mac)
        packet = ipv6(n(), claim.six, NEIGHBOUR6, TCP, tcp())
        add(f"TCP {claim.six}, {claim.name}", port, ok, packet, IPV6, mac=mac)
        ask = nd(SOLICIT, NEIGHBOUR6, nd_mac(1, mac))
        packet = ipv6(n(), claim.six, SOLICITED, ICMPV6, ask)
        add(
            f"NS {claim.six}, {claim.name}", port, ok, packet, IPV6, mac=mac, to="33:33:ff:00:00:50"
        )
        # The link-local address as source is right: the target lies.
        local = OWN_LOCAL if port == "pinned" else FREE_LOCAL
        ok = ok or claim.harmless
        tell = nd(ADVERT, claim.six, nd_mac(2, mac))
        packet = ipv6(n(), local, ALL_NODES, ICMPV6, tell)
        add(
            f"NA {claim.six}, {claim.name}", port, ok, packet, IPV6, mac=mac, to="33:33:00:00:00:01"
        )
        probe = nd(SOLICIT, claim.six, nd_nonce())
        packet = ipv6(n(), "::", SOLICITED, ICMPV6, probe)
        add(
            f"DAD {claim.six}, {claim.name}",
            port,
            ok,
            packet,
            IPV6,
            mac=mac,
            to="33:33:ff:00:00:50",
        )
        probe = arp(n(), mac, "0.0.0.0", claim.four)
        add(f"ARP probe, {claim.name}", port, ok, probe, ARP, mac=mac, to=BROADCAST)

    # A right source, and a lie inside.
    for port, mac, four, six in (
        ("pinned", OWN_MAC, OWN, OWN6),
        ("free", FREE_MAC, FREE, FREE6),
        ("uplink", FREE_MAC, FREE, FREE6),
    ):
        site, pinned = port == "uplink", port == "pinned"
        for lie, who in ((gateway_mac, "gateway"), (OWN_MAC, "pinned"), (FREE_MAC, "free")):
            ok = lie == mac or (who == "free" and not pinned)
            question = arp(n(), lie, four, NEIGHBOUR)
            add(f"ARP with the MAC of {who}", port, ok, question, ARP)
            ask = ipv6(n(), six, SOLICITED, ICMPV6, nd(SOLICIT, NEIGHBOUR6, nd_mac(1, lie)))
            add(f"NS with the MAC of {who}", port, ok, ask, IPV6)
            tell = ipv6(n(), six, ALL_NODES, ICMPV6, nd(ADVERT, six, nd_mac(2, lie)))
            add(f"NA with the MAC of {who}", port, ok, tell, IPV6)
        gratuitous = arp(n(), mac, GATEWAY, GATEWAY, REPLY)
        add("gratuitous ARP for the gateway", port, False, gratuitous, ARP, to=BROADCAST)
        reply = arp(n(), mac, "0.0.0.0", NEIGHBOUR, REPLY)
        add("ARP reply from nobody", port, site, reply, ARP)
        reverse = arp(n(), mac, four, NEIGHBOUR, 3)
        add("reverse ARP operation", port, False, reverse, ARP)
        short = arp(n(), mac, four, NEIGHBOUR)[:27]
        add("ARP cut short", port, True, short + bytes(1), ARP)

        # DHCP, router advertisements, redirects.
        for what, packet, kind, ok in (
            ("DHCP server", ipv4(n(), four, NEIGHBOUR, UDP, udp(67, 68)), IPV4, site),
            ("DHCP server, odd port", ipv4(n() + 500, four, "255.255.255.255", UDP, udp(5, 68)),
             IPV4, site),
            ("DHCP client", ipv4(n() + 1000, "0.0.0.0", "255.255.255.255", UDP,
                                 udp(68, 67, bootp(mac))), IPV4, True),
            ("DHCP for another MAC", ipv4(n() + 1500, "0.0.0.0", "255.255.255.255", UDP,
                                          udp(68, 67, bootp("02:00:00:00:00:09"))), IPV4,
             not pinned),
            ("no address, no DHCP", ipv4(n() + 2000, "0.0.0.0", NEIGHBOUR, UDP, udp(68, 67)),
             IPV4, site),
            ("ICMP echo", ipv4(n() + 2500, four, NEIGHBOUR, ICMP, icmp(8)), IPV4, True),
            ("ICMP later fragment", ipv4(n() + 3000, four, NEIGHBOUR, ICMP, b"\xff" * 8, 100), IPV4,
             True),
            ("ICMP redirect", ipv4(n() + 3500, four, NEIGHBOUR, ICMP, icmp(5)), IPV4, site),
            ("ICMP router advertisement", ipv4(n() + 4000, four, NEIGHBOUR, ICMP, icmp(9)), IPV4,
             site),
            ("DHCPv6 server", ipv6(n(), six, NEIGHBOUR6, UDP, udp(547, 546)), IPV6, site),
            ("DHCPv6 client", ipv6(n() + 500, FREE_LOCAL, "ff02::1:2", UDP, udp(546, 547)), IPV6,
             True),
            ("RA", ipv6(n() + 1500, FREE_LOCAL, ALL_NODES, ICMPV6, icmp(134)), IPV6, site),
            ("redirect 6", ipv6(n() + 2000, FREE_LOCAL, NEIGHBOUR6, ICMPV6, icmp(137)), IPV6, site),
            ("RS", ipv6(n() + 2500, FREE_LOCAL, "ff02::2", ICMPV6, icmp(133)), IPV6, True),
            ("RS from nobody", ipv6(n() + 3000, "::", "ff02::2", ICMPV6, icmp(133)), IPV6, True),
            ("MLD report from nobody", ipv6(n() + 3500, "::", "ff02::16", 0,
                                            options(ICMPV6, icmp(143))), IPV6, True),
            ("MLD report", ipv6(n() + 4000, FREE_LOCAL, "ff02::16", 0,
                                options(ICMPV6, icmp(143))), IPV6, True),
            ("echo from nobody", ipv6(n() + 4500, "::", ALL_NODES, ICMPV6, icmp(128)), IPV6, False),
            ("DAD to one", ipv6(n() + 5000, "::", NEIGHBOUR6, ICMPV6, nd(SOLICIT, six)), IPV6,
             False),
            ("echo 6", ipv6(n() + 5500, six, NEIGHBOUR6, ICMPV6, icmp(128)), IPV6, True),
            ("RA behind options", ipv6(n() + 6000, FREE_LOCAL, ALL_NODES, DESTINATION,
                                       options(ICMPV6, icmp(134))), IPV6, site),
            ("UDP behind options", ipv6(n() + 6500, six, NEIGHBOUR6, DESTINATION,
                                        options(UDP, udp(1, 2))), IPV6, True),
            ("DHCPv6 server behind options", ipv6(n() + 7000, six, NEIGHBOUR6, DESTINATION,
                                                  options(UDP, udp(547, 546))), IPV6, site),
            # Fragments: RFC 6980, RFC 7112, RFC 7113.
            ("first fragment of UDP", ipv6(n() + 7500, six, NEIGHBOUR6, FRAGMENT,
                                           part(UDP, udp(1, 2), more=True)), IPV6, True),
            ("later fragment of UDP", ipv6(n() + 8000, six, NEIGHBOUR6, FRAGMENT,
                                           part(UDP, bytes(8), 1448)), IPV6, True),
            ("first fragment of an echo", ipv6(n() + 8500, six, NEIGHBOUR6, FRAGMENT,
                                               part(ICMPV6, icmp(128), more=True)), IPV6, True),
            ("later fragment of an echo", ipv6(n() + 9000, six, NEIGHBOUR6, FRAGMENT,
                                               part(ICMPV6, bytes(8), 1448)), IPV6, True),
            ("RA in a fragment", ipv6(n() + 9500, FREE_LOCAL, ALL_NODES, FRAGMENT,
                                      part(ICMPV6, icmp(134))), IPV6, False),
            ("NA in a fragment", ipv6(n() + 10000, six, ALL_NODES, FRAGMENT,
                                      part(ICMPV6, nd(ADVERT, six))), IPV6, False),
            ("DAD in a fragment", ipv6(n() + 10500, "::", SOLICITED, FRAGMENT,
                                       part(ICMPV6, nd(SOLICIT, six))), IPV6, False),
            ("ICMPv6 header in the second fragment",
             ipv6(n() + 11000, FREE_LOCAL, ALL_NODES, FRAGMENT,
                  part(DESTINATION, options(ICMPV6, b""), more=True)), IPV6, False),
            ("UDP header in the second fragment",
             ipv6(n() + 11500, six, NEIGHBOUR6, FRAGMENT,
                  part(DESTINATION, options(UDP, b""), more=True)), IPV6, site),
            ("a chain of headers that breaks off",
             ipv6(n() + 12000, six, NEIGHBOUR6, DESTINATION, bytes([UDP, 9]) + bytes(6)), IPV6,
             site),
        ):  # fmt: skip
            add(what, port, ok, packet, kind)
        for service in ("169.254.169.254", "100.100.100.200", "168.63.129.16"):
            add(f"to {service}", port, False, ipv4(n(), four, service, TCP, tcp()), IPV4)
        for service in ("fd00:ec2::254", "fd20:ce::254", "fe80::a9fe:a9fe"):
            add(f"to {service}", port, False, ipv6(n(), six, service, TCP, tcp()), IPV6)
        nonce = nd(SOLICIT, NEIGHBOUR6, nd_nonce(), nd_mac(1, "02:00:00:00:00:09"))
        hidden = ipv6(n(), six, SOLICITED, ICMPV6, nonce)
        add("NS with a MAC after the nonce", port, not pinned, hidden, IPV6)
        long = nd(SOLICIT, NEIGHBOUR6, nd_nonce(2), nd_mac(1, "02:00:00:00:00:09"))
        hidden = ipv6(n(), six, SOLICITED, ICMPV6, long)
        add("NS with a MAC after a long nonce", port, not pinned, hidden, IPV6)
        two = nd(SOLICIT, NEIGHBOUR6, nd_mac(1, mac), nd_mac(1, "02:00:00:00:00:09"))
        add("NS with two MACs", port, not pinned, ipv6(n(), six, SOLICITED, ICMPV6, two), IPV6)
        cut = ipv6(n(), six, ALL_NODES, ICMPV6, nd(ADVERT, six)[:22])
        add("NA cut short", port, False, cut, IPV6)

        broken = ipv4(n(), four, NEIGHBOUR, UDP, udp(1, 2))[:-4]
        add("IPv4 cut short", port, site, broken, IPV4)

        # Other ethertypes, tags, LLC/SNAP, link-local multicast.
        inner = ipv4(n(), four, NEIGHBOUR, UDP, udp(1, 2))
        snap = b"\xaa\xaa\x03\0\0\0" + IPV4.to_bytes(2, "big") + inner
        add("LLC/SNAP", port, False, snap, len(snap))
        for what, kind in (("reverse ARP", 0x8035), ("802.1X", 0x888E), ("LLDP", 0x88CC),
                           ("MPLS", 0x8847), ("PPPoE", 0x8863), ("IPX", 0x8137)):  # fmt: skip
            add(what, port, False, n().to_bytes(4, "big") + bytes(42), kind)
        bpdu = b"\x42\x42\x03" + n().to_bytes(35, "big")
        add("STP", port, False, bpdu, len(bpdu), to="01:80:c2:00:00:00")
        disguised = ipv4(n(), four, NEIGHBOUR, UDP, udp(1, 2))
        add("IPv4 to the spanning tree", port, False, disguised, IPV4, to="01:80:c2:00:00:00")
        for what, kind, vlan in (
            ("VLAN 0", VLAN, 0), ("VLAN 7", VLAN, 7), ("802.1ad", QINQ, 7),
            ("802.1ad, VLAN 0", QINQ, 0),
        ):  # fmt: skip
            frame = eth(mac, ipv4(n(), four, NEIGHBOUR, UDP, udp(1, 2)), IPV4)
            found.append(Case(f"dropped: {port}: {what}", port, tagged(frame, (kind, vlan)), False))
        frame = eth(mac, arp(n(), mac, GATEWAY, NEIGHBOUR), ARP)
        found.append(Case(f"dropped: {port}: ARP in VLAN 0", port, tagged(frame, (VLAN, 0)), False))
        frame = eth(mac, ipv4(n(), four, NEIGHBOUR, UDP, udp(1, 2)), IPV4)
        twice = tagged(frame, (VLAN, 7), (VLAN, 8))
        found.append(Case(f"dropped: {port}: tagged twice", port, twice, False))
    return tuple(found)
