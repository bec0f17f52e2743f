"""`dvn show`: what a site has in the kernel, network by network, what passed and what did not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from dvn import addresses
from dvn.diagnose.topology import Seen, State, Topology
from dvn.status import Dropped, Passed

_UNITS = ("B", "kB", "MB", "GB", "TB")


NOTHING = Passed()


NETWORK_COLUMNS = (
    "network", "bridge", "state", "prefix", "access", "outside as", "from machines", "to machines",
)  # fmt: skip
PORT_COLUMNS = ("network", "port", "state", "pinned to", "from it", "to it")
TUNNEL_COLUMNS = ("network", "tunnel", "state", "by", "to", "received", "sent")
DROP_COLUMNS = ("packets", "bytes", "where", "why")


def network_rows(site: Topology, passed: Mapping[str, Passed]) -> Iterator[list[str]]:
    for group in site.groups:
        for segment in group.segments:
            count = passed.get(segment.bridge, NOTHING)
            yield [
                f"{group.name}/{segment.name}", segment.bridge, told(segment.seen),
                " ".join(segment.prefixes), segment.access, " ".join(segment.nat),
                amount(count.rx_packets, count.rx_bytes), amount(count.tx_packets, count.tx_bytes),
            ]  # fmt: skip


def port_rows(site: Topology, passed: Mapping[str, Passed]) -> Iterator[list[str]]:
    for group in site.groups:
        for segment in group.segments:
            for end in segment.attachments:
                device = end.name
                if end.is_uplink:
                    device = addresses.vlan_name(group.name, segment.name)
                count = passed.get(device, NOTHING)
                yield [
                    f"{group.name}/{segment.name}", end.name, told(end.seen), end.detail,
                    amount(count.rx_packets, count.rx_bytes),
                    amount(count.tx_packets, count.tx_bytes),
                ]  # fmt: skip


def tunnel_rows(site: Topology, passed: Mapping[str, Passed]) -> Iterator[list[str]]:
    for group in site.groups:
        for segment in group.segments:
            for end in segment.tunnels:
                count = passed.get(addresses.tunnel_name(group.name, end.name), NOTHING)
                yield [
                    f"{group.name}/{segment.name}", end.name + (" (lease)" if end.leased else ""),
                    told(end.seen), f"{end.transport}, {end.detail}", end.remote,
                    amount(count.rx_packets, count.rx_bytes),
                    amount(count.tx_packets, count.tx_bytes),
                ]  # fmt: skip


def drop_rows(found: Iterable[Dropped]) -> Iterator[list[str]]:
    for drop in found:
        where = f"{drop.table} {drop.chain}"
        yield [str(drop.packets), size_of(drop.bytes), where, drop.why]


def told(seen: Seen) -> str:
    if seen.words and seen.state in (State.DOWN, State.DEGRADED):
        return f"{seen.state.value}: {seen.words}"
    return seen.state.value


def amount(packets: int, size: int) -> str:
    """`1204 (1.2 MB)`."""
    return f"{packets} ({size_of(size)})" if packets else "0"


def size_of(size: int) -> str:
    """In powers of 1000."""
    value = float(size)
    for unit in _UNITS:
        if value < 1000 or unit == _UNITS[-1]:
            return f"{size} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{size} B"
