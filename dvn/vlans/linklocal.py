"""Frames to IEEE 802.1D reserved addresses, which the bridge hands to its port past our filters.

01:80:c2:00:00:01 to :0f are not forwarded (net/bridge/br_input.c, br_handle_frame): the port itself
receives them, before the bridge family's prerouting hook. An IP packet in such a frame would reach
this host as from the port, which is in no set of networks, and so any UDP service of the gateway.
No honest IP packet is in such a frame.
"""

from __future__ import annotations

from dvn.kernel.state import KernelState, NftChain, NftRule, NftTable, table_name
from dvn.passes import Context, Pass

_RULE = NftRule.of(
    "ether daddr & ff:ff:ff:ff:ff:f0 == 01:80:c2:00:00:00 counter drop",
    "IP in a link-local frame: past the bridge and its filters",
)


def _frame(context: Context) -> KernelState:
    chain = NftChain("link_local", (_RULE,), "filter", "prerouting", -310, "accept")
    return KernelState(tables=(NftTable("inet", table_name(context.site.site), chains=(chain,)),))


LINK_LOCAL = Pass("link-local", frame=_frame)
