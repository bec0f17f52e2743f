"""Two sites, each behind a box that may translate addresses, with a narrow path in between.

left 10.9.0.10 ── gwa 192.168.1.2 ── nata ──198.51.100.0/24── near ──MTU 1400── far
                                                                                  │ 203.0.113.0/24
right 10.9.0.20 ── gwb 192.168.2.2 ── natb ───────────────────────────────────────┘

`left` and `right` are ports of one network, one segment through whatever tunnel there is.
"""

from __future__ import annotations

import base64
import socket
import threading
import zlib
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Literal

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from dvn.engine import Engine
from dvn.kernel import netlink as nl
from dvn.spec import Site, site_from_json
from dvn.status import Applied
from dvn.tunnels import paths, prober
from dvn.tunnels.auto import PathFacts
from dvn.tunnels.paths import Known
from lab.host import Host
from lab.hosts import Lab
from lab.net import build
from lab.topology import Link, Machine, Router, Topology

NETLINK_NETFILTER, IPCTNL_DELETE = 12, 0x0102
Translation = Literal["none", "one_to_one", "masquerade"]
SIDES = ("a", "b")
INSIDE = {"a": "192.168.1.2", "b": "192.168.2.2"}
PUBLIC = {"a": "198.51.100.2", "b": "203.0.113.2"}  # of a 1:1 NAT
BOX = {"a": "198.51.100.1", "b": "203.0.113.1"}  # of a box that masquerades
SIX = {"a": "2001:db8:1::2", "b": "2001:db8:2::2"}
END = {"a": ("left", "10.9.0.10"), "b": ("right", "10.9.0.20")}
PRIVATE_KEY_FILE = "/etc/dvn/wireguard.key"
PSK_FILE = "/etc/dvn/psk"
PSK = "0123456789abcdef-0123456789abcdef"
_KEYS = {side: X25519PrivateKey.from_private_bytes(side.encode() * 32) for side in SIDES}
PUBLIC_KEY = {
    side: base64.b64encode(key.public_key().public_bytes_raw()).decode()
    for side, key in _KEYS.items()
}
FORWARD_ALL = {"net.ipv4.ip_forward": "1", "net.ipv6.conf.all.forwarding": "1"}


def topology(narrow: int) -> Topology:
    nodes: list[Machine] = []
    links: list[Link] = []
    for side, number, net, hop in (("a", 1, "198.51.100", "near"), ("b", 2, "203.0.113", "far")):
        end, address = END[side]
        six = f"2001:db8:{number}::"
        nodes += [
            Machine(end, {"eth0": f"{address}/24"}),
            Machine(
                f"gw{side}",
                {"wan0": (f"{INSIDE[side]}/24", f"{SIX[side]}/64")},
                {"default": f"192.168.{number}.1", "::/0": f"{six}1"},
            ),
            Machine(
                f"nat{side}",
                {
                    "inside": (f"192.168.{number}.1/24", f"{six}1/64"),
                    "outside": (f"{net}.1/24", f"{PUBLIC[side]}/32", f"2001:db8:10{number}::1/64"),
                },
                {"default": f"{net}.254", "::/0": f"2001:db8:10{number}::fe"},
                forward=True,
            ),
        ]
        other = 3 - number
        nodes.append(
            Router(
                hop,
                {
                    "side": (f"{net}.254/24", f"2001:db8:10{number}::fe/64"),
                    "mid": (f"192.0.2.{number}/24", f"2001:db8:100::{number}/64"),
                },
                {
                    "default": f"192.0.2.{other}",
                    "::/0": f"2001:db8:100::{other}",
                    f"192.168.{number}.0/24": f"{net}.1",
                    f"{six}/64": f"2001:db8:10{number}::1",
                },
            )
        )
        links += [
            Link(f"{end}:eth0", f"gw{side}:lan0"),
            Link(f"gw{side}:wan0", f"nat{side}:inside"),
            Link(f"nat{side}:outside", f"{hop}:side"),
        ]
    links.append(Link("near:mid", "far:mid", mtu=narrow))
    return Topology(nodes=tuple(nodes), links=tuple(links))


_NO_ICMP = """
table inet quiet {
  chain out {
    type filter hook output priority 0;
    icmp type { destination-unreachable, time-exceeded } drop
    icmpv6 type { packet-too-big, destination-unreachable } drop
  }
}
"""
_NAT = """
table ip box
delete table ip box
table ip box {{
  chain in {{ type nat hook prerouting priority dstnat; {dnat}
  }}
  chain out {{ type nat hook postrouting priority srcnat; {snat}
  }}
  chain own {{
    type filter hook input priority filter; policy accept;
    iifname "outside" ct state new {own}
  }}
  chain through {{
    type filter hook forward priority filter; policy {policy};
    ct state established,related accept
    ct status dnat accept
    iifname "inside" accept
    {block}
  }}
}}
"""


_STRONGSWAN = """
charon {
  load_modular = no
  load = random nonce openssl gcm aes sha2 hmac kdf pem pkcs1 kernel-netlink socket-default vici
  retransmit_timeout = 1.0
  retransmit_base = 1.3
}
"""


class Pair:
    """The hosts, an engine in each gateway, and what stands before them."""

    def __init__(self, lab: Lab, *, narrow: int = 1500) -> None:
        self.hosts = build(lab, topology(narrow))
        self.engines = {side: Engine() for side in SIDES}
        for side in SIDES:
            gateway = self[f"gw{side}"]
            raw = base64.b64encode(_KEYS[side].private_bytes_raw()).decode()
            gateway.write(PRIVATE_KEY_FILE, raw + "\n", mode=0o600)
            gateway.write(PSK_FILE, PSK + "\n", mode=0o600)
            self.box(side, "none")
        for name in ("near", "far"):
            self[name].run("nft", "-f", "-", input=_NO_ICMP)

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    def box(
        self, side: str, kind: Translation, block: str = "", *, keeps_ports: bool = False
    ) -> None:
        """What stands before a gateway: a router, a 1:1 NAT, or one address for all. `block`: nft
        rules of what it lets through in neither direction."""
        dnat = snat = ""
        if kind == "one_to_one":
            dnat = f'iifname "outside" ip daddr {PUBLIC[side]} dnat to {INSIDE[side]}'
            snat = f'oifname "outside" ip saddr {INSIDE[side]} snat to {PUBLIC[side]}'
        if kind == "masquerade":
            # Other ports than inside: what a busy box does to the second who asks for one.
            others = 'oifname "outside" meta l4proto udp masquerade to :20000-20999\n'
            snat = ("" if keeps_ports else others) + 'oifname "outside" masquerade'
        policy = "accept" if kind == "none" else "drop"
        # A box that lets what nobody asked for in as far as itself notes it as a flow of its own,
        # and has then no room for the one from inside that it would belong to.
        own = "drop" if kind == "masquerade" else "accept"
        text = _NAT.format(dnat=dnat, snat=snat, policy=policy, own=own, block="")
        if block:
            text = text.replace("ct state established", f"{block}\n    ct state established", 1)
        self[f"nat{side}"].run("nft", "-f", "-", input=text)
        self[f"nat{side}"].inside(_forget_flows)

    def site(
        self,
        side: str,
        tunnel: Mapping[str, Any] | None,
        *,
        underlay: Mapping[str, Any] | None = None,
    ) -> Site:
        """`tunnel`: what the tunnel is besides its network and key; None: there is none."""
        made = {"network": "farm", "key": 42, **(tunnel or {})}
        return site_from_json(
            {
                "site": f"site-{side}",
                "host": f"gw{side}",
                "underlay": {
                    "interface": "wan0",
                    "address": [INSIDE[side], SIX[side]],
                    "wireguard": {"private_key_file": PRIVATE_KEY_FILE},
                    **(underlay or {}),
                },
                "tenants": {
                    "cms": {
                        "networks": {
                            "farm": {
                                "prefix": ["10.9.0.0/24"],
                                "gateway": ["10.9.0.1" if side == "a" else "10.9.0.2"],
                                "ports": [{"interface": "lan0"}],
                            }
                        },
                        "tunnels": {"other": made} if tunnel else {},
                    }
                },
            }
        )

    def apply(self, side: str, site: Site) -> Applied:
        return self[f"gw{side}"].inside(lambda: self.engines[side].apply(site))

    def start_ike(self) -> None:
        """An IKE daemon in each gateway, with its socket there."""
        for side in SIDES:
            gateway = self[f"gw{side}"]
            gateway.write("/etc/strongswan.conf", _STRONGSWAN)
            gateway.spawn("/usr/lib/ipsec/charon", log=None)
        for side in SIDES:
            self[f"gw{side}"].wait_for(("test", "-S", "/var/run/charon.vici"), 30)

    def destroy(self, side: str) -> None:
        self[f"gw{side}"].inside(lambda: self.engines[side].destroy(f"site-{side}"))

    def connect(self, **tunnels: Mapping[str, Any] | None) -> None:
        """Apply on both sides: `a={...}, b={...}`."""
        for side in SIDES:
            self.apply(side, self.site(side, tunnels[side]))

    def probe(self, a: Site, b: Site, patience_s: float = 40.0) -> dict[str, PathFacts | None]:
        """What both sides find out about the path, talking to each other."""
        found: dict[str, PathFacts | None] = {}

        def ask(side: str, site: Site) -> None:
            some = prober.ends(site, 1500, lambda _tunnel: True)
            talks = self[f"gw{side}"].inside(lambda: prober.probe_paths(some, patience_s))
            (talk,) = talks.values()
            found[side] = talk.facts()

        threads = [
            threading.Thread(target=ask, args=(side, site))
            for side, site in zip(SIDES, (a, b), strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found

    def know(self, side: str, known: Mapping[str, Known]) -> None:
        """What a side is to know of its paths, as `dvn tunnel probe` would have kept it."""
        self[f"gw{side}"].inside(lambda: paths.save(f"site-{side}", known))

    def mtu(self, side: str, device: str = "b-cms-farm") -> int:
        return int(self[f"gw{side}"].read(f"/sys/class/net/{device}/mtu"))

    def set_ends(self, mtu: int) -> None:
        """Give the machines of the network its MTU, as DHCP would."""
        for end, _address in END.values():
            self[end].run("ip", "link", "set", "eth0", "mtu", str(mtu))

    def pings(self, size: int = 56, tries: int = 5) -> bool:
        """Whether right answers left with the don't-fragment bit set."""
        argv = ["ping", "-n", "-q", "-c", "1", "-W", "1", "-M", "do", "-s", str(size), END["b"][1]]
        return any(self["left"].run(*argv, check=False).returncode == 0 for _ in range(tries))

    def sends(self, source: str, target: str, size: int) -> bool:
        """Whether `size` bytes of TCP go from one side to the other, and arrive as they were."""
        sender, _address = END[source]
        receiver, address = END[target]
        block = bytes(range(256)) * 1024
        expected = 0
        for _ in range(size // len(block)):
            expected = zlib.crc32(block, expected)
        got: list[tuple[int, int]] = []
        with self[receiver].listen("0.0.0.0", 5002) as listener:
            listener.settimeout(20)
            thread = threading.Thread(target=_receive, args=(listener, got), daemon=True)
            thread.start()
            with suppress(OSError), self[sender].connect(address, 5002, timeout=10) as client:
                client.settimeout(60)
                for _ in range(size // len(block)):
                    client.sendall(block)
            thread.join(60)
        return got == [(size // len(block) * len(block), expected)]


def _forget_flows() -> None:
    """Empty the connection tracking of this host (linux/netfilter/nfnetlink_conntrack.h)."""
    sock = nl.Socket(NETLINK_NETFILTER)
    try:
        sock.send([nl.Request(IPCTNL_DELETE, 0, bytes(4), "forget all flows")])
    finally:
        sock.close()


def _receive(listener: socket.socket, got: list[tuple[int, int]]) -> None:
    with suppress(OSError):
        connection, _peer = listener.accept()
        with connection:
            connection.settimeout(60)
            buffer, total, check = bytearray(1 << 18), 0, 0
            while count := connection.recv_into(buffer):
                total += count
                check = zlib.crc32(memoryview(buffer)[:count], check)
            got.append((total, check))
