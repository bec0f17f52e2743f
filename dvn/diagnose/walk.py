"""The way of one packet through a host: bridges, filters, routes, NAT, tunnels. Pure.

`walk(state, packet, enters)` leads a frame through a compiled plan; `Walker(ruleset, scene)`
through anything, such as what a running kernel was seen to have. Each step is a hop: where, what
happened, which rules had a part in it. The order of things is the kernel's: net/bridge/br_input.c
and br_forward.c, net/ipv4/ip_input.c and ip_forward.c, net/ipv6/ip6_input.c and ip6_output.c,
drivers/net/vrf.c.
"""

from __future__ import annotations

from dvn.diagnose import scene as scenes
from dvn.diagnose.flows import Flows
from dvn.diagnose.frames import Packet
from dvn.diagnose.hops import HOST, Exit, Hop, Walk
from dvn.diagnose.routing import Routing
from dvn.diagnose.rulesets import Ruleset
from dvn.diagnose.scene import Scene
from dvn.diagnose.way import Way
from dvn.kernel.state import KernelState


def walk(state: KernelState, packet: Packet, enters: str, *, scene: Scene | None = None) -> Walk:
    """Lead `packet` through what `state` makes. `enters`: the device it comes in by, or `host`.

    For many packets make one `Walker`. Raises KeyError if there is no such device.
    """
    return Walker(Ruleset.of(state.tables), scene or scenes.of_state(state)).walk(packet, enters)


class Walker:
    """Rules and scene, made ready for any number of packets."""

    def __init__(self, ruleset: Ruleset, scene: Scene) -> None:
        self.ruleset, self.scene = ruleset, scene
        self.routing = Routing(scene)

    def walk(self, packet: Packet, enters: str, flows: Flows | None = None) -> Walk:
        """`flows`: the connections that earlier walks have opened; it grows by this one's."""
        flows = Flows() if flows is None else flows
        way = Way(self.ruleset, self.scene, self.routing, flows)
        if enters == HOST:
            way.from_host(packet)
        else:
            way.enter(self.scene.devices[enters], packet)
        return Walk(packet, enters, tuple(way.hops), tuple(way.exits))


__all__ = ["HOST", "Exit", "Hop", "Walk", "Walker", "walk"]
