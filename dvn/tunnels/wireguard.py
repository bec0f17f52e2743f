"""One WireGuard device for all tunnels of a host, one peer for each other host; GRE inside.

Inside, each end has an address made of its public key (addresses.wireguard_inner), and a peer
may send from its own only (allowed IPs). So a GRE packet that comes out of the device is from the
peer whose key made the address, and the tunnel accepts no other. What has such an address and is
*not* in WireGuard is dropped on both ways: nothing leaves unencrypted when the device is gone, and
nothing is let in beside it.
"""

from __future__ import annotations

from dvn import addresses
from dvn.kernel.state import (
    Address,
    KernelState,
    Link,
    NftChain,
    NftRule,
    NftSet,
    NftTable,
    WireguardLink,
    alias,
    table_name,
)
from dvn.kernel.wireguard import WireguardKey, WireguardPeer
from dvn.passes import EMPTY, Context, Pass
from dvn.spec import Tunnel
from dvn.spec.underlay import WireguardIdentity
from dvn.tunnels.choice import carried
from dvn.tunnels.keepalive import WIREGUARD_KEEPALIVE_S
from dvn.tunnels.mtu import wireguard_device_mtu

_INNER = addresses.WIREGUARD_INNER
_IN = (
    NftRule.of(
        f'ip daddr {_INNER} iifname != "lo" iifname != @wireguard counter drop',
        "what belongs inside WireGuard comes out of it, or not at all",
    ),
    NftRule.of(
        "iifname @wireguard meta l4proto != gre counter drop",
        "WireGuard carries tunnels, and is no way to the host",
    ),
    NftRule.of(
        "iifname @wireguard meta nfproto ipv6 counter drop",
        "inside WireGuard tunnels run over IPv4",
    ),
)
_OUT = (
    NftRule.of(
        f'ip daddr {_INNER} oifname != "lo" oifname != @wireguard counter drop',
        "what belongs inside WireGuard leaves through it, or not at all",
    ),
)
_THROUGH = (
    NftRule.of("iifname @wireguard counter drop", "WireGuard ends here"),
    NftRule.of("oifname @wireguard counter drop", "only this host's tunnels use WireGuard"),
)


def _frame(context: Context) -> KernelState:
    """The device with its key and address, and the guard around it."""
    underlay = context.site.underlay
    if underlay is None:
        return EMPTY
    own = underlay.wireguard
    devices = frozenset({(addresses.wireguard_name(own.port),)} if own else set())
    table = NftTable(
        "inet",
        table_name(context.site.site),
        (NftSet("wireguard", ("ifname",), devices),),
        (
            NftChain("sealed-in", _IN, "filter", "prerouting", -310, "accept"),
            NftChain("sealed-out", _OUT, "filter", "output", -310, "accept"),
            NftChain("sealed-through", _THROUGH, "filter", "forward", -310, "accept"),
        ),
    )
    state = KernelState(tables=(table,))
    if own is None or not context.own_key:
        return state
    device = addresses.wireguard_name(own.port)
    link = Link(
        name=device,
        alias=alias(context.site.site, "wireguard", str(own.port)),
        params=WireguardLink(),
        mtu=wireguard_device_mtu(underlay, context.host),
    )
    inner = f"{addresses.wireguard_inner(context.own_key)}/{_INNER.prefixlen}"
    return KernelState(
        links=(link,),
        addresses=(Address(device, inner),),
        tables=(table,),
        things=(_key(context, own, device),),
    )


def _key(context: Context, own: WireguardIdentity, device: str) -> WireguardKey:
    return WireguardKey(device, context.own_key, own.port, own.private_key_file)


def _peer(context: Context, tunnel: Tunnel) -> KernelState:
    """The other end. Several tunnels to one host have one peer: equal things are one."""
    underlay = context.site.underlay
    if (
        underlay is None
        or underlay.wireguard is None
        or tunnel.peer_key is None
        or not context.own_key
        or carried(context.host, tunnel) != "wireguard"
    ):
        return EMPTY
    secret = context.host.secrets.get(tunnel.psk_file or "")
    endpoint = None
    if tunnel.remote:
        endpoint = (str(tunnel.remote), tunnel.port or underlay.wireguard.port)
    peer = WireguardPeer.of(
        addresses.wireguard_name(underlay.wireguard.port),
        tunnel.peer_key,
        str(addresses.wireguard_inner(tunnel.peer_key)),
        endpoint,
        keepalive=WIREGUARD_KEEPALIVE_S if endpoint else 0,
        psk=secret.digest if secret else "",
        psk_file=tunnel.psk_file or "",
    )
    return KernelState(things=(peer,))


WIREGUARD = Pass("wireguard", frame=_frame, tunnel=_peer)
