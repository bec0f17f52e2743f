"""GRE protected by IPsec in transport mode: what hardware routers speak (RFC 4303, RFC 3948).

The IKE daemon negotiates; the kernel encrypts. Two sets of our nft table have the hosts to which
GRE goes protected or not at all: what has no security association is dropped on both ways, so that
nothing leaves or enters bare before the negotiation, after it fails, or when the daemon is gone.
"""

from __future__ import annotations

from dvn.kernel.ipsec import IpsecPeer, settings_digest
from dvn.kernel.state import (
    Element,
    KernelState,
    NftChain,
    NftRule,
    NftSet,
    NftTable,
    table_name,
)
from dvn.passes import EMPTY, Context, Pass
from dvn.spec import Site, Tunnel
from dvn.tunnels.choice import carried

_BARE = "GRE with this host is protected by IPsec, or is none"
_IN = tuple(
    NftRule.of(f"meta l4proto gre {ip} saddr @sealed{n} meta ipsec missing counter drop", _BARE)
    for ip, n in (("ip", 4), ("ip6", 6))
)
_OUT = tuple(
    NftRule.of(f"meta l4proto gre {ip} daddr @sealed{n} rt ipsec missing counter drop", _BARE)
    for ip, n in (("ip", 4), ("ip6", 6))
)


def _frame(context: Context) -> KernelState:
    if context.site.underlay is None:
        return EMPTY
    chains = (
        NftChain("ipsec-in", _IN, "filter", "prerouting", -311, "accept"),
        NftChain("ipsec-out", _OUT, "filter", "output", -311, "accept"),
    )
    return KernelState(tables=(_table(context.site, {}, chains),))


def _tunnel(context: Context, tunnel: Tunnel) -> KernelState:
    """The guard of one tunnel, and its connection; tunnels to one host share both."""
    site = context.site
    local, remote = site.local_of(tunnel), tunnel.remote
    if carried(context.host, tunnel) != "ipsec" or local is None or remote is None:
        return EMPTY
    secret = context.host.secrets.get(tunnel.psk_file or "")
    outside = site.underlay.outside(remote.version) if site.underlay else None
    local_id = tunnel.local_id or str(tunnel.local or outside)
    remote_id = tunnel.peer_id or str(remote)
    peer = IpsecPeer(
        site.site,
        str(local),
        str(remote),
        settings_digest(local_id, remote_id, secret.digest if secret else ""),
        local_id,
        remote_id,
        tunnel.psk_file or "",
    )
    elements: dict[int, set[Element]] = {remote.version: {(str(remote),)}}
    return KernelState(tables=(_table(site, elements, ()),), things=(peer,))


def _table(site: Site, elements: dict[int, set[Element]], chains: tuple[NftChain, ...]) -> NftTable:
    sets = tuple(
        NftSet(f"sealed{version}", (kind,), frozenset(elements.get(version, ())))
        for version, kind in ((4, "ipv4_addr"), (6, "ipv6_addr"))
    )
    return NftTable("inet", table_name(site.site), sets, chains)


IPSEC = Pass("ipsec", frame=_frame, tunnel=_tunnel)
